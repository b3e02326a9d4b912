"""Logs of every dialect: whole, damaged, cut, compressed, several in one file; and the command that reads them."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kproxylat.errors import LogError
from kproxylat.logs import reader
from kproxylat.logs.files import read_pieces
from kproxylat.logs.legacy import RunText
from kproxylat.logs.reader import Dialect, LogReader, read_intervals, read_log
from kproxylat.logs.recurring import Collector
from kproxylat.results import Percentile, Result, Run
from tests.support import TESTS

DUMPS = TESTS / "dumps"
REPORT = (DUMPS / "0.17.0--report_a_both.log").read_bytes()
SUMMARY = (DUMPS / "0.27.1--report_b_basic.log").read_bytes()
HEADER = b"""============================================
  eBPF Kube-Proxy Latency Experiment
============================================
Timestamp: 2026-01-31 12:34:56
Kube-proxy mode: iptables
Worker ClusterIP: 10.96.0.10
Duration: 30s
Packet rate: 10000 pps
Warmup packets: 100
Rule position: last
Worker position: 12 / 104 (11.54%)
============================================
"""


def read(text: bytes) -> list[Result]:
    return list(LogReader("a.log").read(io.BytesIO(text)))


def test_report() -> None:
    (result,) = read(HEADER + REPORT)
    run, (ipt, nft) = result.run, result.probes
    assert (run.started, run.mode, run.duration_s, run.position, run.chain_length) == (
        *("2026-01-31T12:34:56", "iptables", 30),
        *(12, 104),
    )
    assert run.arguments == ("30", "10000", "100", "last")
    assert result.target
    assert result.target.ip == "10.96.0.10"
    assert result.traffic
    assert (result.traffic.rate_pps, result.traffic.warmup) == (10000, 100)
    assert (ipt.engine, ipt.count, ipt.min, ipt.max, ipt.sum, ipt.unit) == ("ipt_do_table", 13, 3, 123, 528, "us")
    assert ipt.mean == 528 / 13
    assert (nft.engine, nft.count, nft.max) == ("nft_do_chain", 7, 250)
    assert sum(bucket.count for bucket in ipt.histogram.buckets) == 13
    assert result.maps["nft_sum"].entries[0].value == 307
    assert result.intervals["iptables"].lines == 2
    assert result.slow["iptables"].worst[0].max == 123
    assert not run.cut_short
    assert result.source
    assert (result.source.dialect, result.source.index) == ("report", 0)


def test_summary() -> None:
    (result,) = read(SUMMARY)
    (probe,) = result.probes
    assert (probe.count, probe.mean, probe.max, probe.sum) == (20, 120.85, 1024, 2417)
    assert result.intervals[""].total == 20
    assert result.source
    assert result.source.dialect == "summary"


def test_single() -> None:
    lines = "[iptables] Latency: 12.345 µs (12345 ns)\n[iptables] Latency: 10.000 µs (10000 ns)\n"
    (result,) = read(lines.encode())
    assert [(probe.count, probe.min, probe.sum, probe.unit) for probe in result.probes] == [(2, 10000, 22345, "ns")]
    (nothing,) = read(b"ERROR: No packet traced after 10 seconds.\n")
    assert nothing.probes == ()
    assert "no packet was traced" in nothing.quality.warnings


def test_experiment() -> None:
    header = (
        b"ServiceCount,ProxyMode,WorkerPosition,TotalRules,MeanLatency_us,MaxLatency_us,P50_us,P95_us,P99_us,LogFile"
    )
    first, second = read(
        header + b"\n100,iptables,12,104,45,156,32,64,128,a.log\n1000,nftables,N/A,N/A,15,20,8,16,16,b\n"
    )
    assert (first.run.services, first.run.position, second.run.position) == (100, 12, None)
    percentile = first.probes[0].percentiles["99"]
    assert (percentile.estimate, percentile.lo, percentile.hi) == (None, 128, 156)


COLUMNS = {
    8: "ServiceCount,ProxyMode,MeanLatency_us,MaxLatency_us,P50_us,P95_us,P99_us,LogFile",
    10: "ServiceCount,ProxyMode,WorkerPosition,TotalRules,MeanLatency_us,MaxLatency_us,P50_us,P95_us,P99_us,LogFile",
    12: "ServiceCount,ProxyMode,WorkerPosition,TotalRules,RelativePosition%,MinLatency_us,MeanLatency_us,MaxLatency_us,"
    "P50_us,P95_us,P99_us,LogFile",
    13: "ServiceCount,ProxyMode,WorkerPosition,TotalRules,RelativePosition%,MinLatency_us,MeanLatency_us,MaxLatency_us,"
    "StdDev_us,P50_us,P95_us,P99_us,LogFile",
}
CELLS = {
    "ServiceCount": "100", "ProxyMode": "iptables", "WorkerPosition": "12", "TotalRules": "104", "MinLatency_us": "3",
    "RelativePosition%": "11.54", "MeanLatency_us": "45", "MaxLatency_us": "156", "StdDev_us": "7.25", "P50_us": "32",
    "P95_us": "64", "P99_us": "128", "LogFile": "logs/ebpf/a.log",
}  # fmt: skip


@pytest.mark.parametrize("percentiles", [True, False], ids=["percentiles", "TBD"])
@pytest.mark.parametrize("columns", COLUMNS.values(), ids=COLUMNS)
def test_the_experiment_of_every_version(columns: str, percentiles: bool) -> None:
    names = columns.split(",")
    cells = [CELLS[name] if percentiles or name[0] + name[-3:] != "P_us" else "TBD" for name in names]
    results = read(f"{columns}\n{','.join(cells)}\n{','.join(cells).replace('100', '1000', 1)}\n".encode())
    assert [result.run.services for result in results] == [100, 1000]
    (probe,), run = results[0].probes, results[0].run
    assert (probe.engine, probe.mean, probe.max, run.log) == ("ipt_do_table", 45, 156, "logs/ebpf/a.log")
    assert probe.min == (3 if "MinLatency_us" in names else None)
    assert (run.position, run.chain_length) == ((12, 104) if "TotalRules" in names else (None, None))
    bounds = {name: (percentile.lo, percentile.hi) for name, percentile in probe.percentiles.items()}
    assert bounds == ({"50": (32, 64), "95": (64, 128), "99": (128, 156)} if percentiles else {})
    assert results[0].quality.warnings == ()


def test_a_line_of_the_experiment_with_too_few_columns_is_named() -> None:
    (result,) = read(f"{COLUMNS[12]}\n100,iptables,12,104,11.54,3,45,156\n".encode())
    assert (result.probes[0].mean, result.probes[0].max, result.probes[0].percentiles) == (45, 156, {})
    assert "the line has 8 columns, its header 12" in result.quality.warnings[0]


def test_a_report_with_indented_figures_keeps_its_mean() -> None:
    text = REPORT.replace(b"Total", b"  Total").replace(b"Min lat", b"  Min lat").replace(b"Max lat", b"  Max lat")
    for mean in (b"  Mean latency: 40 us", b"  Avg latency: 40 us  ", b"  Mean latency:   40.62 us"):
        changed = text.replace(b"Avg latency: 40 us", mean).replace(
            b"[iptables] Count: 13, Min: 3", b"[iptables] Count: 99, Min: 1"
        )
        ((ipt, _),) = (result.probes for result in read(changed))
        assert (ipt.count, ipt.min, ipt.mean, ipt.max) == (13, 3, 528 / 13, 123)
    changed = re.sub(rb"@ipt_sum: .*\n", b"", changed)
    assert read(changed)[0].probes[0].mean == 40.62


def build_cost(text: RunText) -> Result:
    """Build a result whose mode is what the marks of a made-up dialect say."""
    return Result(Run(mode="+".join(text.marks["cost"]), cut_short=not text.ended))


@pytest.mark.parametrize(
    ("row", "text", "runs"),
    [
        (Dialect("cost", re.compile("COST "), build_cost), b"COST 5\nCOST 6\n", [("COST 5+COST 6", False)]),
        (Dialect("cost", re.compile("COST "), build_cost, has_report=True), b"COST 5\n", [("COST 5", True)]),
        (
            Dialect("cost", re.compile(r"\d"), build_cost, header="Costs:", line_is_run=True),
            b"4\nCosts:\n5\n6\n",
            [("5", False), ("6", False)],
        ),
        (
            Dialect("cost", re.compile("COST "), lambda _: Result(Run(mode="slow")), kinds=frozenset({"slow"})),
            b"12:00:00 SLOW iptables: 5 us (tid=1)\n",
            [("slow", False)],
        ),
    ],
    ids=["sign", "report", "header", "kinds"],
)
def test_one_row_adds_a_dialect(
    row: Dialect, text: bytes, runs: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "DIALECTS", (row, *reader.DIALECTS))
    results = read(text)
    assert [result.source.dialect for result in results if result.source] == ["cost"] * len(runs)
    assert [(result.run.mode, result.run.cut_short) for result in results] == runs


@pytest.mark.parametrize("start", [b"", HEADER])
def test_several_runs(start: bytes) -> None:
    results = read((start + REPORT) * 2 + start + SUMMARY + start + REPORT)
    assert [each.source.dialect for each in results if each.source] == ["report", "report", "summary", "report"]
    assert [each.source.index for each in results if each.source] == [0, 1, 2, 3]
    assert results[0].maps == results[1].maps == results[3].maps
    assert results[0].probes == results[3].probes


def strip(result: Result) -> tuple[Any, ...]:
    return result.probes, result.maps, result.intervals, result.slow


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"  FINAL REPORT", b"\x1b[32m  FINAL REPORT\x1b[0m"),
        lambda text: text.replace(b"[16, 32)", b"Lost 3 events\n[16, 32)").replace(b"[32, 64)", b"oops\n[32, 64)"),
        lambda text: text.replace(b"\n[8, 16)", b"\n12:00:00 SLOW bridge: 7 us (tid=1)\n[8, 16)"),
        lambda text: text.replace(b"Slow threshold", b"\xff\xfe\nSlow threshold"),
    ],
)
def test_disturbances_change_no_figure(change: Any) -> None:
    (plain,), (changed,) = read(REPORT), read(change(REPORT))
    slow = {name: each for name, each in changed.slow.items() if name != "bridge"}
    assert (changed.probes, changed.maps, changed.intervals, slow) == strip(plain)


def test_damage_is_named() -> None:
    text = REPORT.replace(b"[iptables] Count: 13, Min: 3", b"[iptables] Count: 1#").replace(
        b"Avg latency: 40 us", b"Avg latency: 4"
    )
    text = text.replace(b"[64, 128)              4 |", b"[64, 128)              4", 1)
    (result,) = read(text + b"@cut[")
    reasons = " ".join(result.quality.warnings)
    numbers = {int(each.split(":")[0].removeprefix("line ")) for each in result.quality.warnings if "line" in each}
    lines = text.split(b"\n")
    assert lines.index(b"  [iptables] Count: 1# us, Avg: 40 us, Max: 123 us") + 1 in numbers
    assert "the last line has no end" in reasons
    assert result.probes[0].count == 13


@pytest.mark.slow
def test_cut_anywhere() -> None:
    """Whatever is left is read, and no figure differs from what the whole log says at that place."""
    whole = {1, 3, 13, 40, 123, 0, 7, 43, 250, 2, 528, 307, 528 / 13, 307 / 7}
    (full,) = read(REPORT)
    for end in range(0, len(REPORT), 5):
        try:
            results = read(REPORT[:end])
        except LogError:
            continue
        assert len(results) == 1
        for probe in results[0].probes:
            assert {probe.count, probe.min, probe.max, probe.mean, probe.sum} - {None} <= whole, end
        for name, each in results[0].maps.items():
            if each.kind == "int":
                assert each == full.maps[name], end
    assert read(REPORT[: REPORT.index(b"  FINAL")])[0].run.cut_short


def test_a_histogram_cut_short_does_not_replace_the_whole_one() -> None:
    dump = REPORT.rindex(b"@ipt_latency_us:")
    (result,) = read(REPORT[: REPORT.index(b"[16, 32)", dump)])
    assert result.maps["ipt_latency_us"] == read(REPORT)[0].maps["ipt_latency_us"]
    assert any("ends inside @ipt_latency_us" in each for each in result.quality.warnings)


def test_figures_that_contradict_each_other_are_named() -> None:
    (result,) = read(REPORT.replace(b"@ipt_sum: 528", b"@ipt_sum: 928"))
    assert result.probes[0].mean == 40
    assert any("the sum 928 over 13 calls is not the average 40" in each for each in result.quality.warnings)
    (result,) = read(REPORT.replace(b"Total invocations: 13", b"Total invocations: 14"))
    assert any("the histogram holds 13 of 14 calls" in each for each in result.quality.warnings)


def write_lines(count: int) -> bytes:
    dice, lines = random.Random(4), []
    for at in range(count):
        time = f"{at // 3600 % 24:02}:{at // 60 % 60:02}:{at % 60:02}"
        lines += [
            f"{time} SLOW {dice.choice(['ipt', 'nf'])}ables: {dice.randrange(9999)} us (tid={at})"
        ] * dice.randrange(3)
        lines += ["", f"{time} Statistics:", f"  [iptables] Count: {at}, Min: 3 us, Avg: 40 us, Max: {at // 9} us"]
    return "\n".join(lines).replace("ipt" + "ables", "iptables").replace("nfables", "nftables").encode() + b"\n"


def read_singly(text: bytes) -> Collector:
    """Add the recurring lines of a text one by one."""
    collector = Collector()
    for raw in text.split(b"\n"):
        if line := collector.read(raw):
            assert collector.add(line)
    return collector


def test_pieces_and_lines_give_the_same() -> None:
    """Lines that are added all at once have the sums of lines that are added one by one."""
    text = write_lines(20_000)
    collector = read_singly(text)
    (result,) = read(b"Attaching 1 probe...\n" + text)
    assert result.slow == {name: summary.freeze() for name, summary in collector.slow.items()}
    assert result.intervals == {name: summary.freeze() for name, summary in collector.intervals.items()}


def test_most_lines_are_added_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    single, read_line = list[bytes](), LogReader._read_line

    def note_line(self: LogReader, raw: bytes, *, ended: bool) -> Any:
        single.append(raw)
        return read_line(self, raw, ended=ended)

    monkeypatch.setattr(LogReader, "_read_line", note_line)
    text = re.sub(rb"Max: \d+", b"Max: 123", write_lines(20_000))
    read(b"Attaching 1 probe...\n" + text)
    assert 0 < len(single) < text.count(b"\n") / 10


KINDS = {
    "lost events": lambda text: text.replace(b"0\n\n", b"0\nLost 5 events\n\n"),
    "blocks without a packet": lambda text: re.sub(
        rb"(:\d[36] Statistics:\n).*", rb"\1  No packets traced yet. Is there any traffic?", text
    ),
    "no blank lines": lambda text: text.replace(b"\n\n", b"\n"),
    "colours": lambda text: re.sub(rb"(?m)^(\d\S+)", b"\x1b[32m\\1\x1b[0m", text),
    "foreign lines": lambda text: text.replace(b":00 Statistics", b":00 Stat###").replace(
        b":30 Stat", b":30:\n:: Stat"
    ),
    "CRLF": lambda text: text.replace(b"\n", b"\r\n"),
    "a report in the middle": lambda text: text.replace(b"\n01:00:00 Statistics:", REPORT + b"\n01:00:00 Statistics:"),
    "slow lines after the report": lambda text: REPORT + re.sub(rb"(?m)^(  \[|.*Stat).*\n", b"", text),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_whole_pieces_give_the_result_of_single_lines(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"Attaching 1 probe...\n" + KINDS[kind](write_lines(8000))
    all_at_once = read(text)
    monkeypatch.setattr(LogReader, "_read_recurring_lines", lambda *_: False)
    assert all_at_once == read(text)


RECURRING = st.one_of(
    st.builds(
        "{:%H:%M:%S} SLOW {}: {} us (tid={})".format,
        st.times(),
        st.sampled_from(["iptables", "nftables", "ipvs"]),
        st.integers(0, 20_000),
        st.integers(0, 9),
    ),
    st.builds("{:%H:%M:%S} Statistics:".format, st.times()),
    st.builds(
        "  [{}] Count: {}, Min: 3 us, Avg: 40 us, Max: {} us".format,
        st.sampled_from(["iptables", "nftables", "ipvs"]),
        st.integers(0, 10**6),
        st.integers(0, 20_000),
    ),
    st.builds("{:%H:%M:%S}   | {:<12} | {:<6} us  | {:<6} us".format, st.times(), *[st.integers(1, 10**6)] * 3),
    st.builds("{:%H:%M:%S}   | {:>9} | {} us | {} us".format, st.times(), *[st.integers(1, 10**6)] * 3),
    st.sampled_from(
        [
            *("12:00:00   | 0            | -          | -", "  No packets traced yet. Is there any traffic?"),
            *("", "Lost 5 events", "oops", "@a: 1", "@b[", "\x1b[32m12:00:00\x1b[0m Statistics:", "  FINAL REPORT"),
            *("@s: word", "\n\n@s: word", "@h:", "@h[1]:", "[4, 8)   3 |@@ |"),
        ]
    ),
)


EMPTY = "00:00:00 Statistics:\n  No packets traced yet. Is there any traffic?"
BLOCK = "  [iptables] Count: 1, Min: 0 us, Avg: 0 us, Max: %d us"


@pytest.mark.slow
@example([["@b[", "@a: 1"], [EMPTY] * 20], False).via("text in a key that never ends")
@example([["\n\n@s: word"], [EMPTY] * 20], True).via("text that may be a string's")
@example([["@h:", "[4, 8)   3 |@@ |"], ["", EMPTY] * 20, ["@h:", "[4, 8)   3 |@@ |"]], True).via("a histogram's end")
@example([[BLOCK % 0] * 20, ["oops"], [BLOCK % 1] * 20 + [BLOCK % 0] * 20], True).via("runs without their heads")
@settings(max_examples=200)
@given(st.lists(st.lists(RECURRING, max_size=4).map(lambda lines: lines * 20), max_size=9), st.booleans())
def test_whatever_recurs_is_read_alike_as_pieces_and_as_lines(groups: list[list[str]], ended: bool) -> None:
    text = "\n".join(["Attaching 1 probe...", *(line for lines in groups for line in lines), "" if ended else "x"])
    all_at_once = read(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LogReader, "_read_recurring_lines", lambda *_: False)
        assert all_at_once == read(text.encode())


@pytest.mark.parametrize("row", [b"%-12d", b"%d"], ids=["columns", "unaligned"])
@pytest.mark.parametrize("number", [b"", b"1" * 20], ids=["gone", "too long"])
@pytest.mark.parametrize("place", [b"1", b"3"], ids=["packets", "maximum"])
def test_rows_whose_numbers_are_gone_or_too_long_are_damage(row: bytes, number: bytes, place: bytes) -> None:
    plain = b"12:00:00   | " + row % 1 + b" | 2      us  | 3      us\n"
    damaged = plain.replace(b"| " + place, b"| " + (number or b" "))
    (result,) = read(plain * 99 + damaged + plain * 98 + plain.replace(b"1 ", b"10 "))
    assert (result.intervals[""].total, result.intervals[""].lines) == (207, 198)
    assert any(each.startswith("line 100: unreadable") for each in result.quality.warnings)


def test_a_block_without_a_packet_has_measured_nothing() -> None:
    block = b"  [iptables] Count: %d, Min: 7 us, Avg: 7 us, Max: %d us\n"
    (result,) = read((block % (0, 7)) * 20 + (block % (1, 3)) * 20)
    blocks = result.intervals["iptables"]
    assert (blocks.first.max, blocks.first.min, blocks.worst[0].max, blocks.lines) == (None, None, 3, 40)


def test_a_saved_result_is_no_log_and_the_remedy_says_for_what_it_is() -> None:
    with pytest.raises(LogError, match="holds no run among its 2 lines") as caught:
        list(LogReader("a.json").read(io.BytesIO(b'{"schema": "kproxylat/1",\n"results": []}\n')))
    assert "for compare and plot" in caught.value.remedy


def test_a_maximum_that_rises_and_falls_back_is_among_the_worst() -> None:
    block = "\n12:00:0{} Statistics:\n  [iptables] Count: {}, Min: 3 us, Avg: 40 us, Max: {} us\n"
    blocks = [block.format(each % 9, each, 9999 if each == 5000 else 123) for each in range(1, 9000)]
    (result,) = read(("Attaching 1 probe...\n" + "".join(blocks)).encode())
    assert [each.max for each in result.intervals["iptables"].worst] == [9999, *[123] * 9]


def test_rows_as_pieces_and_lines() -> None:
    dice = random.Random(5)
    rows = b"".join(
        b"12:00:%02d   | %-12d | %-6d us  | %-6d us\n" % (at % 60, dice.randrange(9), at % 90, dice.randrange(9999))
        for at in range(20_000)
    )
    (result,) = read(b"TIME       | PACKETS/5s   |\n" + rows)
    assert result.intervals[""] == read_singly(rows).intervals[""].freeze()
    assert result.intervals[""].lines == 20_000


def test_a_foreign_line_among_thousands_costs_only_itself() -> None:
    text = write_lines(5000).replace(b"00:40:00 Statistics:", b"00:40:00 Stat###", 1)
    (result,) = read(text)
    assert any("Stat###" in each for each in result.quality.warnings)
    assert result.intervals["iptables"].lines == 5000


def test_gzip_also_a_broken_one(tmp_path: Path) -> None:
    path = tmp_path / "a.log.gz"
    path.write_bytes(gzip.compress(REPORT))
    assert strip(next(iter(read_log(str(path))))) == strip(read(REPORT)[0])
    path.write_bytes(gzip.compress(REPORT * 50)[:-20])
    assert list(read_log(str(path)))


@pytest.mark.parametrize("spoil", [lambda data: data[: len(data) // 2], lambda data: data[:-8] + b"XXXX" + data[-4:]])
def test_what_a_damaged_gzip_holds_is_read(spoil: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.log.gz"
    path.write_bytes(spoil(gzip.compress(REPORT * 60)))
    found = list(read_log(str(path)))
    assert len(found) > 20
    assert any("cannot be read to its end" in each for each in found[-1].quality.warnings)
    path.write_bytes(gzip.compress(REPORT)[:9])
    with pytest.raises(LogError, match="cannot be read to its end"):
        list(read_log(str(path)))
    path.write_bytes(gzip.compress(REPORT) + b"\0\0garbage")
    assert strip(next(iter(read_log(str(path))))) == strip(read(REPORT)[0])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_read(encoding: str) -> None:
    (expected,) = read(HEADER + REPORT + b"@city[\xc3\xbc]: 1\n")
    for text in (HEADER + REPORT, (HEADER + REPORT).replace(b"\n", b"\r\n")):
        encoded = (text.decode() + "@city[\u00fc]: 1\n").encode(encoding)
        (result,) = read(encoded if encoding != "utf-16-be" else b"\xfe\xff" + encoded)
        assert strip(result) == strip(expected)
    (result,) = read(REPORT.decode().encode("utf-16-be"))
    assert strip(result) == strip(read(REPORT)[0])


@pytest.mark.parametrize(
    ("content", "reason", "remedy"),
    [
        (b"\xfd7zXZ\0\0\4", "is compressed by xz", "xz -dc FILE | kproxylat parse -"),
        (b"\x28\xb5\x2f\xfd\4", "is compressed by zstd", "zstd -dc FILE | kproxylat parse -"),
        (b"BZh91AY", "is compressed by bzip2", "bzip2 -dc FILE | kproxylat parse -"),
        (REPORT.replace(b"\n", b"\r"), "its lines end with CR alone", r"tr '\r' '\n' < FILE | kproxylat parse -"),
        (b"     usecs     : count     distribution\n  0 -> 1  : 9   |****|\n", "a histogram of bcc's tools", ""),
    ],
)
def test_errors_name_the_cause(content: bytes, reason: str, remedy: str, tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(content)
    with pytest.raises(LogError, match=reason) as caught:
        list(read_log(str(path)))
    assert remedy in caught.value.remedy


def test_a_line_that_is_too_long_is_cut_and_named() -> None:
    text = b"@a: 1\nx" + b"y" * (3 << 20) + b"\n@b[\n" + b"@c: 2\n\xff\n"
    (result,) = read(text)
    assert set(result.maps) == {"a", "c"}
    numbers = [each.split(":")[0] for each in result.quality.warnings]
    assert numbers == ["line 2", "line 5", "line 5"], "too long; bytes that are no text; a key that does not end"


def test_a_banner_and_what_it_announces_are_one_run() -> None:
    banner = b"  Kube-Proxy Data Plane Latency Tracer (eBPF)\n"
    announced = REPORT if b"Tracing iptables" in REPORT else b"Tracing iptables and nftables...\n" + REPORT
    start = b"Attaching 5 probes...\n" + banner + b"Tracing iptables and nftables... Hit Ctrl-C to end.\n"
    assert len(read(start + announced[announced.index(b"\n\n") :])) == 1
    (killed,) = read(start)
    assert killed.source
    assert (killed.source.dialect, killed.run.cut_short) == ("report", True)
    first, second = read(start + b"12:00:00 SLOW iptables: 160 us (tid=3)\n" + start)
    assert (first.slow["iptables"].lines, second.slow) == (1, {})


def test_a_header_without_a_run_is_named() -> None:
    (result,) = read(HEADER + HEADER + REPORT)
    assert result.probes == read(REPORT)[0].probes
    assert any("above is the header of a run" in each for each in result.quality.warnings)


def test_a_slow_line_in_the_middle_of_another_is_read() -> None:
    (result,) = read(REPORT.replace(b"Avg latency: 40 us\n", b"Avg laten12:00:10 SLOW iptables: 160 us (tid=3)\n", 1))
    assert result.slow["iptables"].worst[0].max == 160
    assert any("'Avg laten' before a slow line" in each for each in result.quality.warnings)


def test_a_row_of_the_experiment_needs_its_header_and_may_be_quoted() -> None:
    row = b'100,iptables,12,104,45.5,156,32,64,128,"a,b.log"\n'
    (result,) = read(b"@a: 1\n" + row + b"@b: 2\n")
    assert result.source
    assert (result.source.dialect, set(result.maps)) == ("dump", {"a", "b"})
    header = (
        b"ServiceCount,ProxyMode,WorkerPosition,TotalRules,MeanLatency_us,MaxLatency_us,P50_us,P95_us,P99_us,LogFile"
    )
    (result,) = read(header + b"\n" + row)
    assert (result.run.log, result.probes[0].mean, result.quality.warnings) == ("a,b.log", 45.5, ())
    (result,) = read(header + b"\n" + row.replace(b",64,", b",58.667,"))
    percentile = result.probes[0].percentiles["95"]
    assert (percentile.estimate, percentile.lo, percentile.hi) == (58.667, None, None)


def test_ipvs_without_our_header_and_fields_run_together() -> None:
    (result,) = read(REPORT.replace(b"--- IPTABLES MODE", b"--- IPVS MODE"))
    assert [(probe.count, probe.max) for probe in result.probes if probe.engine == "ipvs"] == [(13, 123)]
    header = b"====Timestamp: 2026-01-31 12:34:56\nDuration: 30sPacket rate: 10000 pps\n"
    (result,) = read(header + REPORT)
    assert result.traffic
    assert (result.run.started, result.run.duration_s, result.traffic.rate_pps) == ("2026-01-31T12:34:56", 30, 10000)


def test_intervals_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(REPORT)
    lines = [(kind, engine, sample.time, sample.max) for sample, kind, engine, _ in read_intervals(str(path))]
    assert (lines[0][:2], lines[0][3]) == (("slow", "iptables"), 123)
    assert [each[0] for each in lines].count("block") == 4
    path.write_bytes(KINDS["colours"](REPORT))
    assert len(list(read_intervals(str(path)))) == len(lines)
    path.write_bytes(b"@a: 1\n")
    with pytest.raises(LogError, match="holds no interval and no slow line"):
        list(read_intervals(str(path)))


def kproxylat(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "kproxylat", *arguments], input=stdin, capture_output=True, check=False
    )


def test_command(tmp_path: Path) -> None:
    (tmp_path / "good.log").write_bytes(REPORT)
    (tmp_path / "empty.log").write_bytes(b"")
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "letter.txt").write_bytes(b"Dear reader,\nno run here.\n")
    bad = ["empty.log", "binary", "letter.txt", "missing.log", "."]
    names = [str(tmp_path / name) for name in [*bad, "good.log"]]
    done = kproxylat("parse", "--format", "json", *names, "-", stdin=SUMMARY)
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["schema"] == "kproxylat/1"
    assert [each["source"]["dialect"] for each in document["results"]] == ["report", "summary"]
    said = done.stderr.decode().splitlines()
    for name in bad:
        assert len([line for line in said if line.startswith(f"kproxylat: {tmp_path / name}: ")]) == 1, said
    assert "Traceback" not in done.stderr.decode()


@pytest.mark.slow
def test_command_usage() -> None:
    for wrong in (
        ["--format", "xml"],
        ["--percentiles", "101"],
        ["--percentiles", "x"],
        ["--prints", "some"],
        ["--prints", "all", "--intervals"],
        ["--intervals", "--format", "table"],
        ["--intervals", "--format", "openmetrics"],
        ["--prints", "all", "--format", "csv"],
        ["--csv-dialect", "experiment", "--format", "json"],
    ):
        done = kproxylat("parse", *wrong, "-")
        assert (done.returncode, done.stdout) == (2, b"")
        assert len(done.stderr.splitlines()) == 1


def test_command_streams() -> None:
    done = kproxylat("parse", "--prints", "all", "-", stdin=b"@n: 1\n-- text\n@n: 2\n")
    assert [json.loads(line)["entries"][0]["value"] for line in done.stdout.splitlines()] == [1, 2]
    done = kproxylat("parse", "--intervals", "--format", "csv", "-", stdin=REPORT)
    assert done.stdout.splitlines()[0] == b"kind,engine,time,count,min,mean,max,tid,file,index"
    assert len(done.stdout.splitlines()) == 1 + 3 + 4
    done = kproxylat("parse", "--intervals", "-", stdin=REPORT + SUMMARY)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["index"] for row in rows] == [0] * 7 + [1] * (len(rows) - 7)
    assert {row["file"] for row in rows} == {"-"}
    assert {row["kind"] for row in rows[7:]} == {"row"}


def test_names_and_keys_cannot_control_the_terminal(tmp_path: Path) -> None:
    name = tmp_path / "a\x1b[31m\n.log"
    name.write_bytes(b"@h[\x1b[31mx]:\n[1]                    2 |@@@@|\n\n")
    done = kproxylat("parse", str(name), str(tmp_path / "\x1b\n"))
    assert done.returncode == 1
    assert b"\x1b" not in done.stdout + done.stderr
    assert rb"a\x1b[31m\n.log (run 1, dump)" in done.stdout.splitlines()[0]
    assert len(done.stderr.splitlines()) == 1


def test_closed_streams_and_an_empty_name_are_named() -> None:
    close = "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, '-m', 'kproxylat', 'parse', '-'])"
    done = subprocess.run([sys.executable, "-c", close], input=REPORT, capture_output=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, b"kproxylat: standard output is closed")
    done = kproxylat("parse", "", "-", stdin=REPORT)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, b"kproxylat: a file's name is empty")
    assert b"ipt_do_table" in done.stdout


def test_histograms_of_our_own_logs_have_the_saved_results_percentiles() -> None:
    text = b"kproxylat: 1, iptables/nft, tsc\nAttaching 1 probe...\n\n\n@lat:\n[2, 4)                 2 |@@@@|\n\n"
    (entry,) = read(text)[0].maps["lat"].entries
    assert entry.percentiles
    assert entry.percentiles["50"] == Percentile(3, 2, 4)


def test_lines_of_ours_with_every_time_are_whole() -> None:
    """A run of 300,000 packets has a record of 1.5 MB."""
    own, other = b"kproxylat record: " + b"x" * (3 << 20), b"y" * (3 << 20)
    lines = b"".join(read_pieces(io.BytesIO(own + b"\n" + other + b"\n"), [])).split(b"\n")
    assert lines[0] == own
    assert len(lines[1]) < 2 << 20
