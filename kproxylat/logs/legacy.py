"""Results of the old scripts' logs: a builder for each dialect. Pure; docs/logs.md describes the dialects.

A builder takes the text of a run, adds warnings to it, and returns the result without source and quality.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

from kproxylat.modes import only_backend
from kproxylat.results import Histogram, Map, Percentile, Probe, Result, Run, Sample, Samples, Target, Traffic

FUNCTIONS = {
    "iptables": ("ipt_do_table", "ipt"),
    "nftables": ("nft_do_chain", "nft"),
    "ipvs": ("ipvs", "ipvs"),  # the function differs from kernel to kernel, and the log does not name it
}
"""Name of the engine in an old script's log -> the traced kernel function, and the prefix of its maps' names. A new
mode never appears in such a log."""
EXPERIMENT_HEADER = (
    "ServiceCount,ProxyMode,WorkerPosition,TotalRules,MeanLatency_us,MaxLatency_us,P50_us,P95_us,P99_us,LogFile"
)
EXPERIMENT_HEADERS = r"ServiceCount,ProxyMode(?:,[\w%]+)+"
"""The headers of all versions of the old full experiment: columns came and went."""


@dataclass
class RunText:
    """The text of one run, before a dialect's builder interprets it.

    :param header: the fields of the metadata header, by name.
    :param report: figures of the report by engine ("" where it names none): count, min, mean, max, in us.
    :param maps: the last print of each map.
    :param marks: the lines that are a sign of a dialect, by the dialect's name.
    :param intervals: sums of the interval blocks by engine, or of the table rows under "".
    :param slow: sums of the slow lines by engine.
    :param columns: the header of the table whose line ends the run.
    :param warnings: damage and contradictions, for ``quality.warnings``.
    :param ended: False if the run was cut short.
    """

    header: dict[str, str] = field(default_factory=dict)
    report: dict[str, dict[str, float]] = field(default_factory=dict)
    maps: dict[str, Map] = field(default_factory=dict)
    marks: dict[str, list[str]] = field(default_factory=dict)
    intervals: Mapping[str, Samples] = field(default_factory=dict)
    slow: Mapping[str, Samples] = field(default_factory=dict)
    columns: str = ""
    warnings: list[str] = field(default_factory=list)
    ended: bool = False


def read_header(text: RunText) -> Result:
    """Read the metadata header that the later of the old scripts wrote.

    :return: a result with the run, the target if the header names a ClusterIP, and the traffic if it names a rate.
    """
    header = text.header
    position = re.match(r"(\d+) / (\d+)", header.get("Worker position", ""))
    rate, warmup = _int(header.get("Packet rate")), _int(header.get("Warmup packets"))
    mode = header.get("Kube-proxy mode")
    words = [header.get(name, "").split() for name in ("Duration", "Packet rate", "Warmup packets", "Rule position")]
    arguments = [value[0] for value in takewhile(bool, words)]
    run = Run(
        started=header["Timestamp"].replace(" ", "T", 1) if "Timestamp" in header else None,
        duration_s=_int(header.get("Duration")),
        mode=mode,
        backend=only_backend(mode),
        position=int(position[1]) if position else None,
        chain_length=int(position[2]) if position else None,
        arguments=tuple(arguments[:1] and [arguments[0].removesuffix("s")]) + tuple(arguments[1:]),
    )
    address = header.get("Worker ClusterIP")
    target = Target(address, None, None) if address else None
    traffic = Traffic("pktgen", None, None, None, None, rate, None, warmup) if rate is not None else None
    return Result(run, target, traffic=traffic)


def build_report(text: RunText) -> Result:
    """Build the result of a FINAL REPORT (dialect A), or of the last interval blocks if the run was cut short.

    :return: the result, with a probe for each engine.
    """
    header = read_header(text)
    probes = [
        _build_probe(text, engine, function, prefix)
        for engine, (function, prefix) in FUNCTIONS.items()
        if engine in text.report or engine in text.intervals
    ]
    run = header.run
    if len(probes) == 1 and run.backend is None:
        backend = "legacy" if probes[0].engine == "ipt_do_table" else "nft"
        mode = run.mode or ("iptables" if backend == "legacy" else None)
        header = replace(header, run=replace(run, backend=backend, mode=mode))
    return _assemble(text, header, probes)


def _build_probe(text: RunText, engine: str, function: str, prefix: str) -> Probe:
    figures = text.report.get(engine, {})
    last = text.intervals[engine].last if engine in text.intervals else Sample("")
    if "count" not in figures and last.count:
        text.warnings.append(f"no report for {engine}: the figures are those of the interval at {last.time}")
    elif set(figures) < {"count", "min", "mean", "max"} and figures.get("count"):
        text.warnings.append(f"the report for {engine} lacks figures")
    else:
        last = Sample("")
    maps = {name: content for name, content in text.maps.items() if re.match(rf"({prefix}|{engine})_", name)}
    total = _find_number(maps, r"_sum(_us)?$")
    count = figures.get("count", last.count)
    probe: dict[str, Any] = {
        "count": count or 0,
        "min": figures.get("min", last.min),
        "max": figures.get("max", last.max),
        "mean": figures.get("mean", last.mean),
        "sum": total,
    }
    if total is not None and count:
        if probe["mean"] is not None and total // count != int(probe["mean"]):
            text.warnings.append(f"{engine}: the sum {total} over {count} calls is not the average {probe['mean']}")
        else:
            probe["mean"] = total / count
    histogram = _find_histogram(maps)
    return _make_probe(text, function, engine, probe, histogram)


def build_summary(text: RunText) -> Result:
    """Build the result of a FINAL SUMMARY REPORT (dialect B), or of the table's rows if the run was cut short.

    :return: the result, with one probe if there was a packet.
    """
    figures: dict[str, float] = dict(text.report.get("summary", {}))
    rows = text.intervals.get("")
    if "count" not in figures and rows and rows.total:
        text.warnings.append("no summary: count and maximum are those of the table's rows")
        worst = rows.worst[0].max if rows.worst else None
        figures = {"count": rows.total} if worst is None else {"count": rows.total, "max": worst}
    total = _find_number(text.maps, r"total_lat")
    count = figures.get("count", 0)
    mean: float | None = figures.get("mean")
    if total is not None and count and total // count == mean:
        mean = total / count
    probe = {"count": count, "min": None, "max": figures.get("max"), "mean": mean, "sum": total}
    histogram = _find_histogram({name: text.maps[name] for name in text.maps if name in ("dist_latency", "lat")})
    probes = [_make_probe(text, "ip_rcv", "", probe, histogram)] if count or histogram.buckets else []
    return _assemble(text, read_header(text), probes)


def build_single(text: RunText) -> Result:
    """Build the result of the single-packet script (dialect C): one call a line, in ns.

    :return: the result, with a probe for each engine.
    """
    calls: dict[str, list[int]] = {}
    for line in text.marks["single"]:
        call = re.match(r"\[(\w+)\] Latency: .*\((\d{1,18}) ns\)$", line)
        if call:
            calls.setdefault(call[1], []).append(int(call[2]))
    if not calls:
        text.warnings.append("no packet was traced")
    probes = []
    for engine, times in calls.items():
        figures = {"count": len(times), "min": min(times), "max": max(times), "mean": sum(times) / len(times)}
        function = FUNCTIONS.get(engine, (engine, ""))[0]
        probes.append(_make_probe(text, function, engine, figures | {"sum": sum(times)}, Histogram(), "ns"))
    return _assemble(text, read_header(text), probes)


def build_dump(text: RunText) -> Result:
    """Build the result, without probes, of a text that holds nothing but maps."""
    return _assemble(text, read_header(text), [])


def build_experiment(text: RunText) -> Result:
    """Build the result of one line of the full experiment's CSV.

    The old scripts' percentiles are the lower edges of power-of-two buckets: they become bounds ``[lo, 2 lo]``, not
    estimates. If a percentile has a point or is not a power of two, kproxylat wrote the line: then all percentiles are
    estimates without bounds.

    :param text: its last mark is the line.
    :return: the result, with one probe.
    """
    fields, columns = next(csv.reader(text.marks["experiment"][-1:])), text.columns.split(",")
    if len(fields) != len(columns):
        text.warnings.append(f"the line has {len(fields)} columns, its header {len(columns)}: {fields}"[:200])
    row = dict.fromkeys(columns, "") | dict(zip(columns, fields, strict=False))
    least, most = (_int(row.get(f"{name}Latency_us")) for name in ("Min", "Max"))
    mean = _float(row.get("MeanLatency_us"))
    percentiles = {}
    cells = {name: row.get(f"P{name}_us", "") for name in ("50", "95", "99")}
    values = {name: value for name, cell in cells.items() if (value := _float(cell)) is not None}
    are_edges = not any("." in cell for cell in cells.values())
    are_edges = are_edges and all(int(value).bit_count() <= 1 for value in values.values())
    for name, value in values.items():
        if are_edges:
            low = int(value)
            high = float(2 * low if low > 1 else low + 1)
            percentiles[name] = Percentile(None, float(low), high if most is None else max(low, min(high, float(most))))
        else:
            percentiles[name] = Percentile(value, None, None)
    engine = FUNCTIONS.get(row["ProxyMode"], (row["ProxyMode"], ""))[0]
    probe = Probe(engine, None, None, None, False, 0, least, most, mean, None, None, "us", Histogram(), percentiles)
    run = Run(
        mode=row["ProxyMode"] or None,
        services=_int(row["ServiceCount"]),
        position=_int(row.get("WorkerPosition")),
        chain_length=_int(row.get("TotalRules")),
        log=row.get("LogFile") or None,
    )
    return _assemble(text, Result(run), [probe])


def _assemble(text: RunText, header: Result, probes: Iterable[Probe]) -> Result:
    run = replace(header.run, cut_short=not text.ended)
    return replace(header, run=run, probes=tuple(probes), maps=text.maps, intervals=text.intervals, slow=text.slow)


def _make_probe(
    text: RunText, function: str, engine: str, figures: dict[str, Any], histogram: Histogram, unit: str = "us"
) -> Probe:
    held = sum(bucket.count for bucket in histogram.buckets)
    if histogram.buckets and held != figures["count"]:
        text.warnings.append(f"the histogram holds {held} of {figures['count']} calls {engine}".rstrip())
    return Probe(
        function, table=None, chain=None, hook=None, lookup=False, mode=None, unit=unit, histogram=histogram, **figures
    )


def _find_number(maps: Mapping[str, Map], pattern: str) -> int | None:
    for name, content in maps.items():
        if re.search(pattern, name) and content.kind == "int" and not content.entries[0].key:
            number: int = content.entries[0].value
            return number
    return None


def _find_histogram(maps: Mapping[str, Map]) -> Histogram:
    """Find the logarithmic histogram, which is complete; the linear one ends at 100 us."""
    for content in maps.values():
        entry = content.entries[0]
        if content.kind == "hist" and not entry.key and entry.value["count"]:
            return Histogram.of(entry.value)
    return Histogram()


def _int(text: str | None) -> int | None:
    number = re.match(r"\d{1,18}", text or "")
    return int(number[0]) if number else None


def _float(text: str | None) -> float | None:
    return float(text) if text and re.fullmatch(r"\d{1,18}(\.\d{1,18})?", text) else None
