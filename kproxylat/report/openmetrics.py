"""Results -> OpenMetrics, for node_exporter's textfile collector and everything else that reads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kproxylat.console import plain
from kproxylat.modes import MODES
from kproxylat.results import Bucket, Histogram, Map, Result, Run, target_text

if TYPE_CHECKING:
    from prometheus_client import Metric

_SECONDS = {"ns": 1e-9, "us": 1e-6}
_ENTRIES = 1000
_BACKENDS = {row.engine: row.backend for row in MODES}
"""Engine -> backend: old logs may hold both engines in one run."""
_RUN = ("mode", "backend", "services", "kernel", "bpftrace")
"""The labels of a run. Runs that differ in one of them are never added up."""
_Labels = tuple[str, ...]
_SUBJECTS = {
    "latency": ("in the engine's call", ("table", "hook")),
    "envelope": ("in the whole hook around the engine's calls", ("table", "hook")),
    "send_time": ("of the sender's system call", ("to",)),
    "first_packet": ("from a connection's SYN to its SYN-ACK", ()),
}
"""Part of a histogram's name -> what was timed, and the labels of its place."""


def export_openmetrics(results: Iterable[Result]) -> Iterator[str]:
    """Write classic histograms, in seconds (or instructions); equal labels are added up.

    prometheus_client writes the text, which node_exporter's textfile collector takes too.
    """
    from prometheus_client.core import HistogramMetricFamily
    from prometheus_client.openmetrics.exposition import generate_latest

    merged: dict[_Labels, list[tuple[Histogram, float | None]]] = {}
    maps: dict[_Labels, Map] = {}
    lasts: dict[tuple[str, _Labels], Result] = {}
    for result in results:
        time = "emulated_" if result.run.emulated and result.run.clock != "instructions" else ""
        target = plain(target_text(result))
        lasts[time, (*_label(result.run), target)] = result
        for probe in result.probes:
            if probe.histogram.buckets:
                run = _label(result.run, _BACKENDS.get(probe.engine))
                labels = (*run, *_clean(probe.table, probe.hook), target)
                subject = "envelope" if probe.envelope else "latency"
                merged.setdefault((time, subject, probe.unit, *labels), []).append((probe.histogram, probe.sum))
        for kind, probe in result.send_time.by_kind.items() if result.send_time else ():
            labels = (*_label(result.run), kind, target)
            merged.setdefault((time, "send_time", probe.unit, *labels), []).append((probe.histogram, probe.sum))
        if result.first_packet:
            probe, labels = result.first_packet.probe, (*_label(result.run), target)
            merged.setdefault((time, "first_packet", probe.unit, *labels), []).append((probe.histogram, probe.sum))
        for name, content in result.maps.items():
            maps[plain(name), *_label(result.run)] = content
    families: dict[str, HistogramMetricFamily] = {}
    for (time, subject, unit, *values), parts in merged.items():
        scale = _SECONDS.get(unit)
        name = f"kproxylat_{subject}_{f'{time}seconds' if scale else unit}"
        place, names = _SUBJECTS[subject]
        if name not in families:
            text = f"{('Emulated time' if time else 'Time') if scale else f'Executed {unit}'} {place}"
            families[name] = HistogramMetricFamily(name, text, labels=[*_RUN, *names, "target"])
        sums = [value for _, value in parts if value is not None]
        total = sum(sums) * (scale or 1) if len(sums) == len(parts) else None
        families[name].add_metric(values, _accumulate([histogram for histogram, _ in parts], scale or 1), total)
    collected = [*families.values(), *_build_around_families(lasts), *_build_map_families(maps)]
    registry = type("Registry", (), {"collect": lambda _: collected})()
    yield generate_latest(registry).decode()  # type: ignore[no-untyped-call]


def _label(run: Run, backend: str | None = None) -> _Labels:
    return _clean(run.mode, backend or run.backend, run.services, run.kernel, run.bpftrace)


def _clean(*facts: object) -> _Labels:
    return tuple("" if fact is None else plain(fact) for fact in facts)


def _build_around_families(results: Mapping[tuple[str, _Labels], Result]) -> list[Metric]:
    """Build the metrics of the rules' share of each hook and of what tracing adds, by run and target."""
    from prometheus_client.core import GaugeMetricFamily

    families: dict[str, GaugeMetricFamily] = {}

    def add(name: str, text: str, last_label: str, values: Sequence[str], value: float) -> None:
        family = GaugeMetricFamily(name, text, labels=[*_RUN, "target", last_label])
        families.setdefault(name, family).add_metric(values, value)

    for (time, where), result in results.items():
        for probe in result.probes:
            if probe.share is not None:
                name = f"kproxylat_{time}rules_share"
                add(name, "Engine's part of the hook's time", "hook", [*where, *_clean(probe.hook)], probe.share)
        overhead = result.overhead
        if overhead:
            scale = _SECONDS.get(overhead.unit)
            name = f"kproxylat_added_{f'{time}seconds' if scale else overhead.unit}"
            for probes, cost in (("empty", overhead.empty), ("script", overhead.script)):
                value = cost.estimate * (scale or 1)
                add(name, "What tracing adds to a call", "probes", [*where, probes], value)
    return list(families.values())


def _build_map_families(maps: Mapping[_Labels, Map]) -> list[Metric]:
    """Build the metrics of maps, by name and run: their size, and their values unless there are too many.

    Entries with equal keys make one series: numbers and histograms are added up, and of texts each one counts once.
    """
    from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily

    labels = ["map", *_RUN, "key"]
    numbers = GaugeMetricFamily("kproxylat_map", "Numbers of a map that bpftrace printed", labels=[*labels, "part"])
    texts = GaugeMetricFamily("kproxylat_map_text", "What else a map holds: 1", labels=[*labels, "value"])
    shapes = HistogramMetricFamily("kproxylat_map_events", "Histograms of a map", labels=labels)
    sizes = GaugeMetricFamily("kproxylat_map_entries", "Entries of a map", labels=labels[:-1])
    for where, content in maps.items():
        sizes.add_metric(where, len(content.entries))
        values: dict[_Labels, list[Any]] = {}
        for entry in content.entries if len(content.entries) <= _ENTRIES else ():
            values.setdefault((*where, plain(", ".join(map(str, entry.key)))), []).append(entry.value)
        for key, equal in values.items():
            if content.kind in ("hist", "lhist"):
                histograms = [Histogram(tuple(Bucket(**row) for row in value["buckets"])) for value in equal]
                shapes.add_metric(key, _accumulate(histograms, 1), None)
            elif content.kind == "stats":
                for part, number in _add_stats(equal).items():
                    numbers.add_metric([*key, part], number)
            elif all(isinstance(value, int | float) for value in equal):
                numbers.add_metric([*key, ""], sum(equal))
            else:
                for text in dict.fromkeys(map(plain, equal)):
                    texts.add_metric([*key, text], 1)
    return [family for family in (numbers, shapes, texts, sizes) if family.samples]


def _add_stats(equal: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """Add stats up; the average of several is that of all their values."""
    added: dict[str, float] = {part: sum(stats[part] for stats in equal) for part in equal[0]}
    if len(equal) > 1:
        added["average"] = added["total"] / added["count"] if added["count"] else 0
    return added


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
