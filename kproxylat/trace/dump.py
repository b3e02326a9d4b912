"""Parser of the maps that bpftrace prints. Pure; docs/logs.md lists how it reads ambiguous texts.

Format: bpftrace, ``src/output.cpp`` up to 0.23, ``src/output/text.cpp`` and ``src/types_format.cpp`` from 0.24 on;
versions tried: tests/dumps/ and the corpus.

Longer than 350 lines: the rules for which line belongs to which entry share one state.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from kproxylat.results import Map
from kproxylat.trace.entries import PrintedEntry, build_map, split_key
from kproxylat.trace.lines import HEAD, KEY_END, ODD_BLANK, BlankCleaner, KeyReader, NoiseFilter
from kproxylat.trace.values import holds_row, looks_like_row, parse_value

_COUNT = re.compile(r"@(\w*)\[(-?\d{1,18}(?:, -?\d{1,18})*)\]: (0|-?[1-9]\d{0,17})\Z")
"""The most common entry, which needs no other check: integer keys and an integer value."""
_HEAD_INSIDE = re.compile(r"@\w*(?:\[.{0,400}?\]:|:)(?: |\Z)")
_RULE = re.compile(r"[=-]{20,}\Z")
_TIME = re.compile(r"\d\d:\d\d:\d\d")
_VALUE_LINES, _NOTES = 10_000, 100
_ENTRIES, _VALUE_SIZE = 100_000, 1 << 22
"""How many entries of a print are kept, and how many characters of the lines of a string."""
BUDGET = 120_000_000
"""Bytes that a text's maps and their output may take, so that all of ``parse`` stays below 200 MB."""
_OBJECT, _CHAR, _ESCAPED, _PART = 800, 12, 100, 150
"""Bytes that an entry or a row takes beside its text; each character, one that JSON escapes, and a key's part."""


def weigh(text: str) -> int:
    """Return the bytes that a kept text takes with its output, at most."""
    size = _CHAR if text.isascii() and text.isprintable() else _ESCAPED
    return _OBJECT + len(text) * size + text.count(", ") * _PART


class Print(NamedTuple):
    """One print of a map; ``whole`` is False if the text ends inside it; ``weight``: as :func:`weigh` says."""

    name: str
    map: Map
    whole: bool = True
    weight: int = 0


def parse_dump(text: str) -> dict[str, Map]:
    """Parse the maps that bpftrace printed; if a map was printed several times, the last whole print counts.

    Nothing is left out for its size: the text is a run's own, which :class:`.bpftrace.LineBuffer` limits.

    :param text: stdout of one run in text mode, e.g. ``@lat_ns[nat, 0]:\\n[512, 1K)   7 |@@@@|``. Text of
        printf() and bpftrace's own messages may come anywhere; the parser skips them.
    :return: map name without ``@`` -> map. Values by kind: int, float, str, bool; tuple and array (tuples); struct
        (dict); stats ``{"count", "average", "total"}``; stack (tuple of frames, innermost first); tseries (tuple of
        ``{"time", "value"}``); hist and lhist ``{"count", "buckets": [{"lo", "hi", "count"}]}``, half open, ``K`` is
        1024, ``None`` an open end, rows as printed (also those that count 0). A map that got no event may be absent.
    """
    maps: dict[str, Map] = {}
    assembler = PrintAssembler(lambda _: sys.maxsize, sys.maxsize)
    for name, parsed, whole, _ in read_prints(text.removesuffix("\n").split("\n"), assembler):
        if whole or name not in maps:
            maps[name] = parsed
    return maps


def read_prints(lines: Iterable[str], assembler: PrintAssembler | None = None) -> Iterator[Print]:
    """Read every print of every map, in order.

    :param lines: the text's lines, with or without their ends (``\\n``, ``\\r\\n``).
    :param assembler: assembles them (None: one with the limits of a text of unknown origin).
    """
    assembler = assembler or PrintAssembler()
    for line in lines:
        assembler.feed(line.removesuffix("\n").rstrip("\r"))
        yield from assembler.pop_prints()
    assembler.end()
    yield from assembler.pop_prints()


