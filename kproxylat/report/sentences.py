"""Results in sentences: what a reader wants first. The tables follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from kproxylat.report.columns import write_digits, write_figure
from kproxylat.results import Bounded, Result, target_text

if TYPE_CHECKING:
    from kproxylat.analysis.alternatives import Alternative, WhatIf
    from kproxylat.analysis.series import Series

_KINDS = {"tcp": "TCP connection", "udp": "UDP flow"}
_TWICE, _NEARLY = 2, 0.02
"""Costs that differ by less than this part are about the same."""


def describe_result(result: Result) -> str:
    """Say what a run measured, what stands before the rule, and whether the packets are accounted for."""
    probe, run, target = result.headline or result.main_probe, result.run, result.target
    if not probe or probe.middle is None:
        return ""
    cost = write_figure(probe.middle, probe.unit)
    if probe.unit == "instructions":
        cost += " instructions (the commonest count)"
    else:
        cost += f"{' of emulated time' if run.emulated else ''} (p50)"
    if not result.headline:
        return f"A call of {probe.engine} takes {cost}."
    name = (target.service if target else None) or target_text(result) or "the Service"
    kind = _KINDS.get((target.protocol or "").lower() if target else "", "flow")
    subject = f"A new {kind} to {name}"
    if result.services:
        subject = f"A new flow to one of {len(result.services):,} Services"
    texts = {
        "lookup": f"{subject} is looked up in {cost}",
        "first packet": f"{subject} is answered in {cost}",
        "send time": f"A packet that begins a new flow to {name} is delivered in {cost}",
    }
    text = texts[probe.measured]
    if run.path == "miss":
        text = text.replace("is delivered in", "leaves the node as it came after") + "; no rule matches it"
    elif run.position:
        before = run.position - 1
        text += f"; {before:,} Service rule{' stands' if before == 1 else 's stand'} before its own"
    elif run.services and not result.services:
        text += f"; the rules hold {run.services:,} other Services"
    books = result.accounting
    verdict = "every packet is accounted for" if books and books.closed else "the packet counters do not balance"
    if books and books.closed is None:
        verdict = "no counter on this machine tells whether the packets arrived"
        if first := result.first_packet:
            verdict = f"{first.sent - first.unanswered - first.refused:,} of {first.sent:,} connections were answered"
    return f"{text}{f'; {verdict}' if books else ''}."


def describe_series(every: Sequence[Series]) -> Iterator[str]:
    """Say of each series what a Service adds, and where two of them cost the same."""
    from kproxylat.analysis.crossings import find_crossing

    for series in every:
        per = series.per_service
        if not per or series.verdict == "unclear":
            costs = " and ".join(
                f"{_add_unit(write_figure(point.cost, series.unit), series.unit)} with {point.services:,} Services"
                for point in (*series.points[:1], *series.points[1:][-1:])
            )
            yield f"{series.name}: {series.measured} {costs}; what each Service adds is unclear."
        elif series.verdict == "O(1)" and per.lo > 0:
            added = _add_unit(write_figure(per.hi, series.unit), series.unit)
            yield f"{series.name}: each Service adds at most {added} to a {series.measured}, next to nothing: O(1)."
        elif series.verdict == "O(1)":
            yield f"{series.name}: Services add nothing to a {series.measured}, O(1)."
        else:
            added = _add_unit(write_figure(per.estimate, series.unit), series.unit)
            yield f"{series.name}: each Service adds {added} to a {series.measured}, O(n)."
    for one, other in combinations(every, 2):
        where = find_crossing(one, other)
        if where and where.estimate > 0 and one.per_service and other.per_service:
            cheap, dear = (one, other) if one.per_service.estimate < other.per_service.estimate else (other, one)
            most = max(point.services for point in (*one.points, *other.points))
            beyond = ", if the lines go on beyond what was measured" if where.estimate > most else ""
            yield f"Above {write_bounds(where)} Services {cheap.name} costs less than {dear.name}{beyond}."


def describe_alternative(mode: Alternative, outcome: WhatIf) -> str:
    """Say what a mode would cost the Services on average, and which of them."""
    now = next((alternative for alternative in outcome.alternatives if alternative.captured), None)
    name, unit = f"{mode.mode}/{mode.backend}", outcome.unit.removeprefix("emulated ")
    own = _add_unit(write_figure(mode.mean, unit), unit)
    if now is None or mode is now:
        return f"{name}: a lookup costs {own} on average now."
    ratio, equal = mode.mean / now.mean if now.mean else 1, equal_at(mode, outcome)
    change = f"{100 * (1 - ratio):.3g}% less than" if ratio < 1 else f"{100 * (ratio - 1):.3g}% more than"
    change = f"{write_digits(ratio, 2)} times as much as" if ratio >= _TWICE else change
    costs = "about as much as" if abs(ratio - 1) < _NEARLY else change
    grows_more = (mode.per_service or 0) > (now.per_service or 0)
    verdicts = {
        "never": f"{'less' if ratio < 1 else 'more'} for each Service",
        "always": "the same for each Service",
        "unclear": "for which Services it is less is unclear",
    }
    verdict = verdicts.get(equal, f"less {'below' if grows_more else 'above'} {equal} Services before it")
    return f"{name}: a lookup would cost {costs} now, {own} on average; {verdict}."


def equal_at(mode: Alternative, outcome: WhatIf) -> str:
    """Say with how many Services before it a lookup costs the same in a mode as now: never, always, or a number."""
    from kproxylat.analysis.crossings import find_crossing
    from kproxylat.analysis.series import choose_lines

    lines = choose_lines(outcome.series)
    now = next((alternative for alternative in outcome.alternatives if alternative.captured), None)
    own, present = (lines.get((row.mode, row.backend)) if row else None for row in (mode, now))
    if mode is now or not own or not present:
        return "now" if mode is now else "unclear"
    where = find_crossing(present, own)
    if where and where.estimate > 0:
        return write_bounds(where)
    costs = {point.services: point for point in present.points}
    pairs = [(costs[point.services], point) for point in own.points if point.services in costs]
    if pairs and all(one.cost == other.cost for one, other in pairs):
        return "always"
    apart = [all(one.hi < other.lo for one, other in pairs), all(one.lo > other.hi for one, other in pairs)]
    return "never" if pairs and any(apart) else "unclear"


def write_bounds(figure: Bounded) -> str:
    """Write a number of Services with its bounds, if they differ."""
    estimate, lo, hi = (write_figure(number, None) for number in (figure.estimate, max(figure.lo, 0), figure.hi))
    return estimate if lo == hi else f"{estimate} ({lo} to {hi})"


def _add_unit(figure: str, unit: str) -> str:
    return f"{figure} {unit}" if unit == "instructions" else figure
