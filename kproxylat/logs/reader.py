"""Logs of runs, of every dialect: table DIALECTS.

Memory does not grow with the length of a run. A damaged line loses only itself. docs/logs.md describes the dialects and
how a file is divided into runs.

Longer than 350 lines: the tables of dialects and line kinds stand beside the reader that they drive.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import IO, NamedTuple

from kproxylat.errors import LogError
from kproxylat.logs import legacy
from kproxylat.logs.files import LONG, open_log, read_pieces
from kproxylat.logs.legacy import RunText
from kproxylat.logs.record import SIGN, build_recorded
from kproxylat.logs.recurring import Collector, RecurringLine, find_quiet_lines, is_damaged
from kproxylat.results import Quality, Result, Sample, Source
from kproxylat.trace.dump import Print, PrintAssembler

Watch = Callable[[RecurringLine], None]
_FEW = 1 << 10
_WARNINGS = 100
_MARKS = _MAPS = 10_000
_CELL = r'(?:"(?:[^"]|"")*"|[^",]*)'


class Dialect(NamedTuple):
    """One row of the table: how to recognize a run of this dialect, and how to build its result.

    :param name: the name, as ``source.dialect`` has it.
    :param sign: matches the beginning of lines that only this dialect has; ``RunText.marks`` keeps these lines.
    :param build: builds the result; the reader adds source and quality.
    :param kinds: other contents that only this dialect has: recurring lines (slow, time, block, row), or ``map``.
    :param header: the line below which ``sign`` counts, up to the beginning of the next run; None: it counts anywhere.
    :param line_is_run: each line that matches ``sign`` ends a run.
    :param has_report: a run ends with a report; without it, the run was cut short.
    """

    name: str
    sign: re.Pattern[str]
    build: Callable[[RunText], Result]
    kinds: frozenset[str] = frozenset()
    header: str | None = None
    line_is_run: bool = False
    has_report: bool = False


DIALECTS = (
    Dialect("kproxylat", SIGN, build_recorded, has_report=True),
    Dialect(
        "experiment",
        re.compile(rf'(?:"\d*"|\d*)(?:,{_CELL}){{9}}\Z'),
        legacy.build_experiment,
        header=legacy.EXPERIMENT_HEADER,
        line_is_run=True,
    ),
    Dialect("single", re.compile(r"\[\w+\] Latency: |ERROR: No packet traced after"), legacy.build_single),
    Dialect(
        "summary",
        re.compile(r"TIME +\| PACKETS| FINAL SUMMARY REPORT"),
        legacy.build_summary,
        kinds=frozenset({"row"}),
        has_report=True,
    ),
    Dialect(
        "report",
        re.compile(
            r"  FINAL REPORT|\d\d:\d\d:\d\d (Statistics|SLOW \w+):|Tracing iptables and nftables| +Kube-Proxy Data"
        ),
        legacy.build_report,
        kinds=frozenset({"slow", "time", "block"}),
        has_report=True,
    ),
    Dialect("dump", re.compile(r"Attach(ing|ed) \d+ probe"), legacy.build_dump, kinds=frozenset({"map"})),
)
"""The dialect of a run is the first row that the run shows a sign of."""

_STARTS = {
    "header": re.compile(r" +eBPF Kube-Proxy Latency Experiment"),
    "attach": re.compile(r"Attach(ing|ed) \d+ probe"),
    "banner": re.compile(r" +Kube-Proxy Data Plane Latency Tracer"),
    "tracing": re.compile(r"Tracing (iptables|packets)"),
    "table": re.compile(r"TIME +\| PACKETS"),
}
_ENDS = re.compile(r" +FINAL (SUMMARY )?REPORT")
_FIELDS = (
    *("Timestamp", "Kube-proxy mode", "Worker ClusterIP", "Duration", "Packet rate", "Rule position"),
    *("Worker position", r"Warmup(?: packets)?"),
)
_FIELD = "|".join(_FIELDS)
_HEADER = re.compile(rf"(?:\A|(?<=\S))({_FIELD}): *(.+?)(?=\"echo|echo \"|\"|(?:{_FIELD}): |\Z)")
"""A field of the metadata header; also in the middle of a line, because the old scripts ran some lines together."""
_REPORT_FIGURES = {
    "Total invocations": "count",
    "Min latency": "min",
    "Avg latency": "mean",
    "Max latency": "max",
}
_SUMMARY_FIGURES = {"Total Packets Traced": "count", "Average Latency": "mean", "Maximum Latency": "max"}
_FIGURES = _REPORT_FIGURES | _SUMMARY_FIGURES
_COLOUR = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
_COLOUR_BYTES = re.compile(_COLOUR.pattern.encode())
_SLOW_INSIDE = re.compile(r"\d\d:\d\d:\d\d SLOW \w+: \d{1,18} us \(tid=\d{1,18}\)\Z")


class _Run:
    """One run while it is being read."""

    def __init__(self, store: Callable[[Print], None], watch: Watch | None) -> None:
        self.text = RunText()
        self.samples = Collector(watch)
        self.reader = PrintAssembler()
        self.store = store
        self.seen: set[str] = set()
        self.section = ""
        self.lost = self.total_lost = 0
        self.full = False

    def warn(self, line_no: int, reason: str) -> None:
        """Note damage and its line; after a hundred notes, only that there is more."""
        if len(self.text.warnings) < _WARNINGS:
            self.text.warnings.append(f"line {line_no}: {reason}"[:200])
        elif len(self.text.warnings) == _WARNINGS:
            self.text.warnings.append(f"line {line_no}: more of this, not listed")

    def has_body(self) -> bool:
        """Return whether the run has printed recurring lines or maps."""
        return bool(self.samples.kinds or self.text.maps)

    def keep_maps(self, line_no: int) -> None:
        """Keep the maps that are complete at this line; of a map that is printed again, the last whole print."""
        for note in self.reader.pop_notes():
            self.warn(line_no, note)
        for printed in self.reader.pop_prints():
            self.store(printed)
            name, is_new = printed.name, printed.name not in self.text.maps
            if not printed.whole:
                self.warn(line_no, f"the text ends inside @{name}")
            if is_new and len(self.text.maps) >= _MAPS:
                self.warn(line_no, f"more than {_MAPS} maps; @{name} is left out")
            elif printed.whole or is_new:
                self.text.maps[name] = printed.map

    def add_fields(self, match: re.Match[str], _: int) -> None:
        """Keep the fields of the metadata header in a line; the first of each name counts."""
        for field in _HEADER.finditer(match.string):
            name = "Warmup packets" if field[1] == "Warmup" else field[1]
            self.text.header.setdefault(name, field[2].strip())
            self.seen.add("fields")

    def begin_section(self, section: re.Match[str], _: int) -> None:
        """Begin a section of the report: ``--- IPTABLES MODE ---``."""
        self.section = section[1].lower()
        self.text.report.setdefault(self.section, {})

    def drop_section(self, section: re.Match[str], _: int) -> None:
        """Note that an engine has no section in the report: ``No iptables traffic observed.``."""
        self.section = section[1].lower()
        self.text.report.pop(self.section, None)

    def begin_empty_summary(self, _match: re.Match[str], _: int) -> None:
        """Begin the summary of a run without a packet."""
        self.section = ""
        self.text.report.setdefault("summary", {})

    def add_figure(self, figure: re.Match[str], line_no: int) -> None:
        """Keep a figure of the report."""
        if not figure[2]:
            self.warn(line_no, f"unreadable: {figure.string!r}")
            return
        section = "summary" if figure[1] in _SUMMARY_FIGURES else self.section
        self.text.report.setdefault(section, {})[_FIGURES[figure[1]]] = int(figure[2])

    def add_lost(self, lost: re.Match[str], _: int) -> None:
        """Count events that bpftrace lost."""
        self.lost += int(lost[1])

    def keep_total_lost(self, lost: re.Match[str], _: int) -> None:
        """Keep the number of lost events that bpftrace prints at its end."""
        self.total_lost = max(self.total_lost, int(lost[1]))

    def note_full_map(self, _match: re.Match[str], _: int) -> None:
        """Note that a map was full."""
        self.full = True

    def note_message(self, message: re.Match[str], line_no: int) -> None:
        """Keep a message of bpftrace's as a warning."""
        self.warn(line_no, message.string)

    def note_unreadable(self, match: re.Match[str], line_no: int) -> None:
        """Note that a line cannot be read."""
        self.warn(line_no, f"unreadable: {match.string!r}")


