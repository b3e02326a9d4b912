"""The outcome of one command on many nodes: a table by node, or one JSON document."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kproxylat.cluster.nodes import Outcome
from kproxylat.report.columns import draw_table
from kproxylat.report.run_table import list_figures, name_figures
from kproxylat.results import Result, name_unit
from kproxylat.results_json import from_json

SCHEMA = "kproxylat-nodes/1"


def read_results(outcomes: Iterable[Outcome]) -> dict[str, Result]:
    """Return node -> the result of its run, the slowest first; without the nodes that have none."""
    results = {}
    for outcome in outcomes:
        try:
            results[outcome.node] = from_json(outcome.envelope.stdout if outcome.envelope else "")
        except ValueError:
            continue
    costs = {node: result.headline.middle if result.headline else None for node, result in results.items()}
    return dict(sorted(results.items(), key=lambda pair: (costs[pair[0]] is None, -(costs[pair[0]] or 0))))


def draw_runs(results: Mapping[str, Result]) -> str:
    """Draw a table of runs by node, in their order."""
    rows = []
    probes = {node: result.headline for node, result in results.items()}
    units = {name_unit(probe.unit, results[node].run.emulated) for node, probe in probes.items() if probe}
    columns = name_figures(next(iter(units), ""))
    for node, result in results.items():
        probe, run = probes[node], result.run
        figures = list_figures(probe) if probe else ["-"] * len(columns)
        books = "" if result.accounting is None else "closed" if result.accounting.closed else "open"
        rows.append((node, f"{run.mode}/{run.backend}", *figures, books))
    title = f"a Service lookup by node, the slowest first, {' or '.join(sorted(units))}"
    return draw_table(title, ("node", "mode", *columns, "books"), rows, ("node", "mode", "books"))


def to_json(command: str, outcomes: Sequence[Outcome]) -> str:
    """Return one document with the outcome of every node, in the order given.

    ``result`` is the command's own JSON, or the text that it printed; None if there is none.
    """
    nodes = [
        {"node": outcome.node, "status": outcome.status, "error": outcome.error or None, "result": _read(outcome)}
        for outcome in outcomes
    ]
    return json.dumps({"schema": SCHEMA, "command": command, "nodes": nodes}, indent=2, ensure_ascii=False)


def _read(outcome: Outcome) -> Any:
    if outcome.envelope is None or not outcome.envelope.stdout:
        return None
    try:
        return json.loads(outcome.envelope.stdout)
    except (ValueError, RecursionError):
        return outcome.envelope.stdout
