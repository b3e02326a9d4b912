"""Sums of the lines that the old scripts print again and again: slow calls, interval blocks, table rows."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from kproxylat.results import Sample, Samples

WORST = 10
"""The number of lines with the greatest values that are kept."""
_ENGINES = 100
_FORMS = {
    "slow": r"{time} SLOW {engine}: {number} us \(tid={number}\)",
    "block": r"  \[{engine}\] Count: {number}, Min: {number} us, Avg: {number} us, Max: {number} us",
    "time": r"{time} Statistics:",
    "row": r"{time} *\| *{number} *\| *(?:{number} *us|-) *\| *(?:{number} *us|-) *",
}
_SLOW, _BLOCK, _BLOCK_TIME, _ROW = (
    re.compile(form.format(time=r"(\d\d:\d\d:\d\d)", engine=r"(\w{1,50})", number=r"(\d{1,18})").encode() + rb"\r?\Z")
    for form in _FORMS.values()
)
_DAMAGED = re.compile(rb"\d\d:\d\d:\d\d (?:SLOW\b|Stat)|  \[\w+\] Cou|\d\d:\d\d:\d\d +\| ")
_ANY = "|".join(_FORMS.values()).format(time=r"\d\d:\d\d:\d\d", engine=r"\w{1,50}", number=r"\d{1,18}").encode()
_QUIET = rb"(?:  No packets traced yet[\w .?]*)?"
"""A quiet line: a blank one, or what stands in place of an interval's blocks if there was no packet."""
_BLANK_LINE = re.compile(rb"^\n", re.MULTILINE)
_WHOLE_TEXT = re.compile(rb"(?:(?:%s|%s)\n)*+" % (_ANY, _QUIET))
_VALUES = {
    "slow": rb" SLOW %s: (\d+)",
    "block": rb"\[%s\] Count: [^M]*Min[^M]*Max: (\d+)",
    "row": rb"\|[^|]*\|[^|]*\|%s *(\d*)",
}
"""The values of an engine in lines that are known to be recurring."""
_EVENTS = re.compile(rb"\| *(\d+) *\|")


class RecurringLine(NamedTuple):
    """One recurring line.

    :param kind: slow, time (the first line of an interval's blocks), block or row.
    :param engine: the engine that a slow line or a block names, else ``""``.
    """

    sample: Sample
    kind: str
    engine: str


Watch = Callable[[RecurringLine], None]


class Summary:
    """A :class:`Samples` that grows line by line."""

    def __init__(self) -> None:
        self.lines = self.total = 0
        self.first: Sample | None = None
        self.last = Sample("")
        self._worst: list[tuple[int, int, Sample]] = []

    @property
    def limit(self) -> int:
        """The value that a line must exceed to be among the worst."""
        return self._worst[0][0] if len(self._worst) == WORST else -1

    def add(self, sample: Sample, total: int, lines: int = 1) -> None:
        """Add lines.

        :param sample: the last of them; the only one that may be among the first or the worst lines.
        :param total: the number of events in all lines up to this one.
        :param lines: how many lines these are.
        """
        self.lines += lines
        self.total = total
        self.first = self.first or sample
        self.last = sample
        if sample.max is not None and sample.max > self.limit:
            push = heapq.heappushpop if len(self._worst) == WORST else heapq.heappush
            push(self._worst, (sample.max, -self.lines, sample))

    def freeze(self) -> Samples:
        """Return the sums of all lines so far; without a line, they begin and end with an empty sample."""
        worst = tuple(sample for _, _, sample in sorted(self._worst, key=lambda entry: entry[:2], reverse=True))
        return Samples(self.lines, self.total, self.first or Sample(""), self.last, worst)


