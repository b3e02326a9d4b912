"""How well repeats of a sweep agree: ``python bench/agree.py SWEEP.json SWEEP.json ...``

A pair of repeats agrees about a series if the bounds of what each Service adds overlap.
"""

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any


def agree(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Return whether the bounds of two series' slopes overlap."""
    one, other = a["per_service"], b["per_service"]
    return bool(one["lo"] <= other["hi"] and other["lo"] <= one["hi"])


def main(files: list[str]) -> None:
    """Print each series' slope and verdict in each repeat, and how many pairs agree."""
    documents = [json.loads(Path(file).read_text()) for file in files]
    repeats: dict[str, list[dict[str, Any]]] = {}
    for document in documents:
        for series in document["series"]:
            name = f"{series['mode']}/{series['backend']} {series.get('protocol', '')}".rstrip()
            repeats.setdefault(name, []).append(series)
    agreeing = pairs = 0
    for name, own in repeats.items():
        results = [agree(a, b) for a, b in combinations(own, 2)]
        agreeing, pairs = agreeing + sum(results), pairs + len(results)
        print(f"{name}: {sum(results)} of {len(results)} pairs agree")
        for series in own:
            slope = series["per_service"]
            print(f"  {slope['estimate']:8.3f} ({slope['lo']:.3f} to {slope['hi']:.3f}) {series['verdict']}")
    closed = [result["accounting"]["closed"] for document in documents for result in document["results"]]
    print(f"{agreeing} of {pairs} pairs agree; books closed: {sum(closed)} of {len(closed)} runs")


if __name__ == "__main__":
    main(sys.argv[1:])
