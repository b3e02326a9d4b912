"""The command sweep: many measurements."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from kproxylat.cli import options as opt
from kproxylat.cli.nodes import LoadModules, Nodes, plan_sweep, run_on_nodes
from kproxylat.cli.places import Cluster, OnNode
from kproxylat.cli.run import words
from kproxylat.cli.spread import spread
from kproxylat.cli.virtual import Clock, InVm
from kproxylat.console import confirm, say, show
from kproxylat.errors import UsageError, refuse_options
from kproxylat.lab.ruleset import read_ruleset
from kproxylat.measure.defaults import look_up
from kproxylat.measure.options import NodeUnderTest, Options, Record
from kproxylat.measure.plan import keep_possible
from kproxylat.measure.preview import preview
from kproxylat.measure.replay import plan_backends
from kproxylat.modes import find_mode
from kproxylat.report.export import export_experiment
from kproxylat.report.tables import show_series
from kproxylat.sweep import on_cluster
from kproxylat.sweep import sweep as sweeping
from kproxylat.sweep.pool import Pool
from kproxylat.sweep.sweep import Ended, Sweep, keep_lab
from kproxylat.system.files import save_file
from kproxylat.system.kernel import detect_clock

Finished = tuple[Sweep, Ended]
"""A sweep, and what cut it short."""


SweepFormat = StrEnum("SweepFormat", ["TABLE", "JSON", "YAML", "CSV"])
"""How a sweep is written to stdout."""


DURATION_S = {"ns": 2, "instructions": 0.3}
"""Clock -> the default duration of a run. The same lookup takes the same instructions, so some hundred packets show its
commonest value, and with 20,000 rules a packet takes an emulated machine long."""
SweepDuration = Annotated[
    float | None, typer.Argument(help="Seconds to send for (2; if instructions are counted 0.3).", show_default=False)
]


@dataclass(frozen=True)
class SweepOptions(opt.Measured):
    """The options of a sweep's points and their order."""

    duration: SweepDuration = None
    rate: opt.Rate = None
    warmup: opt.Warmup = 100
    services: Annotated[str, typer.Option("--services", metavar="N,...", help="Numbers of dummy Services.")] = ""
    mode: Annotated[
        str, typer.Option("--mode", metavar="MODE,...", help="Modes (lab: all; cluster: the present one).")
    ] = ""
    backend: Annotated[str, typer.Option("--backend", metavar="BACKEND,...", help="Backends (all).")] = ""
    kube_proxy: Annotated[
        str, typer.Option("--kube-proxy", metavar="RELEASE,...", help="Releases whose nftables rules the lab has.")
    ] = ""
    overhead: opt.WithOverhead = False
    protocol: Annotated[
        str, typer.Option("--protocol", help="tcp, udp or both (lab: tcp; else, or with --generator, as run).")
    ] = ""
    repeats: Annotated[int, typer.Option("--repeats", metavar="N", help="Measure each point so many times.")] = 1
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of the order, random on the ns clock; another does not resume.")
    ] = None
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not resume an interrupted sweep.")] = False
    output_dir: opt.OutputDir = opt.LOGS

    @property
    def modes(self) -> list[str]:
        """The names of ``--mode``."""
        return [name for name in self.mode.split(",") if name]

    @property
    def backends(self) -> list[str]:
        """The names of ``--backend``."""
        return [name for name in self.backend.split(",") if name]

    @property
    def counts(self) -> list[int]:
        """The numbers of ``--services``."""
        try:
            counts = [int(number) for number in self.services.split(",")]
        except ValueError:
            error = f"invalid list of numbers: --services {self.services!r}"
            error = error if self.services else "no numbers of Services are given"
            raise UsageError(error, "--services takes some such as 10,100,1000") from None
        if len(set(counts)) < len(counts):
            raise UsageError(
                f"--services {self.services} names a number twice", "--repeats measures each several times"
            )
        return counts

    @property
    def _protocols(self) -> list[str]:
        """The protocols to send, one after another; "" is the generator's, or a ruleset's own.

        :raises UsageError: a cluster is to be swept by both.
        """
        if self.protocol == opt.Protocol.BOTH:
            if not self.lab:
                raise UsageError("a cluster is swept with one protocol at a time", "pass --protocol tcp, then udp")
            return [""] if self.ruleset else ["tcp", "udp"]
        is_open = self.lab and not (self.ruleset or self.protocol or self.generator)
        return ["tcp" if is_open and self.worker_ports is not opt.WorkerPorts.UDP else self.protocol]

    @property
    def _takes_send_time(self) -> bool:
        """Whether the send time checks the probes: in a lab, wherever its sender can send what the run sends."""
        sends = self.generator != "none" and not self.first_packet
        return self.lab and not self.ruleset and self.probe is not opt.Kind.NONE and sends

    def choose_duration(self, clock: str) -> float:
        """Return the seconds of a run on a clock."""
        return DURATION_S["ns" if self.every_service else clock] if self.duration is None else self.duration

    def plan(self, node: OnNode, arguments: tuple[str, ...], clock: str = "") -> list[Options]:
        """Return the points to measure.

        :param arguments: the command line. ``clock``: of the machine that measures ("": this machine's).
        :raises UsageError: an option is invalid.
        """
        if not self.ruleset and self.target:
            raise UsageError("--target is for a --ruleset here", "on a cluster: --service; the lab brings its own")
        modes = sweeping.find_modes(self.modes, self.backends)
        counts = [0] if self.ruleset else self.counts
        sending = {
            "duration_s": self.choose_duration(clock or detect_clock()[0]),
            "rate_pps": self.choose_rate(self.rate, 1000),
            "warmup": self.warmup,
        }
        record = Record(self.output_dir, arguments)
        points = []
        for protocol in self._protocols:
            generator = self.generator or ("sockets" if protocol == "tcp" else "")
            asked = replace(self, protocol=protocol, generator=generator)
            base = asked.build(modes[0], counts[0], node, record, self.overhead, self._takes_send_time, **sending)
            points += sweeping.plan_points(base, modes, counts, self.kube_proxy.split(","))
        if self.ruleset:
            only = self.backends[0] if len(self.backends) == 1 else None
            rules = read_ruleset(self.ruleset, self.mode or None, only)
            points = plan_backends(
                base, rules, self.backends, self.target, self.every_service, self.generator, self._protocols[0]
            )
        sweeping.check_points(points, self.repeats)
        return points


