"""Series: exact lines, hash effects, verdicts, and what must not be put on one line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from kproxylat.analysis.crossings import agrees, find_crossing
from kproxylat.analysis.series import HASH_EFFECT, Series, build_series
from kproxylat.analysis.stats import Distribution, choose_pairs, fit_line
from kproxylat.report.sentences import describe_series
from kproxylat.report.tables import show_series
from kproxylat.results import Accounting, Bounded, Quality, Result
from tests.results import COUNTED, TIMED, change_run, load, untraced, with_values

LEGACY, NFT, NFTABLES = (load(COUNTED)[at : at + 3] for at in (0, 3, 6))


def counted(costs: dict[int, int], base: Result = LEGACY[0]) -> Series:
    [series] = build_series([with_values(base, {cost: 1990, cost + 1: 10}, size) for size, cost in costs.items()])
    return series


def timed(cost: Callable[[int], float], sizes: tuple[int, ...], repeats: int = 3, seed: int = 2) -> Series:
    """Series of a cost by Services, with packets' scatter, and a drift between runs of 1 %."""
    rng, results = Random(seed), []
    for size in sizes:
        for _ in range(repeats):
            middle = cost(size) * rng.gauss(1, 0.01)
            values: dict[int, int] = {}
            for _ in range(500):
                value = round(middle * rng.lognormvariate(0, 0.1))
                values[value] = values.get(value, 0) + 1
            results.append(with_values(load(TIMED)[0], values, size))
    [series] = build_series(results, seed)
    return series


@pytest.mark.parametrize(("results", "slope", "base", "verdict"), [
    (LEGACY, 26, 1846, "O(n)"), (NFT, 84, 2912, "O(n)"), (NFTABLES, 0, 2678, "O(1)"),
])  # fmt: skip
def test_a_real_sweep_is_exact(results: tuple[Result, ...], slope: int, base: int, verdict: str) -> None:
    [series] = build_series(results)
    assert series.per_service
    assert series.base
    assert (series.per_service.estimate, series.per_service.lo, series.per_service.hi) == (slope, slope, slope)
    assert (series.base.estimate, series.verdict) == (base, verdict)
    assert [point.residual for point in series.points] == [0, 0, 0]


def test_values_apart_are_shown() -> None:
    points = build_series(NFTABLES)[0].points
    assert points[0].others == {"5786": 84, "5787": 1}
    assert points[0].cost == 2678


def test_hash_effects_are_shown_and_not_averaged() -> None:
    series = counted({10: 2678, 100: 2724, 1000: 2678, 5000: 2769}, NFTABLES[0])
    assert series.verdict == "O(1)"
    assert "no growth beyond hash effects" in series.evidence
    assert "2,678 to 2,769" in series.evidence
    assert {point.residual for point in series.points} != {0}
    assert [point.cost for point in series.points] == [2678, 2724, 2678, 2769]


def test_growth_at_every_step_is_not_put_down_to_hash_effects() -> None:
    series = counted({10: 2678, 100: 2724, 1000: 2770, 5000: 2850}, NFTABLES[0])
    assert series.verdict == "unclear"
    assert series.evidence == "it grows at every step, by 172 in all, but hash effects may be up to 200"
    exact = counted({10: 2678, 110: 2688, 1010: 2778}, NFTABLES[0])
    assert (exact.verdict, exact.evidence) == ("O(n)", "each Service adds 0.1, residual 0 at all 3 points")
    assert counted({10: 2678, 100: 2724, 1000: 2724}, NFTABLES[0]).verdict == "O(1)"
    assert counted({10: 2678, 100: 2724}, NFTABLES[0]).verdict == "O(1)"
    assert counted({10: 2678, 100: 2724, 1000: 2769}, NFTABLES[0]).verdict == "O(1)", "once in six times"


def test_iptables_has_no_hash_to_blame() -> None:
    assert counted({10: 2678, 100: 2724, 1000: 2678}).verdict == "unclear"


def test_growth_in_mode_nftables_is_found() -> None:
    series = counted({10: 2678, 100: 2678 + 90, 1000: 2678 + 990}, NFTABLES[0])
    assert HASH_EFFECT < 990
    assert series.verdict == "O(n)"


def test_a_step_is_not_a_line() -> None:
    assert counted({10: 2000, 100: 2000, 1000: 4000, 5000: 4000}).verdict == "unclear"


