"""The table of one run, as text: what ``run`` prints when it ends, and ``parse`` for its log."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple

from kproxylat.console import plain
from kproxylat.report.columns import draw_table
from kproxylat.report.first_packet import draw_first_packet
from kproxylat.results import (
    Accounting,
    Map,
    Overhead,
    Percentile,
    Probe,
    Result,
    SendTime,
    ServiceCost,
    Traffic,
    target_text,
)
from kproxylat.trace.percentiles import PERCENTILES

_ENTRIES = 10


def draw_result(result: Result) -> Iterator[str]:
    """Draw a run: its setting, tables of its calls, maps, the packet accounting, and warnings.

    ``run`` and ``parse`` print the same for the same run.
    """
    yield from _draw_setting(result)
    yield from _draw_calls(result)
    yield from _draw_maps(result)
    for engine, slow in result.slow.items():
        yield f"slow {engine}: {slow.lines:,}, worst {slow.worst[0].max:,} us at {slow.worst[0].time}"
    if result.services:
        yield draw_services(result.services, name_unit(result.probes[0].unit, result.run.emulated))
    if result.accounting and result.traffic:
        yield from _draw_accounting(result.accounting, result.traffic)
    for warning in result.quality.warnings:
        yield fill(f"warning: {warning}")
    if result.run.cut_short:
        yield "cut short"
    if result.run.log:
        yield plain(f"log: {result.run.log}")


def name_unit(unit: str | None, emulated: bool | None) -> str:
    """Return the unit of a figure for a title, e.g. ``emulated ns``."""
    return f"{'emulated ' if emulated else ''}{unit}"


def head_unit(unit: str | None, emulated: bool | None) -> str:
    """Return the unit for a table's head, with a warning if it is emulated time."""
    return name_unit(unit, emulated) + (": compare shapes, not values" if emulated and unit == "ns" else "")


def fill(text: str, indent: str = "  ") -> str:
    """Break a text into lines of 80 columns.

    :param indent: before the second line and those after it.
    """
    return textwrap.fill(plain(text), 80, subsequent_indent=indent)


def _draw_setting(result: Result) -> Iterator[str]:
    """Yield the facts that are known of the run's setting."""
    run = result.run
    clock = run.clock and f"clock: {name_unit(run.clock, run.emulated)}"
    mode = ", ".join(
        filter(None, (run.mode and f"kube-proxy mode {run.mode}", run.backend and f"backend {run.backend}"))
    )
    machine = (run.kernel and f"Linux {run.kernel}", run.bpftrace and f"bpftrace {run.bpftrace}", run.started)
    target = f"target {target_text(result)}" if result.target else None
    place = f"rule {run.position} of {run.chain_length}" if run.position else None
    for facts in ("; ".join(filter(None, (mode, clock))), ", ".join(filter(None, machine)),
                  ", ".join(filter(None, (target, run.path and f"{run.path} path", place)))):  # fmt: skip
        if facts:
            yield plain(facts)


def _draw_calls(result: Result) -> Iterator[str]:
    """Yield the tables of the engines' calls, of the whole hooks, and of what tracing adds."""
    calls, emulated = result.calls, result.run.emulated
    for engine, unit in dict.fromkeys((probe.engine, probe.unit) for probe in calls):
        probes = [probe for probe in calls if (probe.engine, probe.unit) == (engine, unit)]
        rows = [(_place(probe), probe.hook or "?", *list_figures(probe)) for probe in probes]
        between = "" if engine == calls[0].engine else "\n"
        yield _draw_places(f"{between}{engine}, {head_unit(unit, emulated)}", name_figures(unit), rows)
        yield from filter(None, map(_describe_percentiles, probes))
    if result.send_time:
        yield from _draw_send_time(result.send_time, name_unit(result.run.clock, result.run.emulated))
    if result.first_packet:
        yield from draw_first_packet(result.first_packet, name_unit(result.run.clock, result.run.emulated))
    if not calls and not result.maps and not result.headline:
        yield "no calls were traced"
    if result.path and result.path.per_packet is not None:
        yield f"* the Service lookup; all hooks together: {result.path.per_packet:,.1f} {result.path.unit} a packet"
    hooks = [probe for probe in result.probes if probe.envelope]
    if hooks:
        shares = ["-" if probe.share is None else f"{probe.share:.1%}" for probe in hooks]
        rows = [(probe.hook or "?", *list_figures(probe), share) for probe, share in zip(hooks, shares, strict=True)]
        title = f"\nthe whole hook, {hooks[0].engine}, {head_unit(hooks[0].unit, emulated)}"
        yield draw_table(title, ("hook", *name_figures(hooks[0].unit), "rules'\nshare"), rows, ("hook",))
    if result.overhead:
        yield from _draw_overhead(result.overhead, calls)