@spread
def sweep(
    ctx: typer.Context,
    *,
    options: SweepOptions,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask before the cluster's mode is set.")] = False,
    dry_run: opt.DryRun = False,
    form: Annotated[
        SweepFormat, typer.Option("--format", "-o", help="How it is written to stdout; csv is the old experiment's.")
    ] = SweepFormat.TABLE,
    machine: InVm,
    node: OnNode,
    nodes: Nodes,
    load_modules: LoadModules = False,
) -> None:
    """Measure the lookup over numbers of Services, for each mode and backend: is it O(1) or O(n)?

    Without --lab, on a node, it changes the cluster: it creates so many dummy Services, waits for kube-proxy, and
    deletes them at the end. With several modes, it sets kube-proxy's mode on all nodes and restores it at the end.
    To resume after an interruption, run the same command again with the same --output-dir. --node, -l and --all-nodes
    are for --lab: a pod measures the kernel of each of these nodes, and the cluster stays as it is.

    \b
    Examples:
      sudo kproxylat sweep --services 100,500,1000,5000,10000 30 10000
      sudo kproxylat sweep --services 100,1000 --mode iptables,nftables --yes
      kproxylat sweep --lab --vm --clock instructions --services 10,100,1000
      kproxylat sweep --lab --mode iptables --services 10,100 --repeats 5
      kproxylat sweep --lab --vm --family 6 --services 10,100,1000
      kproxylat sweep --lab --vm --ruleset node.json --every-service
      kproxylat sweep --lab --services 10,100,1000 --dry-run
      kubectl kproxylat sweep --lab --all-nodes --services 10,100,1000
      kproxylat sweep --lab --mode nftables --kube-proxy 1.36,1.37 --services 10
    """
    in_pods = nodes.asked(load_modules)
    if in_pods:
        if not options.lab:
            raise UsageError("a pod cannot change the cluster's Services or mode", f"add --lab to {nodes.ways[0]}")
        if form == SweepFormat.CSV:
            raise UsageError("the sweeps of several nodes have no CSV", "--format takes table, json or yaml")
        own = {"vm": machine.vm, "vm_if_needed": machine.vm_if_needed, "template": options.template}
        nodes.refuse(node, dry_run, options.output_dir, **own, ruleset=options.ruleset, fresh=options.fresh)
    local = replace(node, **{field.name: None for field in fields(Cluster)}) if in_pods else node
    options.check(local, services=options.services or None, position=options.position)
    machine.check()
    clock = "ns" if in_pods else ""
    if options.lab:
        refuse_options("--lab sets no cluster's mode", yes=yes)
    else:
        refuse_options("a cluster is measured mode by mode, in the order of --services", seed=options.seed)
    if (clock or machine.clock or detect_clock()[0]) == Clock.INSTRUCTIONS:
        refuse_options("on the instruction clock the order is not random", seed=options.seed)
    points = options.plan(local, ctx.obj, clock)
    if in_pods:
        errand = plan_sweep(ctx, points, options.repeats, form)
        run_on_nodes(nodes, node, lambda _: errand, form, dry_run, options.output_dir, load_modules)
    if dry_run:
        if form == SweepFormat.CSV:
            raise UsageError("--dry-run has no CSV", "--format takes table, json or yaml then")
        asks = not (options.lab or yes)
        _show_points(options, points, node, form, virtual_machine=machine.describe(), asks_first=asks)
        return
    rows = [point.mode for point in points]
    if not options.lab:
        machine.relay_if(ctx.obj, options.output_dir, rows, options.probe)
        finished, ended = _sweep_cluster(options, points, node, ask=not yes)
    elif machine.is_used(rows, options.probe):
        finished, ended = sweep_in_vms(options, points, machine.its_clock, machine.kernel)
    else:
        options.enter_namespace()
        if not options.mode and not options.ruleset:
            points = keep_possible(points, "send time" if options.probe is opt.Kind.NONE else "trace")
        finished, ended = sweeping.sweep(points, options.repeats, options.seed, options.fresh)
    show_sweep(finished, form)
    opt.end(finished.results, ended)


