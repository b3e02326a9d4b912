"""A result as frozen dataclasses, and its JSON (schema ``kproxylat/1``). ``None`` is what could not be had."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, NamedTuple

SCHEMA = "kproxylat/1"
HOOKS = {0: "PREROUTING", 1: "INPUT", 2: "FORWARD", 3: "OUTPUT", 4: "POSTROUTING"}
"""Number of a netfilter hook -> its name (kernel, ``include/uapi/linux/netfilter.h``, ``enum nf_inet_hooks``)."""


@dataclass(frozen=True)
class Bucket:
    """``count`` events in ``[lo, hi)``; ``None`` is an open end."""

    lo: int | None
    hi: int | None
    count: int


@dataclass(frozen=True)
class Histogram:
    """Buckets in ascending order, those without events left out."""

    buckets: tuple[Bucket, ...] = ()


@dataclass(frozen=True)
class Percentile:
    """A percentile as an estimate and the bounds ``[lo, hi]`` that certainly contain it.

    A bound is ``None`` where the histogram is open and no min or max is known; then there is no estimate either.
    """

    estimate: float | None
    lo: float | None
    hi: float | None


@dataclass(frozen=True)
class Probe:
    """The calls of one engine function for one table or chain and one hook.

    ``min`` to ``sum`` and the histogram are in ``unit`` ("ns", "instructions", or the whole "us" of the old scripts'
    logs); ``mode`` is the commonest value;
    ``values`` has every distinct value with its count, where the script kept them.
    """

    engine: str
    table: str | None
    chain: str | None
    hook: str | None
    lookup: bool
    count: int
    min: int | None
    max: int | None
    mean: float | None
    mode: int | None
    sum: int | None
    unit: str
    histogram: Histogram = Histogram()
    percentiles: Mapping[str, Percentile] = field(default_factory=dict)
    values: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Run:
    """When, where, with what and how it was measured."""

    started: str | None = None
    duration_s: float | None = None
    kproxylat: str | None = None
    mode: str | None = None
    backend: str | None = None
    clock: str | None = None
    emulated: bool | None = None
    kernel: str | None = None
    bpftrace: str | None = None
    probe_kind: str | None = None
    script_sha256: str | None = None
    mitigations: Mapping[str, str] | None = None
    arguments: tuple[str, ...] = ()
    services: int | None = None
    position: int | None = None
    chain_length: int | None = None
    path: str | None = None
    masqueraded: bool | None = None
    cut_short: bool = False
    log: str | None = None


@dataclass(frozen=True)
class Target:
    """The ClusterIP, port and protocol under test."""

    ip: str
    port: int | None
    protocol: str | None


class Destination(NamedTuple):
    """A target known whole: where packets are sent to."""

    ip: str
    port: int
    protocol: str

    def __str__(self) -> str:
        return f"{self.ip}:{self.port}/{self.protocol}"


@dataclass(frozen=True)
class Path:
    """All engine calls of the target's packets, summed over the hooks; ``per_packet`` is sum over lookups."""

    calls: int
    sum: int
    per_packet: float | None
    unit: str


@dataclass(frozen=True)
class Traffic:
    """What the generator was asked for and what it says it did."""

    generator: str
    asked: int | None
    sent: int | None
    errors: int | None
    pps: float | None
    rate_pps: int
    flows: int | None
    warmup: int | None


@dataclass(frozen=True)
class Accounting:
    """The books: each count is taken from a counter that does not know of the others.

    ``delivered``: packets that reached the endpoint; ``untranslated``: those that left the node with the ClusterIP
    still on them; ``rejected``: ICMP errors that came back. ``closed`` says whether they agree, ``difference`` says
    where they don't.
    """

    sent: int | None
    lookups: int | None
    rule_hits: int | None
    delivered: int | None
    untranslated: int | None
    rejected: int | None
    closed: bool
    difference: str | None = None


