"""The command line: options -> one call -> print. The only importer of typer.

Each command imports what it needs when it runs, so that none waits for another's imports.
"""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from kproxylat import __version__
from kproxylat.errors import BOOKS_OPEN, BUG, Interrupted, KproxylatError, UsageError
from kproxylat.screen import say

if TYPE_CHECKING:
    from kproxylat.model import Result

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Measure what kube-proxy costs a packet inside the kernel, and prove the number.",
)


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


class Format(StrEnum):
    """How a result is written to stdout."""

    TABLE = "table"
    JSON = "json"


class Clock(StrEnum):
    """What a virtual machine's clock counts."""

    NS = "ns"
    INSTRUCTIONS = "instructions"


Duration = Annotated[float, typer.Argument(help="Seconds to send for.")]
Rate = Annotated[int, typer.Argument(help="Packets per second.")]
Warmup = Annotated[int, typer.Argument(help="Packets sent before the probes attach.")]
InLab = Annotated[bool, typer.Option("--lab", help="On a node made of network namespaces, without a cluster.")]
ModeName = Annotated[str | None, typer.Option("--mode", help="kube-proxy's mode: iptables or nftables.")]
Backend = Annotated[str | None, typer.Option("--backend", help="In mode iptables: legacy or nft.")]
Services = Annotated[int, typer.Option("--services", help="Dummy Services in the lab.")]
Place = Annotated[Position, typer.Option("--position", help="Where the worker's rule stands in the lab.")]
Ports = Annotated[WorkerPorts, typer.Option("--worker-ports", help="Protocols of the lab's worker.")]
Target = Annotated[str | None, typer.Option("--target", metavar="IP:PORT", help="ClusterIP and port.")]
Source = Annotated[
    str | None, typer.Option("--source", metavar="CIDR", help="Free part of clusterCIDR to send from (198.18.0.0/15).")
]
Template = Annotated[Path | None, typer.Option("--template", help="Your own probe script template.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A variable for the template.")]
Form = Annotated[Format, typer.Option("--format", help="How the result is written to stdout.")]
OutputDir = Annotated[Path, typer.Option("--output-dir", help="Where log and result are saved.")]
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
def run(
    duration: Duration = 30,
    rate: Rate = 10000,
    warmup: Warmup = 100,
    rule_position: Annotated[Position | None, typer.Argument(help="The same as --position.")] = None,
    lab: InLab = False,
    mode: ModeName = None,
    backend: Backend = None,
    services: Services = 100,
    position: Place = Position.LAST,
    worker_ports: Ports = WorkerPorts.BOTH,
    target: Target = None,
    source: Source = None,
    template: Template = None,
    settings: Settings = None,
    form: Form = Format.TABLE,
    output_dir: OutputDir = LOGS,
    vm: InVm = False,
    vm_if_needed: VmIfNeeded = False,
    kernel: KernelImage = None,
    clock: VmClock = Clock.NS,
) -> None:
    """Measure a Service lookup: send packets, time each lookup, close the books.

    \b
    Examples:
      kproxylat run --lab --mode nftables 2 1000
      kproxylat run --lab --vm --clock instructions --services 1000 2 1000
      kproxylat run --target 10.96.0.10:50051 --mode iptables --backend nft
    """
    from kproxylat import measure, plan
    from kproxylat.modes import find_mode

    if lab and target:
        raise UsageError("--lab brings its own target", "leave out --lab or --target")
    _check_target(lab or (mode and target))
    name = mode or "iptables"
    options = plan.Options(
        # In the lab, mode iptables runs on the backend of current distributions.
        mode=find_mode(name, backend or ("nft" if lab else None)),
        target=plan.parse_destination(target, "udp") if target else plan.WORKER,
        lab=plan.Lab(services, rule_position or position, worker_ports) if lab else None,
        duration_s=duration,
        rate_pps=rate,
        warmup=warmup,
        source=plan.parse_source(source) if source else None,
        output_dir=output_dir,
        template=template,
        settings=_settings(settings),
        arguments=tuple(_ARGUMENTS),
    )
    _check_vm(vm or vm_if_needed, clock, kernel)
    plan.check_options(options)
    _relay_if(vm, vm_if_needed, output_dir, clock, kernel)
    result, interrupted = measure.measure(options)
    _finish([result], interrupted, form)


