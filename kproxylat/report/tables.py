"""Tables for people, on stdout."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from kproxylat.console import plain
from kproxylat.report.columns import draw_table
from kproxylat.report.first_packet import show_first_packet
from kproxylat.results import (
    Accounting,
    Map,
    Overhead,
    Probe,
    Result,
    SendTime,
    ServiceCost,
    Traffic,
    target_text,
)

if TYPE_CHECKING:
    from kproxylat.analysis.alternatives import WhatIf
    from kproxylat.analysis.comparison import Comparison
    from kproxylat.analysis.contrast import Contrast, Figure
    from kproxylat.analysis.series import CrossCheck, Series
    from kproxylat.node.doctor import Finding

_FIGURES = ("calls", "min", "commonest", "mean", "p99", "max")


def show_result(result: Result) -> None:
    """Print a run: its setting, tables of its calls, the packet accounting, and warnings."""
    _show_setting(result)
    _show_calls(result)
    if result.accounting and result.traffic:
        _show_accounting(result.accounting, result.traffic)
    for warning in result.quality.warnings:
        print(plain(f"warning: {warning}"))
    if result.run.cut_short:
        print("cut short by a signal")
    if result.run.log:
        print(f"log: {result.run.log}")


def name_unit(unit: str | None, emulated: bool | None) -> str:
    """Return the unit of a figure for a title, e.g. ``emulated ns``."""
    return f"{'emulated ' if emulated else ''}{unit}"


def _fill(text: str, indent: str = "  ") -> None:
    print(textwrap.fill(plain(text), 80, subsequent_indent=indent))


def _show_setting(result: Result) -> None:
    run = result.run
    print(f"kube-proxy mode {run.mode}, backend {run.backend}; clock: {name_unit(run.clock, run.emulated)}")
    print(f"Linux {run.kernel}, " + (f"bpftrace {run.bpftrace}" if run.bpftrace else "nothing traced"))
    if result.target:
        place = f", rule {run.position} of {run.chain_length}" if run.position else ""
        print(f"target {target_text(result)}, {run.path} path{place}")


def _show_calls(result: Result) -> None:
    """Print the tables of the engine's calls, of the whole hooks, and of what tracing adds; then maps and Services."""
    calls = result.calls
    if calls:
        rows = [(_place(probe), probe.hook or "?", *_figures(probe)) for probe in calls]
        _print_places(f"{calls[0].engine}, {calls[0].unit}", _FIGURES, rows)
    elif not result.headline:
        print("no calls were traced")
    if result.send_time:
        _show_send_time(result.send_time, name_unit(result.run.clock, result.run.emulated))
    if result.first_packet:
        show_first_packet(result.first_packet, name_unit(result.run.clock, result.run.emulated))
    if result.path and result.path.per_packet is not None:
        print(f"* the Service lookup; all hooks together: {result.path.per_packet:,.1f} {result.path.unit} a packet")
    hooks = [probe for probe in result.probes if probe.envelope]
    if hooks:
        shares = ["-" if probe.share is None else f"{probe.share:.1%}" for probe in hooks]
        rows = [(probe.hook or "?", *_figures(probe), share) for probe, share in zip(hooks, shares, strict=True)]
        title = f"\nthe whole hook, {hooks[0].engine}, {hooks[0].unit}"
        print(draw_table(title, ("hook", *_FIGURES, "rules'\nshare"), rows, ("hook",)))
    if result.overhead:
        _show_overhead(result.overhead, calls)
    for name, content in result.maps.items():
        print(f"map {sketch_map(name, content)}")
    if result.services:
        _show_services(result.services, name_unit(result.probes[0].unit, result.run.emulated))


def _show_send_time(times: SendTime, unit: str) -> None:
    """Print how long a packet's whole way took, and what the Service's address adds to it."""
    kinds = {"the target": times.target, "the endpoint itself": times.endpoint, "no Service": times.no_service}
    names = list(times.target.percentiles)
    rows = [
        (kind, f"{probe.count:,}", *(f"{probe.percentiles[name].estimate:,.0f}" for name in names), f"{probe.max:,}")
        for kind, probe in kinds.items()
        if probe
    ]
    header = ("packets to", "packets", *(f"p{name}" for name in names), "max")
    print(draw_table(f"time of the system call that carries a packet its whole way, {unit}", header, rows, header[:1]))
    for other, over in (("the endpoint itself", times.over_endpoint), ("no Service", times.over_no_service)):
        if over:
            bounds = f" ({over.lo:,.0f} to {over.hi:,.0f})" if over.lo < over.hi else ""
            print(f"the target takes {over.estimate:,.0f}{bounds} {unit} longer than {other}")
    lost = sum(times.preempted.values())
    _fill(
        f"reading the clock adds {times.clock} to each; during {lost:,} packets the sender lost the CPU: left out; "
        f"of {times.checked:,} checked packets {times.checked - times.late:,} arrived within the call",
        indent="",
    )


