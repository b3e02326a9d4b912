"""Results -> OpenMetrics, for node_exporter's textfile collector and everything else that reads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kproxylat.errors import MachineError
from kproxylat.model import Histogram, Result, target_text

_SECONDS = {"ns": 1e-9, "us": 1e-6}
_ENTRIES = 1000
_BACKENDS = {"ipt_do_table": "legacy", "nft_do_chain": "nft"}
"""Old logs may hold both engines in one run."""


def export_openmetrics(results: Iterable[Result]) -> Iterator[str]:
    """Write classic histograms, in seconds (or instructions); equal labels are added up.

    prometheus_client writes the text, which node_exporter's textfile collector takes too.
    """
    try:
        from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
        from prometheus_client.openmetrics.exposition import generate_latest
    except ImportError as error:
        raise MachineError(
            f"openmetrics needs prometheus_client: {error}", "pip install 'kproxylat[metrics]'"
        ) from error

    names = ("mode", "backend", "table", "hook", "target")
    merged: dict[tuple[str, ...], list[tuple[Histogram, float | None]]] = {}
    gauges = GaugeMetricFamily(
        "kproxylat_map", "Value of a map that bpftrace printed", labels=["map", "key", *names[:2]]
    )
    seen: set[tuple[str, ...]] = set()
    for result in results:
        run = result.run
        common = (run.mode or "", run.backend or "")
        for probe in result.probes:
            if probe.histogram.buckets:
                backend = _BACKENDS.get(probe.engine, run.backend or "")
                labels = (run.mode or "", backend, probe.table or "", probe.hook or "", target_text(result))
                merged.setdefault((probe.unit, *labels), []).append((probe.histogram, probe.sum))
        for entry, value in _list_numbers(result):
            if (*entry, *common) not in seen:
                seen.add((*entry, *common))
                gauges.add_metric([*entry, *common], value)
    families: dict[str, HistogramMetricFamily] = {}
    for (unit, *where), parts in merged.items():
        scale = _SECONDS.get(unit)
        name = f"kproxylat_latency_{'seconds' if scale else unit}"
        what = "Time in the engine's call" if scale else f"Executed {unit} in the engine's call"
        if name not in families:
            families[name] = HistogramMetricFamily(name, what, labels=names)
        sums = [each for _, each in parts]
        total = sum(each for each in sums if each is not None) * (scale or 1) if None not in sums else None
        families[name].add_metric(where, _accumulate([each for each, _ in parts], scale or 1), total)
    collected = [*families.values(), *([gauges] if gauges.samples else [])]
    registry = type("Registry", (), {"collect": lambda _: collected})()
    yield generate_latest(registry).decode()  # type: ignore[no-untyped-call]


def _list_numbers(result: Result) -> Iterator[tuple[tuple[str, str], float]]:
    """List the numbers of maps that are few enough for labels."""
    for name, each in result.maps.items():
        if each.kind in ("int", "float") and len(each.entries) <= _ENTRIES:
            for entry in each.entries:
                yield (name, ", ".join(map(str, entry.key))), entry.value


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
