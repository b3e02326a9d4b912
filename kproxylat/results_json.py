"""Results as JSON documents, and back."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

from kproxylat.results import SCHEMA, Bucket, Entry, Map, Result

T = TypeVar("T")
_get_hints = cache(typing.get_type_hints)
_LARGEST, _DIGITS = 1 << 64, 300
_DEPTH = 50
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""A surrogate, which JSON can hold alone, and UTF-8 cannot (RFC 8259, section 8.2)."""
_WORDS = re.compile(r"arguments\[\d+\]\Z|\.log\Z")
"""Places of the command line's words, which may be any bytes."""
_NUMBER = re.compile(r"-?\d{1,19}")
_UNITS = ("ns", "us", "instructions")
_SIGNED = frozenset({"lo", "hi", "stored"})
"""Integer fields that may be negative."""
_LEFT_OUT = (("percentiles", None), ("delivered_masqueraded", None))
"""Fields of an entry and of the accounting that a document has only with a value."""


def to_data(result: Result | Map) -> dict[str, Any]:
    """Return a result, or a map, as JSON data: its fields, but for those of :data:`_LEFT_OUT`."""
    return asdict(result, dict_factory=lambda items: dict(item for item in items if item not in _LEFT_OUT))


def to_json(result: Result) -> str:
    """Write a result as one JSON document."""
    return json.dumps({"schema": SCHEMA, **to_data(result)}, indent=2)


def list_to_json(results: Iterable[Result], **more: Any) -> str:
    """Write results as one JSON document, ``{"schema": ..., "results": [...]}``.

    :param more: further members of the document, by name; dataclasses, too.
    """
    document = {"schema": SCHEMA, "results": [to_data(result) for result in results], **more}
    return json.dumps(document, indent=2, default=asdict)


def list_from_json(text: str | bytes, complain: Callable[[str], None] | None = None) -> list[Result]:
    """Read the results that :func:`to_json` or :func:`list_to_json` wrote.

    :param complain: called with the reason for each result that is left out; None: such a result is an error.
    :raises ValueError: as :func:`from_json`, of the document, or of its only result.
    """
    return build_results(load_document(text, SCHEMA), complain)


def build_results(document: Mapping[str, Any], complain: Callable[[str], None] | None = None) -> list[Result]:
    """Build the results of a document: its only one, or those in its list.

    :param complain: as :func:`list_from_json` says.
    :raises ValueError: fields that do not fit.
    """
    if "results" not in document:
        return [_build_result(document)]
    return build_valid(_build_result, document["results"], "results", complain)


def build_valid(
    build_one: Callable[[Any, str], T], items: Any, place: str, complain: Callable[[str], None] | None
) -> list[T]:
    """Build the items of a list that can be built.

    :param build_one: called with an item and its place, which begins with ``place``.
    :param complain: called with the reason for each item that is left out; None: such an item is an error.
    :raises ValueError: it is not a list.
    """
    if not isinstance(items, list):
        raise ValueError(f"its {place} are not a list")
    values = []
    for index, data in enumerate(items):
        try:
            values.append(build_one(data, f"{place}[{index}]"))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            if not complain:
                raise
            complain(f"{error}; this {place[:-1]} is left out")
    return values


def from_json(text: str | bytes) -> Result:
    """Read the result that :func:`to_json` wrote.

    :raises ValueError: not JSON, another schema, or fields that do not fit.
    """
    return _build_result(load_document(text, SCHEMA))


def load_json(text: str | bytes) -> Any:
    """Read JSON; :func:`build` checks the values in it.

    :raises ValueError: it is not JSON, or nested too deeply.
    """
    try:
        # int() refuses thousands of digits, which would cost the whole document.
        return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= _DIGITS else float(digits))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def load_document(text: str | bytes, schema: str) -> dict[str, Any]:
    """Read a JSON document.

    :raises ValueError: not JSON, or another schema.
    """
    document = load_json(text)
    if not isinstance(document, dict) or document.get("schema") != schema:
        raise ValueError(f"not a document of schema {schema}")
    return document


def _build_result(data: Any, place: str = "") -> Result:
    try:
        result: Result = build(Result, data, place)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a result of schema {SCHEMA}: {error}") from error
    return result