def _print_places(title: str, figures: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(draw_table(title, ("table, chain", "hook", *figures), rows, ("table, chain", "hook")))


def _place(probe: Probe) -> str:
    # In mode iptables a base chain is named after its hook, and adds nothing.
    chain = f"\n  {probe.chain}" if probe.chain not in (None, probe.hook) else ""
    return f"{probe.table or '-'}{' *' if probe.lookup else ''}{chain}"


def _figures(probe: Probe) -> list[str]:
    p99 = probe.percentiles.get("99")
    values = (probe.count, probe.min, probe.mode, probe.mean, p99.estimate if p99 else None, probe.max)
    return ["-" if value is None else f"{value:,.0f}" for value in values]


def _show_overhead(overhead: Overhead, calls: Iterable[Probe]) -> None:
    """Print what the calls cost less what tracing adds, and what it adds."""
    rows = []
    for probe in calls:
        if probe.middle is not None:
            costs = probe.middle, *overhead.untraced(probe.middle)
            rows.append((_place(probe), probe.hook or "?", *(f"{cost:,.0f}" for cost in costs)))
    middle = "commonest" if overhead.unit == "instructions" else "median"
    title = f"\nuntraced: less what tracing adds, {overhead.unit}"
    _print_places(title, (middle, "untraced at least", "at most"), rows)
    pair, script = (
        f"{added.estimate:,.6g}" + (f" ({added.lo:,.4g} to {added.hi:,.4g})" if added.lo < added.hi else "")
        for added in (overhead.empty, overhead.script)
    )
    _fill(
        f"the script adds {script} to a call, most of it after its time is taken; an empty pair of probes {pair}; "
        f"inside the time are {overhead.stored:,} and a part of the pair",
        indent="",
    )


def _show_accounting(books: Accounting, traffic: Traffic) -> None:
    counts = {
        "sent": books.sent,
        "lookups": books.lookups,
        "rule hits": books.rule_hits,
        "delivered": books.delivered,
        "untranslated": books.untranslated or None,
        "rejected": books.rejected or None,
        "conntrack entries": books.entries,
    }
    counted = ", ".join(f"{name} {count}" for name, count in counts.items() if count is not None)
    print(f"books: {counted}: {'closed' if books.closed else 'NOT CLOSED, ' + (books.difference or '')}")
    if traffic.rate_pps:
        print(f"rate: {traffic.pps or 0:,.0f} packets per second, {traffic.rate_pps:,} asked for")
    lost = ", ".join(f"{name} {count}" for name, count in (books.drops or {}).items() if count)
    print(f"drops counted: {lost or 'none'}" if books.drops is not None else "drops counted: unknown")
    if books.other_calls is not None:
        print(f"calls of other packets: {books.other_calls:,}")
    if books.freed is not None:
        freed = ", ".join(f"{name} {count}" for name, count in books.freed.items())
        _fill(f"packets freed on the whole machine: {freed or 'none'}", indent="")


def _show_services(services: Iterable[ServiceCost], unit: str) -> None:
    rows = [
        (service.name, service.target, *(f"{count:,}" for count in (service.before, service.calls, service.cost)))
        for service in services
    ]
    header = ("Service", "target", "before it", "calls", "cost")
    print(draw_table(f"lookup of each Service, {unit}", header, rows, ("Service", "target")))


def show_whatif(outcome: WhatIf, most: int = 10) -> None:
    """Print what lookups cost in each mode, and the most expensive Services.

    :param most: how many of these.
    """
    rows = []
    for mode in outcome.alternatives:
        figures = [f"{figure:,.0f}" for figure in (mode.least, mode.mean, mode.most)]
        base = f"{mode.base:,.0f}" if mode.base is not None else "-"
        per_service = f"{mode.per_service:.4g}" if mode.per_service is not None else "-"
        equal = "now" if mode.captured else f"{mode.equal_at:,.1f}" if mode.equal_at is not None else "-"
        rows.append((f"{mode.mode}/{mode.backend}", *figures, base, per_service, equal))
    header = ("mode", "least", "mean", "most", "base", "per Service", "equal at")
    print(draw_table(f"lookup in each mode, {outcome.unit}", header, rows, ("mode",)))
    print(
        "now: the rules as captured; others: what kube-proxy 1.36 would write for the\n"
        "same Services. equal at: with so many Services before it, a lookup costs the\n"
        "same in both; before counts Services, not rules.\n"
    )
    for note in outcome.notes:
        _fill(f"note: {note}")
    _show_services(outcome.dearest[:most], outcome.unit)
    for series in outcome.series:
        _fill(f"{series.name}: {series.verdict}: {series.evidence}")


def sketch_map(name: str, content: Map) -> str:
    """Say in a word what a map holds: its value, or how many entries."""
    entries = content.entries
    if len(entries) == 1 and not entries[0].key and content.kind in ("int", "float", "str", "bool"):
        shown = str(entries[0].value)
        return f"{name} {shown if shown.isprintable() else ascii(shown):.40}"
    return f"{name} ({content.kind}{f', {len(entries)} entries' if entries[0].key else ''})"


def show_series(every: Sequence[Series]) -> None:
    """Print what each Service adds, the verdicts, and at the end what a lookup costs over numbers of Services."""
    if not every:
        print("no lookup was measured")
        return
    first = every[0]
    unit = name_unit(first.unit, first.emulated)
    rows = [_describe_series(series) for series in every]
    header = ("series", "per Service", "bounds", "base", "verdict")
    print(draw_table(f"what each Service adds, {unit}", header, rows, ("series", "verdict")))
    print()
    for series in every:
        _fill(f"{series.name}: {series.evidence}")
        apart = [f"{_list_values(point.others)} at {point.services:,}" for point in series.points if point.others]
        if apart:
            _fill(f"  apart from the commonest: {'; '.join(apart)}", indent="    ")
        if series.cross_check:
            _fill(_say_cross_check(series.cross_check))
    print()
    costs = [{point.services: f"{point.cost:,.0f}" for point in series.points} for series in every]
    sizes = sorted(set().union(*costs))
    rows = [(f"{size:,}", *(points.get(size, "-") for points in costs)) for size in sizes]
    print(
        draw_table(f"{first.figure} {first.measured}, {unit}", ("Services", *(series.name for series in every)), rows)
    )


def show_clocks(every: Sequence[Sequence[Series]]) -> None:
    """Print what each Service adds by several clocks, one column each.

    :param every: the series of each clock.
    """
    names = dict.fromkeys(series.name for clock in every for series in clock)
    columns, cells = [], []
    for clock in every:
        known = {series.name: series for series in clock}
        columns.append(f"{name_unit(clock[0].unit, clock[0].emulated)}\na Service" if clock else "-")
        cells.append([_say_growth(known.get(name)) for name in names])
    rows = [(name, *row) for name, row in zip(names, zip(*cells, strict=True), strict=True)]
    print(draw_table("what each Service adds to a packet", ("mode", *columns), rows, ("mode",)))


def _say_growth(series: Series | None) -> str:
    if not series or not series.per_service:
        return "-"
    return f"{series.verdict}: {series.per_service.estimate:.3g}" if series.verdict != "O(1)" else "O(1)"


def _say_cross_check(check: CrossCheck) -> str:
    sides = [
        f"{side.estimate:.4g}" + (f" ({side.lo:.4g} to {side.hi:.4g})" if side.lo < side.hi else "")
        for side in (check.probe, check.send_time)
    ]
    verdict = "the clocks agree" if check.agrees else "THE CLOCKS DISAGREE"
    return f"  each Service adds {sides[0]} by the probe, {sides[1]} by the send time, {check.unit}: {verdict}"


def _describe_series(series: Series) -> tuple[str, ...]:
    per, bounds = series.per_service, "-"
    if per:
        exact = per.lo == per.hi and series.level == 1
        bounds = "exact" if exact else f"{per.lo:.4g} to {per.hi:.4g}"
    base = f"{series.base.estimate:,.0f}" if series.base else "-"
    return series.name, f"{per.estimate:.4g}" if per else "-", bounds, base, series.verdict


def _list_values(values: Mapping[str, int]) -> str:
    """Write the commonest of values with their counts, e.g. ``5,786 (84x)``."""
    most = sorted(values.items(), key=lambda item: -item[1])
    more = f" and {len(most) - 2} more" if most[2:] else ""
    return ", ".join(f"{int(value):,} ({count:,}x)" for value, count in most[:2]) + more


def show_comparison(comparison: Comparison) -> None:
    """Print what changed from A to B, as tables and a sentence."""
    for name, side in (("A", comparison.a), ("B", comparison.b)):
        print(f"{name}: {side.mode}/{side.backend}, {side.runs} run{'s' if side.runs > 1 else ''}, {side.file}")
    changed = [
        f"{name} {'unknown' if a is None else a} -> {'unknown' if b is None else b}"
        for name, (a, b) in comparison.changed.items()
    ]
    notes = {
        "only": comparison.only,
        "differing": changed,
        "overruled": [f"{name} ({difference})" for name, difference in comparison.overruled.items()],
        "neither side tells": comparison.unknown,
    }
    for name, facts in notes.items():
        if facts:
            _fill(f"{name}: {', '.join(facts)}")
    print()
    unit = name_unit(comparison.unit, comparison.emulated)
    lookups, main = comparison.lookups, _say_figure(comparison.lookups[0].main)
    if len(lookups) == 1:
        _show_figures(lookups[0], unit)
    else:
        _show_contrasts(lookups, f"{main} {comparison.measured}, {unit}")
    if comparison.calls:
        print()
        _show_contrasts(comparison.calls, "other calls")
    print()
    print(textwrap.fill(comparison.statement, 80))
    print()


def _say_figure(figure: Figure) -> str:
    return "median" if figure.name == "p50" else figure.name


def _show_figures(contrast: Contrast, unit: str) -> None:
    """Print every figure of one contrast."""
    rows = [(_say_figure(figure), *_compare_figure(figure, contrast.level)) for figure in contrast.figures]
    _print_contrasts(f"{contrast.what}, {unit}", contrast.level, rows)
    apart, chance = contrast.distance, contrast.chance_distance
    if apart is not None and chance is not None:
        print(f"whole distribution: {apart:.3f} apart; by chance up to {chance:.3f}")


def _show_contrasts(contrasts: Sequence[Contrast], title: str) -> None:
    """Print the main figure of several contrasts."""
    rows = [(contrast.what, *_compare_figure(contrast.main, contrast.level)) for contrast in contrasts]
    _print_contrasts(title, contrasts[0].level, rows)


def _print_contrasts(title: str, level: float, rows: Iterable[Sequence[str]]) -> None:
    bounds = "" if level == 1 else f"bounds ({level:.1%})"
    print(draw_table(title, ("", "A", "B", "B - A", bounds, "B / A"), rows, left=("",)))


def _compare_figure(figure: Figure, level: float) -> list[str]:
    a, b = (("-" if side is None else f"{side:,.0f}") for side in (figure.a, figure.b))
    if not figure.difference:
        return [a, b, "-", "", "-"]
    lo, hi = figure.difference.lo, figure.difference.hi
    bounds = "" if level == 1 or lo == hi else f"{lo:+,.0f} to {hi:+,.0f}"
    ratio = f"{figure.ratio.estimate:.3f}" if figure.ratio else "-"
    return [a, b, f"{figure.difference.estimate:+,.0f}", bounds, ratio]


def show_findings(findings: Sequence[Finding], modes: Iterable[str]) -> None:
    """Print what each check found; for each problem also what it breaks, and how to fix it.

    :param modes: those that can be measured.
    """
    header = ("check", "state", "found")
    rows = [(check.name, check.state, check.found) for check in findings]
    print(draw_table("what a measurement takes", header, rows, left=header, fold=2))
    for check in findings:
        if check.state != "ok":
            print(f"\n{check.name} ({check.state}) concerns {check.breaks}\n  {check.apt}")
            if check.dnf != check.apt:
                print(f"  {check.dnf}")
    possible = ", ".join(modes)
    print(f"\ncan be measured here: {possible or 'nothing; in a virtual machine: kproxylat run --lab --vm'}")
