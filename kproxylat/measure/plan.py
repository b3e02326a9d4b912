"""A run's plan: the checks before it, its script, its bursts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from kproxylat.console import say
from kproxylat.errors import MachineError, UsageError
from kproxylat.lab import services as lab
from kproxylat.lab.rules import check_release
from kproxylat.measure.first_packet import check_first_packet
from kproxylat.measure.options import PROTOCOLS, Lab, Options
from kproxylat.measure.send_time import time_sends
from kproxylat.modes import Mode
from kproxylat.node.changes import ALLOWABLE
from kproxylat.node.doctor import require
from kproxylat.node.network import MAC, POD_LINK, Network
from kproxylat.results import IpNetwork, Target
from kproxylat.system import kernel
from kproxylat.system.trust import check_trusted
from kproxylat.trace.plan import PORT_STEP, Flow, Plan, make_plan, network_words
from kproxylat.trace.script import check_settings
from kproxylat.traffic.burst import MAX_RATE_PPS, Burst
from kproxylat.traffic.generators import check_generator


def check_options(options: Options) -> None:
    """Refuse what cannot be.

    :raises UsageError: it cannot.
    """
    for name, value, lowest, highest in (
        ("duration", options.sending.duration_s, 0.001, 86400),
        ("rate", options.sending.rate_pps, 1, MAX_RATE_PPS),
        ("warm-up", options.sending.warmup, 0, 10_000_000),
        ("number of packets", options.sending.duration_s * options.sending.rate_pps, 1, 2**31 - 1),
    ):
        if not lowest <= value <= highest:
            raise UsageError(f"the {name} of {value:g} is out of range", f"it takes {lowest:g} to {highest:g}")
    check_settings(options.tracing.settings)
    check_template(options.tracing.template)
    if options.lab and not options.ruleset:
        own = options.lab
        lab.check_services(own.services, own.position, own.worker_ports, own.endpoints)
        check_release(options.lab.release, options.mode)
    for name in options.on_node.allow if options.on_node else ():
        if name not in ALLOWABLE:
            raise UsageError(f"--allow {name} is never needed", f"it takes: {', '.join(ALLOWABLE)}")
    generator = options.sending.generator
    check_generator(generator, options.target.protocol or "", options.family)
    if options.sources.version != options.family:
        raise UsageError(
            f"source {options.sources} is not IPv{options.family}, as the target is",
            "pass another --source, or --family",
        )
    first = options.sources.network_address
    odd = first.is_loopback or first.is_link_local or first.is_multicast or first.is_unspecified
    if options.sending.source and generator.sends and odd:
        raise UsageError(f"source {options.sources}: no packet can come from there", "pass another --source")
    if options.lab and options.pod and options.sources != options.pod.sources:
        _check_sources(options.lab, options.sources)
    if options.mode.origin == "node" and not generator.from_node:
        raise UsageError(f"{generator.name} sends no packets of the node's own", "pass --generator sockets")
    check_first_packet(options)
    if options.tracing.overhead:
        _check_overhead(options)
    if not options.tracing.traces:
        _check_untraced(options)
    elif options.tracing.send_time and (
        options.targets or not options.sending.generator.sends or options.sending.connects
    ):
        raise UsageError("--send-time is for single packets of ours to one Service", "leave it out")
    if options.targets and options.tracing.envelope:
        raise UsageError("--envelope is for one Service", "leave it out")
    if options.targets and options.packets < len(options.targets):
        raise UsageError(
            f"{options.packets} packets are too few for {len(options.targets)} Services",
            "a longer run, or a higher rate",
        )
    for burst in plan_bursts(options, Network(None, None, None)):
        burst.check(generator.max_addresses.get(options.family))


def _check_sources(where: Lab, sources: IpNetwork) -> None:
    """Refuse to send from addresses that the lab has, or that its rules lead to."""
    for ip, user in where.name_taken(sources.version):
        if ip_address(ip) in sources:
            raise UsageError(f"source {sources} is not free: {ip} is {user}", "pass another --source")


def _check_overhead(options: Options) -> None:
    """Refuse to measure what tracing adds where it cannot be measured."""
    reasons = {
        "a template of one's own": options.tracing.template is not None,
        "packets to many Services": bool(options.targets),
        "packets that others send": not options.sending.generator.sends,
        "first packets": options.sending.connects,
        # Of their hooks none is without conntrack's work, and ipvs' call at OUTPUT holds another one.
        "the node's own packets": options.mode.origin == "node",
    }
    for reason, holds in reasons.items():
        if holds:
            raise UsageError(f"what tracing adds cannot be measured with {reason}", "leave out --overhead")


def _check_untraced(options: Options) -> None:
    """Refuse options of tracing, and packets that are not sent from sockets, where nothing is traced."""
    tracing = options.tracing
    passed = {
        "--envelope": tracing.envelope,
        "--overhead": tracing.overhead,
        "--others": tracing.others,
        "--send-time": tracing.send_time,
        "--template": tracing.template,
        "--set": tracing.settings,
        "--every-service": bool(options.targets and options.ruleset),
        f"--generator {options.sending.generator.name}": options.sending.generator.name != "sockets",
    }
    for name, is_set in passed.items():
        if is_set:
            raise UsageError(
                f"{name} cannot be used with --probe none: nothing is traced, and sockets send", "leave one of them out"
            )


def check_template(template: Path | None) -> None:
    """Make sure that a user's template is there, and is trusted.

    :raises UsageError: it is not there.
    :raises MachineError: as root, others can change it.
    """
    if template and not template.is_file():
        raise UsageError(f"template {template} does not exist", "--template takes a file's path")
    if template:
        check_trusted(template)


def keep_possible(points: Iterable[Options], use: str, needs_one: bool = True) -> list[Options]:
    """Return the points whose mode this machine has all that it takes to measure; name the other modes.

    :param use: what for, beside sending, as :attr:`kproxylat.node.doctor.Check.use` names it.
    :raises MachineError: none is left, and one is needed.
    """
    possible, lacking = list[Options](), dict[str, MachineError]()
    for point in points:
        name = f"{point.mode.name} on {point.mode.backend}"
        try:
            if name not in lacking:
                require(point.mode, use, "run", probe=point.tracing.probe)
                possible.append(point)
        except MachineError as error:
            lacking[name] = error
            say(f"{name} is left out: {error}")
    if needs_one and not possible:
        raise next(iter(lacking.values()))
    return possible


def load_modules(mode: Mode) -> None:
    """Load the kernel modules that a mode's rules and probes take.

    :raises MachineError: one cannot be loaded.
    """
    for module in mode.modules:
        kernel.load_module(module)


def plan_script(options: Options) -> Plan:
    """Put together what a run's script is rendered from.

    :raises MachineError: as :func:`make_plan`.
    """
    flow = make_flow(None if options.targets else options.target, options.sources)
    sends = options.sending.generator.sends
    if sends and options.mode.origin != "node":
        # Only our packets have our sources, and all of them go to this port: one read less for every call.
        flow = replace(flow, port_protocol=None)
    inode = options.node.inode if options.node.netns else 0
    # The second may be lost: there are to be some more.
    fewest = min(options.packets, options.overhead_packets or options.packets)
    stepping = sends and fewest >= 4 * PORT_STEP
    tracing = options.tracing
    return make_plan(options.mode, flow, tracing.probe, 0, tracing.envelope, inode, stepping, tracing.others)


def make_flow(target: Target | None, source: IpNetwork) -> Flow:
    """Describe the target's packets (None: all from our sources) as the kernel's conntrack tuple has them.

    Kernel, include/net/netfilter/nf_conntrack_tuple.h: dst.u (port, 16 bits in network order), dst.protonum, dst.dir
    (IP_CT_DIR_ORIGINAL is 0).
    """
    port_protocol = target and (target.port or 0).to_bytes(2, "big") + bytes([PROTOCOLS[target.protocol or ""], 0])
    return Flow(
        daddr=network_words(ip_address(target.ip).packed) if target else (),
        port_protocol=network_words(port_protocol)[0] if port_protocol else None,
        saddr=network_words(source.network_address.packed),
        saddr_mask=network_words(source.netmask.packed),
    )


def plan_bursts(options: Options, network: Network) -> list[Burst]:
    """Split the sources between the warm-up, the run and what follows, so that no flow comes twice.

    :return: the warm-up, which is empty where others send; the run; three more where the overhead is measured; one more
        where the send time is taken after the run.
    """
    # The warm-up loads code and caches and need not take longer than a tenth of a second.
    rate = min(options.sending.rate_pps, max(options.sending.warmup, 1) * 10)
    count = options.sending.warmup if options.sending.generator.sends else 0
    netns = network.node if options.mode.origin == "node" else network.client
    link = "pod0", MAC[POD_LINK]
    warmup = Burst(count, rate, options.sources, options.target, netns, *link, network.skip, options.targets)
    timed = [options.timed_packets] if options.tracing.send_time else []
    if options.sending.connects:
        bursts = [replace(warmup, connects=True)]
    else:
        bursts = [warmup if options.tracing.traces else time_sends(warmup, options, network)]
    for count in (options.packets, *[options.overhead_packets] * (3 if options.tracing.overhead else 0), *timed):
        skip = bursts[-1].skip + bursts[-1].addresses
        bursts.append(replace(bursts[0], count=count, rate_pps=options.sending.rate_pps, skip=skip))
    return [*bursts[:-1], time_sends(bursts[-1], options, network)] if timed else bursts
