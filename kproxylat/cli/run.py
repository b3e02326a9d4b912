"""The commands about one script: run, trace, render.

Each imports what it needs when it runs, so that none waits for another's imports.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kproxylat.cli.options import (
    DUMMIES,
    LOGS,
    Backend,
    Duration,
    Envelope,
    EveryService,
    Family,
    FamilyOption,
    Form,
    Format,
    InLab,
    Kind,
    ModeName,
    OnNode,
    Origin,
    OutputDir,
    Place,
    Ports,
    Position,
    ProbeKind,
    Rate,
    RulePosition,
    RulesetFile,
    Services,
    Settings,
    Source,
    Target,
    Template,
    Warmup,
    check_ruleset,
    end,
    number,
    read_settings,
    spread,
)
from kproxylat.cli.virtual import Clock, InVm, KernelImage, VmClock, VmIfNeeded, check_vm, relay_if
from kproxylat.errors import UsageError, refuse_options
from kproxylat.modes import mode_names

if TYPE_CHECKING:
    from kproxylat.measure.options import Options

WithOverhead = Annotated[
    bool, typer.Option("--overhead", help="Measure what tracing adds to a call, with three further bursts.")
]

WithOthers = Annotated[
    bool,
    typer.Option("--others", help="Count other packets' calls, and why packets are freed: each costs a map write."),
]
Keep = Annotated[
    bool, typer.Option("--keep", help="Leave the lab standing: for its rules to be looked at, or for more Services.")
]


@dataclass(frozen=True)
class Wanted:
    """What a run is to measure, and so what its script is rendered from."""

    duration: Duration = 30
    rate: Rate = 10000
    warmup: Warmup = 100
    rule_position: Annotated[Position | None, typer.Argument(help="The same as --position.")] = None
    lab: InLab = False
    mode: ModeName = None
    backend: Backend = None
    services: Services = None
    position: RulePosition = None
    worker_ports: Ports = None
    target: Target = None
    origin: Annotated[Origin, typer.Option("--from", help="Whose packets: a pod's, or the node's own.")] = Origin.POD
    generator: Annotated[
        str, typer.Option("--generator", help="Who sends: pktgen (a pod's), sockets (the node's own), hping3 or none.")
    ] = ""
    protocol: Annotated[str, typer.Option("--protocol", help="udp or tcp (what the generator is for).")] = ""
    family: FamilyOption = None
    source: Source = None
    ruleset: RulesetFile = None
    every_service: EveryService = False
    template: Template = None
    settings: Settings = None
    probe: ProbeKind = Kind.AUTO
    envelope: Envelope = False
    others: WithOthers = False

    def plan(self, node: OnNode, keep: bool = False, **more: Any) -> Options:
        """Put together what the command line says.

        :param keep: leave the lab standing.
        :param more: further fields of :class:`kproxylat.measure.options.Options`.
        :raises UsageError: it cannot be.
        """
        from kproxylat.measure import options as plan
        from kproxylat.measure import plan as measure_plan
        from kproxylat.modes import DEFAULT_MODE, find_mode
        from kproxylat.traffic.generators import find_generator

        position = self.rule_position or self.position
        own = {"services": self.services, "position": position, "worker_ports": self.worker_ports}
        check_ruleset(self.ruleset, self.every_service, self.lab, family=self.family, **own)
        if not self.lab:
            dummies: dict[str, Any] = {"services": self.services, "worker_ports": self.worker_ports}
            refuse_options("only the lab makes Services", "add --lab", **dummies)
        if self.lab and self.target is not None and not self.ruleset:
            raise UsageError("--lab brings its own target", "leave out --lab or --target")
        node.check(self.lab, self.target)
        generator = self.generator or ("sockets" if self.origin is Origin.NODE else "pktgen")
        protocol = self.protocol or find_generator(generator).protocols[0]
        # In the lab, mode iptables runs on the backend of current distributions; on a node it is detected.
        row = find_mode(DEFAULT_MODE if self.mode is None else self.mode, self.backend, usual=True)
        services = DUMMIES if self.services is None else self.services
        options = plan.Options(
            mode=row.from_node() if self.origin is Origin.NODE else row,
            target=plan.parse_destination(self.target, protocol, number(self.family))
            if self.target is not None
            else plan.WORKER[number(self.family) or 4]._replace(protocol=protocol),
            lab=plan.Lab(services, position or "last", self.worker_ports or "both", keep=keep) if self.lab else None,
            position=None if self.lab else position,
            duration_s=self.duration,
            rate_pps=self.rate,
            warmup=self.warmup,
            generator=generator,
            source=plan.parse_source(self.source) if self.source else None,
            allow=tuple(node.allow or ()),
            template=self.template,
            settings=read_settings(self.settings),
            probe=self.probe,
            envelope=self.envelope,
            others=self.others,
            **more,
        )
        if self.ruleset:
            from kproxylat.lab.ruleset import read_ruleset
            from kproxylat.measure.replay import plan_replay

            read = read_ruleset(self.ruleset, self.mode, self.backend)
            options = plan_replay(options, read, self.target, self.every_service, self.generator, self.protocol)
        measure_plan.check_options(options)
        return options

    def look_up(self, options: Options, node: OnNode) -> Options:
        """Fill in what the command line leaves out, from cluster and node; in the lab nothing.

        :raises MachineError: as :func:`kproxylat.measure.defaults.look_up`.
        """
        if self.lab:
            return options
        from kproxylat.measure.defaults import look_up

        options = replace(options, node=node.find())
        return look_up(options, self.mode, self.backend, self.target, node.asked, number(self.family), node.connect)


@spread
def run(
    ctx: typer.Context,
    *,
    wanted: Wanted,
    overhead: WithOverhead = False,
    keep: Keep = False,
    form: Form = Format.TABLE,
    output_dir: OutputDir = LOGS,
    vm: InVm = False,
    vm_if_needed: VmIfNeeded = False,
    kernel: KernelImage = None,
    clock: VmClock = None,
    node: OnNode,
) -> None:
    """Measure a Service lookup: send packets, time each lookup, close the books.

    Without --lab this machine is a node of a cluster: the target is its Service worker, and mode and backend are
    detected, where they are not passed.

    \b
    Examples:
      sudo kproxylat run 30 10000 --kubeconfig ~/.kube/config
      kproxylat run --lab --mode nftables 2 1000
      kproxylat run --lab --vm --clock instructions --services 1000 2 1000
      kproxylat run --target 10.96.0.10:50051 --mode iptables --backend nft
      kproxylat run --node-container kind-worker 2 1000
      kproxylat run --target [fd00:10:96::50]:50051 --mode nftables 5 10000
      kproxylat run --lab --family 6 --services 1000 2 1000
      kproxylat run --lab --generator sockets --protocol tcp 2 1000
      kproxylat run --lab --from node --mode ipvs 2 1000
      kproxylat run --lab --envelope --overhead 2 1000
      kproxylat run --lab --ruleset node.json --target 10.96.0.10:53
      kproxylat run --lab --keep --services 1000 2 1000
    """
    from kproxylat.measure.run import measure
    from kproxylat.report.tables import show_result
    from kproxylat.results_json import to_json

    check_vm(vm or vm_if_needed, clock, kernel)
    if keep and (not wanted.lab or wanted.ruleset or vm or vm_if_needed):
        raise UsageError("--keep is for the lab's own rules on this machine", "leave it out, or --vm and --ruleset")
    options = wanted.plan(node, keep, output_dir=output_dir, overhead=overhead, arguments=ctx.obj)
    relay_if(ctx.obj, vm, vm_if_needed, output_dir, clock or Clock.NS, kernel, [options.mode], options.probe)
    result, ended = measure(wanted.look_up(options, node))
    if form is Format.JSON:
        print(to_json(result))
    else:
        show_result(result)
    end([result], ended)


@spread
def trace(
    mode: Annotated[str, typer.Option("--mode", help=f"kube-proxy's mode: {', '.join(mode_names())}.")],
    backend: Backend = None,
    target: Target = None,
    protocol: Annotated[str | None, typer.Option("--protocol", help="The target's: udp or tcp (udp).")] = None,
    family: Annotated[Family | None, typer.Option("--family", help="IPv4 or IPv6 (that of --target, or 4).")] = None,
    duration: Annotated[float | None, typer.Option("--duration", help="Seconds to trace for.")] = None,
    template: Template = None,
    settings: Settings = None,
    probe: ProbeKind = Kind.AUTO,
    output_dir: OutputDir = LOGS,
    *,
    place: Place,
) -> None:
    """Attach and report every 5 s until Ctrl-C or --duration; the traffic is yours.

    \b
    Examples:
      kproxylat trace --mode nftables
      kproxylat trace --mode nftables --target 10.96.0.10:53 --protocol tcp
    """
    from kproxylat.measure import options as plan
    from kproxylat.measure import watch
    from kproxylat.modes import find_mode

    if duration is not None and not 0 < duration <= 86400 * 365:
        raise UsageError(f"a duration of {duration:g} s is not possible", "--duration takes seconds")
    if target is None:
        refuse_options("all packets are traced", "add --target", protocol=protocol)
    destination = plan.parse_destination(target, protocol or "udp", number(family)) if target else None
    row, node = plan.match_family(find_mode(mode, backend), destination, number(family)), place.find()
    watch.watch(row, destination, duration, output_dir, template, read_settings(settings), probe, node)


@spread
def render(
    ctx: typer.Context,
    *,
    wanted: Wanted,
    vm: InVm = False,
    kernel: KernelImage = None,
    node: OnNode,
) -> None:
    """Print the bpftrace script that run would use on this kernel, and take run's arguments for it.

    Without --lab and --target, it is for the cluster's Service, as in run. Except with --vm, it needs root: the kernel
    tells only root which functions fentry can trace.

    \b
    Examples:
      sudo kproxylat render --lab --mode iptables --backend legacy > trace.bt
      kproxylat render --target 10.96.0.10:50051 --mode nftables --vm
    """
    from kproxylat.measure.plan import load_modules, plan_script
    from kproxylat.system.kernel import check_root
    from kproxylat.trace.script import render_script

    check_vm(vm, None, kernel)
    options = wanted.plan(node)
    relay_if(ctx.obj, vm, False, None, Clock.NS, kernel)
    check_root()
    options = wanted.look_up(options, node)
    load_modules(options.mode)
    print(render_script(plan_script(options), options.template, options.settings), end="")
