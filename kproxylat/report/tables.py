"""Tables for people, on stdout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kproxylat.analysis.comparison import state
from kproxylat.report.columns import Table, draw_table, fill, show, write_bounded, write_figure
from kproxylat.report.run_table import draw_result, head_unit, list_services
from kproxylat.report.sentences import describe_alternative, describe_series, equal_at
from kproxylat.results import Result, name_unit

if TYPE_CHECKING:
    from kproxylat.analysis.alternatives import WhatIf
    from kproxylat.analysis.comparison import Comparison
    from kproxylat.analysis.contrast import Figure
    from kproxylat.analysis.series import Series
    from kproxylat.node.doctor import Finding

MOST_LINES = 12
"""Most lines of a list in a preview; its JSON has all."""
MOST_SERVICES = 10
"""Most Services in the table of the most expensive ones."""
ALTERNATIVES = (
    "now: the rules as captured; others: what kube-proxy 1.36, or the release that is named, would write for the same "
    "Services. equal at: with so many Services before it, a lookup costs the same in both; before counts Services, not "
    "rules. per Service, base and equal at are those of TCP, where it was measured."
)
"""What the columns of :func:`list_alternatives` mean."""


def show_result(result: Result) -> None:
    """Print a run."""
    for paragraph in draw_result(result):
        show(paragraph)


def list_alternatives(outcome: WhatIf) -> tuple[Table, Table]:
    """List what lookups cost in each mode, as :data:`ALTERNATIVES` explains, and each Service's in the present one."""
    unit = outcome.unit.removeprefix("emulated ")
    rows = []
    for mode in outcome.alternatives:
        figures = (mode.least, mode.mean, mode.most, mode.base, mode.per_service)
        written = [write_figure(None if figure is None else round(figure, 2), unit) for figure in figures]
        rows.append((f"{mode.mode}/{mode.backend}", *written, equal_at(mode, outcome)))
    header = ("mode", "least", "mean", "most", "base", "per Service", "equal at")
    head = head_unit(outcome.series[0].unit, outcome.series[0].emulated) if outcome.series else outcome.unit
    return Table(f"lookup in each mode, {head}", header, rows, header[:1]), list_services(outcome.dearest, head)


def show_whatif(outcome: WhatIf) -> None:
    """Print what lookups cost in each mode, the most expensive Services, and a verdict for each mode."""
    modes, services = list_alternatives(outcome)
    show(modes.draw())
    show(fill(ALTERNATIVES, indent=""))
    show()
    for note in outcome.notes:
        show(fill(f"note: {note}"))
    show(replace(services, rows=services.rows[:MOST_SERVICES]).draw())
    for series in outcome.series:
        show(fill(f"{series.name}: {series.verdict}: {series.evidence}"))
    show()
    for mode in outcome.alternatives:
        show(fill(describe_alternative(mode, outcome)))


def list_series(every: Sequence[Series]) -> Table:
    """List what each Service adds, in one or more series."""
    rows = []
    for series in every:
        per, bounds = series.per_service, "-"
        if per:
            exact = per.lo == per.hi and series.level == 1
            bounds = "exact" if exact else f"{per.lo:.4g} to {per.hi:.4g}"
        base = write_figure(round(series.base.estimate), series.unit) if series.base else "-"
        rows.append((series.name, f"{per.estimate:.4g}" if per else "-", bounds, base, series.verdict))
    header = ("series", "per Service", "bounds", "base", "verdict")
    title = f"what each Service adds, {head_unit(every[0].unit, every[0].emulated)}"
    return Table(title, header, rows, ("series", "verdict"))


def explain_series(every: Sequence[Series]) -> Iterator[str]:
    """Yield the evidence of each series, and in indented lines what is besides."""
    for series in every:
        yield f"{series.name}: {series.evidence}"
        apart = [f"{_list_values(point.others)} at {point.services:,}" for point in series.points if point.others]
        if apart:
            yield f"  less common values, and how often: {'; '.join(apart)}"
        if check := series.cross_check:
            probe, send_time = (write_bounded(side, ".4g") for side in (check.probe, check.send_time))
            verdict = "the clocks agree" if check.agrees else "THE CLOCKS DISAGREE"
            unit = name_unit(check.unit, series.emulated)
            yield f"  each Service adds {probe} by the probe, {send_time} by the send time, {unit}: {verdict}"


