"""A result as frozen dataclasses, and its JSON (schema ``kproxylat/1``). ``None`` is what could not be had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Any, NamedTuple

from kproxylat.modes import find_rows

SCHEMA = "kproxylat/1"
IpNetwork = IPv4Network | IPv6Network
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
    ``values`` has every distinct value with its count, where the script kept them; ``targets`` has them of each target
    (``IP:PORT/PROTOCOL``), where packets were sent to many.

    ``envelope``: it is no engine's, but nf_hook_slow around all of the packet's engine calls at this hook, with
    conntrack, NAT and whatever else has hooked there; ``share`` (0 to 1) is the part of its time that these calls take.
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
    targets: Mapping[str, Mapping[str, int]] | None = None
    envelope: bool = False
    share: float | None = None

    @property
    def middle(self) -> float | None:
        """The figure that stands for the calls: on the instruction clock the commonest, else the median."""
        median = self.percentiles.get("50")
        return self.mode if self.unit == "instructions" else median.estimate if median else None


@dataclass(frozen=True)
class Run:
    """When, where, with what and how it was measured.

    ``origin``: whose packets, a "pod"'s or the "node"'s own. ``script_sha256``: of the probe script with other numbers
    in place of the sources and the network namespace, which cost nothing. ``position_after``: the rule's place when the
    run ended, ``chain_length_after`` likewise. ``sync_s``: how long kube-proxy took before the run, where its Services
    were changed for it.
    """

    started: str | None = None
    duration_s: float | None = None
    kproxylat: str | None = None
    mode: str | None = None
    backend: str | None = None
    origin: str | None = None
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
    position_after: int | None = None
    chain_length_after: int | None = None
    sync_s: float | None = None
    path: str | None = None
    masqueraded: bool | None = None
    cut_short: bool = False
    log: str | None = None


@dataclass(frozen=True)
class Target:
    """The ClusterIP, port and protocol under test; and what the cluster's API said of it, where it was asked.

    :param service: ``namespace/name``.
    :param ports: all of its ports of that number, e.g. ``grpc 50051/TCP``.
    :param endpoints: the ready ones, ``IP:PORT`` each.
    """

    ip: str
    port: int | None
    protocol: str | None
    service: str | None = None
    ports: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()


def join_host_port(ip: str, port: int | str) -> str:
    """Write ``IP:PORT``, an IPv6 address in brackets (RFC 3986, section 3.2.2), as Kubernetes does."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


class Destination(NamedTuple):
    """A target known whole: where packets are sent to."""

    ip: str
    port: int
    protocol: str

    @property
    def element(self) -> str:
        """The same as an element of an nft set or map."""
        return f"{self.ip} . {self.protocol} . {self.port}"

    def __str__(self) -> str:
        return f"{join_host_port(self.ip, self.port)}/{self.protocol}"


@dataclass(frozen=True)
class Path:
    """All engine calls of the target's packets, summed over the hooks; ``per_packet`` is sum over lookups."""

    calls: int
    sum: int
    per_packet: float | None
    unit: str


@dataclass(frozen=True)
class Traffic:
    """What the generator was asked for and what it says it did; with "none" others sent, and nothing was asked for."""

    generator: str
    asked: int | None
    sent: int | None
    errors: int | None
    pps: float | None
    rate_pps: int | None
    flows: int | None
    warmup: int | None


@dataclass(frozen=True)
class Bounded:
    """A figure as an estimate and the bounds ``[lo, hi]`` around it, which are equal where it is exact."""

    estimate: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Overhead:
    """What tracing adds to one engine call, measured from outside: nf_hook_slow around it, timed with and without.

    ``empty``: what an empty pair of probes on the engine adds; ``script``: what ours adds; both in ``unit``, from three
    bursts of so many ``packets`` each, at ``hook``, where a packet makes so many ``calls`` of the engine. Most of
    ``script`` is done after the call's time was taken. ``stored``: what storing the time of entry takes, all inside.

    Not in it: what tracing does to the processor's caches, on the time clock, beyond these calls.
    """

    unit: str
    hook: str
    packets: int
    calls: int
    empty: Bounded
    script: Bounded
    stored: int

    def untraced(self, measured: float) -> tuple[float, float]:
        """Return the bounds of what a call costs that nobody traces.

        Inside the measured time are the storing, and the part of an empty pair between its two programs: more than
        nothing of it, and less than all.

        :param measured: what a call costs that our script traces.
        """
        return max(measured - self.stored - self.empty.hi, 0), max(measured - self.stored, 0)


