"""The table of one run, as text: what ``run`` prints when it ends, and ``parse`` for its log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple

from kproxylat.console import plain, plain_line
from kproxylat.report.columns import Table, draw_table, fill, width, write_bounded, write_figure
from kproxylat.report.sentences import describe_result
from kproxylat.results import (
    Accounting,
    Entry,
    FirstPacket,
    LookupCheck,
    Overhead,
    Percentile,
    Probe,
    Result,
    SendTime,
    ServiceCost,
    Traffic,
    name_unit,
    target_text,
)
from kproxylat.trace.histogram import draw_buckets
from kproxylat.trace.percentiles import PERCENTILES, add_percentiles

_ENTRIES = 10
"""Most entries of a map, and """
_BUCKETS = 40
"""most rows of a histogram on the screen; JSON has all."""
SHOWN = (50, 90, 99)
"""Percentiles in the table of a time."""


def draw_result(result: Result) -> Iterator[str]:
    """Draw a run: a sentence, its setting, tables of its calls, maps, the packet accounting, and warnings.

    ``run`` and ``parse`` print the same for the same run.
    """
    if sentence := describe_result(result):
        yield f"{fill(sentence, indent='')}\n"
    yield from _draw_setting(result)
    yield from _draw_calls(result)
    yield from _draw_maps(result)
    for engine, slow in result.slow.items():
        yield f"slow {engine}: {slow.lines:,}, worst {slow.worst[0].max:,} us at {slow.worst[0].time}"
    if result.services:
        yield list_services(result.services, head_unit(result.probes[0].unit, result.run.emulated)).draw()
    if result.accounting and result.traffic:
        yield from _draw_accounting(result.accounting, result.traffic)
    for warning in result.quality.warnings:
        yield fill(f"warning: {warning}")
    if result.run.cut_short:
        yield "cut short"
    if result.run.log:
        yield plain(f"log: {result.run.log}")


def head_unit(unit: str | None, emulated: bool | None) -> str:
    """Return the unit for the head of any table, with a warning if it is emulated time."""
    return name_unit(unit, emulated) + (": compare shapes, not values" if emulated and unit == "ns" else "")


def _draw_setting(result: Result) -> Iterator[str]:
    """Yield the facts that are known of the run's setting."""
    run = result.run
    clock = run.clock and f"clock: {name_unit(run.clock, run.emulated)}"
    mode = ", ".join(
        filter(None, (run.mode and f"kube-proxy mode {run.mode}", run.backend and f"backend {run.backend}"))
    )
    machine = (run.kernel and f"Linux {run.kernel}", run.bpftrace and f"bpftrace {run.bpftrace}", run.started)
    target = f"target {target_text(result)}" if result.target else None
    release = f"rules of kube-proxy {run.kube_proxy}" if run.kube_proxy else None
    place = f"rule {run.position} of {run.chain_length}" if run.position else None
    for facts in ("; ".join(filter(None, (mode, clock))), ", ".join(filter(None, machine)),
                  ", ".join(filter(None, (target, run.path and f"{run.path} path", place, release)))):  # fmt: skip
        if facts:
            yield fill(facts)


