"""Results -> OpenMetrics, for node_exporter's textfile collector and everything else that reads it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from kproxylat.console import leave_out, plain
from kproxylat.modes import MODES
from kproxylat.results import Bucket, Map, Probe, Result, Run, target_text

if TYPE_CHECKING:
    from prometheus_client import Metric

    from kproxylat.analysis.bill import Bill

_SECONDS = {"ns": 1e-9, "us": 1e-6}
_ENTRIES = 1000
_LIMIT = 120_000_000
"""Bytes that all series may take, so that all of ``parse`` stays below 200 MB."""
_SERIES, _CHAR, _ENDS = 1000, 4, 3
"""Bytes of a series, and of each character of its labels; the series of a histogram beside its buckets."""
_BACKENDS = {row.engine: row.backend for row in MODES}
"""Engine -> backend: old logs may hold both engines in one run."""
_RUN = ("mode", "backend", "variant", "services", "kernel", "bpftrace")
"""The labels of a run. Runs that differ in one of them are never added up."""
_Labels = tuple[str, ...]
_SUBJECTS = {
    "latency": ("in the engine's call", ("table", "chain", "hook")),
    "envelope": ("in the whole hook around the engine's calls", ("table", "chain", "hook")),
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

    room = _Room()
    merged: dict[_Labels, _Merged] = {}
    maps: dict[_Labels, Map] = {}
    lasts: dict[tuple[str, _Labels], Result] = {}

    def merge(probe: Probe, *labels: str) -> None:
        known = merged.get(labels) or _Merged()
        added = [bucket for bucket in probe.histogram.buckets if (bucket.lo, bucket.hi) not in known.counts]
        if room.take(_weigh(labels, len(added) + (0 if known.counts else _ENDS))):
            merged[labels] = known
            known.add(probe)

    for result in results:
        time = "emulated_" if result.run.emulated and result.run.clock != "instructions" else ""
        target = plain(target_text(result))
        where = time, (*_label(result.run), target)
        around = 2 * bool(result.overhead) + sum(probe.share is not None for probe in result.probes)
        if around and room.take(_weigh(where[1], 0 if where in lasts else around)):
            lasts[where] = replace(result, maps={})
        for probe in result.probes:
            if probe.histogram.buckets:
                run = _label(result.run, _BACKENDS.get(probe.engine))
                subject = "envelope" if probe.envelope else "latency"
                merge(probe, time, subject, probe.unit, *run, *_clean(probe.table, probe.chain, probe.hook), target)
        for kind, probe in result.send_time.by_kind.items() if result.send_time else ():
            merge(probe, time, "send_time", probe.unit, *_label(result.run), kind, target)
        if result.first_packet:
            probe = result.first_packet.probe
            merge(probe, time, "first_packet", probe.unit, *_label(result.run), target)
        for name, content in result.maps.items():
            labels = plain(name), *_label(result.run)
            room.left += _weigh_map(labels, maps.pop(labels)) if labels in maps else 0
            if room.take(_weigh_map(labels, content)):
                maps[labels] = content
    if room.refused:
        leave_out(
            f"OpenMetrics of {room.refused:,} histograms and maps: all would take more than {_LIMIT // 1_000_000} MB; "
            "pass fewer logs, or --format json"
        )
    families: dict[str, HistogramMetricFamily] = {}
    for (time, subject, unit, *values), known in merged.items():
        scale = _SECONDS.get(unit)
        name = f"kproxylat_{subject}_{f'{time}seconds' if scale else unit}"
        place, names = _SUBJECTS[subject]
        if name not in families:
            text = f"{('Emulated time' if time else 'Time') if scale else f'Executed {unit}'} {place}"
            families[name] = HistogramMetricFamily(name, text, labels=[*_RUN, *names, "target"])
        total = None if known.total is None else known.total * (scale or 1)
        families[name].add_metric(values, _accumulate(known.buckets(), scale or 1), total)
    collected = [*families.values(), *_build_around_families(lasts), *_build_map_families(maps)]
    registry = type("Registry", (), {"collect": lambda _: collected})()
    yield generate_latest(registry).decode()  # type: ignore[no-untyped-call]


class _Merged:
    """Histograms with equal labels, added up; their sum is None if one of them has none."""

    def __init__(self) -> None:
        self.counts: dict[tuple[int | None, int | None], int] = {}
        self.total: float | None = 0

    def add(self, probe: Probe) -> None:
        for bucket in probe.histogram.buckets:
            edges = bucket.lo, bucket.hi
            self.counts[edges] = self.counts.get(edges, 0) + bucket.count
        self.total = None if self.total is None or probe.sum is None else self.total + probe.sum

    def buckets(self) -> list[Bucket]:
        return [Bucket(lo, hi, count) for (lo, hi), count in self.counts.items()]


class _Room:
    """The memory that series may still take; ``refused``: how many things did not fit."""

    def __init__(self) -> None:
        self.left, self.refused = _LIMIT, 0

    def take(self, weight: int) -> bool:
        fits = weight <= self.left
        self.left -= weight * fits
        self.refused += not fits
        return fits


def _weigh(labels: Iterable[str], series: int = 1) -> int:
    """Return the bytes that series with these labels take, with their text."""
    text = "".join(labels)
    return series * (_SERIES + len(text) * (_CHAR if text.isascii() and '"' not in text else 4 * _CHAR))


def _weigh_map(labels: _Labels, content: Map) -> int:
    """Return the bytes that a map's series take: its size, and its entries unless they are too many."""
    weight = _weigh(labels)
    for entry in content.entries if len(content.entries) <= _ENTRIES else ():
        texts, series = map(str, entry.key), 3
        if content.kind in ("hist", "lhist"):
            series = len(entry.value["buckets"]) + _ENDS
        elif content.kind != "stats":
            texts, series = map(str, (*entry.key, entry.value)), 1
        weight += _weigh((*labels, *texts), series)
    return weight


