"""Values that nobody expects, and the places of a document to put them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

ODD: tuple[Any, ...] = (
    None,
    5,
    "a",
    [],
    [5],
    [None],
    {},
    {"a": 1},
    True,
    -1,
    "\x1b]0;x\x07\u202e\x9b",
    "x" * 1000,
    "..",
)


def walk(data: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each member and item of a document."""
    for key, item in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield *path, key
        yield from walk(item, *path, key)


def put(document: Any, place: Sequence[Any], value: Any) -> Any:
    """Return a copy of a document with another value at a place; KeyError: with nothing there."""
    changed = copy.deepcopy(document)
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    if value is KeyError:
        del holder[place[-1]]
    else:
        holder[place[-1]] = copy.deepcopy(value)
    return changed
