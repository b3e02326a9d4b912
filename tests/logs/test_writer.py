"""Run logs: the old form, which the old greps read; never a log overwritten; a disk that refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxylat.errors import MachineError
from kproxylat.logs import writer
from kproxylat.logs.reader import read_log
from kproxylat.logs.record import TIMES_MARK
from kproxylat.logs.writer import RunLog, log_header, render_report
from kproxylat.modes import find_mode
from kproxylat.report.export import EXPORTERS
from kproxylat.results import Bounded, Overhead, Probe, Result, Run, Target
from kproxylat.system.files import make_directory
from kproxylat.trace.dump import parse_dump
from kproxylat.trace.probes import build_path, build_probes, split_maps

STARTED = datetime(2025, 3, 4, 5, 6, 7)
LEGACY, NFT_BACKEND = find_mode("iptables", "legacy"), find_mode("iptables", "nft")
NFTABLES = find_mode("nftables", None)
FULL = Path("/dev/full")
VALUES = {700: 10, 12_345: 1000, 45_678: 8000, 45_999: 500, 99_999: 3, 100_000: 7, 156_000: 480}


def probe_of(values: dict[int, int], unit: str = "ns") -> Probe:
    count, total = sum(values.values()), sum(value * each for value, each in values.items())
    shown = {str(value): each for value, each in values.items()}
    low, high = min(values), max(values)
    return Probe(
        "ipt_do_table",
        "nat",
        None,
        "PREROUTING",
        True,
        count,
        low,
        high,
        total / count,
        None,
        total,
        unit,
        values=shown,
    )


def rows(report: str, name: str) -> list[tuple[str, int]]:
    """Return a histogram's rows, label and count, of the map called ``name``."""
    body = report.split(f"@{name}:\n")[1].split("\n\n")[0]
    return [(row[1], int(row[2])) for row in re.finditer(r"^(\[.*?[\])]) +(\d+) \|[@ ]{52}\|$", body, re.M)]


def test_the_report_has_the_old_shape() -> None:
    report = render_report(LEGACY, probe_of(VALUES))
    assert report.splitlines() == [
        "",
        "=" * 52,
        "  FINAL REPORT",
        "=" * 52,
        "",
        "--- IPTABLES MODE ---",
        "Total invocations: 10000",
        "Min latency: 1 us",
        "Avg latency: 48 us",
        "Max latency: 156 us",
        "",
        "Latency distribution (logarithmic buckets):",
        "@ipt_latency_us:",
        f"[0]                    10 |{'':52}|",
        f"[8, 16)              1000 |{'@' * 6:52}|",
        f"[32, 64)             8500 |{'@' * 52}|",
        f"[64, 128)              10 |{'':52}|",
        f"[128, 256)            480 |{'@' * 2:52}|",
        "",
        "Latency distribution (linear 0-100us, 5us buckets):",
        "@ipt_latency_linear:",
        f"[0, 5)                 10 |{'':52}|",
        f"[10, 15)             1000 |{'@' * 6:52}|",
        f"[45, 50)             8500 |{'@' * 52}|",
        f"[95, 100)               3 |{'':52}|",
        f"[100, ...)            487 |{'@' * 2:52}|",
    ]


@pytest.mark.parametrize(
    ("mode", "title", "prefix"),
    [(LEGACY, "IPTABLES", "ipt"), (NFT_BACKEND, "IPTABLES", "ipt"), (NFTABLES, "NFTABLES", "nft")],
)
def test_the_section_is_the_modes(mode: writer.Mode, title: str, prefix: str) -> None:
    report = render_report(mode, probe_of(VALUES))
    assert f"\n--- {title} MODE ---\n" in report
    assert f"\n@{prefix}_latency_us:\n" in report
    assert f"\n@{prefix}_latency_linear:\n" in report


def test_instructions_stay_instructions() -> None:
    report = render_report(LEGACY, probe_of({2000: 5, 4321: 1}, "instructions"))
    assert "Max latency: 4321 instructions\n" in report
    assert rows(report, "ipt_latency_instructions") == [("[1K, 2K)", 5), ("[4K, 8K)", 1)]
    assert "linear" not in report
    assert " us" not in report


