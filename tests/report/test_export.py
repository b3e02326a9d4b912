"""Results -> json, csv, openmetrics, table; and back, where something reads it back."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as text_format

from kproxylat.analysis.alternatives import WhatIf
from kproxylat.analysis.compare import CompareError, compare
from kproxylat.analysis.series import build_series
from kproxylat.errors import LogError
from kproxylat.logs.reader import LogReader, read_log
from kproxylat.report.export import (
    EXPORTERS,
    export_csv,
    export_experiment,
    export_json,
    export_openmetrics,
    export_table,
)
from kproxylat.report.plot import plot
from kproxylat.report.run_table import draw_result
from kproxylat.report.tables import show_clocks, show_result, show_series, show_whatif
from kproxylat.results import (
    Accounting,
    Bounded,
    Bucket,
    Entry,
    FirstPacket,
    Histogram,
    Map,
    Overhead,
    Percentile,
    Probe,
    Result,
    Run,
    SendTime,
    ServiceCost,
    Target,
    Traffic,
)
from kproxylat.results_json import from_json, to_json
from kproxylat.trace.percentiles import add_percentiles
from kproxylat.trace.probes import exact_probe
from tests.support import TESTS

DUMPS = TESTS / "dumps"


def results() -> list[Result]:
    names = ("0.17.0--report_a_both.log", "0.27.1--report_b_basic.log", "0.23.2--scalars.txt", "0.27.1--tseries.txt")
    found = [each for name in names for each in read_log(str(DUMPS / name))]
    return [add_percentiles(each, (50, 95, 99)) for each in found]


def ours(count: int, unit: str = "ns") -> Result:
    """A result of our own measuring: the lookup of one target."""
    histogram = Histogram((Bucket(512, 1024, count), Bucket(1024, 2048, 1)))
    probe = Probe(
        *("nft_do_chain", "nat", "services", "PREROUTING", True, count + 1, 600, 1100, 700.0, 600),
        *(600 * count + 1100, unit, histogram),
    )
    return Result(Run(mode="nftables", backend="nft"), Target("10.96.0.10", 50051, "UDP"), (probe,))


def test_json() -> None:
    document = json.loads("".join(export_json(results())))
    assert document["schema"] == "kproxylat/1"
    assert len(document["results"]) == 4
    report, _, scalars, _ = document["results"]
    assert report["maps"]["ipt_sum"] == {"kind": "int", "entries": [{"key": [], "value": 528}]}
    assert report["maps"]["ipt_latency_us"]["entries"][0]["value"]["buckets"][0] == {"lo": 2, "hi": 4, "count": 1}
    assert scalars["maps"]["int_u64"]["entries"][0]["value"] == (1 << 64) - 1
    assert json.loads("".join(export_json([])))["results"] == []


def test_csv() -> None:
    rows = list(csv.DictReader(io.StringIO("".join(export_csv(results())))))
    assert [row["dialect"] for row in rows] == ["report", "summary", "dump", "dump"]
    assert (rows[0]["engine"], rows[0]["count"], rows[0]["sum"], rows[0]["probes"]) == (
        "ipt_do_table",
        "13",
        "528",
        "2",
    )
    assert float(rows[0]["p50_lo"]) <= float(rows[0]["p50"]) <= float(rows[0]["p50_hi"])
    assert json.loads(rows[2]["maps"])["str"] == {"kind": "str", "entries": [{"key": [], "value": "plain text"}]}


def test_the_csvs_header_depends_on_the_options_alone() -> None:
    both = [
        list(csv.reader(io.StringIO("".join(export_csv(each, (90,)))))) for each in (results(), results()[::-1], [])
    ]
    assert both[0][0] == both[1][0] == both[2][0]
    assert [each for each in both[0][0] if each.startswith("p9")] == ["p90", "p90_lo", "p90_hi"]


def test_experiment_csv_can_be_read_back() -> None:
    text = "".join(export_experiment(results()[:1]))
    assert text.splitlines()[0].startswith("ServiceCount,ProxyMode,WorkerPosition,TotalRules,MeanLatency_us,")
    (back,) = LogReader("x.csv").read(io.BytesIO(text.encode()))
    assert back.probes[0].max == 123
    assert back.source
    assert back.source.dialect == "experiment"


def test_estimates_that_are_powers_of_two_are_read_back_as_estimates() -> None:
    each = results()[0]
    found = {name: Percentile(value, value, value) for name, value in (("50", 8.0), ("95", 16.0), ("99", 16.0))}
    result = replace(each, probes=tuple(replace(probe, percentiles=found) for probe in each.probes))
    (back,) = LogReader("x.csv").read(io.BytesIO("".join(export_experiment([result])).encode()))
    assert {name: one.estimate for name, one in back.probes[0].percentiles.items()} == {"50": 8, "95": 16, "99": 16}


def test_openmetrics_is_accepted() -> None:
    text = "".join(export_openmetrics([*results(), ours(5), ours(7)]))
    families = {each.name: each for each in text_string_to_metric_families(text)}
    latency = families["kproxylat_latency_seconds"]
    assert latency.type == "histogram"
    labels = {
        "variant": "",
        "mode": "nftables",
        "backend": "nft",
        "services": "",
        "kernel": "",
        "bpftrace": "",
        "table": "nat",
        "chain": "services",
        "hook": "PREROUTING",
        "target": "10.96.0.10:50051/UDP",
    }
    samples = {
        (each.name.rpartition("_")[2], each.labels.get("le")): each.value
        for each in latency.samples
        if {name: value for name, value in each.labels.items() if name != "le"} == labels
    }
    assert samples["bucket", "1.024e-06"] == 12
    assert samples["bucket", "2.048e-06"] == samples["bucket", "+Inf"] == samples["count", None] == 14
    assert abs(samples["sum", None] - (600 * 12 + 2200) * 1e-9) < 1e-15
    assert families["kproxylat_map"].type == "gauge"
    assert [each.name for each in text_format(text)], "the textfile collector reads the older text format"


def test_every_map_is_in_every_export() -> None:
    for path in sorted(DUMPS.glob("*--*.*")):
        try:
            found = list(read_log(str(path)))
        except LogError:
            continue
        names = {name for each in found for name in each.maps}
        document = json.loads("".join(export_json(found)))
        assert {name for each in document["results"] for name in each["maps"]} == names
        rows = list(csv.DictReader(io.StringIO("".join(export_csv(found)))))
        assert {name for row in rows for name in json.loads(row["maps"])} == names
        families = list(text_string_to_metric_families("".join(export_openmetrics(found))))
        samples = [each for family in families for each in family.samples if "map" in each.labels]
        assert {each.labels["map"] for each in samples} == names
        table = "".join(export_table(found))
        assert all(name in table for name in names)


def test_percentiles_of_maps_are_in_json_csv_and_table() -> None:
    text = (
        b"@h[eth0]:\n[1]                    2 |@@@@|\n[2, 4)                 3 |@@@@@@|\n\n"
        b"@l:\n[0, 5)                 9 |@@@@@@|\n[5, ...)               1 |@|\n\n@n: 5\n"
    )
    (found,) = LogReader("x").read(io.BytesIO(text))
    result = add_percentiles(found, [50, 99])
    maps = json.loads("".join(export_json([result])))["results"][0]["maps"]
    (entry,) = maps["h"]["entries"]
    assert entry["percentiles"]["50"] == {"estimate": 2 + 2 * 0.5 / 3, "lo": 2, "hi": 4}
    assert maps["l"]["entries"][0]["percentiles"]["99"] == {"estimate": None, "lo": 0, "hi": None}
    assert maps["n"]["entries"] == [{"key": [], "value": 5}]
    assert json.loads(next(csv.DictReader(io.StringIO("".join(export_csv([result])))))["maps"]) == maps
    table = "".join(export_table([result]))
    assert "h[eth0]: count 5, p50 2.3 in [2, 4], p99 " in table
    assert from_json(to_json(result)).maps["h"].entries[0].percentiles == result.maps["h"].entries[0].percentiles


def test_openmetrics_has_histograms_stats_and_texts_of_maps() -> None:
    text = (
        "@hist[7]:\n[1]                    2 |@@@@|\n[2, 4)                 3 |@@@@@@|\n\n"
        "@name[x]: some\n@s: count 3, average 2, total 6\n\n"
    )
    (result,) = LogReader("x").read(io.BytesIO(b"Attaching 1 probe...\n" + text.encode()))
    families = text_string_to_metric_families("".join(export_openmetrics([result])))
    samples = {
        (each.name, each.labels["map"], *each.labels.values()): each.value for f in families for each in f.samples
    }
    shown = {(key[0], key[1], value) for key, value in samples.items()}
    assert ("kproxylat_map_events_bucket", "hist", 5) in shown
    assert {("kproxylat_map", "s", 3), ("kproxylat_map", "s", 2), ("kproxylat_map", "s", 6)} <= shown
    assert ("kproxylat_map_text", "name", 1) in shown
    assert {("kproxylat_map_entries", name, 1) for name in ("hist", "name", "s")} <= shown


@pytest.mark.parametrize(
    ("name", "one", "other"), [("services", 10, 100), ("kernel", "5.10", "6.12"), ("bpftrace", "0.17.0", "0.23.2")]
)
def test_openmetrics_does_not_add_up_runs_that_differ(name: str, one: Any, other: Any) -> None:
    values = {"n": Map("int", (Entry((), 3),))}
    different = [
        replace(result, run=replace(result.run, **{name: value}), maps=values)
        for result, value in ((around(), one), (around(), other), (around(), other))
    ]
    counts: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families("".join(export_openmetrics(different))):
        for sample in family.samples:
            if not sample.name.endswith(("_bucket", "_sum")):
                counts.setdefault(sample.name, {})[sample.labels[name]] = sample.value
    assert {frozenset(series) for series in counts.values()} == {frozenset({str(one), str(other)})}
    assert counts["kproxylat_latency_instructions_count"] == {str(one): 4, str(other): 8}
    assert counts["kproxylat_map"] == {str(one): 3, str(other): 3}


def test_equal_keys_of_a_map_make_one_series() -> None:
    key, rows = ("vfs_read",), [{"lo": 1, "hi": 2, "count": 3}]
    stats = ({"count": 1, "average": 2, "total": 2}, {"count": 3, "average": 4, "total": 14})
    maps = {
        "n": Map("int", tuple(Entry(key, value) for value in (1, 2, 3))),
        "h": Map("hist", tuple(Entry(key, {"count": 3, "buckets": rows}) for _ in range(2))),
        "s": Map("stats", tuple(Entry(key, value) for value in stats)),
        "t": Map("str", tuple(Entry(key, value) for value in ("a", "b", "a", "\ud800"))),
    }
    families = text_string_to_metric_families("".join(export_openmetrics([Result(Run(), maps=maps)])))
    samples = [sample for family in families for sample in family.samples if "key" in sample.labels]
    series = {(sample.labels["map"], sample.name, *sample.labels.values()): sample.value for sample in samples}
    assert len(series) == len(samples)
    assert {sample.value for sample in samples if sample.labels["map"] == "n"} == {6}
    assert {sample.value for sample in samples if sample.labels.get("le")} == {6}
    assert {sample.labels["part"]: sample.value for sample in samples if sample.labels["map"] == "s"} == {
        "count": 4, "average": 4, "total": 16,
    }  # fmt: skip
    assert [sample.labels["value"] for sample in samples if sample.labels["map"] == "t"] == ["a", "b", "\\ud800"]


def test_promtool_accepts_openmetrics() -> None:
    """Debian's promtool, which make setup installs with prometheus, finds no fault in any log's metrics."""
    logs = [path for path in sorted(DUMPS.glob("*--*.*")) if path.suffix != ".json"]
    parsed = [result for path in logs for result in read_results(path)]
    for each in ([around(), ours(5), ours(7, "instructions"), *results()], parsed, []):
        text = "".join(export_openmetrics(each))
        done = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        series = [re.sub(r" \S+$", "", line) for line in text.splitlines() if not line.startswith("#")]
        assert len(set(series)) == len(series), "promtool of 2023 does not find the same series twice"


def read_results(path: Path) -> list[Result]:
    """Read the results of a log; none if it holds no run."""
    try:
        return list(read_log(str(path)))
    except LogError:
        return []


def test_openmetrics_of_instructions_is_another_metric() -> None:
    text = "".join(export_openmetrics([ours(5, "instructions")]))
    names = [each.name for each in text_string_to_metric_families(text)]
    assert names == ["kproxylat_latency_instructions"]


def test_histograms_add_up_where_their_edges_meet() -> None:
    fine = replace(ours(1).probes[0], histogram=Histogram((Bucket(512, 600, 1), Bucket(600, 1024, 1))))
    text = "".join(export_openmetrics([ours(1), replace(ours(1), probes=(fine,))]))
    (family,) = text_string_to_metric_families(text)
    rows = {each.labels["le"]: each.value for each in family.samples if "le" in each.labels}
    assert rows == {"1.024e-06": 3, "2.048e-06": 4, "+Inf": 4}


def test_the_column_that_represents_the_calls() -> None:
    """On every clock of nanoseconds it is the median; emulated ones say so in the table's head."""
    probe = exact_probe("ipt_do_table", ("nat", None, "PREROUTING"), Counter({700: 2, 900: 3}), "ns", lookup=True)
    counted = replace(probe, unit="instructions")
    for run, shown in ((Run(emulated=True), probe), (Run(emulated=False), probe), (Run(emulated=True), counted)):
        text = "\n".join(draw_result(Result(run, probes=(shown,))))
        assert ("compare shapes, not values" in text) == (run.emulated and shown.unit == "ns")
        assert (" p50  " in text, " commonest " in text) == (shown.unit == "ns", shown.unit != "ns")