class PrintAssembler:
    """Assembles prints of maps from the lines of a text: :meth:`feed` lines, :meth:`pop_prints`, :meth:`end` the text.

    Sample: one print while the program runs; then the dump at exit, which two blank lines precede::

        @n[1]: 1
        12:00:01 text of printf()


        @lat[nat]:
        [512, 1K)              7 |@@@@|

        @n[1]: 2

    A string may hold line ends, blank lines and text, so often only the next lines decide what a line means.

    Format: see the module's docstring.

    :param find_room: returns how much a print of a map of this name may weigh.
    :param most: how many entries, and how many rows, a print may have (None: as many as in a text of unknown origin).
    """

    def __init__(self, find_room: Callable[[str], int] = lambda _: BUDGET, most: int | None = None) -> None:
        self._find_room, self._most = find_room, _ENTRIES if most is None else most
        self._prints: list[Print] = []
        self._notes: list[str] = []
        self._multiline_maps: set[str] = set()  # maps whose values were not on one line
        self._reset()

    def _reset(self) -> None:
        self._noise = NoiseFilter()
        self._blanks = BlankCleaner()
        self._key = KeyReader(self._note)
        self._entries: list[PrintedEntry] = []  # of the current print
        self._keys: set[str | None] = set()  # of these entries
        self._open: PrintedEntry | None = None  # the last entry, while it takes rows, points or frames
        self._tail: list[str] = []  # lines that may belong to the last entry's string
        self._is_separated = False  # does text since the print began separate it from the next one?
        self._row_count = 0  # rows, points and frames of the print
        self._is_full = False  # are entries of the print left out?
        self._weight = 0  # of the print
        self._tail_size = 0  # characters of the tail
        self._first_text: str | None = None  # the first line of text in the dump; again, it separates prints
        self._blank = 0  # blank lines since the last other line
        self._gap: int | None = None  # blank lines between the last line of a map and text, once text came
        self._quiet = 0  # blank lines since the last line of a map, also those between lines of text
        self._spaced: bool | None = None  # does a blank line follow every map, as in bpftrace 0.11?
        self._in_dump = False  # inside the dump at exit, where no printf() comes between maps
        self._may_be_dump = False  # the same, or text came between the two blank lines before it and its first map
        self._last_name = ""  # of the last entry; the dump at exit is in the order of names

    def pop_prints(self) -> list[Print]:
        """Return the prints that were completed since the last call."""
        prints, self._prints = self._prints, []
        return prints

    def pop_notes(self) -> list[str]:
        """Return the notes since the last call: why ambiguous lines were read as a map, or as none."""
        notes, self._notes = self._notes, []
        return notes

    @property
    def counts_text(self) -> bool:
        """Whether the number of blank lines and lines of text matters now: a key or a string may hold them."""
        return self._key.is_open or self._open is not None or self._takes_text

    @property
    def _takes_text(self) -> bool:
        """Whether the next lines may belong to the last entry's string."""
        if not self._in_dump or not self._entries or self._entries[-1].kind != "str":
            return False
        return not self._open or not (self._blank_after_entry or self._open.bare or self._open.has_lines)

    @property
    def _blank_after_entry(self) -> int:
        return self._blank if self._gap is None else self._gap

    def end(self) -> None:
        """End the text; lines that are fed later belong to another one."""
        self._drop_key()
        self._complete_print(whole=not (self._open and not self._blank_after_entry and self._is_cut(self._open)))
        self._reset()

    def _is_cut(self, last: PrintedEntry) -> bool:
        """Return whether the last entry surely lacks lines. ``<no data>`` and an empty string have no blank line."""
        if last.series:
            return not last.empty
        has_lines = any(entry.has_lines for entry in self._entries if entry.text == "")
        return last.bare or has_lines or last.name in self._multiline_maps

    def feed(self, line: str) -> bool:
        """Read a line, given without its end; return whether it belongs to a map."""
        if ODD_BLANK.search(line):
            holds_lines = bool(self._open and (self._open.bare or self._open.has_lines))
            line = self._blanks.clean(line, is_sure=holds_lines)
        if self._key.is_open:
            return self._feed_key(line)
        if line.startswith("@"):
            count = _COUNT.match(line)
            if count:
                self._add(PrintedEntry(count[1], count[2], count[3], "int", int(count[3])))
                return True
            head = HEAD.match(line)
            if head:
                self._feed_head(head, line)
                return True
        if not line:
            self._blank += 1
            self._quiet += 1
            return False
        if self._noise.matches(line):
            return False
        if self._open and self._feed_lines(self._open, line):
            return True
        return self._feed_text(line)

    def _feed_lines(self, entry: PrintedEntry, line: str) -> bool:
        """Add a line to the open entry if it is a row, a point or a frame, or what is left of one."""
        is_late_row = self._blank == 1 and self._gap is None and entry.takes_row(line)
        if self._blank_after_entry and not is_late_row:
            return False
        if not self._has_room(line, entry.name):
            return True
        if self._row_count >= self._most:
            self._note_full(f"more than {self._most} rows or frames; those of @{entry.name} from here on are left out")
            return True
        if entry.add_line(line, is_strict=bool(self._tail)):
            if is_late_row:
                self._note(f"a blank line before {line[:100]!r}, which was read as a part of @{entry.name}")
                self._blank = 0
            self._row_count += 1
            for text in self._tail:
                self._note(f"unreadable: {text[:100]!r} in @{entry.name}")
            self._tail = []
            return True
        if not (entry.bare or entry.has_lines or looks_like_row(line)):
            return False
        self._note(f"unreadable: {line[:100]!r} in @{entry.name}")
        entry.is_damaged = True
        return True

    def _feed_head(self, head: re.Match[str], line: str) -> None:
        rest = line[head.end() :]
        if head[2] is None:
            self._add(PrintedEntry(head[1], None, rest, bare=line.endswith(":")))
        elif KEY_END.search(rest):
            self._feed_keyed(head[1], rest)
        else:
            self._key.begin(line)

    def _feed_keyed(self, name: str, rest: str) -> None:
        """Add ``KEY]: VALUE``. Up to bpftrace 0.23, no line end follows symbols and addresses."""
        again = rest.find(f"@{name}[", rest.find("]: ") + 1 or len(rest))
        if again >= 0 and "]: " in rest[again:]:
            for piece in rest.split(f"@{name}["):
                key, _, value = piece.partition("]: ")
                self._add(PrintedEntry(name, key, value, "str", value))
            return
        self._add(split_key(name, rest))

    def _feed_key(self, line: str) -> bool:
        if not self._key.admits(line):
            self._drop_key()
            return self.feed(line)
        if self._noise.matches(line):
            return False
        keyed = self._key.add(line)
        if keyed:
            self._feed_keyed(*keyed)
        return True

    def _drop_key(self) -> None:
        text, maps = self._key.drop()
        for line in text:
            self._feed_text(line)
        for line in maps:
            self.feed(line)

    def _has_room(self, text: str, name: str) -> bool:
        """Return whether a text of a map can be kept; the weight of the print grows by it."""
        weight = weigh(text)
        if self._weight + weight > self._find_room(name):
            self._note_full(f"the maps would take more than {BUDGET:,} bytes; @{name} is left out from here on")
            return False
        self._weight += weight
        return True

    def _note_full(self, reason: str) -> None:
        """Note once for each print that a part of it is left out."""
        if not self._is_full:
            self._note(reason)
        self._is_full = True

    def _note(self, reason: str) -> None:
        if len(self._notes) < _NOTES:
            self._notes.append(reason)

    def _feed_text(self, line: str) -> bool:
        inside = next(filter(_is_head, _HEAD_INSIDE.finditer(line, 1)), None) if "@" in line else None
        if inside:  # printf() or time() without a line end, then print(@map)
            self._end_print()
            if _is_word(line[inside.start() - 1]):
                self._note(f"{line[:100]!r} was read as a print of a map, which may be text")
            return self.feed(line[inside.start() :])
        if _RULE.match(line):  # the title of a report follows: bpftrace's own text is over
            self._end_print()
        self._is_separated = self._is_separated or line == self._first_text or bool(_TIME.match(line))
        is_string = self._takes_text
        may_be_foreign = self._open and not self._blank_after_entry  # rows may follow
        is_kept = (is_string or may_be_foreign) and len(self._tail) < _VALUE_LINES and self._tail_size < _VALUE_SIZE
        if is_kept and self._has_room(line, self._entries[-1].name):
            self._tail += [""] * self._blank + [line]
            self._tail_size += len(line)
        elif not self._in_dump:
            self._end_print()
            return False
        self._gap, self._blank = self._blank_after_entry, 0
        self._first_text = self._first_text or line
        return is_string

    def _end_print(self) -> None:
        """Complete the print: text follows, so this is not the dump at exit."""
        self._complete_print()
        self._in_dump, self._may_be_dump, self._blank, self._gap, self._first_text = False, False, 0, None, None

    def _add(self, entry: PrintedEntry) -> None:
        if self._tail and not self._in_dump:
            self._end_print()
        if self._entries:
            last = self._entries[-1]
            if self._spaced is not False and last.kind == "int" and entry.name != last.name:
                self._spaced = self._blank_after_entry > 0
            if self._begins_print(entry, last):
                self._complete_print(followed=True)
            else:
                self._finish_entry(followed=True)
        if not self._has_room(entry.text if entry.key is None else entry.key + entry.text, entry.name):
            return
        if len(self._entries) >= self._most:
            self._note_full(f"more than {self._most} entries; those of @{entry.name} from here on are left out")
            return
        in_order = entry.name >= self._last_name
        self._in_dump = self._blank >= 2 or (self._in_dump and in_order)
        self._may_be_dump = self._quiet >= 2 or (self._may_be_dump and in_order)
        self._last_name, self._blank, self._gap, self._quiet = entry.name, 0, None, 0
        self._entries.append(entry)
        self._keys.add(entry.key)
        if entry.text == "":
            self._open = entry

    def _begins_print(self, entry: PrintedEntry, last: PrintedEntry) -> bool:
        """Return whether an entry belongs to another print than the last one.

        A blank line ends a print, except for kinds with a blank line after each key, and strings, which may hold it.
        The dump at exit prints each map once, so equal keys are entries of one print: ksym() of different addresses.
        """
        has_equal_keys = self._may_be_dump and not self._is_separated and entry.key is not None
        return (
            entry.name != last.name
            or (entry.key in self._keys and not has_equal_keys)
            or (entry.key is None) != (None in self._keys)
            or self._blank >= 2
            or (self._blank == 1 and self._gap is None and not self._open and last.kind != "str")
        )

    def _finish_entry(self, *, followed: bool) -> None:
        """Finish the last entry; ``followed``: by another entry.

        A string gets the lines after it: all of them if an entry follows, else those before a blank line. Two blank
        lines begin the dump at exit: a single or third one ends a histogram.
        """
        tail, self._tail = self._tail if self._in_dump else [], []
        if self._tail_size >= _VALUE_SIZE and tail:
            self._note(f"@{self._entries[-1].name} has more than {_VALUE_SIZE} characters; the rest is left out")
        self._tail_size = 0
        if not followed and "" in tail:
            tail = tail[: tail.index("")]
        if tail:
            last = self._entries[-1]
            for line in filter(holds_row, tail if not last.text else ()):
                self._note(f"{line[:100]!r} was read as text of @{last.name}; it may be a row behind a prefix")
            last.text = "\n".join([last.text, *tail])
            last.kind, last.value = parse_value(last.text)
        if self._open:
            self._open.finish("hist" if self._blank_after_entry in (1, 3) and not self._spaced else "str")
            self._open = None

    def _complete_print(self, *, whole: bool = True, followed: bool = False) -> None:
        """Make a print of the entries so far; ``followed``: by another entry."""
        if not self._entries:
            return
        self._finish_entry(followed=followed)
        if (
            followed
            and not self._blank
            and not self._gap
            and all(entry.text.startswith("count ") for entry in self._entries)
        ):
            for entry in self._entries:  # a blank line follows stats that are written like this
                entry.read_as_string()
        entries, self._entries, self._keys, self._is_separated = self._entries, [], set(), False
        self._is_full, self._row_count, weight, self._weight = False, 0, self._weight, 0
        name, readable = entries[0].name, [entry for entry in entries if not entry.is_lost]
        if len(readable) < len(entries):
            self._note(f"no line of {len(entries) - len(readable)} of the values of @{name} can be read")
        if not readable:
            return
        built = build_map(readable)
        if built.kind in ("hist", "lhist", "stack", "tseries"):
            self._multiline_maps.add(name)
        self._prints.append(Print(name, built, whole, weight))


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


def _is_head(inside: re.Match[str]) -> bool:
    """Return whether this is a print(@map) after text without a line end, not an address: ``name@host: text``."""
    before, value = inside.string[inside.start() - 1], inside.string[inside.end() :]
    return not _is_word(before) or not value or parse_value(value)[0] != "str"