@pytest.mark.parametrize("probe", [None, Probe("e", None, None, None, True, 0, None, None, None, None, 0, "ns")])
def test_nothing_observed(probe: Probe | None) -> None:
    assert render_report(LEGACY, probe).endswith("--- IPTABLES MODE ---\nNo iptables traffic observed.\n")
    assert render_report(NFTABLES, probe).endswith("--- NFTABLES MODE ---\nNo nftables traffic observed.\n")


def test_a_probe_without_values_has_figures_alone() -> None:
    probe = Probe("e", None, None, None, True, 3, 1499, 2501, 2000.0, None, 6000, "ns")
    report = render_report(LEGACY, probe)
    assert report.endswith("Total invocations: 3\nMin latency: 1 us\nAvg latency: 2 us\nMax latency: 3 us\n")


@settings(max_examples=60)
@given(st.dictionaries(st.integers(0, 1 << 34), st.integers(1, 10**6), min_size=1, max_size=20))
def test_rows_hold_every_call_and_figures_are_integers(values: dict[int, int]) -> None:
    report = render_report(LEGACY, probe_of(values))
    for name in ("ipt_latency_us", "ipt_latency_linear"):
        assert sum(count for _, count in rows(report, name)) == sum(values.values())
    assert len(re.findall(r"^(?:Min|Avg|Max) latency: \d+ us$", report, re.M)) == 3


@settings(max_examples=60)
@given(st.dictionaries(st.integers(0, 10**6), st.integers(1, 100), min_size=1, max_size=20))
def test_rows_stand_where_their_values_are(values: dict[int, int]) -> None:
    expected: Counter[str] = Counter()
    for value, count in values.items():
        low = value // 1000 // 5 * 5
        expected[f"[{low}, {low + 5})" if low < 100 else "[100, ...)"] += count
    assert dict(rows(render_report(LEGACY, probe_of(values)), "ipt_latency_linear")) == expected


