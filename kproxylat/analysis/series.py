"""Results of a sweep -> series: the cost of a lookup over numbers of Services, O(1) or O(n). Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, pairwise
from random import Random
from typing import TypeVar

from kproxylat.analysis.comparable import distribution, find_differences, find_flaws, merge_counts
from kproxylat.analysis.points import LINEAR, Point, draw_lines, draw_medians
from kproxylat.analysis.stats import LEVEL, bounds, fit_line, slopes
from kproxylat.modes import is_ordered
from kproxylat.results import Bounded, Result

ROUNDING = 1
"""The instruction clock's own error: one instruction more or less, by the multiplication that makes ns of its ticks."""
SAME_SLOPE = 0.1
"""Instructions a Service by which two clocks may differ."""
HASH_EFFECT = 200
"""Instructions by which a lookup in a hash table may vary between two loads of the same rules: each load draws a seed
(kernel, ``net/netfilter/nft_set_hash.c``, ``nft_hash_init``); an element before ours in its bucket costs 32 to 46."""
FLAT = 0.25
"""On the ns clock a cost is O(1) if it certainly grows by less than this part of the base over the whole sweep,"""
DECADE = 10
"""and if that had at least so many times as many Services at its end, and 100 of them."""
_SINGLE = {
    "": "is not in the bounds",
    "parts": "shows only between parts of a run",
    "line": "shows only as scatter around the line",
}
"""Source of the drift of single runs -> what the evidence says of it."""

T = TypeVar("T")
Key = tuple[str, str, str]
"""Mode and backend as :attr:`kproxylat.results.Run.rules`, and the packets' protocol ("": unknown)."""


@dataclass(frozen=True)
class CrossCheck:
    """Two clocks side by side: what each Service adds by the probe, and by the send time of untraced packets.

    :param unit: of both. ``probe`` and ``send_time`` have the bounds of :attr:`Series.per_service`.
    :param agrees: whether they are the same within :data:`SAME_SLOPE` instructions, or within hash effects where a hash
        table finds the rule; on the ns clock, whether their bounds overlap.
    """

    unit: str
    probe: Bounded
    send_time: Bounded
    agrees: bool


@dataclass(frozen=True)
class Series:
    """The lookup of one mode and backend over numbers of Services.

    :param figure: what a cost is: "commonest" or "median".
    :param per_service: the cost that each Service adds. On the instruction clock its bounds are the least and the
        greatest slope between any two points, else the bootstrap's at ``level``.
    :param base: the cost without any dummy Service, with bounds likewise.
    :param verdict: "O(1)", "O(n)" or "unclear"; ``evidence`` says why in one sentence.
    :param measured: as :attr:`kproxylat.results.Probe.measured`.
    :param cross_check: what another clock says, if the runs took the send time beside the probe's.
    :param protocol: the packets' ("": unknown). A rule of mode iptables on nft compares the protocol first.
    """

    mode: str
    backend: str
    unit: str
    figure: str
    emulated: bool
    points: tuple[Point, ...]
    per_service: Bounded | None
    base: Bounded | None
    level: float
    verdict: str
    evidence: str
    cross_check: CrossCheck | None = None
    measured: str = "lookup"
    protocol: str = ""

    @property
    def name(self) -> str:
        """Mode, backend and protocol, e.g. ``iptables/nft tcp``."""
        return name_key((self.mode, self.backend, self.protocol))

    @property
    def line(self) -> tuple[float, float] | None:
        """Slope and intercept of the line through the points, if it has one."""
        return (self.per_service.estimate, self.base.estimate) if self.per_service and self.base else None


def find_key(result: Result) -> Key:
    """Return the key of the series that a result belongs to."""
    protocol = (result.target and result.target.protocol) or ""
    return *result.run.rules, protocol.lower()


def name_key(key: Key) -> str:
    """Name a series, e.g. ``iptables/nft tcp``; UDP, which pktgen sends, has no word."""
    return "/".join(key[:2]) + (f" {key[2]}" if key[2] not in ("", "udp") else "")


def choose_lines(series: Iterable[Series]) -> dict[tuple[str, str], Series]:
    """Return one series for each mode and backend: that of TCP where several protocols were measured.

    Most Services are of TCP, and an iptables-nft rule costs their packets more.
    """
    return {(line.mode, line.backend): line for line in sorted(series, key=lambda line: line.protocol == "tcp")}


def group_results(results: Iterable[Result]) -> dict[Key, dict[int, list[Result]]]:
    """Sort results with a lookup by series, and by the number of Services, ascending."""
    groups: dict[Key, dict[int, list[Result]]] = {}
    for result in sorted(results, key=lambda result: result.run.services or 0):
        if result.headline and result.run.services is not None:
            groups.setdefault(find_key(result), {}).setdefault(result.run.services, []).append(result)
    return sort_groups(groups)