def test_one_instruction_is_the_clocks_rounding() -> None:
    assert counted({10: 2000, 100: 2001, 1000: 2000}).verdict == "O(1)"
    assert counted({10: 260, 100: 2601, 1000: 26000}).verdict == "O(n)"


def test_two_points_make_no_line() -> None:
    assert counted({10: 2106, 100: 4446}).verdict == "unclear"
    assert counted({10: 2106, 100: 2106}).verdict == "O(1)"
    assert counted({10: 2106}).per_service is None


def test_a_constant_position_is_reported() -> None:
    results = [change_run(each, position=1) for each in NFTABLES]
    assert "number 1 in each" in build_series(results)[0].evidence


@pytest.mark.parametrize(("changed", "said"), [
    (change_run(LEGACY[2], kernel="6.12.0"), "another kernel"),
    (change_run(LEGACY[2], script_sha256="0" * 64), "another script"),
    (replace(LEGACY[2], accounting=Accounting(5, 4, 4, 4, 0, 0, False, "lookups 4 instead of 5")), "lookups 4"),
    (replace(LEGACY[2], quality=Quality(lost_events=3)), "3 events lost"),
    (replace(LEGACY[2], quality=Quality(missed_probes=5)), "5 calls of probes missed"),
    (change_run(LEGACY[2], origin="node"), "another sender"),
])  # fmt: skip
def test_runs_that_cannot_be_compared_have_no_verdict(changed: Result, said: str) -> None:
    [series] = build_series([*LEGACY[:2], changed])
    assert series.verdict == "unclear"
    assert said in series.evidence


def test_a_line_of_nanoseconds() -> None:
    series = timed(lambda size: 3000 + 5 * size, (10, 100, 1000, 5000))
    assert series.per_service
    assert series.base
    assert series.verdict == "O(n)"
    assert series.per_service.lo <= 5 <= series.per_service.hi
    assert series.per_service.hi - series.per_service.lo < 1
    assert series.base.lo <= 3000 <= series.base.hi


def test_a_level_of_nanoseconds() -> None:
    series = timed(lambda _: 3000, (10, 100, 1000, 5000))
    assert series.per_service
    assert series.verdict == "O(1)"
    assert series.per_service.lo <= 0 <= series.per_service.hi


def test_few_services_tell_nothing_in_nanoseconds() -> None:
    """A line that 10 more Services hardly raise must not be called O(1)."""
    assert timed(lambda size: 3000 + 5 * size, (10, 15, 20)).verdict == "unclear"
    assert [each.verdict for each in build_series(load(TIMED))] == ["unclear", "unclear"]


def test_a_line_that_grows_too_little_is_reported_as_such() -> None:
    series = timed(lambda size: 3000 + 0.145 * size, (10, 100, 1000, 5000), repeats=5)
    assert series.verdict == "unclear"
    assert "of the base between 10 and 5,000 Services: too much for O(1), and too little for O(n)" in series.evidence


def test_single_runs_are_reported() -> None:
    assert "--repeats" in timed(lambda size: 3000 + 5 * size, (10, 100, 1000), repeats=1).evidence
    assert "--repeats" not in timed(lambda size: 3000 + 5 * size, (10, 100, 1000)).evidence


def test_the_same_seed_gives_the_same_bounds() -> None:
    assert build_series(load(TIMED), 5) == build_series(load(TIMED), 5)


def test_the_bounds_of_a_slope_hold_it_as_often_as_they_say() -> None:
    held = 0
    for seed in range(20):
        per = timed(lambda size: 3000 + 5 * size, (10, 1000, 5000), seed=seed).per_service
        assert per
        held += per.lo <= 5 <= per.hi
    assert held >= 17


def test_the_bounds_of_single_runs_hold_the_slope_in_spite_of_drift() -> None:
    """Within a run the median is certain to 1 %; from run to run the machine drifts by 10 %."""
    holds = []
    for seed in range(20):
        drift = Random(seed)
        series = timed(lambda size, drift=drift: (8000 + 10 * size) * drift.gauss(1, 0.1), (10, 1000, 5000, 10_000), 1)  # type: ignore[misc]
        assert series.per_service
        assert series.verdict in ("O(n)", "unclear")
        holds.append(series.per_service.lo <= 10 <= series.per_service.hi)
    assert sum(holds) >= 18


