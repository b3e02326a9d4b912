"""What a person sees: sentences first, scaled units, the terminal's width, colours, histograms of maps."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxylat.analysis.compare import compare
from kproxylat.analysis.comparison import state
from kproxylat.analysis.series import build_series
from kproxylat.logs.reader import LogReader
from kproxylat.modes import MODES
from kproxylat.report import columns
from kproxylat.report.columns import fill, paint, write_figure
from kproxylat.report.export import export_json, export_table
from kproxylat.report.run_table import draw_result
from kproxylat.report.sections import build_runs
from kproxylat.report.sentences import describe_alternative, describe_result, describe_series, equal_at
from kproxylat.report.tables import show_result
from kproxylat.results import Accounting, Result, Run, Target
from kproxylat.sweep.whatif import judge
from kproxylat.trace.percentiles import add_percentiles
from kproxylat.trace.probes import exact_probe
from tests.results import COUNTED, load
from tests.support import TESTS
from tests.support.costs import RULES, measured


def timed(**run: object) -> Result:
    """A lookup's times, one call of which took long."""
    probe = exact_probe(
        "ipt_do_table", ("nat", None, "PREROUTING"), Counter({38_200: 80, 41_000: 19, 1_600_000: 1}), "ns", lookup=True
    )
    books = Accounting(100, 100, 100, 100, None, None, closed=True)
    facts = {"clock": "ns", "position": 5000, "chain_length": 5001, **run}
    target = Target("10.96.0.10", 80, "tcp", "default/worker")
    return Result(replace(Run(), **facts), target, (probe,), accounting=books)


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (0, "ns", "0 ns"),
        (7, "ns", "7 ns"),
        (999, "ns", "999 ns"),
        (999.7, "ns", "1 µs"),
        (38_241, "ns", "38.2 µs"),
        (999_700, "ns", "1 ms"),
        (13, "us", "13 µs"),
        (0.5, "us", "500 ns"),
        (1_600_000, "ns", "1.6 ms"),
        (2.5e9, "ns", "2.5 s"),
        (5e12, "ns", "5,000 s"),
        (-1_234, "ns", "-1.23 µs"),
        (2_106, "instructions", "2,106"),
        (818.25, "instructions", "818.2"),
        (None, "ns", "-"),
    ],
)
def test_a_figure_has_a_scaled_unit(number: float | None, unit: str, text: str) -> None:
    assert write_figure(number, unit) == text


@given(st.floats(min_value=0.001, max_value=1e12))
def test_a_written_time_is_the_time_within_its_digits(number: float) -> None:
    text, unit = write_figure(number, "ns").split()
    scale = {"ns": 1, "µs": 1e3, "ms": 1e6, "s": 1e9}[unit]
    assert float(text.replace(",", "")) * scale == pytest.approx(number, rel=0.006)


def test_a_run_begins_with_a_sentence() -> None:
    first = next(draw_result(timed()))
    assert " ".join(first.split()) == (
        "A new TCP connection to default/worker is looked up in 38.2 µs (p50); 4,999 Service rules stand before its "
        "own; every packet is accounted for."
    )
    odd = replace(timed(emulated=True, position=None, services=100), accounting=replace(Accounting(*[1] * 6, False)))
    text = describe_result(odd)
    assert (
        "38.2 µs of emulated time (p50); the rules hold 100 other Services; the packet counters do not balance" in text
    )
    assert "no rule matches it" in describe_result(timed(path="miss"))
    assert "; 1 Service rule stands before" in describe_result(timed(position=2))
    assert "A new flow to default/worker is" in describe_result(
        replace(timed(), target=Target("", 0, None, "default/worker"))
    )
    assert describe_result(Result(Run())) == ""
    old = next(iter(LogReader("x").read(io.BytesIO((TESTS / "dumps/0.17.0--report_a_both.log").read_bytes()))))
    assert describe_result(add_percentiles(old, (50,))) == "A call of ipt_do_table takes 12.5 µs (p50)."


def test_the_table_of_times_has_percentiles_and_marks_the_lookup() -> None:
    text = "\n".join(draw_result(timed()))
    assert re.search(r"calls +min +p50 +p90 +p99 +max$", text, re.M)
    assert re.search(r"^ nat \* +PREROUTING +100 +38\.2 µs +38\.2 µs +41 µs +56\.6 µs +1\.6 ms$", text, re.M)


def test_a_map_of_a_template_is_drawn() -> None:
    text = b"@cpu[0]:\n[512, 1K)             40 |@@@@|\n[1K, 2K)              10 |@|\n\n@calls[0]: 3\n@calls[1]: 9\n\n"
    (result,) = LogReader("x").read(io.BytesIO(text))
    lines = "".join(export_table([result])).splitlines()
    assert f"[512, 1K)              40 |{'@' * 52}|" in lines
    assert f"[1K, 2K)               10 |{'@' * 13:<52}|" in lines
    assert {"map cpu[0]: count 50", "map calls[0]: 3", "map calls[1]: 9"} <= set(lines)
    assert not [line for line in lines if "entries" in line]