def _draw_calls(result: Result) -> Iterator[str]:
    """Yield the tables of the engines' calls, of the whole hooks, and of what tracing adds."""
    calls, emulated = add_percentiles(result, SHOWN).calls, result.run.emulated
    for engine, unit in dict.fromkeys((probe.engine, probe.unit) for probe in calls):
        probes = [probe for probe in calls if (probe.engine, probe.unit) == (engine, unit)]
        rows = [(_place(probe), probe.hook or "?", *list_figures(probe)) for probe in probes]
        between = "" if engine == calls[0].engine else "\n"
        yield _draw_places(f"{between}{engine}, {head_unit(unit, emulated)}", name_figures(unit), rows)
        yield from filter(None, (_describe_percentiles(probe) for probe in result.calls if probe.engine == engine))
    if result.send_time:
        yield from _draw_send_time(result.send_time, result.run.clock, emulated)
    if result.first_packet:
        yield from _draw_first_packet(result.first_packet, head_unit(result.run.clock, emulated))
    if not calls and not result.maps and not result.headline:
        yield "no calls were traced"
    if result.path and result.path.per_packet is not None:
        per_packet = write_figure(result.path.per_packet, result.path.unit)
        counted = " instructions" if result.path.unit == "instructions" else ""
        yield f"* the Service lookup; all hooks together: {per_packet}{counted} a packet"
    hooks = [probe for probe in add_percentiles(result, SHOWN).probes if probe.envelope]
    if hooks:
        shares = ["-" if probe.share is None else f"{probe.share:.1%}" for probe in hooks]
        rows = [(probe.hook or "?", *list_figures(probe), share) for probe, share in zip(hooks, shares, strict=True)]
        title = f"\nthe whole hook, {hooks[0].engine}, {head_unit(hooks[0].unit, emulated)}"
        yield draw_table(title, ("hook", *name_figures(hooks[0].unit), "rules'\nshare"), rows, ("hook",))
    if result.overhead:
        yield from _draw_overhead(result.overhead, calls, emulated)
    if result.cross_check:
        yield _say_cross_check(result.cross_check, emulated)


def _draw_send_time(times: SendTime, unit: str | None, emulated: bool | None) -> Iterator[str]:
    """Yield how long a packet's whole way took, and what it takes longer to the target than elsewhere."""
    names = list(times.target.percentiles)
    rows = []
    for kind, probe in times.by_kind.items():
        figures = (*(probe.percentiles[name].estimate for name in names), probe.max)
        rows.append((kind, f"{probe.count:,}", *(write_figure(figure, probe.unit) for figure in figures)))
    header = ("packets to", "packets", *(f"p{name}" for name in names), "max")
    title = f"a packet's whole way (system call), {head_unit(unit, emulated)}"
    yield draw_table(title, header, rows, header[:1])
    for kind, over in (("the endpoint", times.over_endpoint), ("no Service", times.over_no_service)):
        if over:
            word, sign = ("shorter", -1) if over.hi < 0 else ("longer", 1)
            ordered = sorted(sign * figure for figure in (over.lo, over.estimate, over.hi))
            lo, estimate, hi = (write_figure(figure, times.target.unit) for figure in ordered)
            bounds = f" ({lo} to {hi})" if over.lo < over.hi else ""
            time, than = "emulated: " if emulated else "", f"than one to {kind}"
            if over.lo < 0 < over.hi:
                yield fill(f"{time}a packet to the target takes no longer {than}, as far as this tells{bounds}")
            else:
                yield fill(f"{time}a packet to the target takes {estimate}{bounds} {word} {than}")
    lost, arrived = sum(times.preempted.values()), times.checked - times.late
    checked = f"{arrived:,} of {times.checked:,} checked packets arrived within the call"
    yield fill(
        f"reading the clock adds {write_figure(times.clock, unit)} to each; the sender lost the CPU during {lost:,} "
        f"packets, which are left out; {checked if times.checked else 'their arrival was not checked'}",
        indent="",
    )


