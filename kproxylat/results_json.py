"""Results as JSON documents, and back."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from kproxylat.results import SCHEMA, Map, Result


def to_data(result: Result | Map) -> dict[str, Any]:
    """Return what JSON says of a result, or of a map: its fields, an entry's percentiles only where it has some."""
    return asdict(result, dict_factory=lambda fields: dict(each for each in fields if each != ("percentiles", None)))


def to_json(result: Result) -> str:
    """Write a result as one JSON document."""
    return json.dumps({"schema": SCHEMA, **to_data(result)}, indent=2, ensure_ascii=False)


def list_to_json(results: Iterable[Result], **more: Any) -> str:
    """Write results as one JSON document, ``{"schema": ..., "results": [...]}``.

    :param more: what else goes into it, by name; dataclasses, too.
    """
    document = {"schema": SCHEMA, "results": [to_data(each) for each in results], **more}
    return json.dumps(document, indent=2, ensure_ascii=False, default=asdict)


def list_from_json(text: str | bytes) -> list[Result]:
    """Read the results of what :func:`to_json` or :func:`list_to_json` wrote.

    :raises ValueError: as :func:`from_json`.
    """
    data = json.loads(text)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f"no document of schema {SCHEMA}")
    found = data.get("results", [data])
    if not isinstance(found, list):
        raise ValueError("its results are no list")
    return [_build_result(each) for each in found]


def from_json(text: str | bytes) -> Result:
    """Read what :func:`to_json` wrote.

    :raises ValueError: not JSON, another schema, or fields that do not fit.
    """
    data = json.loads(text)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f"no document of schema {SCHEMA}")
    return _build_result(data)


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
        hints = typing.get_type_hints(kind)
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
        raise TypeError(f"{data!s:.40} is no {getattr(kind, '__name__', 'number')}")
