"""Comparing: what differs is found, what does not is not, chance keeps its level, what must not be is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kproxylat.analysis.compare import CompareError, compare, find_allowed, find_worse, read_results
from kproxylat.analysis.comparison import Comparison, check_worse, state, to_json
from kproxylat.analysis.contrast import ALARMS, contrast
from kproxylat.cli import app
from kproxylat.errors import LogError, UsageError
from kproxylat.report.sections import build_comparisons
from kproxylat.results import Accounting, Probe, Quality, Result, Traffic
from tests.results import COUNTED, LOGS, TIMED, change_run, load, untraced, with_values
from tests.support import TESTS
from tests.support.documents import files

LEGACY, NFTABLES = load(COUNTED)[0], load(COUNTED)[6]
SLOW = load(TIMED)[0]
DUMPS = TESTS / "dumps"


def resample(result: Result, rng: Random, count: int, factor: float = 1.0) -> Result:
    """Draw a run of ``count`` calls from a real one's values."""
    assert result.lookup
    values = result.lookup.values or {}
    drawn = [round(int(value) * factor) for value in rng.choices(list(values), list(values.values()), k=count)]
    again = with_values(result, Counter(drawn))
    assert again.lookup
    probe = replace(again.lookup, count=count, mean=sum(drawn) / count, min=min(drawn), max=max(drawn))
    return replace(again, probes=(probe,))


def lookup(result: Result) -> Probe:
    assert result.lookup
    return result.lookup


def pair(directory: Path, a: Result | Iterable[Result], b: Result | Iterable[Result], **options: Any) -> Comparison:
    [found] = compare(*files(directory, a, b), **options)
    return found


# The sender's clock: the machine drifts.


def test_two_runs_of_a_busy_machine_differ_only_beyond_its_drift(tmp_path: Path) -> None:
    rng, wrong, unseen = Random(4), 0, 0
    for _ in range(8):
        a, b, more = (untraced(20_000 * factor, 0.15, rng) for factor in (1, 1, 4))
        wrong += pair(tmp_path, a, b).differs is not False
        unseen += pair(tmp_path, a, more).differs is not True
    assert (wrong <= 1, unseen) == (True, 0), (wrong, unseen)
    assert not {"bpftrace", "script"} & {*pair(tmp_path, a, b).unknown}, "nothing is traced"
    calm = pair(tmp_path, untraced(20_000, 0.01, rng), untraced(22_000, 0.01, rng))
    assert (calm.differs, calm.lookups[0].reason) == (True, "beyond chance: p50 (parts of a run are 1% apart)")
    assert "what drifts between parts of a run is in it" in calm.statement
    assert a.send_time
    old = replace(a, send_time=replace(a.send_time, blocks=()))
    assert "what drifts from run to run is not in it" in pair(tmp_path, old, old).statement, "its parts were not kept"


# Instructions: exact.


@pytest.mark.parametrize("each", load(COUNTED), ids=lambda each: f"{each.run.backend}-{each.run.services}")
def test_a_run_and_its_repeat_never_differ(tmp_path: Path, each: Result) -> None:
    """Repeats share the commonest value; ticks, the clock's rounding and random numbers come out otherwise."""
    rng = Random(1)
    for _ in range(20):
        found = pair(tmp_path, each, resample(each, rng, 2000))
        assert found.differs is False, found.statement
        assert found.worse_pct == 0


@pytest.mark.parametrize(("result", "rule"), [(LEGACY, 26), (load(COUNTED)[3], 84)])
def test_one_rule_more_is_always_found(tmp_path: Path, result: Result, rule: int) -> None:
    values = {int(value) + rule: count for value, count in (lookup(result).values or {}).items()}
    found = pair(tmp_path, result, with_values(result, values))
    assert found.differs is True
    assert f"costs {rule} instructions more" in found.statement
    assert "exactly" in found.statement
    [figure] = [each for each in found.lookups[0].figures if each.name == "commonest"]
    assert figure.difference
    assert (figure.difference.estimate, figure.difference.lo, figure.difference.hi) == (rule, rule, rule)
    assert pair(tmp_path, with_values(result, values), result).worse_pct == 0