def sort_groups(groups: Mapping[Key, T]) -> dict[Key, T]:
    """Sort what belongs to series by protocol, mode and backend: a sweep measures in random order."""
    return dict(sorted(groups.items(), key=lambda pair: (pair[0][2], *pair[0][:2])))


def build_series(results: Iterable[Result], seed: int = 0) -> tuple[Series, ...]:
    """Build the series of a sweep.

    :param seed: for the bootstrap.
    """
    return tuple(_build_one(key, cells, Random(seed)) for key, cells in group_results(results).items())  # noqa: S311


def _build_one(key: Key, cells: Mapping[int, list[Result]], rng: Random) -> Series:
    runs = [result for cell in cells.values() for result in cell]
    lookups = [result.headline for result in runs if result.headline]
    unit = lookups[0].unit
    counting = unit == "instructions"
    series = Series(
        *key[:2], unit, "commonest" if counting else "median", bool(runs[0].run.emulated), (), None, None,
        1.0 if counting else LEVEL, "unclear", "", measured=lookups[0].measured, protocol=key[2]
    )  # fmt: skip
    differing = next((facts for result in runs if (facts := find_differences(runs[0], result))), None)
    flaws = next((facts for result in runs if (facts := find_flaws(result))), None)
    if differing or any(lookup.unit != unit for lookup in lookups):
        reason, difference = next(iter((differing or {"clock": "two units"}).items()))
        return replace(series, evidence=f"the runs cannot be compared, another {reason}: {difference}")
    if any(distribution(lookup) is None or (counting and not lookup.values) for lookup in lookups):
        return replace(series, evidence="the runs did not keep their values")
    judge = _judge_counted if counting else partial(_judge_timed, rng=rng)
    series = judge(series, cells)
    if all(result.probes and result.send_time for result in runs):
        untraced = {size: [replace(result, probes=()) for result in cell] for size, cell in cells.items()}
        series = replace(series, cross_check=_cross_check(series, judge(series, untraced)))
    if flaws:
        reason, flaw = next(iter(flaws.items()))
        kind = "books that do not close" if reason == "books" else "lost events"
        return replace(series, verdict="unclear", evidence=f"{kind}: {flaw}; {series.evidence}")
    places = {result.run.position for result in runs}
    if len(cells) > 1 and len(places) == 1 and None not in places:
        return replace(series, evidence=f"{series.evidence}; the worker's rule is number {places.pop()} in each")
    return series


def _cross_check(series: Series, untraced: Series) -> CrossCheck | None:
    """Compare what each Service adds by the probe with what it adds to the send time; None if either is unknown."""
    a, b = series.per_service, untraced.per_service
    if not a or not b:
        return None
    agrees = a.lo <= b.hi and b.lo <= a.hi
    if series.unit == "instructions":
        span = series.points[-1].services - series.points[0].services
        agrees = abs(a.estimate - b.estimate) <= (SAME_SLOPE if is_ordered(series.mode) else HASH_EFFECT / span)
    return CrossCheck(series.unit, a, b, agrees)