def measured_by_all_clocks(emulated: bool) -> Result:
    """A result that has every table with ns in its head."""
    probe = exact_probe("ipt_do_table", ("nat", None, "PREROUTING"), Counter({700: 20, 900: 30}), "ns", lookup=True)
    hook = replace(probe, engine="nf_hook_slow", lookup=False, envelope=True, share=0.5)
    exact = Bounded(5, 5, 5)
    first = FirstPacket(replace(probe, engine="connect"), 30, 50, 0, 0, 0)
    times = SendTime(replace(probe, engine="sendto"), None, None, exact, exact, 30, {"target": 50}, {"target": 0}, 1, 0)
    return Result(
        Run(mode="iptables", backend="legacy", clock="ns", emulated=emulated, services=7),
        *(None, (probe, hook)),
        services=(ServiceCost("default/web:http", "10.96.0.9:80/tcp", 3, 20, 700, 700, 900),),
        overhead=Overhead("ns", "FORWARD", 50, 2, exact, exact, 5), send_time=times, first_packet=first,
    )  # fmt: skip


@pytest.mark.parametrize("emulated", [True, False])
def test_every_head_with_ns_marks_emulated_ones(capsys: pytest.CaptureFixture[str], emulated: bool) -> None:
    result = measured_by_all_clocks(emulated)
    show_result(result)
    series = build_series([result, replace(result, run=replace(result.run, services=9))])
    show_series(series)
    show_clocks([series])
    show_whatif(WhatIf("file", "emulated ns" if emulated else "ns", 1, (), series, result.services, (result,)))
    out = capsys.readouterr().out
    heads = re.findall(r"^[^;]*?(?:, | )(?<!\d )((?:emulated )?ns(?:: compare shapes, not values|:)?)$", out, re.M)
    assert len(heads) == 11, heads
    assert {*heads} == ({"emulated ns: compare shapes, not values", "emulated ns:"} if emulated else {"ns"})
    assert ("not values\n                        a Service" in out) == emulated
    assert max(map(len, out.splitlines())) <= 80


