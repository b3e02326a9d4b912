"""Builder of a result's probes from the maps of kproxylat's probe script. Pure."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

from kproxylat.modes import MODES, Mode
from kproxylat.results import HOOKS, Bucket, Histogram, Map, Path, Probe, Target
from kproxylat.trace.percentiles import PERCENTILES, compute_percentiles, estimate_percentiles

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
"""The script's own maps: kind ("": any, since names may look like any kind) and number of key parts, all integers."""
ENVELOPE = "nf_hook_slow"
"""The kernel function that calls everything that has registered at a netfilter hook."""
NESTING = {row.engine for row in MODES if row.nested}
"""The engines whose call at INPUT contains their call at OUTPUT."""
_SUB_BUCKETS = 5
_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
_U64 = (1 << 64) - 1

Key = tuple[str | None, str | None, str | None]
"""Table, chain and hook of a probe."""


def bucket_bounds(value: int) -> tuple[int, int]:
    """Return ``[lo, hi)`` of a value's bucket: each power of two has 32 buckets, as in bpftrace's ``hist(n, 5)``."""
    shift = max(value.bit_length() - 1 - _SUB_BUCKETS, 0)
    lo = value >> shift << shift
    return lo, lo + (1 << shift)


def build_histogram(values: Mapping[int, int]) -> Histogram:
    """Count values (value -> events) in buckets of at most 3.1 % width."""
    counts: Counter[tuple[int, int]] = Counter()
    for value, count in values.items():
        counts[bucket_bounds(value)] += count
    return Histogram(tuple(Bucket(lo, hi, count) for (lo, hi), count in sorted(counts.items())))


def split_maps(maps: Mapping[str, Map]) -> tuple[dict[str, Map], dict[str, Map]]:
    """Split maps into the script's own and those of a user's template, which may use the same names.

    :return: own maps, empty if none of them holds calls; and the others.
    """
    own = {name: values for name, values in maps.items() if name in _OWN_MAPS and _fits(values, *_OWN_MAPS[name])}
    if not own.keys() & {"n", "stats", "envelope"}:
        own = {}
    return own, {name: values for name, values in maps.items() if name not in own}


def _fits(values: Map, kind: str, parts: int) -> bool:
    keys_fit = all(
        len(entry.key) == parts and all(isinstance(part, int) for part in entry.key) for entry in values.entries
    )
    return keys_fit and kind in ("", values.kind)


