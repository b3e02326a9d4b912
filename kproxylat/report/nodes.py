"""The outcome of one command on many nodes: a table by node, or one JSON document."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kproxylat.analysis.comparable import merge_counts
from kproxylat.cluster.nodes import Outcome
from kproxylat.report.columns import draw_table
from kproxylat.report.run_table import SHOWN, list_figures, name_figures
from kproxylat.results import Probe, Result, name_unit
from kproxylat.results_json import from_json
from kproxylat.trace.percentiles import add_percentiles
from kproxylat.trace.probes import exact_probe

SCHEMA = "kproxylat-nodes/1"
_ALIKE = ("kernel", "bpftrace", "processor", "mitigations", "mode", "backend", "origin", "position", "clock",
          "emulated", "probe_kind", "script_sha256")  # fmt: skip
"""Facts of a run in which nodes must agree for one distribution of all their calls."""


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


def pool(results: Mapping[str, Result]) -> dict[tuple[str, ...], Probe]:
    """Pool the calls of nodes that agree in kernel, bpftrace, processor, mode, the rule's place, and script.

    :return: the nodes of each pool, two or more -> all their calls. What is unknown does not agree.
    """
    pools: dict[str, dict[str, Probe]] = {}
    for node, result in results.items():
        run, probe = result.run, result.headline
        if probe and probe.values and run.processor and (run.script_sha256 or run.probe_kind == "none"):
            facts = [getattr(run, name) for name in _ALIKE]
            pools.setdefault(json.dumps([*facts, probe.engine, probe.unit]), {})[node] = probe
    return {tuple(alike): _merge([*alike.values()]) for alike in pools.values() if len(alike) > 1}


def _merge(probes: Sequence[Probe]) -> Probe:
    """Return one probe with the calls of all, each of which has every distinct value."""
    first, place = probes[0], (probes[0].table, probes[0].chain, probes[0].hook)
    percents = map(float, first.percentiles)
    return exact_probe(first.engine, place, merge_counts(probes), first.unit, first.lookup, percents)


def draw_runs(results: Mapping[str, Result]) -> str:
    """Draw a table of runs by node, in their order."""
    rows = []
    results = {node: add_percentiles(result, SHOWN) for node, result in results.items()}
    probes = {node: result.headline for node, result in results.items()}
    measured = next((probe.measured for probe in probes.values() if probe), "lookup")
    units = {name_unit(probe.unit, results[node].run.emulated) for node, probe in probes.items() if probe}
    columns = name_figures(next(iter(units), ""))
    for node, result in results.items():
        probe, run = probes[node], result.run
        figures = list_figures(probe) if probe else ["-"] * len(columns)
        closed = result.accounting.closed if result.accounting else None
        books = {True: "closed", False: "open", None: ""}[closed]
        rows.append((node, f"{run.mode}/{run.backend}", *figures, books))
    pools = pool(results)
    for nodes, probe in pools.items():
        accounts = [results[node].accounting for node in nodes]
        states = {account.closed if account else None for account in accounts}
        mode = f"{results[nodes[0]].run.mode}/{results[nodes[0]].run.backend}"
        books = "open" if False in states else "closed" if states == {True} else ""
        rows.append((f"these {len(nodes)}*", mode, *list_figures(probe), books))
    title = f"{measured} by node, the slowest first, {' or '.join(sorted(units))}"
    table = draw_table(title, ("node", "mode", *columns, "books"), rows, ("node", "mode", "books"))
    return "\n".join(
        [table, *(f"* {', '.join(nodes)}: alike in kernel, processor, rules and script" for nodes in pools)]
    )


def to_json(command: str, outcomes: Sequence[Outcome], results: Mapping[str, Result]) -> str:
    """Return one document with the outcome of every node, in the order given.

    ``result`` is the command's own JSON, or the text that it printed; None if there is none. ``pooled``: as
    :func:`pool` returns it.

    :param results: as :func:`read_results` returns them; of another command than ``run`` none.
    """
    nodes = [
        {"node": outcome.node, "status": outcome.status, "error": outcome.error or None, "result": _read(outcome)}
        for outcome in outcomes
    ]
    pooled = [{"nodes": names, "probe": asdict(probe)} for names, probe in pool(results).items()]
    document = {"schema": SCHEMA, "command": command, "nodes": nodes, "pooled": pooled}
    return json.dumps(document, indent=2)


def _read(outcome: Outcome) -> Any:
    if outcome.envelope is None or not outcome.envelope.stdout:
        return None
    try:
        return json.loads(outcome.envelope.stdout)
    except (ValueError, RecursionError):
        return outcome.envelope.stdout
