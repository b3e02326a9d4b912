"""Sums up the lines that the old scripts print again and again: slow calls, interval blocks, table rows.

A log of 200 MB has millions of them, so whole pieces of it are taken at once: with its digits and blanks taken out a
line of a known form is a constant, and if counting these constants explains every byte, the piece holds nothing else.
Lines that cost the fast path nothing are among the forms, too: blank ones, lost events, intervals without a packet.
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
    "time": b"::Statistics:\n",
    "block iptables": b"[iptables]Count:,Min:us,Avg:us,Max:us\n",
    "block nftables": b"[nftables]Count:,Min:us,Avg:us,Max:us\n",
    "slow nftables": b"::SLOWnftables:us(tid=)\n",
    "row": b"::||us|us\n",
    "idle": b"::||-|-\n",
    "lost": b"Lostevents\n",
}
_WHOLE = tuple(
    (("blank", "time", *names), b"\n" + b"".join(_FORMS[name] for name in ("time", *names)))
    for names in (("block iptables", "block nftables"), ("block iptables",), ("block nftables",))
)
_NOTHING = b"Nopacketstracedyet"
_BLANKS_AND_DIGITS = b" \r0123456789"
_COLOUR = re.compile(rb"\x1b\[[\d;]*[A-Za-z]")


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

    def add_piece(self, piece: bytes) -> dict[str, int]:
        """Take whole lines at once, if each of them has one of the forms or is blank.

        :return: how many lines of each form they were; none if they have to be read one by one.
        """
        counts = _count_forms(piece.translate(None, _BLANKS_AND_DIGITS))
        if not counts or not self._add_rows(piece, counts["row"], counts["idle"]):
            return {}
        for engine in ENGINES:
            if counts[f"slow {engine}"]:
                self._add_slow(piece, engine, counts[f"slow {engine}"])
            if counts[f"block {engine}"]:
                self._add_blocks(piece, engine, counts[f"block {engine}"])
        if counts["time"]:
            self._time = _time_before(piece, len(piece))
        return counts

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

    def _add_rows(self, piece: bytes, full: int, idle: int) -> bool:
        """Take rows, if there are any, so many with packets and so many without; return False if they are damaged."""
        count = full + idle
        if not count:
            return True
        numbers = _read_counts(piece)
        if len(numbers) != count:
            return False
        summary = self.intervals.setdefault("", Summary())
        before, total = summary.lines, summary.total + sum(numbers)
        for at in (piece.find(b"|"), piece.rfind(b"|")):
            for sample, _, _ in read_sample(_line_at(piece, at), ""):
                summary.add(sample, total)
        between = piece[(at := piece.find(b"us")) : piece.find(b"| ", at) + 2]
        literal = full and piece.count(between) == full  # which is found several times faster
        over = re.compile((re.escape(between) if literal else rb"us *\| *") + _over(summary.limit) + rb" *us")
        for match in over.finditer(piece):
            for sample, _, _ in read_sample(_line_at(piece, match.start()), ""):
                summary.rank(sample)
        summary.lines = before + count
        return True


def _read_counts(piece: bytes) -> list[int]:
    """Read the packets of each row; none if they are no numbers.

    The old scripts printed them in columns, which can be cut out at once; this takes half the time of splitting rows.
    """
    width, start = piece.find(b"\n") + 1, piece.find(b"|") + 1
    rows = len(piece) // width
    if len(piece) == rows * width and all(
        piece[at::width] == sign * rows for at, sign in ((width - 1, b"\n"), (start - 1, b"|"))
    ):
        columns = [piece[at::width] for at in range(start, piece.find(b"|", start))]
        columns = [each for each in columns if not each.isspace()] + [b" " * rows]
        field = bytearray(rows * len(columns))
        for at, column in enumerate(columns):
            field[at :: len(columns)] = column
        fields = bytes(field).split()
    else:
        fields = piece.split(b"|")[1::3]
    try:
        return list(map(int, fields))
    except ValueError:
        return []


def strip_colours(piece: bytes) -> bytes:
    """Take colours out, a kind of them at a time: there are few kinds, and a log of them has one on every line."""
    for _ in range(20):
        found = _COLOUR.search(piece) if b"\x1b" in piece else None
        if not found:
            return piece
        piece = piece.replace(found[0], b"")
    return _COLOUR.sub(b"", piece)


def find_odd(piece: bytes) -> list[int]:
    """Find the whole lines, numbered from 0, that have none of the forms and are not blank."""
    rest = piece.translate(None, _BLANKS_AND_DIGITS)
    for form in (*_FORMS.values(), *_find_nothing(rest)):
        rest = rest.replace(form, b"\n")
    found, line, begin = [], 0, 0
    for match in re.finditer(rb"[^\n]+\n", rest):
        line += rest.count(b"\n", begin, match.start())
        begin = match.start()
        found.append(line)
    return found


def _find_nothing(bare: bytes) -> list[bytes]:
    """Find the form of a block without a packet: what it says after its first words differs from script to script."""
    at = (b"\n" + bare).find(b"\n" + _NOTHING)
    return [bare[at : bare.find(b"\n", at) + 1]] if at >= 0 else []


def _count_forms(bare: bytes) -> dict[str, int]:
    """Count the lines of each form; none if there is anything else. The commonest are tried first."""
    counts = dict.fromkeys((*_FORMS, "nothing", "blank"), 0)
    rows = len(bare) // len(_FORMS["row"])
    if bare == _FORMS["row"] * rows:
        return counts | {"row": rows}
    counts["slow iptables"] = bare.count(_FORMS["slow iptables"])
    unknown = len(bare) - counts["slow iptables"] * len(_FORMS["slow iptables"])
    for names, form in _WHOLE:
        blocks = bare.count(form) if unknown else 0
        if blocks * len(form) == unknown:
            return counts | dict.fromkeys(names, blocks)
    lines = bare.count(b"\n") - counts["slow iptables"]
    others = [*list(_FORMS.items())[1:], *(("nothing", form) for form in _find_nothing(bare))]
    for name, form in others:
        if unknown == lines:  # what is left are line ends
            break
        counts[name] = bare.count(form)
        unknown -= counts[name] * len(form)
        lines -= counts[name]
    return counts | {"blank": lines} if unknown == lines else {}


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
