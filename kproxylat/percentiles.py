"""Percentiles of what histograms hold: an estimate, and the bounds that are certain. Pure; formula in docs/logs.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil, floor

from kproxylat.model import Bucket, Entry, Histogram, Map, Percentile, Result

PERCENTILES = (50, 95, 99)
"""Those that are given unless others are asked for."""
_LINEAR = {"ipt_do_table": "ipt_latency_linear", "nft_do_chain": "nft_latency_linear"}
"""Function -> the old scripts' linear histogram of the same calls, finer below 100 us."""


def add_percentiles(result: Result, wanted: Sequence[float]) -> Result:
    """Add percentiles to the probes of a result, and to its maps' histograms; probes without values keep theirs."""
    probes = []
    for probe in result.probes:
        if probe.values:
            found = compute_percentiles({int(value): count for value, count in probe.values.items()}, wanted)
        else:
            linear = result.maps.get(_LINEAR.get(probe.engine, ""))
            histograms = [probe.histogram, *([_from_map(linear)] if linear and linear.kind == "lhist" else [])]
            counts = {sum(bucket.count for bucket in each.buckets) for each in histograms}
            found = estimate_percentiles(
                histograms if len(counts) == 1 else histograms[:1], wanted, probe.min, probe.max
            )
        probes.append(replace(probe, percentiles=found or probe.percentiles))
    return replace(result, probes=tuple(probes), maps=add_to_maps(result.maps, wanted))


def add_to_maps(maps: Mapping[str, Map], wanted: Sequence[float] = PERCENTILES) -> dict[str, Map]:
    """Add percentiles to the entries of maps that are histograms."""
    return {name: _add_to_map(each, wanted) for name, each in maps.items()}


def _from_map(each: Map) -> Histogram:
    return Histogram() if each.entries[0].key else _from_entry(each.entries[0])


def _from_entry(entry: Entry) -> Histogram:
    return Histogram(tuple(Bucket(**row) for row in entry.value["buckets"] if row["count"]))


def _add_to_map(each: Map, wanted: Sequence[float]) -> Map:
    if each.kind not in ("hist", "lhist"):
        return each
    found = (replace(one, percentiles=estimate_percentiles([_from_entry(one)], wanted)) for one in each.entries)
    return replace(each, entries=tuple(found))


def estimate_percentiles(
    histograms: Sequence[Histogram], wanted: Iterable[float], minimum: float | None = None, maximum: float | None = None
) -> dict[str, Percentile]:
    """Estimate percentiles of the values that histograms were made of.

    :param histograms: one, or several of the same values: of their bounds the narrowest are taken.
    :param wanted: percentiles, 0 to 100.
    :param minimum: the least of the values, if known; caps the bounds. ``maximum`` likewise.
    :return: e.g. ``{"99.9": Percentile(...)}`` in the histogram's unit; empty where the histograms are.
    """
    found = {}
    for percent in wanted:
        each = [_locate(one, percent, minimum, maximum) for one in histograms if one.buckets]
        if each:
            found[f"{percent:g}"] = min(each, key=_width)
    return found


def compute_percentiles(values: Mapping[int, int], wanted: Iterable[float]) -> dict[str, Percentile]:
    """Compute percentiles of values that are known exactly, as numpy's default method does.

    :param values: value -> how often it occurred.
    """
    rows = Histogram(tuple(Bucket(value, value + 1, count) for value, count in sorted(values.items()) if count))
    total, found = sum(bucket.count for bucket in rows.buckets), {}
    for percent in wanted if total else ():
        rank = (total - 1) * percent / 100
        low, high = (_find(rows, index)[1].lo or 0 for index in (floor(rank), ceil(rank)))
        value = low + (high - low) * (rank - floor(rank))
        found[f"{percent:g}"] = Percentile(value, value, value)
    return found


def _locate(histogram: Histogram, percent: float, minimum: float | None, maximum: float | None) -> Percentile:
    """Find the buckets of the two values between which numpy interpolates the percentile."""
    rank = (sum(bucket.count for bucket in histogram.buckets) - 1) * percent / 100
    before, below = _find(histogram, floor(rank))
    _, above = _find(histogram, ceil(rank))
    lo = max((each for each in (below.lo, minimum) if each is not None), default=None)
    hi = min((each for each in (above.hi, maximum) if each is not None), default=None)
    if lo is None or hi is None:
        return Percentile(None, lo, hi)
    part = (rank - before + 0.5) / below.count if below is above else 0.5
    return Percentile(lo + (hi - lo) * part, lo, hi)


def _find(histogram: Histogram, index: int) -> tuple[int, Bucket]:
    """Find the bucket of the value number ``index`` (from 0, ascending), and how many values are before it."""
    before = 0
    for bucket in histogram.buckets:
        if index < before + bucket.count:
            return before, bucket
        before += bucket.count
    raise IndexError(index)


def _width(percentile: Percentile) -> float:
    if percentile.lo is None or percentile.hi is None:
        return float("inf")
    return percentile.hi - percentile.lo
