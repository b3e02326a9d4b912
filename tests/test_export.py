"""Results -> json, csv, openmetrics, table; and back, where something reads it back."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as text_format

from kproxylat.export import EXPORTERS, export_csv, export_experiment, export_json, export_openmetrics, export_table
from kproxylat.logs import LogReader, read_log
from kproxylat.model import Bucket, Histogram, Probe, Result, Run, Target
from kproxylat.percentiles import add_percentiles

DUMPS = Path(__file__).parent / "dumps"


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
    assert json.loads(rows[2]["maps"])["str"] == "plain text"


def test_experiment_csv_can_be_read_back() -> None:
    text = "".join(export_experiment(results()[:1]))
    assert text.splitlines()[0].startswith("ServiceCount,ProxyMode,WorkerPosition,TotalRules,MeanLatency_us,")
    (back,) = LogReader("x.csv").read(io.BytesIO(text.encode()))
    assert back.probes[0].max == 123
    assert back.source
    assert back.source.dialect == "experiment"


def test_openmetrics_is_accepted() -> None:
    text = "".join(export_openmetrics([*results(), ours(5), ours(7)]))
    families = {each.name: each for each in text_string_to_metric_families(text)}
    latency = families["kproxylat_latency_seconds"]
    assert latency.type == "histogram"
    labels = {
        "mode": "nftables",
        "backend": "nft",
        "table": "nat",
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


def test_table_fits_eighty_columns() -> None:
    strings = list(read_log(str(DUMPS / "0.27.1--string_values.txt")))  # one holds an escape sequence
    text = "".join(export_table([*results(), *strings, ours(5)]))
    lines = [line for line in text.splitlines() if not line.startswith(str(DUMPS))]
    assert max(map(len, lines)) <= 80
    assert "ipt_do_table     13    3  40.6  123" in text
    assert "\x1b" not in text
    assert "528" in text


def test_every_exporter_takes_an_empty_result() -> None:
    for export in EXPORTERS.values():
        assert isinstance("".join(export([Result(Run())])), str)
