"""The command line: options -> one call -> print. The only importer of typer.

Each command imports what it needs when it runs, so that none waits for another's imports.
"""

from __future__ import annotations

import os
import signal
import sys
from copy import copy
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from kproxylat import __version__, interrupts
from kproxylat.cli_cluster import mode_app, services_app
from kproxylat.cli_options import Format, OnNode, Place, spread
from kproxylat.errors import BOOKS_OPEN, BUG, WORSE, Interrupted, KproxylatError, UsageError
from kproxylat.screen import confirm, say

if TYPE_CHECKING:
    from kproxylat.model import Result

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Measure what kube-proxy costs a packet inside the kernel, and prove the number.",
)
app.add_typer(mode_app, name="mode")
app.add_typer(services_app, name="services")


class Position(StrEnum):
    """Where the worker's rule stands."""

    FIRST = "first"
    MIDDLE = "middle"
    LAST = "last"


class WorkerPorts(StrEnum):
    """Protocols of the lab's worker."""

    BOTH = "both"
    UDP = "udp"
    TCP = "tcp"


class Origin(StrEnum):
    """Whose packets are sent."""

    POD = "pod"
    NODE = "node"


class Kind(StrEnum):
    """What the probes are."""

    AUTO = "auto"
    FENTRY = "fentry"
    KPROBE = "kprobe"


class SweepFormat(StrEnum):
    """How a sweep is written to stdout."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class Family(StrEnum):
    """IP family."""

    IPV4 = "4"
    IPV6 = "6"


class Clock(StrEnum):
    """What a virtual machine's clock counts."""

    NS = "ns"
    INSTRUCTIONS = "instructions"


Duration = Annotated[float, typer.Argument(help="Seconds to send for.")]
Rate = Annotated[int, typer.Argument(help="Packets per second.")]
Warmup = Annotated[int, typer.Argument(help="Packets sent before the probes attach.")]
InLab = Annotated[bool, typer.Option("--lab", help="On a node made of network namespaces, without a cluster.")]
ModeName = Annotated[str | None, typer.Option("--mode", help="kube-proxy's mode: iptables, nftables or ipvs.")]
Backend = Annotated[str | None, typer.Option("--backend", help="In mode iptables: legacy or nft.")]
Services = Annotated[int, typer.Option("--services", help="Dummy Services in the lab.")]
RulePosition = Annotated[
    Position | None,
    typer.Option("--position", help="Where the target's rule stands in mode iptables (lab: last; node: as it is)."),
]
Ports = Annotated[WorkerPorts, typer.Option("--worker-ports", help="Protocols of the lab's worker.")]
Target = Annotated[str | None, typer.Option("--target", metavar="IP:PORT", help="ClusterIP and port; [IPv6]:PORT.")]
FamilyOption = Annotated[
    Family | None, typer.Option("--family", help="IPv4 or IPv6: of the lab, or of a Service that has both.")
]
Source = Annotated[
    str | None,
    typer.Option("--source", metavar="CIDR", help="Free part of clusterCIDR to send from (one of the node's)."),
]
Template = Annotated[Path | None, typer.Option("--template", help="Your own probe script template.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A variable for the template.")]
ProbeKind = Annotated[Kind, typer.Option("--probe", help="auto takes fentry where the kernel has types (BTF).")]
Envelope = Annotated[
    bool,
    typer.Option("--envelope", help="Trace the whole hook (nf_hook_slow) around the engine, too: the rules' share."),
]
WithOverhead = Annotated[
    bool, typer.Option("--overhead", help="Measure what tracing adds to a call, with three further bursts.")
]
Form = Annotated[Format, typer.Option("--format", help="How the result is written to stdout.")]
OutputDir = Annotated[Path, typer.Option("--output-dir", help="Where log and result are saved.")]
RulesetFile = Annotated[
    Path | None,
    typer.Option("--ruleset", metavar="FILE", help="Rules for the lab: of capture, iptables-save, nft, ipvsadm."),
]
EveryService = Annotated[
    bool, typer.Option("--every-service", help="Measure all Services of --ruleset, and rank them.")
]
InVm = Annotated[bool, typer.Option("--vm", help="Inside a virtual machine; takes neither root nor KVM.")]
VmIfNeeded = Annotated[bool, typer.Option("--vm-if-needed", help="The same, but only if this machine cannot trace.")]
KernelImage = Annotated[Path | None, typer.Option("--kernel", help="Kernel image for --vm (the newest in /boot).")]
VmClock = Annotated[Clock, typer.Option("--clock", help="Of --vm: instructions counts what is executed, exactly.")]
LOGS = Path("logs/ebpf")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kproxylat {__version__}")
        raise typer.Exit