def _draw_first_packet(times: FirstPacket, unit: str) -> Iterator[str]:
    """Yield the time from SYN to SYN-ACK with its bounds, of several Services one by one, too; the unit for heads."""
    names, clock_unit = list(times.probe.percentiles), times.probe.unit
    rows = [
        [kind, *(write_figure(getattr(times.probe.percentiles[name], side), clock_unit) for name in names)]
        for kind, side in (("first packet", "estimate"), ("  at least", "lo"), ("  at most", "hi"))
    ]
    header = ["", *("max" if name == "100" else f"p{name}" for name in names)]
    title = f"first packet of {times.probe.count:,} connections, {unit}"
    yield draw_table(title, header, rows, ("",))
    if times.places:
        rows = [
            [place.target, f"{place.before:,}", f"{place.count:,}",
             *(write_figure(figure, clock_unit) for figure in astuple(place.median))]
            for place in times.places
        ]  # fmt: skip
        header = ["Service", "before it", "connections", "p50", "at least", "at most"]
        yield draw_table("", header, rows, ("Service",))
    if times.lookup_share is not None:
        yield f"the lookup takes {times.lookup_share:.1%} of the median"
    yield fill(
        f"reading the clock adds {write_figure(times.clock, clock_unit)} to each; during {times.preempted:,} "
        f"connections the sender lost the CPU: left out; {times.refused:,} were refused, {times.unanswered:,} not "
        "answered",
        indent="",
    )


