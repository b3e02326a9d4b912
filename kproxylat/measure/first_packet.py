"""First packets: the time from a connection's SYN to its SYN-ACK, the way there and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import astuple, replace
from itertools import chain
from random import Random
from statistics import median
from typing import Any

from kproxylat.analysis.stats import LEVEL, bounds, draw_blocks
from kproxylat.errors import MachineError, UsageError
from kproxylat.measure.options import Options
from kproxylat.results import Bounded, FirstPacket, Percentile, PlaceTime, Result
from kproxylat.trace.probes import exact_probe

PERCENTILES = (1, 50, 90, 95, 99, 100)
"""The last is the maximum."""


def check_first_packet(options: Options) -> None:
    """Refuse options with which no connections can be opened.

    :raises UsageError: one of them was passed.
    """
    sending, lab = options.sending, options.lab
    places = lab.places if lab else 0
    if places and not sending.connects:
        raise UsageError("--places is for first packets", "add --first-packet")
    if not sending.connects:
        return
    if sending.generator.name != "sockets":
        raise UsageError(f"--generator {sending.generator.name} opens no connections", "--first-packet takes sockets")
    if any(target.protocol != "tcp" for target in options.targets or (options.target,)):
        raise UsageError("--first-packet opens connections, and UDP has none", "pass --protocol tcp")
    if lab and not 0 <= places <= lab.services:
        raise UsageError(f"--places {places} among {lab.services} Services is not possible", "pass fewer places")


def build_first_packet(found: Mapping[str, Any], options: Options, unit: str) -> FirstPacket:
    """Build the times of first packets from what the sender found.

    :param found: as :func:`kproxylat.traffic.sender.connect_timed` returns it.
    :param unit: of the clock, "ns" or "instructions".
    :raises MachineError: no connection was answered.
    """
    places: list[list[list[int]]] = found["times"]
    blocks = [list(chain.from_iterable(parts)) for parts in zip(*places, strict=True)]
    values = Counter(chain.from_iterable(blocks))
    if not values:
        counts = ", ".join(f"{found[name]} {name}" for name in ("refused", "unanswered", "errors", "preempted"))
        raise MachineError(
            f"no connection to {options.target} was answered in time: {found['sent']} SYNs sent, {counts}",
            "does the Service have ready pods that listen on this port, and do network policies let them answer?",
        )
    rng = Random(0)  # noqa: S311 - chance for statistics
    probe = exact_probe("connect", (None, None, None), values, unit, percents=PERCENTILES)
    drawn = draw_blocks(blocks, [percent / 100 for percent in PERCENTILES], rng)
    percentiles = {
        # The estimate lies between two values, where the bounds are values.
        name: Percentile(*astuple(Bounded.around(exact.estimate or 0.0, *bounds(replicates, LEVEL))))
        for (name, exact), replicates in zip(probe.percentiles.items(), drawn, strict=True)
    }
    targets = options.targets or (options.target,)
    times = [Counter(chain.from_iterable(parts)) for parts in places]
    names = [str(target) for target in targets]
    lab = options.lab if options.lab and options.lab.places else None
    placed = [service.ip for service in lab.place_services(options.family)] if lab else []
    by_target = {
        name: {str(value): count for value, count in sorted(own.items())}
        for name, own in zip(names, times, strict=True)
    }
    return FirstPacket(
        replace(probe, percentiles=percentiles, targets=by_target if len(targets) > 1 else None),
        clock=found["clock"],
        sent=found["sent"],
        refused=found["refused"],
        unanswered=found["unanswered"],
        preempted=found["preempted"],
        blocks=tuple(median(block) for block in blocks if block),
        places=tuple(
            _describe_place(placed.index(target.ip), name, parts, rng)
            for target, name, parts in zip(targets, names, places, strict=True)
            if any(parts)
        )
        if lab
        else (),
    )


def _describe_place(before: int, name: str, parts: list[list[int]], rng: Random) -> PlaceTime:
    middle = median(chain.from_iterable(parts))
    [replicates] = draw_blocks(parts, [0.5], rng)
    count = sum(map(len, parts))
    return PlaceTime(before, name, count, Bounded.around(middle, *bounds(replicates, LEVEL)))


def add_first_packet(result: Result, found: Mapping[str, Any], options: Options) -> Result:
    """Return a result with the times of first packets, and with the lookup's share of them if it was traced.

    :raises MachineError: as :func:`build_first_packet`.
    """
    times = build_first_packet(found, options, result.run.clock or "ns")
    lookup, first = result.lookup and result.lookup.middle, times.probe.middle
    times = replace(times, lookup_share=lookup / first if lookup and first else None)
    lost = times.unanswered + times.refused
    warnings = (f"{lost} of {times.sent} connections were not answered in time, or refused",) if lost else ()
    return replace(result, first_packet=times).warn(*warnings)
