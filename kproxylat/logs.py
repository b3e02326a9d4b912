"""Reads the logs of runs, of every dialect: table DIALECTS. Memory does not grow with a run's length.

A damaged place costs only itself; docs/logs.md describes the dialects and how a file is divided into runs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import IO, NamedTuple

from kproxylat import legacy
from kproxylat.dump import Print, PrintAssembler
from kproxylat.errors import LogError
from kproxylat.legacy import RunText
from kproxylat.logfile import LONG, divide, open_log, read_pieces
from kproxylat.model import Quality, Result, Sample, Source
from kproxylat.record import SIGN, build_recorded
from kproxylat.samples import Collector, count_forms, read_sample, strip_colours

Watch = Callable[[Sample, str, str], None]
_FEW = 500
_WARNINGS = 100
_MARKS = _MAPS = 10_000
_CELL = r'(?:"(?:[^"]|"")*"|[^",]*)'


class Dialect(NamedTuple):
    """One row of the table: how a run of this dialect is recognized and what it says.

    ``sign`` matches (at its beginning) a line that only this dialect has; such lines are kept in ``RunText.marks``.
    ``build`` makes the result; source and quality are added to it.
    """

    name: str
    sign: re.Pattern[str]
    build: Callable[[RunText], Result]


DIALECTS = (
    Dialect("kproxylat", SIGN, build_recorded),
    Dialect(
        "experiment", re.compile(rf'(?:"\d*"|\d*)(?:,{_CELL}){{9}}\Z'), legacy.build_experiment
    ),  # below its header
    Dialect("single", re.compile(r"\[\w+\] Latency: |ERROR: No packet traced after"), legacy.build_single),
    Dialect("summary", re.compile(r"TIME +\| PACKETS| FINAL SUMMARY REPORT"), legacy.build_summary),
    Dialect(
        "report",
        re.compile(
            r"  FINAL REPORT|\d\d:\d\d:\d\d (Statistics|SLOW \w+):|Tracing iptables and nftables| +Kube-Proxy Data"
        ),
        legacy.build_report,
    ),
    Dialect("dump", re.compile(r"Attach(ing|ed) \d+ probe"), legacy.build_dump),
)
"""The first that shows in a run is the run's; maps alone are a "dump"."""

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
"""Also in the middle of a line: the old scripts ran some together."""
_FIGURES = {
    "Total invocations": "count",
    "Min latency": "min",
    "Avg latency": "mean",
    "Max latency": "max",
    "Total Packets Traced": "count",
    "Average Latency": "mean",
    "Maximum Latency": "max",
}
_FIGURE = re.compile(rf"({'|'.join(_FIGURES)})(?:: *(\d{{1,18}})(?: us| instructions)?\Z)?")
_SECTION = re.compile(r"--- (\w+) MODE ---|No (\w+) traffic observed|No packets (captured|were traced)")
_COLOUR = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
_LOST = re.compile(r"Lost (\d{1,18}) events|WARNING: Total lost event count: (\d{1,18})")
_SLOW_INSIDE = re.compile(r"\d\d:\d\d:\d\d SLOW \w+: \d{1,18} us \(tid=\d{1,18}\)\Z")
_LOST_PIECE = re.compile(rb"Lost (\d{1,18}) events")
_FULL = re.compile(r"WARNING: (Map full|Failed to map_update_elem)")


class _Run:
    """One run while it is being read."""

    def __init__(self, store: Callable[[Print], None], watch: Watch | None) -> None:
        self.text = RunText()
        self.samples = Collector(watch)
        self.reader = PrintAssembler()
        self.store = store
        self.seen: set[str] = set()
        self.signs: set[str] = set()
        self.section = ""
        self.lost = self.total_lost = 0
        self.full = False
        self.last_name = ""

    def warn(self, line_no: int, reason: str) -> None:
        """Note damage, and where; after a hundred only that there is more."""
        if len(self.text.warnings) < _WARNINGS:
            self.text.warnings.append(f"line {line_no}: {reason}"[:200])
        elif len(self.text.warnings) == _WARNINGS:
            self.text.warnings.append(f"line {line_no}: more of this, not listed")


