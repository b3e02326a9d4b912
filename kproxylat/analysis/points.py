"""The points of a series: the cost at each number of Services, and how far chance and drift may move it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean

from kproxylat.analysis.comparable import distribution
from kproxylat.analysis.stats import (
    LEVEL,
    MANY,
    ROUNDS,
    Distribution,
    Drift,
    bounds,
    choose_pairs,
    find_drift,
    fit_line,
    merge_draws,
)
from kproxylat.results import Result

LINEAR = 0.1
"""Residuals up to this part of the growth are a line's,"""
NOISY = 0.25
"""and on the ns clock up to this part, where the point's bounds reach the line. A logarithm's are 0.4."""
SCATTERED = 4
"""So many single runs show their drift by the scatter around the line. With fewer, O(n) doubles the base."""


@dataclass(frozen=True)
class Point:
    """The lookup at one number of Services.

    :param cost: the commonest value (instructions) or the mean of the runs' medians (ns).
    :param lo: the least of the repeats' commonest values; the lower bound (ns). ``hi`` likewise.
    :param residual: the cost less the line's.
    :param others: the values apart from the commonest and their counts (instructions only).
    """

    services: int
    runs: int
    calls: int
    cost: float
    lo: float
    hi: float
    residual: float | None = None
    others: Mapping[str, int] | None = None

    def is_on_line(self, growth: float) -> bool:
        """Whether the residual is a small part of the whole growth, or no larger than noise makes it."""
        away = self.residual or 0
        near = self.lo <= self.cost - away <= self.hi
        return abs(away) <= (NOISY if near else LINEAR) * growth


def draw_medians(
    cells: Mapping[int, list[Result]], rng: Random, level: float = LEVEL
) -> tuple[list[Point], list[list[float]], Drift]:
    """Draw replicates of the median at each number of Services.

    :return: the points; for each point its replicates; the drift that they contain.
    """
    runs = {size: [values for result in cell if (values := _values_to_draw(result))] for size, cell in cells.items()}
    middles = {size: [run.estimate(0.5) for run in repeats] for size, repeats in runs.items()}
    drift = _find_drift(cells, middles)
    # At 95 % a quarter of the rounds leaves 12 replicates beyond each bound.
    rounds = ROUNDS if len(cells) <= MANY else ROUNDS // 4
    points, drawn = [], []
    for size, repeats in runs.items():
        replicates = merge_draws([run.draw(0.5, rng, rounds) for run in repeats], drift, rng)
        lo, hi = bounds(replicates[0], level)[0], bounds(replicates[1], level)[1]
        calls = sum(run.count for run in repeats)
        points.append(Point(size, len(repeats), calls, fmean(middles[size]), lo, hi))
        drawn.append([(low + high) / 2 for low, high in zip(*replicates, strict=True)])
    return points, drawn, drift


def _find_drift(cells: Mapping[int, list[Result]], middles: Mapping[int, list[float]]) -> Drift:
    """Find the drift as :func:`kproxylat.analysis.stats.find_drift` does, else by the scatter around the line."""
    drift = find_drift(middles.values(), (result.blocks for cell in cells.values() for result in cell))
    if drift.freedom or len(middles) < SCATTERED:
        return drift
    costs = [(size, cost) for size, [cost] in middles.items()]
    slope, base = fit_line(costs, choose_pairs(len(costs)))
    fitted = [(base + slope * size, cost) for size, cost in costs]
    squares = sum((cost / line - 1) ** 2 for line, cost in fitted if line)
    return Drift(math.sqrt(squares / (len(costs) - 2)), len(costs) - 2, "line")


def _values_to_draw(result: Result) -> Distribution | None:
    """Return what a run's median is drawn from: its values; of send times the medians of parts of the run.

    What slows a sender down lasts for many packets, so that a bootstrap of packets would be too sure.
    """
    if result.blocks:
        return Distribution((block, block, 1) for block in result.blocks)
    return distribution(result.headline) if result.headline else None


def draw_lines(points: Sequence[Point], drawn: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Fit a line (slope, intercept) to each round of replicates."""
    sizes = [point.services for point in points]
    pairs = choose_pairs(len(sizes))
    return [fit_line(list(zip(sizes, costs, strict=True)), pairs) for costs in zip(*drawn, strict=True)]
