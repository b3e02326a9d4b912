"""Many runs: the lab's modes and backends over numbers of Services."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from kproxylat.errors import Interrupted, UsageError
from kproxylat.measure import measure
from kproxylat.model import Result
from kproxylat.modes import MODES, Mode
from kproxylat.plan import Lab, Options, check_options
from kproxylat.screen import say


def find_modes(modes: Iterable[str], backends: Iterable[str]) -> list[Mode]:
    """Return the rows of these modes and backends; of all, where none is named.

    :raises UsageError: a name that no row has, or names that no row has together.
    """
    wanted = set(modes), set(backends)
    known = {row.name for row in MODES}, {row.backend for row in MODES}
    for kind, names, there in zip(("mode", "backend"), wanted, known, strict=True):
        if names - there:
            raise UsageError(f"unknown {kind} {min(names - there)!r}", f"there are: {', '.join(sorted(there))}")
    rows = [row for row in MODES if row.name in (wanted[0] or known[0]) and row.backend in (wanted[1] or known[1])]
    if not rows:
        raise UsageError("no mode has these backends", "leave --backend out")
    return rows


def plan_points(base: Options, modes: Iterable[Mode], services: Iterable[int]) -> list[Options]:
    """Return what to measure, point by point: each mode at each number of Services.

    :param base: what all points have in common.
    """
    lab, counts = base.lab or Lab(), list(services)
    return [replace(base, mode=mode, lab=replace(lab, services=count)) for mode in modes for count in counts]


def check_points(points: Iterable[Options]) -> None:
    """Refuse what cannot be, before anything is measured.

    :raises UsageError: as :func:`kproxylat.plan.check_options`.
    """
    for point in points:
        check_options(point)


def sweep(points: list[Options]) -> tuple[list[Result], Interrupted | None]:
    """Measure point after point.

    :return: the results so far, and the signal that cut the sweep short, if one did.
    :raises KproxylatError: as :func:`kproxylat.measure.measure`.
    """
    results: list[Result] = []
    for number, point in enumerate(points, 1):
        count = point.lab.services if point.lab else 0
        say(f"== run {number} of {len(points)}: {point.mode.name} on {point.mode.backend}, {count} Services")
        result, interrupted = measure(point)
        results.append(result)
        if interrupted:
            return results, interrupted
    return results, None
