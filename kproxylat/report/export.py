"""Results -> text: table EXPORTERS. Units are converted here and nowhere else; headers and metrics: docs/logs.md."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, astuple
from typing import Any

from kproxylat.analysis.comparable import refuse_mixed_time
from kproxylat.console import plain, plain_line
from kproxylat.report.openmetrics import export_openmetrics
from kproxylat.report.run_table import draw_result
from kproxylat.results import SCHEMA, Percentile, Probe, Result, name_unit, target_text
from kproxylat.results_json import to_data
from kproxylat.trace.percentiles import PERCENTILES

_SECONDS = {"ns": 1e-9, "us": 1e-6}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:e[+-]?\d+)?")
_UNKNOWN = Percentile(None, None, None)
_SOURCE_FIELDS = ("file", "dialect", "index")
_RUN_FIELDS = (
    "started", "mode", "backend", "target", "services", "position", "chain_length", "duration_s", "rate_pps",
    "clock", "kernel", "cut_short", "probes",
)  # fmt: skip
_PROBE_FIELDS = ("engine", "table", "chain", "hook", "unit", "count", "min", "mean", "max", "sum")
_AFTER_FIELDS = ("position_after", "chain_length_after", "sync_s", "variant")
_AROUND_FIELDS = ("envelope_mean", "rules_share", "empty_adds", "script_adds", "untraced_lo", "untraced_hi")


def export_json(results: Iterable[Result]) -> Iterator[str]:
    """Write one document, ``{"schema": ..., "results": [...]}``."""
    yield f'{{"schema": "{SCHEMA}", "results": ['
    comma = ""
    for result in results:
        yield f"{comma}\n{json.dumps(to_data(result))}"
        comma = ","
    yield "\n]}\n"


def export_csv(results: Iterable[Result], percents: Iterable[float] = PERCENTILES) -> Iterator[str]:
    """Write one row a run, for its main probe.

    :param percents: the percentiles that have columns, whatever the results have.
    """
    names = [f"{percent:g}" for percent in percents]
    shown = [f"p{name}{end}" for name in names for end in ("", "_lo", "_hi")]
    yield csv_row(
        [*_SOURCE_FIELDS, *_RUN_FIELDS, *_PROBE_FIELDS, *shown, "warnings", "maps", *_AROUND_FIELDS, *_AFTER_FIELDS]
    )
    for result in results:
        probe = result.main_probe
        row = _describe(result, probe)
        percentiles = [(probe.percentiles.get(name) if probe else None) or _UNKNOWN for name in names]
        bounds = [figure for percentile in percentiles for figure in astuple(percentile)]
        maps = {name: to_data(content) for name, content in result.maps.items()}
        quality = len(result.quality.warnings), json.dumps(maps)
        after = [getattr(result.run, name) for name in _AFTER_FIELDS]
        yield csv_row([*row, *bounds, *quality, *_describe_around(result, probe), *after])


def _describe_around(result: Result, probe: Probe | None) -> list[float | None]:
    """Fill the columns of the envelope at the main probe's hook, and of what tracing adds."""
    hook = next((other for other in result.probes if probe and other.envelope and other.hook == probe.hook), None)
    overhead, middle = result.overhead, probe.middle if probe else None
    row = (hook.mean, hook.share) if hook else (None, None)
    adds = (overhead.empty.estimate, overhead.script.estimate) if overhead else (None, None)
    return [*row, *adds, *(overhead.untraced(middle) if overhead and middle is not None else (None, None))]


def _describe(result: Result, probe: Probe | None) -> list[Any]:
    """Fill the columns that do not depend on the percentiles asked for."""
    known: dict[str, Any] = {
        **asdict(result.run),
        "target": target_text(result),
        "rate_pps": result.traffic.rate_pps if result.traffic else None,
        "probes": len(result.probes),
    }
    call = {name: getattr(probe, name, None) for name in _PROBE_FIELDS}
    for facts, name in ((known, "clock"), (call, "unit")):
        if facts[name] == "ns":
            facts[name] = name_unit("ns", result.run.emulated)
    source = [getattr(result.source, name, None) for name in _SOURCE_FIELDS]
    return [*source, *map(known.get, _RUN_FIELDS), *call.values()]


def export_experiment(results: Iterable[Result]) -> Iterator[str]:
    """Write the old full experiment's CSV, one row a run.

    Its percentiles are estimates in us with a decimal point; those of the old scripts have none.

    :raises LogError: as :func:`kproxylat.analysis.comparable.refuse_mixed_time`.
    """
    from kproxylat.logs.legacy import EXPERIMENT_HEADER

    yield EXPERIMENT_HEADER + "\n"
    for result in refuse_mixed_time(results):
        probe, run = result.main_probe, result.run
        row: list[Any] = [run.services, run.mode or run.backend, run.position, run.chain_length]
        scale = _SECONDS.get(probe.unit, 0) * 1e6 if probe else 0
        figures: list[float | None] = [probe.mean, probe.max] if probe else [None, None]
        for name in ("50", "95", "99"):
            percentile = probe.percentiles.get(name) if probe else None
            figures.append(percentile.estimate if percentile else None)
        texts = [None if figure is None or not scale else f"{figure * scale:.3f}".rstrip("0") for figure in figures]
        row += [text and text.removesuffix(".") for text in texts[:2]]
        row += [text + "0" if text and text.endswith(".") else text for text in texts[2:]]
        yield csv_row([*row, run.log or (result.source.file if result.source else None)])


def csv_row(row: Iterable[Any]) -> str:
    """Write one line of CSV. A text that a spreadsheet would take for a formula gets an apostrophe before it."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(_write_cell(cell) if isinstance(cell, str) else cell for cell in row)
    return text.getvalue()


def _write_cell(text: str) -> str:
    return f"'{plain(text)}" if text.lstrip().startswith(_FORMULA) and not _NUMBER.fullmatch(text) else plain(text)


def export_table(results: Iterable[Result]) -> Iterator[str]:
    """Write tables for people, as wide as the terminal, as ``run`` prints them."""
    for result in results:
        source = result.source
        if source:
            yield f"{plain_line(source.file)} (run {source.index + 1}, {source.dialect})\n"
        for paragraph in draw_result(result):
            yield f"{paragraph}\n"
        yield "\n"


EXPORTERS: Mapping[str, Callable[[Iterable[Result]], Iterator[str]]] = {
    "table": export_table,
    "json": export_json,
    "csv": export_csv,
    "openmetrics": export_openmetrics,
}
CSV_DIALECTS: Mapping[str, Callable[[Iterable[Result]], Iterator[str]]] = {
    "run": export_csv,
    "experiment": export_experiment,
}
