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
    """Read logs, old and new, and bpftrace's own text."""
    from kproxylat.parsing import Wanted, parse_logs

    wanted = Wanted(output, csv_dialect, percentiles, prints, intervals)
    raise typer.Exit(parse_logs(files, wanted, say))


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
