"""Parser of the maps that bpftrace prints. Pure; docs/logs.md lists how it reads ambiguous texts.

Format: bpftrace, ``src/output.cpp`` up to 0.23, ``src/output/text.cpp`` and ``src/types_format.cpp`` from 0.24 on;
versions tried: tests/dumps/ and the corpus.

Longer than 350 lines: the three automata of one grammar share its patterns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from kproxylat.results import Entry, Map
from kproxylat.trace.values import histogram_kind, parse_frames, parse_keys, parse_row, parse_value

_COUNT = re.compile(r"@(\w*)\[(-?\d{1,18}(?:, -?\d{1,18})*)\]: (0|-?[1-9]\d{0,17})\Z")
"""The most common entry, which needs no other check: integer keys and an integer value."""
_HEAD = re.compile(r"@(\w*)(?:(\[)|:(?: |\Z))")
_HEAD_INSIDE = re.compile(r"@\w*(?:\[.{0,400}?\]:|:)(?: |\Z)")
_KEY_END = re.compile(r"\]:(?: |\Z)")
_POINT = re.compile(r"(\d\d:\d\d:\d\d(?:\.\d+)?) +[|*][ |*.]*[|*.](?: (-?\d{1,20})| -)? *\Z")
_SERIES = re.compile(r"hh:mm:ss(?:\.[mnuµμ]s)? *\||\s+v_*v\Z|\s+(?:-?\d+|null)\s+(?:-?\d+|null)\Z")
_NO_DATA = "<no data>"
_MESSAGE = re.compile(
    r"(?:\x1b\[[\d;]*m)*(?:(?P<source>.{1,300}?:\d+:\d+(?:-\d+)?: (?:WARNING|ERROR): |Additional Info - helper)"
    r"|Attaching \d+ probes?\.\.\.|Attached \d+ probes?\Z|__BPFTRACE_NOTIFY_PROBES_ATTACHED"
    r"|Lost \d+ events|(?:\S+: )?(?:WARNING|ERROR): )"
)
"""A message of bpftrace's own. After one with ``source``, a line of the program and its underline follow."""
_UNDERLINE = re.compile(r" +[~^]+\Z")
_COLOURS = re.compile(r"(?:\x1b\[[\d;]*m)+\Z")
_RULE = re.compile(r"[=-]{20,}\Z")
_KEY_LINES, _VALUE_LINES, _NOTES, _DOUBTFUL_LINES = 1000, 10_000, 100, 9


class Print(NamedTuple):
    """One print of a map; ``whole`` is False if the text ends inside it."""

    name: str
    map: Map
    whole: bool = True


def parse_dump(text: str) -> dict[str, Map]:
    """Parse the maps that bpftrace printed; if a map was printed several times, the last whole print counts.

    :param text: stdout of one run in text mode, e.g. ``@lat_ns[nat, 0]:\\n[512, 1K)   7 |@@@@|``. Text of
        printf() and bpftrace's own messages may come anywhere; the parser skips them.
    :return: map name without ``@`` -> map. Values by kind: int, float, str, bool; tuple and array (tuples); struct
        (dict); stats ``{"count", "average", "total"}``; stack (tuple of frames, innermost first); tseries (tuple of
        ``{"time", "value"}``); hist and lhist ``{"count", "buckets": [{"lo", "hi", "count"}]}``, half open, ``K`` is
        1024, ``None`` an open end, rows as printed (also those that count 0). A map that got no event may be absent.
    """
    maps: dict[str, Map] = {}
    for name, parsed, whole in read_prints(text.removesuffix("\n").split("\n")):
        if whole or name not in maps:
            maps[name] = parsed
    return maps


def read_prints(lines: Iterable[str]) -> Iterator[Print]:
    """Read every print of every map, in order.

    :param lines: the text's lines, with or without their ends (``\\n``, ``\\r\\n``).
    """
    assembler = PrintAssembler()
    for line in lines:
        assembler.feed(line.removesuffix("\n").removesuffix("\r"))
        yield from assembler.pop_prints()
    assembler.end()
    yield from assembler.pop_prints()


