"""The generator that sends from sockets: a program of ours."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kproxylat.errors import MachineError
from kproxylat.results import Target
from kproxylat.traffic.burst import PORTS, Burst, Sender, Sent, find_summary

SENDER = Path(__file__).with_name("sender.py")


def start_sockets(burst: Burst) -> Sender:
    """Start :mod:`kproxylat.traffic.sender`."""
    if burst.takes_times:
        parameters: dict[str, Any] = {
            "targets": _name_targets(burst.targets or [burst.target]),
            "first": burst.first,
            "addresses": burst.addresses,
            "ports": (PORTS.start, len(PORTS)),
            "count": burst.count,
            "rate_pps": burst.rate_pps,
        }
        if not burst.connects:
            parameters |= {"controls": _name_targets(burst.controls), "netns": burst.arrivals}
        form = "connect" if burst.connects else "timed"
        sender = Sender(sys.executable, "-I", str(SENDER), form, netns=burst.netns)
        sender.write(json.dumps(parameters))
        sender.write(None)
        return sender
    numbers = burst.addresses, PORTS.start, len(PORTS), burst.count, burst.rate_pps
    protocol = "-" if burst.targets else burst.target.protocol
    words = map(str, (protocol, burst.target.ip, burst.target.port, burst.first, *numbers))
    # -I: modules of ours that lie beside it must not stand for Python's own.
    sender = Sender(sys.executable, "-I", str(SENDER), *words, netns=burst.netns)
    sender.write("".join(f"{each.protocol} {each.ip} {each.port}\n" for each in burst.targets))
    sender.write(None)
    return sender


def _name_targets(targets: Sequence[Target]) -> list[tuple[str, int | None, str | None]]:
    """Write targets as the sender's parameters have them."""
    return [(target.ip, target.port, target.protocol) for target in targets]


def read_sockets(burst: Burst, sender: Sender) -> Sent:
    """Read what the sender said at its end: ``sent 2000 errors 0 seconds 2.000071``, or one line of JSON."""
    if burst.takes_times:
        return _read_times(sender)
    said = find_summary(r"sent (\d+) errors (\d+) seconds ([\d.]+)", sender)
    if said is None:
        return Sent(0, 0, 0.0)
    count, seconds = int(said[1]), float(said[3])
    return Sent(count, int(said[2]), count / seconds if seconds else 0.0)


def _read_times(sender: Sender) -> Sent:
    """Read the line of JSON of a sender that took times. A signal of ours may end it before its program has begun.

    :raises MachineError: the sender printed something else.
    """
    text = "".join(sender.said)
    try:
        times = json.loads(text)
    except ValueError:
        if sender.status == -signal.SIGINT:
            return Sent(0, 0, 0.0)
        error = " ".join(text.split())[-200:] or "(it printed nothing)"
        raise MachineError(f"the sender that takes times failed: {error}") from None
    return Sent(times["sent"], times["errors"], times["sent"] / (times["seconds"] or 1), times)
