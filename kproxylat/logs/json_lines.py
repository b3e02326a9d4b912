"""Lines of JSON that bpftrace prints with ``-f json``. Pure.

Sample::

    {"type": "attached_probes", "data": {"probes": 2}}
    {"type": "printf", "data": "ready\\n"}
    {"type": "map", "data": {"@n": {"nat,0": 4, "filter,1": 5}}}
    {"type": "hist", "data": {"@us": [{"min": 1, "max": 1, "count": 3}, {"min": 2, "max": 3, "count": 1}]}}

Format: bpftrace, ``src/output.cpp``, from 0.24 on ``src/output/json.cpp``; versions tried: the corpus.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from kproxylat.results import Entry, Map
from kproxylat.trace.dump import Print
from kproxylat.trace.values import (
    STATS,
    histogram_kind,
    name_fields,
    parse_frames,
    parse_keys,
    parse_value,
    split_parts,
)

SIGN = b'{"type": "'
_BYTES = re.compile(r"(?:\\{1,2}uffffff[89a-f][0-9a-f])+")
_TOKEN = re.compile(r'("(?:\\.|[^"\\])*")|(?<=:)\s*([^\s"\[\]{},][^,}\]]*|)(?=[,}\]])')
_BIG = re.compile(r"-?\d{16,20}")
_DEPTH = 50
_MESSAGES = {"lost_events": "Lost {events} events", "errorf": "ERROR: {msg}", "warnf": "WARNING: {msg}"}


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as pairs: two entries of a map may have the same key."""


class Event(NamedTuple):
    """One line of JSON.

    :param begins_run: whether bpftrace attached its probes.
    :param text: printed by the script.
    :param message: one of bpftrace's own, as its text output has it.
    :param prints: the map that was printed.
    """

    begins_run: bool = False
    text: str = ""
    message: str = ""
    prints: tuple[Print, ...] = ()


def read_event(line: str) -> Event | None:
    """Read a line of JSON; return None if it is damaged."""
    if "uffffff" in line:
        line = _BYTES.sub(lambda match: _decode(match[0]), line)
    for mend in (str, _mend):
        try:
            event = json.loads(mend(line), object_pairs_hook=_Pairs)
            return _build_event(dict(event))
        except (AttributeError, KeyError, LookupError, OverflowError, RecursionError, TypeError, ValueError):
            continue
    return None


def _decode(escaped: str) -> str:
    """Decode text outside ASCII: from 0.17 on, each of its bytes is written like ``\\uffffffc3``."""
    text = bytes.fromhex(re.sub(r"\\+uffffff", "", escaped)).decode(errors="backslashreplace")
    return text.replace("\\", r"\\")


def _mend(line: str) -> str:
    """Mend what bpftrace writes wrong: times and pointers without quotes, nothing for an empty histogram, no commas."""

    def quote(token: re.Match[str]) -> str:
        if token[1]:
            return token[1]
        return json.dumps(parse_value(token[2])[1]) if token[2] else "[]"

    # The reader of the log shows a byte that is not UTF-8 as \xNN, which JSON does not allow.
    line = re.sub(r"(?<!\\)((?:\\\\)*)\\x", r"\1\\\\x", line)
    return _TOKEN.sub(quote, line.replace("}{", "},{"))


def _build_event(event: dict[str, Any]) -> Event:
    kind, data = event["type"], event.get("data")
    if kind == "attached_probes":
        return Event(begins_run=True)
    if kind in ("map", "hist", "stats", "tseries"):
        maps = [(name[1:], content) for name, content in data or () if content or not isinstance(content, _Pairs)]
        return Event(prints=tuple(Print(name, _build_map(kind, content)) for name, content in maps))
    if kind == "helper_error":
        reason = event.get("msg") or f"error {event['retcode']}"
        return Event(
            message=f"WARNING: {'' if 'Map full' in reason else 'Failed to ' + event['helper'] + ': '}{reason}"
        )
    if kind in _MESSAGES:
        return Event(message=_MESSAGES[kind].format(**event, **dict(data or ())))
    text = data if isinstance(data, str) else json.dumps(data)
    return Event(text=f"{text}\n" if kind in ("join", "value") else text)


def _build_map(kind: str, content: Any) -> Map:
    is_keyed = isinstance(content, _Pairs) and (kind != "stats" or [name for name, _ in content] != STATS)
    keys = _build_keys([key for key, _ in content]) if is_keyed else [()]
    values = [_build_value(kind, value) for value in ([value for _, value in content] if is_keyed else [content])]
    if all(isinstance(value, int) or (isinstance(value, str) and _is_big(value)) for value in values):
        values = [int(value) if isinstance(value, str) else value for value in values]
    kinds = {_name_kind(value) for value in values}
    if kind == "hist":
        kinds = {histogram_kind(row for value in values for row in value["buckets"])}
    elif kind == "tseries":
        kinds = {kind}
    elif "stack" in kinds and kinds <= {"stack", "str"}:
        values, kinds = [parse_frames(value.split("\n")) for value in values], {"stack"}
    entries = (Entry(key, value) for key, value in zip(keys, values, strict=True))
    return Map(kinds.pop() if len(kinds) == 1 else "mixed", tuple(entries))


def _build_keys(keys: list[str]) -> list[tuple[Any, ...]]:
    """Divide keys into parts; JSON has only a comma between these."""
    if min(len(split_parts(key, ",")) for key in keys) > 1:
        keys = [re.sub(r",(?! )", ", ", key) for key in keys]
    return parse_keys(keys)


def _build_value(kind: str, value: Any, depth: int = 0) -> Any:
    if depth > _DEPTH:
        raise ValueError("it is nested too deeply")
    if kind == "hist":
        rows = [_build_bucket(dict(row)) for row in value]
        return {"count": sum(row["count"] or 0 for row in rows), "buckets": rows}
    if kind == "tseries":
        return tuple({"time": point["interval_start"], "value": point["value"]} for point in map(dict, value))
    if isinstance(value, _Pairs):
        fields = {name: _build_value("map", item, depth + 1) for name, item in value}
        if [*fields] == STATS:
            fields |= {name: int(item) for name, item in fields.items() if isinstance(item, str) and _is_big(item)}
        return fields
    if isinstance(value, list):
        return tuple(_build_value("map", item, depth + 1) for item in value)
    return value


def _build_bucket(row: dict[str, Any]) -> dict[str, int | None]:
    """Make a bucket half open. Numbers beyond 2**53 are strings from 0.24 on; up to 0.19, 2**31 is negative."""
    if row.get("min") == -1 << 31:
        return {"lo": 1 << 31, "hi": 1 << 32, "count": row["count"]}
    lo, hi = (int(row[name]) if name in row else None for name in ("min", "max"))
    return {"lo": lo, "hi": None if hi is None else hi + 1, "count": int(row["count"])}


def _is_big(text: str) -> bool:
    """Return whether a string is an integer beyond 2**53, which is a string from 0.24 on."""
    return bool(_BIG.fullmatch(text)) and 1 << 53 <= abs(int(text)) <= 1 << 64


def _name_kind(value: Any) -> str:
    if isinstance(value, str):
        return "stack" if value.startswith("\n") and value.endswith("\n") else "str"
    if isinstance(value, dict):
        return name_fields(value)
    return type(value).__name__
