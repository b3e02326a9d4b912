"""The sections of a report: what each kind of document says, as sentences, tables and a picture.

Another kind of document is another row of :data:`KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from kproxylat.analysis.alternatives import build_outcome
from kproxylat.analysis.bill import Bill
from kproxylat.analysis.comparison import Comparison
from kproxylat.analysis.published import Reproduction
from kproxylat.analysis.series import build_series
from kproxylat.report import plot
from kproxylat.report.bill import describe_bill, list_destinations, list_facts
from kproxylat.report.columns import Table, write_bounded, write_figure
from kproxylat.report.reproduction import list_times, list_verdicts
from kproxylat.report.run_table import head_unit, list_services
from kproxylat.report.sentences import describe_alternative, describe_result, describe_series
from kproxylat.report.tables import ALTERNATIVES, explain_series, list_alternatives, list_points, list_series
from kproxylat.results import Probe, Result, name_unit, target_text
from kproxylat.results_json import build, build_results, build_valid

Complain = Callable[[str], None]
"""Called with the reason for each result or comparison that is left out."""
MANY = 40
"""Of more runs than this only those have a row that need one."""
FACTS, SHAPES = ("fact", "value"), ("shape", "verdict", "evidence")
METHODS = {
    "lookup": "bpftrace timed the kernel function that looks a packet up in kube-proxy's rules. The time includes a "
    "part of the probe's own cost.",
    "first packet": "The sender took the time from a connection's SYN to its SYN-ACK by its own clock.",
    "send time": "The sender took the time of the system call that carries a packet its whole way by its own clock.",
}
"""What was measured, as :attr:`kproxylat.results.Probe.measured` has it -> how."""
_EMULATED = "The machine was emulated: compare its costs with each other, not with those of hardware."


@dataclass(frozen=True)
class Section:
    """What a report says of one document.

    :param sentences: the answer. ``methods``: how it was measured, in words; ``facts``: the setting of the runs.
    :param picture: draws a figure of matplotlib's, or raises :class:`~kproxylat.errors.KproxylatError`.
    """

    kind: str
    sentences: Sequence[str]
    picture: Callable[[], Any]
    tables: Sequence[Table]
    warnings: Sequence[str] = ()
    methods: Sequence[str] = ()
    facts: Table | None = None


def _number(value: float | None) -> str:
    return write_figure(value, None)


def build_runs(document: Mapping[str, Any], complain: Complain) -> Section:
    """Build the section of a run, of several, or of a sweep.

    :raises ValueError: the document holds no result.
    """
    results = build_results(document, complain)
    if not results:
        raise ValueError("holds no result")
    series = [line for line in build_series(results) if len(line.points) > 1]
    sentences = [*describe_series(series)]
    if not series:
        nothing = "no lookup was measured."
        sentences = [describe_result(result) or f"{plot.name_run(result)}: {nothing}" for result in results[:MANY]]
    evidence = [(line.strip(),) for line in explain_series(series)]
    tables = (
        [
            list_series(series),
            list_points(series),
            Table("Evidence", ("of each series",), evidence, ("of each series",)),
        ]
        if series
        else []
    )
    if len(results) == 1:
        tables += [_list_probes("Calls", dict(_name_probes(results[0])), results)]
        maps = [(name, content.kind, len(content.entries)) for name, content in results[0].maps.items()]
        tables += [Table("Maps of the probe script", ("map", "kind", "entries"), maps, ("map", "kind"))] if maps else []
        unit = head_unit(results[0].run.clock or "unknown unit", results[0].run.emulated)
        tables += [list_services(results[0].services, unit)] if results[0].services else []
    elif len(results) <= MANY:
        probes = {f"{number}. {plot.name_run(result)}": probe for number, result in enumerate(results, 1)
                  if (probe := result.main_probe)}  # fmt: skip
        tables += [_list_probes("Runs", probes, results)]
    kind = "Sweep" if series else "Run" if len(results) == 1 else f"{len(results)} runs"
    return _complete(kind, sentences, partial(plot.picture_results, results), tables, results)


def _complete(
    kind: str,
    sentences: Sequence[str],
    picture: Callable[[], Any],
    tables: Sequence[Table],
    results: Sequence[Result],
    warnings: Iterable[str] = (),
) -> Section:
    """Add what all documents with runs have: accounting, methods, facts, warnings."""
    books = [(f"{number}. {plot.name_run(result)}", result.accounting) for number, result in enumerate(results, 1)]
    known = [(name, counts) for name, counts in books if counts]
    closed, broken = (sum(counts.closed is state for _, counts in known) for state in (True, False))
    rows = [(name, *map(_number, (counts.sent, counts.lookups, counts.rule_hits, counts.delivered)),
             {True: "yes", None: "no second counter"}.get(counts.closed, f"NO: {counts.difference or 'unknown'}"))
            for name, counts in known if len(known) <= MANY or not counts.closed]  # fmt: skip
    header = ("run", "sent", "lookups", "rule hits", "delivered", "balanced")
    title = f"Packet accounting: balanced in {closed} of {len(known)} runs"
    accounting = [Table(title, header, rows, header[:1])] if known else []
    noted = dict.fromkeys(warnings)
    for number, result in enumerate(results, 1):
        prefix = f"run {number}: " if results[1:] else ""
        noted |= dict.fromkeys(prefix + warning for warning in result.quality.warnings)
        noted |= {f"{prefix}cut short": None} if result.run.cut_short else {}
    if broken:
        noted |= {f"the packet accounting does not balance in {broken} runs": None}
    if len(known) < len(results):
        noted |= {f"{len(results) - len(known)} of {len(results)} runs have no packet accounting": None}
    methods = dict.fromkeys(METHODS[probe.measured] for result in results if (probe := result.main_probe))
    if any(result.run.emulated for result in results):
        methods[_EMULATED] = None
    facts = Table("Setting", FACTS, list(_list_facts(results)), FACTS)
    return Section(kind, sentences, picture, [*tables, *accounting], [*noted], [*methods], facts)


def _list_facts(results: Sequence[Result]) -> Iterator[tuple[str, str]]:
    """Yield each known fact of the runs, with its values."""
    runs = []
    for result in results:
        traffic = result.traffic
        sending = {"generator": traffic.generator, "packets a second": traffic.rate_pps} if traffic else {}
        overhead = {"tracing adds to a call": write_bounded(result.overhead.script)} if result.overhead else {}
        runs.append({**asdict(result.run), "target": target_text(result), **sending, **overhead})
    for name in dict.fromkeys(name for run in runs for name in run):
        texts = dict.fromkeys(_write_fact(run.get(name)) for run in runs)
        values = [text for text in texts if text]
        if values:
            more = f" and {len(values) - 3} more" if values[3:] else ""
            yield name.replace("_", " "), ", ".join(values[:3]) + more


def _write_fact(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {text}" for name, text in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return "" if value is None else {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _name_probes(result: Result) -> Iterator[tuple[str, Probe]]:
    """Yield what was timed in a run, with names for people."""
    for probe in result.probes:
        places = dict.fromkeys(filter(None, (probe.engine, probe.table, probe.chain, probe.hook)))
        yield " ".join(places) + (" (the lookup)" if probe.lookup else ""), probe
    for kind, probe in result.send_time.by_kind.items() if result.send_time else ():
        yield f"send time to {kind}", probe
    if result.first_packet:
        yield "first packet, SYN to SYN-ACK", result.first_packet.probe


def _list_probes(title: str, probes: Mapping[str, Probe], results: Sequence[Result]) -> Table:
    names = sorted({name for probe in probes.values() for name in probe.percentiles} - {"100"}, key=float)
    rows = []
    for name, probe in probes.items():
        shares = [percentile.estimate if (percentile := probe.percentiles.get(part)) else None for part in names]
        costs = (write_figure(cost, probe.unit) for cost in (probe.min, *shares, probe.mean, probe.max))
        rows.append((name, f"{probe.count:,}", *costs))
    emulated = dict.fromkeys(result.run.emulated for result in results)
    units = dict.fromkeys(name_unit(probe.unit, each) for probe in probes.values() for each in emulated)
    header = ("", "calls", "least", *(f"p{name}" for name in names), "mean", "most")
    return Table(f"{title}, {' and '.join(units)}", header, rows, header[:1])


def build_whatif(document: Mapping[str, Any], complain: Complain) -> Section:
    """Build the section of the costs of captured rules in each mode."""
    results = build_results(document, complain)
    outcome = build_outcome(document)
    sentences = [describe_alternative(mode, outcome) for mode in outcome.alternatives]
    picture = partial(plot.picture_results, results)
    section = _complete("What if", sentences, picture, list_alternatives(outcome), results, outcome.notes)
    return replace(section, methods=[ALTERNATIVES, *section.methods])


def build_comparisons(document: Mapping[str, Any], complain: Complain) -> Section:
    """Build the section of comparisons.

    :raises ValueError: the document holds none.
    """
    build_pair = partial(build, Comparison)
    pairs: list[Comparison] = build_valid(build_pair, document["comparisons"], "comparisons", complain)
    if not pairs:
        raise ValueError("holds no comparison")
    tables, warnings = [], dict[str, None]()
    for pair in pairs:
        sides = f"A: {pair.a.mode}/{pair.a.backend}, B: {pair.b.mode}/{pair.b.backend}"
        unit = name_unit(pair.unit, pair.emulated)
        many = len(pair.lookups) > 1
        shown = [(lookup.what, lookup.main) for lookup in pair.lookups] if many else [
            (figure.name, figure) for figure in pair.lookups[0].figures]  # fmt: skip
        shown += [(f"{call.what} (another call)", call.main) for call in pair.calls]
        rows = [
            (
                name, _number(figure.a), _number(figure.b), write_bounded(figure.difference, "+,.0f"),
                write_bounded(figure.ratio, ".3f"),
            )
            for name, figure in shown
        ]  # fmt: skip
        level = "" if pair.lookups[0].level == 1 else f", bounds {pair.lookups[0].level:.1%}"
        tables.append(Table(f"{sides}; {unit}{level}", ("", "A", "B", "B - A", "B / A"), rows, ("",)))
        if pair.changed:
            changes = [(name.replace("_", " "), *("-" if value == "None" else value for value in values))
                       for name, values in pair.changed.items()]  # fmt: skip
            header = ("condition", "A", "B")
            tables.append(Table(f"Conditions that differ; {sides}", header, changes, header))
        warnings |= {f"{name} differs ({difference}), and --allow lets it": None
                     for name, difference in pair.overruled.items()}  # fmt: skip
        warnings |= dict.fromkeys((*pair.only, *(f"B lacks {name}" for name in pair.missing)))
        warnings |= {f"neither side tells its {', '.join(pair.unknown)}": None} if pair.unknown else {}
    files = dict.fromkeys(
        (side.file, f"{side.mode}/{side.backend}", str(side.runs)) for pair in pairs for side in (pair.a, pair.b)
    )
    facts = Table("What was compared", ("file", "mode", "runs"), list(files), ("file", "mode"))
    methods = dict.fromkeys(METHODS[pair.measured] for pair in pairs if pair.measured in METHODS)
    methods |= {_EMULATED: None} if any(pair.emulated for pair in pairs) else {}
    statements = [pair.statement for pair in pairs]
    return Section(
        "Comparison", statements, partial(plot.picture_comparisons, pairs), tables, [*warnings], [*methods], facts
    )


def build_reproduction(document: Mapping[str, Any], _: Complain) -> Section:
    """Build the section of a published measurement and ours."""
    reproduction: Reproduction = build(Reproduction, document)
    published = reproduction.published
    states = [verdict.state for verdict in reproduction.verdicts]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    sentences = [f"{published.title}: of {len(states)} shapes {counted or 'none was judged'}."]
    shapes = Table("Shape by shape", SHAPES, list_verdicts(reproduction), SHAPES)
    tables = [shapes, *list_times(reproduction)]
    facts = {"published": f"{published.date}, {published.address}", "their method": published.method}
    facts |= {"this machine": str(document.get("machine", "unknown"))}
    table = Table("Setting", FACTS, list(facts.items()), FACTS)
    picture = partial(plot.picture_reproduction, reproduction)
    differs = [f"may differ: {reason}" for reason in published.differs]
    return Section("Reproduction", sentences, picture, tables, differs, [METHODS["first packet"]], table)


def build_bill(document: Mapping[str, Any], _: Complain) -> Section:
    """Build the section of the bill of live traffic."""
    bill: Bill = build(Bill, document)
    names = ("started", "mode", "backend", "kernel", "bpftrace", "period_s", "windows")
    facts = [(name.replace("_", " "), _write_fact(document[name])) for name in names]
    picture, warnings = partial(plot.picture_bill, bill), bill.warnings
    tables, setting = [list_destinations(bill)], Table("Setting", FACTS, facts, FACTS)
    return Section("Bill", [describe_bill(bill)], picture, tables, warnings, list_facts(bill), setting)


KINDS: Mapping[str, Callable[[Mapping[str, Any], Complain], Section]] = {
    "comparisons": build_comparisons,
    "published": build_reproduction,
    "cpu_s_per_day": build_bill,
    "whatif": build_whatif,
    "results": build_runs,
    "run": build_runs,
}
"""Member that a kind of document has -> what builds its section; of several the first."""