class Collector:
    """The recurring lines of one run.

    :param watch: called with each line of the kinds slow, block and row; lines are then added one by one.
    """

    def __init__(self, watch: Watch | None = None) -> None:
        self._watch = watch
        self.slow: dict[str, Summary] = {}
        self.intervals: dict[str, Summary] = {}
        self.kinds: set[str] = set()
        self._time = ""

    def read(self, line: bytes) -> RecurringLine | None:
        """Read one line, given without its end, without adding it; return None if it is not recurring."""
        return _read_line(line, self._time)

    def add(self, line: RecurringLine) -> bool:
        """Add one line; return False if it names one engine more than are kept."""
        if line.kind == "time":
            self._time = line.sample.time
        else:
            summaries = self._summaries(line.kind)
            if len(summaries) >= _ENGINES and line.engine not in summaries:
                return False
            summary = summaries.setdefault(line.engine, Summary())
            events = 1 if line.kind == "slow" else line.sample.count or 0
            summary.add(line.sample, events if line.kind == "block" else summary.total + events)
            if self._watch:
                self._watch(line)
        self.kinds.add(line.kind)
        return True

    def add_all(self, text: bytes) -> bool:
        """Add many lines at once, which takes a tenth of the time of adding them one by one.

        :param text: whole lines.
        :return: False if nothing was added, because a line is neither recurring nor quiet, is the first of its engine,
            or may be among the worst.
        """
        if self._watch or not _WHOLE_TEXT.fullmatch(text):
            return False
        lines = list[tuple[str, str, int]]()
        for kind, pattern in _VALUES.items():
            for engine, summary in self._summaries(kind).items():
                values = re.findall(pattern % engine.encode(), text)
                if max(map(int, filter(None, values)), default=-1) > summary.limit:
                    return False
                lines += [(kind, engine, len(values))] * bool(values)
        recurring = text.count(b"(") + text.count(b"[") + text.count(b"|") // 3  # slow lines, blocks, rows
        if sum(count for _, _, count in lines) != recurring:
            return False
        for kind, engine, count in lines:
            mark = {"slow": f" SLOW {engine}: ", "block": f"[{engine}] Count: ", "row": "|"}[kind]
            at = text.rfind(mark.encode())
            last = text[text.rfind(b"\n", 0, at) + 1 : text.find(b"\n", at)]
            line = _read_line(last, _find_time(text[:at]) or self._time)
            if line:
                summary = self._summaries(kind)[engine]
                events = sum(map(int, _EVENTS.findall(text))) if kind == "row" else count
                summary.add(line.sample, line.sample.count or 0 if kind == "block" else summary.total + events, count)
        if time := _find_time(text):
            self._time = time
            self.kinds.add("time")
        return True

    def _summaries(self, kind: str) -> dict[str, Summary]:
        return self.slow if kind == "slow" else self.intervals


def is_damaged(line: bytes) -> bool:
    """Return whether a line that is not recurring begins like one."""
    return bool(_DAMAGED.match(line))


def _read_line(line: bytes, time: str) -> RecurringLine | None:
    if slow := _SLOW.match(line):
        sample = Sample(slow[1].decode(), max=int(slow[3]), tid=int(slow[4]))
        return RecurringLine(sample, "slow", slow[2].decode())
    if block := _BLOCK.match(line):
        count, *figures = map(int, block.groups()[1:])
        return RecurringLine(Sample(time, count, *figures if count else ()), "block", block[1].decode())
    if block_time := _BLOCK_TIME.match(line):
        return RecurringLine(Sample(block_time[1].decode()), "time", "")
    if row := _ROW.match(line):
        mean, greatest = (int(cell) if cell and row[2] != b"0" else None for cell in row.groups()[2:])
        return RecurringLine(Sample(row[1].decode(), int(row[2]), None, mean, greatest), "row", "")
    return None


def _find_time(text: bytes) -> str:
    """Find the time of the last block in a text; return "" if there is none."""
    end = text.rfind(b" Statistics:")
    return text[end - 8 : end].decode() if end >= 0 else ""


def find_quiet_lines(text: bytes) -> list[bytes]:
    """Find the last line that says that no packet was traced, and up to four blank lines after it; more say no more."""
    at = text.rfind(b"\n  No packets") + 1
    text = text[at:]
    silent = text[: text.find(b"\n")] if text.startswith(b"  No packets") else b""
    return [silent] * bool(silent) + [b""] * len(list(islice(_BLANK_LINE.finditer(text), 4)))
