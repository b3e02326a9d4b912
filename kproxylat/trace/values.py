"""Parser of single values, keys and histogram rows in bpftrace's text. Pure.

Format: see :mod:`kproxylat.trace.dump`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

INT = re.compile(r"(?:0|-?[1-9]\d{0,19})\Z")
_HEX = re.compile(r"0x[0-9a-f]{1,16}\Z")
_FLOAT = re.compile(r"-?(?:0|[1-9]\d{0,15})\.\d{1,15}\Z")
STATS = ["count", "average", "total"]
_STATS = re.compile(r"count (\d{1,20}), average (-?\d{1,20}), total (-?\d{1,20})\Z")
_EDGE = r"-?\d{1,19}[KMGTPEkmgtpe]?"
_ROW = re.compile(
    rf" *(?:\[(?P<only>{_EDGE})\]|[\[(](?P<lo>\.\.\.|{_EDGE}), *(?P<hi>\.\.\.|{_EDGE})(?P<end>[\])]))"
    r" *(?P<count>\d{1,20}) +\|"
)
ROW_START = rf" *(?:\[{_EDGE}\].*\d *\||\[{_EDGE}, *(?:\.\.\.|{_EDGE})(?:\)|\].*\|)|\(\.\.\., *{_EDGE}[)\]])"
"""Pattern of the beginning of a histogram's row, which other text in brackets lacks."""
_ROW_START = re.compile(ROW_START)
_ROW_INSIDE = re.compile(_ROW.pattern.removeprefix(" *"))
_PAIRS = {")": "(", "]": "[", "}": "{"}
_DEPTH, _PARTS = 50, 100_000


def parse_value(text: str) -> tuple[str, Any]:
    """Parse the value of a map's entry.

    :return: its kind and the value; "str" if no other form fits. A number has to print back to the same text, so
        ``007``, ``1.50`` and integers of more than 64 bits stay strings; only a pointer's ``0x10`` becomes 16.
    """
    if INT.match(text) and -(1 << 63) <= int(text) < 1 << 64:
        return "int", int(text)
    if text in ("true", "false"):
        return "bool", text == "true"
    if _HEX.match(text):
        return "int", int(text, 16)
    if _FLOAT.match(text) and repr(float(text)) == text:
        return "float", float(text)
    stats = _STATS.match(text)
    if stats:
        return "stats", dict(zip(("count", "average", "total"), map(int, stats.groups()), strict=True))
    return _parse_composite(text, 0)


def _parse_composite(text: str, depth: int) -> tuple[str, Any]:
    if depth > _DEPTH or len(text) < 2:
        return "str", text
    ends = text[0] + text[-1]
    if ends == "()":
        return "tuple", _parse_items(text[1:-1], depth)
    if ends == "[]" and text[1:2] in "-0123456789[({":
        return "array", tuple(_parse_item(item.removeprefix(" "), depth) for item in split_parts(text[1:-1], ","))
    if text.startswith("{ .") and text.endswith(" }"):
        named = [item.partition(" = ") for item in split_parts(text[2:-2])]
        fields = {name[1:]: _parse_item(value, depth) for name, _, value in named}
        if len(fields) == len(named) and all(name.startswith(".") and equals for name, equals, _ in named):
            return name_fields(fields), fields
    return "str", text


def name_fields(fields: Mapping[str, Any]) -> str:
    """Return the kind of a value with named fields: "stats" or "struct"."""
    is_stats = list(fields) == STATS and all(type(number) is int for number in fields.values())
    return "stats" if is_stats else "struct"


def _parse_items(text: str, depth: int) -> tuple[Any, ...]:
    return tuple(_parse_item(item, depth) for item in split_parts(text)) if text else ()


def _parse_item(text: str, depth: int) -> Any:
    if text.startswith("\n") and text.endswith("\n"):
        return parse_frames(text.split("\n"))
    _, value = parse_value(text) if text[:1] not in "([{" else _parse_composite(text, depth + 1)
    return value


def split_parts(text: str, mark: str = ", ") -> list[str]:
    """Split at each mark outside brackets; if the brackets do not pair (a string holds one), split at every mark.

    A text of over 100,000 parts stays whole: no script prints such a key or tuple.
    """
    if text.count(mark) > _PARTS:
        return [text]
    parts = text.split(mark)
    if len(parts) == 1 or not any(bracket in text for bracket in "([{"):
        return parts
    joined: list[str] = []
    stack: list[str] = []
    begin = 0
    for at, part in enumerate(parts, 1):
        for char in part:
            if char in "([{":
                stack.append(char)
            elif char in _PAIRS and (not stack or stack.pop() != _PAIRS[char]):
                return parts
        if not stack:
            joined.append(mark.join(parts[begin:at]))
            begin = at
    return parts if stack else joined


def parse_keys(texts: Sequence[str]) -> list[tuple[Any, ...]]:
    """Parse the keys of one map, which all have the same number of parts and the same types.

    The text does not show where a string with ``, `` ends, so the key with the fewest parts decides their number.

    :param texts: the texts between the outer brackets, e.g. ``nat, 0``.
    :return: for each key its parts: int (if the part is an int in every key), tuple, a stack's frames, or str.
    """
    keys = _parse_int_keys(texts)
    if keys is not None:
        return keys
    columns = zip(*_align([split_parts(text) for text in texts]), strict=True)
    return list(zip(*map(_parse_column, map(list, columns)), strict=True))


