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
                what = "envelope" if probe.envelope else "latency"
                merged.setdefault((what, probe.unit, *labels), []).append((probe.histogram, probe.sum))
        for name, each in result.maps.items():
            maps[name, run.mode or "", run.backend or ""] = each
    families: dict[str, HistogramMetricFamily] = {}
    for (what, unit, *where), parts in merged.items():
        scale = _SECONDS.get(unit)
        name = f"kproxylat_{what}_{'seconds' if scale else unit}"
        where_to = "in the engine's call" if what == "latency" else "in the whole hook around the engine's calls"
        if name not in families:
            text = f"{'Time' if scale else f'Executed {unit}'} {where_to}"
            families[name] = HistogramMetricFamily(name, text, labels=names)
        sums = [each for _, each in parts]
        total = sum(each for each in sums if each is not None) * (scale or 1) if None not in sums else None
        families[name].add_metric(where, _accumulate([each for each, _ in parts], scale or 1), total)
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
        found = result.overhead
        if found:
            scale = _SECONDS.get(found.unit)
            name = f"kproxylat_added_{'seconds' if scale else found.unit}"
            family = added.setdefault(
                name, GaugeMetricFamily(name, "What tracing adds to a call", labels=[*labels, "probes"])
            )
            for probes, each in (("empty", found.empty), ("script", found.script)):
                family.add_metric([*where, probes], each.estimate * (scale or 1))
    return [each for each in (shares, *added.values()) if each.samples]


def _build_map_families(maps: Mapping[tuple[str, str, str], Map]) -> list[Metric]:
    """Build the metrics of maps, by name, mode and backend: their size, and what they hold if it is not too much."""
    from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily

    labels = ["map", "mode", "backend", "key"]
    numbers = GaugeMetricFamily("kproxylat_map", "Numbers of a map that bpftrace printed", labels=[*labels, "part"])
    texts = GaugeMetricFamily("kproxylat_map_text", "What else a map holds: 1", labels=[*labels, "value"])
    shapes = HistogramMetricFamily("kproxylat_map_events", "Histograms of a map", labels=labels)
    sizes = GaugeMetricFamily("kproxylat_map_entries", "Entries of a map", labels=labels[:3])
    for found, each in maps.items():
        sizes.add_metric(found, len(each.entries))
        for entry in each.entries if len(each.entries) <= _ENTRIES else ():
            key = [*found, ", ".join(map(str, entry.key))]
            if each.kind in ("hist", "lhist"):
                histogram = Histogram(tuple(Bucket(**row) for row in entry.value["buckets"]))
                shapes.add_metric(key, _accumulate([histogram], 1), None)
            elif isinstance(entry.value, int | float):
                numbers.add_metric([*key, ""], entry.value)
            elif each.kind == "stats":
                for part, value in entry.value.items():
                    numbers.add_metric([*key, part], value)
            else:
                texts.add_metric([*key, str(entry.value)], 1)
    return [each for each in (numbers, shapes, texts, sizes) if each.samples]


def _accumulate(histograms: list[Histogram], scale: float) -> list[tuple[str, float]]:
    """Add histograms up and make their counts cumulative, at the edges where all of them know how many are below."""
    edges = sorted({bucket.hi for each in histograms for bucket in each.buckets if bucket.hi is not None})
    rows = []
    for edge in edges:
        below = 0
        for bucket in (bucket for each in histograms for bucket in each.buckets):
            if bucket.hi is not None and bucket.hi <= edge:
                below += bucket.count
            elif bucket.lo is None or bucket.lo < edge:
                break  # the edge is inside this bucket
        else:
            rows.append((repr(round(edge * scale, 12)), float(below)))
    total = sum(bucket.count for each in histograms for bucket in each.buckets)
    return [*rows, ("+Inf", float(total))]
