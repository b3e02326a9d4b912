"""bpftrace's text -> maps. Pure; docs/logs.md says how texts that can be read in two ways are read.

Format: bpftrace, ``src/output.cpp`` and ``src/types_format.cpp``; versions tried: tests/dumps/ and the corpus.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from kproxylat.model import Entry, Map
from kproxylat.values import histogram_kind, parse_frames, parse_keys, parse_row, parse_value

_COUNT = re.compile(r"@(\w*)\[(-?\d{1,18}(?:, -?\d{1,18})*)\]: (0|-?[1-9]\d{0,17})\Z")
"""The commonest entry, told at once: integer keys, an integer value."""
_HEAD = re.compile(r"@(\w*)(?:(\[)|:(?: |\Z))")
_HEAD_INSIDE = re.compile(r"@\w*(?:\[.{0,400}?\]:|:)(?: |\Z)")
_KEY_END = re.compile(r"\]:(?: |\Z)")
_POINT = re.compile(r"(\d\d:\d\d:\d\d(?:\.\d+)?) +[|*][ |*.]*[|*.](?: (-?\d{1,20})| -)? *\Z")
_SERIES = re.compile(r"hh:mm:ss(?:\.[mnuµμ]s)? *\||\s+v_*v\Z|\s+(?:-?\d+|null)\s+(?:-?\d+|null)\Z")
_NO_DATA = "<no data>"
_NOISE = re.compile(
    r"(?:\x1b\[[\d;]*m)*(?:(?P<source>.{1,300}?:\d+:\d+(?:-\d+)?: (?:WARNING|ERROR): |Additional Info - helper)"
    r"|Attaching \d+ probes?\.\.\.|Attached \d+ probes?\Z|__BPFTRACE_NOTIFY_PROBES_ATTACHED"
    r"|Lost \d+ events|(?:\S+: )?(?:WARNING|ERROR): )"
)
"""A message of bpftrace's own; ``source``: two lines follow, of the program's source and what underlines it."""
_UNDERLINE = re.compile(r" +[~^]+\Z")
_COLOURS = re.compile(r"(?:\x1b\[[\d;]*m)+\Z")
_RULE = re.compile(r"[=-]{20,}\Z")
_KEY_LINES, _VALUE_LINES, _NOTES, _DOUBTS = 1000, 10_000, 100, 9


class Print(NamedTuple):
    """One map as it was printed once; ``whole`` is False if the text ends inside it."""

    name: str
    map: Map
    whole: bool = True


def parse_dump(text: str) -> dict[str, Map]:
    """Parse the maps that bpftrace printed; of a map that was printed several times, the last whole print counts.

    :param text: what one run printed in text mode, e.g. ``@lat_ns[nat, 0]:\\n[512, 1K)   7 |@@@@|``. Text of
        printf() and bpftrace's own messages may stand anywhere and belong to no map.
    :return: map name without ``@`` -> map. Values by kind: int, float, str, bool; tuple and array (tuples); struct
        (dict); stats ``{"count", "average", "total"}``; stack (tuple of frames, innermost first); tseries (tuple of
        ``{"time", "value"}``); hist and lhist ``{"count", "buckets": [{"lo", "hi", "count"}]}``, half open, ``K`` is
        1024, ``None`` an open end, rows as printed (also those that count 0). A map that got no event may be absent.
    """
    maps: dict[str, Map] = {}
    for each in read_prints(text.removesuffix("\n").split("\n")):
        if each.whole or each.name not in maps:
            maps[each.name] = each.map
    return maps


def read_prints(lines: Iterable[str]) -> Iterator[Print]:
    """Read every print of every map, in order.

    :param lines: the text's lines; an end of line (``\\n``, ``\\r\\n``) is cut off.
    """
    reader = Reader()
    for line in lines:
        reader.feed(line.removesuffix("\n").removesuffix("\r"))
        yield from reader.take()
    reader.end()
    yield from reader.take()


class _Entry:
    """One entry as it is read: its text until the whole print is known, which decides what the text means."""

    __slots__ = ("bare", "empty", "frames", "key", "kind", "name", "other", "points", "rows", "series", "text", "value")

    def __init__(self, name: str, key: str | None, text: str, kind: str = "", value: Any = None) -> None:
        self.name, self.key, self.text, self.kind, self.value = name, key, text, kind, value
        self.bare = False  # no blank after the colon: surely no string
        self.other: tuple[str, str] | None = None  # the other place where the key may end
        if not kind:
            self.kind, self.value = parse_value(text)
        if self.kind == "str" and text.endswith("m") and "\x1b" in text:  # a script may have reset a colour here
            plain = parse_value(_COLOURS.sub("", text))
            if plain[0] != "str":
                self.kind, self.value = plain

    def grow(self, line: str) -> bool:
        """Take a line below ``@name:`` if it is a row, a point of a series or a stack's frame."""
        row = parse_row(line)
        if row:
            self.rows.append(row)
            return True
        if self.rows:
            return False
        point = _POINT.match(line)
        if point:
            self.series = True
            self.points.append({"time": point[1], "value": int(point[2]) if point[2] else None})
            return True
        if _SERIES.match(line) or line == _NO_DATA:
            self.series, self.empty = True, line == _NO_DATA
            return True
        if not self.series and line.startswith(("    ", "\t")):
            self.frames.append(line)
            return True
        return False

    def wait(self) -> None:
        """Nothing follows the colon: the next lines tell what it is."""
        self.rows: list[dict[str, int | None]] = []
        self.points: list[dict[str, Any]] = []
        self.frames: list[str] = []
        self.series = self.empty = False

    def close(self, empty: str) -> None:
        """Nothing more follows; ``empty`` is the kind of a value that is none."""
        if self.text:
            return
        if self.series or (empty == "tseries" and not self.rows and not self.frames):
            self.kind, self.value = "tseries", tuple(self.points)
        elif self.frames or (empty == "stack" and not self.rows):
            self.kind, self.value = "stack", parse_frames(self.frames)
        elif self.rows or self.bare or empty == "hist":
            self.kind, self.value = "hist", {"count": sum(row["count"] or 0 for row in self.rows), "buckets": self.rows}

    def read_as_string(self) -> None:
        """Other entries of the map are strings, so this is one."""
        self.kind, self.value = "str", self.text


