"""One run of a log while it is being read, and the kinds of its lines outside maps and recurring lines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from kproxylat.logs.files import LONG
from kproxylat.logs.legacy import RunText
from kproxylat.logs.prefix import ROW
from kproxylat.logs.record import OVERHEAD_MARK, TIMES_MARK
from kproxylat.logs.recurring import Collector, Watch
from kproxylat.results import Entry, Map, Quality
from kproxylat.trace.dump import BUDGET, Print, PrintAssembler, weigh
from kproxylat.trace.values import ROW_START

_WARNINGS, _VALUE = 100, 200
_MARKS = _MAPS = 10_000
_SECTIONS = 100
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
    "Mean latency": "mean",
    "Max latency": "max",
}
_SUMMARY_FIGURES = {"Total Packets Traced": "count", "Average Latency": "mean", "Maximum Latency": "max"}
_FIGURES = _REPORT_FIGURES | _SUMMARY_FIGURES


class OpenRun:
    """One run while it is being read.

    :param store: called with every print of a map.
    :param watch: called with every recurring line.
    :param line_no: the number of the log's lines before the run.
    :ivar text: the run's text so far.
    :ivar samples: the recurring lines.
    :ivar prints: the prints of maps.
    :ivar printed: the beginning of a line, printed by a script whose output is JSON.
    :ivar seen: which parts of a run have begun: names of starts, ``fields`` and ``end``.
    """

    def __init__(self, store: Callable[[Print], None], watch: Watch | None, line_no: int = 0) -> None:
        self.text = RunText()
        self.samples = Collector(watch)
        self.prints = PrintAssembler(self._find_room)
        self._weights: dict[str, int] = {}  # of the maps that are kept
        self._held = 0  # their sum, with the weight of the marks
        self.seen = set[str]()
        self.printed = ""
        self.line_no = line_no
        self._store = store
        self._section = ""
        self._lost = self._total_lost = 0
        self._has_full_map = self._has_prefixed_rows = False
        self._warnings = Counter[str]()

    @property
    def is_ended(self) -> bool:
        """Whether the report has begun."""
        return "end" in self.seen

    def warn(self, reason: str, kind: str = "damage") -> None:
        """Note damage and its line; after a hundred notes of one kind, only that there is more."""
        self._warnings[kind] += 1
        if self._warnings[kind] <= _WARNINGS:
            self.text.warnings.append(f"line {self.line_no}: {reason}"[:200])
        elif self._warnings[kind] == _WARNINGS + 1:
            self.text.warnings.append(f"line {self.line_no}: more of this, not listed")

    def keep_mark(self, dialect: str, line: str) -> None:
        """Keep a line that is a sign of a dialect."""
        marks = self.text.marks.setdefault(dialect, [])
        if self._held + weigh(line) > BUDGET:
            self.warn(f"the text is too large; further lines of the dialect {dialect} are left out", "marks")
        elif len(marks) < _MARKS:
            self._held += weigh(line)
            marks.append(line)
        elif len(marks) == _MARKS:
            self.warn(f"more than {_MARKS} lines of the dialect {dialect}; the rest is left out")

    def keep_maps(self) -> None:
        """Keep the maps that are complete at this line; of a map that is printed again, the last whole print."""
        for note in self.prints.pop_notes():
            self.warn(note)
        for printed in self.prints.pop_prints():
            if self._has_prefixed_rows and not _has_rows(printed.map):
                self.warn(f"the rows of @{printed.name} cannot be read; it is left out")
            else:
                self.keep_print(printed)
            self._has_prefixed_rows = False

    def keep_print(self, printed: Print) -> None:
        """Keep a print of a map, unless an earlier one of the same name is more complete."""
        self._store(printed)
        name, is_new = printed.name, printed.name not in self.text.maps
        if not printed.whole:
            self.warn(f"the text ends inside @{name}")
        weight = printed.weight or _weigh_all(printed.map.entries)
        if is_new and len(self.text.maps) >= _MAPS:
            self.warn(f"more than {_MAPS} maps; @{name} is left out")
        elif weight > self._find_room(name):
            self.warn(f"the maps would take more than {BUDGET:,} bytes; @{name} is left out")
        elif printed.whole or is_new:
            self.text.maps[name] = printed.map
            self._held += weight - self._weights.get(name, 0)
            self._weights[name] = weight

    def _find_room(self, name: str) -> int:
        """Return how much a map may weigh, which replaces an earlier print of it."""
        return BUDGET - self._held + self._weights.get(name, 0)

    def finish(self) -> set[str]:
        """Complete the text of the run.

        :return: the kinds of its contents: those of recurring lines, and ``map``.
        """
        self.prints.end()
        self.keep_maps()
        self.text.intervals = {name: summary.freeze() for name, summary in self.samples.intervals.items()}
        self.text.slow = {name: summary.freeze() for name, summary in self.samples.slow.items()}
        return self.samples.kinds | ({"map"} if self.text.maps else set())

    def judge(self, quality: Quality) -> Quality:
        """Add to the quality of a result what the run's lines say."""
        return replace(
            quality,
            lost_events=max(self._lost, self._total_lost),
            full_maps=quality.full_maps or (("?",) if self._has_full_map else ()),
            warnings=quality.warnings + tuple(self.text.warnings),
        )

    @property
    def takes_json(self) -> bool:
        """Whether a line of JSON is bpftrace's own: no text output of it came before."""
        return self.has_json or not (self.text.marks or self.text.maps or self.samples.kinds)

    @property
    def has_json(self) -> bool:
        """Whether the run is JSON, so that a line that looks like a map is only text."""
        return isinstance(self.prints, _NoPrints)

    def begin_json(self) -> None:
        """Note that the run is JSON."""
        if not self.has_json:
            self.text.marks["json"], self.prints = [], _NoPrints()

    def keep_printed(self, rest: str) -> None:
        """Keep the beginning of a line that the script printed, unless it is too long."""
        self.printed = rest if len(rest) <= LONG else ""
        if len(rest) > LONG:
            self.warn(f"the script printed more than {LONG} characters without a line end; they are left out")

    def handle(self, table: Iterable[LineKind], line: str) -> bool:
        """Handle a line by all rows of a table that match it; return whether there is one."""
        matches = [(kind, match) for kind in table if (match := kind.find(line))]
        for kind, match in matches:
            kind.handle(self, match)
        return bool(matches)

    def add_fields(self, match: re.Match[str]) -> None:
        """Keep the fields of the metadata header in a line; the first of each name counts."""
        for field in _HEADER.finditer(match.string):
            name = "Warmup packets" if field[1] == "Warmup" else field[1]
            self.text.header.setdefault(name, field[2].strip())
            self.seen.add("fields")

    def end_maps(self, _: re.Match[str]) -> None:
        """End the last map as a blank line does: the text that follows is not part of it."""
        self.prints.feed("")

    def begin_section(self, section: re.Match[str]) -> None:
        """Begin a section of the report: ``--- IPTABLES MODE ---``."""
        self._section = section[1].lower()
        self._open_section(self._section)

    def _open_section(self, name: str) -> dict[str, float]:
        """Return a section of the report, unless there are too many: then one that is not kept."""
        sections = self.text.report
        if len(sections) >= _SECTIONS and name not in sections:
            self.warn(f"more than {_SECTIONS} sections in the report; {name!r} is left out")
            return {}
        return sections.setdefault(name, {})

    def drop_section(self, section: re.Match[str]) -> None:
        """Note that an engine has no section in the report: ``No iptables traffic observed.``."""
        self._section = section[1].lower()
        self.text.report.pop(self._section, None)

    def begin_empty_summary(self, _: re.Match[str]) -> None:
        """Begin the summary of a run without a packet."""
        self._section = ""
        self._open_section("summary")

    def add_figure(self, figure: re.Match[str]) -> None:
        """Keep a figure of the report."""
        if not figure[2]:
            self.note_unreadable(figure)
            return
        section = "summary" if figure[1] in _SUMMARY_FIGURES else self._section
        value = float(figure[2]) if "." in figure[2] else int(figure[2])
        self._open_section(section)[_FIGURES[figure[1]]] = value

    def add_lost(self, lost: re.Match[str]) -> None:
        """Count events that bpftrace lost."""
        self._lost += int(lost[1])

    def keep_total_lost(self, lost: re.Match[str]) -> None:
        """Keep the number of lost events that bpftrace prints at its end."""
        self._total_lost = max(self._total_lost, int(lost[1]))

    def note_full_map(self, _: re.Match[str]) -> None:
        """Note that a map was full."""
        self._has_full_map = True

    def note_prefixed_row(self, row: re.Match[str]) -> None:
        """Note a row of a histogram behind a prefix that the other lines lack."""
        self._has_prefixed_rows = True
        self.note_unreadable(row)

    def note_bcc(self, _: re.Match[str]) -> None:
        """Note the head of a histogram that another program drew."""
        self.warn("a histogram of bcc's tools; only those of bpftrace are read")

    def note_message(self, message: re.Match[str]) -> None:
        """Keep a message of bpftrace's as a warning."""
        self.warn(message.string, "message")

    def note_unreadable(self, match: re.Match[str]) -> None:
        """Note that a line cannot be read."""
        self.warn(f"unreadable: {match.string!r}")


