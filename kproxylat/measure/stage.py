"""The stage of a run: the machine checked, leftovers removed, the network made, rules loaded, counters placed."""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from typing import NamedTuple

from kproxylat import __version__
from kproxylat.console import say
from kproxylat.errors import MachineError
from kproxylat.lab import rules
from kproxylat.lab import services as lab
from kproxylat.measure.conntrack import forget_flows
from kproxylat.measure.options import Options
from kproxylat.measure.plan import load_modules, plan_bursts
from kproxylat.modes import Mode
from kproxylat.node import addresses, counters, doctor
from kproxylat.node import lock as node_lock
from kproxylat.node import network as net
from kproxylat.node.changes import FORWARD, Changes, put_back
from kproxylat.system import interrupts
from kproxylat.system.files import make_directory
from kproxylat.system.processes import run
from kproxylat.trace.engine import find_engine
from kproxylat.traffic.generators import GENERATORS


class Standing(NamedTuple):
    """A lab that a run left standing: what is the same for all of its runs, the dummy Services whose rules it has, and
    how many source addresses have been used, so that no flow comes twice."""

    kind: str
    services: int
    skip: int


def find_standing(options: Options) -> Standing | None:
    """Return the lab that stands, if a run can go on from it.

    :raises CommandError: ip(8) cannot look.
    """
    grows = options.lab and not options.lab.ruleset and (options.mode.name, options.mode.backend) in rules.MORE
    label = net.read_label() if grows else ""
    if not options.lab or not label:
        return None
    try:
        found = Standing(*json.loads(label))
        used = _count_used(options, net.Network(None, None, None, skip=found.skip))
        enough = used <= options.sources.num_addresses - 2
        fits = enough and found.kind == _kind(options) and found.services <= options.lab.services
    except (ValueError, TypeError):
        return None
    return found if fits else None


def leave(options: Options, made: net.Network) -> None:
    """Leave the lab standing, if it is to be, after a run that went well."""
    if options.lab and options.lab.keep:
        standing = Standing(_kind(options), options.lab.services, _count_used(options, made))
        net.write_label(json.dumps(standing))


def _count_used(options: Options, made: net.Network) -> int:
    """Return how many source addresses of a network are used after a run in it."""
    last = plan_bursts(options, made)[-1]
    return last.skip + last.addresses


def clear() -> None:
    """Remove the lab that stands, if there is one. One that a run has taken over is that run's."""
    if net.read_label():
        with suppress(MachineError), node_lock.lock() as lock:
            clean_up(lock)


def _kind(options: Options) -> str:
    mode, made = options.mode, options.lab
    words = __version__, mode.name, mode.backend, mode.origin, made and made.position, made and made.worker_ports
    return " ".join(map(str, (*words, options.sources, options.target)))


def begin(options: Options, stack: ExitStack) -> tuple[Changes, Standing | None]:
    """Make sure that a run is possible, and that it is the only one.

    :param stack: releases the lock, after the changes are put back.
    :return: what notes the run's changes; the lab that it can go on from.
    :raises MachineError: something is missing, or another run is under way.
    """
    generator = GENERATORS[options.generator]
    uses = "run", *generator.modules, *generator.tools, *(() if options.lab else ("node",))
    check_machine(options.mode, options.probe, *uses)
    make_directory(options.output_dir)
    lock = stack.enter_context(node_lock.lock())
    standing = find_standing(options)
    for name in clean_up(lock, standing is not None):
        say(f"      removed {name} of an earlier run")
    changes = Changes(lock, options.node)
    stack.callback(_put_back, changes)
    return changes, standing


def build(options: Options, changes: Changes, standing: Standing | None, stack: ExitStack) -> net.Network:
    """Make the network, load the lab's rules, place the counters, and on a node move the target's rule.

    :param standing: the lab to go on from (None: none).
    :param stack: removes it all.
    :raises MachineError: something refuses, or is not allowed.
    """
    generator, mode, netns = GENERATORS[options.generator], options.mode, options.node.netns
    for module in generator.modules:
        changes.load_module(module)
    made = net.Network(None, netns, None, mode.origin, options.family)
    if not options.lab and generator.sends:
        addresses.check_free(netns, options.sources)
    if options.lab or generator.sends:
        endpoint = lab.ADDRESSES[options.family].endpoint_ip
        skip = standing.skip if standing else None
        keep = options.lab is not None and options.lab.keep
        network = net.network(options.sources, options.lab is not None, endpoint, mode.origin, netns, skip, keep)
        made = stack.enter_context(network)
        if options.lab:
            options.lab.load(mode, net.NODE, standing.services if standing else None)
        if standing:
            # Its counters count on, and those of before are taken off.
            say(f"      on top of the {standing.services} Services that stand")
            forget_flows(made, options.sources)
            return made
    replayed = options.lab.ruleset if options.lab else None
    for note in replayed.notes if replayed else ():
        say(f"      the ruleset: {note}")
    targets = [each.ip for each in options.targets or (options.target,)]
    counters.place_counters(made, options.sources, options.endpoints, targets, replayed is not None)
    if options.position and mode.name == "iptables":
        changes.move_rule(mode.iptables, options.target, options.position)
    return made


def open_node(options: Options, made: net.Network, changes: Changes, stack: ExitStack) -> None:
    """On a node, let our packets through, and take their flows out of conntrack at the end.

    :param stack: removes them.
    :raises MachineError: the node does not forward, and we may not let it.
    """
    if not options.lab and GENERATORS[options.generator].sends:
        let_forward(options, changes)
        stack.callback(forget_flows, made, options.sources)


def _put_back(changes: Changes) -> None:
    for warning in changes.put_back():
        say(f"warning: {warning}")


def let_forward(options: Options, changes: Changes) -> None:
    """Make sure that a node forwards packets.

    :raises MachineError: it does not, and we may not let it.
    """
    name = FORWARD[options.family]
    if run("sysctl", "-n", name, netns=options.node.netns).strip() == "0":
        if name not in options.allow:
            raise MachineError(f"{name} is 0: is this a node?", f"to have it set for the run: --allow {name}")
        changes.set(name, "1")


def clean_up(lock: node_lock.Lock, standing: bool = False) -> list[str]:
    """Remove what an earlier run left: namespaces and links; and put back what an interrupted one changed.

    :param lock: keeps the notes of what could not be put back.
    :param standing: let the lab stand.
    :return: the names of what was removed, and what was put back.
    :raises MachineError: something could not be removed, or belongs to a run that is under way.
    """
    removed: list[str] = []
    with interrupts.shielded():
        try:
            removed += [] if standing else net.remove_leftovers()
        finally:
            restored, warnings = put_back(lock, lock.notes)
            for warning in warnings:
                say(f"warning: {warning}")
    return removed + restored


def check_machine(mode: Mode, probe: str, *uses: str) -> None:
    """Make sure that this machine can trace this mode, and load the modules it takes.

    :param probe: the kind of probe: "fentry", "kprobe" or "auto".
    :param uses: what for beside tracing, as :attr:`kproxylat.node.doctor.Check.use` names it.
    :raises MachineError: something is missing.
    """
    doctor.require(mode, "trace", *uses)
    load_modules(mode)
    _, kind = find_engine(mode, probe)
    doctor.require(mode, kind)
