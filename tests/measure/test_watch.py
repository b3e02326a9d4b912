"""Long traces: an interval's maps become two lines; neither memory nor log keeps the maps."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import pytest

from kproxylat.logs.reader import read_log
from kproxylat.measure.watch import IntervalReport
from kproxylat.modes import find_mode

HEADER = "============================================\n  eBPF Kube-Proxy Latency Experiment\n"
FACTS = "Kube-proxy mode: nftables\nkproxylat: 0.1, nftables/nft, ns\nAttaching 3 probes...\n"
REPORT = "\n  FINAL REPORT\n--- NFTABLES MODE ---\n"


def interval(number: int, priv: int = 80) -> list[str]:
    """Return what the script prints every five seconds."""
    seconds = number * 5
    time = f"{seconds // 3600 % 24:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    maps = (
        f"@stats[{priv}]: count {number + 1}, average 12000, total {12000 * (number + 1)}\n\n"
        f"@min[{priv}]: 3000\n\n@max[{priv}]: 45000\n\n"
        f"@table[{priv}]: kube-proxy\n\n@chain[{priv}]: nat-prerouting\n\n"
    )
    return [f"{time} Statistics:\n", *maps.splitlines(keepends=True), "--\n"]


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def report(log: list[str]) -> IntervalReport:
    return IntervalReport(find_mode("nftables", None), True, log.append)


def test_a_trace_of_a_day_is_a_log_of_two_megabytes(
    report: IntervalReport, log: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    intervals = 200
    kept = [line for number in range(intervals) for line in interval(number) if report.feed(line)]
    assert kept == []
    assert report.flush() == []
    text = "".join(log)
    assert len(text) / intervals * 86400 / 5 < 2e6
    said = "00:16:35 Statistics:\n  [nftables] Count: 200, Min: 3 us, Avg: 12 us, Max: 45 us\n"
    assert text.endswith(said)
    assert capsys.readouterr().out == text


def test_what_is_no_intervals_is_logged_and_kept(report: IntervalReport, log: list[str]) -> None:
    head, *maps, tail = interval(3)
    fed = [
        "Attaching 3 probes...\n",
        head,
        maps[0],
        "Lost 7 events\n",
        "x:1:1: WARNING: y\n",
        *maps[1:],
        tail,
        "@mine: 5\n",
    ]
    kept = [line for line in fed if report.feed(line)]
    assert kept == ["Attaching 3 probes...\n", "Lost 7 events\n", "x:1:1: WARNING: y\n", "@mine: 5\n"]
    assert set(kept) <= set(log)
    assert not [line for line in log if line.startswith(("@stats", "--"))]


def test_an_interval_without_end_is_not_lost(report: IntervalReport, log: list[str]) -> None:
    for line in interval(1)[:-1] + interval(2)[:3]:
        report.feed(line)
    assert "@min[80]: 3000\n" in "".join(log)
    assert report.flush() == interval(2)[1:3]
    assert "count 3," in "".join(log)


def test_a_traces_log_is_read_again_with_its_intervals(report: IntervalReport, log: list[str], tmp_path: Path) -> None:
    for number in range(60):
        for line in interval(number):
            report.feed(line)
    for line in ["\n", "\n", *interval(60)[1:-1]]:
        report.feed(line)
    path = tmp_path / "trace.log"
    path.write_text(HEADER + FACTS + "".join(log) + REPORT)
    [result] = read_log(str(path))
    assert result.quality.warnings == ()
    assert result.probes[0].count == 61
    samples = result.intervals["nftables"]
    assert (samples.lines, samples.total, samples.last.time) == (60, 60, "00:04:55")


def test_stdout_that_cannot_be_written_to_is_noted_and_the_log_goes_on(
    report: IntervalReport, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        for line in interval(1) + interval(2):
            report.feed(line)
        monkeypatch.undo()
        with suppress(OSError):
            full.close()
    assert report.unread.is_set()
    assert isinstance(report.error, OSError)
    assert "".join(log).count("Statistics:") == 2