class _NoPrints(PrintAssembler):
    """Stands in for the assembler in a run whose maps come as JSON: all text is only text."""

    def feed(self, _: str) -> bool:
        """Drop a line."""
        return True


def _has_rows(content: Map) -> bool:
    """Return whether a map has histograms with rows, or other values."""
    return content.kind != "hist" or any(entry.value["buckets"] for entry in content.entries)


class LineKind(NamedTuple):
    """One row of a table: :meth:`handle` takes the match that :meth:`find` finds in a line."""

    find: Callable[[str], re.Match[str] | None]
    handle: Callable[[OpenRun, re.Match[str]], None]


FACTS = (
    LineKind(lambda line: _HEADER.search(line) if ": " in line else None, OpenRun.add_fields),
    LineKind(re.compile(r"--- (\w{1,50}) MODE ---").match, OpenRun.begin_section),
    LineKind(re.compile(r"No (\w{1,50}) traffic observed").match, OpenRun.drop_section),
    # What our own logs hold after the report, in which maps end.
    LineKind(re.compile(f"{OVERHEAD_MARK}|{TIMES_MARK}").match, OpenRun.end_maps),
    LineKind(re.compile(r"No packets (captured|were traced)").match, OpenRun.begin_empty_summary),
    LineKind(
        re.compile(
            rf" *({'|'.join(_FIGURES)})(?:: *(\d{{1,18}}(?:\.\d{{1,9}})?)(?: us| µs| instructions)?\s*\Z)?"
        ).match,
        OpenRun.add_figure,
    ),
)
"""Lines of the metadata header and of a report. They show no dialect and belong to no map."""
MESSAGES = (
    LineKind(re.compile(r"Lost (\d{1,18}) events").match, OpenRun.add_lost),
    LineKind(re.compile(r"WARNING: Total lost event count: (\d{1,18})").match, OpenRun.keep_total_lost),
    LineKind(re.compile(r"WARNING: (Map full|Failed to map_update_elem)").search, OpenRun.note_full_map),
    LineKind(re.compile(rf".+?{ROW.decode()}").match, OpenRun.note_prefixed_row),
    LineKind(re.compile(r": count +distribution").search, OpenRun.note_bcc),
    LineKind(re.compile(r"(\S+: )?(WARNING|ERROR): |Lost \d{1,18} events").match, OpenRun.note_message),
    LineKind(re.compile(rf"(?!\S+: (WARNING|ERROR): )({ROW_START}|@\w+\b)").match, OpenRun.note_unreadable),
)
"""Lines that belong to no map: messages of bpftrace's, and damaged rows and entries of maps."""


def _weigh_all(value: Any) -> int:
    """Weigh a map that JSON brought: each of its values."""
    if isinstance(value, dict | list | tuple):
        items = value.values() if isinstance(value, dict) else value
        return _VALUE + sum(map(_weigh_all, items))
    if isinstance(value, Entry):
        return weigh("") + _weigh_all(value.key) + _weigh_all(value.value)
    return weigh(value) if isinstance(value, str) else _VALUE
