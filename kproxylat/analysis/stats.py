"""Statistics of measured values: quantiles, bootstrap, robust lines. Pure.

A distribution is kept as a run keeps it: value -> how often it occurred, or a histogram's buckets. What is drawn comes
from a :class:`random.Random` that the caller seeds, so that the same input gives the same bounds.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, chain, combinations
from random import Random
from statistics import fmean, median
from typing import NamedTuple

from kproxylat.trace.percentiles import interpolate

LEVEL = 0.95
"""The confidence level of bounds, unless stated otherwise."""
ROUNDS = 2000
"""Bootstrap replicates: 5 lie beyond each bound at the level of 99.5 %."""
MANY = 50
"""Points of which every pair is worth a slope in each replicate."""
TAIL = 10
"""A quantile has bounds only if so many values are expected beyond it."""


Draws = tuple[list[float], list[float]]
"""Replicates of a figure: its least and its greatest possible value, the same list where values are exact."""


class Distribution:
    """The values of one run's calls.

    :param rows: ``(lo, hi, count)``: ``count`` values from ``lo`` to ``hi``, both included; exact ones have lo = hi.
    :param estimate: estimates a quantile of values that are not exact; None where it cannot.
    """

    def __init__(
        self, rows: Iterable[tuple[float, float, int]], estimate: Callable[[float], float | None] = lambda _: None
    ) -> None:
        self._estimate = estimate
        kept = sorted(row for row in rows if row[2])
        self.lows, self.highs = [row[0] for row in kept], [row[1] for row in kept]
        self.counts = [row[2] for row in kept]
        self.ends = list(accumulate(self.counts))
        self.count = self.ends[-1] if kept else 0
        self.exact = self.lows == self.highs

    @classmethod
    def of_values(cls, values: Mapping[int, int]) -> Distribution:
        """Return the distribution of exact values (value -> count)."""
        return cls((value, value, count) for value, count in values.items())

    def quantile(self, p: float) -> tuple[float, float]:
        """Return the bounds of the least value that at least ``p`` of all values do not exceed (0 < p <= 1)."""
        at = bisect_left(self.ends, math.ceil(p * self.count))
        return self.lows[at], self.highs[at]

    def estimate(self, p: float) -> float:
        """Estimate quantile ``p`` as ``parse`` does: of exact values by numpy's default."""
        if self.exact:
            return interpolate(self.count, p * 100, lambda at: self.lows[bisect_right(self.ends, at)])
        estimate = self._estimate(p)
        return fmean(self.quantile(p)) if estimate is None else estimate

    def has_tail(self, p: float) -> bool:
        """Whether there are enough values to estimate quantile ``p``."""
        return self.count * min(p, 1 - p) >= TAIL

    def draw(self, p: float, rng: Random, rounds: int = ROUNDS) -> Draws:
        """Draw bootstrap replicates of a quantile, as :meth:`quantile` gives it.

        The k-th of n values drawn anew lies where the distribution function reaches U, the k-th of n uniform numbers,
        which is Beta(k, n + 1 - k): one draw in place of n (Efron 1979, section 3).
        """
        numbers = _order_statistic(self.count, p, rng.getrandbits(4), rounds)
        turn = rng.randrange(rounds)
        ends, count = self.ends, self.count
        places = [bisect_left(ends, u * count) for u in numbers[turn:] + numbers[:turn]]
        lows = [self.lows[at] for at in places]
        return lows, lows if self.exact else [self.highs[at] for at in places]

    def draw_mean(self, mean: float, rng: Random, rounds: int = ROUNDS) -> Draws:
        """Draw replicates of the mean: it has a normal distribution if there are many values, none far apart.

        :param mean: as measured; a histogram's own mean is less exact.
        """
        middles = [(low + high) / 2 for low, high in zip(self.lows, self.highs, strict=True)]
        squares = sum((middle - mean) ** 2 * count for middle, count in zip(middles, self.counts, strict=True))
        error = math.sqrt(squares) / self.count
        drawn = [rng.gauss(mean, error) for _ in range(rounds)]
        return drawn, drawn

    def cdf(self, at: float) -> float | None:
        """Return the share of values up to ``at``; None inside a bucket, where the share is unknown."""
        place = bisect_left(self.highs, at + 1)
        if place < len(self.lows) and self.lows[place] <= at < self.highs[place]:
            return None
        return (self.ends[place - 1] if place else 0) / self.count