def test_three_single_runs_tell_only_what_doubles_a_cost() -> None:
    """Their drift is unknown, and a lookup in nftables must not become O(n) by it."""
    sizes = (10, 1000, 5000)
    for slope, repeats, verdict in ((1, 1, "unclear"), (1, 3, "O(n)"), (10, 1, "O(n)")):
        assert timed(lambda size, slope=slope: 15_000 + slope * size, sizes, repeats).verdict == verdict  # type: ignore[misc]


@pytest.mark.parametrize("noise", [0.01, 0.15])
@pytest.mark.parametrize(("shape", "verdicts"), [
    (lambda size: 15_000 + 10 * size, {"O(n)", "unclear"}),
    (lambda _: 15_000, {"O(1)", "unclear"}),
    (lambda size: 15_000 + 15_000 * math.log10(size), {"unclear"}),
], ids=["line", "flat", "logarithm"])  # fmt: skip
def test_single_runs_of_the_senders_clock_are_never_judged_wrong(
    shape: Callable[[int], float], verdicts: set[str], noise: float
) -> None:
    """On a calm machine the verdict is clear; a busy one leaves some unclear."""
    rng, seen = Random(7), []
    for _ in range(15):
        [series] = build_series([untraced(shape(size), noise, rng, size) for size in (10, 1000, 5000, 10000)])
        assert series.verdict in verdicts, series
        assert "drift from run to run shows only between parts of a run" in series.evidence
        seen.append(series.verdict)
    assert noise > 0.1 or set(seen) == {min(verdicts)}