def _draw_send_time(times: SendTime, unit: str) -> Iterator[str]:
    """Yield how long a packet's whole way took, and what it takes longer to the target than elsewhere."""
    names = list(times.target.percentiles)
    rows = []
    for kind, probe in times.by_kind.items():
        figures = (probe.count, *(probe.percentiles[name].estimate for name in names), probe.max)
        rows.append((kind, *("-" if figure is None else f"{figure:,.0f}" for figure in figures)))
    header = ("packets to", "packets", *(f"p{name}" for name in names), "max")
    yield draw_table(f"time of the system call that carries a packet its whole way, {unit}", header, rows, header[:1])
    for kind, over in (("the endpoint", times.over_endpoint), ("no Service", times.over_no_service)):
        if over:
            bounds = f" ({over.lo:,.0f} to {over.hi:,.0f})" if over.lo < over.hi else ""
            yield f"a packet to the target takes {over.estimate:,.0f}{bounds} {unit} longer than one to {kind}"
    lost, arrived = sum(times.preempted.values()), times.checked - times.late
    yield fill(
        f"reading the clock adds {times.clock:,} to each; the sender lost the CPU during {lost:,} packets, which are "
        f"left out; {arrived:,} of {times.checked:,} checked packets arrived within the call",
        indent="",
    )