def test_one_instruction_is_rounding(tmp_path: Path) -> None:
    found = pair(tmp_path, LEGACY, with_values(LEGACY, {2107: 1999, 2106: 1}))
    assert found.differs is False
    assert "rounding" in found.statement


def test_two_values_nearly_as_common_may_change_places(tmp_path: Path) -> None:
    one, other = ({2678: 1010, 5786: 990}, {2678: 990, 5786: 1010})
    assert pair(tmp_path, with_values(LEGACY, one), with_values(LEGACY, other)).differs is False
    clear, mixed = {2678: 1900, 5786: 100}, {2678: 1200, 5786: 800}
    assert pair(tmp_path, with_values(LEGACY, clear), with_values(LEGACY, {2678: 100, 5786: 1900})).differs is True
    found = pair(tmp_path, with_values(LEGACY, clear), with_values(LEGACY, mixed))
    assert "but 35% of the calls cost otherwise" in found.statement


@pytest.mark.parametrize("calls", [1, 5, 20, 32])
def test_few_calls_of_different_cost_differ(tmp_path: Path, calls: int) -> None:
    """An outlier that the other side has often is no reason to call them the same."""
    a, b = {2106: calls, 2132: calls // 20}, {2132: calls, 2106: calls // 20}
    assert pair(tmp_path, with_values(LEGACY, a), with_values(LEGACY, b)).differs is True
    assert pair(tmp_path, with_values(LEGACY, a), with_values(LEGACY, a)).differs is False


def test_hash_seeds_explain_a_little_in_mode_nftables_only(tmp_path: Path) -> None:
    found = pair(tmp_path, NFTABLES, with_values(NFTABLES, {2724: 2000}))
    assert found.differs is False
    assert found.statement == (
        "A and B cannot be told apart at 10 Services: 2,678 and 2,724 instructions; 46 apart; up to 200 instructions "
        "cannot be told from hash effects."
    )
    assert pair(tmp_path, NFTABLES, with_values(NFTABLES, {2678 + 300: 2000})).differs is True
    assert pair(tmp_path, LEGACY, with_values(LEGACY, {2106 + 46: 2000})).differs is True


def test_other_calls_are_compared_too(tmp_path: Path) -> None:
    slower = replace(LEGACY.probes[1], values={"2600": 2000})
    found = pair(tmp_path, LEGACY, replace(LEGACY, probes=(LEGACY.probes[0], slower, *LEGACY.probes[2:])))
    assert found.differs is False, "the lookup decides"
    assert "Other calls differ, too: filter FORWARD" in found.statement


# Nanoseconds: chance.


@pytest.mark.slow
def test_false_alarms_stay_at_the_stated_level() -> None:
    """1,000 pairs drawn from one real run: at most 5 %, and as many as 50 + 2 standard deviations of that."""
    rng, alarms = Random(2), 0
    for _ in range(1000):
        sides = [[lookup(resample(SLOW, rng, 300))] for _ in range(2)]
        alarms += contrast("lookup", sides[0], sides[1], rng, rounds=400).differs is True
    assert 5 <= alarms <= 1000 * ALARMS + 14


def test_a_difference_of_five_percent_is_detected(tmp_path: Path) -> None:
    rng, found = Random(3), 0
    for _ in range(10):
        each = pair(tmp_path, resample(SLOW, rng, 2000), resample(SLOW, rng, 2000, 1.05))
        found += each.differs is True
        main = each.lookups[0].main
        assert main.ratio
        assert main.ratio.lo <= 1.05 <= main.ratio.hi
    assert found == 10


def test_repeats_that_drift_are_no_difference(tmp_path: Path) -> None:
    """Runs that drift by 5 %: single ones seem to differ, three of each side do not."""
    rng, single, repeated = Random(4), 0, 0
    for _ in range(8):
        runs = [resample(SLOW, rng, 2000, rng.gauss(1, 0.05)) for _ in range(6)]
        calls = [lookup(run) for run in runs]
        single += contrast("lookup", calls[:1], calls[3:4], rng, rounds=400).differs is True
        repeated += contrast("lookup", calls[:3], calls[3:], rng, rounds=400).differs is True
    assert single > 4
    assert repeated <= 2
    assert "Of single runs" in pair(tmp_path, runs[0], runs[3]).statement
    assert "Of single runs" not in pair(tmp_path, runs[:3], runs[3:]).statement


def test_a_tail_that_grows_is_found_though_the_median_stays(tmp_path: Path) -> None:
    values = Counter({int(value): count for value, count in (lookup(SLOW).values or {}).items()})
    for value in [each for each in values if each > 16_000]:
        values[value * 3] += values.pop(value)
    found = pair(tmp_path, SLOW, with_values(SLOW, values))
    assert found.differs is True
    assert found.statement.startswith("The medians at 10 Services do not differ beyond chance, but these do: p95")


def test_the_same_seed_gives_the_same_bounds(tmp_path: Path) -> None:
    names = files(tmp_path, SLOW, resample(SLOW, Random(1), 500))
    assert compare(*names, seed=3) == compare(*names, seed=3)
    assert compare(*names, seed=3)[0].lookups != compare(*names, seed=4)[0].lookups


# Sweeps.


def test_two_series_of_a_sweep_and_where_they_cross() -> None:
    found = {(each.a.name, each.b.name): each for each in compare(str(COUNTED), None)}
    assert len(found) == 3
    crossed = found["iptables/legacy", "nftables/nft"]
    assert crossed.crossing
    assert crossed.crossing.estimate == 32
    assert crossed.statement == (
        "nftables/nft's lookup is 10.4 times cheaper than iptables/legacy's at 1,000 Services (2,678 against 27,846 "
        "instructions, exactly). They are equal at 32 Services; iptables/legacy is cheaper below."
    )
    assert found["iptables/nft", "nftables/nft"].crossing is None
    assert "every number of Services" in found["iptables/nft", "nftables/nft"].statement


def test_an_uncertain_crossing_is_not_reported(tmp_path: Path) -> None:
    sizes = (10, 2000), (100, 2000), (1000, 4000), (5000, 4000)
    step = [with_values(LEGACY, {cost: 2000}, size) for size, cost in sizes]
    found = pair(tmp_path, step, [with_values(NFTABLES, {2678: 2000}, size) for size, _ in sizes])
    assert found.crossing is None
    assert found.statement.endswith("Where they are equal, the lines do not tell for certain.")


def test_two_sweeps_are_matched_series_by_series(tmp_path: Path) -> None:
    found = compare(*files(tmp_path, load(COUNTED), load(COUNTED)[:6]))
    assert [each.a.mode for each in found] == ["iptables", "iptables"]
    assert found[0].only == ("nftables/nft only in A",)
    assert [each.differs for each in found] == [False, False]


def test_a_crossing_in_nanoseconds_has_bounds(tmp_path: Path) -> None:
    rng = Random(6)

    def series(base: int, slope: float, **facts: Any) -> list[Result]:
        found = []
        for size in (10, 100, 1000, 5000):
            each = with_values(
                SLOW, Counter(round((base + slope * size) * rng.gauss(1, 0.1)) for _ in range(1000)), size
            )
            found.append(change_run(each, **facts))
        return found

    found = pair(tmp_path, series(3000, 20), series(11_000, 0, mode="nftables", script_sha256="other"))
    assert found.crossing
    assert found.crossing.lo <= 400 <= found.crossing.hi
    assert found.crossing.hi - found.crossing.lo < 80
    assert "times cheaper than iptables/legacy's at 5,000 Services. They are equal at " in found.statement.replace(
        " Of single runs: what drifts from run to run is not in it.", ""
    )


# Logs, and files of all kinds.


def test_logs_are_compared_as_their_results_are() -> None:
    [found] = compare(*map(str, LOGS))
    assert found.statement.startswith(
        "A's lookup is 2.11 times cheaper than B's, A with 10 Services, B with 100 (2,106 against 4,446"
    )
    assert found.changed["services"] == ("10", "100")
    assert found.unknown == ()


def test_old_logs_have_bounds_of_their_buckets(tmp_path: Path) -> None:
    text = (DUMPS / "0.17.0--report_a_both.log").read_text()
    names = [tmp_path / "a.log", tmp_path / "b.log"]
    for name in names:
        name.write_text(text)
    [found] = compare(*map(str, names))
    assert found.differs is False or found.lookups[0].reason == "too few calls to tell"
    assert set(found.unknown) == {"clock", "probe", "kernel", "bpftrace", "mitigations", "script", "books"}


def test_without_a_distribution_the_outcome_is_unknown(tmp_path: Path) -> None:
    from kproxylat.logs.legacy import EXPERIMENT_HEADER

    path = tmp_path / "old.csv"
    path.write_text(f"{EXPERIMENT_HEADER}\n100,iptables,102,103,5.1,90,4,8,16,x.log\n")
    [found] = compare(str(path), str(path))
    assert found.differs is None
    assert "Cannot tell whether they differ" in found.statement
    with pytest.raises(UsageError, match="cannot tell"):
        check_worse([found], 5)


NO_RESULTS = ("{", "{}", '{"schema": "kproxylat/1", "results": 5}', '{"schema": "kproxylat/1"}', "hello\n")
NO_RESULTS += ('{"schema": "kproxylat/1", "results": []}', '{"schema": "kproxylat/2"}')


@pytest.mark.parametrize("text", NO_RESULTS)
def test_another_file_is_a_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(LogError, match=r"x\.json"):
        read_results(str(path))


# What must not be compared.

OPEN = Accounting(5, 4, 4, 4, 0, 0, False, "lookups 4 instead of 5")
BAD = {
    "clock": SLOW,
    "probe": change_run(LEGACY, probe_kind="kprobe"),
    "kernel": change_run(LEGACY, kernel="6.12.0"),
    "bpftrace": change_run(LEGACY, bpftrace="v0.23"),
    "mitigations": change_run(LEGACY, mitigations={**(LEGACY.run.mitigations or {}), "meltdown": "Mitigation: PTI"}),
    "script": change_run(LEGACY, script_sha256="0" * 64),
    "sender": change_run(LEGACY, origin="node"),
    "books": replace(LEGACY, accounting=OPEN),
    "events": replace(LEGACY, quality=Quality(lost_events=7)),
}


@pytest.mark.parametrize("reason", BAD)
def test_it_refuses_with_the_reason_unless_overruled(tmp_path: Path, reason: str) -> None:
    with pytest.raises(CompareError, match=f"must not be compared: .*{reason} \\(") as raised:
        pair(tmp_path, LEGACY, BAD[reason])
    assert f"--allow {reason}" in raised.value.remedy
    found = pair(tmp_path, LEGACY, BAD[reason], allowed=find_allowed(reason, False))
    assert list(found.overruled) == [reason]
    assert found.unit == ("instructions against ns" if reason == "clock" else "instructions")
    assert pair(tmp_path, LEGACY, BAD[reason], allowed=find_allowed("", True)).overruled == found.overruled


def test_other_modes_have_other_scripts_of_the_same_template(tmp_path: Path) -> None:
    assert pair(tmp_path, LEGACY, NFTABLES).overruled == {}
    with pytest.raises(CompareError, match="script"):
        pair(tmp_path, LEGACY, change_run(NFTABLES, kproxylat="9.9"))
    with pytest.raises(CompareError, match="template of the user"):
        pair(tmp_path, LEGACY, change_run(NFTABLES, arguments=("run", "--template", "mine.bt")))


def test_other_modes_scripts_must_do_as_much_else(tmp_path: Path) -> None:
    assert LEGACY.lookup
    hook = replace(LEGACY.lookup, envelope=True, lookup=False)
    for more in (
        replace(NFTABLES, probes=(*NFTABLES.probes, hook)),
        change_run(NFTABLES, arguments=("run", "--envelope")),
    ):
        with pytest.raises(CompareError, match="the whole hook traced, too"):
            pair(tmp_path, LEGACY, more)
    with pytest.raises(CompareError, match="values by target"):
        pair(tmp_path, LEGACY, change_run(NFTABLES, arguments=("run", "--every-service")))


def test_a_masqueraded_sender_is_another(tmp_path: Path) -> None:
    one, other = (change_run(LEGACY, masqueraded=each) for each in (False, True))
    with pytest.raises(CompareError, match=r"sender \(a pod's packets, not masqueraded and a pod's packets, masq"):
        pair(tmp_path, one, other)
    with pytest.raises(CompareError, match=r"events .*of B: 0 events lost; 500 calls of probes missed"):
        pair(tmp_path, LEGACY, replace(LEGACY, quality=Quality(missed_probes=500)))


def test_unknown_senders_may_be_compared(tmp_path: Path) -> None:
    assert pair(tmp_path, LEGACY, change_run(LEGACY, origin="pod", masqueraded=False)).differs is False


def test_nothing_in_common(tmp_path: Path) -> None:
    with pytest.raises(CompareError, match="nothing is in both"):
        compare(*files(tmp_path, load(COUNTED)[:6], [NFTABLES, change_run(NFTABLES, mode="ipvs")]))
    with pytest.raises(CompareError, match="no number of Services is in both"):
        compare(*files(tmp_path, load(COUNTED)[:2], [change_run(each, services=7 + at) for at, each in
                                                     enumerate(load(COUNTED)[:2])]))  # fmt: skip
    with pytest.raises(UsageError, match="only iptables/legacy"):
        compare(files(tmp_path, LEGACY)[0], None)


# The command.


def call(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        app.main(["compare", *argv])
    assert isinstance(ended.value.code, int)
    return ended.value.code, *capsys.readouterr()


def test_the_command_and_its_statuses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    worse = with_values(LEGACY, {2106 + 26: 2000})
    a, b, c = files(tmp_path, LEGACY, worse, BAD["kernel"])
    status, out, err = call(capsys, a, b)
    assert (status, err) == (0, "")
    assert "costs 26 instructions more than A's" in out
    assert max(map(len, out.replace(str(tmp_path), "").splitlines())) <= 80
    assert call(capsys, a, b, "--fail-if-worse", "1.3")[0] == 0
    assert call(capsys, a, b, "--fail-if-worse", "1.2")[0] == 5
    assert call(capsys, b, a, "--fail-if-worse", "0")[0] == 0
    assert call(capsys, a, a, "--fail-if-worse", "0")[0] == 0
    assert call(capsys, a, b, "--fail-if-worse", "nan")[0] == 2
    assert call(capsys, a, b, "--allow", "weather")[0] == 2
    status, out, err = call(capsys, a, c)
    assert (status, out, len(err.splitlines())) == (1, "", 2)
    assert call(capsys, a, c, "--force")[0] == 0
    assert call(capsys, a, str(tmp_path / "nowhere"))[0] == 1


def test_points_missing_in_b_are_a_failure(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    whole, fewer, series = files(tmp_path, load(COUNTED), [*load(COUNTED)[:2], *load(COUNTED)[3:]], load(COUNTED)[:6])
    status, out, err = call(capsys, whole, fewer, "--fail-if-worse", "5")
    assert (status, err) == (5, "kproxylat: B lacks what A has: iptables/legacy at 1,000 Services\n")
    assert "only: 1,000 Services only in A" in out
    status, _, err = call(capsys, whole, series, "--fail-if-worse", "5")
    assert (status, "B lacks what A has: nftables/nft\n" in err) == (5, True)
    assert call(capsys, fewer, whole, "--fail-if-worse", "5")[0] == 0, "what B has more does no harm"
    assert call(capsys, whole, fewer)[0] == 0
    one, other = files(tmp_path, LEGACY, with_values(LEGACY, {2106: 2000}, 20))
    assert call(capsys, one, other, "--fail-if-worse", "5")[0] == 0, "single results are compared whatever they are"


def test_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, str(COUNTED), "--format", "json")
    assert status == 0
    document = json.loads(out)
    assert document["schema"] == "kproxylat-comparison/1"
    assert document["comparisons"][1]["crossing"] == {"estimate": 32, "lo": 32, "hi": 32}


def test_a_slow_machine_is_not_worse_by_chance(tmp_path: Path) -> None:
    rng = Random(9)
    found = pair(tmp_path, resample(SLOW, rng, 2000), resample(SLOW, rng, 2000, 1.3))
    assert found.worse_pct is not None
    assert 20 < found.worse_pct < 30, "the lower bound counts"


def test_changed_conditions_are_reported(tmp_path: Path) -> None:
    traffic = LEGACY.traffic
    assert isinstance(traffic, Traffic)
    found = pair(tmp_path, LEGACY, replace(LEGACY, traffic=replace(traffic, rate_pps=5)))
    assert found.changed == {"rate_pps": ("1000", "5")}


def test_emulated_nanoseconds_are_called_so_in_the_sentence(tmp_path: Path) -> None:
    runs = load(TIMED)
    [comparison] = compare(*files(tmp_path, runs[0], runs[2]))
    assert "emulated ns more than" in comparison.statement
    section = build_comparisons(json.loads(to_json([comparison])), print)
    assert "emulated" in section.methods[-1]


@pytest.mark.parametrize("spread", [0.02, 0.07])
def test_few_repeats_that_differ_still_tell_how_much(tmp_path: Path, spread: float) -> None:
    """Student's t of two repeats draws costs below 0, which say nothing of the ratio."""
    rng = Random(8)
    a, b = ([resample(SLOW, rng, 2000, factor * (1 + drift)) for drift in (0, spread)] for factor in (1, 5))
    found = pair(tmp_path, a, b)
    assert found.differs
    assert found.worse_pct
    assert check_worse([found], 5)


def test_a_difference_without_a_ratio_cannot_be_judged(tmp_path: Path) -> None:
    found = pair(tmp_path, SLOW, resample(SLOW, Random(3), 2000, 3))
    main = replace(found.lookups[0].main, ratio=None)
    lookup = replace(found.lookups[0], figures=(main,))
    assert (lookup.differs, find_worse([lookup]), find_worse(found.lookups)) == (True, None, found.worse_pct)
    with pytest.raises(UsageError, match="cannot tell"):
        check_worse([replace(found, worse_pct=None)], 5)


def test_values_that_are_nearly_as_common_bound_the_difference(tmp_path: Path) -> None:
    a, b = with_values(LEGACY, {1000: 50, 1100: 48}), with_values(LEGACY, {1102: 50})
    found = pair(tmp_path, a, b)
    difference = found.lookups[0].main.difference
    assert difference
    assert (difference.estimate, difference.lo, difference.hi) == (102, 2, 102)
    assert "2 to 102 instructions more" in found.statement
    assert "exactly" not in found.statement
    assert not check_worse([found], 5)
    between = pair(tmp_path, a, with_values(LEGACY, {1050: 50}))
    assert between.differs is False, "chance decides which side costs more"


def test_hash_effects_count_between_releases_and_modes(tmp_path: Path) -> None:
    a, b = (change_run(with_values(NFTABLES, {cost: 50}), kube_proxy=release)
            for cost, release in ((2514, "1.33"), (2560, "1.36")))  # fmt: skip
    found = pair(tmp_path, a, b)
    assert (found.differs, "hash effects" in found.lookups[0].reason) == (False, True)


def test_a_lookup_is_not_compared_with_another_call(tmp_path: Path) -> None:
    """A trace may have seen no lookup."""
    other = replace(NFTABLES, probes=(replace(lookup(NFTABLES), lookup=False, hook="POSTROUTING"),), accounting=None)
    with pytest.raises(CompareError, match=r"lookups in .* and calls of"):
        pair(tmp_path, LEGACY, other)


def test_great_ratios_are_written_as_numbers(tmp_path: Path) -> None:
    found = pair(tmp_path, with_values(LEGACY, {100: 50}), with_values(LEGACY, {16_500: 50}))
    assert "165 times as much as" in state(found, on_screen=True)


def test_a_repeat_without_a_mean_is_named(tmp_path: Path) -> None:
    probe = replace(lookup(SLOW), mean=None)
    found = pair(tmp_path, [SLOW, replace(SLOW, probes=(probe,))], [SLOW, SLOW])
    assert (found.differs, found.lookups[0].reason) == (None, "a run has no distribution, or no mean")


def test_equal_sweeps_say_nothing_of_where_they_cross(tmp_path: Path) -> None:
    rng = Random(5)
    a, b = ([change_run(resample(SLOW, rng, 2000), services=size) for size in (10, 100, 1000)] for _ in range(2))
    found = pair(tmp_path, a, b)
    assert found.differs is False
    assert "unclear" not in state(found, on_screen=True)
