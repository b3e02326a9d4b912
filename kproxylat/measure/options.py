"""What is to be measured, and everything that follows from it before the first packet."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

from kproxylat.errors import MachineError, UsageError
from kproxylat.lab import rules
from kproxylat.lab import services as lab
from kproxylat.lab.ruleset import Ruleset
from kproxylat.modes import Engine, Mode
from kproxylat.node.changes import ALLOWABLE
from kproxylat.node.network import MAC, POD_LINK, Network
from kproxylat.node.node import Node
from kproxylat.results import Destination, IpNetwork, Target
from kproxylat.system import btf, kernel
from kproxylat.system.trust import check_trusted
from kproxylat.trace.engine import find_engine, find_version, probe_words
from kproxylat.trace.plan import PORT_STEP, Flow, Plan, network_words
from kproxylat.trace.script import check_settings
from kproxylat.traffic.burst import MAX_RATE_PPS, Burst
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
            f"{text!r} is no target", "--target takes IP:PORT, such as 10.96.0.10:50051 or [fd00:10:96::50]:50051"
        ) from None
    number = int(found[3])
    if not 0 < number < 65536 or ip.is_multicast or ip.is_loopback or ip.is_unspecified:
        raise UsageError(f"{text!r} is no target of a Service", "--target takes a ClusterIP and a port from 1 to 65535")
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
        raise UsageError(f"{text!r} is no network: {error}", "--source takes one such as 10.244.7.128/25") from None


def check_options(options: Options) -> None:
    """Refuse what cannot be.

    :raises UsageError: it cannot.
    """
    for name, value, lowest, highest in (
        ("duration", options.duration_s, 0.001, 86400),
        ("rate", options.rate_pps, 1, MAX_RATE_PPS),
        ("warm-up", options.warmup, 0, 10_000_000),
        ("number of packets", options.duration_s * options.rate_pps, 1, 2**31 - 1),
    ):
        if not lowest <= value <= highest:
            raise UsageError(f"the {name} of {value:g} is out of range", f"it takes {lowest:g} to {highest:g}")
    check_settings(options.settings)
    check_template(options.template)
    if options.lab and not options.lab.ruleset:
        lab.check_services(options.lab.services, options.lab.position, options.lab.worker_ports)
    for name in options.allow:
        if name not in ALLOWABLE:
            raise UsageError(f"--allow {name} is never needed", f"it takes: {', '.join(ALLOWABLE)}")
    generator = find_generator(options.generator, options.target.protocol, options.family)
    if options.sources.version != options.family:
        raise UsageError(
            f"source {options.sources} is not IPv{options.family}, as the target is",
            "pass another --source, or --family",
        )
    if options.mode.origin == "node" and not generator.from_node:
        raise UsageError(f"{options.generator} sends no packets of the node's own", "pass --generator sockets")
    if options.overhead:
        check_overhead(options)
    if options.targets and options.packets < len(options.targets):
        raise UsageError(
            f"{options.packets} packets are too few for {len(options.targets)} Services",
            "a longer run, or a higher rate",
        )
    for burst in plan_bursts(options, Network(None, None, None)):
        burst.check(generator.max_addresses.get(options.family))


def check_overhead(options: Options) -> None:
    """Refuse to measure what tracing adds where it cannot be measured.

    :raises UsageError: it cannot.
    """
    reasons = {
        "a template of one's own": options.template is not None,
        "packets to many Services": bool(options.targets),
        "packets that others send": not find_generator(options.generator).sends,
        # Of their hooks none is without conntrack's work, and ipvs' call at OUTPUT holds another one.
        "the node's own packets": options.mode.origin == "node",
    }
    for reason, holds in reasons.items():
        if holds:
            raise UsageError(f"what tracing adds cannot be measured with {reason}", "leave out --overhead")


def check_template(template: Path | None) -> None:
    """Make sure that a user's template is there, and is one to believe.

    :raises UsageError: it is not there.
    :raises MachineError: as root, others can change it.
    """
    if template and not template.is_file():
        raise UsageError(f"template {template} does not exist", "--template takes a file's path")
    if template:
        check_trusted(template)


def load_modules(mode: Mode) -> None:
    """Load the kernel modules that a mode's rules and probes take.

    :raises MachineError: one cannot be loaded.
    """
    for module in mode.modules:
        kernel.load_module(module)


def make_plan(
    mode: Mode,
    flow: Flow | None,
    kind: str = "auto",
    interval_s: int = 0,
    envelope: bool = False,
    netns_inode: int = 0,
    stepping: bool = False,
    others: bool = False,
) -> Plan:
    """Put together what the script is rendered from, as this kernel and this bpftrace want it.

    :param flow: whose packets to trace (None: all).
    :param kind: "fentry", "kprobe" or "auto".
    :param interval_s: seconds between reports (0: none).
    :param envelope: trace the whole hook, too, of the packets of ``flow``.
    :param netns_inode: the one network namespace whose calls to trace, see :attr:`Node.inode` (0: all).
    :param stepping: the flow is ours, of more packets than :data:`PORT_STEP`, and one in so many tells the names.
    :param others: count the calls of other packets, too, and why packets are freed where this kernel says it.
    :raises MachineError: this kernel does not say how its structs are laid out.
    """
    engine, kind = find_engine(mode, kind)
    # ipvs sends the node's own packet, once translated, through OUTPUT again.
    nested = mode.name == "ipvs" and mode.origin == "node"
    if nested and kind == "kprobe":
        raise MachineError(
            "kprobes cannot tell ipvs' lookup of the node's own packets from the call within it",
            "pass --probe fentry, or --from pod",
        )
    entry, leave, args = probe_words(find_version()[1], kind)
    wanted = [*engine.offsets, *([("nf_conntrack", "nf_conn", "tuplehash")] if flow else [])]
    if kind == "kprobe":
        wanted.append(("vmlinux", "sk_buff", "_nfct"))
        wanted += [("vmlinux", "sk_buff", "data"), ("vmlinux", "nf_hook_state", "pf")] if envelope else []
    offsets = {f"{name}.{member}": btf.struct_offset(module, name, member) for module, name, member in wanted}
    if kind == "kprobe" and "pkt" in engine.layout:
        offsets["nft_pktinfo.state"] = sum(
            btf.struct_offset("nf_tables", name, member) for name, member in STATE_PATHS[engine.state]
        )
    if netns_inode:
        offsets["nf_hook_state.net"] = btf.struct_offset("vmlinux", "nf_hook_state", "net")
        offsets["net.ns.inum"] = sum(
            btf.struct_offset("vmlinux", *each) for each in (("net", "ns"), ("ns_common", "inum"))
        )
    skb, state, priv = (
        _argument(engine, each, struct) if kind == "kprobe" else args + each
        for each, struct in ((engine.skb, "kpl_skb"), (engine.state, "kpl_state"), (engine.priv, ""))
    )
    return Plan(
        mode=mode.name,
        backend=mode.backend,
        kind=kind,
        entry=entry,
        exit=leave,
        scope=f"{btf.btf_module(mode.module)}:" if kind == "fentry" else "",
        args=args,
        engine=mode.engine,
        functions=engine.functions,
        skb=skb,
        state=state,
        priv=priv,
        offsets=offsets,
        flow=flow,
        interval_s=interval_s,
        envelope=envelope,
        netns_inode=netns_inode,
        nested=nested,
        hook=mode.hook,
        stepping=stepping,
        others=others,
        reasons=kernel.read_drop_reasons() if others else {},
        fields=probe_words(find_version()[1])[2],
    )


STATE_PATHS = {
    "pkt->state": (("nft_pktinfo", "state"),),
    "pkt->xt.state": (("nft_pktinfo", "xt"), ("xt_action_param", "state")),
}
"""Expression of the state in nft_do_chain's first argument -> the members whose offsets lead to it."""


