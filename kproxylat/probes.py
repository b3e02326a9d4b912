"""The maps of our probe script -> the probes of a result. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from kproxylat.model import HOOKS, Bucket, Histogram, Map, Path, Probe
from kproxylat.modes import Mode
from kproxylat.percentiles import compute_percentiles

PERCENTILES = (50, 90, 95, 99)
OWN_MAPS = frozenset({"n", "start", "seen", "table", "chain", "hist", "stats", "min", "max"})
_SUB_BUCKETS = 5
_U64 = (1 << 64) - 1

Key = tuple[str | None, str | None, str | None]
"""Table, chain and hook of a probe."""


def bucket_bounds(value: int) -> tuple[int, int]:
    """Return ``[lo, hi)`` of a value's bucket: each power of two in 32 parts, as bpftrace's ``hist(n, 5)`` has them."""
    shift = max(value.bit_length() - 1 - _SUB_BUCKETS, 0)
    lo = value >> shift << shift
    return lo, lo + (1 << shift)


def build_histogram(values: Mapping[int, int]) -> Histogram:
    """Count values (value -> events) into buckets of at most 3.1 % width."""
    counts: Counter[tuple[int, int]] = Counter()
    for value, count in values.items():
        counts[bucket_bounds(value)] += count
    return Histogram(tuple(Bucket(lo, hi, count) for (lo, hi), count in sorted(counts.items())))


def build_probes(maps: Mapping[str, Map], mode: Mode, unit: str) -> tuple[Probe, ...]:
    """Build the probes of a run, the lookup first, then by the time they take.

    :param maps: what the script printed: ``@n[priv, hook, value]`` or ``@hist``, ``@stats``, ``@min``, ``@max`` by
        ``[priv, hook]``; ``@table[priv]``, ``@chain[priv]``.
    :param unit: "ns" or "instructions".
    """
    names = {kind: _by_key(maps.get(kind)) for kind in ("table", "chain")}

    def place(priv: int, hook: int) -> Key:
        key = (priv & _U64,)
        return names["table"].get(key), names["chain"].get(key), HOOKS.get(hook, str(hook))

    exact: dict[Key, Counter[int]] = defaultdict(Counter)
    for priv, hook, value, count in ((*entry.key, entry.value) for entry in _entries(maps.get("n"))):
        exact[place(priv, hook)][value] += count
    probes = [_exact_probe(key, values, mode, unit) for key, values in exact.items()]
    parts = {kind: _by_key(maps.get(kind)) for kind in ("hist", "stats", "min", "max")}
    for (priv, hook), stats in parts["stats"].items():
        shape = {kind: parts[kind].get((priv, hook)) for kind in ("hist", "min", "max")}
        probes.append(_summed_probe(place(priv, hook), stats, shape, mode, unit))
    return tuple(sorted(probes, key=lambda probe: (not probe.lookup, -(probe.sum or 0))))


def build_path(probes: Iterable[Probe], unit: str) -> Path | None:
    """Sum the engine's calls up over all hooks; None if there were none."""
    calls = list(probes)
    if not calls:
        return None
    total = sum(probe.sum or 0 for probe in calls)
    lookups = sum(probe.count for probe in calls if probe.lookup)
    return Path(sum(probe.count for probe in calls), total, total / lookups if lookups else None, unit)


def merge_probes(probes: Iterable[Probe]) -> Probe | None:
    """Add probes of one engine up to one, of no table, chain or hook; None if there are none."""
    calls = list(probes)
    if not calls:
        return None
    count, total = sum(probe.count for probe in calls), sum(probe.sum or 0 for probe in calls)
    return Probe(
        engine=calls[0].engine,
        table=None,
        chain=None,
        hook=None,
        lookup=False,
        count=count,
        min=min((probe.min for probe in calls if probe.min is not None), default=None),
        max=max((probe.max for probe in calls if probe.max is not None), default=None),
        mean=total / count if count else None,
        mode=None,
        sum=total,
        unit=calls[0].unit,
    )


def _entries(found: Map | None) -> Iterable[Any]:
    return found.entries if found else ()


def _by_key(found: Map | None) -> dict[tuple[int, ...], Any]:
    """Entries by key; a pointer, which some versions print as a negative number, as its 64 bits."""
    return {(entry.key[0] & _U64, *entry.key[1:]): entry.value for entry in _entries(found)}


def _is_lookup(key: Key, mode: Mode) -> bool:
    return key == (mode.table, mode.chain, HOOKS[mode.hook])


def _exact_probe(key: Key, values: Counter[int], mode: Mode, unit: str) -> Probe:
    count, total = values.total(), sum(value * each for value, each in values.items())
    return Probe(
        mode.engine,
        *key,
        lookup=_is_lookup(key, mode),
        count=count,
        min=min(values),
        max=max(values),
        mean=total / count,
        mode=min(values, key=lambda value: (-values[value], value)),
        sum=total,
        unit=unit,
        histogram=build_histogram(values),
        percentiles=compute_percentiles(values, PERCENTILES),
        values={str(value): values[value] for value in sorted(values)},
    )


def _summed_probe(key: Key, stats: Mapping[str, int], shape: Mapping[str, Any], mode: Mode, unit: str) -> Probe:
    buckets = shape["hist"]["buckets"] if shape["hist"] else []
    return Probe(
        mode.engine,
        *key,
        lookup=_is_lookup(key, mode),
        count=stats["count"],
        min=shape["min"],
        max=shape["max"],
        mean=stats["total"] / stats["count"] if stats["count"] else None,
        mode=None,
        sum=stats["total"],
        unit=unit,
        histogram=Histogram(tuple(Bucket(**each) for each in buckets if each["count"])),
    )
