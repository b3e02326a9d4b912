"""Real results to test with: a sweep of three backends on the instruction clock, and one of two on the ns clock."""

from __future__ import annotations

import gzip
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from kproxylat.results import Result
from kproxylat.results_json import list_from_json

HERE = Path(__file__).parent
COUNTED, TIMED = HERE / "counted.json", HERE / "timed.json.gz"
LOGS = sorted(HERE.glob("*.log"))


@cache
def load(path: Path) -> tuple[Result, ...]:
    """Load the results of a file."""
    data = path.read_bytes()
    return tuple(list_from_json(gzip.decompress(data) if path.suffix == ".gz" else data))


def change_run(result: Result, **facts: Any) -> Result:
    """Say something else of a run."""
    return replace(result, run=replace(result.run, **facts))


def with_values(result: Result, values: dict[int, int], services: int | None = None) -> Result:
    """Give a result's lookup other values."""
    assert result.lookup
    probe = replace(result.lookup, values={str(value): count for value, count in values.items()})
    changed = replace(result, probes=tuple(probe if each.lookup else each for each in result.probes))
    return change_run(changed, services=services) if services is not None else changed