class NoiseFilter:
    """Recognizes bpftrace's own messages, which may come anywhere, even inside a key.

    Sample, with the two lines of source that follow a message about the program::

        a.bt:1:2-3: WARNING: Bad address
            $a = 1;
                 ~

    Format: bpftrace, ``src/log.cpp``; the counts of probes and lost events: ``lost_events``, ``attached_probes`` in
    ``src/output.cpp`` (from 0.24 on ``src/output/text.cpp``).
    """

    def __init__(self) -> None:
        self._source_lines = 0  # how many lines of source may still follow

    def matches(self, line: str) -> bool:
        """Return whether the line is a message or the source below one. Call it once for each line, in order."""
        message = _MESSAGE.match(line)
        if message:
            self._source_lines = 2 if message["source"] else 0
            return True
        expected, self._source_lines = self._source_lines, 0
        if not (expected and line.startswith("    ") and (expected == 2 or _UNDERLINE.match(line))):
            return False
        self._source_lines = expected - 1
        return True


class KeyReader:
    """Collects a key that spans lines: one with a stack, or with a string that holds a line end.

    Sample::

        @[
            vfs_read+1
            ksys_read+2
        ]: 5

    A line that looks like a map makes the key doubtful: either the key's string holds that line, or the key was only
    text. It counts as a key if it ends within 9 lines, none of them empty.

    Format: bpftrace, ``src/output.cpp`` (keys up to 0.20: ``src/mapkey.cpp``; from 0.24 on ``src/output/text.cpp``).

    :param note: receives the reason for each decision about a doubtful key.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._lines: list[str] = []
        self._doubtful_lines = 0  # lines since the first one that looks like a map

    @property
    def is_open(self) -> bool:
        """Whether a key has begun and not ended."""
        return bool(self._lines)

    def begin(self, line: str) -> None:
        """Begin a key with its first line, ``@NAME[...``."""
        self._lines = [line]

    def admits(self, line: str) -> bool:
        """Return whether the key may continue with this line; if not, :meth:`drop` it. Call it once for each line."""
        if self._doubtful_lines or _HEAD.match(line):
            self._doubtful_lines += 1
        is_text = self._doubtful_lines > _DOUBTFUL_LINES or (self._doubtful_lines > 0 and not line)
        return not (is_text or _begins_key(line) or len(self._lines) > _KEY_LINES)

    def add(self, line: str) -> tuple[str, str] | None:
        """Add a line.

        :return: None until a line ends the key; then the map's name, and the key with all that follows it,
            ``KEY]: VALUE``.
        """
        self._lines.append(line)
        if _HEAD.match(line) or not _KEY_END.search(line):
            return None
        if self._doubtful_lines:
            self._note(f"what looks like a map in the key that began with {self._lines[0][:100]!r} is a part of it")
        name, _, rest = "\n".join(self._take_lines())[1:].partition("[")
        return name, rest

    def drop(self) -> tuple[list[str], list[str]]:
        """Give the key up: its lines were text.

        :return: the lines of text, and those from the first one that looks like a map.
        """
        lines = self._take_lines()
        if lines:
            self._note(f"the key that began with {lines[0][:100]!r} does not end before this line")
        end = next((at for at, line in enumerate(lines) if at and _HEAD.match(line)), len(lines))
        return lines[:end], lines[end:]

    def _take_lines(self) -> list[str]:
        lines, self._lines, self._doubtful_lines = self._lines, [], 0
        return lines


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
    """

    def __init__(self) -> None:
        self._prints: list[Print] = []
        self._notes: list[str] = []
        self._multiline_maps: set[str] = set()  # maps whose values were not on one line
        self._reset()

    def _reset(self) -> None:
        self._noise = NoiseFilter()
        self._key = KeyReader(self._note)
        self._entries: list[_Entry] = []  # of the current print
        self._keys: set[str | None] = set()  # of these entries
        self._open: _Entry | None = None  # the last entry, while it takes rows, points or frames
        self._tail: list[str] = []  # lines that may belong to the last entry's string
        self._text_came = False  # did a line of text come since the print began?
        self._blank = 0  # blank lines since the last line of a map
        self._spaced: bool | None = None  # does a blank line follow every map, as in bpftrace 0.11?
        self._in_dump = False  # inside the dump at exit, where no printf() comes between maps
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
        return self._key.is_open or bool(
            self._open or (self._in_dump and self._entries and self._entries[-1].kind == "str")
        )

    def end(self) -> None:
        """End the text; lines that are fed later belong to another one."""
        self._drop_key()
        self._complete_print(whole=not (self._open and not self._blank and self._is_cut(self._open)))
        self._reset()

    def _is_cut(self, last: _Entry) -> bool:
        """Return whether the last entry surely lacks lines. ``<no data>`` and an empty string have no blank line."""
        if last.series:
            return not last.empty
        others_have_lines = any(entry.frames or entry.rows for entry in self._entries if entry.text == "")
        return last.bare or others_have_lines or last.name in self._multiline_maps

    def feed(self, line: str) -> bool:
        """Read a line, given without its end; return whether it belongs to a map."""
        if self._key.is_open:
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
        if self._noise.matches(line):
            return False
        if self._open and not self._blank and self._open.add_line(line):
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
            self._key.begin(line)

    def _feed_keyed(self, name: str, rest: str) -> None:
        """Add ``KEY]: VALUE``. Up to bpftrace 0.23, no line end follows symbols and addresses."""
        again = rest.find(f"@{name}[", rest.find("]: ") + 1 or len(rest))
        if again >= 0 and "]: " in rest[again:]:
            for piece in rest.split(f"@{name}["):
                key, _, value = piece.partition("]: ")
                self._add(_Entry(name, key, value, "str", value))
            return
        self._add(_split_key(name, rest))

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
            return False  # a foreign line inside a histogram, which ends with a blank line
        last = self._entries[-1] if self._entries else None
        if _RULE.match(line):  # the title of a report follows: bpftrace's own text is over
            self._end_print()
        self._text_came = True
        if self._in_dump and last and last.kind == "str" and len(self._tail) < _VALUE_LINES:
            self._tail += [""] * self._blank + [line]
            self._blank = 0
            return True
        if not self._in_dump:
            self._end_print()
        return False

    def _end_print(self) -> None:
        """Complete the print: text follows, so this is not the dump at exit."""
        self._complete_print()
        self._in_dump, self._blank = False, 0

    def _add(self, entry: _Entry) -> None:
        if self._entries:
            last = self._entries[-1]
            if self._spaced is not False and last.kind == "int" and entry.name != last.name:
                self._spaced = self._blank > 0
            if self._begins_print(entry, last):
                self._complete_print(followed=True)
            else:
                self._join_tail(followed=True)
                self._finish_open()
        self._in_dump = self._blank >= 2 or (self._in_dump and entry.name >= self._last_name)
        self._last_name, self._blank = entry.name, 0
        self._entries.append(entry)
        self._keys.add(entry.key)
        if entry.text == "":
            self._open = entry
            entry.expect_lines()

    def _begins_print(self, entry: _Entry, last: _Entry) -> bool:
        """Return whether an entry belongs to another print than the last one.

        A blank line ends a print, except for kinds with a blank line after each key, and strings, which may hold it.
        The dump at exit prints each map once, so equal keys are entries of one print: ksym() of different addresses.
        """
        return (
            entry.name != last.name
            or (entry.key in self._keys and (not self._in_dump or self._text_came or entry.key is None))
            or (entry.key is None) != (None in self._keys)
            or self._blank >= 2
            or (self._blank == 1 and not self._open and last.kind != "str")
        )

    def _join_tail(self, followed: bool) -> None:
        """Add the lines after a string to it: all of them if an entry follows, else those before a blank line."""
        tail, self._tail = self._tail, []
        if not followed and "" in tail:
            tail = tail[: tail.index("")]
        if tail:
            last = self._entries[-1]
            last.text = "\n".join([last.text, *tail])
            last.kind, last.value = parse_value(last.text)

    def _finish_open(self) -> None:
        """Finish the open entry. Two blank lines begin the dump at exit: a single or third one ends a histogram."""
        if self._open:
            self._open.finish("hist" if self._blank in (1, 3) and not self._spaced else "str")
            self._open = None

    def _complete_print(self, *, whole: bool = True, followed: bool = False) -> None:
        """Make a print of the entries so far; ``followed``: by another entry."""
        if not self._entries:
            return
        self._join_tail(followed)
        self._finish_open()
        if followed and not self._blank and all(entry.text.startswith("count ") for entry in self._entries):
            for entry in self._entries:  # a blank line follows stats that are written like this
                entry.read_as_string()
        name, built = self._entries[0].name, _build_map(self._entries)
        if built.kind in ("hist", "lhist", "stack", "tseries"):
            self._multiline_maps.add(name)
        self._prints.append(Print(name, built, whole))
        self._entries, self._keys, self._text_came = [], set(), False