def draw_blocks(
    blocks: Sequence[Sequence[float]], quantiles: Sequence[float], rng: Random, rounds: int = ROUNDS // 4
) -> list[list[float]]:
    """Draw bootstrap replicates of quantiles of values that were measured one after another, in blocks.

    Whole blocks are drawn anew (Kuensch 1989): values next to each other share what slows the machine down, so that
    a bootstrap of values would be too sure.

    :return: for each quantile its replicates.
    """
    ordered = [sorted(block) for block in blocks if block]
    values = sorted(chain.from_iterable(ordered))
    drawn: list[list[float]] = [[] for _ in quantiles]
    for _ in range(rounds):
        weights = Counter(rng.choices(range(len(ordered)), k=len(ordered)))
        chosen = [(ordered[at], weight) for at, weight in weights.items()]
        total = sum(len(block) * weight for block, weight in chosen)

        def count_up_to(value: float, chosen: Sequence[tuple[list[float], int]] = chosen) -> int:
            return sum(bisect_right(block, value) * weight for block, weight in chosen)

        for replicates, p in zip(drawn, quantiles, strict=True):
            at = bisect_left(values, math.ceil(p * total), hi=len(values) - 1, key=count_up_to)
            replicates.append(values[at])
    return drawn


@lru_cache(maxsize=512)
def _order_statistic(count: int, p: float, stream: int, rounds: int) -> tuple[float, ...]:
    """Draw quantile ``p`` of uniform numbers. This is the slowest step, hence 16 cached streams, begun at any place."""
    rank = math.ceil(p * count)
    rng = Random(f"{count} {p} {stream}")  # noqa: S311 - chance for statistics
    return tuple(rng.betavariate(rank, count + 1 - rank) for _ in range(rounds))


def bounds(replicates: Iterable[float], level: float) -> tuple[float, float]:
    """Return the bounds that ``level`` of the replicates lie within, the rest equally beyond both."""
    ordered = sorted(replicates)
    beyond = (1 - level) / 2 * len(ordered)
    return ordered[math.floor(beyond)], ordered[math.ceil(len(ordered) - beyond) - 1]


def distance(a: Distribution, b: Distribution) -> float:
    """Return the greatest difference of two distribution functions (Kolmogorov and Smirnov), 0 to 1."""
    places = {*a.highs, *b.highs}
    if not (a.exact and b.exact):
        places.update(low - 1 for low in (*a.lows, *b.lows))
    pairs = ((a.cdf(at), b.cdf(at)) for at in places)
    return max((abs(x - y) for x, y in pairs if x is not None and y is not None), default=0.0)


def chance_distance(n: int, m: int, level: float) -> float:
    """Return the distance that chance alone exceeds with the probability 1 - ``level`` at most.

    Smirnov's limit; it holds for tied values, too, where chance makes less.
    """
    return math.sqrt(-math.log((1 - level) / 2) / 2 * (n + m) / (n * m))


class Drift(NamedTuple):
    """How far runs of the same thing are apart.

    :param relative: the standard deviation, as a part of the mean.
    :param freedom: its degrees of freedom; 0: the drift is unknown.
    :param source: where it was seen: "runs" (repeats), "parts" (of single runs), "line" (the scatter around it), or "".
    """

    relative: float = 0.0
    freedom: int = 0
    source: str = ""


