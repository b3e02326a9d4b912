"""The program: its list of commands, its errors and its exit status.

Only the module of the command that runs is imported. A module imports at its top what its commands need, except what
makes ``--help`` slow: kubernetes, rich, matplotlib, jinja2.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from kproxylat import __version__
from kproxylat.cli.program import HELP_OPTIONS, Program, present
from kproxylat.console import left_out, plain_line, say
from kproxylat.errors import BUG, Interrupted, KproxylatError
from kproxylat.system import interrupts, streams

COMMANDS = {
    "demo": "demo",
    "run": "run",
    "sweep": "sweep",
    "reproduce": "reproduce",
    "bill": "bill",
    "capture": "host",
    "whatif": "whatif",
    "trace": "run",
    "render": "run",
    "cleanup": "host",
    "doctor": "host",
    "parse": "logs",
    "compare": "compare",
    "plot": "compare",
    "report": "report",
    "mode": "mode",
    "services": "services",
}
"""Command, or group of commands (``NAME_app``) -> its module in :mod:`kproxylat.cli`."""
HELP = """Measure what kube-proxy costs a packet inside the kernel, and prove the number.

    \b
    Examples:
      sudo kproxylat run --target 10.96.0.10:50051 30 10000
      kproxylat run --lab --vm --mode nftables 2 1000
    """


def name_program() -> str:
    """Return the program's name as the user typed it: kubectl runs a plugin ``kubectl-kproxylat``.

    Since 1.37 kubectl passes its own path, which may be that of another client, such as oc.
    """
    if Path(sys.argv[0]).name != "kubectl-kproxylat":
        return "kproxylat"
    return f"{Path(os.environ.get('KUBECTL_PATH') or 'kubectl').name} kproxylat"


def _version(passed: bool) -> None:
    if passed:
        typer.echo(f"kproxylat {__version__}")
        raise typer.Exit


def kproxylat(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of all commands."""


def _forget_output() -> None:
    """Discard the rest of the output: its reader has ended, and a flush at exit would fail again."""
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say_errors(error: BaseException) -> None:
    """Print an error and its remedy; first print the error during whose clean-up it occurred."""
    if error.__context__ and not error.__suppress_context__:
        _say_errors(error.__context__)
    if isinstance(error, KproxylatError):
        say(f"kproxylat: {plain_line(error)}")
        if error.remedy:
            say(f"  {error.remedy}")


def build(name: str = "") -> typer.Typer:
    """Return the program with one command, or with all commands if none has that name.

    Importing the modules of all commands would take longer than a short command runs.

    :param name: the command's name.
    """
    app = typer.Typer(
        cls=Program,
        context_settings=HELP_OPTIONS,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        help=HELP,
        callback=kproxylat,
    )
    for command in [name] if name in COMMANDS else COMMANDS:
        module = import_module(f"kproxylat.cli.{COMMANDS[command]}")
        group = getattr(module, f"{command}_app", None)
        if group:
            short = group.info.help.split("\n\n")[0]
            app.add_typer(group, name=command, context_settings=HELP_OPTIONS, short_help=short)
        else:
            app.command()(getattr(module, command))
        for info in group.registered_commands if group else app.registered_commands[-1:]:
            present(info)
    return app


def _end_by(error: Interrupted) -> NoReturn:
    say(f"kproxylat: ended by {signal.Signals(error.exit_code - 128).name}")
    sys.exit(error.exit_code)


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line; print an error on one line of stderr and its remedy on another, and set the exit status.

    :param argv: the arguments without the program's name; ``sys.argv`` if None.
    """
    # kubectl's --dry-run has a value; ours never asks the server to check the objects.
    words = sys.argv[1:] if argv is None else argv
    arguments = ["--dry-run" if word == "--dry-run=client" else word for word in words]
    try:
        streams.prepare()
        with interrupts.raised():
            try:
                left_out.clear()
                app = build(arguments[0] if arguments else "")
                status = app(args=arguments, prog_name=name_program(), standalone_mode=False, obj=tuple(arguments))
            finally:
                sys.stdout.flush()
        sys.exit(int(status or bool(left_out)))
    except KproxylatError as error:
        _say_errors(error)
        sys.exit(error.exit_code)
    except Interrupted as error:
        _end_by(error)
    except BrokenPipeError:
        _forget_output()
        sys.exit(1)
    except OSError as error:
        say(f"kproxylat: {plain_line(error)}")
        _forget_output()
        sys.exit(1)
    except Exception as error:
        # Python 3.11 wraps what a signal raises while a class is made (Objects/typeobject.c, type_new_set_names).
        if isinstance(error.__cause__, Interrupted):
            _end_by(error.__cause__)
        from kproxylat.system.crash import report_bug

        report_bug(error, arguments)
        sys.exit(BUG)
