"""The generator that sends from sockets: a program of ours."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kproxylat.results import Target
from kproxylat.traffic.burst import PORTS, Burst, Sender, Sent, find_summary

SENDER = Path(__file__).with_name("sender.py")


def start_sockets(burst: Burst) -> Sender:
    """Start :mod:`kproxylat.traffic.sender`."""
    parameters: dict[str, Any] = {
        "targets": _name_targets(burst.targets or [burst.target]),
        "first": burst.first,
        "addresses": burst.addresses,
        "ports": (PORTS.start, len(PORTS)),
        "count": burst.count,
        "rate_pps": burst.rate_pps,
    }
    form = "connect" if burst.connects else "timed" if burst.takes_times else "flows"
    if form == "timed":
        parameters |= {"controls": _name_targets(burst.controls), "arrivals": burst.arrivals}
    # -I: modules of ours that lie beside it must not stand for Python's own.
    sender = Sender(sys.executable, "-I", str(SENDER), form, netns=burst.netns)
    sender.write(json.dumps(parameters))
    sender.write(None)
    return sender


def _name_targets(targets: Sequence[Target]) -> list[tuple[str, int | None, str | None]]:
    """Write targets as the sender's parameters have them."""
    return [(target.ip, target.port, target.protocol) for target in targets]


def read_sockets(burst: Burst, sender: Sender) -> Sent:
    """Read the line of JSON that the sender printed last."""
    line = find_summary(r"(?m)^\{.*\}$", sender)
    if line is None:
        return Sent(0, 0, 0.0)
    found = json.loads(line[0])
    pps = found["sent"] / (found["seconds"] or 1)
    return Sent(found["sent"], found["errors"], pps, found if burst.takes_times else None)
