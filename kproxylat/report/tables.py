"""What people see: lines and progress on stderr, tables on stdout. rich is imported only where it draws."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING

from kproxylat.console import plain

if TYPE_CHECKING:
    from rich.table import Table

    from kproxylat.analysis.alternatives import WhatIf
    from kproxylat.analysis.comparison import Comparison
    from kproxylat.analysis.contrast import Contrast, Figure
    from kproxylat.analysis.series import Series
    from kproxylat.node.doctor import Finding
    from kproxylat.results import Map, Overhead, Probe, Result, ServiceCost


def show_result(result: Result) -> None:
    """Print a run's tables: what was measured, the books, and what may have spoiled them."""
    from kproxylat.results import target_text

    run, target = result.run, result.target
    clock = f"{'emulated ' if run.emulated else ''}{run.clock}"
    print(
        f"kube-proxy mode {run.mode}, backend {run.backend}; clock: {clock}\n"
        f"Linux {run.kernel}, bpftrace {run.bpftrace}"
    )
    if target:
        place = f", rule {run.position} of {run.chain_length}" if run.position else ""
        print(f"target {target_text(result)}, {run.path} path{place}")
    if result.calls:
        _print(_draw_probes(result))
    else:
        print("no calls were traced")
    if result.path and result.path.per_packet is not None:
        print(f"* the Service lookup; all hooks together: {result.path.per_packet:,.1f} {result.path.unit} a packet")
    for table in filter(None, (_draw_envelopes(result), _draw_untraced(result))):
        print()
        _print(table)
    if result.overhead:
        print(textwrap.fill(_describe_overhead(result.overhead), 80))
    for name, each in result.maps.items():
        print(f"map {sketch_map(name, each)}")
    if result.services:
        show_services(result.services, f"{'emulated ' if run.emulated else ''}{result.probes[0].unit}")
    books = result.accounting
    if books and result.traffic:
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
        if result.traffic.rate_pps:
            print(f"rate: {result.traffic.pps or 0:,.0f} packets per second, {result.traffic.rate_pps:,} asked for")
        lost = ", ".join(f"{name} {count}" for name, count in (books.drops or {}).items() if count)
        print(f"drops counted: {lost or 'none'}" if books.drops is not None else "drops counted: unknown")
        if books.other_calls is not None:
            print(f"calls of other packets: {books.other_calls:,}")
        if books.freed is not None:
            freed = ", ".join(f"{name} {count}" for name, count in books.freed.items())
            print(textwrap.fill(f"packets freed on the whole machine: {freed or 'none'}", 80))
    for warning in result.quality.warnings:
        print(plain(f"warning: {warning}"))
    if run.cut_short:
        print("cut short by a signal")
    if run.log:
        print(f"log: {run.log}")