class _Entry:
    """One entry of a print. It keeps its text, since only the whole print decides what the text means."""

    __slots__ = ("bare", "empty", "frames", "key", "kind", "name", "other", "points", "rows", "series", "text", "value")

    def __init__(self, name: str, key: str | None, text: str, kind: str = "", value: Any = None) -> None:
        self.name, self.key, self.text, self.kind, self.value = name, key, text, kind, value
        self.bare = False  # no blank follows the colon, so the value is not a string
        self.other: tuple[str, str] | None = None  # key and text, if the key ends elsewhere
        if not kind:
            self.kind, self.value = parse_value(text)
        if self.kind == "str" and text.endswith("m") and "\x1b" in text:  # a script may have reset a colour here
            plain = parse_value(_COLOURS.sub("", text))
            if plain[0] != "str":
                self.kind, self.value = plain

    def expect_lines(self) -> None:
        """Prepare for the lines below ``@name:``, which decide what the value is."""
        self.rows: list[dict[str, int | None]] = []
        self.points: list[dict[str, Any]] = []
        self.frames: list[str] = []
        self.series = self.empty = False

    def add_line(self, line: str) -> bool:
        """Add a line if it is a histogram's row, a line of a time series or a stack's frame; return whether it is."""
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

    def finish(self, empty_kind: str) -> None:
        """Make the value of the lines so far; without any, it is an empty value of ``empty_kind``."""
        if self.text:
            return
        if self.series or (empty_kind == "tseries" and not self.rows and not self.frames):
            self.kind, self.value = "tseries", tuple(self.points)
        elif self.frames or (empty_kind == "stack" and not self.rows):
            self.kind, self.value = "stack", parse_frames(self.frames)
        elif self.rows or self.bare or empty_kind == "hist":
            self.kind, self.value = "hist", {"count": sum(row["count"] or 0 for row in self.rows), "buckets": self.rows}

    def read_as_string(self) -> None:
        """Take the text as a string, whatever it looks like: the print's other entries are strings."""
        self.kind, self.value = "str", self.text