@app.command()
def sweep(
    services: Annotated[str, typer.Option("--services", metavar="N,...", help="Numbers of dummy Services.")],
    duration: Duration = 2,
    rate: Rate = 1000,
    warmup: Warmup = 100,
    lab: InLab = False,
    mode: Annotated[str, typer.Option("--mode", metavar="MODE,...", help="Modes (all).")] = "",
    backend: Annotated[str, typer.Option("--backend", metavar="BACKEND,...", help="Backends (all).")] = "",
    position: Place = Position.LAST,
    form: Form = Format.TABLE,
    output_dir: OutputDir = LOGS,
    vm: InVm = False,
    vm_if_needed: VmIfNeeded = False,
    kernel: KernelImage = None,
    clock: VmClock = Clock.NS,
) -> None:
    """Measure the lookup over numbers of Services, for each mode and backend.

    \b
    Examples:
      kproxylat sweep --lab --vm --clock instructions --services 10,100,1000
      kproxylat sweep --lab --mode iptables --backend legacy,nft --services 10,100
    """
    from kproxylat import plan
    from kproxylat import sweep as sweeping

    if not lab:
        raise UsageError("sweeping a cluster is not there yet", "pass --lab")
    modes = sweeping.find_modes(filter(None, mode.split(",")), filter(None, backend.split(",")))
    counts = _counts(services)
    options = plan.Options(
        mode=modes[0],
        lab=plan.Lab(counts[0], position),
        duration_s=duration,
        rate_pps=rate,
        warmup=warmup,
        output_dir=output_dir,
        arguments=tuple(_ARGUMENTS),
    )
    _check_vm(vm or vm_if_needed, clock, kernel)
    points = sweeping.plan_points(options, modes, counts)
    sweeping.check_points(points)
    _relay_if(vm, vm_if_needed, output_dir, clock, kernel)
    results, interrupted = sweeping.sweep(points)
    _finish(results, interrupted, form, is_sweep=True)


@app.command()
def trace(
    mode: Annotated[str, typer.Option("--mode", help="kube-proxy's mode: iptables or nftables.")],
    backend: Backend = None,
    target: Target = None,
    protocol: Annotated[str, typer.Option("--protocol", help="The target's: udp or tcp.")] = "udp",
    duration: Annotated[float | None, typer.Option("--duration", help="Seconds to trace for.")] = None,
    template: Template = None,
    settings: Settings = None,
    output_dir: OutputDir = LOGS,
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
    destination = plan.parse_destination(target, protocol) if target else None
    watch.watch(find_mode(mode, backend), destination, duration, output_dir, template, _settings(settings))


@app.command()
def render(
    mode: Annotated[str, typer.Option("--mode", help="kube-proxy's mode: iptables or nftables.")],
    backend: Backend = None,
    target: Target = None,
    source: Source = None,
    template: Template = None,
    settings: Settings = None,
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

    row = find_mode(mode, backend)
    destination = plan.parse_destination(target, "udp") if target else None
    sources = plan.parse_source(source) if source else plan.NODE_SOURCE
    plan.check_template(template)
    _relay_if(vm, False, Path.cwd(), Clock.NS, kernel)
    plan.load_modules(row)
    flow = plan.make_flow(destination, sources) if destination else None
    print(render_script(plan.make_plan(row, flow), template, _settings(settings)), end="")


@app.command()
def cleanup() -> None:
    """Remove whatever an interrupted run left: namespaces, links, and what is in them.

    \b
    Example:
      sudo kproxylat cleanup
    """
    from kproxylat import net
    from kproxylat.kernel import check_root

    check_root()
    with net.lock():
        removed = net.remove_leftovers()
    say(f"removed {', '.join(removed)}" if removed else "nothing was left")


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


def _check_target(found: object) -> None:
    if not found:
        raise UsageError(
            "looking up target and mode in a cluster is not there yet",
            "pass --target IP:PORT --mode MODE [--backend BACKEND], or --lab",
        )


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
        from kproxylat.kernel import missing_to_trace

        lacking = missing_to_trace()
        say(
            f"This machine lacks {lacking}: using a virtual machine." if lacking else "Using this machine's own kernel."
        )
        vm = lacking is not None
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
    with waiting("booting", 5 if machine.kvm else BOOT_S):
        machine.__enter__()
    try:
        status = machine.run(inside, sys.stdout, sys.stderr)
    finally:
        machine.__exit__()
    sys.exit(status)


def _finish(results: list[Result], interrupted: Interrupted | None, form: Format, is_sweep: bool = False) -> None:
    """Write results to stdout, and end with the status they deserve."""
    from kproxylat.model import list_to_json, to_json
    from kproxylat.screen import show_result, show_sweep

    if form is Format.JSON:
        print(list_to_json(results) if is_sweep else to_json(results[0]))
    elif is_sweep:
        show_sweep(results)
    else:
        show_result(results[0])
    if interrupted:
        raise interrupted
    open_books = [each.accounting.difference for each in results if each.accounting and not each.accounting.closed]
    if open_books:
        say(f"kproxylat: the books don't close: {open_books[0]}")
        sys.exit(BOOKS_OPEN)


def _interrupt(signum: int, _frame: object) -> NoReturn:
    """Turn the first signal into an exception; ignore further ones, so that the clean-up is not cut short."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(signum)


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line; every error becomes one line on stderr, its remedy another, and an exit status.

    :param argv: the arguments without the program's name; ``sys.argv`` if None.
    """
    _ARGUMENTS[:] = sys.argv[1:] if argv is None else argv
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, _interrupt)
    try:
        app(args=argv, prog_name="kproxylat", standalone_mode=True)
    except KproxylatError as error:
        say(f"kproxylat: {error}")
        if error.remedy:
            say(f"  {error.remedy}")
        sys.exit(error.exit_code)
    except Interrupted as error:
        say(f"kproxylat: ended by {signal.Signals(error.exit_code - 128).name}")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        say(f"kproxylat: this is a bug of kproxylat's, please report it: {type(error).__name__}: {error}")
        sys.exit(BUG)
    sys.exit(0)