def test_a_large_map_does_not_fill_the_screen() -> None:
    text = "".join(f"@n[{key}]: {key}\n" for key in range(50)).encode()
    (result,) = LogReader("x").read(io.BytesIO(b"Attaching 1 probe...\n" + text))
    lines = "".join(export_table([result])).splitlines()
    assert "map n: the last 10 of 50 entries" in lines
    assert [line for line in lines if line.startswith("map n[")] == [f"map n[{key}]: {key}" for key in range(40, 50)]


def test_series_are_described() -> None:
    assert list(describe_series(build_series(load(COUNTED)))) == [
        "iptables/legacy: each Service adds 26 instructions to a lookup, O(n).",
        "iptables/nft: each Service adds 84 instructions to a lookup, O(n).",
        "nftables/nft: Services add nothing to a lookup, O(1).",
        "Above 32 Services nftables/nft costs less than iptables/legacy.",
    ]


def test_each_mode_gets_a_verdict() -> None:
    outcome = judge(RULES, [measured(mode) for mode in MODES])
    equal = [equal_at(mode, outcome) for mode in outcome.alternatives]
    assert equal == ["now", "never", "26.1", "76.9"]
    verdicts = [describe_alternative(mode, outcome) for mode in outcome.alternatives]
    assert verdicts[0] == "iptables/legacy: a lookup costs 3,339 instructions on average now."
    assert "2.2 times as much as now, 7,326 instructions on average; more for each Service" in verdicts[1]
    assert "19.8% less than now, 2,678 instructions on average; less above 26.1 Services before it" in verdicts[2]
    present, other = outcome.series[:2]
    same = replace(outcome, series=(present, replace(other, points=present.points, per_service=present.per_service)))
    assert equal_at(outcome.alternatives[1], same) == "always"
    assert equal_at(outcome.alternatives[1], replace(outcome, series=())) == "unclear"


def test_a_comparison_says_how_many_times_as_much() -> None:
    words = [state(comparison, on_screen=True) for comparison in compare(str(COUNTED), None)]
    assert "iptables/nft's lookup costs 3.1 times as much as iptables/legacy's at 1,000 Services" in words[0]
    assert "(86,912 against 27,846 instructions, exactly)" in words[0]
    assert "The lines cross at 32 Services; iptables/legacy is cheaper below." in words[1]
    assert "means nothing" in state(
        replace(compare(str(COUNTED), None)[0], unit="ns against instructions"), on_screen=True
    )


class Terminal(io.StringIO):
    """A stdout that is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def use_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make stdout a terminal of 120 columns with colours."""
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_, **__: os.terminal_size((120, 40)))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_a_terminals_width_and_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    use_terminal(monkeypatch)
    text = paint("\n".join(draw_result(timed().warn("unclear " + "word " * 20))))
    assert columns.width() == 120
    for answer in ("A packet takes 17\nµs (p50); it is\ncounted.", "A flow takes 9 (the\ncommonest)"):
        assert paint(answer) == f"\033[1m{answer}\033[0m"
    assert "\033[1m nat *  " in text
    assert "\033[33mwarning\033[0m: " in text
    plain = re.sub(r"\033\[\d+m", "", text)
    assert 100 < max(map(len, plain.splitlines())) <= 120
    assert "\033[1m nat *  " in paint("".join(export_table([timed()]))), "parse shows what run does"
    show_result(timed().warn("\033[31m"))
    assert "\033[1m nat *  " in sys.stdout.getvalue()  # type: ignore[attr-defined]
    assert "\033[31m" not in sys.stdout.getvalue()  # type: ignore[attr-defined]
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert paint("warning: x") == "warning: x"


def test_a_pipe_has_80_columns_and_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert (columns.width(), paint("warning: x")) == (80, "warning: x")


@given(st.lists(st.text("ab-cdé", min_size=1, max_size=120), min_size=1))
def test_a_line_ends_between_words(words: list[str]) -> None:
    assert fill(" ".join(words)).split() == words


def test_a_small_change_is_said_in_percent_and_a_great_one_as_a_number() -> None:
    outcome = judge(RULES, [measured(mode) for mode in MODES])
    now = outcome.alternatives[0]
    words = [describe_alternative(replace(outcome.alternatives[1], mean=now.mean * ratio), outcome)
             for ratio in (1.04, 170)]  # fmt: skip
    assert "a lookup would cost 4% more than now" in words[0]
    assert "a lookup would cost 170 times as much as now" in words[1]


def test_runs_of_two_machines_have_both_units() -> None:
    one = timed()
    other = replace(one, run=replace(one.run, emulated=True, mode="ipvs", backend="ipvs", services=None))
    for results in ([one, other], [other, one]):
        section = build_runs(json.loads("".join(export_json(results))), print)
        assert any("ns and " in table.title and "emulated ns" in table.title for table in section.tables)


def test_a_sweeps_report_has_the_costs_by_services() -> None:
    section = build_runs(json.loads(COUNTED.read_text()), print)
    [table] = [table for table in section.tables if table.title == "commonest lookup, emulated instructions"]
    assert [row[0] for row in table.rows] == ["10", "100", "1,000"]
    assert table.rows[-1][1:] == ("27,846", "86,912", "2,678")
