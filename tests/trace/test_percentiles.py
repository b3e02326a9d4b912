"""Percentiles: the bounds hold what numpy says of the samples, for ten thousand random sets."""

from __future__ import annotations

import random
from collections import Counter

import numpy
import pytest

from kproxylat.results import Bucket, Histogram, Percentile
from kproxylat.trace.percentiles import compute_percentiles, estimate_percentiles

WANTED = (0, 1, 25, 50, 90, 95, 99, 99.9, 100)


def make_hist(samples: list[int]) -> Histogram:
    """Count samples as bpftrace's hist() does."""
    rows = Counter(-1 if each < 0 else each.bit_length() for each in samples)
    edges = {-1: (None, 0), 0: (0, 1)}
    return Histogram(
        tuple(Bucket(*edges.get(row, (1 << max(row - 1, 0), 1 << max(row, 0))), rows[row]) for row in sorted(rows))
    )


def make_lhist(samples: list[int], low: int, high: int, step: int) -> Histogram:
    """Count samples as bpftrace's lhist() does."""
    rows = Counter(min(max((each - low) // step, -1), (high - low) // step) for each in samples)
    return Histogram(
        tuple(
            Bucket(
                None if row < 0 else low + row * step, None if low + row * step >= high else low + (row + 1) * step, n
            )
            for row, n in sorted(rows.items())
        )
    )


@pytest.mark.slow
def test_bounds_hold_numpys_value() -> None:
    dice = random.Random(6)
    for _ in range(10_000):
        scale = dice.choice((3, 100, 10_000, 1 << 40))
        samples = [dice.randrange(-scale // 9, scale) for _ in range(dice.choice((1, 2, 3, 10, 60)))]
        known = dice.random() < 0.5
        low, high = (min(samples), max(samples)) if known else (None, None)
        made = dice.choice(([make_hist(samples)], [make_hist(samples), make_lhist(samples, 0, 100, 5)]))
        found = estimate_percentiles(made, WANTED, low, high)
        for wanted, exact in zip(WANTED, numpy.percentile(samples, WANTED), strict=True):
            percentile = found[f"{wanted:g}"]
            slack = abs(exact) * 1e-12  # of numpy's interpolation
            assert percentile.lo is None or percentile.lo <= exact + slack
            assert percentile.hi is None or exact <= percentile.hi + slack
            if percentile.estimate is None:
                assert None in (percentile.lo, percentile.hi)
                assert not known
            else:
                assert percentile.lo is not None
                assert percentile.hi is not None
                assert percentile.lo <= percentile.estimate <= percentile.hi


def test_exact_values_give_numpys_percentiles() -> None:
    dice = random.Random(7)
    for _ in range(300):
        samples = [dice.randrange(1000) for _ in range(dice.randrange(1, 50))]
        found = compute_percentiles(Counter(samples), WANTED)
        for wanted, exact in zip(WANTED, numpy.percentile(samples, WANTED), strict=True):
            assert found[f"{wanted:g}"].estimate == pytest.approx(exact)


def test_never_the_lower_edge() -> None:
    histogram = Histogram((Bucket(64, 128, 10), Bucket(128, None, 1)))
    found = estimate_percentiles([histogram], (50, 100))
    assert found["50"] == Percentile(64 + 64 * 5.5 / 10, 64, 128)
    assert found["100"] == Percentile(None, 128, None)
    assert estimate_percentiles([histogram], (100,), maximum=150)["100"] == Percentile(139, 128, 150)


def test_the_narrowest_bounds_are_taken() -> None:
    coarse, fine = Histogram((Bucket(64, 128, 2),)), Histogram((Bucket(70, 75, 2),))
    assert estimate_percentiles([coarse, fine], (50,))["50"].hi == 75
    assert estimate_percentiles([Histogram()], (50,)) == {}