class Reader:
    """Reads a text line by line: :meth:`feed` it, :meth:`take` the prints that are done, :meth:`end` it."""

    def __init__(self) -> None:
        self._done: list[Print] = []
        self._notes: list[str] = []
        self._long: set[str] = set()  # the maps whose values were not on one line
        self._start()

    def _start(self) -> None:
        self._name: str | None = None
        self._entries: list[_Entry] = []
        self._keys: set[str | None] = set()
        self._open: _Entry | None = None  # waits for rows, points or frames
        self._key: list[str] = []  # the lines of a key that has not ended yet
        self._doubt = 0  # lines since one in the key looked like a map: which of the two is it?
        self._tail: list[str] = []  # lines that may belong to the last string
        self._blank = self._excerpt = 0
        self._spaced: bool | None = None  # does a blank line follow every map, as in bpftrace 0.11?
        self._dump = False  # inside the dump at exit, where no printf comes between
        self._text = False  # did a line that is no map's come since the print began?
        self._last = ""  # the name of the last map, which the dump's order tells

    def take(self) -> list[Print]:
        """Take the prints that are done so far."""
        done, self._done = self._done, []
        return done

    def take_notes(self) -> list[str]:
        """Take what was noticed since the last time: reasons why something that looked like a map is none."""
        notes, self._notes = self._notes, []
        return notes

    @property
    def counts_text(self) -> bool:
        """Whether it matters now how many lines of text or blank ones come: they may be a key's or a string's."""
        return bool(self._key or self._open or (self._dump and self._entries and self._entries[-1].kind == "str"))

    def end(self) -> None:
        """End the text; a line fed later belongs to another one."""
        self._drop_key()
        self._flush(whole=not (self._open and not self._blank and self._is_cut(self._open)))
        self._start()

    def _is_cut(self, last: _Entry) -> bool:
        """Do lines of the last entry's value surely lack? No blank line follows ``<no data>`` and empty strings."""
        if last.series:
            return not last.empty
        known = any(entry.frames or entry.rows for entry in self._entries if entry.text == "")
        return last.bare or known or last.name in self._long

    def feed(self, line: str) -> bool:
        """Read a line, given without its end; return whether it belongs to a map."""
        if self._key:
            return self._feed_key(line)
        if line.startswith("@"):
            count = _COUNT.match(line)
            if count:
                self._add(_Entry(count[1], count[2], count[3], "int", int(count[3])))
                return True
            head = _HEAD.match(line)
            if head:
                self._feed_head(head, line)
                return True
        if not line:
            self._blank += 1
            return False
        if self._is_noise(line):
            return False
        if self._open and not self._blank and self._open.grow(line):
            return True
        return self._feed_text(line)

    def _feed_head(self, head: re.Match[str], line: str) -> None:
        rest = line[head.end() :]
        if head[2] is None:
            entry = _Entry(head[1], None, rest)
            entry.bare = line.endswith(":")
            self._add(entry)
        elif _KEY_END.search(rest):
            self._feed_keyed(head[1], rest)
        else:
            self._key = [line]

    def _feed_keyed(self, name: str, rest: str) -> None:
        """Add ``KEY]: VALUE``. Up to bpftrace 0.23 symbols and addresses have no line end after them."""
        again = rest.find(f"@{name}[", rest.find("]: ") + 1 or len(rest))
        if again >= 0 and "]: " in rest[again:]:
            for piece in rest.split(f"@{name}["):
                key, _, value = piece.partition("]: ")
                self._add(_Entry(name, key, value, "str", value))
            return
        self._add(_split_key(name, rest))

    def _feed_key(self, line: str) -> bool:
        head = _HEAD.match(line)
        whole = head and (head[2] is None or _KEY_END.search(line, head.end()))
        self._doubt += bool(whole or self._doubt)
        if (head and not whole) or len(self._key) > _KEY_LINES or (self._doubt and (not line or self._doubt > _DOUBTS)):
            self._drop_key()
            return self.feed(line)
        if self._is_noise(line):
            return False
        self._key.append(line)
        if not head and _KEY_END.search(line):
            name, _, rest = "\n".join(self._key)[1:].partition("[")
            if self._doubt:
                self._note(f"what looks like a map in the key that began with {self._key[0][:100]!r} is a part of it")
            self._key, self._doubt = [], 0
            self._feed_keyed(name, rest)
        return True

    def _drop_key(self) -> None:
        """What looked like a key never ended: it was text, up to what looks like a map."""
        lines, self._key, self._doubt = self._key, [], 0
        if lines:
            self._note(f"the key that began with {lines[0][:100]!r} does not end before this line")
        for at, line in enumerate(lines):
            if at and _HEAD.match(line):
                for each in lines[at:]:
                    self.feed(each)
                break
            self._feed_text(line)

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
        if self._open and self._open.rows and not self._blank:
            return False  # a foreign line inside a histogram, whose end is a blank line
        last = self._entries[-1] if self._entries else None
        if _RULE.match(line):  # a report's title follows: bpftrace's own text is over
            self._end_print()
        self._text = True
        if self._dump and last and last.kind == "str" and len(self._tail) < _VALUE_LINES:
            self._tail += [""] * self._blank + [line]
            self._blank = 0
            return True
        if not self._dump:
            self._end_print()
        return False

    def _end_print(self) -> None:
        self._flush()
        self._dump, self._blank = False, 0

    def _is_noise(self, line: str) -> bool:
        """Is it a message of bpftrace's own, or one of the lines of source that follow such a message?"""
        noise = _NOISE.match(line)
        if noise:
            self._excerpt = 2 if noise["source"] else 0
            return True
        left, self._excerpt = self._excerpt, 0
        if not (left and line.startswith("    ") and (left == 2 or _UNDERLINE.match(line))):
            return False
        self._excerpt = left - 1
        return True

    def _add(self, entry: _Entry) -> None:
        if self._name is not None:
            if self._spaced is not False and self._entries[-1].kind == "int" and entry.name != self._name:
                self._spaced = self._blank > 0
            if self._is_other_print(entry):
                self._flush(followed=True)
            else:
                self._join_tail(followed=True)
                self._close()
        self._dump = self._blank >= 2 or (self._dump and entry.name >= self._last)
        self._name, self._last, self._blank = entry.name, entry.name, 0
        self._entries.append(entry)
        self._keys.add(entry.key)
        if entry.text == "":
            self._open = entry
            entry.wait()

    def _is_other_print(self, entry: _Entry) -> bool:
        """A blank line ends a print, but for kinds that have one after each key, and strings, which may hold it.

        In the dump at exit, where each map is printed once, several keys may look alike: ksym() of different addresses.
        """
        return (
            entry.name != self._name
            or (entry.key in self._keys and (not self._dump or self._text or entry.key is None))
            or (entry.key is None) != (None in self._keys)
            or self._blank >= 2
            or (self._blank == 1 and not self._open and self._entries[-1].kind != "str")
        )

    def _join_tail(self, followed: bool) -> None:
        """Give the lines after a string to it: all of them if an entry follows, else those before a blank line."""
        tail, self._tail = self._tail, []
        if not followed and "" in tail:
            tail = tail[: tail.index("")]
        if tail:
            last = self._entries[-1]
            last.text = "\n".join([last.text, *tail])
            last.kind, last.value = parse_value(last.text)

    def _close(self) -> None:
        """Two blank lines begin the dump at exit: only a third one, or a single one, is a histogram's."""
        if self._open:
            self._open.close("hist" if self._blank in (1, 3) and not self._spaced else "str")
            self._open = None

    def _flush(self, *, whole: bool = True, followed: bool = False) -> None:
        if self._name is None:
            return
        self._join_tail(followed)
        self._close()
        if followed and not self._blank and all(entry.text.startswith("count ") for entry in self._entries):
            for entry in self._entries:  # where stats are written like this, a blank line follows them
                entry.read_as_string()
        each = _build_map(self._entries)
        if each.kind in ("hist", "lhist", "stack", "tseries"):
            self._long.add(self._name)
        self._done.append(Print(self._name, each, whole))
        self._name, self._entries, self._keys, self._text = None, [], set(), False


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


