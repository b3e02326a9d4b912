"""Percentiles of values and of histograms: an estimate, and certain bounds. Pure; docs/logs.md has the formula.

``percents`` are numbers from 0 to 100. Percentiles have names: ``{"99.9": Percentile(...)}``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil, floor

from kproxylat.results import Bucket, Histogram, Map, Percentile, Result

PERCENTILES = (50, 95, 99)
"""The default percentiles."""
_LINEAR = {"ipt_do_table": "ipt_latency_linear", "nft_do_chain": "nft_latency_linear"}
"""Kernel function -> the old scripts' linear histogram of the same calls, which is finer below 100 us."""


def add_percentiles(result: Result, percents: Sequence[float]) -> Result:
    """Add percentiles to the probes of a result, and to the histograms among its maps.

    A probe without values and histogram keeps its own.
    """
    probes = []
    for probe in result.probes:
        if probe.values:
            percentiles = compute_percentiles(probe.counts, percents)
        else:
            linear = result.maps.get(_LINEAR.get(probe.engine, ""))
            histograms = [probe.histogram, *([_from_map(linear)] if linear and linear.kind == "lhist" else [])]
            counts = {sum(bucket.count for bucket in histogram.buckets) for histogram in histograms}
            same = histograms if len(counts) == 1 else histograms[:1]
            percentiles = estimate_percentiles(same, percents, probe.min, probe.max)
        probes.append(replace(probe, percentiles=percentiles or probe.percentiles))
    return replace(result, probes=tuple(probes), maps=add_to_maps(result.maps, percents))


def add_to_maps(maps: Mapping[str, Map], percents: Sequence[float] = PERCENTILES) -> dict[str, Map]:
    """Add percentiles to the entries of the maps that are histograms; other maps stay as they are."""
    return {name: _add_to_map(content, percents) for name, content in maps.items()}


def _from_map(content: Map) -> Histogram:
    return Histogram() if content.entries[0].key else Histogram.of(content.entries[0].value)


def _add_to_map(content: Map, percents: Sequence[float]) -> Map:
    if content.kind not in ("hist", "lhist"):
        return content
    percentiles = (estimate_percentiles([Histogram.of(entry.value)], percents) for entry in content.entries)
    entries = (replace(entry, percentiles=own) for entry, own in zip(content.entries, percentiles, strict=True))
    return replace(content, entries=tuple(entries))


def estimate_percentiles(
    histograms: Sequence[Histogram],
    percents: Iterable[float],
    minimum: float | None = None,
    maximum: float | None = None,
) -> dict[str, Percentile]:
    """Estimate percentiles of values of which only histograms are known.

    :param histograms: one histogram, or several of the same values: then the narrowest bounds count.
    :param minimum: the least value, if known; it limits the bounds.
    :param maximum: the greatest value, if known; it limits the bounds.
    :return: percentiles in the histogram's unit; empty if the histograms are empty.
    """
    estimates = {}
    for percent in percents:
        candidates = [_locate(histogram, percent, minimum, maximum) for histogram in histograms if histogram.buckets]
        if candidates:
            estimates[f"{percent:g}"] = min(candidates, key=_width)
    return estimates


def compute_percentiles(values: Mapping[int, int], percents: Iterable[float]) -> dict[str, Percentile]:
    """Compute percentiles of exact values, as numpy's default method does.

    :param values: value -> how often it occurred.
    :return: percentiles; empty without a value.
    """
    rows = Histogram(tuple(Bucket(value, value + 1, count) for value, count in sorted(values.items()) if count))
    total, percentiles = sum(bucket.count for bucket in rows.buckets), {}
    for percent in percents if total else ():
        value = interpolate(total, percent, lambda index: _find(rows, index)[1].lo or 0)
        percentiles[f"{percent:g}"] = Percentile(value, value, value)
    return percentiles


def interpolate(count: int, percent: float, find: Callable[[int], float]) -> float:
    """Interpolate a percentile between two of ``count`` values, as numpy's default method does.

    :param find: returns the value number ``index`` (from 0, ascending).
    """
    rank = (count - 1) * percent / 100
    low, high = find(floor(rank)), find(ceil(rank))
    return low + (high - low) * (rank - floor(rank))


def _locate(histogram: Histogram, percent: float, minimum: float | None, maximum: float | None) -> Percentile:
    """Find the buckets of the two values between which numpy interpolates the percentile."""
    rank = (sum(bucket.count for bucket in histogram.buckets) - 1) * percent / 100
    before, below = _find(histogram, floor(rank))
    _, above = _find(histogram, ceil(rank))
    lo = max((bound for bound in (below.lo, minimum) if bound is not None), default=None)
    hi = min((bound for bound in (above.hi, maximum) if bound is not None), default=None)
    if lo is None or hi is None:
        return Percentile(None, lo, hi)
    part = (rank - before + 0.5) / below.count if below is above else 0.5
    return Percentile(lo + (hi - lo) * part, lo, hi)


def _find(histogram: Histogram, index: int) -> tuple[int, Bucket]:
    """Find the bucket of the value number ``index`` (from 0, ascending), and how many values are before it."""
    before = 0
    *buckets, last = histogram.buckets
    for bucket in buckets:
        if index < before + bucket.count:
            return before, bucket
        before += bucket.count
    return before, last


def _width(percentile: Percentile) -> float:
    if percentile.lo is None or percentile.hi is None:
        return float("inf")
    return percentile.hi - percentile.lo