def test_emulated_ns_and_real_ns_are_never_mixed(tmp_path: Path) -> None:
    both = [measured_by_all_clocks(True), measured_by_all_clocks(False)]
    rows = list(csv.DictReader(io.StringIO("".join(export_csv(both)))))
    assert [(row["clock"], row["unit"]) for row in rows] == [("emulated ns", "emulated ns"), ("ns", "ns")]
    families = [family.name for family in text_string_to_metric_families("".join(export_openmetrics(both)))]
    kinds = ("latency", "envelope", "send_time", "first_packet", "added")
    assert {f"kproxylat_{kind}_{unit}" for kind in kinds for unit in ("seconds", "emulated_seconds")} <= {*families}
    with pytest.raises(LogError, match="emulated ns and real ns"):
        list(export_experiment(both))
    assert len(list(export_experiment(both[:1] * 2))) == 3
    file = tmp_path / "both.json"
    file.write_text("".join(export_json(both)))
    with pytest.raises(LogError, match="emulated ns and real ns"):
        plot([str(file)], tmp_path / "both.svg")
    with pytest.raises(CompareError, match=r"clock \(emulated ns and ns\)"):
        compare(*write_each(tmp_path, both))
    [pair] = compare(*write_each(tmp_path, both), allowed=["clock"])
    assert (pair.unit, pair.emulated) == ("emulated ns against ns", False)


