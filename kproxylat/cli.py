"""The command line: options -> one call -> print. The commands are in cli_*.py."""

from __future__ import annotations

import os
import signal
import sys
from copy import copy
from typing import Annotated, NoReturn

import typer

from kproxylat import __version__, interrupts
from kproxylat.cli_cluster import mode_app, services_app
from kproxylat.cli_read import capture, cleanup, compare, doctor, parse, plot
from kproxylat.cli_run import render, run, trace
from kproxylat.cli_sweep import sweep, whatif
from kproxylat.cli_vm import ARGUMENTS
from kproxylat.errors import BUG, Interrupted, KproxylatError
from kproxylat.screen import say

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="""Measure what kube-proxy costs a packet inside the kernel, and prove the number.

    \b
    Examples:
      sudo kproxylat run --target 10.96.0.10:50051 30 10000
      kproxylat run --lab --vm --mode nftables 2 1000
    """,
)
for command in (run, sweep, capture, whatif, trace, render, cleanup, doctor, parse, compare, plot):
    app.command()(command)
app.add_typer(mode_app, name="mode")
app.add_typer(services_app, name="services")


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
    ARGUMENTS[:] = sys.argv[1:] if argv is None else argv
    interrupts.install()
    try:
        _only(ARGUMENTS[0] if ARGUMENTS else "")(args=argv, prog_name="kproxylat", standalone_mode=True)
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
