"""Documents with results."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kproxylat.results import Result
from kproxylat.results_json import list_to_json, to_json


def files(directory: Path, *sides: Result | Iterable[Result]) -> list[str]:
    names = []
    for number, side in enumerate(sides):
        path = directory / f"{number}.json"
        path.write_text(to_json(side) if isinstance(side, Result) else list_to_json(side))
        names.append(str(path))
    return names
