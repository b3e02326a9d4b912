"""What is to be measured, and everything that follows from it before the first packet."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

from kproxylat.errors import UsageError
from kproxylat.lab import rules
from kproxylat.lab import services as lab
from kproxylat.lab.ruleset import Ruleset
from kproxylat.modes import Mode
from kproxylat.node.node import Node
from kproxylat.results import Destination, IpNetwork, Target
from kproxylat.traffic.generators import find_generator

LAB_SOURCE = {family: ip_network(each.source) for family, each in lab.ADDRESSES.items()}
NODE_SOURCE = {4: ip_network("198.18.0.0/15"), 6: ip_network("2001:2::/48")}
"""IP family -> addresses to send from: in the lab a free part of its clusterCIDR; elsewhere those for benchmarks
(RFC 2544, RFC 5180)."""
ANY_SOURCE = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
WORKER = {family: Destination(each.worker_ip, lab.WORKER_PORT, "udp") for family, each in lab.ADDRESSES.items()}
OVERHEAD_PACKETS = 2000
"""Packets of each burst that measures what tracing adds, at most."""
PROTOCOLS = {"tcp": 6, "udp": 17}


@dataclass(frozen=True)
class Lab:
    """The node to make: so many dummy Services, and the worker's place and ports among them; or another's rules.

    :param keep: leave it standing after a run whose books close, for one that asks for the same, and no fewer Services.
    """

    services: int = 100
    position: str = "last"
    worker_ports: str = "both"
    ruleset: Ruleset | None = None
    keep: bool = False

    def load(self, mode: Mode, netns: str, standing: int | None = None) -> None:
        """Load the rules into the node.

        :param standing: of how many dummy Services, and of the worker, they are there already (None: none).
        :raises MachineError: a tool refuses its part.
        """
        if self.ruleset:
            self.ruleset.load(netns)
            return
        services = lab.place_services(self.services, self.position, self.worker_ports, mode.family)
        there = (
            lab.place_services(standing, self.position, self.worker_ports, mode.family) if standing is not None else ()
        )
        rules.load_ruleset(rules.render_ruleset(mode, services, standing=there), netns)


@dataclass(frozen=True)
class Options:
    """What to measure.

    :param mode: its family is made that of the target.
    :param target: where to send to on this node; with ``lab`` it is the lab's worker, or one of its ruleset's.
    :param targets: all that are sent to in turn, the target first, where these are many.
    :param node: which node, without ``lab``.
    :param position: where to move the target's rule on it, in mode iptables (None: nowhere).
    :param services: how many dummy Services the cluster has, where we know (None: we don't).
    :param source: the addresses to send from (None: :data:`LAB_SOURCE` or :data:`NODE_SOURCE`).
    :param allow: settings of the node that may be changed for the run, of :data:`ALLOWABLE`.
    :param probe: the kind of probe: "fentry", "kprobe" or "auto".
    :param envelope: trace the whole hook around the engine, too. ``overhead``: measure what tracing adds to a call.
    :param others: count the engine's calls of other packets and the reasons of freed ones, too.
    :param look_up: asks the cluster for the target; ``found``: what it said when the run was planned.
    :param warnings: what was found on the way that may spoil the run.
    :param arguments: the command line, for the record.
    """

    mode: Mode
    target: Destination = WORKER[4]
    lab: Lab | None = None
    targets: tuple[Destination, ...] = ()
    node: Node = field(default_factory=Node)
    position: str | None = None
    services: int | None = None
    duration_s: float = 30
    rate_pps: int = 10000
    warmup: int = 100
    generator: str = "pktgen"
    source: IpNetwork | None = None
    allow: tuple[str, ...] = ()
    output_dir: Path = Path("logs/ebpf")
    probe: str = "auto"
    envelope: bool = False
    overhead: bool = False
    others: bool = False
    template: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    look_up: Callable[[], Target] | None = None
    found: Target | None = None
    warnings: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", self.mode.for_family(self.family))

    @property
    def family(self) -> int:
        """The target's IP family, 4 or 6."""
        return ip_address(self.target.ip).version

    @property
    def packets(self) -> int:
        """How many packets to send; to many targets as many to each."""
        count, each = round(self.duration_s * self.rate_pps), len(self.targets)
        return count // each * each if each and count > each else count

    @property
    def overhead_packets(self) -> int:
        """How many packets each of the three bursts has that measure what tracing adds."""
        return min(self.packets, OVERHEAD_PACKETS) if self.overhead else 0

    @property
    def packets_in_all(self) -> int:
        """How many packets a run sends after the warm-up."""
        return self.packets + 3 * self.overhead_packets

    @property
    def sources(self) -> IpNetwork:
        """The addresses to send from; of traffic from elsewhere any, but for the lab, where it has to know the way."""
        elsewhere = NODE_SOURCE if find_generator(self.generator).sends else ANY_SOURCE
        replayed = self.lab.ruleset if self.lab else None
        theirs = replayed.find_sources(each.ip for each in self.endpoints) if replayed else None
        return self.source or theirs or (LAB_SOURCE if self.lab else elsewhere)[self.family]

    @property
    def masqueraded(self) -> bool:
        """Whether kube-proxy takes our packets for those of a stranger to the cluster, and gives them one address."""
        sends = find_generator(self.generator).sends
        return self.lab is None and sends and self.sources.overlaps(NODE_SOURCE[self.family])

    @property
    def endpoints(self) -> tuple[Destination, ...]:
        """Where the targets' packets are delivered in the lab."""
        if not self.lab or not self.lab.ruleset:
            return (self.target._replace(ip=lab.ADDRESSES[self.family].endpoint_ip),)
        services = self.lab.ruleset.targets
        return tuple(
            Destination(ip, int(port), each.protocol)
            for each in self.targets or (self.target,)
            for ip, port in services[each].pairs
        )


def parse_destination(text: str, protocol: str, family: int | None = None) -> Destination:
    """Read ``IP:PORT`` or ``[IPv6]:PORT``.

    :param family: the IP family it is to be of (None: any).
    :raises UsageError: it is none, or an address that no Service has, or an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"unknown protocol {protocol!r}", f"--protocol takes one of: {', '.join(PROTOCOLS)}")
    found = re.fullmatch(r"(?:\[([\da-fA-F:.]+)\]|([\d.]+)):(\d{1,5})", text, re.ASCII)
    try:
        if not found:
            raise ValueError
        ip = IPv6Address(found[1]) if found[1] else IPv4Address(found[2])
    except ValueError:
        raise UsageError(
            f"invalid target {text!r}", "--target takes IP:PORT, such as 10.96.0.10:50051 or [fd00:10:96::50]:50051"
        ) from None
    number = int(found[3])
    if not 0 < number < 65536 or ip.is_multicast or ip.is_loopback or ip.is_unspecified:
        raise UsageError(
            f"invalid target of a Service: {text!r}", "--target takes a ClusterIP and a port from 1 to 65535"
        )
    if family not in (None, ip.version):
        raise UsageError(f"target {text} is IPv{ip.version}, and --family {family} is passed", "leave out --family")
    return Destination(str(ip), number, protocol)


def match_family(mode: Mode, target: Destination | None, family: int | None) -> Mode:
    """Return a mode's row for the target's IP family, else for the one asked for, else for IPv4."""
    return mode.for_family(ip_address(target.ip).version if target else family or 4)


def parse_source(text: str) -> IpNetwork:
    """Read a network to send from.

    :raises UsageError: it is none.
    """
    try:
        return ip_network(text)
    except ValueError as error:
        raise UsageError(f"invalid network {text!r}: {error}", "--source takes one such as 10.244.7.128/25") from None
