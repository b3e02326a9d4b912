"""The options of a measurement, in parts by who reads them: where, sending, tracing, record.

Longer than 350 lines: the dataclasses of one document stay together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

from kproxylat.errors import UsageError
from kproxylat.lab import rules
from kproxylat.lab import services as lab
from kproxylat.lab.pod import OUTSIDE, Masquerade, Pod, own_pod
from kproxylat.lab.ruleset import Ruleset
from kproxylat.modes import Mode
from kproxylat.node.network import POD_LINK, name_addresses
from kproxylat.node.node import Node
from kproxylat.results import IpNetwork, Target, name_variant
from kproxylat.traffic.generators import GENERATORS, Generator

LAB_SOURCE = {family: ip_network(addresses.source) for family, addresses in lab.ADDRESSES.items()}
NODE_SOURCE: dict[int, IpNetwork] = {4: OUTSIDE, 6: ip_network("2001:2::/48")}
"""IP family -> addresses to send from: in the lab a free part of its clusterCIDR; elsewhere those for benchmarks
(RFC 2544, RFC 5180)."""
ANY_SOURCE = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
WORKER = {family: Target(addresses.worker_ip, lab.WORKER_PORT, "udp") for family, addresses in lab.ADDRESSES.items()}
REPLAY_BACKEND = "169.254.78.10"
"""The backend's own address where a ruleset brings the endpoints: no cluster has it, nor the node's beside it."""
OVERHEAD_PACKETS = 2000
"""Most packets in a burst that measures what tracing adds."""
TIMED_PACKETS = 500
"""Most packets of which the send time is taken after a run that traces."""
PROTOCOLS = {"tcp": 6, "udp": 17}


@dataclass(frozen=True)
class Lab:
    """The node to build: its dummy Services, and the worker's position and ports; or the rules of another node.

    :param keep: leave the lab standing after a run whose accounting closes. A run that asks for the same lab, and for
        no fewer Services, continues in it.
    :param release: kube-proxy's, whose rules are loaded ("": the default one).
    :param places: so many of the dummy Services are the targets, in turn, in place of the worker (0: none).
    :param endpoints: the number of endpoints of each Service; ``affinity``: whether the Services have session affinity.
    :param node_port: whether the worker has a NodePort, which is the target in place of its ClusterIP.
    """

    services: int = 100
    position: str = "last"
    worker_ports: str = "both"
    ruleset: Ruleset | None = None
    keep: bool = False
    places: int = 0
    release: str = ""
    endpoints: int = 1
    affinity: bool = False
    node_port: bool = False

    @property
    def variant(self) -> str:
        """A name for what the rules were asked to be, as :attr:`kproxylat.results.Run.rules` has it."""
        return name_variant(self.release, self.endpoints, self.affinity, self.node_port)

    def place_services(self, family: int, count: int | None = None) -> list[lab.Service]:
        """Return the lab's own Services, or with ``count`` dummy Services those that it had before."""
        count = self.services if count is None else count
        return lab.place_services(
            count, self.position, self.worker_ports, family, self.endpoints, self.affinity, self.node_port
        )

    def list_targets(self, family: int) -> list[lab.Service]:
        """Return the dummy Services that are targets."""
        return [lab.dummy_service(number, family=family, endpoints=self.endpoints) for number in self.list_places()]

    def list_places(self) -> list[int]:
        """Return the numbers of the dummy Services that are targets, spread evenly, as npinaeva/conntrack-metrics does
        (workload/client.yaml); the last one is among them."""
        return [number * self.services // self.places - 1 for number in range(1, self.places + 1)]

    def name_taken(self, family: int) -> Iterator[tuple[str, str]]:
        """Name the addresses that packets must not come from, and what has them."""
        for service in self.ruleset.services if self.ruleset else self.place_services(family):
            yield service.ip, "a ClusterIP"
            yield from ((ip, "an endpoint") for ip, _ in service.pairs)
        own = [lab.ADDRESSES[family].node_ip] if self.node_port else []
        yield from ((ip, "the lab's node") for ip in (*name_addresses(self.backend(family)), *own))

    def backend(self, family: int) -> str:
        """Return the backend's own address, which a ruleset's endpoints do not need."""
        return REPLAY_BACKEND if self.ruleset else lab.ADDRESSES[family].endpoint_ip

    def load(self, mode: Mode, netns: str, standing: int | None = None) -> None:
        """Load the rules into the node.

        :param standing: the number of dummy Services whose rules the node has already (None: it has no rules).
        :raises MachineError: a tool refuses its part.
        """
        if self.ruleset:
            self.ruleset.load(netns)
            return
        services, loaded = (
            () if count is None else self.place_services(mode.family, count) for count in (self.services, standing)
        )
        rules.load_ruleset(rules.render_ruleset(mode, services, standing=loaded, release=self.release), netns)


@dataclass(frozen=True)
class NodeUnderTest:
    """An existing node, and what is known about its cluster.

    :param node: the node's network namespace and name.
    :param position: where to move the target's rule in mode iptables (None: leave it).
    :param allow: the node's settings that the run may change, of :data:`kproxylat.node.changes.ALLOWABLE`.
    :param services: the number of dummy Services in the cluster (None: unknown).
    """

    node: Node = field(default_factory=Node)
    position: str | None = None
    allow: tuple[str, ...] = ()
    services: int | None = None


@dataclass(frozen=True)
class Sending:
    """The packets to send.

    :param generator: a row of :data:`kproxylat.traffic.generators.GENERATORS`.
    :param source: the addresses to send from (None: :data:`LAB_SOURCE` or :data:`NODE_SOURCE`).
    :param origin: whose packets: a "pod"'s, or the "node"'s own.
    :param connects: open a connection with each packet, and take the time until it is answered.
    """

    generator: Generator = GENERATORS["pktgen"]
    duration_s: float = 30
    rate_pps: int = 10000
    warmup: int = 100
    source: IpNetwork | None = None
    origin: str = "pod"
    connects: bool = False


@dataclass(frozen=True)
class Tracing:
    """What bpftrace traces, and from which template.

    :param probe: the kind of probe: "fentry", "kprobe" or "auto"; "none" traces nothing, and the sender takes the time.
    :param envelope: trace the whole hook around the engine, too.
    :param overhead: measure what tracing adds to a call.
    :param send_time: after the run, take the send time of further packets, too, while nothing is traced.
    :param others: count the engine's calls of other packets, too, and the reasons why the kernel frees packets.
    :param template: the user's template (None: kproxylat's).
    :param settings: the user's variables for the template.
    """

    probe: str = "auto"
    envelope: bool = False
    overhead: bool = False
    send_time: bool = False
    others: bool = False
    template: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def traces(self) -> bool:
        """Whether anything is traced."""
        return self.probe != "none"


@dataclass(frozen=True)
class Record:
    """Where the result is saved, and what it says about how it was asked for.

    :param arguments: the command line.
    :param warnings: findings from before the run that may spoil it.
    """

    output_dir: Path = Path("logs/ebpf")
    arguments: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """What to measure: mode and target, where, with which packets, how to trace them, and how to record it.

    :param mode: the row is changed to the target's IP family and to the origin of the packets.
    :param target: the destination on this node, with what the cluster's API says about it, if that was asked; in a lab
        the lab's worker, or a Service of its ruleset.
    :param targets: all destinations, the target first, if packets go to several in turn.
    """

    mode: Mode
    target: Target = WORKER[4]
    targets: tuple[Target, ...] = ()
    where: Lab | NodeUnderTest = field(default_factory=NodeUnderTest)
    sending: Sending = Sending()
    tracing: Tracing = Tracing()
    record: Record = Record()

    def __post_init__(self) -> None:
        row = self.mode.for_family(self.family)
        object.__setattr__(self, "mode", row.from_node() if self.sending.origin == "node" else row)
        if self.lab and self.lab.places:
            services = self.lab.list_targets(self.family)
            targets = tuple(Target(service.ip, service.port, service.protocol) for service in services)
            object.__setattr__(self, "targets", targets)
            object.__setattr__(self, "target", targets[0])
        elif self.lab and self.lab.node_port:
            target = Target(lab.ADDRESSES[self.family].node_ip, lab.NODE_PORT, self.target.protocol)
            object.__setattr__(self, "target", target)

    @property
    def lab(self) -> Lab | None:
        """The lab; None on a node."""
        return self.where if isinstance(self.where, Lab) else None

    @property
    def ruleset(self) -> Ruleset | None:
        """The ruleset that the lab loads; None without one."""
        return self.lab.ruleset if self.lab else None

    @property
    def on_node(self) -> NodeUnderTest | None:
        """The node under test; None in a lab."""
        return self.where if isinstance(self.where, NodeUnderTest) else None

    @property
    def node(self) -> Node:
        """The node's network namespace and name; in a lab, this machine's."""
        return self.where.node if isinstance(self.where, NodeUnderTest) else Node()

    @property
    def family(self) -> int:
        """The target's IP family, 4 or 6."""
        return ip_address(self.target.ip).version

    @property
    def packets(self) -> int:
        """The number of packets to send; every one of several targets gets the same number."""
        count = round(self.sending.duration_s * self.sending.rate_pps)
        targets = len(self.targets) or 1
        return count // targets * targets or count

    @property
    def overhead_packets(self) -> int:
        """The number of packets in each of the three bursts that measure what tracing adds."""
        return min(self.packets, OVERHEAD_PACKETS) if self.tracing.overhead else 0

    @property
    def timed_packets(self) -> int:
        """The number of packets of which the send time is taken after a run that traces."""
        return min(self.packets, TIMED_PACKETS) if self.tracing.send_time else 0

    @property
    def packets_in_all(self) -> int:
        """The number of packets that a run sends after the warm-up, control packets among them."""
        timed = self.timed_packets * (1 + len(self.controls))
        return self.packets * self.round_packets + 3 * self.overhead_packets + timed

    @property
    def round_packets(self) -> int:
        """The number of packets of a round: one to the target, and, untraced, one to each control."""
        return 1 if self.tracing.traces else 1 + len(self.controls)

    @property
    def controls(self) -> tuple[Target, ...]:
        """Where packets go beside each to the target if the sender takes the time: the endpoint itself, and an address
        of no Service. On a node there are none: they would reach pods, which serve others."""
        if (self.tracing.traces and not self.tracing.overhead) or not self.lab or self.targets or self.sending.connects:
            return ()
        taken = {endpoint.ip for endpoint in self.endpoints}
        if self.ruleset:
            taken |= {ip for service in self.ruleset.services for ip, _ in service.pairs}
        unused = ip_address(self.endpoints[0].ip) + 1
        while str(unused) in taken:
            unused += 1
        return self.endpoints[0], replace(self.endpoints[0], ip=str(unused))

    @property
    def sources(self) -> IpNetwork:
        """The addresses to send from. If others send, any address outside a lab: a lab has routes to its own only."""
        if self.sending.source:
            return self.sending.source
        elsewhere = NODE_SOURCE if self.sending.generator.sends else ANY_SOURCE
        return (self.pod and self.pod.sources) or (LAB_SOURCE if self.lab else elsewhere)[self.family]

    @property
    def pod(self) -> Pod | None:
        """The pod whose packets the lab imitates; None on a node."""
        return self.ruleset.pod if self.ruleset else own_pod(self.family) if self.lab else None

    @property
    def link(self) -> str:
        """The name of the node's end of the client's link."""
        return self.pod.link if self.pod else POD_LINK

    @property
    def masquerade(self) -> Masquerade | None:
        """The rule of the lab that masquerades the packets, as far as the rules tell."""
        link = self.link if self.sending.origin == "pod" else ""
        return self.pod.find_masquerade(self.sources, link, {to.ip for to in self.endpoints}) if self.pod else None

    @property
    def masqueraded(self) -> bool:
        """Whether the packets are expected to get an address of the node, as those from outside the cluster do."""
        on_node = not self.lab and self.sending.generator.sends and self.sources.overlaps(NODE_SOURCE[self.family])
        to_node_port = self.lab is not None and self.lab.node_port
        return on_node or to_node_port or self.masquerade is not None

    @property
    def endpoints(self) -> tuple[Target, ...]:
        """Where the targets' packets are delivered in the lab."""
        if self.lab and self.lab.places:
            dummies = self.lab.list_targets(self.family)
            return tuple(Target(ip, int(port), "tcp") for dummy in dummies for ip, port in dummy.pairs)
        if not self.ruleset:
            pods = lab.list_worker_endpoints(self.family, self.lab.endpoints if self.lab else 1)
            port = lab.WORKER_PORT if self.lab and self.lab.node_port else self.target.port
            return tuple(Target(ip, port, self.target.protocol) for ip in pods)
        services = self.ruleset.targets
        return tuple(
            Target(ip, int(port), target.protocol)
            for target in self.targets or (self.target,)
            for ip, port in services[target].pairs
        )


def add_warnings(options: Options, *warnings: str) -> Options:
    """Return the options with further warnings for the record."""
    return replace(options, record=replace(options.record, warnings=(*options.record.warnings, *warnings)))


def parse_destination(text: str, protocol: str, family: int | None = None) -> Target:
    """Read ``IP:PORT`` or ``[IPv6]:PORT``.

    :param family: the required IP family (None: any).
    :raises UsageError: the text is invalid, no Service can have such an address, or the protocol is unknown.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"unknown protocol {protocol!r}", f"--protocol takes one of: {', '.join(PROTOCOLS)}")
    match = re.fullmatch(r"(?:\[([\da-fA-F:.]+)\]|([\d.]+)):(\d{1,5})", text, re.ASCII)
    try:
        if not match:
            raise ValueError
        ip = IPv6Address(match[1]) if match[1] else IPv4Address(match[2])
    except ValueError:
        raise UsageError(
            f"invalid target {text!r}", "--target takes IP:PORT, such as 10.96.0.10:50051 or [fd00:10:96::50]:50051"
        ) from None
    number = int(match[3])
    if not 0 < number < 65536 or ip.is_multicast or ip.is_loopback or ip.is_unspecified:
        raise UsageError(
            f"invalid target of a Service: {text!r}", "--target takes a ClusterIP and a port from 1 to 65535"
        )
    if family not in (None, ip.version):
        raise UsageError(f"target {text} is IPv{ip.version}, and --family {family} is passed", "leave out --family")
    return Target(str(ip), number, protocol)


def match_family(mode: Mode, target: Target | None, family: int | None) -> Mode:
    """Return a mode's row for the target's IP family; without a target for ``family``, by default IPv4."""
    return mode.for_family(ip_address(target.ip).version if target else family or 4)


def parse_source(text: str) -> IpNetwork:
    """Read a network to send from.

    :raises UsageError: the text is not a network.
    """
    try:
        return ip_network(text)
    except ValueError as error:
        raise UsageError(f"invalid network {text!r}: {error}", "--source takes one such as 10.244.7.128/25") from None