def _draw_places(title: str, figures: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return draw_table(title, ("table, chain", "hook", *figures), rows, ("table, chain", "hook"))


def _place(probe: Probe) -> str:
    # In mode iptables a base chain is named after its hook, and adds nothing.
    chain = f"\n  {probe.chain}" if probe.chain not in (None, probe.hook) else ""
    return f"{probe.table or '-'}{' *' if probe.lookup else ''}{chain}"


def name_figures(unit: str) -> tuple[str, ...]:
    """Name the columns of :func:`list_figures`."""
    if unit == "instructions":
        return ("calls", "min", "commonest", "mean", "p99", "max")
    return ("calls", "min", *(f"p{percent}" for percent in SHOWN), "max")


def list_figures(probe: Probe) -> list[str]:
    """Write a probe's figures: of a time percentiles, since a few long calls make its mean."""
    known = {name: percentile.estimate for name, percentile in probe.percentiles.items()}
    counted: tuple[float | None, ...] = (probe.mode, probe.mean, known.get("99"))
    shown = counted if probe.unit == "instructions" else [known.get(f"{percent}") for percent in SHOWN]
    return [f"{probe.count:,}", *(write_figure(figure, probe.unit) for figure in (probe.min, *shown, probe.max))]


def _describe_percentiles(probe: Probe) -> str:
    """Write a probe's percentiles, with bounds if they are estimates; of exact default ones only the lookup's."""
    exact = all(item.lo == item.hi for item in probe.percentiles.values())
    if exact and list(probe.percentiles) == [f"{percent}" for percent in PERCENTILES]:
        return ""
    place = f"{_place(probe)} {probe.hook or ''}".replace("\n ", "").replace(" *", "").strip("- ")
    return _list_percentiles(f"{place or probe.engine}: ", probe.percentiles, probe.unit)


def _list_percentiles(subject: str, percentiles: Mapping[str, Percentile], unit: str = "") -> str:
    spans = []
    for name, percentile in percentiles.items():
        estimate, lo, hi = ("?" if number is None else write_figure(number, unit) for number in astuple(percentile))
        is_exact = percentile.lo == percentile.hi == percentile.estimate
        spans.append(f"p{name} {estimate}{'' if is_exact else f' in [{lo}, {hi}]'}")
    return fill(f"{subject}{', '.join(spans)}") if spans else ""


def _draw_maps(result: Result) -> Iterator[str]:
    """Yield each map's values and histograms; of many entries the last: bpftrace prints the greatest last."""
    for name, content in result.maps.items():
        if not content.entries:
            yield plain(f"map {name}: empty")
        if len(content.entries) > _ENTRIES:
            yield plain(f"map {name}: the last {_ENTRIES} of {len(content.entries):,} entries")
        for entry in content.entries[-_ENTRIES:]:
            key = f"[{', '.join(map(plain_line, entry.key))}]" if entry.key else ""
            yield from _draw_entry(f"map {name}{key}: ", content.kind, entry)


def _draw_entry(subject: str, kind: str, entry: Entry) -> Iterator[str]:
    if kind not in ("hist", "lhist"):
        yield fill(f"{subject}{_write_value(entry.value)}")
        return
    count = f"{subject}count {entry.value['count']:,}"
    yield _list_percentiles(f"{count}, ", entry.percentiles or {}) or plain(count)
    rows = [(row["lo"], row["hi"], row["count"]) for row in entry.value["buckets"]]
    rows = rows if len(rows) <= _BUCKETS else [row for row in rows if row[2]]
    yield from draw_buckets(rows[:_BUCKETS], width() - 28)
    if rows[_BUCKETS:]:
        yield f"and {len(rows) - _BUCKETS:,} rows more"


def _write_value(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {figure}" for name, figure in value.items())
    text = str(value)
    return text if text.isprintable() else f"{text!a:.60}"


def _draw_overhead(overhead: Overhead, calls: Iterable[Probe], emulated: bool | None) -> Iterator[str]:
    """Yield what the calls cost less what tracing adds, and what it adds."""
    rows = []
    for probe in calls:
        if probe.middle is not None:
            costs = probe.middle, *overhead.untraced(probe.middle)
            rows.append((_place(probe), probe.hook or "?", *(write_figure(cost, overhead.unit) for cost in costs)))
    middle = "commonest" if overhead.unit == "instructions" else "p50"
    title = f"\nuntraced: less what tracing adds, {head_unit(overhead.unit, emulated)}"
    yield _draw_places(title, (middle, "untraced at least", "at most"), rows)
    pair, script = (write_bounded(added, ",.6g") for added in (overhead.empty, overhead.script))
    yield fill(
        f"the script adds {script} to a call, most of it after its time is taken; an empty pair of probes {pair}; "
        f"inside the time are {overhead.stored:,} and a part of the pair",
        indent="",
    )


def _say_cross_check(check: LookupCheck, emulated: bool | None) -> str:
    least, most, way = (
        write_figure(cost, check.unit) for cost in (check.lookup.lo, check.lookup.hi, check.way.estimate)
    )
    over = check.over_endpoint
    more = f", {write_figure(over.estimate, check.unit)} more than to the endpoint" if over else ""
    verdict = "a part fits in the whole" if check.agrees else "THE PART IS LONGER THAN THE WHOLE"
    return fill(
        f"cross-check, {name_unit(check.unit, emulated)}, untraced: a lookup takes {least} to {most} by the probe, its "
        f"packet's whole way {way} by the send time{more}: {verdict} (a sweep tells what each Service adds)",
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
    verdicts = {True: "closed", False: f"NOT CLOSED, {books.difference or ''}", None: "no second counter here"}
    yield f"books: {counted}: {verdicts[books.closed]}"
    if traffic.rate_pps:
        reached = "unknown" if traffic.pps is None else f"{traffic.pps:,.0f} packets per second"
        yield f"rate: {reached}, {traffic.rate_pps:,} asked for"
    lost = ", ".join(f"{name} {count}" for name, count in (books.drops or {}).items() if count)
    yield f"drops counted: {lost or 'none'}" if books.drops is not None else "drops counted: unknown"
    if books.other_calls is not None:
        yield f"calls of other packets: {books.other_calls:,}"
    if books.freed is not None:
        freed = ", ".join(f"{name} {count}" for name, count in books.freed.items())
        yield fill(f"packets freed on the whole machine: {freed or 'none'}", indent="")


def list_services(services: Iterable[ServiceCost], unit: str) -> Table:
    """List the costs of each Service's lookup; the unit as :func:`head_unit` writes it."""
    rows = []
    for service in services:
        cost = write_figure(service.cost, unit.removeprefix("emulated "))
        rows.append((service.name, service.target, f"{service.before:,}", f"{service.calls:,}", cost))
    header = ("Service", "target", "before it", "calls", "cost")
    return Table(f"lookup of each Service, {unit}", header, rows, header[:2])