def write_each(directory: Path, results: list[Result]) -> list[str]:
    """Write a file for each result, and return their names."""
    files = [directory / f"{number}.json" for number in range(len(results))]
    for file, result in zip(files, results, strict=True):
        file.write_text("".join(export_json([result])))
    return [str(file) for file in files]


def test_table_fits_eighty_columns() -> None:
    strings = list(read_log(str(DUMPS / "0.27.1--string_values.txt")))  # one holds an escape sequence
    text = "".join(export_table([*results(), *strings, ours(5)]))
    lines = [line for line in text.splitlines() if not line.startswith(str(DUMPS))]
    assert max(map(len, lines)) <= 80
    assert re.search(r"^ipt_do_table, us$", text, re.M)
    assert re.search(r"^ - +\? +13 +3 µs +12\.5 µs +110 µs +118 µs +123 µs$", text, re.M)
    percentiles = "p50 12.5 µs in [10 µs, 15 µs], p95 115 µs in [100 µs, 123 µs], p99 118 µs in [100 µs, 123 µs]"
    assert f"ipt_do_table: {percentiles}" in " ".join(text.split())
    assert "\x1b" not in text
    assert "528" in text


def test_every_exporter_takes_an_empty_result() -> None:
    for export in EXPORTERS.values():
        assert isinstance("".join(export([Result(Run())])), str)