def build_probes(maps: Mapping[str, Map], mode: Mode, unit: str) -> tuple[Probe, ...]:
    """Build the probes of a run: the lookup first, then the others by descending sum; envelopes come last.

    :param maps: the own maps of :func:`split_maps`: ``@n[call, value]`` or ``@hist``, ``@stats``, ``@min``, ``@max`` by
        ``[call]``; ``@targets[target, call, value]``; ``@table[priv]``, ``@chain[priv]``, ``@hook[priv]``;
        ``@envelope[hook, value]``.
    :param mode: decides which probe is the lookup.
    :param unit: "ns" or "instructions".
    """
    tables, chains, hooks = _by_key(maps.get("table")), _by_key(maps.get("chain")), read_hooks(maps)

    def place(call: int) -> Key:
        priv, hook = split_call(call, hooks)
        table, chain = tables.get((priv,)), chains.get((priv,))
        return table and str(table), chain and str(chain), HOOKS.get(hook, str(hook))

    exact: dict[Key, Counter[int]] = defaultdict(Counter)
    for call, value, count in _counts(maps.get("n")):
        exact[place(call)][value] += count
    targets: dict[Key, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    # Of an IPv6 address a word of the map's key has but a part.
    for target, call, value, count in _counts(maps.get("targets") if mode.family == 4 else None):
        targets[place(call)][name_target(target)][str(value)] = count
    probes = []
    for key, values in exact.items():
        probe = exact_probe(mode.engine, key, values, unit, _is_lookup(key, mode))
        is_split = probe.lookup and key in targets
        probes.append(replace(probe, targets=dict(targets[key])) if is_split else probe)
    parts = {kind: _by_key(maps.get(kind)) for kind in ("hist", "min", "max")}
    for call_key, stats in _by_key(maps.get("stats")).items():
        shape = {kind: part.get(call_key) for kind, part in parts.items()}
        probes.append(_summed_probe(place(*call_key), stats, shape, mode, unit))
    probes += _build_envelopes(maps.get("envelope"), probes, unit)
    return tuple(sorted(probes, key=lambda probe: (probe.envelope, not probe.lookup, -(probe.sum or 0))))


def values_by_hook(envelope: Map | None) -> dict[int, Counter[int]]:
    """Split ``@envelope[hook, value]``: number of the hook -> value -> events."""
    hooks: dict[int, Counter[int]] = defaultdict(Counter)
    for hook, value, count in _counts(envelope):
        hooks[hook][value] += count
    return hooks


def _build_envelopes(envelope: Map | None, calls: Sequence[Probe], unit: str) -> Iterator[Probe]:
    for hook, values in values_by_hook(envelope).items():
        key = None, None, HOOKS.get(hook, str(hook))
        probe = exact_probe(ENVELOPE, key, values, unit)
        inside = sum(call.sum or 0 for call in calls if call.hook == probe.hook)
        share = inside / probe.sum if probe.sum else None
        yield replace(probe, envelope=True, share=share)


def counts_calls(script: str) -> bool:
    """Return whether a script has the maps that probes are built from; a user's template may lack them."""
    return "@n[" in script or "@stats[" in script


def build_path(probes: Iterable[Probe], unit: str) -> Path | None:
    """Add up the engine's calls at all hooks.

    The lookup of ipvs at INPUT sends the packet on and so contains the call at OUTPUT, which is not added again.

    :return: None if there were no calls.
    """
    calls = [probe for probe in probes if not probe.envelope]
    if not calls:
        return None
    if any(probe.lookup and probe.engine in NESTING and probe.hook == "INPUT" for probe in calls):
        calls = [probe for probe in calls if probe.hook != "OUTPUT"]
    total = sum(probe.sum or 0 for probe in calls)
    lookups = sum(probe.count for probe in calls if probe.lookup)
    return Path(sum(probe.count for probe in calls), total, total / lookups if lookups else None, unit)


def merge_probes(probes: Iterable[Probe]) -> Probe | None:
    """Merge probes of one engine into one without table, chain and hook.

    :return: None if there are no probes.
    """
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


def name_target(words: int) -> str:
    """Return a target as ``IP:PORT/PROTOCOL``, given bytes in network order that this machine read as a number."""
    address, rest = ((words >> shift & 0xFFFFFFFF).to_bytes(4, sys.byteorder) for shift in (32, 0))
    return str(Target(str(IPv4Address(address)), int.from_bytes(rest[:2], "big"), _PROTOCOLS.get(rest[2], "?")))


def read_hooks(maps: Mapping[str, Map]) -> dict[int, int]:
    """Read ``@hook[priv]``, which exists if the call has no hook: table or chain -> number of the hook."""
    return {priv: hook for (priv,), hook in _by_key(maps.get("hook")).items()}


def split_call(call: int, hooks: Mapping[int, int]) -> tuple[int, int]:
    """Split a call into the table or chain (64 bits) and the number of the hook.

    :param call: as printed; some versions of bpftrace print it as a negative number.
    :param hooks: result of :func:`read_hooks`.
    """
    priv = call & _U64 & ~7
    return priv, hooks.get(priv, call & 7)


def _entries(values: Map | None) -> Iterable[Any]:
    return values.entries if values else ()


def _counts(values: Map | None) -> Iterator[tuple[int, ...]]:
    """Yield each entry's key and value as one tuple, except values of 0, which a template sets: they count no calls."""
    return ((*entry.key, entry.value) for entry in _entries(values) if entry.value > 0)


def _by_key(values: Map | None) -> dict[tuple[int, ...], Any]:
    """Return key -> value; some versions print a pointer in a key as a negative number, here it is its 64 bits."""
    return {(entry.key[0] & _U64, *entry.key[1:]): entry.value for entry in _entries(values)}


def _is_lookup(key: Key, mode: Mode) -> bool:
    return key == (mode.table, mode.chain, HOOKS[mode.hook])


def exact_probe(
    engine: str,
    key: Key,
    values: Counter[int],
    unit: str,
    lookup: bool = False,
    percents: Iterable[float] = PERCENTILES,
) -> Probe:
    """Build a probe from every distinct value.

    :param engine: the function whose calls took so long; ``key``: its table, chain and hook.
    :param values: value -> count, in ``unit``; not empty.
    """
    count, total = values.total(), sum(value * events for value, events in values.items())
    return Probe(
        engine,
        *key,
        lookup=lookup,
        count=count,
        min=min(values),
        max=max(values),
        mean=total / count,
        mode=min(values, key=lambda value: (-values[value], value)),
        sum=total,
        unit=unit,
        histogram=build_histogram(values),
        percentiles=compute_percentiles(values, percents),
        values={str(value): values[value] for value in sorted(values)},
    )


def _summed_probe(key: Key, stats: Mapping[str, int], shape: Mapping[str, Any], mode: Mode, unit: str) -> Probe:
    histogram = Histogram.of(shape["hist"]) if shape["hist"] else Histogram()
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