def _label(run: Run, backend: str | None = None) -> _Labels:
    return _clean(run.mode, backend or run.backend, run.variant, run.services, run.kernel, run.bpftrace)


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
                shapes.add_metric(
                    key, _accumulate([Bucket(**row) for value in equal for row in value["buckets"]], 1), None
                )
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


def _accumulate(buckets: Sequence[Bucket], scale: float) -> list[tuple[str, float]]:
    """Add buckets of histograms up and make their counts cumulative, at the edges that lie inside no bucket."""
    ended = sorted((bucket.hi, bucket.count) for bucket in buckets if bucket.hi is not None)
    edges, starts = [edge for edge, _ in ended], sorted(bucket.lo for bucket in buckets if bucket.lo is not None)
    counts, rows = [0, *accumulate(count for _, count in ended)], []
    for edge in dict.fromkeys(edges):
        below, above = bisect_right(edges, edge), len(starts) - bisect_left(starts, edge)
        if below + above == len(buckets):
            rows.append((repr(round(edge * scale, 12)), float(counts[below])))
    return [*rows, ("+Inf", float(sum(bucket.count for bucket in buckets)))]


class BillTotals:
    """Counters of live lookups, added up over ``bills``; prometheus_client collects them.

    The first :data:`kproxylat.analysis.bill.TOP` Services of each bill have their own labels, the others "other".
    """

    def __init__(self) -> None:
        self._totals: dict[_Labels, tuple[float, float]] = {}
        self._last: Bill | None = None
        self.bills = 0

    def add(self, bill: Bill) -> None:
        """Add a bill: its rates for the whole of its period."""
        from kproxylat.analysis.bill import OTHER, cut  # slow to import for parse

        totals, kept = dict(self._totals), set(cut(bill.rows))
        for row in bill.rows:
            name = row.name if row in kept else ""
            namespace, _, service = name.rpartition("/")
            service, _, port_name = service.partition(":")
            address, _, protocol = row.key.partition("/")
            if row not in kept:
                service, address, protocol = OTHER, "", ""
            elif not service:
                service, _, port_name = address.rpartition(":") if protocol else (address, "", "")
            labels = tuple(map(plain, (namespace, service, port_name, protocol, bill.mode)))
            lookups, seconds = totals.get(labels, (0.0, 0.0))
            lookups += row.lookups_per_s * bill.period_s
            totals[labels] = lookups, seconds + row.cpu_ms_per_s / 1000 * bill.period_s
        self._totals, self._last, self.bills = totals, bill, self.bills + 1

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        labels = ("namespace", "service", "port", "protocol", "mode")
        lookups = CounterMetricFamily("kproxylat_lookups", "Lookups, estimated from windows", labels=labels)
        seconds = CounterMetricFamily("kproxylat_lookup_seconds", "CPU seconds in lookups, estimated", labels=labels)
        for values, (count, took_s) in self._totals.items():
            lookups.add_metric(values, count)
            seconds.add_metric(values, took_s)
        yield from (lookups, seconds)
        if self._last:
            used = self._last.usage
            yield GaugeMetricFamily("kproxylat_sampling_ratio", "Part of lookups counted", self._last.sampled)
            yield GaugeMetricFamily("kproxylat_budget_ratio", "Part of one CPU that probes may take", used.budget)
            yield GaugeMetricFamily("kproxylat_probes_ratio", "Part of one CPU that the probes took", used.mean)

    def export(self) -> str:
        """Write OpenMetrics."""
        from prometheus_client.openmetrics.exposition import generate_latest

        return str(generate_latest(self).decode())  # type: ignore[no-untyped-call]

    def serve(self, host: str, port: int) -> None:
        """Answer scrapes on an address, from a thread.

        :raises OSError: the address cannot be listened on.
        """
        from prometheus_client import CollectorRegistry, start_http_server

        registry = CollectorRegistry()
        registry.register(self)
        start_http_server(port, host, registry)
