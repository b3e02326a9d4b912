"""The command line: options -> one call -> print. The commands are in cli_*.py."""

from __future__ import annotations

import gc
import os
import signal
import sys
from importlib import import_module
from typing import Annotated, NoReturn

import typer

from kproxylat import __version__, interrupts
from kproxylat.cli_vm import ARGUMENTS
from kproxylat.errors import BUG, Interrupted, KproxylatError
from kproxylat.screen import say

COMMANDS = {
    "run": "cli_run",
    "sweep": "cli_sweep",
    "capture": "cli_read",
    "whatif": "cli_sweep",
    "trace": "cli_run",
    "render": "cli_run",
    "cleanup": "cli_read",
    "doctor": "cli_read",
    "parse": "cli_read",
    "compare": "cli_read",
    "plot": "cli_read",
    "mode": "cli_cluster",
    "services": "cli_cluster",
}
"""Command, or group of commands (``NAME_app``) -> the module that has it."""
HELP = """Measure what kube-proxy costs a packet inside the kernel, and prove the number.

    \b
    Examples:
      sudo kproxylat run --target 10.96.0.10:50051 30 10000
      kproxylat run --lab --vm --mode nftables 2 1000
    """


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kproxylat {__version__}")
        raise typer.Exit


def kproxylat(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of all commands."""


def _forget_output() -> None:
    """Nobody reads any more: let what is still to be written go nowhere, rather than fail again at our end."""
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say_errors(error: BaseException) -> None:
    """Print an error and its remedy, after those of the errors during whose clean-up it came."""
    if error.__context__ and not error.__suppress_context__:
        _say_errors(error.__context__)
    if isinstance(error, KproxylatError):
        say(f"kproxylat: {error}")
        if error.remedy:
            say(f"  {error.remedy}")


def build(name: str = "") -> typer.Typer:
    """Return the program, with just the command of that name if there is one, and else with all.

    Importing every command's module, and reading all its options, would take most of a short command's time.
    """
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        help=HELP,
        callback=kproxylat,
    )
    for each in [name] if name in COMMANDS else COMMANDS:
        module = import_module(f"kproxylat.{COMMANDS[each]}")
        if hasattr(module, f"{each}_app"):
            app.add_typer(getattr(module, f"{each}_app"), name=each)
        else:
            app.command()(getattr(module, each))
    return app


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line; every error becomes one line on stderr, its remedy another, and an exit status.

    :param argv: the arguments without the program's name; ``sys.argv`` if None.
    """
    gc.freeze()  # what is imported stays: looking through it again would be a twelfth of a short command's time
    ARGUMENTS[:] = sys.argv[1:] if argv is None else argv
    interrupts.install()
    try:
        build(ARGUMENTS[0] if ARGUMENTS else "")(args=argv, prog_name="kproxylat", standalone_mode=True)
    except KproxylatError as error:
        _say_errors(error)
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
