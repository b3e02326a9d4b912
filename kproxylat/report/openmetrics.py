"""Results -> OpenMetrics, for node_exporter's textfile collector and everything else that reads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from kproxylat.modes import MODES
from kproxylat.results import Bucket, Histogram, Map, Result, target_text

if TYPE_CHECKING:
    from prometheus_client import Metric

_SECONDS = {"ns": 1e-9, "us": 1e-6}
_ENTRIES = 1000
_BACKENDS = {row.engine: row.backend for row in MODES}
"""Engine -> backend: old logs may hold both engines in one run."""


def export_openmetrics(results: Iterable[Result]) -> Iterator[str]:
    """Write classic histograms, in seconds (or instructions); equal labels are added up.

    prometheus_client writes the text, which node_exporter's textfile collector takes too.
    """
    from prometheus_client.core import HistogramMetricFamily
    from prometheus_client.openmetrics.exposition import generate_latest

    names = ("mode", "backend", "table", "hook", "target")
    merged: dict[tuple[str, ...], list[tuple[Histogram, float | None]]] = {}
    maps: dict[tuple[str, str, str], Map] = {}
    lasts: dict[tuple[str, str, str], Result] = {}
    for result in results:
        run = result.run
        lasts[run.mode or "", run.backend or "", target_text(result)] = result
        for probe in result.probes:
            if probe.histogram.buckets:
                backend = _BACKENDS.get(probe.engine, run.backend or "")
                labels = (run.mode or "", backend, probe.table or "", probe.hook or "", target_text(result))
                subject = "envelope" if probe.envelope else "latency"
                merged.setdefault((subject, probe.unit, *labels), []).append((probe.histogram, probe.sum))
        for name, content in result.maps.items():
            maps[name, run.mode or "", run.backend or ""] = content
    families: dict[str, HistogramMetricFamily] = {}
    for (subject, unit, *values), parts in merged.items():
        scale = _SECONDS.get(unit)
        name = f"kproxylat_{subject}_{'seconds' if scale else unit}"
        place = "in the engine's call" if subject == "latency" else "in the whole hook around the engine's calls"
        if name not in families:
            text = f"{'Time' if scale else f'Executed {unit}'} {place}"
            families[name] = HistogramMetricFamily(name, text, labels=names)
        sums = [value for _, value in parts if value is not None]
        total = sum(sums) * (scale or 1) if len(sums) == len(parts) else None
        families[name].add_metric(values, _accumulate([histogram for histogram, _ in parts], scale or 1), total)
    collected = [*families.values(), *_build_around_families(lasts), *_build_map_families(maps)]
    registry = type("Registry", (), {"collect": lambda _: collected})()
    yield generate_latest(registry).decode()  # type: ignore[no-untyped-call]


def _build_around_families(results: Mapping[tuple[str, str, str], Result]) -> list[Metric]:
    """Build the metrics of the rules' share of each hook and of what tracing adds, by mode, backend and target."""
    from prometheus_client.core import GaugeMetricFamily

    labels = ["mode", "backend", "target"]
    shares = GaugeMetricFamily("kproxylat_rules_share", "Engine's part of the hook's time", labels=[*labels, "hook"])
    added: dict[str, GaugeMetricFamily] = {}
    for where, result in results.items():
        for probe in result.probes:
            if probe.share is not None:
                shares.add_metric([*where, probe.hook or ""], probe.share)
        overhead = result.overhead
        if overhead:
            scale = _SECONDS.get(overhead.unit)
            name = f"kproxylat_added_{'seconds' if scale else overhead.unit}"
            family = GaugeMetricFamily(name, "What tracing adds to a call", labels=[*labels, "probes"])
            for probes, cost in (("empty", overhead.empty), ("script", overhead.script)):
                added.setdefault(name, family).add_metric([*where, probes], cost.estimate * (scale or 1))
    return [family for family in (shares, *added.values()) if family.samples]


def _build_map_families(maps: Mapping[tuple[str, str, str], Map]) -> list[Metric]:
    """Build the metrics of maps, by name, mode and backend: their size, and their values unless there are too many."""
    from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily

    labels = ["map", "mode", "backend", "key"]
    numbers = GaugeMetricFamily("kproxylat_map", "Numbers of a map that bpftrace printed", labels=[*labels, "part"])
    texts = GaugeMetricFamily("kproxylat_map_text", "What else a map holds: 1", labels=[*labels, "value"])
    shapes = HistogramMetricFamily("kproxylat_map_events", "Histograms of a map", labels=labels)
    sizes = GaugeMetricFamily("kproxylat_map_entries", "Entries of a map", labels=labels[:3])
    for where, content in maps.items():
        sizes.add_metric(where, len(content.entries))
        for entry in content.entries if len(content.entries) <= _ENTRIES else ():
            key = [*where, ", ".join(map(str, entry.key))]
            if content.kind in ("hist", "lhist"):
                histogram = Histogram(tuple(Bucket(**row) for row in entry.value["buckets"]))
                shapes.add_metric(key, _accumulate([histogram], 1), None)
            elif isinstance(entry.value, int | float):
                numbers.add_metric([*key, ""], entry.value)
            elif content.kind == "stats":
                for part, value in entry.value.items():
                    numbers.add_metric([*key, part], value)
            else:
                texts.add_metric([*key, str(entry.value)], 1)
    return [family for family in (numbers, shapes, texts, sizes) if family.samples]


def _accumulate(histograms: list[Histogram], scale: float) -> list[tuple[str, float]]:
    """Add histograms up and make their counts cumulative, at the edges that lie inside no bucket of any of them."""
    buckets = [bucket for histogram in histograms for bucket in histogram.buckets]
    rows = []
    for edge in sorted({bucket.hi for bucket in buckets if bucket.hi is not None}):
        below = [bucket for bucket in buckets if bucket.hi is not None and bucket.hi <= edge]
        above = [bucket for bucket in buckets if bucket.lo is not None and bucket.lo >= edge]
        if len(below) + len(above) == len(buckets):
            rows.append((repr(round(edge * scale, 12)), float(sum(bucket.count for bucket in below))))
    return [*rows, ("+Inf", float(sum(bucket.count for bucket in buckets)))]