def find_drift(repeats: Iterable[Sequence[float]], parts: Iterable[Sequence[float]] = ()) -> Drift:
    """Find the drift by repeats; where each run is a single one, by the parts of the least steady run.

    A single run does not show how far the next one will be off. On a busy machine the parts of a run are as far apart
    (bench/README.md, "agree").

    :param repeats: for each group of repeats, the same figure of each run.
    :param parts: for each run the same figure of each of its parts; runs without parts are skipped.
    """
    if (drift := _spread(repeats, "runs")).freedom:
        return drift
    return max((_spread([run], "parts") for run in parts if len(run) > 1), default=Drift())


def _spread(groups: Iterable[Sequence[float]], source: str) -> Drift:
    squares, freedom = 0.0, 0
    for group in groups:
        mean = fmean(group)
        squares += sum((figure / mean - 1) ** 2 for figure in group) if mean else 0.0
        freedom += len(group) - 1
    return Drift(math.sqrt(squares / freedom), freedom, source) if freedom else Drift()


def student(freedom: int, rng: Random, rounds: int = ROUNDS) -> list[float]:
    """Draw Student's t: the chance of a mean whose deviation is known from few repeats."""
    return [rng.gauss() / math.sqrt(rng.gammavariate(freedom / 2, 2 / freedom)) for _ in range(rounds)]


def merge_draws(runs: Sequence[Draws], drift: Drift, rng: Random) -> Draws:
    """Draw replicates of a figure's mean over repeats, from the replicates of each run and the drift between runs.

    :param runs: the replicates of each repeat.
    :param drift: without freedom it has no effect.
    """
    relative, freedom, _ = drift
    if len(runs) == 1 and not (freedom and relative):
        return runs[0]
    rounds, root = len(runs[0][0]), math.sqrt(len(runs))
    noise = student(freedom, rng, rounds) if freedom and relative else [0.0] * rounds
    factors = [(1 + relative * error / root) / len(runs) for error in noise]
    lows, highs = (
        [sum(figures) * factor for figures, factor in zip(zip(*side, strict=True), factors, strict=True)]
        for side in zip(*runs, strict=True)
    )
    return lows, highs


def slopes(pairs: Iterable[tuple[tuple[float, float], tuple[float, float]]]) -> Iterator[float]:
    """Yield the slope of every pair of points that differ in x."""
    for (x0, y0), (x1, y1) in pairs:
        if x0 != x1:
            yield (y1 - y0) / (x1 - x0)


def choose_pairs(count: int) -> list[tuple[int, int]]:
    """Choose pairs of ``count`` points in the order of x.

    Up to 50 points have all pairs. More points have as many, spread evenly over the pairs that are far apart, whose
    slopes are the most certain: a bootstrap of all pairs of 1,000 points takes hours.
    """
    if count <= MANY:
        return list(combinations(range(count), 2))
    apart = [(at, other) for at in range(count) for other in range(at + count // 2, count)]
    return apart[:: -(-len(apart) // (MANY * (MANY - 1) // 2))]


def fit_line(
    points: Sequence[tuple[float, float]], pairs: Sequence[tuple[int, int]] | None = None
) -> tuple[float, float]:
    """Fit a line by the median of the slopes of all pairs (Theil 1950, Sen 1968), which outliers do not move.

    :param pairs: only of these pairs, as :func:`choose_pairs` returns them.
    :return: slope, and intercept: the median of what the slope leaves.
    """
    chosen = combinations(points, 2) if pairs is None else ((points[x], points[y]) for x, y in pairs)
    slope = median(slopes(chosen))
    return slope, median(y - slope * x for x, y in points)


def crossing(a: tuple[float, float], b: tuple[float, float]) -> float | None:
    """Return where two lines (slope, intercept) meet, if that is at x > 0."""
    if a[0] == b[0]:
        return None
    x = (b[1] - a[1]) / (a[0] - b[0])
    return x if x > 0 else None