def _judge_counted(series: Series, cells: Mapping[int, list[Result]]) -> Series:
    """Judge exact integers, without averages or chance; residuals are shown."""
    points = []
    for services, cell in cells.items():
        lookups = [result.headline for result in cell if result.headline]
        values = merge_counts(lookups)
        commonest = [lookup.counts.most_common(1)[0][0] for lookup in lookups]
        cost = values.most_common(1)[0][0]
        others = {str(value): count for value, count in sorted(values.items()) if abs(value - cost) > ROUNDING}
        lo, hi = min(cost, *commonest), max(cost, *commonest)
        points.append(Point(services, len(cell), values.total(), cost, lo, hi, others=others))
    if len(points) < 2:
        return replace(series, points=tuple(points), evidence="one number of Services shows no growth")
    slope, base = fit_line([(point.services, point.cost) for point in points])
    points = [replace(point, residual=point.cost - (base + slope * point.services)) for point in points]
    worst = max(abs(point.residual or 0) for point in points)
    costs = [point.cost for point in points]
    spread, growth = max(costs) - min(costs), slope * (points[-1].services - points[0].services)
    all_slopes = list(slopes(combinations([(point.services, point.cost) for point in points], 2)))
    bases = [point.cost - slope * point.services for point in points]
    # By chance of seeds three points rise once in six times, four once in 24; but three points do not lie on a line.
    enough = len(points) > 3 or (len(points) == 3 and worst <= ROUNDING)
    rising = enough and all(later - sooner > ROUNDING for sooner, later in pairwise(costs))
    where = f"at all {len(points)} points" if len(points) > 2 else "at both points"
    if spread <= ROUNDING:
        verdict, evidence = "O(1)", f"the commonest lookup is the same {where}"
    elif not is_ordered(series.mode) and spread <= HASH_EFFECT and not rising:
        verdict = "O(1)"
        evidence = f"no growth beyond hash effects (up to {HASH_EFFECT}): {min(costs):,.0f} to {max(costs):,.0f}"
    elif spread <= 2 * ROUNDING:
        verdict, evidence = "unclear", f"it changes by {spread:,.0f}, no more than the clock's rounding of two values"
    elif len(points) < 3:
        verdict, evidence = "unclear", f"it changes by {growth:+,.0f}, but two points show no line"
    elif worst <= ROUNDING and growth > 0:
        verdict, evidence = "O(n)", f"each Service adds {slope:,.6g}, residual {worst:.0f} {where}"
    elif not is_ordered(series.mode) and spread <= HASH_EFFECT:
        evidence = f"it grows at every step, by {spread:,.0f} in all, but hash effects may be up to {HASH_EFFECT}"
        verdict = "unclear"
    elif worst <= LINEAR * growth:
        verdict, evidence = "O(n)", f"a line, with residuals of up to {worst:,.0f} in a growth of {growth:,.0f}"
    else:
        verdict, evidence = "unclear", f"no line: residuals of up to {worst:,.0f}, a growth of {growth:,.0f}"
    return replace(
        series,
        points=tuple(points),
        per_service=Bounded(slope, min(all_slopes), max(all_slopes)),
        base=Bounded(base, min(bases), max(bases)),
        verdict=verdict,
        evidence=evidence,
    )


def _round_up(share: float) -> str:
    """Write a part of the base in percent, so that it is certainly less."""
    return f"{math.floor(100 * share) + 1}%" if math.isfinite(share) else "any part"


def _judge_timed(series: Series, cells: Mapping[int, list[Result]], rng: Random) -> Series:
    """Judge medians of nanoseconds by the bootstrap of the line through them."""
    points, drawn, drift = draw_medians(cells, rng)
    if len(points) < 2:
        return replace(series, points=tuple(points), evidence="one number of Services shows no growth")
    slope, base = fit_line([(point.services, point.cost) for point in points])
    lines = draw_lines(points, drawn)
    per_service = Bounded(slope, *bounds((line[0] for line in lines), LEVEL))
    base_bounds = Bounded(base, *bounds((line[1] for line in lines), LEVEL))
    points = [replace(point, residual=point.cost - (base + slope * point.services)) for point in points]
    worst = max(abs(point.residual or 0) for point in points)
    span = points[-1].services - points[0].services
    growth, most = slope * span, max(abs(per_service.lo), abs(per_service.hi)) * span
    # A line does not see a jump at its end: the points themselves have to be as near to each other.
    most = max(most, max(point.cost for point in points) - min(point.cost for point in points))
    ends = f"between {points[0].services:,} and {points[-1].services:,} Services"
    share = most / base if base > 0 else float("inf")
    least, verdict = FLAT if drift.freedom else 1, "unclear"
    is_line = all(point.is_on_line(growth) for point in points)
    if per_service.lo > 0 and len(points) > 2 and is_line and growth > least * base:
        verdict = "O(n)"
        evidence = f"the slope is above 0, residuals are at most {worst / growth:.0%} of the growth"
    elif share < FLAT and points[-1].services >= max(DECADE * points[0].services, 100):
        verdict, evidence = "O(1)", f"it changes by less than {_round_up(share)} of the base {ends}"
    elif share < FLAT:
        evidence = f"too few Services to tell: it changes by less than {_round_up(share)} of the base {ends}"
    elif len(points) < 3:
        evidence = "two points show no line"
    elif per_service.hi < 0:
        evidence = f"it falls by {-growth / base:.0%} of the base {ends}"
    elif per_service.lo <= 0:
        evidence = f"the slope may be 0, but a change by {_round_up(share)} of the base is not ruled out {ends}"
    elif is_line:
        evidence = f"it grows by {growth / base:.0%} of the base {ends}: too much for O(1), and too little for O(n)"
    else:
        evidence = f"it grows {ends}, but not in a line: residuals of up to {worst:,.0f} ns"
    if seen := _SINGLE.get(drift.source):
        evidence += f"; single runs: drift from run to run {seen} (--repeats)"
    return replace(
        series, points=tuple(points), per_service=per_service, base=base_bounds, verdict=verdict, evidence=evidence
    )