def plan_script(options: Options) -> Plan:
    """Put together what a run's script is rendered from.

    :raises MachineError: as :func:`make_plan`.
    """
    flow = make_flow(None if options.targets else options.target, options.sources)
    sends = find_generator(options.generator).sends
    if sends and options.mode.origin != "node":
        # Nobody else has our sources, and all that we send goes to this port: one read less for every call.
        flow = replace(flow, port_protocol=None)
    inode = options.node.inode if options.node.netns else 0
    # The second may be lost: there are to be some more.
    fewest = min(options.packets, options.overhead_packets if options.overhead else options.packets)
    stepping = sends and fewest >= 4 * PORT_STEP
    return make_plan(options.mode, flow, options.probe, 0, options.envelope, inode, stepping, options.others)


def _argument(engine: Engine, expression: str, struct: str) -> str:
    """Write an expression over the engine's arguments for a kprobe, which knows them by number only."""
    name, arrow, member = expression.partition("->")
    number = engine.layout.index(name)
    if arrow:
        return f"((struct kpl_pktinfo *)arg{number})->{member.rpartition('.')[2]}"
    return f"((struct {struct} *)arg{number})" if struct else f"arg{number}"


def make_flow(target: Destination | None, source: IpNetwork) -> Flow:
    """Describe the target's packets (None: all from our sources) as the kernel's conntrack tuple has them.

    Kernel, include/net/netfilter/nf_conntrack_tuple.h: dst.u (port, 16 bits in network order), dst.protonum, dst.dir
    (IP_CT_DIR_ORIGINAL is 0).
    """
    port_protocol = target and target.port.to_bytes(2, "big") + bytes([PROTOCOLS[target.protocol], 0])
    return Flow(
        daddr=network_words(ip_address(target.ip).packed) if target else (),
        port_protocol=network_words(port_protocol)[0] if port_protocol else None,
        saddr=network_words(source.network_address.packed),
        saddr_mask=network_words(source.netmask.packed),
    )


def plan_bursts(options: Options, made: Network) -> list[Burst]:
    """Split the sources between the warm-up, the run and what follows, so that no flow comes twice.

    :return: the warm-up, which is empty where others send; the run; three more where the overhead is measured.
    """
    # The warm-up loads code and caches and need not take longer than a tenth of a second.
    rate = min(options.rate_pps, max(options.warmup, 1) * 10)
    count = options.warmup if find_generator(options.generator).sends else 0
    ip, port, protocol = options.target
    netns = made.node if options.mode.origin == "node" else made.client
    link = "pod0", MAC[POD_LINK]
    warmup = Burst(count, rate, options.sources, ip, port, netns, *link, made.skip, protocol, options.targets)
    bursts = [warmup]
    for count in (options.packets, *[options.overhead_packets] * (3 if options.overhead else 0)):
        skip = bursts[-1].skip + bursts[-1].addresses
        bursts.append(replace(warmup, count=count, rate_pps=options.rate_pps, skip=skip))
    return bursts