class LogReader:
    """Divides a log into runs and reads them; one for each file.

    :param name: the file's name, for the results' ``source``.
    :param store: called with every print of a map, in order (``--prints all``).
    :param watch: called with every recurring line (``--intervals``): its sample, kind (slow, block, row) and engine.
    """

    def __init__(self, name: str, store: Callable[[Print], None] = lambda _: None, watch: Watch | None = None) -> None:
        self.name, self.store, self.watch = name, store, watch
        self.line_no = self.index = 0
        self.damage: list[str] = []  # of the file as a whole
        self.in_experiment = False  # below the header of its CSV
        self.run = _Run(store, watch)

    def read(self, stream: IO[bytes]) -> Iterator[Result]:
        """Read all runs of a log.

        :raises LogError: there is no run in it; or it cannot be read and no run was found before.
        """
        binary = False
        for piece in read_pieces(stream, self.damage):
            binary = binary or b"\0" in piece
            yield from self.read_piece(piece)
        for each in self.damage:
            self.run.warn(self.line_no, each)
        said = next((each for each in self.run.text.warnings if "ERROR" in each or "no end" in each), None)
        yield from self._finish()
        if not self.index:
            what = "is a binary file" if binary else f"holds no run among its {self.line_no} lines"
            reasons = [*([what] if self.line_no else []), *self.damage, *([said] if said else [])]
            saved = self.name.endswith(".json")
            remedy = "what run and sweep save as .json is for compare and plot; parse reads the .log beside it"
            raise LogError(f"{self.name}: {'; '.join(reasons) or 'is empty'}", remedy if saved else "")

    def read_piece(self, piece: bytes) -> Iterator[Result]:
        """Read whole lines: the recurring ones between two others at once, and the others one by one."""
        recurring, odd = not self.watch and (b" us" in piece or b" Statistics:" in piece), list[int]()
        if recurring:
            plain = strip_colours(piece)
            counts, odd = count_forms(plain)
            if not odd and self._take_piece(plain, counts):
                return
        for part, alike in divide(piece, odd):
            whole = recurring and alike
            if whole and len(part) > _FEW and self._take_piece(strip_colours(part)):
                continue
            *lines, last = part.split(b"\n")
            for at, line in enumerate(lines, 1):
                run = self.run
                yield from self._read_line(line, ended=True)
                if whole and self.run is not run and self._take_piece(strip_colours(b"\n".join([*lines[at:], b""]))):
                    break
            if last:
                yield from self._read_line(last, ended=False)

    def _take_piece(self, piece: bytes, counts: Counter[str] | None = None) -> bool:
        """Take recurring lines at once, with the same result as one by one; return False if it cannot be done."""
        run = self.run
        if "end" in run.seen and (b" Statistics:" in piece or b"|" in piece):
            return False  # they begin another run
        counts = counts or count_forms(piece)[0]
        if (counts["nothing"] or counts["blank"]) and run.reader.counts_text:
            return False
        if counts["odd"] or not run.samples.add_piece(piece, counts):
            return False
        rows = counts["row"] + counts["idle"]
        recurring = counts.total() - counts["lost"] - counts["nothing"] - counts["blank"]
        if recurring:
            run.signs.update(["summary"] * bool(rows) + ["report"] * (recurring > rows))
            run.seen.add("body")
        at = -1
        while counts["lost"] and (at := piece.find(b"Lost ", at + 1)) >= 0:
            lost = _LOST_PIECE.match(piece, at)
            run.lost += int(lost[1]) if lost else 0
            if lost and len(run.text.warnings) <= _WARNINGS:
                run.warn(self.line_no + piece.count(b"\n", 0, at) + 1, lost[0].decode())
        for line in ["No packets traced yet"] * bool(counts["nothing"]) + [""] * min(counts["blank"], 4):
            run.reader.feed(line)
        self._take()
        self.line_no += counts.total()
        return True

    def _read_line(self, raw: bytes, *, ended: bool) -> Iterator[Result]:
        self.line_no += 1
        if self.line_no == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        raw = raw.removesuffix(b"\r").removeprefix(b"^C")
        if len(raw) > LONG:
            self.run.warn(self.line_no, f"longer than {LONG} bytes; the rest is left out")
            raw = raw[:LONG]
        if not ended and not raw.endswith((b"|", b" us", b")")):
            self.run.warn(self.line_no, "the last line has no end and was left out")
            return
        if raw[:1] != b"@" and b"\x1b" in raw:
            raw = _COLOUR.sub("", raw.decode("latin-1")).encode("latin-1")
        if raw[:1].isdigit() or raw[:3] == b"  [":
            yield from self._read_recurring(raw)
            return
        try:
            line = raw.decode()
        except UnicodeDecodeError:
            line = raw.decode(errors="backslashreplace")
            self.run.warn(self.line_no, "not UTF-8; the bytes are kept as \\xNN")
        yield from self._read_text(line)

    def _read_recurring(self, raw: bytes) -> Iterator[Result]:
        line = raw.decode(errors="backslashreplace")
        kind = next((each for _, each, _ in read_sample(raw, "")), "")
        if "end" in self.run.seen and kind in ("time", "row"):  # a slow line may also come after the report
            yield from self._finish()
        taken = self.run.samples.add(raw)
        if taken:
            self.run.seen.add("body")
            self.run.signs.add("summary" if kind == "row" else "report")
        elif taken is None and not self.run.reader.feed(line):
            self.run.warn(self.line_no, f"unreadable: {line!r}")
        elif taken is False:
            yield from self._read_text(line)

    def _read_text(self, line: str) -> Iterator[Result]:
        if not line.startswith("@"):
            slow = _SLOW_INSIDE.search(line, 1) if " SLOW " in line else None
            if slow and self.run.samples.add(slow[0].encode()):
                line = line[: slow.start()]
                self.run.warn(self.line_no, f"unreadable: {line!r} before a slow line")
                self.run.signs.add("report")
                self.run.seen.add("body")
            for what, start in _STARTS.items():
                if start.match(line):
                    yield from self._start(what)
                    self.in_experiment = False
            self.in_experiment = self.in_experiment or line == legacy.EXPERIMENT_HEADER
            if self._read_figures(line):
                self.run.reader.feed(line)
                return
        sign = next((each.name for each in DIALECTS if each.sign.match(line)), "")
        if sign == "experiment" and not self.in_experiment:
            sign = ""
        if sign:
            self.run.signs.add(sign)
            marks = self.run.text.marks.setdefault(sign, [])
            if len(marks) < _MARKS:
                marks.append(line)
            elif len(marks) == _MARKS:
                self.run.warn(self.line_no, f"more than {_MARKS} lines of the dialect {sign}; the rest is left out")
            if sign == "experiment":
                yield from self._finish()
                return
        if _ENDS.match(line):
            if "end" in self.run.seen:
                yield from self._finish()
            self.run.seen.add("end")
        if not self.run.reader.feed(line) and line:
            self._check_damage(line)
        self._take()

    def _start(self, what: str) -> Iterator[Result]:
        """Begin a new run, if this line cannot belong to the present one."""
        seen = self.run.seen
        if (
            what in seen
            or "end" in seen
            or (what in ("header", "attach", "banner") and "body" in seen)
            or (what == "header" and seen)
        ):
            yield from self._finish()
        self.run.seen.add(what)

    def _read_figures(self, line: str) -> bool:
        """Read a line of the header or of a report."""
        run, found = self.run, False
        for field in _HEADER.finditer(line) if ": " in line else ():
            name = "Warmup packets" if field[1] == "Warmup" else field[1]
            run.text.header.setdefault(name, field[2].strip())
            run.seen.add("fields")
            found = True
        section = _SECTION.match(line)
        if section:
            run.section = (section[1] or section[2] or "").lower()
            run.text.report.setdefault(run.section or "summary", {})
            if section[2]:
                del run.text.report[run.section]
            return True
        figure = _FIGURE.match(line)
        if figure and not figure[2]:
            run.warn(self.line_no, f"unreadable: {line!r}")
        elif figure:
            section_name = run.section if figure[1].islower() or figure[1][1:].islower() else "summary"
            run.text.report.setdefault(section_name, {})[_FIGURES[figure[1]]] = int(figure[2])
        return found or bool(figure)

    def _check_damage(self, line: str) -> None:
        lost = _LOST.match(line)
        if lost:
            self.run.lost += int(lost[1] or 0)
            self.run.total_lost = max(self.run.total_lost, int(lost[2] or 0))
        elif _FULL.search(line):
            self.run.full = True
        if re.match(r"(\S+: )?(WARNING|ERROR): ", line) or (lost and lost[1]):
            self.run.warn(self.line_no, line)
        elif re.match(r"[\[(](-?\d|\.\.\.).*[)\]]|@\w+\b", line):
            self.run.warn(self.line_no, f"unreadable: {line!r}")

    def _take(self) -> None:
        for note in self.run.reader.pop_notes():
            self.run.warn(self.line_no, note)
        for each in self.run.reader.pop_prints():
            self.store(each)
            known = self.run.text.maps.get(each.name)
            if not each.whole:
                self.run.warn(self.line_no, f"the text ends inside @{each.name}")
            if not known and len(self.run.text.maps) >= _MAPS:
                self.run.warn(self.line_no, f"more than {_MAPS} maps; @{each.name} is left out")
            elif each.whole or not known:
                self.run.text.maps[each.name] = each.map
            self.run.seen.add("body")

    def _finish(self) -> Iterator[Result]:
        """End the present run and begin the next."""
        run = self.run
        run.reader.end()
        self._take()
        self.run = _Run(self.store, self.watch)
        text = run.text
        if text.maps:
            run.signs.add("dump")
        dialect = next((each for each in DIALECTS if each.name in run.signs), None)
        if dialect is None:
            if "header" in run.seen:
                self.run.warn(self.line_no, "above is the header of a run that printed nothing")
            return
        text.intervals = {name: each.freeze() for name, each in run.samples.intervals.items()}
        text.slow = {name: each.freeze() for name, each in run.samples.slow.items()}
        text.ended = dialect.name in ("dump", "single", "experiment") or "end" in run.seen
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
    :raises LogError: it cannot be read or holds no run.
    """
    with open_log(name) as stream:
        yield from LogReader(name, store).read(stream)


def read_intervals(name: str) -> Iterator[tuple[Sample, str, str, int]]:
    """Read the recurring lines of a log one by one: sample, kind (slow, block, row), engine, index of the run.

    :raises LogError: it cannot be read to its end, or holds none.
    """
    damage, found, any_found = list[str](), list[tuple[Sample, str, str, int]](), False
    reader = LogReader(name, watch=lambda *each: found.append((*each, reader.index)))
    with open_log(name) as stream:
        for piece in read_pieces(stream, damage):
            for _ in reader.read_piece(piece):
                pass
            any_found = any_found or bool(found)
            yield from found
            found.clear()
    if damage or not any_found:
        raise LogError(f"{name}: {damage[0] if damage else 'holds no interval and no slow line'}")
