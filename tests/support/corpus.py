"""What bpftrace's JSON says of a run, in the form in which the parser's maps can be compared with it."""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path
from typing import Any

from kproxylat.trace.dump import Print
from tests.support import ROOT

CORPUS = Path(os.environ.get("KPROXYLAT_CORPUS", ROOT.parent / "shared" / "bpftrace-output"))

MEASURED = {"live_latency", "stacks", "stack_values", "stack_symbols", "tseries", "hist_huge_counts", "lost_events"}
"""Programs that measure or read the clock: the JSON is of another run, so that only forms can be compared."""


def read_json(text: str) -> list[tuple[str, Any]]:
    """List the maps of ``bpftrace -f json``: name and data, in order; lines that are no JSON are left out."""
    found = []
    for line in text.splitlines():
        try:
            each = json.loads(_mend(line), object_pairs_hook=_Pairs)
        except ValueError:
            continue
        if isinstance(each, _Pairs) and dict(each).get("type") in ("map", "hist", "stats", "tseries"):
            found += [(name[1:], data) for name, data in dict(each)["data"]]
    return found


def _mend(line: str) -> str:
    """Write a series as JSON: 0.24 has no commas between its points, and no quotes around times."""
    if not line.startswith('{"type": "tseries"'):
        return line
    return re.sub(r'"interval_start":([^",]+),', r'"interval_start":"\1",', line).replace("}{", "},{")


def outline(data: Any) -> tuple[Any, ...]:
    """Tell the structure of a JSON map's data: for each entry the frames in its key, and what its value is."""
    entries = data if isinstance(data, _Pairs) and {name for name, _ in data} != {"count", "average", "total"} else None
    if entries is None:
        return ((0, _shape(data)),)
    return tuple(sorted((max(len(re.findall(r"\n|\\n", name)) - 1, 0), _shape(value)) for name, value in entries))


def _shape(value: Any) -> str:
    if isinstance(value, _Pairs):
        return "stats"
    if isinstance(value, list):
        return "tseries" if value and "interval_start" in dict(value[0]) else "hist"
    if isinstance(value, str) and value.startswith("\n"):
        return f"stack of {value.count(chr(10)) - 1}"
    return type(value).__name__


def outline_print(each: Print) -> tuple[Any, ...]:
    """Tell the structure of a parsed map in the form of :func:`outline`."""

    def shape(value: Any) -> str:
        return f"stack of {len(value)}" if each.map.kind == "stack" else each.map.kind.replace("lhist", "hist")

    frames = [sum(len(part) for part in entry.key if isinstance(part, tuple)) for entry in each.map.entries]
    return tuple(sorted((count, shape(entry.value)) for count, entry in zip(frames, each.map.entries, strict=True)))


_STRING = r'"(?:\\.|[^"\\])*"'
_KEYED = re.compile(rf"@(\w+)\[((?:{_STRING}|[^\]\"])*)\] *=[^=]")


def read_keys(program: str) -> dict[str, set[tuple[Any, ...]]]:
    """List the keys that a program gives to its maps, of those maps whose keys are all literal."""
    keys: dict[str, set[tuple[Any, ...]]] = {}
    other = set()
    for name, text in _KEYED.findall(program):
        try:
            keys.setdefault(name, set()).add(tuple(ast.literal_eval(f"[{text}]")))
        except (ValueError, SyntaxError):
            other.add(name)
    return {name: each for name, each in keys.items() if name not in other}


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as pairs: old versions write two entries under one key."""


def flatten(data: Any) -> Any:
    """Bring a JSON map's data to the form of :func:`show`."""
    if isinstance(data, _Pairs) and {name for name, _ in data} != {"count", "average", "total"}:
        return sorted((_key(name), _value(value)) for name, value in data)
    return [("", _value(data))]


def show(each: Print) -> Any:
    """List a parsed map's entries in a form that loses what the JSON loses: how a key was divided, blanks in it."""
    if each.map.kind == "struct" and not each.map.entries[0].key:  # in JSON like a map with keys
        return sorted((name, _value(value)) for name, value in each.map.entries[0].value.items())
    return sorted((_key(",".join(map(_text, entry.key))), _value(entry.value)) for entry in each.map.entries)


def _text(part: Any) -> str:
    if isinstance(part, tuple) and part and all(isinstance(frame, str) for frame in part):
        return "".join(part)
    return "[" + ",".join(map(_text, part)) + "]" if isinstance(part, tuple) else str(part)


def _key(text: str) -> str:
    return re.sub(r'\\[nt]|[\s"\\]', "", text).replace("(", "[").replace(")", "]")


def _value(value: Any) -> str:
    """Write a value so that JSON's and ours can be compared: buckets as lo, hi, count; numbers as text."""
    if isinstance(value, dict) and "buckets" in value:
        return str([(row["lo"], row["hi"], row["count"]) for row in value["buckets"]])
    if isinstance(value, _Pairs):
        return str(sorted((name, _value(each)) for name, each in value))
    if isinstance(value, dict):
        return str(sorted((name, _value(each)) for name, each in value.items()))
    if isinstance(value, list | tuple) and value and isinstance(value[0], _Pairs) and "count" in dict(value[0]):
        rows = [dict(row) for row in value]
        return str(
            [
                (_int(row, "min"), (_int(row, "max") or 0) + 1 if "max" in row else None, _int(row, "count"))
                for row in rows
            ]
        )
    if isinstance(value, list | tuple):
        return str([_value(each) for each in value])
    if isinstance(value, str) and not re.fullmatch(r"-?\d{16,20}", value):  # from 0.24 on integers beyond 2^53
        return repr(value)
    return str(value)


def _int(row: dict[str, Any], name: str) -> int | None:
    return int(row[name]) if name in row else None  # beyond 2^53 they are strings from 0.24 on
