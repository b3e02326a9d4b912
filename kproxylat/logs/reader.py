"""Logs of runs, of every dialect: table DIALECTS.

Memory does not grow with the length of a run. A damaged line loses only itself. docs/logs.md describes the dialects and
how a file is divided into runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import IO, NamedTuple

from kproxylat.errors import LogError
from kproxylat.logs import legacy
from kproxylat.logs.files import find_longest, open_log, read_pieces
from kproxylat.logs.json_lines import SIGN as JSON_SIGN
from kproxylat.logs.json_lines import read_event
from kproxylat.logs.legacy import RunText
from kproxylat.logs.prefix import PrefixStripper
from kproxylat.logs.record import SIGN, build_recorded
from kproxylat.logs.recurring import Watch, find_quiet_lines, is_damaged
from kproxylat.logs.run import FACTS, MESSAGES, OpenRun
from kproxylat.results import Result, Sample, Source
from kproxylat.trace.dump import Print

_FEW = 1 << 10
_CELL = r'(?:"(?:[^"]|"")*"|[^",]*)'


class Dialect(NamedTuple):
    """One row of the table: how to recognize a run of this dialect, and how to build its result.

    :param name: the name, as ``source.dialect`` has it.
    :param sign: matches the beginning of lines that only this dialect has; ``RunText.marks`` keeps these lines.
    :param build: builds the result; the reader adds source and quality.
    :param kinds: other contents that only this dialect has: recurring lines (slow, time, block, row), or ``map``.
    :param header: pattern of the line below which ``sign`` counts, up to the beginning of the next run; None: anywhere.
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
        re.compile(rf'(?:"\d*"|\d*)(?:,{_CELL}){{6,}}\Z'),
        legacy.build_experiment,
        header=legacy.EXPERIMENT_HEADERS,
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
    # The reader itself marks lines of JSON, because they also bring the maps.
    Dialect("json", re.compile(r"(?!)"), legacy.build_dump),
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
_RECURS = re.compile(r"\d|  \[")
_ENDS = re.compile(r" +FINAL (SUMMARY )?REPORT")
_COLOUR = re.compile(rb"\x1b\[[\d;]*[A-Za-z]")
_SLOW_INSIDE = re.compile(r"\d\d:\d\d:\d\d SLOW \w+: \d{1,18} us \(tid=\d{1,18}\)\Z")


