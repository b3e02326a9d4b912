"""A result as frozen dataclasses (JSON schema ``kproxylat/1``). ``None`` stands for an unknown value.

Longer than 350 lines: the dataclasses of one document stay together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from kproxylat.modes import find_rows

SCHEMA = "kproxylat/1"
IpNetwork = IPv4Network | IPv6Network
HOOKS = {0: "PREROUTING", 1: "INPUT", 2: "FORWARD", 3: "OUTPUT", 4: "POSTROUTING"}
"""Number of a netfilter hook -> its name (kernel, ``include/uapi/linux/netfilter.h``, ``enum nf_inet_hooks``)."""


MEASURED = {"connect": "first packet", "sendto": "send time"}
"""System call that kproxylat times itself -> what its duration is called."""


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

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Histogram:
        """Return the histogram of a map's value, as :func:`kproxylat.trace.dump.parse_dump` returns it."""
        return cls(tuple(Bucket(**row) for row in value["buckets"] if row["count"]))


@dataclass(frozen=True)
class Percentile:
    """A percentile as an estimate and the bounds ``[lo, hi]`` that certainly contain it.

    Where the histogram is open and min or max is unknown, the bound and the estimate are ``None``.
    """

    estimate: float | None
    lo: float | None
    hi: float | None


@dataclass(frozen=True)
class Probe:
    """The calls of one engine function for one table or chain and one hook.

    :param unit: of ``min`` to ``sum`` and the histogram: "ns", "instructions", or the whole "us" of old scripts' logs.
    :param mode: the commonest value.
    :param values: every distinct value -> its count, if the script kept them; ``targets``: the same for each target
        (``IP:PORT/PROTOCOL``), if there were many.
    :param envelope: the call is not an engine's but nf_hook_slow around all of the packet's engine calls at this hook,
        with conntrack, NAT and other functions; ``share`` (0 to 1) is the engine calls' part of its time.
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
    def counts(self) -> Counter[int]:
        """Every distinct value, as a number -> its count; empty if the script did not keep them."""
        return Counter({int(value): count for value, count in (self.values or {}).items()})

    @property
    def measured(self) -> str:
        """What took so long, in words: "lookup", or another of :data:`MEASURED`."""
        return MEASURED.get(self.engine, "lookup")

    @property
    def middle(self) -> float | None:
        """The figure that represents the calls: on the instruction clock the commonest, else the median."""
        median = self.percentiles.get("50")
        return self.mode if self.unit == "instructions" else median.estimate if median else None


@dataclass(frozen=True)
class Run:
    """When, where and how the result was measured.

    :param origin: of the packets: a "pod" or the "node".
    :param processor: its model and the sizes of its caches.
    :param script_sha256: of the probe script with fixed numbers for the sources and the network namespace.
    :param position_after: the rule's place when the run ended; ``chain_length_after`` likewise.
    :param sync_s: duration of kube-proxy's sync before the run, if the run changed Services.
    :param load_s: how long the lab took to load its rules, or those on top of the ones that stood.
    :param kube_proxy: the release whose rules the lab was asked for (None: the default one, or not a lab).
    :param endpoints: the number of endpoints of each Service that the lab was asked for; ``affinity``: whether its
        Services have session affinity; ``node_port``: whether packets went to a NodePort.
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
    processor: str | None = None
    arguments: tuple[str, ...] = ()
    services: int | None = None
    position: int | None = None
    chain_length: int | None = None
    position_after: int | None = None
    chain_length_after: int | None = None
    sync_s: float | None = None
    load_s: float | None = None
    kube_proxy: str | None = None
    endpoints: int | None = None
    affinity: bool = False
    node_port: bool = False
    path: str | None = None
    masqueraded: bool | None = None
    cut_short: bool = False
    log: str | None = None

    @property
    def rules(self) -> tuple[str, str]:
        """Mode and backend, this with what the lab's rules were asked to be: what a series has in common."""
        return self.mode or "unknown", " ".join(filter(None, (self.backend or "unknown", self.variant)))

    @property
    def variant(self) -> str:
        """As :func:`name_variant` names it."""
        return name_variant(self.kube_proxy, self.endpoints, self.affinity, self.node_port)