def shell(command: str, cwd: Path) -> str:
    return subprocess.run(["bash", "-c", command], cwd=cwd, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a directory with logs/ebpf/ and one whole log of a run in it."""
    monkeypatch.setattr(writer, "find_version", lambda: ("v0.17.0", (0, 17)))
    directory = tmp_path / "logs" / "ebpf"
    log = RunLog(directory, "iptables", STARTED)
    log.write(log_header(LEGACY, {"Kube-proxy mode": "iptables", "Worker ClusterIP": "10.96.100.50"}, STARTED))
    log.write("Attaching 3 probes...\n\n\n@n[-98760, 700]: 3\n@table[-98760]: nat\n")
    log.write(render_report(LEGACY, probe_of(VALUES)))
    log.close()
    return tmp_path


def test_the_old_readmes_commands_read_it(logs: Path) -> None:
    """The commands stand here as the old README has them."""
    loop_body = """
  LOG_FILE=$(ls -t logs/ebpf/*.log | head -1)
  AVG_LATENCY=$(grep "Avg latency:" $LOG_FILE | awk '{print $3}')
  echo "Result: $count services → $AVG_LATENCY µs"
"""
    assert shell(f"count=100; {loop_body}", logs) == "Result: 100 services → 48 µs\n"
    shell("grep \"Avg latency:\" logs/ebpf/*.log | awk '{print $3}' > latencies.csv", logs)
    assert (logs / "latencies.csv").read_text() == "48\n"
    for name, value in {"Min": 1, "Avg": 48, "Max": 156}.items():
        assert shell(f"grep \"{name} latency:\" logs/ebpf/*.log | awk '{{print $3}}'", logs) == f"{value}\n"
    assert shell("grep 'Total invocations:' logs/ebpf/*.log | awk '{print $3}'", logs) == "10000\n"


def test_the_header_is_the_old_one_with_ours_after_it(logs: Path) -> None:
    lines = (logs / "logs/ebpf/ebpf_iptables_20250304_050607.log").read_text().splitlines()
    assert lines[:3] == ["=" * 44, "  eBPF Kube-Proxy Latency Experiment", "=" * 44]
    assert lines[3:5] == ["Timestamp: 2025-03-04 05:06:07", "Kube-proxy mode: iptables"]
    assert lines[5] == "Worker ClusterIP: 10.96.100.50"
    assert [line.partition(":")[0] for line in lines[6:10]] == ["Clock", "Kernel", "bpftrace", "kproxylat"]
    assert lines[10] == "=" * 44


def test_our_own_reader_reads_it(logs: Path) -> None:
    (result,) = read_log(str(logs / "logs/ebpf/ebpf_iptables_20250304_050607.log"))
    assert result.source
    assert (result.source.dialect, result.run.mode, result.run.backend) == ("kproxylat", "iptables", "legacy")


DUMP = """Attaching 3 probes...


@chain[-936]: nat-prerouting
@chain[-944]: filter-forward
@mine[one]: 7
@n[-942, 800]: 3
@n[-936, 2256]: 2
@n[-936, 2301]: 1
@envelope[2, 4000]: 3
@envelope[0, 9000]: 3


@table[-936]: kube-proxy
@table[-944]: kube-proxy
"""
OVERHEAD = Overhead("ns", "PREROUTING", 3, 2, Bounded(260.5, 250.0, 270.0), Bounded(1500, 1490, 1510), 574)


@pytest.mark.parametrize("end", ["@table[-936]: kube-proxy\n", "@mine[one]: 7\n", ""])
@pytest.mark.parametrize("unit", ["ns", "instructions"])
@pytest.mark.parametrize("mode", [NFTABLES, NFTABLES.from_node()], ids=["pod", "node"])
def test_a_log_read_again_is_the_result_that_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: writer.Mode, unit: str, end: str
) -> None:
    """Whatever map bpftrace printed last: its text ends where the report begins."""
    monkeypatch.setattr(writer, "find_version", lambda: ("v0.17.0", (0, 17)))
    monkeypatch.setattr(writer.kernel, "detect_clock", lambda: (unit, True))
    dump = DUMP.replace(end, "") + end
    if mode.origin == "node":
        dump = dump.replace("nat-prerouting", "nat-output").replace("@n[-936,", "@n[-933,")
    own, others = split_maps(parse_dump(dump))
    probes = build_probes(own, mode, unit)
    result = Result(
        Run(kproxylat="0.1.0", mode="nftables", backend="nft", origin=mode.origin, clock=unit),
        Target("10.96.100.50", 50051, "udp"),
        probes,
        build_path(probes, unit),
        maps=others,
        overhead=OVERHEAD,
    )
    assert result.lookup
    assert result.lookup.count == 3
    assert [each.hook for each in probes if each.envelope] == ["PREROUTING", "FORWARD"]
    log = RunLog(tmp_path, "nftables", STARTED)
    log.write(log_header(mode, {"Kube-proxy mode": "nftables"}, STARTED) + dump)
    log.write(render_report(mode, result.lookup))
    for line in dump.splitlines(keepends=True):
        log.write(f"overhead, script: {line.replace('3', '4').replace('@', '')}")
    log.save(result)
    (again,) = read_log(str(log.path))
    assert replace(again, source=None) == result


def test_the_senders_line_after_the_report_is_no_part_of_its_histogram(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "find_version", lambda: ("v0.17.0", (0, 17)))
    monkeypatch.setattr(writer.kernel, "detect_clock", lambda: ("ns", False))
    own, _ = split_maps(parse_dump(DUMP))
    probes = build_probes(own, NFTABLES, "ns")
    run = Run(kproxylat="0.1.0", mode="nftables", backend="nft", origin="pod", clock="ns")
    result = Result(run, Target("10.96.100.50", 50051, "udp"), probes, build_path(probes, "ns"))
    log = RunLog(tmp_path, "nftables", STARTED)
    log.write(log_header(NFTABLES, {"Kube-proxy mode": "nftables"}, STARTED) + DUMP)
    log.write(render_report(NFTABLES, result.lookup))
    log.write(f'{TIMES_MARK}{{"sent": 3, "times": [{{"4000": 3}}]}}\n')
    log.save(result)
    (again,) = read_log(str(log.path))
    assert again.quality.warnings == ()
    assert again.probes == probes


@pytest.mark.parametrize(
    "record",
    ['"run": null', '"run": {"mode": 5}', '"run": {}, "quality": {"warnings": null}', '"run": ' + "[" * 100_000],
    ids=["null", "number", "nulls", "deep"],
)
def test_a_damaged_record_costs_only_itself(logs: Path, record: str) -> None:
    path = logs / "logs/ebpf/ebpf_iptables_20250304_050607.log"
    path.write_text(
        path.read_text() + f'kproxylat record: {{"schema": "kproxylat/1", {record}}}\n@ipt_latency_by_cpu[3]: 7\n'
    )
    (result,) = read_log(str(path))
    assert any("record cannot be read" in each for each in result.quality.warnings)
    assert (result.run.mode, list(result.maps)) == ("iptables", ["ipt_latency_by_cpu"])
    for export in EXPORTERS.values():
        assert "".join(export([result]))


def test_no_log_is_ever_overwritten(tmp_path: Path) -> None:
    written = []
    for text in ("first", "second", "third"):
        log = RunLog(tmp_path, "nftables", STARTED)
        log.write(text)
        log.close()
        written.append(log.path)
    assert re.fullmatch(r"ebpf_nftables_\d{8}_\d{6}\.log", written[0].name)
    assert [each.name for each in written] == [f"ebpf_nftables_20250304_050607{end}.log" for end in ("", "_1", "_2")]
    assert [each.read_text() for each in written] == ["first", "second", "third"]
    named = RunLog(tmp_path, "iptables", STARTED, "legacy", "1000services")
    named.close()
    assert named.path.name == "ebpf_iptables_20250304_050607_legacy_1000services.log"


def test_the_result_lies_beside_the_log(tmp_path: Path) -> None:
    log = RunLog(tmp_path, "iptables", STARTED)
    log.save(Result(Run(mode="iptables")))
    assert json.loads((tmp_path / "ebpf_iptables_20250304_050607.json").read_text())["schema"] == "kproxylat/1"


def test_text_is_on_disk_before_the_log_is_closed(tmp_path: Path) -> None:
    log = RunLog(tmp_path, "iptables", STARTED)
    log.write("a line\n")
    assert log.path.read_text() == "a line\n"
    log.close()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file" / "sub", tmp_path / "file"):
        with pytest.raises(MachineError, match="cannot be made") as caught:
            RunLog(directory, "iptables", STARTED)
        assert "--output-dir" in caught.value.remedy


def test_a_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(MachineError, match="cannot be written to"):
        make_directory(tmp_path)


def test_a_log_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no log can be written"):
        RunLog(tmp_path, "a/b", STARTED)


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_a_full_disk_does_not_stop_the_run_and_is_told_at_its_end(tmp_path: Path) -> None:
    log = RunLog(tmp_path, "iptables", STARTED)
    log.close()
    log._file = FULL.open("w", buffering=1)
    log.write("a line\n")
    assert log.error is not None
    log.write("another\n")
    assert "No space left on device" in str(log.save(Result(Run())))
    log.close()


def test_files_belong_to_the_user_who_called_sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {}

    def own(path: Path | int, uid: int, gid: int, follow_symlinks: bool) -> None:
        assert follow_symlinks == isinstance(path, int), "a path's symbolic link is not followed"
        real = path if isinstance(path, Path) else Path(f"/proc/self/fd/{path}").readlink()
        owners[real.name] = uid, gid

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", own)
    monkeypatch.setenv("SUDO_UID", "1234")
    monkeypatch.setenv("SUDO_GID", "99")
    log = RunLog(tmp_path / "logs" / "ebpf", "iptables", STARTED)
    log.save(Result(Run()))
    stem = "ebpf_iptables_20250304_050607"
    assert owners == dict.fromkeys(("logs", "ebpf", f"{stem}.log", f"{stem}.json"), (1234, 99))