def around() -> Result:
    """A result with the whole hook around the lookup, and with what tracing adds."""
    result = ours(3, "instructions")
    call = replace(result.probes[0], mode=700)
    whole = replace(
        call, engine="nf_hook_slow", table=None, chain=None, lookup=False, mean=5000.0, envelope=True, share=0.14
    )
    added = Overhead("instructions", "PREROUTING", 4, 1, Bounded(250, 250, 250), Bounded(1900, 1900, 1900), 400)
    return replace(result, probes=(call, whole), overhead=added)


def test_the_whole_hook_and_what_tracing_adds_are_in_every_export() -> None:
    (row,) = csv.DictReader(io.StringIO("".join(export_csv([around()]))))
    shown = {name: row[name] for name in ("hook", "mean", "envelope_mean", "rules_share")}
    assert shown == {"hook": "PREROUTING", "mean": "700.0", "envelope_mean": "5000.0", "rules_share": "0.14"}
    assert [row[name] for name in ("empty_adds", "script_adds", "untraced_lo", "untraced_hi")] == [
        *("250", "1900", "50", "300")
    ]
    later = replace(ours(3), run=replace(ours(3).run, position_after=2, chain_length_after=9, sync_s=1.5))
    (row,) = csv.DictReader(io.StringIO("".join(export_csv([later]))))
    assert [row[name] for name in ("position_after", "chain_length_after", "sync_s")] == ["2", "9", "1.5"]
    (document,) = json.loads("".join(export_json([around()])))["results"]
    assert document["probes"][1]["share"] == 0.14
    assert document["overhead"]["script"] == {"estimate": 1900, "lo": 1900, "hi": 1900}
    families = {
        each.name: each for each in text_string_to_metric_families("".join(export_openmetrics([around(), around()])))
    }
    counts = {
        name: [each.value for each in families[name].samples if each.name.endswith("_count")]
        for name in ("kproxylat_latency_instructions", "kproxylat_envelope_instructions")
    }
    assert counts == {"kproxylat_latency_instructions": [8.0], "kproxylat_envelope_instructions": [8.0]}
    (share,) = families["kproxylat_rules_share"].samples
    assert (share.labels["hook"], share.value) == ("PREROUTING", 0.14)
    added = {each.labels["probes"]: each.value for each in families["kproxylat_added_instructions"].samples}
    assert added == {"empty": 250.0, "script": 1900.0}
    text = "".join(export_table([around()]))
    assert re.search(r"^ ?PREROUTING .* 14\.0%$", text, re.M)
    assert re.search(r"^ ?nat \*\s+PREROUTING\s+700\s+50\s+300$", text, re.M)
    assert "the script adds 1,900 to a call" in text
    assert max(map(len, text.splitlines())) <= 80