@dataclass(frozen=True)
class Quality:
    """What may have spoiled the numbers."""

    lost_events: int | None = 0
    missed_probes: int | None = None
    full_maps: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One entry of a map: its key parts (none for an unkeyed map) and its value, as :class:`Map` says."""

    key: tuple[Any, ...]
    value: Any


@dataclass(frozen=True)
class Map:
    """A map that bpftrace printed.

    :param kind: "int", "float", "str", "hist", "lhist", "stats", "tuple", "stack", ...
    :param entries: values are an int, str, tuple ... as ``kind`` says; of hist and lhist a dict
        ``{"count": total, "buckets": [{"lo", "hi", "count"}]}``; of stats ``{"count", "average", "total"}``.
    """

    kind: str
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One line of a log: a slow call, or what an interval's block or row says; latencies in whole us."""

    time: str
    count: int | None = None
    min: int | None = None
    mean: int | None = None
    max: int | None = None
    tid: int | None = None


@dataclass(frozen=True)
class Samples:
    """Many lines of one kind summed up.

    :param lines: how many there were.
    :param total: the events they speak of; of blocks that count from the start, those of the last one.
    :param worst: up to ten with the greatest ``max``, greatest first, the earlier first where they are equal.
    """

    lines: int
    total: int
    first: Sample
    last: Sample
    worst: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class Source:
    """Where a parsed result comes from: file, dialect, and its place among the runs of that file."""

    file: str
    dialect: str
    index: int


@dataclass(frozen=True)
class Result:
    """One measurement. ``intervals`` and ``slow`` are by the log's own word for the engine ("" where it has none)."""

    run: Run
    target: Target | None = None
    probes: tuple[Probe, ...] = ()
    path: Path | None = None
    traffic: Traffic | None = None
    accounting: Accounting | None = None
    quality: Quality = Quality()
    maps: Mapping[str, Map] = field(default_factory=dict)
    source: Source | None = None
    intervals: Mapping[str, Samples] = field(default_factory=dict)
    slow: Mapping[str, Samples] = field(default_factory=dict)

    @property
    def lookup(self) -> Probe | None:
        """The probe that is the Service lookup, where there was one."""
        return next((probe for probe in self.probes if probe.lookup), None)


def target_text(result: Result) -> str:
    """Write a result's target as ``IP:PORT/PROTOCOL``, without what is not known of it."""
    target = result.target
    if not target:
        return ""
    return target.ip + (f":{target.port}" if target.port else "") + (f"/{target.protocol}" if target.protocol else "")


def to_json(result: Result) -> str:
    """Write a result as one JSON document."""
    return json.dumps({"schema": SCHEMA, **asdict(result)}, indent=2, ensure_ascii=False)


def list_to_json(results: Iterable[Result]) -> str:
    """Write results as one JSON document, ``{"schema": ..., "results": [...]}``."""
    return json.dumps({"schema": SCHEMA, "results": [asdict(each) for each in results]}, indent=2, ensure_ascii=False)


def from_json(text: str | bytes) -> Result:
    """Read what :func:`to_json` wrote.

    :raises ValueError: not JSON, another schema, or fields that do not fit.
    """
    data = json.loads(text)
    if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
        raise ValueError(f"no document of schema {SCHEMA}")
    try:
        result: Result = _build(Result, data)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a result of schema {SCHEMA}: {error}") from error
    return result


def _build(kind: Any, data: Any) -> Any:
    """Build a value of an annotated type from JSON data: dataclasses, tuples, mappings and optionals of these."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if data is None or kind is Any:
        return data
    if origin is types.UnionType:
        return _build(next(arg for arg in args if arg is not type(None)), data)
    if is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        known = {item.name: _build(hints[item.name], data[item.name]) for item in fields(kind) if item.name in data}
        return kind(**known)
    if origin is tuple:
        return tuple(_build(args[0], item) for item in data)
    if origin in (dict, Mapping) or (isinstance(data, dict) and args):
        return {key: _build(args[1], item) for key, item in data.items()}
    return data
