"""Calls of A against calls of B: the difference of each figure and of the whole distribution. Pure.

On the instruction clock values are exact, and the commonest one decides. On any other clock bounds come from bootstrap
replicates; all of the figures that decide share one rate of false alarms (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import sub
from random import Random
from statistics import fmean

from kproxylat.analysis import stats
from kproxylat.analysis.comparable import distribution, merge_counts
from kproxylat.analysis.series import HASH_EFFECT, ROUNDING
from kproxylat.results import Bounded, Probe

ALARMS = 0.05
"""Rate of false alarms between two samples of the same thing."""
SHIFT = 0.1
"""On the instruction clock the reason mentions distributions farther apart than this; the commonest value decides."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True)
class Figure:
    """A figure of both sides, and its difference.

    :param difference: B less A; its bounds hold at the contrast's ``level`` (None: unknown).
    :param ratio: B by A, likewise.
    """

    name: str
    a: float | None
    b: float | None
    difference: Bounded | None = None
    ratio: Bounded | None = None


@dataclass(frozen=True)
class Contrast:
    """The outcome for one pair (``what``: an engine call, or the lookup at a number of Services).

    :param differs: whether the sides differ by more than chance, rounding or hash seeds explain (None: unknown).
    :param level: of each figure's bounds; 1 if values are exact.
    :param distance: the greatest difference of the distribution functions; chance alone exceeds ``chance_distance``
        at most as often as a figure exceeds its bounds.
    :param reason: the reason for ``differs``, in a few words.
    :param drift_from: as :attr:`kproxylat.analysis.stats.Drift.source`: what the bounds know of the drift between runs.
    """

    what: str
    services: tuple[int | None, int | None]
    figures: tuple[Figure, ...]
    level: float
    differs: bool | None
    reason: str
    distance: float | None = None
    chance_distance: float | None = None
    drift_from: str = ""

    @property
    def main(self) -> Figure:
        """The figure that represents the others: the commonest value, the median, or the first."""
        return next((figure for figure in self.figures if figure.name in ("commonest", "p50")), self.figures[0])


def contrast(
    what: str,
    a: Sequence[Probe],
    b: Sequence[Probe],
    rng: Random,
    services: tuple[int | None, int | None] = (None, None),
    tests: int = 1,
    hashed: bool = False,
    rounds: int = stats.ROUNDS,
    parts: Sequence[Sequence[float]] = (),
) -> Contrast:
    """Compare the calls of two sides.

    :param a: one call's probe, or those of repeats; ``b`` likewise.
    :param tests: number of contrasts that share the rate of false alarms; if more than one, only the median decides.
    :param hashed: whether the call looks up in hash tables, whose seeds change at every load.
    :param rounds: of the bootstrap.
    :param parts: of runs that the sender timed, as :attr:`kproxylat.results.Result.blocks`: only the median decides,
        and single runs may be as far apart as the parts of one.
    """
    sides = [[calls for probe in side if (calls := distribution(probe))] for side in (a, b)]
    if all(probe.unit == "instructions" and probe.values for probe in (*a, *b)):
        return _contrast_counted(what, a, b, services, hashed)
    means = [[probe.mean for probe in side if probe.mean is not None] for side in (a, b)]
    least = [min((probe.min for probe in side if probe.min is not None), default=None) for side in (a, b)]
    most = [max((probe.max for probe in side if probe.max is not None), default=None) for side in (a, b)]
    plain = [_plain("min", *least), _plain("max", *most)]
    runs = [len(a), len(b)]
    if not all(means) or [*map(len, sides)] != runs or [*map(len, means)] != runs:
        mean = _plain("mean", *(fmean(side) if side else None for side in means))
        return Contrast(what, services, (mean, *plain), 1 - ALARMS, None, "a run has no distribution, or no mean")
    return _contrast_timed(what, sides, means, plain, rng, services, tests, rounds, parts)


def _plain(name: str, a: float | None, b: float | None) -> Figure:
    if a is None or b is None:
        return Figure(name, a, b)
    return Figure(name, a, b, Bounded(b - a, b - a, b - a), Bounded(b / a, b / a, b / a) if a else None)


def _contrast_counted(
    what: str, a: Sequence[Probe], b: Sequence[Probe], services: tuple[int | None, int | None], hashed: bool
) -> Contrast:
    merged = [merge_counts(side) for side in (a, b)]
    costs = [values.most_common(1)[0][0] for values in merged]
    sides = [stats.Distribution.of_values(values) for values in merged]
    near = [{value for probe in side for value in _find_commonest(probe.counts)} for side in (a, b)]
    pairs = [(x, y) for x in near[0] for y in near[1]]
    figures = [_bound_counted(costs, pairs), _plain("min", *(float(side.lows[0]) for side in sides))]
    figures += [_plain(f"p{p * 100:g}", *(side.estimate(p) for side in sides)) for p in QUANTILES[2:]]
    figures += [_plain("mean", *(sum(v * n for v, n in values.items()) / values.total() for values in merged))]
    figures += [_plain("max", *(float(side.lows[-1]) for side in sides))]
    # With values of B on both sides of A's, chance alone decides which side costs more.
    apart = 0 if len({y > x for x, y in pairs}) > 1 else min(abs(y - x) for x, y in pairs)
    if apart <= ROUNDING:
        reason = "the same commonest value"
        if costs[0] != costs[1]:
            near_by = abs(costs[0] - costs[1]) <= ROUNDING
            reason = "within the clock's rounding" if near_by else "two values are nearly as common as each other"
    else:
        reason = f"the commonest value differs by {apart:,}, exactly"
        if len(pairs) > 1:
            reason = f"the commonest values, and those that are nearly as common, differ by at least {apart:,}"
        if hashed and apart <= HASH_EFFECT:
            reason = f"{apart:,} apart; up to {HASH_EFFECT} instructions cannot be told from hash effects"
            apart = 0
    spread = stats.distance(*sides)
    if apart <= ROUNDING and spread > SHIFT and reason == "the same commonest value":
        reason += f", but {spread:.0%} of the calls cost otherwise"
    return Contrast(what, services, tuple(figures), 1.0, apart > ROUNDING, reason, distance=spread)


