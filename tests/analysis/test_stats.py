"""The statistics against what is known: exact order statistics, brute force, and the rate of false alarms."""

from __future__ import annotations

import math
from random import Random
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxylat.analysis import stats
from kproxylat.analysis.contrast import QUANTILES, contrast
from kproxylat.analysis.stats import (
    Distribution,
    Drift,
    bounds,
    choose_pairs,
    distance,
    draw_blocks,
    find_drift,
    fit_line,
    merge_draws,
    student,
)
from kproxylat.results import Bucket, Histogram, Probe, Result, Run
from kproxylat.trace.percentiles import add_percentiles
from tests.results import TIMED, load


def timed_values() -> dict[int, int]:
    lookup = load(TIMED)[0].lookup
    assert lookup
    assert lookup.values
    return {int(value): count for value, count in lookup.values.items()}


def test_a_quantile_is_a_value_that_occurred() -> None:
    found = Distribution.of_values({5: 3, 1: 1, 9: 6})
    assert (found.count, found.lows) == (10, [1, 5, 9])
    assert [found.quantile(p) for p in (0.1, 0.11, 0.4, 0.41, 1)] == [(1, 1), (5, 5), (5, 5), (9, 9), (9, 9)]


def test_a_histogram_knows_a_quantile_within_its_bucket() -> None:
    found = Distribution([(0, 3, 5), (4, 7, 5)])
    assert found.quantile(0.5) == (0, 3)
    assert found.quantile(0.6) == (4, 7)
    assert [found.cdf(at) for at in (-1, 1, 3, 5, 7, 99)] == [0, None, 0.5, None, 1, 1]


def test_drawing_a_quantile_is_the_bootstrap() -> None:
    """The same mean and scatter as drawing all values anew, the long way."""
    values = timed_values()
    rng = Random(7)
    drawn = [sorted(rng.choices(list(values), list(values.values()), k=2000)) for _ in range(400)]
    for p in (0.05, 0.5, 0.95):
        plain = [each[math.ceil(p * 2000) - 1] for each in drawn]
        short = Distribution.of_values(values).draw(p, rng)[0]
        assert fmean(short) == pytest.approx(fmean(plain), rel=0.005)
        assert pstdev(short) == pytest.approx(pstdev(plain), rel=0.2)


def test_two_draws_are_independent() -> None:
    found = Distribution.of_values(dict.fromkeys(range(2000), 1))
    rng = Random(3)
    one, other = (found.draw(0.5, rng)[0] for _ in range(2))
    apart = [x - y for x, y in zip(one, other, strict=True)]
    assert pstdev(apart) == pytest.approx(math.sqrt(2) * pstdev(one), rel=0.1)


def test_bounds_leave_equal_parts_out() -> None:
    assert bounds(range(1000), 0.95) == (25, 974)
    assert bounds([4], 0.95) == (4, 4)


def test_distance_of_distributions() -> None:
    a, b = Distribution.of_values({1: 5, 2: 5}), Distribution.of_values({2: 5, 3: 5})
    assert distance(a, a) == 0
    assert distance(a, b) == 0.5
    assert distance(a, Distribution.of_values({7: 1})) == 1
    # Of buckets only the edges that both know count.
    assert distance(Distribution([(0, 3, 5), (4, 7, 5)]), Distribution([(2, 5, 10)])) == 0
    assert distance(Distribution([(0, 3, 5), (4, 7, 5)]), Distribution([(4, 7, 10)])) == 0.5


def test_a_line_is_not_moved_by_one_point() -> None:
    points = [(x, 100 + 3 * x) for x in (10, 100, 1000, 5000, 10000)]
    assert fit_line(points) == (3, 100)
    slope, base = fit_line([*points[:4], (10000, 10**6)])
    assert slope == pytest.approx(3, rel=0.01)
    assert base == pytest.approx(100, abs=10)


def test_where_lines_cross() -> None:
    assert stats.crossing((26, 1846), (0, 2678)) == 32
    assert stats.crossing((26, 2678), (0, 1846)) is None
    assert stats.crossing((26, 1), (26, 2)) is None


def test_student_has_longer_tails_with_less_freedom() -> None:
    # The 97.5 % quantile of t: 4.30 at 2 degrees of freedom, 2.04 at 30 (any table).
    for freedom, expected in ((2, 4.30), (30, 2.04)):
        drawn = sorted(student(freedom, Random(1), 40_000))
        assert drawn[39_000] == pytest.approx(expected, rel=0.06)