def build(kind: Any, data: Any, place: str = "") -> Any:
    """Build a value of an annotated type from JSON data: dataclasses, tuples, mappings and optionals of these.

    :param place: the place of the data in its document, e.g. ``results[0].run``.
    :raises TypeError: the data has another type, or a value that no field of the type can have.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if data is None and type(None) in args:
        return data
    if kind is Any:
        return _check_any(data, place)
    if origin is types.UnionType:
        return build(next(arg for arg in args if arg is not type(None)), data, place)
    if is_dataclass(kind) and isinstance(kind, type):
        return _build_fields(kind, _check(dict, data, place), place)
    if origin is tuple:
        items = enumerate(_check(list, data, place))
        return tuple(build(args[0], item, f"{place}[{index}]") for index, item in items)
    if origin in (dict, Mapping) or (isinstance(data, dict) and args):
        items = _check(dict, data, place).items()
        return {_check(str, key, place): _count(build(args[1], item, f"{place}.{key}"), place) for key, item in items}
    return _check((int, float) if kind is float else kind, data, place)


def _build_fields(kind: Any, data: Mapping[str, Any], place: str) -> Any:
    hints, known = _get_hints(kind), {}
    for name in (item.name for item in fields(kind) if item.name in data):
        field_place = f"{place}.{name}".removeprefix(".")
        value = build(hints[name], data[name], field_place)
        known[name] = _count(value, field_place) if hints[name] in (int, int | None) and name not in _SIGNED else value
        check = _CHECKS.get(f"{kind.__name__}.{name}")
        if check and not check(known):
            raise TypeError(f"{field_place}: {_quote(value)} is impossible")
    try:
        return kind(**known)
    except TypeError:
        needed = [item.name for item in fields(kind) if item.default is item.default_factory]
        missing = [name for name in needed if name not in known]
        raise TypeError(f"{place}: {', '.join(missing)} is missing".removeprefix(": ")) from None


def _are_counts(values: Any) -> bool:
    """Whether each key is a value that was measured, and at least one was."""
    return all(map(_NUMBER.fullmatch, values)) and (not values or any(values.values()))


def _ascend(buckets: Iterable[Bucket]) -> bool:
    """Whether each bucket holds something and begins where the one before ends, or later."""
    end: float = -_LARGEST
    for bucket in buckets:
        lo, hi = -_LARGEST if bucket.lo is None else bucket.lo, _LARGEST if bucket.hi is None else bucket.hi
        if bucket.count < 1 or not end <= lo < hi:
            return False
        end = hi
    return True


def _fit(kind: str, entry: Entry) -> bool:
    """Whether the value of a map's entry is one of the map's kind."""
    try:
        if kind in ("hist", "lhist"):
            buckets = [Bucket(**row) for row in entry.value["buckets"]]
            return _ascend(bucket for bucket in buckets if bucket.count) and entry.value["count"] >= 0
        return kind != "stats" or all(isinstance(entry.value[name], int) for name in ("count", "average", "total"))
    except (TypeError, KeyError):
        return False


_CHECKS: Mapping[str, Callable[[dict[str, Any]], bool]] = {
    "Probe.unit": lambda known: known["unit"] in _UNITS,
    "Overhead.unit": lambda known: known["unit"] in _UNITS,
    "Probe.values": lambda known: _are_counts(known["values"] or {}),
    "Probe.targets": lambda known: all(map(_are_counts, (known["targets"] or {}).values())),
    "Histogram.buckets": lambda known: _ascend(known["buckets"]),
    "Map.entries": lambda known: all(_fit(known.get("kind", ""), entry) for entry in known["entries"]),
    "Contrast.figures": lambda known: bool(known["figures"]),
    "Comparison.lookups": lambda known: bool(known["lookups"]),
}
"""Class and field -> whether the fields up to this one can be what they are."""


def _count(value: Any, place: str) -> Any:
    """Return a value, unless it is a negative integer."""
    if isinstance(value, int) and value < 0:
        raise TypeError(f"{place}: {value} is negative")
    return value


def _check(kind: Any, data: Any, place: str) -> Any:
    """Return data of a type, if it is finite, of 64 bits and UTF-8."""
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise TypeError(f"{place}: {_quote(data)} is not a {getattr(kind, '__name__', 'number')}".removeprefix(": "))
    if isinstance(data, int | float) and not -_LARGEST < data < _LARGEST:
        raise TypeError(f"{place}: {_quote(data)} is too large")
    if isinstance(data, str) and not data.isascii() and HALF_CHARACTER.search(data) and not _WORDS.search(place):
        raise TypeError(f"{place}: {_quote(data)} is not text: it holds half a character")
    return data


def _check_any(data: Any, place: str, depth: int = 0) -> Any:
    """Return data of any type, if all of its values pass :func:`_check`."""
    if depth > _DEPTH:
        raise TypeError(f"{place}: it is nested too deeply")
    if isinstance(data, dict | list):
        for item in (*data, *data.values()) if isinstance(data, dict) else data:
            _check_any(item, place, depth + 1)
        return data
    return data if data is None else _check(type(data) if isinstance(data, bool | str) else (int, float), data, place)


def _quote(data: Any) -> str:
    return f"a {type(data).__name__}" if isinstance(data, list | dict) else f"{data!a:.40}"
