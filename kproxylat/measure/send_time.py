"""The time of the sender's own system calls: real nanoseconds of a packet's whole way, without any probe."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from kproxylat.analysis.stats import LEVEL, Distribution, bounds
from kproxylat.console import say
from kproxylat.errors import Interrupted, MachineError
from kproxylat.logs.record import TIMES_MARK
from kproxylat.measure.completion import add_further
from kproxylat.measure.options import Options
from kproxylat.node.network import Network
from kproxylat.results import Bounded, Result, SendTime
from kproxylat.system.processes import netns_path
from kproxylat.trace.probes import exact_probe
from kproxylat.traffic.burst import Burst
from kproxylat.traffic.generators import GENERATORS
from kproxylat.traffic.sending import send

PERCENTILES = (1, 50, 90, 95, 99)
KINDS = ("target", "endpoint", "no_service")
MOST_LATE = 0.01
"""Share of checked packets above which the times are not those of the whole way."""


def time_sends(burst: Burst, options: Options, network: Network) -> Burst:
    """Return a burst of which the sender takes the times."""
    arrives = network.backend or network.node
    path = str(netns_path(arrives)) if arrives else f"/proc/{os.getpid()}/ns/net"
    counter = "InReceives" if network.backend else "ForwDatagrams"
    if not network.backend and network.origin == "node":
        # What a node sends itself passes its rules in the call itself, and no counter of the node knows more.
        path = counter = ""
    return replace(burst, arrivals=(path, counter), controls=options.controls)


def build_send_time(found: Mapping[str, Any], unit: str) -> SendTime:
    """Build the send time from what the sender found, as :func:`kproxylat.traffic.sender.send_timed` returns it.

    :param unit: of the clock, "ns" or "instructions".
    :raises MachineError: no packet's time was taken, or packets arrive after their call has returned.
    """
    times = [Counter({int(value): count for value, count in part.items()}) for part in found["times"]]
    if not times or not all(times):
        raise MachineError("the sender took no times", "a longer run, or a higher rate")
    if found["late"] > MOST_LATE * found["checked"]:
        raise MachineError(
            f"{found['late']} of {found['checked']} packets arrived after their system call had returned: its time is "
            "not that of their way",
            "receive packet steering (rps_cpus), threaded NAPI or a busy ksoftirqd does this: switch it off, or wait",
        )
    probes = [exact_probe("sendto", (None, None, None), values, unit, percents=PERCENTILES) for values in times]
    apart = [
        bound_median(Counter({int(value): count for value, count in part.items()}), medians, unit)
        for part, medians in zip(found["apart"], found["blocks"][len(times) :], strict=True)
    ]
    has_controls = len(probes) > 1
    return SendTime(
        target=probes[0],
        endpoint=probes[1] if has_controls else None,
        no_service=probes[2] if has_controls else None,
        over_endpoint=apart[0] if has_controls else None,
        over_no_service=apart[1] if has_controls else None,
        clock=found["clock"],
        sent=dict(zip(KINDS, found["totals"], strict=False)),
        preempted=dict(zip(KINDS, found["preempted"], strict=False)),
        checked=found["checked"],
        late=found["late"],
        blocks=tuple(found["blocks"][0]),
    )


def bound_median(values: Counter[int], medians: Sequence[float], unit: str) -> Bounded | None:
    """Return the median of times or differences, with bounds from the medians of the parts of the run.

    Packets next to each other share what slows the machine down, so that a bootstrap of packets would be too sure.
    """
    if not values:
        return None
    middle = Distribution.of_values(values).quantile(0.5)[0]
    if unit == "instructions" or len(medians) < 2:
        return Bounded(middle, middle, middle)
    parts = Distribution((value, value, 1) for value in medians)
    drawn = parts.draw(0.5, Random(0))[0]  # noqa: S311 - chance for statistics
    return Bounded.around(middle, *bounds(drawn, LEVEL))


def add_send_time(result: Result, found: Mapping[str, Any]) -> Result:
    """Return a result with its send time.

    :raises MachineError: as :func:`build_send_time`.
    """
    return replace(result, send_time=build_send_time(found, result.run.clock or "ns"))


def add_untraced(result: Result, burst: Burst, write: Callable[[str], None]) -> tuple[Result, Interrupted | None]:
    """Take the send time of a burst after a run that traced, and put it into the result.

    Where that fails the result stays as it is, but for a warning.

    :param write: receives what the sender printed, for the log.
    :return: the result, and the signal that came, if one did.
    """
    say(f"      send time: {burst.count} packets, nothing traced...")

    def take() -> Result:
        sent, interrupted = send(burst, GENERATORS["sockets"])
        if interrupted:
            raise interrupted
        write(f"{TIMES_MARK}{json.dumps(sent.times)}\n")
        return add_send_time(result, sent.times or {})

    return add_further(result, "the send time was not taken", take)