def test_drift_between_runs_widens_the_bounds() -> None:
    rng = Random(5)
    runs = [Distribution.of_values({round(rng.gauss(1000, 20)): 1 for _ in range(500)}) for _ in range(3)]
    shifted = [
        Distribution([(low + by, low + by, 1) for low in run.lows]) for run, by in zip(runs, (0, 40, -40), strict=True)
    ]
    widths = []
    for each in (runs, shifted):
        spread = find_drift([[run.quantile(0.5)[0] for run in each]])
        drawn = merge_draws([run.draw(0.5, Random(1)) for run in each], spread, Random(1))
        low, high = bounds(drawn[0], 0.95)
        widths.append(high - low)
    assert widths[1] > 4 * widths[0]
    assert find_drift([[5], [7]]) == Drift()
    assert find_drift([[5], [7]], [(), (4, 4), (9, 11)]) == (pytest.approx(2**0.5 / 10), 1, "parts")
    assert find_drift([[5, 5], [7]], [(9, 11)]) == Drift(0.0, 1, "runs"), "repeats win"


def test_the_bounds_of_repeats_hold_the_truth_as_often_as_they_say() -> None:
    """Three runs whose medians drift by 5 %: bounds at 95 % miss the truth once in twenty times."""
    rng, missed = Random(11), 0
    for _ in range(300):
        runs = [Distribution.of_values({round(rng.gauss(1000, 50)): 1000}) for _ in range(3)]
        spread = find_drift([[run.quantile(0.5)[0] for run in runs]])
        drawn = merge_draws([run.draw(0.5, rng, 400) for run in runs], spread, rng)
        low, high = bounds(drawn[0], 0.95)
        missed += not low <= 1000 <= high
    assert 3 <= missed <= 27


def test_quantiles_need_a_tail() -> None:
    found = Distribution.of_values({1: 200})
    assert found.has_tail(0.5)
    assert found.has_tail(0.95)
    assert not found.has_tail(0.99)


@pytest.mark.parametrize("count", [2, 10, 50, 51, 100, 1000])
def test_pairs_are_all_of_few_points_and_spread_over_many(count: int) -> None:
    pairs = choose_pairs(count)
    assert len(pairs) == len(set(pairs)) <= 1225
    assert all(0 <= x < y < count for x, y in pairs)
    if count <= 50:
        assert len(pairs) == count * (count - 1) // 2
    else:
        assert len(pairs) > 300
        assert {at * 10 // count for pair in pairs for at in pair} == set(range(10)), "of every tenth of the points"
        line = fit_line([(x, 7 + 3 * x + (1000 if x % 5 == 0 else 0)) for x in range(count)], pairs)
        assert line == pytest.approx((3, 7), abs=0.5), "outliers do not move it"


def make_probe(values: dict[int, int], *, exact: bool) -> Probe:
    rows = [Bucket(1 << power >> 1, 1 << power, sum(values[value] for value in values if value.bit_length() == power))
            for power in range(20)]  # fmt: skip
    total, count = sum(value * count for value, count in values.items()), sum(values.values())
    return Probe(
        *("nft_do_chain", "nat", "services", "PREROUTING", True, count, min(values), max(values), total / count, None),
        *(total, "ns", Histogram(tuple(row for row in rows if row.count)), {}),
        {str(value): count for value, count in values.items()} if exact else None,
    )


@given(st.dictionaries(st.integers(1, 5000), st.integers(1, 60), min_size=1, max_size=30), st.booleans())
def test_compare_and_parse_have_the_same_percentiles(values: dict[int, int], exact: bool) -> None:
    probe = make_probe(values, exact=exact)
    (parsed,) = add_percentiles(Result(Run(), probes=(probe,)), [p * 100 for p in QUANTILES]).probes
    expected = {f"p{name}": percentile.estimate for name, percentile in parsed.percentiles.items()}
    compared = contrast("x", [probe], [probe], Random(1), rounds=40)
    medians = {figure.name: figure.a for figure in compared.figures if figure.name.startswith("p")}
    assert medians == {name: expected[name] for name in medians}
    assert sum(values.values()) < 40 or "p50" in medians
    for figure in compared.figures:
        assert figure.difference is None or figure.difference.lo <= figure.difference.estimate <= figure.difference.hi


def test_bounds_from_blocks_are_wider_where_the_blocks_differ() -> None:
    """One value drawn 100 times in a block is one observation of the block's disturbance, not 100."""
    rng = Random(7)
    calm = [[float(value) for value in range(100)] for _ in range(20)]
    drifting = [[block * 10.0] * 100 for block in range(20)]
    for blocks, least, most in ((calm, 0, 5), (drifting, 30, 150)):
        [medians, maxima] = draw_blocks(blocks, [0.5, 1.0], rng)
        lo, hi = bounds(medians, 0.95)
        assert least <= hi - lo <= most
        assert lo <= sorted(value for block in blocks for value in block)[999] <= hi
        assert max(maxima) == max(value for block in blocks for value in block)


def test_one_block_gives_its_own_quantiles() -> None:
    assert draw_blocks([[3, 1, 2], []], [0.5, 1.0], Random(1), rounds=3) == [[2, 2, 2], [3, 3, 3]]
