"""Entries of a print of a map, and the map that they make. Pure.

Format: see :mod:`kproxylat.trace.dump`.
"""

from __future__ import annotations

import re
from typing import Any

from kproxylat.results import Entry, Map
from kproxylat.trace.lines import KEY_END
from kproxylat.trace.values import histogram_kind, parse_frames, parse_keys, parse_row, parse_value

_POINT = re.compile(r"(\d\d:\d\d:\d\d(?:\.\d+)?) +[|*][ |*.]*[|*.](?: (-?\d{1,20})| -)? *\Z")
_SERIES = re.compile(r"hh:mm:ss(?:\.[mnuµμ]s)? *\||\s+v_*v\Z|\s+(?:-?\d+|null)\s+(?:-?\d+|null)\Z")
_NO_DATA = "<no data>"
_COLOURS = re.compile(r"(?:\x1b\[[\d;]*m)+\Z")


class PrintedEntry:
    """One entry of a print. It keeps its text, since only the whole print decides what the text means."""

    __slots__ = ("bare", "empty", "frames", "key", "kind", "name", "other", "points", "rows", "series", "text", "value")

    def __init__(
        self, name: str, key: str | None, text: str, kind: str = "", value: Any = None, *, bare: bool = False
    ) -> None:
        self.name, self.key, self.text, self.kind, self.value = name, key, text, kind, value
        self.bare = bare  # no blank follows the colon, so the value is not a string
        self.other: tuple[str, str] | None = None  # key and text, if the key ends elsewhere
        if not kind:
            self.kind, self.value = parse_value(text)
        if self.kind == "str" and text.endswith("m") and "\x1b" in text:  # a script may have reset a colour here
            plain = parse_value(_COLOURS.sub("", text))
            if plain[0] != "str":
                self.kind, self.value = plain
        if not text:  # the lines below ``@name:`` decide what the value is
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


def split_key(name: str, rest: str) -> PrintedEntry:
    """Split ``KEY]: VALUE``. If a key or a string holds ``]:`` too, split at the last one if a number follows it."""
    ends = [end.start() for end in KEY_END.finditer(rest)]
    early, late = ((rest[:end], rest[end + 3 :]) for end in (ends[0], ends[-1]))
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
    if kind == "hist":
        kind = histogram_kind(row for entry in entries for row in entry.value["buckets"])
    keys = [()] if entries[0].key is None else parse_keys([entry.key or "" for entry in entries])
    return Map(kind, tuple(Entry(key, entry.value) for key, entry in zip(keys, entries, strict=True)))