def _bound_counted(costs: Sequence[int], pairs: Sequence[tuple[int, int]]) -> Figure:
    """Bound the difference of the commonest values by that of all values which chance may make the commonest."""
    plain = _plain("commonest", *costs)
    if not plain.ratio or len(pairs) == 1:
        return plain
    apart, ratios = [y - x for x, y in pairs], [y / x for x, y in pairs if x]
    difference = Bounded(costs[1] - costs[0], min(apart), max(apart))
    return replace(plain, difference=difference, ratio=Bounded(plain.ratio.estimate, min(ratios), max(ratios)))


def _find_commonest(values: Mapping[int, int]) -> set[int]:
    """Return the commonest value, and those that chance may make the commonest the next time.

    Their counts are nearly as high, and at least half as high: in few calls chance is large.
    """
    most = max(values.values())
    return {value for value, count in values.items() if count >= max(most - 4 * math.sqrt(2 * most), most / 2)}


def _contrast_timed(
    what: str,
    sides: Sequence[Sequence[stats.Distribution]],
    means: Sequence[Sequence[float]],
    plain: Sequence[Figure],
    rng: Random,
    services: tuple[int | None, int | None],
    tests: int,
    rounds: int,
    parts: Sequence[Sequence[float]],
) -> Contrast:
    single = all(len(side) == 1 for side in sides)
    alone = tests == 1 and not any(parts)
    quantiles = [p for p in QUANTILES if all(run.has_tail(p) for side in sides for run in side)]
    # The mean does not decide: a few calls that last a hundred times as long dominate it.
    deciding = [p for p in quantiles if alone or p == 0.5]
    with_distance = single and alone
    level = 1 - ALARMS / max(len(deciding) + with_distance, 1) / tests
    figures = []
    for p in quantiles:
        middles = [[run.estimate(p) for run in side] for side in sides]
        draws = [[run.draw(p, rng, rounds) for run in side] for side in sides]
        figures.append(_bound(f"p{p * 100:g}", middles, draws, level, rng, parts))
    judged = [figure for p, figure in zip(quantiles, figures, strict=True) if p in deciding]
    draws = [[run.draw_mean(mean, rng, rounds) for run, mean in zip(*side, strict=True)]
             for side in zip(sides, means, strict=True)]  # fmt: skip
    figures.append(_bound("mean", means, draws, level, rng, parts))
    wrong = [f.name for f in judged if f.difference and not f.difference.lo <= 0 <= f.difference.hi]
    apart = by_chance = None
    if single:
        one, other = sides[0][0], sides[1][0]
        apart, by_chance = stats.distance(one, other), stats.chance_distance(one.count, other.count, level)
        if with_distance and apart > by_chance:
            wrong.append("the distribution")
    reason = f"beyond chance: {', '.join(wrong)}" if wrong else "chance alone makes such differences"
    drift = stats.find_drift(means, parts)
    if drift.source == "parts":
        reason += f" (parts of a run are {drift.relative:.0%} apart)"
    if not judged:
        reason = "too few calls to tell"
    differs = bool(wrong) if judged else None
    return Contrast(what, services, (*figures, *plain), level, differs, reason, apart, by_chance, drift.source)


def _bound(
    name: str,
    middles: Sequence[Sequence[float]],
    draws: Sequence[Sequence[stats.Draws]],
    level: float,
    rng: Random,
    parts: Sequence[Sequence[float]],
) -> Figure:
    """Bound the difference and the ratio of a figure by the replicates of both sides' runs, and by their drift."""
    drift = stats.find_drift(middles, parts)
    (a_low, a_high), (b_low, b_high) = (stats.merge_draws(side, drift, rng) for side in draws)
    a, b = fmean(middles[0]), fmean(middles[1])
    # For a histogram's values, the least and the greatest value of the bucket bound the difference.
    exact = a_low is a_high and b_low is b_high

    def divide(x: float, y: float) -> float:
        return x / y if y > 0 else math.inf

    def bound(operate: Callable[[float, float], float]) -> Bounded:
        lo, hi = stats.bounds(map(operate, b_low, a_high), level)
        return Bounded(operate(b, a), lo, hi if exact else stats.bounds(map(operate, b_high, a_low), level)[1])

    # With A's own bound above 0, too few replicates lie below it to reach the ratio's bounds.
    return Figure(name, a, b, bound(sub), bound(divide) if stats.bounds(a_low, level)[0] > 0 else None)