def test_many_points_do_not_take_all_pairs_in_every_replicate(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def fit(points: list[tuple[float, float]], pairs: list[tuple[int, int]] | None = None) -> tuple[float, float]:
        counts.append(len(pairs) if pairs is not None else -1)
        return fit_line(points, pairs)

    for module in ("points", "series"):
        monkeypatch.setattr(f"kproxylat.analysis.{module}.fit_line", fit)
    made = timed(lambda size: 3000 + 20 * size, tuple(range(120)), repeats=1)
    counts.remove(-1)  # The estimate is of all pairs.
    assert set(counts) == {len(choose_pairs(120))}
    assert len(counts) == 500 + 1, "each replicate, and the scatter of single runs"
    assert made.per_service
    assert made.per_service.lo <= 20 <= made.per_service.hi
    assert made.per_service.hi - made.per_service.lo < 2
    assert made.verdict == "O(n)"


def test_the_table_fits(capsys: pytest.CaptureFixture[str]) -> None:
    more = [with_values(LEGACY[0], {1_681_846 + size: 2000}, size) for size in (5000, 10000, 20000)]
    show_series(build_series([*load(COUNTED), *more]))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "1,701,846" in out
    assert "5,786 (84x)" in out
    parts = ("what each Service adds, emulated", "5,786 (84x)", "commonest lookup, ", "        1,701,846")
    heads = [out.index(part) for part in parts]
    assert heads == sorted(heads), "the costs come last"
    show_series(())
    assert capsys.readouterr().out == "no lookup was measured\n"


def test_a_crossing_is_as_exact_as_its_lines() -> None:
    line = counted({10: 2106, 100: 4446, 1000: 27846})
    assert find_crossing(line, counted({10: 2678, 100: 2678, 1000: 2678}, NFTABLES[0])) == Bounded(32, 32, 32)
    found = find_crossing(line, counted({10: 2678, 100: 2724, 1000: 2700}, NFTABLES[0]))
    assert found
    assert found.lo < 32 < found.hi < 36
    assert found == find_crossing(counted({10: 2678, 100: 2724, 1000: 2700}, NFTABLES[0]), line)


def test_unclear_or_parallel_series_have_no_crossing() -> None:
    flat = counted({10: 2678, 100: 2678, 1000: 2678}, NFTABLES[0])
    assert find_crossing(counted({10: 2000, 100: 2000, 1000: 4000, 5000: 4000}), flat) is None
    assert find_crossing(counted({10: 2670, 100: 2750, 1000: 2690}, NFTABLES[0]), flat) is None, "hash effects"
    assert find_crossing(counted({10: 2106}), flat) is None
    assert find_crossing(counted({10: 2106, 100: 4446}), flat) is None, "two points show no line"


def test_a_measured_point_on_the_wrong_side_contradicts_a_crossing() -> None:
    flat, line = counted({10: 2678, 100: 2678, 1000: 2678}, NFTABLES[0]), counted({10: 2106, 100: 4446, 1000: 27846})
    assert agrees(line, flat, Bounded(32, 32, 32))
    assert agrees(flat, line, Bounded(32, 32, 32))
    for wrong in (Bounded(5, 5, 5), Bounded(200, 200, 200)):
        assert not agrees(line, flat, wrong)
        assert not agrees(flat, line, wrong)
    assert agrees(line, flat, Bounded(200, 90, 300)), "within the bounds nobody knows"


@pytest.mark.parametrize("last", [1000, 1200, 1300, 10_000])
def test_a_jump_at_the_end_is_not_o1(last: int) -> None:
    """The median of the slopes of five points does not see the last one."""
    runs = []
    for size, cost in {100: 1000, 500: 1000, 1000: 1000, 5000: 1000, 10_000: last}.items():
        runs += [with_values(load(TIMED)[0], {cost + part: 100 for part in range(-9, 10)}, size)] * 3
    [series] = build_series(runs)
    flat = last < 1250
    assert (series.verdict, "not ruled out" in series.evidence) == ("O(1)" if flat else "unclear", not flat)


def test_evidence_says_no_less_than_the_bounds() -> None:
    """A share is rounded up, a falling cost is said to fall, and what certainly grows adds something."""
    falling = timed(lambda size: 20_000 - 1.9 * size, (10, 100, 1000, 10_000))
    assert falling.verdict == "unclear"
    assert re.match(r"it falls by 9\d% of the base between 10 and 10,000 Services", falling.evidence)
    growing = timed(lambda size: 10_000 + 0.1 * size, (10, 100, 1000, 10_000), 9)
    per = growing.per_service
    assert per
    assert growing.base
    assert (growing.verdict, per.lo > 0) == ("O(1)", True)
    limit = re.match(r"it changes by less than (\d+)% of the base", growing.evidence)
    assert limit
    assert per.hi * 9990 < int(limit[1]) / 100 * growing.base.estimate
    [sentence] = describe_series([growing])
    assert re.search(r"each Service adds at most 0\.\d+ ns to a lookup, next to nothing: O\(1\)\.$", sentence)


def test_rounding_is_no_growth() -> None:
    """Each value of the instruction clock may be off by one."""
    series = counted({1: 1000, 2: 1001, 3: 1002})
    assert (series.verdict, "rounding" in series.evidence) == ("unclear", True)
    assert counted({1: 1000, 2: 1002, 3: 1004}).verdict == "O(n)"


def test_a_points_cost_lies_within_its_bounds() -> None:
    """Values that are second in each repeat may be the commonest of all."""
    runs = [with_values(LEGACY[0], values, 10) for values in ({100: 5, 105: 4}, {101: 5, 105: 4})]
    [series] = build_series([*runs, with_values(LEGACY[0], {130: 9}, 11)])
    point = series.points[0]
    assert (point.cost, point.lo, point.hi) == (105, 100, 105)


def test_equal_blocks_all_count_and_halves_stay() -> None:
    """The cost of a run is its blocks' median, as the run itself prints it."""
    hiccup = Distribution((block, block, 1) for block in [10_000.0] * 19 + [20_000.0])
    assert hiccup.estimate(0.5) == 10_000
    assert Distribution((block, block, 1) for block in (1.5, 1.5, 2.5)).estimate(0.5) == 1.5


def test_a_line_that_passes_zero_has_a_drift() -> None:
    runs = [untraced(cost, 0, Random(1), size) for size, cost in ((1, 0.0), (2, 1000.0), (3, 2000.0), (4, 3000.0))]
    runs = [replace(run, send_time=replace(run.send_time, blocks=run.send_time.blocks[:1])) for run in runs
            if run.send_time]  # fmt: skip
    assert [point.cost for point in build_series(runs)[0].points] == [0, 1000, 2000, 3000]


def test_rounding_moves_where_nearly_parallel_lines_cross() -> None:
    a, b = counted({100: 1005, 10_000: 1500, 20_000: 2000}), counted({100: 4014, 10_000: 4410, 20_000: 4810})
    where = find_crossing(a, b)
    assert where
    assert (where.lo < where.estimate < where.hi, where.hi - where.lo > 100) == (True, True)