@app.callback()
def kproxylat(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of all commands."""


@app.command()
@spread
def run(
    duration: Duration = 30,
    rate: Rate = 10000,
    warmup: Warmup = 100,
    rule_position: Annotated[Position | None, typer.Argument(help="The same as --position.")] = None,
    lab: InLab = False,
    mode: ModeName = None,
    backend: Backend = None,
    services: Services = 100,
    position: RulePosition = None,
    worker_ports: Ports = WorkerPorts.BOTH,
    target: Target = None,
    origin: Annotated[Origin, typer.Option("--from", help="Whose packets: a pod's, or the node's own.")] = Origin.POD,
    generator: Annotated[
        str, typer.Option("--generator", help="Who sends: pktgen (a pod's), sockets (the node's own), hping3 or none.")
    ] = "",
    protocol: Annotated[str, typer.Option("--protocol", help="udp or tcp (what the generator is for).")] = "",
    family: FamilyOption = None,
    source: Source = None,
    ruleset: RulesetFile = None,
    every_service: EveryService = False,
    template: Template = None,
    settings: Settings = None,
    probe: ProbeKind = Kind.AUTO,
    envelope: Envelope = False,
    overhead: WithOverhead = False,
    form: Form = Format.TABLE,
    output_dir: OutputDir = LOGS,
    vm: InVm = False,
    vm_if_needed: VmIfNeeded = False,
    kernel: KernelImage = None,
    clock: VmClock = Clock.NS,
    *,
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
    """
    from kproxylat import measure, plan
    from kproxylat.model import to_json
    from kproxylat.modes import find_mode
    from kproxylat.screen import show_result
    from kproxylat.traffic import find_generator

    asked = generator, protocol
    generator = generator or ("sockets" if origin is Origin.NODE else "pktgen")
    protocol = protocol or find_generator(generator).protocols[0]
    _check_ruleset(ruleset, every_service, lab)
    if lab and target is not None and not ruleset:
        raise UsageError("--lab brings its own target", "leave out --lab or --target")
    if lab and (node.netns or node.node_container or node.allow):
        raise UsageError("--lab makes its own node", "leave out --lab, or --netns, --node-container and --allow")
    name = mode or "iptables"
    # In the lab, mode iptables runs on the backend of current distributions; on a node it is detected.
    row = find_mode(name, backend or ("nft" if name == "iptables" else None))
    options = plan.Options(
        mode=row.from_node() if origin is Origin.NODE else row,
        target=plan.parse_destination(target, protocol, _number(family))
        if target is not None
        else plan.WORKER[_number(family) or 4]._replace(protocol=protocol),
        lab=plan.Lab(services, rule_position or position or "last", worker_ports) if lab else None,
        position=None if lab else rule_position or position,
        duration_s=duration,
        rate_pps=rate,
        warmup=warmup,
        generator=generator,
        source=plan.parse_source(source) if source else None,
        allow=tuple(node.allow or ()),
        output_dir=output_dir,
        template=template,
        settings=_settings(settings),
        probe=probe,
        envelope=envelope,
        overhead=overhead,
        arguments=tuple(_ARGUMENTS),
    )
    if ruleset:
        from kproxylat import replay
        from kproxylat.ruleset import read_ruleset

        read = read_ruleset(ruleset, mode, backend)
        options = replay.plan_replay(options, read, target, every_service, *asked)
    _check_vm(vm or vm_if_needed, clock, kernel)
    plan.check_options(options)
    _relay_if(vm, vm_if_needed, output_dir, clock, kernel)
    if not lab:
        from kproxylat.lookup import look_up

        options = replace(options, node=node.find())
        options = look_up(options, mode, backend, target, (node.service, node.port), _number(family), node.connect)
    result, ended = measure.measure(options)
    if form is Format.JSON:
        print(to_json(result))
    else:
        show_result(result)
    _end([result], ended)


@app.command()
@spread
def sweep(
    duration: Duration = 2,
    rate: Rate = 1000,
    warmup: Warmup = 100,
    services: Annotated[str, typer.Option("--services", metavar="N,...", help="Numbers of dummy Services.")] = "",
    lab: InLab = False,
    ruleset: RulesetFile = None,
    target: Target = None,
    every_service: EveryService = False,
    mode: Annotated[
        str, typer.Option("--mode", metavar="MODE,...", help="Modes (lab: all; cluster: the one it is in).")
    ] = "",
    backend: Annotated[str, typer.Option("--backend", metavar="BACKEND,...", help="Backends (all).")] = "",
    position: RulePosition = None,
    family: FamilyOption = None,
    probe: ProbeKind = Kind.AUTO,
    repeats: Annotated[int, typer.Option("--repeats", metavar="N", help="Measure each point so many times.")] = 1,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the order, which is random on the ns clock.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not go on where such a sweep was interrupted.")] = False,
    source: Source = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask before the cluster's mode is set.")] = False,
    form: Annotated[
        SweepFormat, typer.Option("--format", help="How it is written to stdout; csv is the old experiment's.")
    ] = SweepFormat.TABLE,
    output_dir: OutputDir = LOGS,
    vm: InVm = False,
    vm_if_needed: VmIfNeeded = False,
    kernel: KernelImage = None,
    clock: VmClock = Clock.NS,
    *,
    node: OnNode,
) -> None:
    """Measure the lookup over numbers of Services, for each mode and backend: is it O(1) or O(n)?

    Without --lab, on a node: so many dummy Services are created, kube-proxy is waited for, and they are deleted at the
    end; with several modes, kube-proxy's mode is set, and back at the end. A sweep that was interrupted goes on where
    it was when it is called again with the same --output-dir.

    \b
    Examples:
      sudo kproxylat sweep --services 100,500,1000,5000,10000 30 10000
      sudo kproxylat sweep --services 100,1000 --mode iptables,nftables --yes
      kproxylat sweep --lab --vm --clock instructions --services 10,100,1000
      kproxylat sweep --lab --mode iptables --backend legacy,nft --services 10,100 --repeats 5
      kproxylat sweep --lab --vm --clock instructions --family 6 --services 10,100,1000
      kproxylat sweep --lab --vm --clock instructions --ruleset node.json --every-service
    """
    from kproxylat import plan, replay
    from kproxylat import sweep as sweeping

    _check_ruleset(ruleset, every_service, lab)
    if not ruleset and target:
        raise UsageError("--target is for a --ruleset here", "on a cluster: --service; the lab brings its own")
    if ruleset and services:
        raise UsageError("--ruleset brings its own Services", "leave out --services")
    modes = sweeping.find_modes(filter(None, mode.split(",")), filter(None, backend.split(",")))
    counts = [0] if ruleset else _counts(services)
    options = plan.Options(
        mode=modes[0],
        target=plan.WORKER[_number(family) or 4],
        lab=plan.Lab(counts[0], position or "last") if lab else None,
        position=None if lab else position,
        source=plan.parse_source(source) if source else None,
        allow=tuple(node.allow or ()),
        duration_s=duration,
        rate_pps=rate,
        warmup=warmup,
        output_dir=output_dir,
        probe=probe,
        arguments=tuple(_ARGUMENTS),
    )
    _check_vm(vm or vm_if_needed, clock, kernel)
    points = sweeping.plan_points(options, modes, counts)
    if ruleset:
        from kproxylat.ruleset import read_ruleset

        read = read_ruleset(ruleset, mode or None)
        points = replay.plan_backends(options, read, filter(None, backend.split(",")), target, every_service)
    sweeping.check_points(points, repeats)
    _relay_if(vm, vm_if_needed, output_dir, clock, kernel)
    if lab:
        found, ended = sweeping.sweep(points, repeats, seed, fresh)
    else:
        from kproxylat import clustersweep

        names = [each for each in mode.split(",") if each]
        confirming = None if yes else confirm
        service = (node.service, node.port)
        asking = clustersweep.Asking(names, backend or None, service, _number(family), confirming)
        options = replace(options, node=node.find())
        found, ended = clustersweep.sweep_cluster(node.connect(), options, counts, asking, repeats, fresh)
    sweeping.show(found, form)
    _end(found.results, ended)


@app.command()
@spread
def capture(
    mode: ModeName = None,
    backend: Backend = None,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="Replace addresses and names, so that lookups cost the same.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="A new file.")] = Path("ruleset.json"),
    *,
    place: Place,
) -> None:
    """Save this node's live kube-proxy rules in one file, which run --lab --ruleset measures anywhere. Looks only.

    \b
    Examples:
      sudo kproxylat capture
      sudo kproxylat capture --anonymous --output node-7.json
      sudo kproxylat capture --node-container kind-worker
    """
    from kproxylat import capture as capturing
    from kproxylat.screen import waiting

    with waiting("reading the live rules", 5), interrupts.deferred():
        text, read = capturing.capture(mode, backend, anonymous, place.find().netns)
    capturing.save(text, output)
    say(f"mode {read.mode.name}, backend {read.mode.backend}: {len(read.services)} Services in {output}")


@app.command()
def whatif(
    ruleset: Annotated[Path, typer.Argument(metavar="RULESET", help="As run --ruleset takes it.")],
    mode: ModeName = None,
    backend: Backend = None,
    packets: Annotated[int, typer.Option("--packets", metavar="N", help="To each Service, in each mode.")] = 20,
    rate: Annotated[int, typer.Option("--rate", metavar="PPS", help="Packets per second.")] = 1000,
    picture: Annotated[bool, typer.Option("--plot", help="Draw it, too: a PNG beside the result.")] = False,
    form: Form = Format.TABLE,
    output_dir: OutputDir = LOGS,
    vm: InVm = False,
    vm_if_needed: VmIfNeeded = False,
    kernel: KernelImage = None,
    clock: VmClock = Clock.INSTRUCTIONS,
) -> None:
    """Say what the lookups of a captured ruleset cost, and what they would cost in each other mode.

    Without --vm the clock is this machine's.

    \b
    Examples:
      kproxylat whatif ruleset.json --vm
      kproxylat whatif iptables-save.txt --vm-if-needed --plot
    """
    from kproxylat import plan
    from kproxylat import whatif as asking
    from kproxylat.modes import MODES
    from kproxylat.ruleset import read_ruleset
    from kproxylat.screen import show_whatif

    _check_vm(vm or vm_if_needed, Clock.NS, kernel)
    read = read_ruleset(ruleset, mode, backend)
    options = plan.Options(read.mode, rate_pps=rate, output_dir=output_dir, arguments=tuple(_ARGUMENTS))
    asking.check(options, packets)
    _relay_if(vm, vm_if_needed, output_dir, clock, kernel)
    found, ended = asking.whatif(options, read, MODES, packets)
    path = asking.save(found, output_dir)
    say(f"saved: {path}")
    if picture:
        from kproxylat.plot import plot as draw

        draw([str(path)], path.with_suffix(".png"))
        say(f"drawn: {path.with_suffix('.png')}")
    if form is Format.JSON:
        print(found.to_json())
    else:
        show_whatif(found)
    _end(list(found.results), ended)


@app.command()
@spread
def trace(
    mode: Annotated[str, typer.Option("--mode", help="kube-proxy's mode: iptables, nftables or ipvs.")],
    backend: Backend = None,
    target: Target = None,
    protocol: Annotated[str, typer.Option("--protocol", help="The target's: udp or tcp.")] = "udp",
    family: FamilyOption = None,
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
      kproxylat trace --mode iptables --backend nft --target 10.96.0.10:50051 --protocol tcp
    """
    from kproxylat import plan, watch
    from kproxylat.modes import find_mode

    if duration is not None and not 0 < duration <= 86400 * 365:
        raise UsageError(f"a duration of {duration:g} s is not possible", "--duration takes seconds")
    destination = plan.parse_destination(target, protocol, _number(family)) if target else None
    row, node = plan.match_family(find_mode(mode, backend), destination, _number(family)), place.find()
    watch.watch(row, destination, duration, output_dir, template, _settings(settings), probe, node)


@app.command()
def render(
    mode: Annotated[str, typer.Option("--mode", help="kube-proxy's mode: iptables, nftables or ipvs.")],
    backend: Backend = None,
    target: Target = None,
    family: FamilyOption = None,
    source: Source = None,
    template: Template = None,
    settings: Settings = None,
    probe: ProbeKind = Kind.AUTO,
    vm: InVm = False,
    kernel: KernelImage = None,
) -> None:
    """Print the bpftrace script that run would use on this kernel.

    \b
    Examples:
      kproxylat render --mode iptables --backend legacy > trace-kubeproxy.bt
      kproxylat render --mode nftables --target 10.96.0.10:50051 --vm
    """
    from kproxylat import plan
    from kproxylat.modes import find_mode
    from kproxylat.render import render_script

    destination = plan.parse_destination(target, "udp", _number(family)) if target else None
    row = plan.match_family(find_mode(mode, backend), destination, _number(family))
    sources = plan.parse_source(source) if source else plan.NODE_SOURCE[row.family]
    plan.check_template(template)
    _relay_if(vm, False, Path.cwd(), Clock.NS, kernel)
    plan.load_modules(row)
    flow = plan.make_flow(destination, sources) if destination else None
    print(render_script(plan.make_plan(row, flow, probe), template, _settings(settings)), end="")


@app.command()
def cleanup() -> None:
    """Remove whatever an interrupted run left: namespaces, links, and what is in them.

    \b
    Example:
      sudo kproxylat cleanup
    """
    from kproxylat import net
    from kproxylat.kernel import check_root
    from kproxylat.stage import clean_up

    check_root()
    with net.lock() as lock:
        removed = clean_up(lock)
    say(f"removed {', '.join(removed)}" if removed else "nothing was left")


@app.command()
def doctor(form: Form = Format.TABLE) -> None:
    """Look for what a measurement takes of this machine, and for what mends it; status 0 if one is possible.

    \b
    Examples:
      kproxylat doctor
      kproxylat doctor --format json
    """
    from kproxylat import doctor as checks
    from kproxylat.screen import show_findings, waiting

    with waiting("looking", 4), interrupts.deferred():
        findings = checks.examine()
    modes = checks.possible_modes(findings)
    if form is Format.JSON:
        print(checks.to_json(findings, modes))
    else:
        show_findings(findings, modes)
    raise typer.Exit(0 if modes else 1)


@app.command()
def parse(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Logs, also compressed by gzip; - is stdin.")],
    output: Annotated[str, typer.Option("--format", help="table, json, csv or openmetrics.")] = "table",
    csv_dialect: Annotated[str, typer.Option(help="Header of the CSV: run, or experiment (the old one).")] = "run",
    percentiles: Annotated[str, typer.Option(help="Which ones, 0 to 100.")] = "50,95,99",
    prints: Annotated[str, typer.Option(help="last, or all: every print of a map as a line of JSON.")] = "last",
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Every interval and slow line, as CSV or JSON.")
    ] = False,
) -> None:
    """Read logs, old and new, and bpftrace's own text.

    \b
    Examples:
      kproxylat parse logs/ebpf/*.log
      kproxylat parse --format csv --csv-dialect experiment old.log.gz
    """
    from kproxylat.parsing import Wanted, parse_logs

    wanted = Wanted(output, csv_dialect, percentiles, prints, intervals)
    raise typer.Exit(parse_logs(files, wanted, say))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A result (.json), a log, or a sweep (.json).")],
    b: Annotated[str | None, typer.Argument(metavar="B", help="Another; without it, A's series each other.")] = None,
    form: Form = Format.TABLE,
    fail_if_worse: Annotated[
        float | None, typer.Option(metavar="PCT", help="Exit with 5 if B certainly costs more than PCT % more.")
    ] = None,
    allow: Annotated[str, typer.Option(metavar="REASON,...", help="Compare in spite of these reasons not to.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Compare in spite of any.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the bootstrap.")] = 0,
) -> None:
    """Say what changed from A to B, with what chance alone would do.

    What must not be compared is refused: another clock, probe, script, kernel, bpftrace or mitigations, books that do
    not close, lost events. Exit status: 0 compared; 1 refused; 5 worse than --fail-if-worse allows.

    \b
    Examples:
      kproxylat compare before.json after.json --fail-if-worse 5
      kproxylat compare logs/ebpf/sweep_20260101_120000.json
      kproxylat compare --allow kernel,script old.log new.log
    """
    from kproxylat import compare as comparing
    from kproxylat.comparison import check_worse, to_json
    from kproxylat.screen import show_comparison

    found = comparing.compare(a, b, comparing.find_allowed(allow, force), seed)
    worse = fail_if_worse is not None and check_worse(found, fail_if_worse)
    if form is Format.JSON:
        print(to_json(found))
    for each in found if form is Format.TABLE else ():
        show_comparison(each)
    if worse:
        say(f"kproxylat: B costs over {fail_if_worse:g} % more than A")
        sys.exit(WORSE)


@app.command()
def plot(
    a: Annotated[str, typer.Argument(metavar="A", help="A result, sweep or comparison (.json), or a log.")],
    b: Annotated[str | None, typer.Argument(metavar="B", help="Another, to compare A with.")] = None,
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="Where to: .png or .svg.")] = Path(
        "kproxylat.png"
    ),
    allow: Annotated[str, typer.Option(metavar="REASON,...", help="Compare in spite of these reasons not to.")] = "",
    seed: Annotated[int, typer.Option("--seed", help="Of the bootstrap.")] = 0,
) -> None:
    """Draw a run's distribution, a sweep's series with error bars, or a comparison; takes kproxylat[plot].

    \b
    Examples:
      kproxylat plot logs/ebpf/sweep_20260101_120000.json --output sweep.svg
      kproxylat plot before.json after.json
    """
    from kproxylat.compare import find_allowed
    from kproxylat.plot import plot as draw

    draw([a, b] if b else [a], output, find_allowed(allow, False), seed)
    say(f"drawn: {output}")


def _number(family: Family | None) -> int | None:
    return int(family) if family else None


def _check_ruleset(ruleset: Path | None, every_service: bool, lab: bool) -> None:
    if ruleset and not lab:
        raise UsageError("--ruleset is for the lab", "add --lab")
    if every_service and not ruleset:
        raise UsageError("--every-service is for a --ruleset", "add --lab --ruleset FILE")


def _counts(text: str) -> list[int]:
    """Read ``10,100,1000``."""
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise UsageError(f"--services {text!r} is no list of numbers", "it takes some such as 10,100,1000") from None


def _settings(words: list[str] | None) -> dict[str, str]:
    """Read ``--set NAME=VALUE``."""
    pairs = [word.partition("=") for word in words or []]
    for name, equals, _ in pairs:
        if not equals:
            raise UsageError(f"--set {name} has no value", "it takes NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _check_vm(vm: bool, clock: Clock, kernel: Path | None) -> None:
    if not vm and (clock is Clock.INSTRUCTIONS or kernel):
        raise UsageError("--clock instructions and --kernel are for a virtual machine", "add --vm")


_ARGUMENTS: list[str] = []
_VM_FLAGS = {"--vm": 0, "--vm-if-needed": 0, "--kernel": 1, "--clock": 1}


def _relay_if(vm: bool, if_needed: bool, output_dir: Path, clock: Clock, image: Path | None) -> None:
    """Where a virtual machine is wanted, run this very command line inside one, and end as it ends."""
    if if_needed and not vm:
        from kproxylat.doctor import missing_to_trace

        lacking = ", ".join(missing_to_trace())
        say(
            f"This machine lacks {lacking}: using a virtual machine." if lacking else "Using this machine's own kernel."
        )
        vm = bool(lacking)
    if not vm:
        return
    from kproxylat.runlog import make_directory
    from kproxylat.screen import waiting
    from kproxylat.vm import BOOT_S, Machine

    words, inside = iter(_ARGUMENTS), []
    for word in words:
        name, equals, _ = word.partition("=")
        if name not in _VM_FLAGS:
            inside.append(word)
        elif _VM_FLAGS[name] and not equals:
            next(words)
    make_directory(output_dir)
    machine = Machine(clock, output_dir, image)
    how = "with KVM" if machine.kvm else f"emulated, about {BOOT_S} s"
    say(f"Booting {machine.image.name} in a virtual machine ({how})...")
    with interrupts.deferred():
        with waiting("booting", 5 if machine.kvm else BOOT_S):
            machine.__enter__()
        try:
            status = machine.run(inside, sys.stdout, sys.stderr)
        finally:
            machine.__exit__()
    sys.exit(status)


def _end(results: list[Result], ended: Interrupted | KproxylatError | None) -> None:
    """End with the status that the results deserve."""
    if ended:
        raise ended
    interrupts.check()
    open_books = [each.accounting.difference for each in results if each.accounting and not each.accounting.closed]
    if open_books:
        say(f"kproxylat: the books don't close: {open_books[0]}")
        sys.exit(BOOKS_OPEN)


def _forget_output() -> None:
    """Nobody reads any more: let what is still to be written go nowhere, rather than fail again at our end."""
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _only(name: str) -> typer.Typer:
    """Return the program with just the command that is called: typer takes its time over every option of every one."""
    commands = [each for each in app.registered_commands if each.callback and each.callback.__name__ == name]
    groups = [each for each in app.registered_groups if each.name == name]
    if not commands and not groups:
        return app
    short = copy(app)
    short.registered_commands, short.registered_groups = commands, groups
    return short


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line; every error becomes one line on stderr, its remedy another, and an exit status.

    :param argv: the arguments without the program's name; ``sys.argv`` if None.
    """
    _ARGUMENTS[:] = sys.argv[1:] if argv is None else argv
    interrupts.install()
    try:
        _only(_ARGUMENTS[0] if _ARGUMENTS else "")(args=argv, prog_name="kproxylat", standalone_mode=True)
    except KproxylatError as error:
        say(f"kproxylat: {error}")
        if error.remedy:
            say(f"  {error.remedy}")
        sys.exit(error.exit_code)
    except Interrupted as error:
        say(f"kproxylat: ended by {signal.Signals(error.exit_code - 128).name}")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        _forget_output()
        sys.exit(1)
    except OSError as error:
        say(f"kproxylat: {error}")
        _forget_output()
        sys.exit(1)
    except Exception as error:
        say(f"kproxylat: this is a bug of kproxylat's, please report it: {type(error).__name__}: {error}")
        sys.exit(BUG)
    sys.exit(0)