def _show_points(options: SweepOptions, points: list[Options], node: OnNode, form: str, **facts: Any) -> None:
    if not options.lab:
        points = _look_up_points(options, points, node)
        facts["on_the_cluster"] = [
            f"dummy Services are created, up to {max(options.counts)}, and deleted at the end",
            *(f"kube-proxy's mode is set to {mode}, and restored at the end" for mode in options.modes),
        ]
    elif facts["virtual_machine"]:
        points = _time_points(options, points, facts["virtual_machine"]["clock"])
    order = {"repeats": options.repeats, "seed": options.seed, "fresh": options.fresh}
    opt.show_runs("sweep", [preview(point) for point in points], form, **facts, **order)


def _look_up_points(options: SweepOptions, points: list[Options], node: OnNode) -> list[Options]:
    """Fill in the target, the sources, and the present mode where none is asked for."""
    where = NodeUnderTest(node.find(), options.position, tuple(node.allow or ()))
    base = replace(points[0], where=where)
    backend, family = options.backend or None, opt.number(options.family)
    base, _ = look_up(base, None, backend, None, node.asked, family, node.connect)
    rows = [find_mode(name, backend, usual=True) for name in options.modes] or [base.mode]
    return [replace(base, mode=row, where=replace(where, services=count)) for row in rows for count in options.counts]


def _time_points(options: SweepOptions, points: list[Options], clock: str) -> list[Options]:
    duration_s = options.choose_duration(clock)
    return [replace(point, sending=replace(point.sending, duration_s=duration_s)) for point in points]


def sweep_in_vms(options: SweepOptions, points: list[Options], clock: Clock, kernel: Path | None) -> Finished:
    """Measure points in virtual machines.

    :param kernel: the kernel's image (None: the newest of this machine).
    :raises KproxylatError: as :func:`kproxylat.sweep.sweep.sweep`.
    """
    points = _time_points(options, points, clock)
    place = Pool(clock, kernel, options.output_dir, lambda point: ["run", "--format=json", *words(keep_lab(point))])
    return sweeping.sweep(points, options.repeats, options.seed, options.fresh, place)


def _sweep_cluster(options: SweepOptions, points: list[Options], node: OnNode, ask: bool) -> Finished:
    request = on_cluster.Asking(
        options.modes, options.backend or None, node.asked, opt.number(options.family), confirm if ask else None
    )
    base = replace(points[0], where=NodeUnderTest(node.find(), options.position, tuple(node.allow or ())))
    finished, ended = on_cluster.sweep_cluster(
        node.connect(), base, options.counts, request, options.repeats, options.fresh
    )
    save_csv(finished)
    return finished, ended


def save_csv(sweep: Sweep) -> None:
    """Save the old experiment's CSV beside a sweep's document, if the sweep is complete.

    :raises MachineError: the file cannot be written.
    """
    if sweep.saved:
        table = sweep.saved.with_suffix(".csv")
        save_file(table, "".join(export_experiment(sweep.results)))
        say(f"saved: {table}")


def show_sweep(finished: Sweep, form: str) -> None:
    """Write a sweep to stdout.

    :param form: "table", "json" or "csv" (the old experiment's, in microseconds).
    """
    if form == "json":
        show(finished.to_json())
    elif form == "csv":
        show("".join(export_experiment(finished.results)), end="")
        if any(result.run.clock == "instructions" for result in finished.results):
            say("The old CSV has microseconds only: its figures are empty on the instruction clock")
        elif any(result.run.emulated for result in finished.results):
            say("The old CSV has no place for it: these are emulated microseconds; compare shapes, not values")
    else:
        show_series(finished.series)
        if any(result.services for result in finished.results):
            show("Services: those before the one that is looked up; the document has each by name")
        states = [result.accounting.closed if result.accounting else None for result in finished.results]
        unknown = f"; without a second counter: {states.count(None)}" if None in states else ""
        show(f"books closed: {states.count(True)} of {len(states)} runs{unknown}")
