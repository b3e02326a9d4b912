"""The command line: options -> one call -> print. The only importer of typer."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, NoReturn

import typer

from kproxylat import __version__
from kproxylat.errors import BUG, Interrupted, KproxylatError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Measure what kube-proxy costs a packet inside the kernel, and prove the number.",
)


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