class _LineKind(NamedTuple):
    """One row of a table: :meth:`handle` takes the match that :meth:`find` finds in a line, and the line's number."""

    find: Callable[[str], re.Match[str] | None]
    handle: Callable[[_Run, re.Match[str], int], None]


_FACTS = (
    _LineKind(lambda line: _HEADER.search(line) if ": " in line else None, _Run.add_fields),
    _LineKind(re.compile(r"--- (\w+) MODE ---").match, _Run.begin_section),
    _LineKind(re.compile(r"No (\w+) traffic observed").match, _Run.drop_section),
    _LineKind(re.compile(r"No packets (captured|were traced)").match, _Run.begin_empty_summary),
    _LineKind(
        re.compile(rf"({'|'.join(_FIGURES)})(?:: *(\d{{1,18}})(?: us| instructions)?\Z)?").match, _Run.add_figure
    ),
)
"""Lines of the metadata header and of a report. They show no dialect and belong to no map."""
_MESSAGES = (
    _LineKind(re.compile(r"Lost (\d{1,18}) events").match, _Run.add_lost),
    _LineKind(re.compile(r"WARNING: Total lost event count: (\d{1,18})").match, _Run.keep_total_lost),
    _LineKind(re.compile(r"WARNING: (Map full|Failed to map_update_elem)").search, _Run.note_full_map),
    _LineKind(re.compile(r"(\S+: )?(WARNING|ERROR): |Lost \d{1,18} events").match, _Run.note_message),
    _LineKind(re.compile(r"(?!\S+: (WARNING|ERROR): )([\[(](-?\d|\.\.\.).*[)\]]|@\w+\b)").match, _Run.note_unreadable),
)
"""Lines that belong to no map: messages of bpftrace's, and damaged rows and entries of maps."""