def show_series(every: Sequence[Series]) -> None:
    """Print what each Service adds, in sentences and a table, and what a lookup costs over numbers of Services."""
    if not every:
        show("no lookup was measured")
        return
    for sentence in describe_series(every):
        show(fill(sentence))
    show()
    show(list_series(every).draw())
    show()
    for line in explain_series(every):
        show(fill(line, indent="    " if line.startswith(" ") else "  "))
    show()
    show(list_points(every).draw())


def list_points(every: Sequence[Series]) -> Table:
    """List what a lookup costs over numbers of Services, in one or more series."""
    costs = [
        {point.services: write_figure(round(point.cost), series.unit) for point in series.points} for series in every
    ]
    rows = [(f"{size:,}", *(points.get(size, "-") for points in costs)) for size in sorted(set().union(*costs))]
    title = f"{every[0].figure} {every[0].measured}, {head_unit(every[0].unit, every[0].emulated)}"
    return Table(title, ("Services", *(series.name for series in every)), rows, ())


def show_clocks(every: Sequence[Sequence[Series]]) -> None:
    """Print what each Service adds by several clocks, one column each.

    :param every: the series of each clock.
    """
    names = dict.fromkeys(series.name for clock in every for series in clock)
    columns, cells = [], []
    for clock in every:
        known = {series.name: series for series in clock}
        head = head_unit(clock[0].unit, clock[0].emulated).replace(", ", ",\n").replace(": ", ":\n") if clock else "-"
        columns.append(f"{head}\na Service")
        cells.append([_say_growth(known.get(name)) for name in names])
    rows = [(name, *row) for name, row in zip(names, zip(*cells, strict=True), strict=True)]
    show(draw_table("what each Service adds to a packet", ("mode", *columns), rows, ("mode",)))


def _say_growth(series: Series | None) -> str:
    if not series or not series.per_service:
        return "-"
    return f"{series.verdict}: {series.per_service.estimate:.3g}" if series.verdict != "O(1)" else "O(1)"


def _list_values(values: Mapping[str, int]) -> str:
    """Write the commonest of values with their counts, e.g. ``5,786 (84x)``."""
    most = sorted(values.items(), key=lambda item: -item[1])
    more = f" and {len(most) - 2} more" if most[2:] else ""
    return ", ".join(f"{int(value):,} ({count:,}x)" for value, count in most[:2]) + more


def show_comparison(comparison: Comparison) -> None:
    """Print what changed from A to B, as tables and a sentence."""
    for name, side in (("A", comparison.a), ("B", comparison.b)):
        runs = f"{side.runs} run{'s' if side.runs > 1 else ''}"
        show(fill(f"{name}: {side.mode}/{side.backend}, {runs}, {side.file}"))
    changed = [f"{name} {_say_condition(a)} -> {_say_condition(b)}" for name, (a, b) in comparison.changed.items()]
    notes = {
        "only": comparison.only,
        "differing": changed,
        "overruled": [f"{name} ({difference})" for name, difference in comparison.overruled.items()],
        "neither side tells": comparison.unknown,
    }
    for name, facts in notes.items():
        if facts:
            show(fill(f"{name}: {', '.join(facts)}"))
    show()
    unit = head_unit(comparison.unit, comparison.emulated)
    lookups, first = comparison.lookups, comparison.lookups[0]
    if len(lookups) == 1:
        _show_figures(f"{first.what}, {unit}", first.level, [(_say_figure(row), row) for row in first.figures])
        if first.distance is not None and first.chance_distance is not None:
            apart = f"at the cost where A and B differ most, {first.distance:.1%} more of one side's calls are below it"
            show(fill(f"{apart} (chance alone: up to {first.chance_distance:.1%})", indent=""))
    else:
        title = f"{_say_figure(first.main)} {comparison.measured}, {unit}"
        _show_figures(title, first.level, [(lookup.what, lookup.main) for lookup in lookups])
    if comparison.calls:
        show()
        calls = [(call.what, call.main) for call in comparison.calls]
        _show_figures("other calls", comparison.calls[0].level, calls)
    show()
    show(fill(state(comparison, on_screen=True), indent=""))
    show()


def _say_condition(value: str | None) -> str:
    return "unknown" if value is None else value.replace("None", "none")