def name_variant(release: str | None, endpoints: int | None, affinity: bool, node_port: bool) -> str:
    """Name what a lab's rules were asked to be, e.g. ``1.37 4 endpoints affinity``; "" is what they are by default."""
    many = f"{endpoints} endpoints" if endpoints and endpoints > 1 else None
    words = release, many, "affinity" if affinity else None, "NodePort" if node_port else None
    return " ".join(filter(None, words))


def join_host_port(ip: str, port: int | str) -> str:
    """Write ``IP:PORT``, an IPv6 address in brackets (RFC 3986, section 3.2.2), as Kubernetes does."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


@dataclass(frozen=True, order=True)
class Target:
    """A destination of packets, and what the cluster's API says about it. Equal ones have the same destination.

    :param port: None only in logs of the old scripts; ``protocol`` likewise.
    :param service: ``namespace/name``.
    :param ports: all of the Service's ports of that number, e.g. ``grpc 50051/TCP``.
    :param endpoints: the ready ones, ``IP:PORT`` each.
    """

    ip: str
    port: int | None
    protocol: str | None
    service: str | None = field(default=None, compare=False)
    ports: tuple[str, ...] = field(default=(), compare=False)
    endpoints: tuple[str, ...] = field(default=(), compare=False)

    @property
    def address(self) -> str:
        """``IP:PORT``, or the IP alone if the port is unknown."""
        return join_host_port(self.ip, self.port) if self.port else self.ip

    @property
    def element(self) -> str:
        """The destination as an element of an nft set or map."""
        return f"{self.ip} . {self.protocol} . {self.port}"

    def __str__(self) -> str:
        return self.address + (f"/{self.protocol}" if self.protocol else "")


@dataclass(frozen=True)
class Path:
    """All engine calls of the target's packets, summed over the hooks; ``per_packet`` is sum over lookups."""

    calls: int
    sum: int
    per_packet: float | None
    unit: str


@dataclass(frozen=True)
class Traffic:
    """The packets asked of the generator, and those that it reports; generator "none": others sent."""

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
    """A figure as an estimate and the bounds ``[lo, hi]`` around it, which are equal if it is exact."""

    estimate: float
    lo: float
    hi: float

    @classmethod
    def around(cls, estimate: float, lo: float, hi: float) -> Bounded:
        """Return a figure whose bounds are widened, where they do not hold the estimate."""
        return cls(estimate, min(lo, estimate), max(hi, estimate))


@dataclass(frozen=True)
class Overhead:
    """The cost that tracing adds to one engine call, from nf_hook_slow around it, timed with and without tracing.

    On the time clock it does not include the effect of tracing on the processor's caches beyond these calls.

    :param unit: of ``empty``, ``script`` and ``stored``.
    :param packets: in each of three bursts, at ``hook``; each packet makes ``calls`` calls of the engine.
    :param empty: cost of an empty pair of probes; ``script``: cost of the script, most of it after the call's time is
        taken; ``stored``: cost of storing the time of entry, which is inside the call's time.
    """

    unit: str
    hook: str
    packets: int
    calls: int
    empty: Bounded
    script: Bounded
    stored: int

    def untraced(self, measured: float) -> tuple[float, float]:
        """Return the bounds of an untraced call's cost.

        The measured time includes the storing, and between nothing and all of an empty pair of probes.

        :param measured: cost of a call that the script traces.
        """
        own = measured - self.stored
        return max(own - max(self.empty.hi, 0), 0), max(own, 0)


