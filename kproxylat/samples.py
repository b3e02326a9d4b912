"""Sums up the lines that the old scripts print again and again: slow calls, interval blocks, table rows.

A log of 200 MB has millions of them, so whole pieces of it are taken at once: with its digits taken out (of a row the
blanks, too) a line of a known form is a constant, and if counting these constants explains every byte, the piece holds
nothing else. So a digit that lacks is noticed only where its number is needed: in the first, last and worst lines and
in a row's packets and maximum. Blank lines, lost events and intervals without a packet are among the forms: they cost
no speed.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import pairwise

from kproxylat.model import Sample, Samples

ENGINES = ("iptables", "nftables")
WORST = 10
_MANY = 10_000
_NAMES = 100
_SLOW = re.compile(rb"(\d\d:\d\d:\d\d) SLOW (\w+): (\d{1,18}) us \(tid=(\d{1,18})\)\r?\Z")
_BLOCK = re.compile(rb"  \[(\w+)\] Count: (\d{1,18}), Min: (\d{1,18}) us, Avg: (\d{1,18}) us, Max: (\d{1,18}) us\r?\Z")
_TIME = re.compile(rb"(\d\d:\d\d:\d\d) Statistics:\r?\Z")
_ROW = re.compile(
    rb"(\d\d:\d\d:\d\d) *\| *(\d{1,18}) *\| *(?:(\d{1,18}) *us|-) *\| *(?:(\d{1,18}) *us|-) *\r?\Z",
)
_ROWS = re.compile(rb"(?m)^\d\d:\d\d:\d\d *\| *(\d{1,18})(?: *\| *(?:\d{1,18} *us|-)){2} *\r?$")
_NEARLY = re.compile(rb"\d\d:\d\d:\d\d (?:SLOW\b|Stat)|  \[\w+\] Cou|\d\d:\d\d:\d\d +\| ")
_FORMS = {
    b":: SLOW iptables:  us (tid=)": "slow iptables",
    b":: SLOW nftables:  us (tid=)": "slow nftables",
    b":: Statistics:": "time",
    b"  [iptables] Count: , Min:  us, Avg:  us, Max:  us": "block iptables",
    b"  [nftables] Count: , Min:  us, Avg:  us, Max:  us": "block nftables",
    b"Lost  events": "lost",
    b"": "blank",
}
_LINES = {name: form + b"\n" for form, name in _FORMS.items()}
_FULL_ROW = b"::||us|us\n"
_ROW_FORM = re.compile(rb":: *\| *\| *(?:(us) *\| *us|- *\| *-) *\Z")
_NOTHING = b"  No packets traced yet"
_DIGITS = b"\r0123456789"
_IS_DIGIT = bytes(15 * (each in b"0123456789") for each in range(256))
_EQUAL, _GREATER = (
    [bytes(15 * (each in digits) for each in range(256)) for digits in kinds]
    for kinds in ([b"%d" % digit for digit in range(10)], [b"0123456789"[digit + 1 :] for digit in range(10)])
)
"""For each digit, which characters are it, or a greater one: 15 (as many bits as a digit has) or 0."""
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

    @property
    def greatest(self) -> int | None:
        """The worst value."""
        return max(self._worst)[0] if self._worst else None

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
    """Takes the recurring lines of one run.

    :param watch: called with each sample that is added by itself, its kind and its engine.
    """

    def __init__(self, watch: Callable[[Sample, str, str], None] | None = None) -> None:
        self._watch = watch
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
            if self._watch and kind != "time":
                self._watch(sample, kind, engine)
            return True
        return None if _NEARLY.match(line) else False

    def add_piece(self, piece: bytes, counts: Mapping[str, int]) -> bool:
        """Take whole lines at once.

        :param counts: how many lines of each form they are, of :func:`count_forms`.
        :return: False if they have to be read one by one.
        """
        if not self._add_rows(piece, counts["row"], counts["idle"]):
            return False
        for engine in ENGINES:
            if counts[f"slow {engine}"]:
                self._add_slow(piece, engine, counts[f"slow {engine}"])
            if counts[f"block {engine}"]:
                self._add_blocks(piece, engine, counts[f"block {engine}"])
        if counts["time"]:
            self._time = _time_before(piece, len(piece))
        return True

    def _add_slow(self, piece: bytes, engine: str, count: int) -> None:
        summary = self.slow.setdefault(engine, Summary())
        mark = f" SLOW {engine}: ".encode()
        before = summary.lines
        for at in (piece.find(mark), piece.rfind(mark)):
            for sample, _, _ in read_sample(_line_at(piece, at), ""):
                summary.add(sample, before + count)
        summary.lines = before + count
        over = rf"W {engine}: ".encode() + _over(summary.limit) + rb" us \(tid="
        self._rank(summary, piece, _find(re.compile(over), piece))

    def _add_blocks(self, piece: bytes, engine: str, count: int) -> None:
        summary = self.intervals.setdefault(engine, Summary())
        mark = f"  [{engine}] Count: ".encode()
        before = summary.lines
        for at in (piece.find(mark), piece.rfind(mark)):
            for sample, _, _ in read_sample(_line_at(piece, at), _time_before(piece, at) or self._time):
                summary.add(sample, sample.count or 0)
        summary.lines = before + count
        # The blocks count from the start: their maximum falls only where a run without its head begins. So after half a
        # day of them, in a piece that ends with what all the worst say, one that rose and fell back is not looked for.
        most = summary.last.max if summary.last else None
        if summary.lines < _MANY or summary.limit != most or summary.greatest != most:
            over = re.compile(re.escape(mark) + rb"(?!0+,)[^M]*+Min[^M]*+Max: " + _over(summary.limit) + rb" us")
            self._rank(summary, piece, _find(over, piece))

    def _add_rows(self, piece: bytes, full: int, idle: int) -> bool:
        """Take rows, if there are any, so many with packets and so many without; return False if they are damaged."""
        count = full + idle
        if not count:
            return True
        columns = _cut_columns(piece)
        numbers = [] if columns else [*map(int, _ROWS.findall(piece))]
        if not columns and len(numbers) != count:
            return False
        summary = self.intervals.setdefault("", Summary())
        before, total = summary.lines, summary.total + (columns[0].sum() if columns else sum(numbers))
        for at in (piece.find(b"|"), piece.rfind(b"|")):
            for sample, _, _ in read_sample(_line_at(piece, at), ""):
                summary.add(sample, total)
        summary.lines = before + count
        over = re.compile(rb"us *\| *" + _over(summary.limit))
        self._rank(summary, piece, columns[1].find_over(summary.limit) if columns else _find(over, piece))
        return True

    def _rank(self, summary: Summary, piece: bytes, places: Iterable[int]) -> None:
        """Rank the largest values of the lines at some places of a piece."""
        found = list[tuple[Sample, str, str]]()
        for at in places:
            line = _line_at(piece, at)
            found += read_sample(line, _time_before(piece, at) or self._time if line.startswith(b" ") else "")
        for sample, _, _ in heapq.nlargest(WORST, found, key=lambda each: each[0].max or 0):
            summary.rank(sample)


class Numbers:
    """A column of numbers, cut out of rows of equal length and worked on digit by digit, all rows at once.

    A row has one byte of a long integer: adding up thousands takes a tenth of the time of making an int of each.

    :raises ValueError: they do not all begin at the column's left, or are too long.
    """

    def __init__(self, piece: bytes, width: int, begin: int, end: int) -> None:
        self._begin, self._width, self._rows = begin, width, len(piece) // width
        places = [each for at in range(begin, end) if not (each := piece[at::width]).isspace()]
        self._places = places
        self._held = [int.from_bytes(each.translate(_IS_DIGIT)) for each in places]
        ragged = any(below & ~above for above, below in pairwise(self._held))
        if ragged or not 0 < len(places) <= 18 or any(each.translate(None, b"0123456789- ") for each in places):
            raise ValueError("no column of numbers")

    @property
    def complete(self) -> bool:
        """Is there a number in each row?"""
        return self._held[0] == int.from_bytes(b"\x0f" * self._rows)

    def sum(self) -> int:
        """Add them up."""
        ones, total = int.from_bytes(b"\1" * self._rows), 0
        for length, (held, longer) in enumerate(pairwise([*self._held, 0]), 1):
            for at, place in enumerate(self._places[:length] if held != longer else ()):
                digits = int.from_bytes(place) & (held ^ longer)
                bits = sum((digits & ones << bit).bit_count() << bit for bit in range(4))
                total += bits * 10 ** (length - 1 - at)
        return total

    def find_over(self, limit: int) -> list[int]:
        """Find, in the piece, the numbers that are greater than ``limit``, and perhaps some with zeros before them."""
        digits, held = str(limit) if limit >= 0 else "", [*self._held, 0]
        if len(digits) >= len(held):
            return []
        over = held[len(digits)]
        same = held[len(digits) - 1] ^ over if digits else 0
        for digit, place in zip(digits, self._places, strict=False):
            over |= same & int.from_bytes(place.translate(_GREATER[int(digit)]))
            same &= int.from_bytes(place.translate(_EQUAL[int(digit)]))
        rows = re.finditer(rb"[^\0]", over.to_bytes(self._rows)) if over else ()
        return [each.start() * self._width + self._begin for each in rows]


def _cut_columns(piece: bytes) -> tuple[Numbers, Numbers] | None:
    """Cut the packets and the maxima out of rows, if the rows are columns."""
    width, start = piece.find(b"\n") + 1, piece.find(b"|") + 1
    end, begin, last = piece.find(b"|", start), piece.rfind(b"|", 0, width) + 1, piece.find(b"us\n") % width
    signs = {width - 1: b"\n", start - 1: b"|", end: b"|", begin - 1: b"|"}
    rows = len(piece) // width
    if len(piece) != rows * width or any(piece[at::width] != sign * rows for at, sign in signs.items()):
        return None
    if piece[last::width].strip(b"u "):
        return None
    try:
        packets, most = Numbers(piece, width, start, end), Numbers(piece, width, begin, last)
    except ValueError:
        return None
    return (packets, most) if packets.complete and (most.complete or b"-" in piece) else None


def _find(pattern: re.Pattern[bytes], piece: bytes) -> Iterator[int]:
    return (match.start() for match in pattern.finditer(piece))


def strip_colours(piece: bytes) -> bytes:
    """Take colours out, a kind of them at a time: there are few kinds, and a log of them has one on every line."""
    for _ in range(20):
        found = _COLOUR.search(piece) if b"\x1b" in piece else None
        if not found:
            return piece
        piece = piece.replace(found[0], b"")
    return _COLOUR.sub(b"", piece)


def count_forms(piece: bytes) -> tuple[Counter[str], list[int]]:
    """Count the lines of each form in a piece, the commonest cases first.

    What stands between two times repeats, so that there are few texts to divide into lines.

    :return: the counts, and the numbers (from 0) of the lines that have none of the forms.
    """
    if b"|" in piece:
        bare = piece.translate(None, _DIGITS + b" ")
        rows = len(bare) // len(_FULL_ROW)
        if bare == _FULL_ROW * rows:
            return Counter(row=rows), []
    bare = piece.translate(None, _DIGITS)
    counts, rest = Counter(odd=0), len(bare)
    singles = [_LINES[form] for form in ("slow iptables", "slow nftables", "lost")]
    for text in (singles[0], _guess_block(bare, singles), *singles[1:]):
        times = bare.count(text) if text else 0
        rest -= times * len(text)
        for form in map(_name_form, text.split(b"\n")[:-1]):
            counts[form] += times
        if not rest and not counts["odd"]:
            return counts, []
    parts = (bare + _LINES["time"]).split(_LINES["time"])[:-1]
    forms = {}
    for part in set(parts):
        *lines, before_time = part.split(b"\n")
        forms[part] = [*map(_name_form, lines), "odd" if before_time else "time"]
    counts, odd, at = Counter(time=-1), list[int](), 0
    for part, times in Counter(parts).items():
        for form in forms[part]:
            counts[form] += times
    damaged = {part for part in forms if "odd" in forms[part]}
    for part in parts if damaged else ():
        if part in damaged:
            odd += [number for number, form in enumerate(forms[part], at) if form == "odd"]
        at += len(forms[part])
    return counts, odd


def _guess_block(bare: bytes, singles: list[bytes]) -> bytes:
    """Guess which lines come again and again between slow ones, or from one time to the next; none if unsure."""
    head, mark = bare[:4000], _LINES["time"]
    between = [each for each in head.split(singles[0])[1:-1] if each]
    at = head.find(mark)
    block = min(between, key=len) if between else head[: max(head.find(mark, at + 1) - at, 0)]
    sure = mark in block and block.endswith(b"\n") and not any(each in block for each in singles)
    return block if sure else b""  # no byte may be counted twice


@lru_cache(1000)
def _name_form(line: bytes) -> str:
    """Name the form of a line without its digits."""
    row = _ROW_FORM.match(line)
    if row:
        return "row" if row[1] else "idle"
    return "nothing" if line.startswith(_NOTHING) else _FORMS.get(line, "odd")


def read_sample(line: bytes, time: str) -> Iterator[tuple[Sample, str, str]]:
    """Read a line if it is one of these: the sample, its kind (slow, time, block, row) and its engine.

    :param time: the time of the block that the line stands in.
    """
    if slow := _SLOW.match(line):
        yield Sample(slow[1].decode(), max=int(slow[3]), tid=int(slow[4])), "slow", slow[2].decode()
    elif block := _BLOCK.match(line):
        count, *figures = map(int, block.groups()[1:])
        yield Sample(time, count, *figures if count else ()), "block", block[1].decode()
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
    """A pattern for an integer greater than ``limit``, as printf writes it; it fails at the first digits if it can."""
    if limit < 0:
        return rb"\d{1,18}"
    digits = str(limit)
    rest = len(digits) - 1
    same = [
        f"{digits[:at]}[{int(digit) + 1}-9]" + (rf"\d{{{rest - at}}}" if rest > at else "")
        for at, digit in enumerate(digits)
        if digit != "9"
    ]
    longer = rf"[1-9]\d{{{len(digits)}}}"
    return rf"(?:{'|'.join([*same, longer])})\d{{0,18}}".encode()
