"""The parse command: logs in, the text of an exporter out. A log that cannot be read does not stop the others."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from io import TextIOWrapper
from typing import Annotated, Any

import typer

from kproxylat.console import say
from kproxylat.errors import LogError, MachineError, UsageError, refuse_options
from kproxylat.logs.reader import read_intervals, read_log
from kproxylat.report.export import CSV_DIALECTS, EXPORTERS, csv_row, export_csv
from kproxylat.results import Result
from kproxylat.results_json import to_data
from kproxylat.trace.dump import Print
from kproxylat.trace.percentiles import PERCENTILES, add_percentiles


@dataclass
class Wanted:
    """The options of the command.

    :param output: a name in EXPORTERS; None is a table, or lines of JSON for prints and intervals.
    :param csv_dialect: a name in CSV_DIALECTS.
    :param percentiles: numbers from 0 to 100, separated by commas.
    :param prints: ``last``, or ``all``: every print of a map.
    :param intervals: every recurring line instead of results.
    :raises UsageError: an option is invalid, or two options exclude each other.
    """

    output: str | None
    csv_dialect: str
    percentiles: str
    prints: str
    intervals: bool
    percents: list[float] = field(init=False)

    def __post_init__(self) -> None:
        for option, value, choices in (
            ("--format", self.output or "table", EXPORTERS),
            ("--csv-dialect", self.csv_dialect, CSV_DIALECTS),
            ("--prints", self.prints, ("last", "all")),
        ):
            if value not in choices:
                raise UsageError(f"{option} {value}: choose one of {', '.join(choices)}")
        for is_wrong, reason in (
            (self.prints == "all" and self.intervals, "--prints all and --intervals exclude each other"),
            (
                self.intervals and self.output not in (None, "csv", "json"),
                f"--intervals writes json or csv, not {self.output}: pass another --format",
            ),
            (
                self.prints == "all" and self.output not in (None, "json"),
                f"--prints all writes json, not {self.output}: leave out --format",
            ),
            (
                self.csv_dialect != "run" and self.output != "csv",
                f"--csv-dialect {self.csv_dialect} needs --format csv",
            ),
        ):
            if is_wrong:
                raise UsageError(reason)
        try:
            self.percents = [float(number) for number in self.percentiles.split(",")]
        except ValueError:
            self.percents = [-1]
        if not all(0 <= percent <= 100 for percent in self.percents):
            raise UsageError(f"--percentiles {self.percentiles}: give numbers from 0 to 100, e.g. 50,95,99.9")


def parse_logs(names: Iterable[str], wanted: Wanted, complain: Callable[[str], None]) -> int:
    """Read logs and write them to stdout in the form that the options name.

    :param names: the logs; ``-`` is stdin.
    :param wanted: the options.
    :param complain: called with a message for each log that cannot be read.
    :return: the exit status: 1 if a log could not be read, else 0.
    :raises MachineError: stdout is closed.
    """
    if not isinstance(sys.stdout, TextIOWrapper):
        raise MachineError("stdout is closed", "send it to a file or a pipe: kproxylat parse FILE > OUT")
    failed: list[str] = []

    def read_all(read: Callable[[str], Iterator[Any]]) -> Iterator[Any]:
        for name in names:
            try:
                yield from read(name)
            except LogError as error:
                failed.append(name)
                complain(f"kproxylat: {error}".replace("\n", "?") + (f"\n  {error.remedy}" if error.remedy else ""))

    def read_results(name: str) -> Iterator[Result]:
        percents = (
            PERCENTILES if wanted.csv_dialect == "experiment" else wanted.percents
        )  # the columns of this dialect are fixed
        return (add_percentiles(result, percents) for result in read_log(name))

    sys.stdout.reconfigure(errors="backslashreplace")
    if wanted.prints == "all":
        pieces = read_all(_stream_prints)
    elif wanted.intervals:
        pieces = _stream_intervals(read_all(_read_intervals), wanted.output == "csv")
    else:
        export = CSV_DIALECTS[wanted.csv_dialect] if wanted.output == "csv" else EXPORTERS[wanted.output or "table"]
        if export is export_csv:
            export = partial(export_csv, percents=wanted.percents)
        pieces = export(read_all(read_results))
    for piece in pieces:
        sys.stdout.write(piece)
    sys.stdout.flush()
    return 1 if failed else 0


def _stream_prints(name: str) -> Iterator[str]:
    """Write every print of every map as a line of JSON, in the order of the text."""

    def write(printed: Print) -> None:
        line = {"file": name, "name": printed.name, **to_data(printed.map), "whole": printed.whole}
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")

    for _ in read_log(name, write):
        yield ""


def _read_intervals(name: str) -> Iterator[dict[str, Any]]:
    for sample, kind, engine, index in read_intervals(name):
        yield {"kind": kind, "engine": engine, **asdict(sample), "file": name, "index": index}


def _stream_intervals(rows: Iterable[dict[str, Any]], as_csv: bool) -> Iterator[str]:
    """Write every recurring line, as CSV or as lines of JSON."""
    if as_csv:
        yield "kind,engine,time,count,min,mean,max,tid,file,index\n"
    for row in rows:
        yield csv_row(row.values()) if as_csv else json.dumps(row) + "\n"


def parse(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Logs, also compressed by gzip; - is stdin.")],
    output: Annotated[
        str | None, typer.Option("--format", help="table (unless given), json, csv or openmetrics.")
    ] = None,
    csv_dialect: Annotated[str, typer.Option(help="Header of the CSV: run, or experiment (the old one).")] = "run",
    percentiles: Annotated[str | None, typer.Option(help="Which ones, 0 to 100 (50,95,99).")] = None,
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
    pass

    wanted = Wanted(output, csv_dialect, "50,95,99" if percentiles is None else percentiles, prints, intervals)
    for fixed, why in (
        (prints == "all", "--prints all writes maps as they are"),
        (intervals, "--intervals writes the log's own figures"),
        (csv_dialect == "experiment", "--csv-dialect experiment has its own percentiles"),
    ):
        if fixed:
            refuse_options(why, percentiles=percentiles)
    if intervals and csv_dialect != "run":
        refuse_options("--intervals has its own columns", csv_dialect=csv_dialect)
    raise typer.Exit(parse_logs(files, wanted, say))
