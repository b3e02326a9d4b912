"""Values that nobody expects, and the places of a document to put them."""

from __future__ import annotations

from collections.abc import Iterator
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