class LogReader:
    """The reader of one log: divides it into runs and builds their results.

    :param name: the file's name, for ``source`` of the results.
    :param store: called with every print of a map, in order (``--prints all``).
    :param watch: called with every recurring line of the kinds slow, block and row (``--intervals``).
    :ivar index: the index of the present run.
    """

    def __init__(self, name: str, store: Callable[[Print], None] = lambda _: None, watch: Watch | None = None) -> None:
        self.name, self.store, self.watch = name, store, watch
        self.index = 0
        self._prefix = PrefixStripper()
        self._header: str | None = None  # the pattern that the last header of a dialect matched
        self._columns = ""  # this header
        self._run = OpenRun(store, watch)

    def read(self, stream: IO[bytes]) -> Iterator[Result]:
        """Read all runs of a log.

        :param stream: the log, as :func:`open_log` opens it.
        :return: the result of each run, in order.
        :raises LogError: the log holds no run.
        """
        damage, binary = list[str](), False
        for piece in read_pieces(stream, damage):
            if not self._run.line_no and piece.count(b"\r") > 1 and b"\n" not in piece[:-1]:
                reason, remedy = (
                    "its lines end with CR alone",
                    "Convert them: tr '\\r' '\\n' < FILE | kproxylat parse -",
                )
                raise LogError(f"{self.name}: {reason}", remedy)
            binary = binary or b"\0" in piece
            yield from self.read_piece(piece)
        for reason in damage:
            self._run.warn(reason)
        warnings = self._run.text.warnings
        warning = next((text for text in warnings if re.search("ERROR|no end|bcc", text)), None)
        yield from self._finish_run()
        if not self.index:
            lines = self._run.line_no
            content = "is a binary file" if binary else f"holds no run among its {lines} lines"
            reasons = [*([content] if lines else []), *damage, *([warning] if warning else [])]
            saved = self.name.endswith(".json")
            remedy = "what run and sweep save as .json is for compare and plot; parse reads the .log beside it"
            raise LogError(f"{self.name}: {'; '.join(reasons) or 'is empty'}", remedy if saved else "")

    def read_piece(self, piece: bytes) -> Iterator[Result]:
        """Read the next lines of a log.

        :param piece: whole lines; only the last line of the log may lack its end.
        :return: the results of the runs that end in the piece.
        """
        yield from self._read_piece(self._prefix.strip(piece))

    def _read_piece(self, piece: bytes) -> Iterator[Result]:
        if self._read_recurring_lines(piece):
            return
        middle = piece.find(b"\n", len(piece) // 2) + 1
        if len(piece) > _FEW and 0 < middle < len(piece):
            yield from self._read_piece(piece[:middle])
            yield from self._read_piece(piece[middle:])
            return
        *lines, rest = piece.split(b"\n")
        for line in lines:
            yield from self._read_line(line, ended=True)
        if rest:
            yield from self._read_line(rest, ended=False)

    def _read_recurring_lines(self, piece: bytes) -> bool:
        """Read a piece that holds nothing but recurring and quiet lines; return False if it must be divided."""
        run, plain = self._run, piece
        if b"\x1b" in piece or b"\r" in piece:
            plain = _COLOUR.sub(b"", piece).replace(b"\r\n", b"\n")
        # After a report, a block begins another run. In a key or a string, even a blank line counts.
        if run.is_ended or run.prints.counts_text or not run.samples.add_all(plain):
            return False
        for line in find_quiet_lines(plain):
            run.prints.feed(line.decode())
        run.line_no += plain.count(b"\n")
        run.keep_maps()
        return True

    def _read_line(self, raw: bytes, *, ended: bool) -> Iterator[Result]:
        run = self._run
        run.line_no += 1
        raw = raw.rstrip(b"\r").removeprefix(b"^C")
        if len(raw) > (longest := find_longest(raw)):
            run.warn(f"longer than {longest} bytes; the rest is left out")
            raw = raw[:longest]
        if not ended and raw.strip() and not raw.rstrip().endswith((b"|", b" us", b")", b"}")):
            run.warn("the last line has no end and was left out")
            return
        if raw[:1] != b"@" and b"\x1b" in raw:
            raw = _COLOUR.sub(b"", raw)
        if raw[:1].isdigit() or raw[:3] == b"  [":
            yield from self._read_recurring(raw)
            return
        try:
            line = raw.decode()
        except UnicodeDecodeError:
            line = raw.decode(errors="backslashreplace")
            run.warn("not UTF-8; the bytes are kept as \\xNN")
        if raw.startswith(JSON_SIGN) and run.takes_json:
            yield from self._read_json(line)
        elif run.has_json and not (_STARTS["attach"].match(line) and run.text.maps):
            run.handle(MESSAGES, line)
        else:
            yield from self._read_text(line)

    def _read_json(self, line: str) -> Iterator[Result]:
        """Read a line of bpftrace's JSON."""
        event = read_event(line)
        if event is None:
            self._run.warn(f"unreadable: {line!r}")
            return
        if event.begins_run:
            yield from self._start_run("attach")
        run = self._run
        run.begin_json()
        if event.message:
            run.handle(MESSAGES, event.message)
        *lines, rest = (run.printed + event.text + "\n" * bool(event.prints)).split("\n")
        run.keep_printed(rest)
        for printed_line in lines:
            if _RECURS.match(printed_line):
                yield from self._read_recurring(printed_line.encode())
            elif not _STARTS["attach"].match(printed_line):
                yield from self._read_text(printed_line)
        for printed in event.prints:
            self._run.keep_print(printed)

    def _read_recurring(self, raw: bytes) -> Iterator[Result]:
        """Read a line that begins like a recurring one."""
        recurring = self._run.samples.read(raw.rstrip())
        if recurring and recurring.kind in ("time", "row") and self._run.is_ended:
            yield from self._finish_run()
        if recurring and self._run.samples.add(recurring):
            return
        line = raw.decode(errors="backslashreplace")
        if not recurring and not is_damaged(raw):
            yield from self._read_text(line)
        elif not self._run.prints.feed(line):
            self._run.warn(f"unreadable: {line!r}")

    def _read_text(self, line: str) -> Iterator[Result]:
        """Read a line that is not recurring. Only the parser of maps gets the blanks at its end."""
        line = line if line.startswith("@") else self._cut_slow_line(line)
        plain = line.rstrip()
        if not line.startswith("@"):
            for start, pattern in _STARTS.items():
                if pattern.match(plain):
                    yield from self._start_run(start)
                    self._header = None
            if self._run.handle(FACTS, plain):
                self._run.prints.feed(line)
                return
        dialect = self._find_dialect(plain)
        if dialect:
            self._run.keep_mark(dialect.name, plain)
            if dialect.line_is_run:
                self._run.text.columns = self._columns
                yield from self._finish_run()
                return
        if _ENDS.match(plain):
            if self._run.is_ended:
                yield from self._finish_run()
            self._run.seen.add("end")
        if not self._run.prints.feed(line) and plain:
            self._run.handle(MESSAGES, line)
        self._run.keep_maps()

    def _cut_slow_line(self, line: str) -> str:
        """Add the slow line at the end of another line, which it interrupted; return what stands before it."""
        slow = _SLOW_INSIDE.search(line.rstrip(), 1) if " SLOW " in line else None
        recurring = self._run.samples.read(slow[0].encode()) if slow else None
        if slow and recurring and self._run.samples.add(recurring):
            line = line[: slow.start()]
            self._run.warn(f"unreadable: {line!r} before a slow line")
        return line

    def _find_dialect(self, line: str) -> Dialect | None:
        """Find the dialect that a line is a sign of."""
        for dialect in DIALECTS:
            if dialect.header and re.fullmatch(dialect.header, line):
                self._header, self._columns = dialect.header, line
            if dialect.sign.match(line) and dialect.header in (None, self._header):
                return dialect
        return None

    def _start_run(self, start: str) -> Iterator[Result]:
        """Begin a new run, if this line cannot belong to the present one."""
        run = self._run
        has_body = run.samples.kinds or run.text.maps
        if (
            start in run.seen
            or run.is_ended
            or (start in ("header", "attach", "banner") and has_body)
            or (start == "header" and run.seen)
        ):
            yield from self._finish_run()
        self._run.seen.add(start)

    def _finish_run(self) -> Iterator[Result]:
        """End the present run and begin the next; yield the result, if there is one."""
        run, text = self._run, self._run.text
        kinds = run.finish()
        self._run = OpenRun(self.store, self.watch, run.line_no)
        if self._prefix.example:
            text.warnings.insert(0, f"the prefix {self._prefix.example!r} of the lines was stripped"[:200])
        dialect = next((row for row in DIALECTS if row.name in text.marks or row.kinds & kinds), None)
        if dialect is None:
            if "header" in run.seen:
                self._run.warn("above is the header of a run that printed nothing")
            return
        text.ended = run.is_ended or not dialect.has_report
        if not text.ended:
            run.warn("the run ends before its report")
        result = dialect.build(text)
        source = Source(self.name, dialect.name, self.index)
        yield replace(result, quality=run.judge(result.quality), source=source)
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
