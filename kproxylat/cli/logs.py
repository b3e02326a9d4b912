"""The parse command: logs in, the text of an exporter out. A log that cannot be read does not stop the others."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from io import TextIOWrapper
from typing import Annotated, Any

import typer

from kproxylat.console import ESSENTIAL, plain_line, say, show
from kproxylat.errors import LogError, MachineError, UsageError, refuse_options
from kproxylat.logs.reader import read_intervals, read_log
from kproxylat.report.columns import paint
from kproxylat.report.export import CSV_DIALECTS, EXPORTERS, csv_row, export_csv
from kproxylat.results import Result
from kproxylat.results_json import to_data
from kproxylat.trace.dump import Print
from kproxylat.trace.percentiles import PERCENTILES, add_percentiles


@dataclass
class ParseOptions:
    """The command's options.

    :param output: a name in EXPORTERS; None is a table, or lines of JSON for prints and intervals.
    :param csv_dialect: a name in CSV_DIALECTS.
    :param percentiles: numbers from 0 to 100, separated by commas; None: the default ones.
    :param prints: ``last``, or ``all``: every print of a map.
    :param intervals: every recurring line instead of results.
    :ivar percents: the percentiles as numbers.
    :raises UsageError: an option is invalid, or two options exclude each other.
    """

    output: str | None
    csv_dialect: str
    percentiles: str | None
    prints: str
    intervals: bool
    percents: Sequence[float] = field(init=False, default=PERCENTILES)

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_combinations()
        if self.percentiles is None:
            return
        try:
            self.percents = [float(number) for number in self.percentiles.split(",")]
        except ValueError:
            self.percents = [-1]
        if not all(0 <= percent <= 100 for percent in self.percents):
            raise UsageError(f"--percentiles {self.percentiles}: give numbers from 0 to 100, e.g. 50,95,99.9")
        for is_fixed, reason in (
            (self.prints == "all", "--prints all writes maps as they are"),
            (self.intervals, "--intervals writes the log's own figures"),
            (self.csv_dialect == "experiment", "--csv-dialect experiment has its own percentiles"),
        ):
            if is_fixed:
                refuse_options(reason, percentiles=self.percentiles)

    def _check_choices(self) -> None:
        for option, value, choices in (
            ("--format", self.output or "table", EXPORTERS),
            ("--csv-dialect", self.csv_dialect, CSV_DIALECTS),
            ("--prints", self.prints, ("last", "all")),
        ):
            if value not in choices:
                raise UsageError(f"{option} {value}: choose one of {', '.join(choices)}")

    def _check_combinations(self) -> None:
        if self.prints == "all" and self.intervals:
            raise UsageError("--prints all and --intervals exclude each other")
        if self.intervals and self.output not in (None, "csv", "json"):
            raise UsageError(f"--intervals writes json or csv, not {self.output}: pass another --format")
        if self.prints == "all" and self.output not in (None, "json"):
            raise UsageError(f"--prints all writes json, not {self.output}: leave out --format")
        if self.csv_dialect != "run" and self.output != "csv":
            raise UsageError(f"--csv-dialect {self.csv_dialect} needs --format csv")
        if self.csv_dialect != "run" and self.intervals:
            refuse_options("--intervals has its own columns", csv_dialect=self.csv_dialect)


def parse_logs(names: Iterable[str], options: ParseOptions, complain: Callable[[str], None]) -> int:
    """Read logs and write them to stdout in the form that the options name.

    :param names: the logs; ``-`` is stdin.
    :param options: the command's options.
    :param complain: called with a message for each log that cannot be read.
    :return: the exit status: 1 if a log could not be read, else 0.
    :raises MachineError: stdout is closed.
    """
    if not isinstance(sys.stdout, TextIOWrapper):
        raise MachineError("stdout is closed", "send it to a file or a pipe: kproxylat parse FILE > OUT")
    status = 0

    def read_all(read: Callable[[str], Iterator[Any]]) -> Iterator[Any]:
        nonlocal status
        for name in names:
            try:
                yield from read(name)
            except LogError as error:
                status = 1
                complain(f"kproxylat: {plain_line(error)}" + (f"\n  {error.remedy}" if error.remedy else ""))

    if options.prints == "all":
        pieces = read_all(_stream_prints)
    elif options.intervals:
        pieces = _stream_intervals(read_all(_read_intervals), options.output == "csv")
    else:
        pieces = _export(read_all(read_log), options)
    style = paint if options.output in (None, "table") and not (options.intervals or options.prints == "all") else str
    for piece in pieces:
        show(piece, end="", style=style)
    sys.stdout.flush()
    return status


def _export(results: Iterable[Result], options: ParseOptions) -> Iterator[str]:
    export = CSV_DIALECTS[options.csv_dialect] if options.output == "csv" else EXPORTERS[options.output or "table"]
    if export is export_csv:
        export = partial(export_csv, percents=options.percents)
    return export(add_percentiles(result, options.percents) for result in results)


def _stream_prints(name: str) -> Iterator[str]:
    """Write every print of every map as a line of JSON, in the order of the text."""

    def write(printed: Print) -> None:
        line = {"file": name, "name": printed.name, **to_data(printed.map), "whole": printed.whole}
        show(json.dumps(line))

    for _ in read_log(name, write):
        yield ""


def _read_intervals(name: str) -> Iterator[dict[str, Any]]:
    for sample, kind, engine, index in read_intervals(name):
        yield {"kind": kind, "engine": engine, **asdict(sample), "file": name, "index": index}


def _stream_intervals(rows: Iterable[dict[str, Any]], as_csv: bool) -> Iterator[str]:
    if as_csv:
        yield "kind,engine,time,count,min,mean,max,tid,file,index\n"
    for row in rows:
        yield csv_row(row.values()) if as_csv else json.dumps(row) + "\n"


def parse(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Logs, also compressed by gzip; - is stdin.")],
    output: Annotated[
        str | None, typer.Option("--format", "-o", help="table (unless given), json, csv or openmetrics.")
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
    options = ParseOptions(output, csv_dialect, percentiles, prints, intervals)
    raise typer.Exit(parse_logs(files, options, partial(say, level=ESSENTIAL)))