@dataclass(frozen=True)
class SendTime:
    """The time of the sender's own system calls, each of which carries a packet through client, node and backend.

    Nothing is traced. A veth pair delivers in the sender's softirq (kernel, drivers/net/veth.c, veth_xmit), so the time
    of a call is that of the packet's whole way: conntrack, routing, netfilter, and the rules.

    :param target: packets to the target. ``endpoint``: to the endpoint itself; ``no_service``: to an address of no
        Service (None: not sent). Each has every distinct value.
    :param over_endpoint: what a packet to the target takes longer than one to the endpoint that is sent next to it: the
        median of the differences, with bounds from :data:`kproxylat.analysis.stats.LEVEL`; ``over_no_service``.
    :param clock: what reading the clock adds to each time.
    :param sent: "target", "endpoint" and "no_service" -> packets.
    :param preempted: likewise -> packets during which the sender lost the CPU. Their times are left out.
    :param checked: packets of which the sender checked that they arrive within the call, which leaves their times out;
        ``late``: those that had not arrived.
    :param blocks: medians of the target's times in equal parts of the run, from which bounds are drawn.
    """

    target: Probe
    endpoint: Probe | None
    no_service: Probe | None
    over_endpoint: Bounded | None
    over_no_service: Bounded | None
    clock: int
    sent: Mapping[str, int]
    preempted: Mapping[str, int]
    checked: int
    late: int
    blocks: tuple[float, ...] = ()

    @property
    def by_kind(self) -> dict[str, Probe]:
        """Where the packets went, in words -> their times."""
        kinds = {"the target": self.target, "the endpoint": self.endpoint, "no Service": self.no_service}
        return {kind: probe for kind, probe in kinds.items() if probe}


@dataclass(frozen=True)
class LookupCheck:
    """What two clocks say at one number of Services, where a part and the whole of a packet's way are all they share.

    Only a sweep tells what each Service adds by either clock.

    :param unit: of both.
    :param lookup: the untraced lookup's cost by the probe, within the bounds of :meth:`Overhead.untraced`.
    :param way: the time of untraced packets' whole way, which includes the lookup, by the sender's clock.
    :param over_endpoint: as in :class:`SendTime`: the endpoint's packets are looked up, too, and match nothing.
    :param agrees: whether the part is no longer than the whole.
    """

    unit: str
    lookup: Bounded
    way: Bounded
    over_endpoint: Bounded | None
    agrees: bool


@dataclass(frozen=True)
class PlaceTime:
    """The first packets to one of several Services, which lie in several places among the lab's Services.

    :param before: the Services before it. ``target``: ``IP:PORT/PROTOCOL``.
    :param median: with bounds from :data:`kproxylat.analysis.stats.LEVEL`.
    """

    before: int
    target: str
    count: int
    median: Bounded


@dataclass(frozen=True)
class FirstPacket:
    """The time from a connection's SYN to its SYN-ACK: SIG-Scalability's first_packet_latency, as the client sees it.

    :param probe: all times, with every distinct value, by target, too, if there were several. Its percentiles, of which
        100 is the maximum, have bounds from :data:`kproxylat.analysis.stats.LEVEL`: unlike those of other probes
        they are not certain.
    :param clock: what reading the clock adds to each time.
    :param sent: SYNs, of which ``refused`` and ``unanswered``.
    :param preempted: connections during which the sender lost the CPU. Their times are left out.
    :param blocks: medians of equal parts of the run, from which the bounds of a sweep are drawn.
    :param lookup_share: the traced lookup's part (0 to 1) of the median; None if nothing was traced.
    """

    probe: Probe
    clock: int
    sent: int
    refused: int
    unanswered: int
    preempted: int
    blocks: tuple[float, ...] = ()
    places: tuple[PlaceTime, ...] = ()
    lookup_share: float | None = None


@dataclass(frozen=True)
class Accounting:
    """The packet accounting (the books): counts from independent counters.

    :param delivered: packets that reached the endpoint; ``untranslated``: packets that left the node with the ClusterIP
        as destination; ``rejected``: ICMP errors that came back.
    :param closed: whether the counters agree (None: there is no second one); ``difference``: which do not, and the
        counter that explains it.
    :param entries: new conntrack entries; ``strayed``: packets that arrived in the endpoint's namespace for another
        address or port; ``others``: packets of other senders at the endpoint; ``drops``: lost packets by reason
        (:data:`kproxylat.node.drops.DROPS`). These four only explain differences.
    :param other_calls: the engine's calls of other packets; ``freed``: packets that the whole machine freed, by the
        kernel's reason (enum skb_drop_reason). Both only if requested.
    :param delivered_masqueraded: those of the delivered packets that arrived from an address of the node.
    """

    sent: int | None
    lookups: int | None
    rule_hits: int | None
    delivered: int | None
    untranslated: int | None
    rejected: int | None
    closed: bool | None
    difference: str | None = None
    entries: int | None = None
    strayed: int | None = None
    others: int | None = None
    drops: Mapping[str, int] | None = None
    other_calls: int | None = None
    freed: Mapping[str, int] | None = None
    delivered_masqueraded: int | None = None