def _align(split: Sequence[list[str]]) -> list[list[str]]:
    """Bring all keys to the number of parts that the shortest one has."""
    width = min(map(len, split))
    exact = [parts for parts in split if len(parts) == width]
    numbers = {at for at in range(width) if all(_key_kind(parts[at]) == "int" for parts in exact)}
    return [_fit(parts, width, numbers) for parts in split]


def parse_tuples(texts: Sequence[str]) -> list[tuple[Any, ...]]:
    """Parse tuples that are values of one map: all have as many parts as the shortest one, as keys do.

    :param texts: the texts with their brackets, e.g. ``(1, ok)``.
    """
    split = [split_parts(text[1:-1]) if len(text) > 2 else [] for text in texts]
    columns = [
        parse_tuples(column) if all(_is_tuple(part) for part in column) else [_parse_item(part, 0) for part in column]
        for column in zip(*_align(split), strict=True)
    ]
    return list(zip(*columns, strict=True)) if columns else [()] * len(texts)


def _is_tuple(text: str) -> bool:
    return text.startswith("(") and text.endswith(")")


def _parse_int_keys(texts: Sequence[str]) -> list[tuple[Any, ...]] | None:
    """Parse keys of integers only, by far the most common ones, quickly: many maps have 50,000 keys."""
    width = texts[0].count(", ")
    keys = re.compile(", ".join([r"(0|-?[1-9]\d{0,17})"] * (width + 1)) + r"\Z") if width < 8 else None
    if not keys:
        return None
    matches = [keys.match(text) for text in texts]
    return [tuple(map(int, match.groups())) for match in matches if match] if all(matches) else None


def _fit(parts: list[str], width: int, numbers: set[int]) -> list[str]:
    """Join surplus parts of a key, in the first column that then leaves every integer in its own column."""
    extra = len(parts) - width
    if not extra:
        return parts
    wrong = [at for at in numbers if _key_kind(parts[at]) != "int"]  # join before these columns
    shifted = [at for at in numbers if _key_kind(parts[at + extra]) != "int"]  # and after these
    first, last = max(shifted, default=0), min(wrong, default=width - 1)
    at = next((at for at in range(first, last + 1) if at not in numbers), 0)
    return [*parts[:at], ", ".join(parts[at : at + extra + 1]), *parts[at + extra + 1 :]]


def _key_kind(text: str) -> str:
    kind = parse_value(text)[0]
    return kind if kind in ("int", "tuple") else "str"


def _parse_column(texts: list[str]) -> list[Any]:
    kinds = {_key_kind(text) for text in texts}
    if kinds == {"int"} or kinds == {"tuple"}:
        return [parse_value(text)[1] for text in texts]
    if any(texts) and all(not text or (text.startswith("\n") and text.endswith("\n")) for text in texts):
        return [parse_frames(text.split("\n")) for text in texts]
    return texts


def parse_frames(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the frames of a stack, given its lines; those that are indented otherwise are foreign."""
    by_indent = ([line for line in lines if line.startswith(indent)] for indent in (" " * 8, "\t", " " * 4))
    return tuple(line.strip() for line in next(filter(None, by_indent), lines) if line.strip())


def parse_row(line: str) -> dict[str, int | None] | None:
    """Parse a row of a histogram, e.g. ``[1K, 2K)    7 |@@@|`` -> ``{"lo": 1024, "hi": 2048, "count": 7}``.

    :return: None if the line is not a row, or ends before the bar.
    """
    row = _ROW.match(line)
    if not row:
        return None
    lo, hi = _parse_edge(row["only"] or row["lo"]), _parse_edge(row["only"] or row["hi"])
    if row["only"] or (row["end"] == "]" and lo is not None):  # up to bpftrace 0.8, ``[0, 1]`` includes 1
        hi = None if hi is None else hi + 1
    return {"lo": lo, "hi": hi, "count": int(row["count"])}


def looks_like_row(line: str) -> bool:
    """Return whether a line begins as a row of a histogram does, whatever follows."""
    return bool(_ROW_START.match(line))


def holds_row(line: str) -> bool:
    """Return whether a line holds a row of a histogram, with its bar, behind other text."""
    return bool(_ROW_INSIDE.search(line))


def _parse_edge(label: str) -> int | None:
    if label == "...":
        return None
    unit = "KMGTPE".find(label[-1].upper()) + 1
    return int(label[:-1] if unit else label) << (10 * unit)


def histogram_kind(rows: Iterable[dict[str, int | None]]) -> str:
    """Return "hist" if the rows of one map fit powers of two, each in ``2**k`` steps, and else "lhist"."""
    steps = set(range(6))
    for row in rows:
        lo, hi = row["lo"], row["hi"]
        if hi is None or (lo is None and hi != 0) or (lo is not None and (lo < 0 or hi <= lo)):
            return "lhist"
        if lo is not None:
            steps &= {k for k in steps if _is_step(lo, hi, k)}
    return "hist" if steps else "lhist"


def _is_step(lo: int, hi: int, k: int) -> bool:
    """Return whether ``[lo, hi)`` is a bucket of ``hist(x, k)``, where each value below ``2**(k+1)`` has its own."""
    if lo < 2 << k:
        return hi == lo + 1
    width = 1 << (lo.bit_length() - 1 - k)
    return hi == lo + width and lo % width == 0
