"""What tracing adds: computed from the maps of three bursts; planned and refused; a failure costs the run nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kproxylat.errors import Interrupted, MachineError, UsageError
from kproxylat.measure import overhead
from kproxylat.measure.options import Lab, Options, Sending, Tracing
from kproxylat.measure.overhead import add_overhead, compute_overhead, cross_check
from kproxylat.measure.plan import check_options, plan_bursts
from kproxylat.measure.send_time import build_send_time
from kproxylat.modes import find_mode
from kproxylat.node.network import Network
from kproxylat.report.run_table import draw_result
from kproxylat.results import Bounded, LookupCheck, Map, Overhead, Percentile, Probe, Result, Run
from kproxylat.results_json import from_json, to_json
from kproxylat.trace.dump import parse_dump
from kproxylat.trace.probes import exact_probe
from kproxylat.traffic.burst import Burst, Sent
from kproxylat.traffic.generators import GENERATORS
from tests.support.command import Captured, call
from tests.support.plans import PLAN

LEGACY, IPVS = find_mode("iptables", "legacy"), find_mode("ipvs", None)
NONE = "@envelope[2, 5000]: 8\n@envelope[2, 9000]: 2\n@envelope[0, 1]: 10\n@stored[574]: 19\n@stored[575]: 1\n"
EMPTY = "@envelope[2, 5500]: 9\n@envelope[2, 5501]: 1\n@stored[574]: 20\n"
CALLS = "@n[66, 700]: 10\n@n[130, 90]: 9\n@n[130, 91]: 1\n@n[68, 5]: 10\n"
SCRIPT = "@envelope[2, 9000]: 10\n@stored[574]: 20\n" + CALLS


def maps(*texts: str) -> list[Mapping[str, Map]]:
    return [parse_dump(text) for text in texts]


def test_on_the_instruction_clock_it_is_exact() -> None:
    found = compute_overhead(LEGACY, maps(NONE, EMPTY, SCRIPT), [10, 10, 10], "instructions")
    assert found == Overhead("instructions", "FORWARD", 10, 2, Bounded(250, 250, 250), Bounded(2000, 2000, 2000), 574)
    assert isinstance(found.script.estimate, int)


def test_what_calls_do_not_share_evenly_stays_a_fraction() -> None:
    found = compute_overhead(LEGACY, maps(NONE, EMPTY.replace("5500", "5503"), SCRIPT), [10] * 3, "instructions")
    assert found.empty.estimate == 251.5


def test_in_nanoseconds_the_medians_differ_within_bounds() -> None:
    """Two bursts of 1,000 whose medians are 500 apart, with a spread of 100 around them."""

    def burst(middle: int) -> str:
        stored = "@stored[9]: 400\n@stored[30]: 300\n@stored[31]: 300\n"
        return "".join(f"@envelope[2, {middle - 50 + step}]: 10\n" for step in range(100)) + stored

    script = burst(6000) + "@n[66, 700]: 1000\n"
    found = compute_overhead(LEGACY, maps(burst(5000), burst(5500), script), [1000] * 3, "ns")
    assert (found.empty.estimate, found.script.estimate, found.stored) == (500, 1000, 30)
    for each in (found.empty, found.script):
        assert each.estimate - 10 < each.lo < each.estimate < each.hi < each.estimate + 10


@pytest.mark.parametrize(("texts", "said"), [
    ((NONE, EMPTY.replace(": 9", ": 8"), SCRIPT), "called 9 times at FORWARD with an empty pair of probes, not 10"),
    ((NONE, EMPTY, SCRIPT.replace("700]: 10", "700]: 9")), "do not all make the same number of calls"),
    ((NONE, EMPTY, SCRIPT[: SCRIPT.index("@n")]), "do not all make the same number of calls"),
    (("@stored[1]: 1\n", EMPTY, SCRIPT), "called 0 times at FORWARD without a probe"),
])  # fmt: skip
def test_bursts_that_do_not_agree_are_no_measurement(texts: tuple[str, ...], said: str) -> None:
    with pytest.raises(MachineError, match=said):
        compute_overhead(LEGACY, maps(*texts), [10, 10, 10], "instructions")


def test_of_ipvs_the_call_that_holds_no_other() -> None:
    assert (LEGACY.overhead_hook, IPVS.overhead_hook) == (2, 3)


def test_untraced_is_within_bounds_and_not_below_nothing() -> None:
    found = Overhead("instructions", "PREROUTING", 10, 1, Bounded(250, 240, 260), Bounded(2000, 2000, 2000), 574)
    assert found.untraced(2106) == (2106 - 574 - 260, 2106 - 574)
    assert found.untraced(600) == (0, 26)


SENDING = Sending(duration_s=1, rate_pps=100_000)
TRACING = Tracing(overhead=True)


def plan_run(sending: Sending = SENDING, tracing: Tracing = TRACING) -> Options:
    return Options(LEGACY, where=Lab(), sending=sending, tracing=tracing)


def test_no_flow_comes_twice() -> None:
    bursts = plan_bursts(plan_run(), Network(None, None, None))
    assert [each.count for each in bursts] == [100, 100_000, 2000, 2000, 2000]
    taken = [number for each in bursts for number in range(each.skip, each.skip + each.addresses)]
    assert len(taken) == len(set(taken)) == 6


@pytest.mark.parametrize("options", [
    plan_run(tracing=replace(TRACING, template=Path(__file__))),
    plan_run(replace(SENDING, generator=GENERATORS["none"])),
    plan_run(replace(SENDING, generator=GENERATORS["sockets"], origin="node")),
])  # fmt: skip
def test_overhead_is_refused_where_it_cannot_be_measured(options: Options) -> None:
    check_options(replace(options, tracing=replace(options.tracing, overhead=False)))
    with pytest.raises(UsageError, match="what tracing adds cannot be measured with") as caught:
        check_options(options)
    assert caught.value.remedy == "leave out --overhead"


def test_the_lookup_is_held_against_the_whole_way() -> None:
    lookup = exact_probe("ipt_do_table", ("nat", None, "PREROUTING"), Counter({2106: 9}), "ns", lookup=True)
    found = {
        "clock": 30, "totals": [40, 40, 40], "preempted": [0, 0, 0], "checked": 1, "late": 0,
        "times": [{"4000": 40}, {"3900": 40}, {"3800": 40}], "apart": [{"100": 40}, {"200": 40}],
        "blocks": [[3990, 4010], [3900], [3800], [90, 110], [200]],
    }  # fmt: skip
    result = replace(Result(Run(clock="ns"), probes=(lookup,)), send_time=build_send_time(found, "ns"))
    assert cross_check(result) is None, "what tracing adds is unknown"
    adds = Overhead("ns", "FORWARD", 10, 2, Bounded(250, 240, 260), Bounded(2000, 2000, 2000), 574)
    check = cross_check(replace(result, overhead=adds))
    assert check == LookupCheck("ns", Bounded(1402, 1272, 1532), Bounded(4000, 3990, 4010), Bounded(100, 90, 110), True)
    slow = replace(lookup, percentiles={"50": Percentile(9000, 9000, 9000)})
    doubtful = cross_check(replace(result, overhead=adds, probes=(slow,)))
    assert doubtful
    assert not doubtful.agrees, "9,000 of 4,000"
    text = "\n".join(draw_result(replace(result, overhead=adds, cross_check=check)))
    assert "cross-check, ns, untraced: a lookup takes 1.27 µs to 1.53 µs by the probe, its" in " ".join(text.split())
    assert from_json(to_json(replace(result, cross_check=check))).cross_check == check


def test_a_run_that_measures_what_tracing_adds_takes_the_send_time_of_controls_too(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    planned = list[Options]()

    def measure(options: Options, **_: object) -> tuple[Result, None]:
        planned.append(options)
        return Result(Run()), None

    monkeypatch.setattr("kproxylat.measure.run.measure", measure)
    assert call(capsys, "run", "--lab", "--overhead", "--format", "json", "1", "1000")[0] == 0
    [options] = planned
    timed = plan_bursts(options, Network(None, "node", "backend"))[-1]
    assert (timed.count, len(timed.controls)) == (500, 2)
    assert options.packets_in_all == 1000 + 3 * 1000 + 3 * 500


class FakeTracer:
    def __init__(self, text: str) -> None:
        self.stdout = text.splitlines(keepends=True)

    def stop(self) -> None:
        pass


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """bpftrace that prints what the bursts above did; the scripts that it got."""
    got: list[str] = []

    @contextmanager
    def trace(script: str, on_line: object):  # type: ignore[no-untyped-def]
        got.append(script)
        tracer = FakeTracer((NONE, EMPTY, SCRIPT)[len(got) - 1])
        for line in tracer.stdout:
            on_line(line)  # type: ignore[operator]
        yield tracer

    monkeypatch.setattr(overhead, "trace", trace)
    return got


BURSTS = plan_bursts(plan_run(Sending(duration_s=0.1, rate_pps=100)), Network(None, None, None))[2:]
RESULT = Result(Run(clock="instructions"))


def test_three_bursts_make_a_figure_and_their_text_is_in_the_log(scripts: list[str]) -> None:
    sent, log = list[Burst](), list[str]()

    def send(burst: Burst) -> tuple[Sent, Interrupted | None]:
        sent.append(burst)
        return Sent(burst.count), None

    result, ended = add_overhead(RESULT, LEGACY, PLAN, BURSTS, send, log.append)
    assert ended is None
    assert result.overhead
    assert result.overhead.script.estimate == 2000
    assert result.quality == RESULT.quality
    assert sent == BURSTS
    assert "overhead, empty: stored[574]: 20\n" in log
    assert len(set(scripts)) == 3


def test_a_failure_is_a_warning_and_a_signal_ends_the_run_that_is_measured(scripts: list[str]) -> None:
    result, ended = add_overhead(RESULT, LEGACY, PLAN, BURSTS, lambda _: (Sent(9), None), lambda _: None)
    assert (result.overhead, ended) == (None, None)
    [warning] = result.quality.warnings
    assert warning.startswith("what tracing adds was not measured: nf_hook_slow was called 10 times")
    signal = Interrupted(2)
    scripts.clear()
    result, ended = add_overhead(RESULT, LEGACY, PLAN, BURSTS, lambda _: (Sent(3), signal), lambda _: None)
    assert (result.overhead, ended, len(scripts)) == (None, signal, 1)
    assert result.quality.warnings == ("what tracing adds was not measured: a signal came",)


@pytest.mark.usefixtures("scripts")
def test_part_of_a_call_that_takes_longer_than_whole_calls_is_no_figure() -> None:
    call = Probe("ipt_do_table", "nat", None, "PREROUTING", True, 20, 574, 574, 574, 574, 20 * 574, "instructions")
    traced = replace(RESULT, probes=(call,))
    result, ended = add_overhead(traced, LEGACY, PLAN, BURSTS, lambda burst: (Sent(burst.count), None), lambda _: None)
    assert (result.overhead, ended) == (None, None)
    [warning] = result.quality.warnings
    assert warning.endswith("took 574 instructions after the run, whole calls in it 574")