@dataclass(frozen=True)
class Quality:
    """The problems that may have spoiled the numbers.

    :param missed_probes: calls that the kernel did not pass to the probes, and those without a traced exit; None:
        none known, but some are possible (fentry on kernels that do not count, before 5.12).
    :param stray_exits: exits of kretprobes without an entry, if the script counts them.
    """

    lost_events: int | None = 0
    missed_probes: int | None = None
    stray_exits: int | None = None
    full_maps: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One entry of a map: its key parts (none for an unkeyed map) and its value, as :class:`Map` says.

    :param percentiles: of a hist's or lhist's values, in their unit; ``None`` if not requested.
    """

    key: tuple[Any, ...]
    value: Any
    percentiles: Mapping[str, Percentile] | None = None


@dataclass(frozen=True)
class Map:
    """A map that bpftrace printed.

    :param kind: "int", "float", "str", "hist", "lhist", "stats", "tuple", "stack", ...
    :param entries: values of type ``kind``; for hist and lhist a dict
        ``{"count": total, "buckets": [{"lo", "hi", "count"}]}``; for stats ``{"count", "average", "total"}``.
    """

    kind: str
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One line of a log: a slow call, or the figures of an interval; latencies in whole us."""

    time: str
    count: int | None = None
    min: int | None = None
    mean: int | None = None
    max: int | None = None
    tid: int | None = None


@dataclass(frozen=True)
class Samples:
    """Many lines of one kind summed up.

    :param lines: number of lines.
    :param total: number of events in them; for blocks that count from the start, that of the last block.
    :param worst: up to ten with the greatest ``max``, greatest first; of equal ones the earlier first.
    """

    lines: int
    total: int
    first: Sample
    last: Sample
    worst: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class ServiceCost:
    """The cost of a Service's lookup, if one run measured many.

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
    """One measurement.

    :param intervals: by the log's own word for the engine ("" without one); ``slow`` likewise.
    :param services: if packets were sent to many, the most expensive first.
    """

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
    send_time: SendTime | None = None
    first_packet: FirstPacket | None = None
    cross_check: LookupCheck | None = None

    def warn(self, *warnings: str) -> Result:
        """Return the result with further warnings."""
        return replace(self, quality=replace(self.quality, warnings=self.quality.warnings + warnings))

    @property
    def calls(self) -> tuple[Probe, ...]:
        """The probes of the engine's calls, without the envelopes around them."""
        return tuple(probe for probe in self.probes if not probe.envelope)

    @property
    def lookup(self) -> Probe | None:
        """The probe of the Service lookup, if one was traced."""
        return next((probe for probe in self.probes if probe.lookup), None)

    @property
    def headline(self) -> Probe | None:
        """What stands for the run over numbers of Services: the lookup, else the time of a first packet, else the send
        time of packets to the target."""
        times = self.first_packet.probe if self.first_packet else self.send_time.target if self.send_time else None
        return self.lookup or times

    @property
    def blocks(self) -> tuple[float, ...]:
        """Medians of parts of the run, where the headline is a time that the sender took."""
        times = None if self.lookup else self.first_packet or self.send_time
        return times.blocks if times else ()

    @property
    def main_probe(self) -> Probe | None:
        """The probe that represents the run in one line: the lookup, else that of its mode, else the busiest, else the
        time that the sender took."""
        rows = find_rows(self.run.mode or "", self.run.backend)
        engine = rows[0].engine if rows else None
        probes = sorted(
            self.probes, key=lambda probe: (not probe.envelope, probe.lookup, probe.engine == engine, probe.count)
        )
        return probes[-1] if probes else self.headline


def name_unit(unit: str | None, emulated: bool | None) -> str:
    """Return the unit of a figure, e.g. ``emulated ns``."""
    return f"{'emulated ' if emulated else ''}{unit}"


def target_text(result: Result) -> str:
    """Write a result's target as ``IP:PORT/PROTOCOL``, without its unknown parts."""
    return str(result.target or "")
