"""Sums up the lines that the old scripts print again and again: slow calls, interval blocks, table rows.

A log of 200 MB has millions of them, so whole pieces of it are taken at once: with its digits and blanks taken out a
line of a known form is a constant, and if counting these constants explains every byte, the piece holds nothing else.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator

from kproxylat.model import Sample, Samples

ENGINES = ("iptables", "nftables")
WORST = 10
_NAMES = 100
_SLOW = re.compile(rb"(\d\d:\d\d:\d\d) SLOW (\w+): (\d{1,18}) us \(tid=(\d{1,18})\)\r?\Z")
_BLOCK = re.compile(rb"  \[(\w+)\] Count: (\d{1,18}), Min: (\d{1,18}) us, Avg: (\d{1,18}) us, Max: (\d{1,18}) us\r?\Z")
_TIME = re.compile(rb"(\d\d:\d\d:\d\d) Statistics:\r?\Z")
_ROW = re.compile(
    rb"(\d\d:\d\d:\d\d) *\| *(\d{1,18}) *\| *(?:(\d{1,18}) *us|-) *\| *(?:(\d{1,18}) *us|-) *\r?\Z",
)
_NEARLY = re.compile(rb"\d\d:\d\d:\d\d (?:SLOW\b|Stat)|  \[\w+\] Cou|\d\d:\d\d:\d\d +\| ")
_FORMS = {
    "slow iptables": b"::SLOWiptables:us(tid=)\n",
    "time": b"\n::Statistics:\n",  # with the blank line before it
    "block iptables": b"[iptables]Count:,Min:us,Avg:us,Max:us\n",
    "block nftables": b"[nftables]Count:,Min:us,Avg:us,Max:us\n",
    "slow nftables": b"::SLOWnftables:us(tid=)\n",
    "row": b"::||us|us\n",
    "idle": b"::||-|-\n",
}
_WHOLE = tuple(
    (names, b"".join(_FORMS[name] for name in names))
    for names in (("time", "block iptables", "block nftables"), ("time", "block iptables"), ("time", "block nftables"))
)
_BLANKS, _DIGITS = b" \r", b"0123456789"


class Summary:
    """The growing form of :class:`Samples`."""

    def __init__(self) -> None:
        self.lines = self.total = 0
        self.first: Sample | None = None
        self.last: Sample | None = None
        self._worst: list[tuple[int, int, Sample]] = []
        self._ranked = 0

    @property
    def limit(self) -> int:
        """What a value must exceed to be among the worst."""
        return self._worst[0][0] if len(self._worst) == WORST else -1

    def add(self, sample: Sample, total: int) -> None:
        """Add one line; ``total`` is what the sum over all is from now on."""
        self.lines += 1
        self.total = total
        self.first = self.first or sample
        self.last = sample

    def rank(self, sample: Sample) -> None:
        """Keep a sample if it is one of the worst."""
        self._ranked += 1
        if sample.max is not None and sample.max > self.limit:
            push = heapq.heappushpop if len(self._worst) == WORST else heapq.heappush
            push(self._worst, (sample.max, -self._ranked, sample))

    def freeze(self) -> Samples:
        """Return what has been summed up; there is at least one line."""
        first, last = self.first or Sample(""), self.last or Sample("")
        worst = tuple(sample for _, _, sample in sorted(self._worst, key=lambda each: each[:2], reverse=True))
        return Samples(self.lines, self.total, first, last, worst)


class Collector:
    """Takes the recurring lines of one run."""

    def __init__(self) -> None:
        self.slow: dict[str, Summary] = {}
        self.intervals: dict[str, Summary] = {}
        self._time = ""

    def add(self, line: bytes) -> bool | None:
        """Take one line, given without its end.

        :return: whether it was one of these; None if it is damaged, or of more engines than there can be.
        """
        for sample, kind, engine in read_sample(line, self._time):
            known = self.slow if kind == "slow" else self.intervals
            if kind == "time":
                self._time = sample.time
            elif len(known) >= _NAMES and engine not in known:
                return None
            elif kind == "slow":
                summary = self.slow.setdefault(engine, Summary())
                summary.add(sample, summary.lines + 1)
                summary.rank(sample)
            else:
                summary = self.intervals.setdefault(engine, Summary())
                count = sample.count or 0
                summary.add(sample, count if kind == "block" else summary.total + count)
                summary.rank(sample)
            return True
        return None if _NEARLY.match(line) else False

    def add_piece(self, piece: bytes) -> int:
        """Take whole lines at once, if each of them is one of these or blank.

        :return: how many lines they were; 0 if they have to be read one by one.
        """
        dense = piece.translate(None, _BLANKS)
        counts = _count_forms(dense.translate(None, _DIGITS))
        if not counts:
            return 0
        for engine in ENGINES:
            if counts[f"slow {engine}"]:
                self._add_slow(piece, engine, counts[f"slow {engine}"])
            if counts[f"block {engine}"]:
                self._add_blocks(piece, engine, counts[f"block {engine}"])
        if counts["row"] or counts["idle"]:
            self._add_rows(dense, counts["row"] + counts["idle"])
        if counts["time"]:
            self._time = _time_before(piece, len(piece))
        return sum(counts.values()) + counts["time"]

    def _add_slow(self, piece: bytes, engine: str, count: int) -> None:
        summary = self.slow.setdefault(engine, Summary())
        mark = f" SLOW {engine}: ".encode()
        first, last = (_line_at(piece, at) for at in (piece.find(mark), piece.rfind(mark)))
        before = summary.lines
        for line in (first, last):
            for sample, _, _ in read_sample(line, ""):
                summary.add(sample, before + count)
        over = re.compile(mark[1:] + _over(summary.limit) + rb" us \(tid=(\d{1,18})\)")
        for match in over.finditer(piece):
            time = piece[match.start() - 9 : match.start() - 1].decode()
            summary.rank(Sample(time, max=int(match[1]), tid=int(match[2])))
        summary.lines = before + count

    def _add_blocks(self, piece: bytes, engine: str, count: int) -> None:
        summary = self.intervals.setdefault(engine, Summary())
        mark = f"  [{engine}] Count: ".encode()
        before = summary.lines
        for at in (piece.find(mark), piece.rfind(mark)):
            time = _time_before(piece, at) or self._time
            for sample, _, _ in read_sample(_line_at(piece, at), time):
                summary.add(sample, sample.count or 0)
        summary.lines = before + count
        if (summary.last.max or 0 if summary.last else 0) <= summary.limit:
            return  # the blocks count from the start, so that their maximum never falls
        over = re.compile(re.escape(mark) + rb"[^M]*+Min[^M]*+Max: " + _over(summary.limit) + rb" us")
        for match in over.finditer(piece):
            time = _time_before(piece, match.start()) or self._time
            for sample, _, _ in read_sample(_line_at(piece, match.start()), time):
                summary.rank(sample)
        summary.lines = before + count

    def _add_rows(self, piece: bytes, count: int) -> None:
        """Take rows without their blanks."""
        summary = self.intervals.setdefault("", Summary())
        before, total = summary.lines, summary.total + sum(map(int, piece.split(b"|")[1::3]))
        for at in (piece.find(b"|"), piece.rfind(b"|")):
            for sample, _, _ in read_sample(_line_at(piece, at), ""):
                summary.add(sample, total)
        over = re.compile(rb"us\|" + _over(summary.limit) + rb"us")
        for match in over.finditer(piece):
            for sample, _, _ in read_sample(_line_at(piece, match.start()), ""):
                summary.rank(sample)
        summary.lines = before + count


def _count_forms(bare: bytes) -> dict[str, int]:
    """Count the lines of each form; none if there is anything else. The commonest are tried first."""
    counts = dict.fromkeys(_FORMS, 0)
    if bare.startswith(b"::|") and bare.count(_FORMS["row"]) * len(_FORMS["row"]) == len(bare):
        return counts | {"row": len(bare) // len(_FORMS["row"])}
    counts["slow iptables"] = bare.count(_FORMS["slow iptables"])
    unknown = len(bare) - counts["slow iptables"] * len(_FORMS["slow iptables"])
    for names, form in _WHOLE:
        blocks = bare.count(form) if unknown else 0
        if blocks * len(form) == unknown:
            return counts | dict.fromkeys(names, blocks)
    for name, form in list(_FORMS.items())[1:]:
        counts[name] = bare.count(form) if unknown else 0
        unknown -= counts[name] * len(form)
    return {} if unknown else counts


def read_sample(line: bytes, time: str) -> Iterator[tuple[Sample, str, str]]:
    """Read a line if it is one of these: the sample, its kind (slow, time, block, row) and its engine.

    :param time: the time of the block that the line stands in.
    """
    if slow := _SLOW.match(line):
        yield Sample(slow[1].decode(), max=int(slow[3]), tid=int(slow[4])), "slow", slow[2].decode()
    elif block := _BLOCK.match(line):
        count, low, mean, high = map(int, block.groups()[1:])
        yield Sample(time, count, low, mean, high), "block", block[1].decode()
    elif begin := _TIME.match(line):
        yield Sample(begin[1].decode()), "time", ""
    elif row := _ROW.match(line):
        average, most = (int(each) if each and row[2] != b"0" else None for each in row.groups()[2:])
        yield Sample(row[1].decode(), int(row[2]), None, average, most), "row", ""


def _line_at(piece: bytes, at: int) -> bytes:
    end = piece.find(b"\n", at)
    return piece[piece.rfind(b"\n", 0, at) + 1 : end if end >= 0 else len(piece)]


def _time_before(piece: bytes, at: int) -> str:
    found = piece.rfind(b" Statistics:", 0, at)
    return piece[found - 8 : found].decode() if found >= 8 else ""


def _over(limit: int) -> bytes:
    """A group for an integer greater than ``limit``, as printf writes it; it fails at the first digits if it can."""
    if limit < 0:
        return rb"(\d{1,18})"
    digits = str(limit)
    rest = len(digits) - 1
    same = [
        f"{digits[:at]}[{int(digit) + 1}-9]" + (rf"\d{{{rest - at}}}" if rest > at else "")
        for at, digit in enumerate(digits)
        if digit != "9"
    ]
    longer = rf"[1-9]\d{{{len(digits)}}}"
    return rf"(?={'|'.join([*same, longer])})(\d{{1,18}})".encode()