def test_bounds_of_what_tracing_adds_are_written_out() -> None:
    overhead = Overhead("ns", "PREROUTING", 4, 1, Bounded(2144, 1712, 2592), Bounded(10000, 9440, 10620.5), 3104)
    text = " ".join("".join(export_table([replace(around(), overhead=overhead)])).split())
    assert "the script adds 10,000 (9,440 to 10,620.5) to a call" in text


def test_without_them_their_columns_are_empty_and_their_metrics_absent() -> None:
    (row,) = csv.DictReader(io.StringIO("".join(export_csv([ours(3)]))))
    assert {row[name] for name in ("envelope_mean", "rules_share", "empty_adds", "untraced_lo")} == {""}
    text = "".join(export_openmetrics([ours(3)]))
    assert "kproxylat_added" not in text
    assert "kproxylat_rules_share" not in text


def test_run_and_parse_print_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """The setting, thousands separators, the mark of the lookup and the accounting are in both."""
    books = Accounting(2000, 2000, 2000, 2000, None, None, True, entries=2000, drops={})
    traffic = Traffic("pktgen", 2000, 2000, 0, 999.5, 1000, 2000, 100)
    result = replace(add_percentiles(ours(1999), (50, 95, 99)), accounting=books, traffic=traffic)
    show_result(result)
    shown = capsys.readouterr().out
    assert "".join(export_table([result])) == f"{shown}\n"
    for text in (
        " nat *",
        "2,000",
        "books: sent 2000, lookups 2000",
        "rate: 1,000 packets per second, 1,000 asked for",
    ):
        assert text in shown
    assert "nat services PREROUTING: p50 812 ns in [600 ns, 1.02 µs], p95 " in shown


def test_percentiles_that_were_asked_for_are_in_the_table() -> None:
    text = "".join(export_table([add_percentiles(replace(ours(9)), (25, 99.9))]))
    assert re.search(r"nat services PREROUTING: p25 [\d.]+ ns in \[600 ns, 1.02 µs\], p99.9 ", " ".join(text.split()))


def test_the_screens_tables_of_them_fit_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    show_result(around())
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(r"^ ?PREROUTING .* 14\.0%$", out, re.M), out
    assert re.search(r"^ ?nat \*\s+PREROUTING\s+700\s+50\s+300$", out, re.M), out
    assert "an empty pair of probes 250;" in " ".join(out.split())
    ns = replace(around(), overhead=Overhead("ns", "INPUT", 4, 1, Bounded(20.5, 18, 23), Bounded(650, 600, 700.25), 40))
    show_result(ns)
    out = capsys.readouterr().out
    assert "20.5 (18 to 23)" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80


def test_openmetrics_adds_up_neither_chains_nor_variants() -> None:
    """In mode nftables two chains of one table share a hook; rules of two releases are two series."""
    one = ours(5)
    other = replace(one, probes=(*one.probes, replace(one.probes[0], chain="filter", lookup=False)))
    newer = replace(one, run=replace(one.run, kube_proxy="1.37", endpoints=50))
    families = text_string_to_metric_families("".join(export_openmetrics([other, newer])))
    [latency] = [family for family in families if family.name == "kproxylat_latency_seconds"]
    counts = {(each.labels["variant"], each.labels["chain"]): each.value for each in latency.samples
              if each.name.endswith("_count")}  # fmt: skip
    assert counts == {("", "services"): 6, ("", "filter"): 6, ("1.37 50 endpoints", "services"): 6}
    rows = list(csv.DictReader(io.StringIO("".join(export_csv([one, newer])))))
    assert [row["variant"] for row in rows] == ["", "1.37 50 endpoints"]
