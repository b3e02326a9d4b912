"""The generator that sends from sockets: a program of ours."""

from __future__ import annotations

import sys
from pathlib import Path

from kproxylat.traffic.burst import PORTS, Burst, Sender, Sent, find_summary

SENDER = Path(__file__).with_name("sender.py")


def start_sockets(burst: Burst) -> Sender:
    """Start :mod:`kproxylat.traffic.sender`."""
    numbers = burst.addresses, PORTS.start, len(PORTS), burst.count, burst.rate_pps
    protocol = "-" if burst.targets else burst.protocol
    words = protocol, burst.target_ip, str(burst.target_port), burst.first, *map(str, numbers)
    # -I: modules of ours that lie beside it must not stand for Python's own.
    sender = Sender(sys.executable, "-I", str(SENDER), *words, netns=burst.netns)
    sender.write("".join(f"{each.protocol} {each.ip} {each.port}\n" for each in burst.targets))
    sender.write(None)
    return sender


def read_sockets(_: Burst, sender: Sender) -> Sent:
    """Read what the sender said at its end.

    Sample: ``sent 2000 errors 0 seconds 2.000071``.
    """
    said = find_summary(r"sent (\d+) errors (\d+) seconds ([\d.]+)", sender)
    if said is None:
        return Sent(0, 0, 0.0)
    count, seconds = int(said[1]), float(said[3])
    return Sent(count, int(said[2]), count / seconds if seconds else 0.0)
