"""The stage of a run: check the machine, remove leftovers, build the network, load rules, place counters."""

from __future__ import annotations

from contextlib import ExitStack

from kproxylat.console import say
from kproxylat.errors import MachineError
from kproxylat.measure.conntrack import forget_flows
from kproxylat.measure.options import Lab, NodeUnderTest, Options
from kproxylat.measure.plan import load_modules
from kproxylat.measure.standing_lab import Standing, find_standing
from kproxylat.modes import Mode
from kproxylat.node import addresses, counters, doctor
from kproxylat.node import lock as node_lock
from kproxylat.node import network as net
from kproxylat.node.changes import ALLOWABLE, FORWARD, Changes, clean_up
from kproxylat.system import kernel
from kproxylat.system.files import make_directory
from kproxylat.system.processes import run
from kproxylat.trace.engine import check_probes
from kproxylat.traffic.answering import answering


def begin(options: Options, stack: ExitStack) -> tuple[Changes, Standing | None]:
    """Check that a run is possible and that no other one is under way.

    :param stack: releases the lock, after the changes are put back.
    :return: the changes that the run will note, and the standing lab in which it can continue.
    :raises MachineError: something is missing, or another run is under way.
    """
    generator = options.sending.generator
    uses = "run", *generator.modules, *generator.tools, *(() if options.lab else ("node",))
    if options.tracing.traces:
        check_machine(options.mode, options.tracing.probe, *uses)
    else:
        doctor.require(options.mode, "send time", *uses)
        load_modules(options.mode)
    make_directory(options.record.output_dir)
    lock = stack.enter_context(node_lock.lock())
    standing = find_standing(options)
    # Among runs that keep their lab, such as a sweep's, a lab that the next one cannot use is not a leftover.
    replaces = options.lab and options.lab.keep and net.read_label()
    removed = clean_up(lock, standing is not None)
    replaced = [name for name in removed if replaces and name.startswith(net.PREFIX)]
    for name in removed:
        if name not in replaced:
            say(f"      removed {name} of an earlier run")
    if replaced:
        say("      the lab that stands is replaced")
    changes = Changes(lock, options.node)
    stack.callback(_restore, changes)
    return changes, standing


def build(options: Options, changes: Changes, standing: Standing | None, stack: ExitStack) -> net.Network:
    """Make the network, load the lab's rules, place the counters, and on a node move the target's rule.

    :param standing: the lab to continue in (None: build a new one).
    :param stack: removes everything at its end.
    :raises MachineError: a tool refuses a step, or a change is not allowed.
    """
    generator, mode, netns = options.sending.generator, options.mode, options.node.netns
    for module in generator.modules:
        changes.load_module(module)
    network = net.Network(None, netns, None, mode.origin, options.family)
    endpoint = (options.lab or Lab()).backend(options.family)
    if not options.lab and generator.sends:
        addresses.check_free(netns, options.sources)
    if options.lab or generator.sends:
        node, backend = (net.NODE, net.BACKEND) if options.lab else (netns, None)
        skip = standing.skip if standing else 0
        network = net.Network(net.CLIENT, node, backend, mode.origin, options.family, skip, options.link)
        keep = options.lab is not None and options.lab.keep
        built = net.take_over(keep) if standing else net.build_network(network, options.sources, endpoint, keep)
        stack.enter_context(built)
        if options.lab:
            begun_s = kernel.user_clock_s()
            options.lab.load(mode, net.NODE, standing.services if standing else None)
            if options.lab.node_port and not standing:
                words = "route", "add", "local", options.target.ip, "dev", net.BACKEND_LINK
                run("ip", *words, netns=net.NODE)
            changes.load_s = round(kernel.user_clock_s() - begun_s, 2)
        if options.lab and options.sending.connects:
            stack.enter_context(answering(network, options.endpoints))
        if standing:
            # Its counters count on, and those of before are taken off.
            say(f"      on top of the {standing.services} Services that stand")
        # This loads nf_conntrack_netlink, as kube-proxy does when it removes stale flows: each new flow then passes its
        # handler of events, in a machine's first run as in all others (kernel, net/netfilter/nf_conntrack_netlink.c).
        forget_flows(network, options.sources)
        if standing and not (options.lab and options.lab.places):
            return network
    for note in options.ruleset.notes if options.ruleset else ():
        say(f"      the ruleset: {note}")
    targets = [target.ip for target in options.targets or (options.target,)]
    _, own = net.name_addresses(endpoint)
    counters.place_counters(network, options.sources, options.endpoints, targets, own, options.sending.connects)
    if options.on_node and options.on_node.position and mode.form.ordered:
        changes.move_rule(mode.iptables, options.target, options.on_node.position)
    return network


def open_node(options: Options, network: net.Network, stack: ExitStack) -> None:
    """On a node, let our packets through, and take their flows out of conntrack at the end.

    :param stack: removes them.
    :raises MachineError: the node does not forward, and we may not let it.
    """
    if options.on_node and options.sending.generator.sends:
        _let_forward(options.on_node, network)
        stack.callback(forget_flows, network, options.sources)


def _restore(changes: Changes) -> None:
    for warning in changes.restore():
        say(f"warning: {warning}")


def _let_forward(where: NodeUnderTest, network: net.Network) -> None:
    """Let the node forward what comes in by our link, which disappears with its setting.

    In IPv6 no link can do so alone (kernel, net/ipv6/ip6_output.c, ip6_forward).
    """
    name = FORWARD[network.family]
    if run("sysctl", "-n", name, netns=network.node).strip() == "0":
        if name not in where.allow:
            fix = f"--allow {name} lets our link forward" if name in ALLOWABLE else f"if it is: sysctl -w {name}=1"
            raise MachineError(f"{name} is 0: is this a node?", fix)
        run("sysctl", "-q", "-w", f"net.ipv4.conf.{network.pod_link}.forwarding=1", netns=network.node)


def check_machine(mode: Mode, probe: str, *uses: str) -> None:
    """Make sure that this machine can trace this mode, and load the modules it takes.

    :param probe: the kind of probe: "fentry", "kprobe" or "auto".
    :param uses: what for beside tracing, as :attr:`kproxylat.node.doctor.Check.use` names it.
    :raises MachineError: something is missing.
    """
    doctor.require(mode, "trace", *uses, probe=probe)
    load_modules(mode)
    check_probes(mode, probe)
