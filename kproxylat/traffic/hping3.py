"""The generator hping3: TCP SYNs."""

from __future__ import annotations

import time

from kproxylat.traffic.burst import PORTS, Burst, Sender, Sent, find_summary

HPING3_LAST_WAIT_S = 1.0
"""How long hping3 waits for answers after the last packet of ``-c`` (hping2.h, COUNTREACHED_TIMEOUT)."""


def start_hping3(burst: Burst) -> Sender:
    """Start hping3: SYNs from one address, whose port goes up by one with every packet."""
    interval = f"u{max(round(1e6 / burst.rate_pps), 1)}"
    words = "-q", "-n", "-S", "-I", burst.device, "-i", interval, "-c", str(burst.count), "-a", burst.first
    return Sender(
        "hping3", *words, "-s", str(PORTS.start), "-p", str(burst.target.port), burst.target.ip, netns=burst.netns
    )


def read_hping3(burst: Burst, sender: Sender) -> Sent:
    """Read what hping3 said at its end; it does not say how long it took, so we do.

    Sample: ``2000 packets transmitted, 0 packets received, 100% packet loss``.
    """
    elapsed_s = time.monotonic() - sender.started_s
    said = find_summary(r"(\d+) packets transmitted", sender)
    count = int(said[1]) if said else 0
    elapsed_s -= HPING3_LAST_WAIT_S if count == burst.count else 0
    return Sent(count, None, count / elapsed_s if elapsed_s > 0 else 0.0)
