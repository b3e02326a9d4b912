"""Entries of a print of a map, and the map that they make. Pure.

Format: see :mod:`kproxylat.trace.dump`.
"""

from __future__ import annotations

import re
from typing import Any

from kproxylat.results import Entry, Map
from kproxylat.trace.lines import KEY_END
from kproxylat.trace.values import histogram_kind, parse_frames, parse_keys, parse_row, parse_tuples, parse_value

_POINT = re.compile(r"(\d\d:\d\d:\d\d(?:\.\d+)?) +[|*][ |*.]*[|*.](?: (-?\d{1,20})| -)? *\Z")
_SERIES = re.compile(r"hh:mm:ss(?:\.[mnuµμ]s)? *\||\s+v_*v\Z|\s+(?:-?\d+|null)\s+(?:-?\d+|null)\Z")
_NO_DATA = "<no data>"
_OLD_ROW = re.compile(r"\[0, *1\]")
_SURE_FRAME = re.compile(r" {8}\S|\t")
_AFTER_VALUE = re.compile(r"(?:\x1b\[[\d;]*m|\s)+\Z")


class PrintedEntry:
    """One entry of a print. It keeps its text, since only the whole print decides what the text means."""

    __slots__ = (
        *("bare", "empty", "frames", "is_damaged", "is_old", "key", "kind"),
        *("name", "other", "points", "rows", "series", "text", "value"),
    )

    def __init__(
        self, name: str, key: str | None, text: str, kind: str = "", value: Any = None, *, bare: bool = False
    ) -> None:
        self.name, self.key, self.text, self.kind, self.value = name, key, text, kind, value
        self.bare = bare  # no blank follows the colon, so the value is not a string
        self.other: tuple[str, str] | None = None  # key and text, if the key ends elsewhere
        if not kind:
            self.kind, self.value = parse_value(text)
        if self.kind == "str" and text[-1:] in ("m", " ", "\t", "\xa0"):  # a script may have reset a colour here
            plain = parse_value(_AFTER_VALUE.sub("", text))
            if plain[0] != "str":
                self.text = text.rstrip()
                self.kind, self.value = plain
        if not text:  # the lines below ``@name:`` decide what the value is
            self.rows: list[dict[str, int | None]] = []
            self.points: list[dict[str, Any]] = []
            self.frames: list[str] = []
            self.series = self.empty = self.is_damaged = self.is_old = False

    @property
    def has_lines(self) -> bool:
        """Whether the value, which is not in the entry's own line, has lines of its own."""
        return bool(self.rows or self.frames or self.series)

    @property
    def is_lost(self) -> bool:
        """Whether lines stood below the entry, and none of them can be read."""
        return self.text == "" and self.is_damaged and not self.has_lines

    def takes_row(self, line: str) -> bool:
        """Return whether the line is a row that continues the rows so far, or the first one."""
        row = parse_row(line)
        return bool(row and not self.frames and (not self.rows or row["lo"] == self.rows[-1]["hi"]))

    def add_line(self, line: str, *, is_strict: bool = False) -> bool:
        """Add a line if it is a histogram's row, a line of a time series or a stack's frame.

        :param is_strict: the line may also be a string's, so a frame must be indented as bpftrace does.
        :return: whether it was added.
        """
        row = parse_row(line)
        if row:
            self.rows.append(row)
            self.is_old = self.is_old or bool(_OLD_ROW.match(line))
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
        if not self.series and (_SURE_FRAME.match(line) if is_strict else line.startswith(("    ", "\t"))):
            self.frames.append(line)
            return True
        return False

    def finish(self, empty_kind: str) -> None:
        """Make the value of the lines so far; without any, it is an empty value of ``empty_kind``."""
        if self.text:
            return
        kind = "hist" if self.rows else "tseries" if self.series else "stack" if self.frames else empty_kind
        if kind == "tseries":
            self.kind, self.value = kind, tuple(self.points)
        elif kind == "stack":
            self.kind, self.value = kind, parse_frames(self.frames)
        elif kind == "hist":
            self.kind, self.value = kind, {"count": sum(row["count"] or 0 for row in self.rows), "buckets": self.rows}

    def read_as_string(self) -> None:
        """Take the text as a string, whatever it looks like: the print's other entries are strings."""
        self.kind, self.value = "str", self.text


def split_key(name: str, rest: str) -> PrintedEntry:
    """Split ``KEY]: VALUE``. If a key or a string holds ``]:`` too, split at the last one if a number follows it."""
    first = next(KEY_END.finditer(rest)).start()
    last = len(rest) - 2 if rest.endswith("]:") else rest.rfind("]: ")
    early, late = ((rest[:end], rest[end + 3 :]) for end in (first, last))
    entry = PrintedEntry(name, *late)
    if early != late:
        entry.other = early
        if entry.kind == "str" and entry.text:
            entry, entry.other = PrintedEntry(name, *early), late
    entry.bare = rest.endswith("]:") and not entry.text
    return entry


def build_map(entries: list[PrintedEntry]) -> Map:
    """Build a map of the entries of one print, which all have the same types."""
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
    if kind == "hist" and not any(entry.is_old for entry in entries):
        kind = histogram_kind(row for entry in entries for row in entry.value["buckets"])
    if kind == "tuple" and len(entries) > 1:
        for entry, value in zip(entries, parse_tuples([entry.text for entry in entries]), strict=True):
            entry.value = value
    keys = [()] if entries[0].key is None else parse_keys([entry.key or "" for entry in entries])
    return Map(kind, tuple(Entry(key, entry.value) for key, entry in zip(keys, entries, strict=True)))