def _draw_places(title: str, figures: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return draw_table(title, ("table, chain", "hook", *figures), rows, ("table, chain", "hook"))


def _place(probe: Probe) -> str:
    # In mode iptables a base chain is named after its hook, and adds nothing.
    chain = f"\n  {probe.chain}" if probe.chain not in (None, probe.hook) else ""
    return f"{probe.table or '-'}{' *' if probe.lookup else ''}{chain}"


def name_figures(unit: str) -> tuple[str, ...]:
    """Name the columns of :func:`list_figures`; the commonest value represents only counts of instructions."""
    return ("calls", "min", "commonest" if unit == "instructions" else "median", "mean", "p99", "max")


def list_figures(probe: Probe) -> list[str]:
    """Return the columns of :func:`name_figures` for a probe."""
    p99 = probe.percentiles.get("99")
    return [
        "-" if value is None else _short(value)
        for value in (probe.count, probe.min, probe.middle, probe.mean, p99.estimate if p99 else None, probe.max)
    ]


def _short(number: float) -> str:
    """Write a figure with its first decimal if it is small."""
    return f"{number:,.1f}" if number % 1 and number < 1000 else f"{number:,.0f}"


def _describe_percentiles(probe: Probe) -> str:
    """Write a probe's percentiles, with bounds if they are estimates; of exact default ones only the lookup's."""
    exact = all(item.lo == item.hi for item in probe.percentiles.values())
    if exact and not probe.lookup and list(probe.percentiles) == [f"{percent}" for percent in PERCENTILES]:
        return ""
    place = f"{_place(probe)} {probe.hook or ''}".replace("\n ", "").replace(" *", "").strip("- ")
    return _list_percentiles(f"{place or probe.engine}: ", probe.percentiles)


def _list_percentiles(subject: str, percentiles: Mapping[str, Percentile]) -> str:
    spans = []
    for name, percentile in percentiles.items():
        estimate, lo, hi = ("?" if number is None else _short(number) for number in astuple(percentile))
        is_exact = percentile.lo == percentile.hi == percentile.estimate
        spans.append(f"p{name} {estimate}{'' if is_exact else f' in [{lo}, {hi}]'}")
    return fill(f"{subject}{', '.join(spans)}") if spans else ""


def _draw_maps(result: Result) -> Iterator[str]:
    """Yield each map's content in a word, and the percentiles of its first histograms: all would fill the screen."""
    for name, content in result.maps.items():
        yield plain(f"map {sketch_map(name, content)}")
        for entry in content.entries[:_ENTRIES]:
            key = f"[{', '.join(map(str, entry.key))}]" if entry.key else ""
            if entry.percentiles:
                yield _list_percentiles(f"{name}{key}: count {entry.value['count']:,}, ", entry.percentiles)


def _draw_overhead(overhead: Overhead, calls: Iterable[Probe]) -> Iterator[str]:
    """Yield what the calls cost less what tracing adds, and what it adds."""
    rows = []
    for probe in calls:
        if probe.middle is not None:
            costs = probe.middle, *overhead.untraced(probe.middle)
            rows.append((_place(probe), probe.hook or "?", *(f"{cost:,.0f}" for cost in costs)))
    middle = "commonest" if overhead.unit == "instructions" else "median"
    title = f"\nuntraced: less what tracing adds, {overhead.unit}"
    yield _draw_places(title, (middle, "untraced at least", "at most"), rows)
    pair, script = (
        f"{added.estimate:,.6g}" + (f" ({added.lo:,.4g} to {added.hi:,.4g})" if added.lo < added.hi else "")
        for added in (overhead.empty, overhead.script)
    )
    yield fill(
        f"the script adds {script} to a call, most of it after its time is taken; an empty pair of probes {pair}; "
        f"inside the time are {overhead.stored:,} and a part of the pair",
        indent="",
    )


def _draw_accounting(books: Accounting, traffic: Traffic) -> Iterator[str]:
    counts = {
        "sent": books.sent,
        "lookups": books.lookups,
        "rule hits": books.rule_hits,
        "delivered": books.delivered,
        "masqueraded": books.delivered_masqueraded or None,
        "untranslated": books.untranslated or None,
        "rejected": books.rejected or None,
        "conntrack entries": books.entries,
    }
    counted = ", ".join(f"{name} {count}" for name, count in counts.items() if count is not None)
    yield f"books: {counted}: {'closed' if books.closed else 'NOT CLOSED, ' + (books.difference or '')}"
    if traffic.rate_pps:
        yield f"rate: {traffic.pps or 0:,.0f} packets per second, {traffic.rate_pps:,} asked for"
    lost = ", ".join(f"{name} {count}" for name, count in (books.drops or {}).items() if count)
    yield f"drops counted: {lost or 'none'}" if books.drops is not None else "drops counted: unknown"
    if books.other_calls is not None:
        yield f"calls of other packets: {books.other_calls:,}"
    if books.freed is not None:
        freed = ", ".join(f"{name} {count}" for name, count in books.freed.items())
        yield fill(f"packets freed on the whole machine: {freed or 'none'}", indent="")


def draw_services(services: Iterable[ServiceCost], unit: str) -> str:
    """Draw the table of each Service's lookup."""
    rows = [
        (service.name, service.target, *(f"{count:,}" for count in (service.before, service.calls, service.cost)))
        for service in services
    ]
    header = ("Service", "target", "before it", "calls", "cost")
    return draw_table(f"lookup of each Service, {unit}", header, rows, ("Service", "target"))


def sketch_map(name: str, content: Map) -> str:
    """Say in a word what a map holds: its value, or how many entries."""
    entries = content.entries
    if len(entries) == 1 and not entries[0].key and content.kind in ("int", "float", "str", "bool"):
        shown = str(entries[0].value)
        return f"{name} {shown if shown.isprintable() else ascii(shown):.40}"
    return f"{name} ({content.kind}{f', {len(entries)} entries' if entries[0].key else ''})"