def _draw_probes(result: Result) -> Table:
    table = _table(f"{result.calls[0].engine}, {result.calls[0].unit}")
    table.add_column("table, chain", overflow="fold")
    table.add_column("hook", no_wrap=True)
    for name in ("calls", "min", "commonest", "mean", "p99", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    for probe in result.calls:
        table.add_row(_place(probe), probe.hook or "?", *_figures(probe))
    return table


def _place(probe: Probe) -> str:
    # In mode iptables a base chain is named after its hook, and adds nothing.
    chain = f"\n  {probe.chain}" if probe.chain not in (None, probe.hook) else ""
    return f"{probe.table or '-'}{' *' if probe.lookup else ''}{chain}"


def _draw_envelopes(result: Result) -> Table | None:
    """Draw the whole hooks around the engine, with the rules' share; None if they were not traced."""
    found = [probe for probe in result.probes if probe.envelope]
    if not found:
        return None
    table = _table(f"the whole hook, {found[0].engine}, {found[0].unit}", "hook")
    for name in ("calls", "min", "commonest", "mean", "p99", "max", "rules'\nshare"):
        table.add_column(name, justify="right", no_wrap=True)
    for probe in found:
        share = "-" if probe.share is None else f"{probe.share:.1%}"
        table.add_row(probe.hook or "?", *_figures(probe), share)
    return table


def _describe_overhead(found: Overhead) -> str:
    pair, script = (
        f"{each.estimate:,.6g}" + (f" ({each.lo:,.4g} to {each.hi:,.4g})" if each.lo < each.hi else "")
        for each in (found.empty, found.script)
    )
    return (
        f"the script adds {script} to a call, most of it after its time is taken; an empty pair of probes {pair}; "
        f"inside the time are {found.stored:,} and a part of the pair"
    )


def _draw_untraced(result: Result) -> Table | None:
    """Draw what the engine's calls cost less what tracing adds; None if that was not measured."""
    found = result.overhead
    if not found:
        return None
    table = _table(f"untraced: less what tracing adds, {found.unit}")
    table.add_column("table, chain", overflow="fold")
    table.add_column("hook", no_wrap=True)
    for name in ("commonest" if found.unit == "instructions" else "median", "untraced at least", "at most"):
        table.add_column(name, justify="right", no_wrap=True)
    for probe in result.calls:
        if probe.middle is not None:
            figures = probe.middle, *found.untraced(probe.middle)
            table.add_row(_place(probe), probe.hook or "?", *(f"{each:,.0f}" for each in figures))
    return table


def show_services(found: Sequence[ServiceCost], unit: str) -> None:
    """Print what each Service's lookup costs, in the order given."""
    table = _table(f"lookup of each Service, {unit}")
    table.add_column("Service", overflow="fold")
    table.add_column("target", no_wrap=True)
    for name in ("before it", "calls", "cost"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in found:
        figures = (each.before, each.calls, each.cost)
        table.add_row(each.name, each.target, *(f"{figure:,}" for figure in figures))
    _print(table)


def show_whatif(found: WhatIf, most: int = 10) -> None:
    """Print what lookups cost in each mode, and the dearest Services.

    :param most: how many of these.
    """
    table = _table(f"lookup in each mode, {found.unit}", "mode")
    for name in ("least", "mean", "most", "base", "per Service", "equal at"):
        table.add_column(name, justify="right")
    for each in found.alternatives:
        figures = [f"{figure:,.0f}" for figure in (each.least, each.mean, each.most)]
        line = [f"{each.base:,.0f}" if each.base is not None else "-"]
        line += [f"{each.per_service:.4g}" if each.per_service is not None else "-"]
        equal = "now" if each.captured else f"{each.equal_at:,.1f}" if each.equal_at is not None else "-"
        table.add_row(f"{each.mode}/{each.backend}", *figures, *line, equal)
    _print(table)
    print(
        "now: the rules as captured; others: what kube-proxy 1.36 would write for the\n"
        "same Services. equal at: with so many Services before it, a lookup costs the\n"
        "same in both; before counts Services, not rules.\n"
    )
    for note in found.notes:
        print(textwrap.fill(plain(f"note: {note}"), 80, subsequent_indent="  "))
    show_services(found.dearest[:most], found.unit)
    for series in found.series:
        print(textwrap.fill(f"{series.name}: {series.verdict}: {series.evidence}", 80, subsequent_indent="  "))


def sketch_map(name: str, each: Map) -> str:
    """Say in a word what a map holds: its value, or how many entries."""
    if len(each.entries) == 1 and not each.entries[0].key and each.kind in ("int", "float", "str", "bool"):
        shown = str(each.entries[0].value)
        return f"{name} {shown if shown.isprintable() else ascii(shown):.40}"
    return f"{name} ({each.kind}{f', {len(each.entries)} entries' if each.entries[0].key else ''})"


def _figures(probe: Probe) -> list[str]:
    p99 = probe.percentiles.get("99")
    values = (probe.count, probe.min, probe.mode, probe.mean, p99.estimate if p99 else None, probe.max)
    return ["-" if value is None else f"{value:,.0f}" for value in values]


def show_series(found: Sequence[Series]) -> None:
    """Print what each Service adds, the verdicts, and at the end what a lookup costs over numbers of Services."""
    if not found:
        print("no lookup was measured")
        return
    first = found[0]
    emulated = "emulated " if first.emulated else ""
    table = _table(f"what each Service adds, {emulated}{first.unit}", "series")
    for name in ("per Service", "bounds", "base", "verdict"):
        table.add_column(name, justify="left" if name == "verdict" else "right")
    for series in found:
        per, base = series.per_service, series.base
        bounds = (
            "exact"
            if per and per.lo == per.hi and series.level == 1
            else f"{per.lo:.4g} to {per.hi:.4g}"
            if per
            else "-"
        )
        figures = [f"{per.estimate:.4g}" if per else "-", bounds, f"{base.estimate:,.0f}" if base else "-"]
        table.add_row(series.name, *figures, series.verdict)
    _print(table)
    print()
    for series in found:
        print(textwrap.fill(f"{series.name}: {series.evidence}", 80, subsequent_indent="  "))
        apart = [(point.services, point.others) for point in series.points if point.others]
        if apart:
            shown = [f"{_list_values(others)} at {size:,}" for size, others in apart]
            print(textwrap.fill(f"  apart from the commonest: {'; '.join(shown)}", 80, subsequent_indent="    "))
    print()
    table = _table(f"{first.figure} lookup, {emulated}{first.unit}")
    table.add_column("Services", justify="right")
    for series in found:
        table.add_column(series.name, justify="right")
    costs = [{point.services: f"{point.cost:,.0f}" for point in series.points} for series in found]
    for size in sorted(set().union(*costs)):
        table.add_row(f"{size:,}", *(each.get(size, "-") for each in costs))
    _print(table)


def _list_values(values: Mapping[str, int]) -> str:
    """Write the commonest of values with their counts, e.g. ``5,786 (84 calls)``."""
    most = sorted(values.items(), key=lambda item: -item[1])
    more = f" and {len(most) - 2} more" if most[2:] else ""
    return ", ".join(f"{int(value):,} ({count:,}x)" for value, count in most[:2]) + more


def show_comparison(found: Comparison) -> None:
    """Print what changed from A to B, as tables and a sentence."""
    for name, side in (("A", found.a), ("B", found.b)):
        print(f"{name}: {side.mode}/{side.backend}, {side.runs} run{'s' if side.runs > 1 else ''}, {side.file}")
    changed = [
        f"{name} {'unknown' if a is None else a} -> {'unknown' if b is None else b}"
        for name, (a, b) in found.changed.items()
    ]
    notes = {
        "only": found.only,
        "differing": changed,
        "overruled": [f"{name} ({what})" for name, what in found.overruled.items()],
        "neither side tells": found.unknown,
    }
    for name, each in notes.items():
        if each:
            print(textwrap.fill(f"{name}: {', '.join(each)}", 80, subsequent_indent="  "))
    print()
    unit = f"{'emulated ' if found.emulated else ''}{found.unit}"
    if len(found.lookups) == 1:
        _show_figures(found.lookups[0], unit)
    else:
        name = found.lookups[0].main.name
        _show_contrasts(found.lookups, f"{'median' if name == 'p50' else name} lookup, {unit}")
    if found.calls:
        print()
        _show_contrasts(found.calls, "other calls")
    print()
    print(textwrap.fill(found.statement, 80))
    print()


def _show_figures(found: Contrast, unit: str) -> None:
    """Print every figure of one contrast."""
    table = _contrast_table(f"{found.what}, {unit}", found.level)
    for each in found.figures:
        table.add_row("median" if each.name == "p50" else each.name, *_compare_figure(each, found.level))
    _print(table)
    if found.distance is not None and found.chance_distance is not None:
        print(f"whole distribution: {found.distance:.3f} apart; by chance up to {found.chance_distance:.3f}")


def _show_contrasts(found: Sequence[Contrast], title: str) -> None:
    """Print the main figure of several contrasts."""
    table = _contrast_table(title, found[0].level)
    for each in found:
        table.add_row(each.what, *_compare_figure(each.main, each.level))
    _print(table)


def _contrast_table(title: str, level: float) -> Table:
    table = _table(title, "")
    for name in ("A", "B", "B - A", "" if level == 1 else f"bounds ({level:.1%})", "B / A"):
        table.add_column(name, justify="right")
    return table


def _compare_figure(each: Figure, level: float) -> list[str]:
    a, b = (("-" if side is None else f"{side:,.0f}") for side in (each.a, each.b))
    if not each.difference:
        return [a, b, "-", "", "-"]
    lo, hi = each.difference.lo, each.difference.hi
    bounds = "" if level == 1 or lo == hi else f"{lo:+,.0f} to {hi:+,.0f}"
    return [a, b, f"{each.difference.estimate:+,.0f}", bounds, f"{each.ratio.estimate:.3f}" if each.ratio else "-"]


def show_findings(findings: Iterable[Finding], modes: Iterable[str]) -> None:
    """Print what each check found; of what is not well, also what it breaks and what mends it.

    :param modes: those that can be measured.
    """
    table = _table("what a measurement takes", "check", "state")
    table.add_column("found", overflow="fold")
    for each in findings:
        table.add_row(each.name, each.state, each.found)
    _print(table)
    for each in findings:
        if each.state != "ok":
            print(f"\n{each.name} ({each.state}) concerns {each.breaks}\n  {each.apt}")
            if each.dnf != each.apt:
                print(f"  {each.dnf}")
    possible = ", ".join(modes)
    print(f"\ncan be measured here: {possible or 'nothing; in a virtual machine: kproxylat run --lab --vm'}")


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _print(table: Table) -> None:
    from rich.console import Console

    with StringIO() as text:
        Console(file=text, width=80, highlight=False, markup=False, emoji=False).print(table)
        print(plain("\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n")))