def _say_figure(figure: Figure) -> str:
    return "median" if figure.name == "p50" else figure.name


def _show_figures(title: str, level: float, figures: Iterable[tuple[str, Figure]]) -> None:
    rows = [(name, *_compare_figure(figure, level)) for name, figure in figures]
    bounds = "" if level == 1 else f"bounds ({level:.1%})"
    show(draw_table(title, ("", "A", "B", "B - A", bounds, "B / A"), rows, left=("",)))


def _compare_figure(figure: Figure, level: float) -> list[str]:
    a, b = (("-" if side is None else f"{side:,.0f}") for side in (figure.a, figure.b))
    if not figure.difference:
        return [a, b, "-", "", "-"]
    lo, hi = figure.difference.lo, figure.difference.hi
    bounds = "" if level == 1 or lo == hi else f"{lo:+,.0f} to {hi:+,.0f}"
    ratio = f"{figure.ratio.estimate:.3f}" if figure.ratio else "-"
    return [a, b, f"{figure.difference.estimate:+,.0f}", bounds, ratio]


def show_preview(document: Mapping[str, Any]) -> None:
    """Print what would be measured: what all runs have in common, then a table of what differs."""
    runs = document["runs"]
    shared = {name: value for name, value in runs[0].items() if all(run[name] == value for run in runs)}
    facts = {name: value for name, value in document.items() if name not in ("schema", "runs")} | shared
    show(f"nothing was changed: this is what {len(runs)} run{'s' * (len(runs) > 1)} would measure\n")
    lists = [name for name, value in runs[0].items() if name not in shared and isinstance(value, list)]
    said = {name: _say_fact(value) for name, value in facts.items()}
    said |= {name: list(dict.fromkeys(line for run in runs for line in _say_fact(run[name]))) for name in lists}
    for name, lines in said.items():
        label = name.replace("_", " ")
        if len(lines) == 1:
            show(fill(f"{label}: {lines[0]}"))
        elif lines:
            show(f"{label}:")
            for line in lines[:MOST_LINES]:
                show(fill(f"  - {line}", indent="    "))
            if lines[MOST_LINES:]:
                show(f"  and {len(lines) - MOST_LINES} more")
    differing = [name for name in runs[0] if name not in shared and name not in lists]
    if differing:
        header = [name.replace("_", " ") for name in differing]
        rows = [["\n".join(_say_fact(run[name])) or "-" for name in differing] for run in runs]
        show(f"\n{draw_table('', header, rows, left=header)}")


def _say_fact(value: object) -> list[str]:
    """Write a fact of a preview as lines; none if it is unknown."""
    if isinstance(value, Mapping):
        return [f"{name} {text}" for name, text in value.items() if text is not None]
    if isinstance(value, list):
        return [": ".join(map(str, row.values())) if isinstance(row, Mapping) else str(row) for row in value]
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    return [] if value is None else [f"{value:,g}" if isinstance(value, float) else str(value)]


def show_findings(
    findings: Sequence[Finding], modes: Iterable[str], lacking: Mapping[str, Mapping[str, Sequence[str]]]
) -> None:
    """Print what each check found; for each problem also what it breaks, and how to fix it; then what works.

    :param modes: those that bpftrace can measure.
    :param lacking: mode -> clock -> names of the checks that it fails.
    """
    header = ("check", "state", "found")
    rows = [(check.name, check.state, check.found) for check in findings]
    show(draw_table("what a measurement takes", header, rows, left=header, fold=2))
    problems = [check for check in findings if check.state != "ok"]
    for remedy in dict.fromkeys((check.apt, check.dnf) for check in problems):
        show("")
        for check in problems:
            if (check.apt, check.dnf) == remedy:
                show(f"{check.name} ({check.state}) concerns {check.breaks}")
        for command in dict.fromkeys(remedy):
            show(f"  {command}")
    header = ("mode", "clock", "works here")
    rows = [
        (mode, clock, f"no: {', '.join(name.removeprefix(f'{mode}: ') for name in names)}" if names else "yes")
        for mode, clocks in lacking.items()
        for clock, names in clocks.items()
    ]
    show(f"\n{draw_table('which clock works for which mode', header, rows, left=header, fold=2)}")
    possible = ", ".join(modes)
    show(f"\ncan be traced here: {possible or 'nothing; the table names the clocks that work without'}")
