"""The maps of our probe script -> the probes of a result. Pure."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

from kproxylat.model import HOOKS, Bucket, Destination, Histogram, Map, Path, Probe
from kproxylat.modes import Mode
from kproxylat.percentiles import PERCENTILES, compute_percentiles, estimate_percentiles

_OWN_MAPS = {
    "n": ("int", 2),
    "targets": ("int", 3),
    "to": ("int", 1),
    "hist": ("hist", 1),
    "stats": ("stats", 1),
    "min": ("int", 1),
    "max": ("int", 1),
    "table": ("", 1),
    "chain": ("", 1),
    "hook": ("int", 1),
    "start": ("int", 1),
    "seen": ("int", 1),
    "call": ("int", 1),
    "missed": ("int", 0),
    "strays": ("int", 0),
    "others": ("int", 0),
    "reasons": ("int", 1),
    "envelope": ("int", 2),
    "begun": ("int", 1),
    "within": ("int", 1),
}
"""Our script's maps: kind (names may look like any) and number of key parts, all of them integers."""
ENVELOPE = "nf_hook_slow"
"""The kernel's function that calls everybody who has hooked into a netfilter hook."""
NESTING = "ip_vs_in_hook"
_SUB_BUCKETS = 5
_PROTOCOLS = {6: "tcp", 17: "udp"}
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


def split_maps(maps: Mapping[str, Map]) -> tuple[dict[str, Map], dict[str, Map]]:
    """Split maps into our script's own, and those of a user's template, which may have taken the same names.

    :return: own maps, empty where none of them holds calls; and the others.
    """
    own = {name: each for name, each in maps.items() if name in _OWN_MAPS and _fits(each, *_OWN_MAPS[name])}
    if not own.keys() & {"n", "stats", "envelope"}:
        own = {}
    return own, {name: each for name, each in maps.items() if name not in own}


def _fits(each: Map, kind: str, parts: int) -> bool:
    keys_fit = all(
        len(entry.key) == parts and all(isinstance(part, int) for part in entry.key) for entry in each.entries
    )
    return keys_fit and kind in ("", each.kind)


def build_probes(maps: Mapping[str, Map], mode: Mode, unit: str) -> tuple[Probe, ...]:
    """Build the probes of a run, the lookup first, then by the time they take; envelopes come last.

    :param maps: our own (:func:`split_maps`): ``@n[call, value]`` or ``@hist``, ``@stats``, ``@min``, ``@max`` by
        ``[call]``; ``@targets[target, call, value]``; ``@table[priv]``, ``@chain[priv]``, ``@hook[priv]``;
        ``@envelope[hook, value]``.
    :param unit: "ns" or "instructions".
    """
    names, hooks = {kind: _by_key(maps.get(kind)) for kind in ("table", "chain")}, read_hooks(maps)

    def place(call: int) -> Key:
        priv, hook = split_call(call, hooks)
        key = (priv,)
        table, chain = (names[kind].get(key) for kind in ("table", "chain"))
        return table and str(table), chain and str(chain), HOOKS.get(hook, str(hook))

    exact: dict[Key, Counter[int]] = defaultdict(Counter)
    for call, value, count in _counts(maps.get("n")):
        exact[place(call)][value] += count
    probes = [_exact_probe(key, values, mode, unit) for key, values in exact.items()]
    targets: dict[Key, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    for target, call, value, count in _counts(maps.get("targets")):
        targets[place(call)][_name_target(target)][str(value)] = count
    by_target = {key: dict(each) for key, each in targets.items()}
    probes = [
        replace(each, targets=by_target.get((each.table, each.chain, each.hook))) if each.lookup else each
        for each in probes
    ]
    parts = {kind: _by_key(maps.get(kind)) for kind in ("hist", "stats", "min", "max")}
    for key, stats in parts["stats"].items():
        shape = {kind: parts[kind].get(key) for kind in ("hist", "min", "max")}
        probes.append(_summed_probe(place(*key), stats, shape, mode, unit))
    probes += _build_envelopes(maps.get("envelope"), probes, mode, unit)
    return tuple(sorted(probes, key=lambda probe: (probe.envelope, not probe.lookup, -(probe.sum or 0))))


def values_by_hook(found: Map | None) -> dict[int, Counter[int]]:
    """Split ``@envelope[hook, value]``: number of the hook -> value -> events."""
    hooks: dict[int, Counter[int]] = defaultdict(Counter)
    for hook, value, count in _counts(found):
        hooks[hook][value] += count
    return hooks


def _build_envelopes(found: Map | None, calls: Sequence[Probe], mode: Mode, unit: str) -> Iterator[Probe]:
    for hook, values in values_by_hook(found).items():
        key = None, None, HOOKS.get(hook, str(hook))
        probe = _exact_probe(key, values, mode, unit)
        inside = sum(each.sum or 0 for each in calls if each.hook == probe.hook)
        share = inside / probe.sum if probe.sum else None
        yield replace(probe, engine=ENVELOPE, lookup=False, envelope=True, share=share)


def counts_calls(script: str) -> bool:
    """Tell whether a script has the maps from which probes are built; a template of the user's may not."""
    return "@n[" in script or "@stats[" in script


def build_path(probes: Iterable[Probe], unit: str) -> Path | None:
    """Sum the engine's calls up over all hooks; None if there were none.

    ipvs' lookup at INPUT sends the packet on, and so holds its call at OUTPUT: that is left out.
    """
    calls = [probe for probe in probes if not probe.envelope]
    if not calls:
        return None
    if any(probe.lookup and probe.engine == NESTING and probe.hook == "INPUT" for probe in calls):
        calls = [probe for probe in calls if probe.hook != "OUTPUT"]
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


def _name_target(words: int) -> str:
    """Write a target as ``IP:PORT/PROTOCOL``; its words are this machine's numbers of bytes in network order."""
    address, rest = ((words >> shift & 0xFFFFFFFF).to_bytes(4, sys.byteorder) for shift in (32, 0))
    return str(Destination(str(IPv4Address(address)), int.from_bytes(rest[:2], "big"), _PROTOCOLS.get(rest[2], "?")))


def read_hooks(maps: Mapping[str, Map]) -> dict[int, int]:
    """Read ``@hook[priv]``: table or chain -> number of the hook, where it is not in the call."""
    return {priv: hook for (priv,), hook in _by_key(maps.get("hook")).items()}


def split_call(call: int, hooks: Mapping[int, int]) -> tuple[int, int]:
    """Split a call, printed as a negative number by some versions: table or chain (64 bits), number of the hook.

    :param hooks: :func:`read_hooks`.
    """
    priv = call & _U64 & ~7
    return priv, hooks.get(priv, call & 7)


def _entries(found: Map | None) -> Iterable[Any]:
    return found.entries if found else ()


def _counts(found: Map | None) -> Iterator[tuple[int, ...]]:
    """Yield each entry's key and value as one; a template may have set values to 0, which are no calls."""
    return ((*entry.key, entry.value) for entry in _entries(found) if entry.value > 0)


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
    histogram = Histogram(tuple(Bucket(**each) for each in buckets if each["count"]))
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
        histogram=histogram,
        percentiles=estimate_percentiles([histogram], PERCENTILES, shape["min"], shape["max"]),
    )
