"""The commands about one script: run, trace, render.

Each imports what it needs when it runs, so that none waits for another's imports.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from kproxylat.cli import options as opt
from kproxylat.cli.nodes import LoadModules, Nodes, Remote, plan_run, plan_trace, run_on_nodes
from kproxylat.cli.places import Cluster, OnNode, Place
from kproxylat.cli.spread import spread
from kproxylat.cli.virtual import InVm, KernelImage, Vm
from kproxylat.console import say, show
from kproxylat.errors import MachineError, UsageError, refuse_options
from kproxylat.modes import mode_names
from kproxylat.system.kernel import detect_clock

if TYPE_CHECKING:
    from collections.abc import Callable

    from kproxylat import results
    from kproxylat.measure.options import Options, Record

Keep = Annotated[
    bool, typer.Option("--keep", help="Leave the lab standing: for its rules to be looked at, or for more Services.")
]


@dataclass(frozen=True)
class RunOptions(opt.Measured):
    """The options of a run, from which its script is rendered, too."""

    duration: opt.Duration = 30
    rate: opt.Rate = None
    warmup: opt.Warmup = 100
    rule_position: Annotated[opt.Position | None, typer.Argument(help="The same as --position.")] = None
    mode: opt.ModeName = None
    backend: opt.Backend = None
    services: opt.Services = None

    def plan(
        self, node: OnNode, record: Record, overhead: bool = False, send_time: bool = False, keep: bool = False
    ) -> Options:
        """Put together what the command line says.

        :param record: where to save the result.
        :param overhead: measure what tracing adds to a call; ``send_time``: take the send time, too.
        :param keep: leave the lab standing.
        :raises UsageError: it is not possible.
        """
        from kproxylat.lab.ruleset import read_ruleset
        from kproxylat.measure.plan import check_options
        from kproxylat.measure.replay import plan_replay
        from kproxylat.modes import DEFAULT_MODE, find_mode

        asked = replace(self, position=self.rule_position or self.position)
        asked.check(node, services=self.services, position=asked.position)
        if not self.lab:
            refuse_options("only the lab makes Services", "add --lab", services=self.services)
        elif self.target is not None and not self.ruleset:
            raise UsageError("--lab brings its own target", "leave out --lab or --target")
        # In the lab, mode iptables runs on the backend of current distributions; on a node it is detected.
        row = find_mode(DEFAULT_MODE if self.mode is None else self.mode, self.backend, usual=True)
        rate_pps = self.choose_rate(self.rate, 10000)
        sending = {"duration_s": self.duration, "rate_pps": rate_pps, "warmup": self.warmup}
        services = opt.DUMMIES if self.services is None else self.services
        options = asked.build(row, services, node, record, overhead, send_time, **sending)
        if self.ruleset:
            rules = read_ruleset(self.ruleset, self.mode, self.backend)
            options = plan_replay(options, rules, self.target, self.every_service, self.generator, self.protocol)
        elif options.lab and keep:
            options = replace(options, where=replace(options.lab, keep=True))
        check_options(options)
        return options

    def look_up(self, options: Options, node: OnNode) -> tuple[Options, Callable[[], results.Target] | None]:
        """Fill in what the command line leaves out, from cluster and node; in the lab nothing.

        :return: as :func:`kproxylat.measure.defaults.look_up`.
        :raises MachineError: likewise.
        """
        if not options.on_node:
            return options, None
        from kproxylat.measure.defaults import look_up

        options = replace(options, where=replace(options.on_node, node=node.find()))
        return look_up(options, self.mode, self.backend, self.target, node.asked, opt.number(self.family), node.connect)


def words(options: Options) -> list[str]:
    """Write the arguments of ``run`` that ask for these options: the inverse of its command line.

    :param options: of a lab; or of a node in a named network namespace, with target, mode and backend. The words leave
        out what a run adds itself: arguments, warnings, the cluster's facts. They name one Service of a ruleset or all.
    """
    sending, tracing, lab, ruleset = options.sending, options.tracing, options.lab, options.ruleset
    protocol = options.target.protocol
    if ruleset and options.targets:
        protocol = "" if set(options.targets) == set(ruleset.targets) else protocol
    named = {
        "mode": options.mode.name,
        "backend": options.mode.backend,
        "family": options.family if lab and not ruleset else None,
        "services": lab.services if lab and not ruleset else None,
        "position": None if ruleset else options.where.position,
        "worker-ports": lab.worker_ports if lab and not ruleset else None,
        "ruleset": ruleset and ruleset.source,
        "target": None if options.targets or (lab and not ruleset) else options.target.address,
        "netns": options.node.netns,
        "from": sending.origin,
        "generator": sending.generator.name,
        "protocol": protocol or None,
        "source": sending.source,
        "template": tracing.template,
        "probe": tracing.probe,
        "places": (lab and lab.places) or None,
        "kube-proxy": (lab and not ruleset and lab.release) or None,
        "endpoints": lab.endpoints if lab and lab.endpoints != 1 else None,
        "output-dir": options.record.output_dir,
    }
    flags = {
        "lab": lab,
        "affinity": lab and lab.affinity,
        "node-port": lab and lab.node_port,
        "keep": lab and lab.keep,
        "every-service": ruleset and options.targets,
        "envelope": tracing.envelope,
        "overhead": tracing.overhead,
        "first-packet": sending.connects,
        "send-time": tracing.send_time,
        "others": tracing.others,
    }
    return [
        *map(str, (sending.duration_s, sending.rate_pps, sending.warmup)),
        *(f"--{name}={value}" for name, value in named.items() if value is not None),
        *(f"--{name}" for name, is_set in flags.items() if is_set),
        *(f"--allow={name}" for name in (options.on_node.allow if options.on_node else ())),
        *(f"--set={name}={value}" for name, value in tracing.settings.items()),
    ]


@spread
def run(
    ctx: typer.Context,
    *,
    options: RunOptions,
    overhead: opt.WithOverhead = False,
    send_time: opt.SendTime = False,
    keep: Keep = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before sending to a live Service.")] = False,
    dry_run: opt.DryRun = False,
    form: opt.Form = opt.Format.TABLE,
    output_dir: opt.OutputDir = opt.LOGS,
    machine: InVm,
    node: OnNode,
    nodes: Nodes,
    load_modules: LoadModules = False,
) -> None:
    """Measure a Service lookup: send packets, time each lookup, close the books.

    Without --lab this machine is a node of a cluster: the target is its Service worker, and mode and backend are
    detected, where they are not passed. The Service's own pods get the packets, each of which starts a new flow: run
    says how many, and asks first, unless DURATION and RATE are passed. No rule and no setting changes, but for --allow
    and --position. A pod measures on each node that --all-nodes, -l or --node names; with --lab, the node's kernel
    alone.

    \b
    Examples:
      kubectl kproxylat run --node worker-1 --node worker-2 5 1000
      kubectl kproxylat run --all-nodes --lab --services 1000 5 1000
      sudo kproxylat run 30 10000 --kubeconfig ~/.kube/config
      kproxylat run --lab --mode nftables 2 1000
      kproxylat run --lab --vm --clock instructions --services 1000 2 1000
      kproxylat run --target 10.96.0.10:50051 --mode iptables --backend nft
      kproxylat run --node-container kind-worker 2 1000
      kproxylat run --target [fd00:10:96::50]:50051 --mode nftables 5 10000
      kproxylat run --lab --family 6 --services 1000 2 1000
      kproxylat run --lab --probe none --services 1000 2 1000
      kproxylat run --lab --probe none --first-packet --places 10 2
      kproxylat run --lab --generator sockets --protocol tcp 2 1000
      kproxylat run --lab --from node --mode ipvs 2 1000
      kproxylat run --lab --envelope --overhead 2 1000
      kproxylat run --lab --ruleset node.json --target 10.96.0.10:53
      kproxylat run --lab --ruleset node.json --every-service --dry-run
      kproxylat run --lab --keep --services 1000 2 1000
    """
    from kproxylat.measure.expected import announce, expect_s, say_expected
    from kproxylat.measure.options import Record
    from kproxylat.measure.preview import preview
    from kproxylat.measure.run import measure
    from kproxylat.report.tables import show_result
    from kproxylat.results_json import to_json

    machine.check()
    if keep and (not options.lab or options.ruleset or machine.asked):
        raise UsageError("--keep is for the lab's own rules on this machine", "leave it out, or --vm and --ruleset")
    if in_pods := nodes.asked(load_modules):
        own = {"vm": machine.vm, "vm_if_needed": machine.vm_if_needed, "template": options.template}
        nodes.refuse(node, dry_run, output_dir, **own, keep=keep, ruleset=options.ruleset, yes=dry_run and yes)
    if options.lab:
        refuse_options("a lab has no live Service", yes=yes)
    # With --target or --lab no Service is looked up, but the Jobs still take a cluster.
    needs_no_look = in_pods and (options.target or options.lab)
    local = replace(node, **{field.name: None for field in fields(Cluster)}) if needs_no_look else node
    plan = options.plan(local, Record(output_dir, ctx.obj), overhead, send_time or overhead, keep)
    # DURATION comes before RATE, so a call with RATE has both.
    asks = options.rate is None and not (yes or options.lab)
    if in_pods:
        errand = partial(plan_run, ctx, plan, node, asks and not dry_run)
        run_on_nodes(nodes, node, errand, form, dry_run, output_dir, load_modules)
    if dry_run:
        plan, _ = options.look_up(plan, node)
        opt.show_runs("run", [preview(plan)], form, virtual_machine=machine.describe(), asks_first=asks)
        return
    machine.relay_if(ctx.obj, output_dir, [plan.mode], options.probe)
    options.enter_namespace()
    plan, read_target = options.look_up(plan, node)
    if options.lab or not plan.sending.generator.sends:
        say_expected(expect_s(plan, detect_clock()[1]))
    else:
        announce(plan, asks)
    result, ended = measure(plan, read_target=read_target)
    if form is opt.Format.JSON:
        show(to_json(result))
    else:
        show_result(result)
    opt.end([result], ended)


@spread
def trace(
    ctx: typer.Context,
    mode: Annotated[str, typer.Option("--mode", help=f"kube-proxy's mode: {', '.join(mode_names())}.")],
    backend: opt.Backend = None,
    target: opt.Target = None,
    protocol: Annotated[str | None, typer.Option("--protocol", help="The target's: udp or tcp (udp).")] = None,
    family: Annotated[
        opt.Family | None, typer.Option("--family", help="IPv4 or IPv6 (that of --target, or 4).")
    ] = None,
    duration: Annotated[float | None, typer.Option("--duration", help="Seconds to trace for.")] = None,
    template: opt.Template = None,
    settings: opt.Settings = None,
    probe: opt.ProbeKind = opt.Kind.AUTO,
    output_dir: opt.OutputDir = opt.LOGS,
    dry_run: opt.DryRun = False,
    form: Annotated[
        opt.Format | None, typer.Option("--format", "-o", help="How --dry-run is written to stdout.")
    ] = None,
    *,
    place: Place,
    nodes: Remote,
) -> None:
    """Attach and report every 5 s until Ctrl-C or --duration; the traffic is yours.

    \b
    Examples:
      kproxylat trace --mode nftables
      kproxylat trace --mode nftables --target 10.96.0.10:53 --protocol tcp
      kubectl kproxylat trace --mode nftables --duration 10 --all-nodes
    """
    from kproxylat.measure import options as plan
    from kproxylat.measure import watch
    from kproxylat.measure.preview import preview_trace
    from kproxylat.modes import find_mode

    opt.refuse_untraced(probe)
    if duration is not None and not 0 < duration <= 86400 * 365:
        raise UsageError(f"a duration of {duration:g} s is not possible", "--duration takes seconds")
    if not dry_run:
        refuse_options("trace prints text", "add --dry-run", format=form)
    if target is None:
        refuse_options("all packets are traced", "add --target", protocol=protocol)
    destination = plan.parse_destination(target, protocol or "udp", opt.number(family)) if target else None
    if nodes.asked():
        nodes.refuse(place, dry_run, output_dir, template=template)
        run_on_nodes(nodes, nodes, plan_trace(ctx, duration), form or opt.Format.TABLE, dry_run, output_dir)
    row, node = plan.match_family(find_mode(mode, backend), destination, opt.number(family)), place.find()
    if dry_run:
        tracing = plan.Tracing(probe, template=template, settings=opt.read_settings(settings))
        run = preview_trace(row, destination, duration, tracing, output_dir, node)
        opt.show_runs("trace", [run], form or opt.Format.TABLE)
        return
    watch.watch(row, destination, duration, output_dir, template, opt.read_settings(settings), probe, node)


@spread
def render(
    ctx: typer.Context,
    *,
    options: RunOptions,
    vm: Vm = False,
    kernel: KernelImage = None,
    node: OnNode,
) -> None:
    """Print the bpftrace script that run would use on this kernel, and take run's arguments for it.

    Without --lab and --target, it is for the cluster's Service, as in run. It needs root: the kernel tells only root
    which functions fentry can trace. --vm needs no root: it boots a virtual machine to ask its kernel, which takes
    about a minute without KVM.

    \b
    Examples:
      sudo kproxylat render --lab --mode iptables --backend legacy > trace.bt
      kproxylat render --target 10.96.0.10:50051 --mode nftables --vm
    """
    from kproxylat.measure.options import Record
    from kproxylat.measure.plan import load_modules, plan_script
    from kproxylat.system.kernel import check_root
    from kproxylat.trace.engine import KINDS
    from kproxylat.trace.script import render_script

    opt.refuse_untraced(options.probe)
    machine = InVm(vm, kernel=kernel)
    machine.check()
    plan = options.plan(node, Record())
    machine.relay_if(ctx.obj, None)
    check_root()
    plan, _ = options.look_up(plan, node)
    load_modules(plan.mode)
    script = plan_script(plan)
    try:
        if script.kind in KINDS:
            KINDS[script.kind]()
    except MachineError as error:
        say(f"warning: this kernel cannot run the script: {error}")
    show(render_script(script, plan.tracing.template, plan.tracing.settings), end="")
