"""Real results to test with: a sweep of three backends on the instruction clock, and one of two on the ns clock."""

from __future__ import annotations

import gzip
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from kproxylat.results import Result, Run, SendTime
from kproxylat.results_json import list_from_json
from kproxylat.trace.probes import exact_probe

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


def untraced(cost_ns: float, noise: float, rng: Random, services: int = 10, parts: int = 20) -> Result:
    """Return a run of the sender's clock on a machine whose speed changes: from run to run as from part to part.

    :param noise: the relative standard deviation of the speed.
    """
    run = cost_ns * rng.gauss(1, noise)
    blocks = [run * rng.gauss(1, noise) for _ in range(parts)]
    values = Counter(round(block * rng.gauss(1, 0.02)) for block in blocks for _ in range(50))
    times = SendTime(
        exact_probe("sendto", (None, None, None), values, "ns"), None, None, None, None, 30,
        {"target": 1000}, {"target": 0}, 20, 0, tuple(blocks),
    )  # fmt: skip
    about = Run(mode="iptables", backend="legacy", clock="ns", probe_kind="none", services=services)
    return Result(about, None, (), send_time=times)
