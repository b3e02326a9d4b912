"""Results as JSON documents, and back."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from typing import Any

from kproxylat.results import SCHEMA, Map, Result

_get_hints = cache(typing.get_type_hints)
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


def list_from_json(text: str | bytes) -> list[Result]:
    """Read the results that :func:`to_json` or :func:`list_to_json` wrote.

    :raises ValueError: as :func:`from_json`.
    """
    return build_results(load_document(text, SCHEMA))


def build_results(document: Mapping[str, Any]) -> list[Result]:
    """Build the results of a document: its only one, or those in its list.

    :raises ValueError: fields that do not fit.
    """
    results = document.get("results", [document])
    if not isinstance(results, list):
        raise ValueError("its results are not a list")
    return [_build_result(data) for data in results]


def from_json(text: str | bytes) -> Result:
    """Read the result that :func:`to_json` wrote.

    :raises ValueError: not JSON, another schema, or fields that do not fit.
    """
    return _build_result(load_document(text, SCHEMA))


def load_document(text: str | bytes, schema: str) -> dict[str, Any]:
    """Read a JSON document.

    :raises ValueError: not JSON, or another schema.
    """
    document = json.loads(text)
    if not isinstance(document, dict) or document.get("schema") != schema:
        raise ValueError(f"not a document of schema {schema}")
    return document


def _build_result(data: Any) -> Result:
    try:
        result: Result = build(Result, data)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a result of schema {SCHEMA}: {error}") from error
    return result


def build(kind: Any, data: Any) -> Any:
    """Build a value of an annotated type from JSON data: dataclasses, tuples, mappings and optionals of these.

    :raises TypeError: the data has another type.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or (data is None and type(None) in args):
        return data
    if origin is types.UnionType:
        return build(next(arg for arg in args if arg is not type(None)), data)
    if is_dataclass(kind) and isinstance(kind, type):
        _check(dict, data)
        hints = _get_hints(kind)
        known = {item.name: build(hints[item.name], data[item.name]) for item in fields(kind) if item.name in data}
        return kind(**known)
    if origin is tuple:
        _check(list, data)
        return tuple(build(args[0], item) for item in data)
    if origin in (dict, Mapping) or (isinstance(data, dict) and args):
        _check(dict, data)
        return {key: build(args[1], item) for key, item in data.items()}
    _check((int, float) if kind is float else kind, data)
    return data


def _check(kind: Any, data: Any) -> None:
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise TypeError(f"{data!s:.40} is not a {getattr(kind, '__name__', 'number')}")
