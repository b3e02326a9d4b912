"""The command line: options -> one call -> print. The only importer of typer."""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from kproxylat import __version__
from kproxylat.errors import BOOKS_OPEN, BUG, Interrupted, KproxylatError, UsageError

if TYPE_CHECKING:
    from kproxylat.model import Result

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Measure what kube-proxy costs a packet inside the kernel, and prove the number.",
)


class ModeName(StrEnum):
    """kube-proxy's modes."""

    IPTABLES = "iptables"
    NFTABLES = "nftables"


class BackendName(StrEnum):
    """What the kernel runs in mode iptables."""

    LEGACY = "legacy"
    NFT = "nft"


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


LAB, SEND, VM, SCRIPT = "Lab", "Traffic", "Virtual machine", "Script"
LabOption = Annotated[
    bool, typer.Option("--lab", help="Measure on a node made of network namespaces, without cluster.")
]
ModeOption = Annotated[ModeName | None, typer.Option("--mode", help="kube-proxy's mode.")]
BackendOption = Annotated[BackendName | None, typer.Option("--backend", help="What the kernel runs in mode iptables.")]
ServicesOption = Annotated[int, typer.Option("--services", help="Dummy Services in the lab.")]
WorkerOption = Annotated[WorkerPorts, typer.Option("--worker-ports", help="Protocols of the lab's worker.")]
TargetOption = Annotated[str | None, typer.Option("--target", metavar="IP:PORT", help="ClusterIP and UDP port.")]
SourceOption = Annotated[
    str | None, typer.Option("--source", metavar="CIDR", help="Free addresses to send from, inside clusterCIDR.")
]
TemplateOption = Annotated[Path | None, typer.Option("--template", help="Your own probe script template.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A variable for --template.")]
FormatOption = Annotated[Format, typer.Option("--format", help="How the result is written to stdout.")]
OutputOption = Annotated[Path, typer.Option("--output-dir", help="Where log and result are saved.")]
VmOption = Annotated[bool, typer.Option("--vm", help="Measure inside a virtual machine; needs no root and no KVM.")]
KernelOption = Annotated[Path | None, typer.Option("--kernel", help="Kernel image for --vm (newest in /boot).")]
RootOption = Annotated[Path | None, typer.Option("--vm-root", help="Root file system for --vm (this machine's).")]
ClockOption = Annotated[Clock, typer.Option("--clock", help="With --vm: count executed instructions instead of time.")]


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
    duration: Annotated[float, typer.Argument(help="Seconds to send for.")] = 30,
    rate: Annotated[int, typer.Argument(help="Packets per second.")] = 10000,
    warmup: Annotated[int, typer.Argument(help="Packets sent before the probes attach.")] = 100,
    rule_position: Annotated[Position | None, typer.Argument(help="Like --position.")] = None,
    lab: LabOption = False,
    mode: ModeOption = None,
    backend: BackendOption = None,
    services: ServicesOption = 100,
    position: Annotated[Position, typer.Option("--position", help="The worker's rule in the lab.")] = Position.LAST,
    worker_ports: WorkerOption = WorkerPorts.BOTH,
    target: TargetOption = None,
    source: SourceOption = None,
    template: TemplateOption = None,
    settings: SetOption = None,
    form: FormatOption = Format.TABLE,
    output_dir: OutputOption = Path("logs/ebpf"),
    vm: VmOption = False,
    kernel: KernelOption = None,
    vm_root: RootOption = None,
    clock: ClockOption = Clock.NS,
) -> None:
    """Measure a Service lookup: send packets that are looked up, time each, close the books.

    Examples:
      kproxylat run 30 10000                     as run-experiment.sh, on a node
      kproxylat run --lab --mode nftables 2 1000
      kproxylat run --lab --vm --clock instructions --services 1000 2 1000
      kproxylat run --target 10.96.0.10:50051 --mode iptables --backend nft
    """
    from kproxylat import measure, plan
    from kproxylat.modes import find_mode

    check_vm(vm, clock, kernel, vm_root)
    mode_row = find_mode(*_mode_and_backend(mode, backend, lab, target))
    options = plan.Options(
        mode=mode_row,
        target=plan.parse_destination(target, "udp") if target else plan.WORKER,
        lab=plan.Lab(services, rule_position or position, worker_ports) if lab else None,
        duration_s=duration,
        rate_pps=rate,
        warmup=warmup,
        source=plan.parse_source(source) if source else None,
        output_dir=output_dir,
        template=template,
        settings=_settings(settings),
        arguments=tuple(arguments()),
    )
    plan.check_options(options)
    if vm:
        relay(output_dir, clock, kernel, vm_root)
    result, interrupted = measure.measure(options, say)
    show(result, form)
    if interrupted:
        raise interrupted
    if result.accounting and not result.accounting.closed:
        say(f"kproxylat: the books don't close: {result.accounting.difference}")
        sys.exit(BOOKS_OPEN)


def _mode_and_backend(
    mode: ModeName | None, backend: BackendName | None, lab: bool, target: str | None
) -> tuple[str, str | None]:
    """Fill in what the lab chooses by itself: mode iptables, on the backend of current distributions."""
    if lab and target:
        raise UsageError("--lab brings its own target", "leave out --lab or --target")
    if not lab and not (mode and target):
        raise UsageError(
            "finding the target and the mode in a cluster is not there yet",
            "pass --target IP:PORT --mode MODE [--backend BACKEND], or --lab",
        )
    name = mode or ModeName.IPTABLES
    if lab and backend is None and name is ModeName.IPTABLES:
        return name, BackendName.NFT
    return name, backend


def _settings(words: list[str] | None) -> dict[str, str]:
    """Read ``--set NAME=VALUE``."""
    pairs = [word.partition("=") for word in words or []]
    for name, equals, _ in pairs:
        if not equals:
            raise UsageError(f"--set {name} has no value", "it takes NAME=VALUE")
    return {name: value for name, _, value in pairs}


def check_vm(vm: bool, clock: Clock, kernel: Path | None, root: Path | None) -> None:
    """Make sure that options of the virtual machine come with ``--vm``."""
    if not vm and (clock is Clock.INSTRUCTIONS or kernel or root):
        raise UsageError("--clock instructions, --kernel and --vm-root are for a virtual machine", "add --vm")


_ARGUMENTS: list[str] = []
_VM_FLAGS = {"--vm": 0, "--kernel": 1, "--vm-root": 1, "--clock": 1}


def arguments() -> list[str]:
    """Return the command line as it was given, without the program's name."""
    return list(_ARGUMENTS)


def relay(output_dir: Path, clock: Clock, kernel: Path | None, root: Path | None) -> NoReturn:
    """Run this very command line inside a virtual machine, and end as it ends."""
    from kproxylat.vm import Machine

    words, inside = iter(arguments()), []
    for word in words:
        name, equals, _ = word.partition("=")
        if name not in _VM_FLAGS:
            inside.append(word)
        elif _VM_FLAGS[name] and not equals:
            next(words)
    with Machine(clock, output_dir, kernel, root) as machine:
        say(f"kproxylat: Linux {machine.release} runs in a virtual machine")
        status = machine.run(inside, sys.stdout, sys.stderr)
    sys.exit(status)


def show(result: Result, form: Format) -> None:
    """Write a result to stdout."""
    from kproxylat.model import to_json

    print(to_json(result))


def _interrupt(signum: int, _frame: object) -> NoReturn:
    """Turn the first signal into an exception; ignore further ones, so that the clean-up is not cut short."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(signum)


def say(message: str) -> None:
    """Print a line on stderr, where everything goes that is no result."""
    print(message, file=sys.stderr, flush=True)


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