def _begins_key(line: str) -> bool:
    """Return whether a key begins in this line and does not end in it."""
    head = _HEAD.match(line)
    return bool(head and head[2] and not _KEY_END.search(line, head.end()))


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


def _is_head(inside: re.Match[str]) -> bool:
    """Return whether this is a print(@map) after text without a line end, not an address: ``name@host: text``."""
    before, value = inside.string[inside.start() - 1], inside.string[inside.end() :]
    return not _is_word(before) or not value or parse_value(value)[0] != "str"


def _split_key(name: str, rest: str) -> _Entry:
    """Split ``KEY]: VALUE``. If a key or a string holds ``]:`` too, split at the last one if a number follows it."""
    ends = [end.start() for end in _KEY_END.finditer(rest)]
    early, late = ((rest[:end], rest[end + 3 :]) for end in (ends[0], ends[-1]))
    entry = _Entry(name, *late)
    if early != late:
        entry.other = early
        if entry.kind == "str" and entry.text:
            entry, entry.other = _Entry(name, *early), late
    entry.bare = rest.endswith("]:") and not entry.text
    return entry


def _build_map(entries: list[_Entry]) -> Map:
    """Make a map of the entries of one print, which all have the same types."""
    sure_kinds = {entry.kind for entry in entries if not entry.other}
    for entry in entries:
        if not entry.other:
            continue
        added = len(entry.other[0]) - len(entry.key or "")
        if sure_kinds == {"str"} and added < 0:
            entry.key, entry.text = entry.other
        elif sure_kinds and "str" not in sure_kinds and added > 0:
            entry.key, entry.text = entry.other
            entry.kind, entry.value = parse_value(entry.text)
    kinds = {entry.kind for entry in entries}
    for kind in ("stack", "tseries", "hist"):
        if kind in kinds and len(kinds) > 1:  # values without frames or rows looked like empty strings or histograms
            for entry in entries:
                entry.finish(kind)
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