class LogReader:
    """The reader of one log: divides it into runs and builds their results.

    :param name: the file's name, for ``source`` of the results.
    :param store: called with every print of a map, in order (``--prints all``).
    :param watch: called with every recurring line of the kinds slow, block and row (``--intervals``).
    """

    def __init__(self, name: str, store: Callable[[Print], None] = lambda _: None, watch: Watch | None = None) -> None:
        self.name, self.store, self.watch = name, store, watch
        self.line_no = self.index = 0
        self._header: str | None = None  # the last line that was the header of a dialect
        self._run = _Run(store, watch)

    def read(self, stream: IO[bytes]) -> Iterator[Result]:
        """Read all runs of a log.

        :param stream: the log, as :func:`open_log` opens it.
        :return: the result of each run, in order.
        :raises LogError: the log holds no run.
        """
        damage, binary = list[str](), False
        for piece in read_pieces(stream, damage):
            binary = binary or b"\0" in piece
            yield from self.read_piece(piece)
        for reason in damage:
            self._run.warn(self.line_no, reason)
        warnings = self._run.text.warnings
        warning = next((text for text in warnings if "ERROR" in text or "no end" in text), None)
        yield from self._finish_run()
        if not self.index:
            content = "is a binary file" if binary else f"holds no run among its {self.line_no} lines"
            reasons = [*([content] if self.line_no else []), *damage, *([warning] if warning else [])]
            saved = self.name.endswith(".json")
            remedy = "what run and sweep save as .json is for compare and plot; parse reads the .log beside it"
            raise LogError(f"{self.name}: {'; '.join(reasons) or 'is empty'}", remedy if saved else "")

    def read_piece(self, piece: bytes) -> Iterator[Result]:
        """Read the next lines of a log.

        :param piece: whole lines; only the last line of the log may lack its end.
        :return: the results of the runs that end in the piece.
        """
        middle = piece.find(b"\n", len(piece) // 2) + 1
        if self._read_recurring_lines(piece):
            return
        if len(piece) > _FEW and 0 < middle < len(piece):
            yield from self.read_piece(piece[:middle])
            yield from self.read_piece(piece[middle:])
            return
        *lines, rest = piece.split(b"\n")
        for line in lines:
            yield from self._read_line(line, ended=True)
        if rest:
            yield from self._read_line(rest, ended=False)

    def _read_recurring_lines(self, piece: bytes) -> bool:
        """Read a piece that holds nothing but recurring and quiet lines; return False if it must be divided."""
        run = self._run
        plain = _COLOUR_BYTES.sub(b"", piece).replace(b"\r\n", b"\n")
        # After a report, a block begins another run. In a key or a string, even a blank line counts.
        if "end" in run.seen or run.reader.counts_text or not run.samples.add_all(plain):
            return False
        for line in find_quiet_lines(plain):
            run.reader.feed(line.decode())
        self.line_no += plain.count(b"\n")
        run.keep_maps(self.line_no)
        return True

    def _read_line(self, raw: bytes, *, ended: bool) -> Iterator[Result]:
        self.line_no += 1
        if self.line_no == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        raw = raw.removesuffix(b"\r").removeprefix(b"^C")
        if len(raw) > LONG:
            self._run.warn(self.line_no, f"longer than {LONG} bytes; the rest is left out")
            raw = raw[:LONG]
        if not ended and not raw.endswith((b"|", b" us", b")")):
            self._run.warn(self.line_no, "the last line has no end and was left out")
            return
        if raw[:1] != b"@" and b"\x1b" in raw:
            raw = _COLOUR_BYTES.sub(b"", raw)
        if raw[:1].isdigit() or raw[:3] == b"  [":
            yield from self._read_recurring(raw)
            return
        try:
            line = raw.decode()
        except UnicodeDecodeError:
            line = raw.decode(errors="backslashreplace")
            self._run.warn(self.line_no, "not UTF-8; the bytes are kept as \\xNN")
        yield from self._read_text(line)

    def _read_recurring(self, raw: bytes) -> Iterator[Result]:
        """Read a line that begins like a recurring one."""
        recurring = self._run.samples.read(raw)
        if recurring and recurring.kind in ("time", "row") and "end" in self._run.seen:
            yield from self._finish_run()
        if recurring and self._run.samples.add(recurring):
            return
        line = raw.decode(errors="backslashreplace")
        if not recurring and not is_damaged(raw):
            yield from self._read_text(line)
        elif not self._run.reader.feed(line):
            self._run.warn(self.line_no, f"unreadable: {line!r}")

    def _read_text(self, line: str) -> Iterator[Result]:
        """Read a line that is not recurring."""
        if not line.startswith("@"):
            line = self._cut_slow_line(line)
            for start, pattern in _STARTS.items():
                if pattern.match(line):
                    yield from self._start_run(start)
                    self._header = None
            if self._handle(_FACTS, line):
                self._run.reader.feed(line)
                return
        dialect = self._find_dialect(line)
        if dialect:
            self._keep_mark(dialect, line)
            if dialect.line_is_run:
                yield from self._finish_run()
                return
        if _ENDS.match(line):
            if "end" in self._run.seen:
                yield from self._finish_run()
            self._run.seen.add("end")
        if not self._run.reader.feed(line) and line:
            self._handle(_MESSAGES, line)
        self._run.keep_maps(self.line_no)

    def _cut_slow_line(self, line: str) -> str:
        """Add the slow line at the end of another line, which it interrupted; return what stands before it."""
        slow = _SLOW_INSIDE.search(line, 1) if " SLOW " in line else None
        recurring = self._run.samples.read(slow[0].encode()) if slow else None
        if slow and recurring and self._run.samples.add(recurring):
            line = line[: slow.start()]
            self._run.warn(self.line_no, f"unreadable: {line!r} before a slow line")
        return line

    def _handle(self, table: Iterable[_LineKind], line: str) -> bool:
        """Handle a line by all rows of a table that match it; return whether there is one."""
        is_known = False
        for kind in table:
            if match := kind.find(line):
                kind.handle(self._run, match, self.line_no)
                is_known = True
        return is_known

    def _find_dialect(self, line: str) -> Dialect | None:
        """Find the dialect that a line is a sign of."""
        for dialect in DIALECTS:
            if line == dialect.header:
                self._header = line
            if dialect.sign.match(line) and dialect.header in (None, self._header):
                return dialect
        return None

    def _keep_mark(self, dialect: Dialect, line: str) -> None:
        marks = self._run.text.marks.setdefault(dialect.name, [])
        if len(marks) < _MARKS:
            marks.append(line)
        elif len(marks) == _MARKS:
            reason = f"more than {_MARKS} lines of the dialect {dialect.name}; the rest is left out"
            self._run.warn(self.line_no, reason)

    def _start_run(self, start: str) -> Iterator[Result]:
        """Begin a new run, if this line cannot belong to the present one."""
        seen = self._run.seen
        if (
            start in seen
            or "end" in seen
            or (start in ("header", "attach", "banner") and self._run.has_body())
            or (start == "header" and seen)
        ):
            yield from self._finish_run()
        self._run.seen.add(start)

    def _finish_run(self) -> Iterator[Result]:
        """End the present run and begin the next; yield the result, if there is one."""
        run, text = self._run, self._run.text
        run.reader.end()
        run.keep_maps(self.line_no)
        self._run = _Run(self.store, self.watch)
        kinds = run.samples.kinds | ({"map"} if text.maps else set())
        dialect = next((row for row in DIALECTS if row.name in text.marks or row.kinds & kinds), None)
        if dialect is None:
            if "header" in run.seen:
                self._run.warn(self.line_no, "above is the header of a run that printed nothing")
            return
        text.intervals = {name: summary.freeze() for name, summary in run.samples.intervals.items()}
        text.slow = {name: summary.freeze() for name, summary in run.samples.slow.items()}
        text.ended = "end" in run.seen or not dialect.has_report
        if not text.ended:
            run.warn(self.line_no, "the run ends before its report")
        result = dialect.build(text)
        quality = Quality(
            lost_events=max(run.lost, run.total_lost),
            missed_probes=result.quality.missed_probes,
            full_maps=result.quality.full_maps or (("?",) if run.full else ()),
            warnings=result.quality.warnings + tuple(text.warnings),
        )
        yield replace(result, quality=quality, source=Source(self.name, dialect.name, self.index))
        self.index += 1


def read_log(name: str, store: Callable[[Print], None] = lambda _: None) -> Iterator[Result]:
    """Read the runs of one log.

    :param name: a file, or ``-`` for stdin.
    :param store: called with every print of a map, in order.
    :return: the result of each run, in order.
    :raises LogError: the file cannot be read, or holds no run.
    """
    with open_log(name) as stream:
        yield from LogReader(name, store).read(stream)


def read_intervals(name: str) -> Iterator[tuple[Sample, str, str, int]]:
    """Read the recurring lines of a log one by one.

    :param name: a file, or ``-`` for stdin.
    :return: for each line its figures, kind (slow, block, row), engine, and the index of its run.
    :raises LogError: the file cannot be read to its end, or holds no recurring line.
    """
    damage, lines, is_empty = list[str](), list[tuple[Sample, str, str, int]](), True
    reader = LogReader(name, watch=lambda line: lines.append((*line, reader.index)))
    with open_log(name) as stream:
        for piece in read_pieces(stream, damage):
            for _ in reader.read_piece(piece):
                pass
            is_empty = is_empty and not lines
            yield from lines
            lines.clear()
    if damage or is_empty:
        raise LogError(f"{name}: {damage[0] if damage else 'holds no interval and no slow line'}")
