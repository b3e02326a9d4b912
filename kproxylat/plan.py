"""What is to be measured, and everything that follows from it before the first packet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from kproxylat import kernel, lab
from kproxylat.bpftrace import find_version, probe_words
from kproxylat.errors import MachineError, UsageError
from kproxylat.model import Destination
from kproxylat.modes import Mode
from kproxylat.net import MAC, POD_LINK, Network
from kproxylat.proc import run
from kproxylat.render import Flow, Plan, check_settings, network_order
from kproxylat.traffic import MAX_RATE_PPS, Burst

LAB_SOURCE = IPv4Network("10.244.128.0/17")
NODE_SOURCE = IPv4Network("198.18.0.0/15")
"""Addresses to send from: in the lab a free part of its clusterCIDR; elsewhere those for benchmarks (RFC 2544)."""
WORKER = Destination(lab.WORKER_IP, lab.WORKER_PORT, "udp")
UDP_TIMEOUT_S = 1
"""How long the lab's conntrack keeps our flows: at the default, 30 s, 10,000 pps would hold 300,000 entries."""
PROTOCOLS = {"tcp": 6, "udp": 17}


@dataclass(frozen=True)
class Lab:
    """The node to make: so many dummy Services, and the worker's place and ports among them."""

    services: int = 100
    position: str = "last"
    worker_ports: str = "both"


@dataclass(frozen=True)
class Options:
    """What to measure.

    :param target: where to send to on this node; with ``lab`` it is the lab's worker.
    :param source: the addresses to send from (None: :data:`LAB_SOURCE` or :data:`NODE_SOURCE`).
    :param arguments: the command line, for the record.
    """

    mode: Mode
    target: Destination = WORKER
    lab: Lab | None = None
    duration_s: float = 30
    rate_pps: int = 10000
    warmup: int = 100
    generator: str = "pktgen"
    source: IPv4Network | None = None
    output_dir: Path = Path("logs/ebpf")
    template: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()

    @property
    def packets(self) -> int:
        """How many packets to send."""
        return round(self.duration_s * self.rate_pps)

    @property
    def sources(self) -> IPv4Network:
        """The addresses to send from."""
        return self.source or (LAB_SOURCE if self.lab else NODE_SOURCE)


def parse_destination(text: str, protocol: str) -> Destination:
    """Read ``IP:PORT``.

    :raises UsageError: it is none, or an address that no Service has.
    """
    address, _, port = text.rpartition(":")
    try:
        ip = IPv4Address(address)
        number = int(port)
    except ValueError:
        raise UsageError(f"{text!r} is no target", "--target takes IP:PORT, such as 10.96.0.10:50051") from None
    if not 0 < number < 65536 or ip.is_multicast or ip.is_loopback or ip.is_unspecified:
        raise UsageError(f"{text!r} is no target of a Service", "--target takes a ClusterIP and a port from 1 to 65535")
    return Destination(str(ip), number, protocol)


def parse_source(text: str) -> IPv4Network:
    """Read a network to send from.

    :raises UsageError: it is none.
    """
    try:
        return IPv4Network(text)
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
    if options.lab:
        lab.place_services(options.lab.services, options.lab.position, options.lab.worker_ports)
    _, burst = plan_bursts(options, "")
    burst.check()


def check_template(template: Path | None) -> None:
    """Make sure that a user's template is there.

    :raises UsageError: it is not.
    """
    if template and not template.is_file():
        raise UsageError(f"template {template} does not exist", "--template takes a file's path")


def load_modules(mode: Mode) -> None:
    """Load the kernel modules that a mode's rules and probes take.

    :raises MachineError: one cannot be loaded.
    """
    for module in mode.modules:
        kernel.load_module(module)


def make_plan(mode: Mode, flow: Flow | None, interval_s: int = 0) -> Plan:
    """Put together what the script is rendered from, as this kernel and this bpftrace want it.

    :param flow: whose packets to trace (None: all).
    :param interval_s: seconds between reports (0: none).
    :raises MachineError: this kernel does not say how its structs are laid out.
    """
    entry, leave, args = probe_words(find_version()[1])
    wanted = [*mode.offsets, *([("nf_conntrack", "nf_conn", "tuplehash")] if flow else [])]
    return Plan(
        mode=mode.name,
        backend=mode.backend,
        engine=mode.engine,
        module=kernel.btf_module(mode.module),
        entry=entry,
        exit=leave,
        skb=args + mode.skb,
        state=args + mode.state,
        priv=args + mode.priv,
        offsets={f"{name}.{member}": kernel.struct_offset(module, name, member) for module, name, member in wanted},
        flow=flow,
        interval_s=interval_s,
    )


def make_flow(target: Destination, source: IPv4Network) -> Flow:
    """Describe the target's packets as the kernel's conntrack tuple has them.

    Kernel, include/net/netfilter/nf_conntrack_tuple.h: dst.u (port, 16 bits in network order), dst.protonum, dst.dir
    (IP_CT_DIR_ORIGINAL is 0).
    """
    port_protocol = target.port.to_bytes(2, "big") + bytes([PROTOCOLS[target.protocol], 0])
    return Flow(
        daddr=network_order(IPv4Address(target.ip).packed),
        port_protocol=network_order(port_protocol),
        saddr=network_order(source.network_address.packed),
        saddr_mask=network_order(source.netmask.packed),
    )


def plan_bursts(options: Options, netns: str) -> tuple[Burst, Burst]:
    """Split the sources between the warm-up and the run, so that no flow comes twice.

    :param netns: the client's namespace.
    """
    # The warm-up loads code and caches and need not take longer than a tenth of a second.
    rate = min(options.rate_pps, max(options.warmup, 1) * 10)
    ip, port, _ = options.target
    warmup = Burst(options.warmup, rate, options.sources, ip, port, netns, "pod0", MAC[POD_LINK])
    return warmup, replace(warmup, count=options.packets, rate_pps=options.rate_pps, skip=warmup.addresses)


def make_room(options: Options, made: Network) -> tuple[int, int]:
    """Make room in conntrack for our flows (in the lab), and make sure that there is enough.

    :return: the room there is, and that needed, in flows.
    :raises MachineError: there is not enough; names the rate that there is room for.
    """
    timeout_s = UDP_TIMEOUT_S
    setting = "net.netfilter.nf_conntrack_udp_timeout"
    if made.node:
        run("sysctl", "-q", "-w", f"{setting}={timeout_s}", netns=made.node)
    else:
        timeout_s = int(run("sysctl", "-n", setting))
    room = kernel.conntrack_room(made.node)
    needed = min(options.packets, options.rate_pps * timeout_s) + options.warmup
    if needed > room:
        raise MachineError(
            f"{needed} flows at a time need more room than conntrack has ({room})",
            f"there is room for {max(room - options.warmup, 0) // max(timeout_s, 1)} pps, or for a shorter run",
        )
    return room, needed