@dataclass(frozen=True)
class Accounting:
    """The books: each count is taken from a counter that does not know of the others.

    ``delivered``: packets that reached the endpoint; ``untranslated``: those that left the node with the ClusterIP
    still on them; ``rejected``: ICMP errors that came back. ``closed`` says whether they agree, ``difference`` says
    where they don't, and which counter explains it.

    Not held against the others: ``entries``, conntrack entries made; ``strayed``, our packets that arrived at the
    endpoint's namespace for another address or port; ``others``, packets of other senders at the endpoint; ``drops``,
    packets lost by reason, as :data:`kproxylat.node.drops.DROPS` has them. None is what could not be had.

    Only where asked for: ``other_calls``, the engine's calls of other packets while it was traced; ``freed``, packets
    that the whole machine freed meanwhile, by the kernel's reason (enum skb_drop_reason).
    """

    sent: int | None
    lookups: int | None
    rule_hits: int | None
    delivered: int | None
    untranslated: int | None
    rejected: int | None
    closed: bool
    difference: str | None = None
    entries: int | None = None
    strayed: int | None = None
    others: int | None = None
    drops: Mapping[str, int] | None = None
    other_calls: int | None = None
    freed: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Quality:
    """What may have spoiled the numbers.

    ``missed_probes``: calls whose exit was never seen; None where there were none that we know of, and none can be
    ruled out (fentry). ``stray_exits``: exits of kretprobes without an entry, where the script counts them.
    """

    lost_events: int | None = 0
    missed_probes: int | None = None
    stray_exits: int | None = None
    full_maps: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One entry of a map: its key parts (none for an unkeyed map) and its value, as :class:`Map` says.

    :param percentiles: of a hist's or lhist's values, in their unit; ``None`` where they were not asked for.
    """

    key: tuple[Any, ...]
    value: Any
    percentiles: Mapping[str, Percentile] | None = None


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
class ServiceCost:
    """What a Service's lookup costs, where many were measured in one run.

    :param name: ``namespace/name:port``. ``target``: ``IP:PORT/PROTOCOL``. ``before``: Services before it in the rules.
    :param cost: the commonest value (instructions) or the median (ns) of ``calls``, which are from ``min`` to ``max``.
    """

    name: str
    target: str
    before: int
    calls: int
    cost: int
    min: int
    max: int


@dataclass(frozen=True)
class Source:
    """Where a parsed result comes from: file, dialect, and its place among the runs of that file."""

    file: str
    dialect: str
    index: int


@dataclass(frozen=True)
class Result:
    """One measurement. ``intervals`` and ``slow`` are by the log's own word for the engine ("" where it has none).
    ``services``: where many were sent to, the dearest first."""

    run: Run
    target: Target | None = None
    probes: tuple[Probe, ...] = ()
    path: Path | None = None
    traffic: Traffic | None = None
    accounting: Accounting | None = None
    quality: Quality = Quality()
    maps: Mapping[str, Map] = field(default_factory=dict)
    overhead: Overhead | None = None
    source: Source | None = None
    intervals: Mapping[str, Samples] = field(default_factory=dict)
    slow: Mapping[str, Samples] = field(default_factory=dict)
    services: tuple[ServiceCost, ...] = ()

    @property
    def calls(self) -> tuple[Probe, ...]:
        """The probes of the engine's calls, without the envelopes around them."""
        return tuple(probe for probe in self.probes if not probe.envelope)

    @property
    def lookup(self) -> Probe | None:
        """The probe that is the Service lookup, where there was one."""
        return next((probe for probe in self.probes if probe.lookup), None)

    @property
    def main_probe(self) -> Probe | None:
        """The probe that stands for the run in one line: the lookup, else that of its mode, else the busiest."""
        rows = find_rows(self.run.mode or "", self.run.backend)
        engine = rows[0].engine if rows else None
        probes = sorted(
            self.probes, key=lambda probe: (not probe.envelope, probe.lookup, probe.engine == engine, probe.count)
        )
        return probes[-1] if probes else None


def target_text(result: Result) -> str:
    """Write a result's target as ``IP:PORT/PROTOCOL``, without what is not known of it."""
    target = result.target
    if not target:
        return ""
    address = join_host_port(target.ip, target.port) if target.port else target.ip
    return address + (f"/{target.protocol}" if target.protocol else "")