def _is_head(inside: re.Match[str]) -> bool:
    """Is this print(@map) after a text without a line end? Not where it may be an address: ``name@host: text``."""
    before, value = inside.string[inside.start() - 1], inside.string[inside.end() :]
    return not _is_word(before) or not value or parse_value(value)[0] != "str"


def _split_key(name: str, rest: str) -> _Entry:
    """Split ``KEY]: VALUE`` where a key or a string holds ``]:`` too: at the last one if a number then follows."""
    cuts = [cut.start() for cut in _KEY_END.finditer(rest)]
    early, late = ((rest[:cut], rest[cut + 3 :]) for cut in (cuts[0], cuts[-1]))
    entry = _Entry(name, *late)
    if early != late:
        entry.other = early
        if entry.kind == "str" and entry.text:
            entry, entry.other = _Entry(name, *early), late
    entry.bare = rest.endswith("]:") and not entry.text
    return entry


def _build_map(entries: list[_Entry]) -> Map:
    """Make a map of the entries of one print, which all have the same types."""
    sure = {entry.kind for entry in entries if not entry.other}
    for entry in entries:
        if entry.other and sure == {"str"} and len(entry.other[0]) < len(entry.key or ""):
            entry.key, entry.text = entry.other
        elif entry.other and sure and "str" not in sure and len(entry.other[0]) > len(entry.key or ""):
            entry.key, entry.text = entry.other
            entry.kind, entry.value = parse_value(entry.text)
    kinds = {entry.kind for entry in entries}
    for kind in ("stack", "tseries", "hist"):
        if kind in kinds and len(kinds) > 1:  # those without frames or rows looked like empty strings or histograms
            for entry in entries:
                entry.close(kind)
            kinds = {entry.kind for entry in entries}
    if len(kinds) > 1 and not kinds & {"hist", "stack", "tseries"}:
        for entry in entries:
            entry.read_as_string()
        kinds = {"str"}
    kind = kinds.pop() if len(kinds) == 1 else "mixed"
    if kind == "hist":
        kind = histogram_kind(row for entry in entries for row in entry.value["buckets"])
    keys = [()] if entries[0].key is None else parse_keys([entry.key or "" for entry in entries])
    return Map(kind, tuple(Entry(key, entry.value) for key, entry in zip(keys, entries, strict=True)))
