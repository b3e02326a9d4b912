"""The bill of live traffic as a sentence with its table, and as CSV."""

from __future__ import annotations

from collections.abc import Iterator

from kproxylat.analysis.bill import Bill, Row, cut
from kproxylat.report.columns import Table, draw_table, fill, write_digits
from kproxylat.report.export import csv_row
from kproxylat.results import Bounded

_FIELDS = ("service", "target", "kind", "lookups_per_s", "share", "share_lo", "share_hi", "mean_ns", "p99_ns",
           "p99_lo", "p99_hi", "cpu_ms_per_s")  # fmt: skip


def describe_bill(bill: Bill) -> str:
    """Write the sentence: what the lookups cost a day, how much of it for no Service, what other modes would save."""
    part = bill.no_service_s_per_day / bill.cpu_s_per_day.estimate if bill.cpu_s_per_day.estimate else 0
    if bill.savings:
        saved = [f"{row.mode} on {row.backend} {_bound(row.cpu_s_per_day)} s" for row in bill.savings]
        other = f"By the model of whatif, another mode would give back of the Services' part: {'; '.join(saved)}."
    else:
        other = "What another mode would give back is unknown" + (
            ": pass --whatif FILE." if bill.savings is None else ": the file of --whatif lacks the present mode."
        )
    return (
        f"Lookups in kube-proxy's rules (mode {bill.mode}, backend {bill.backend}) cost this node "
        f"{_bound(bill.cpu_s_per_day)} s of CPU a day, {write_digits(bill.no_service_s_per_day)} s of them "
        f"({part:.0%}) for flows to no Service. {other}"
    )


def draw_bill(bill: Bill) -> str:
    """Write the sentence, the table, and what the numbers rest on."""
    facts = [*list_facts(bill), *(f"warning: {warning}" for warning in bill.warnings)]
    return "\n\n".join([fill(describe_bill(bill), indent=""), _draw_rows(bill), "\n".join(map(fill, facts))])


def draw_live(bill: Bill) -> str:
    """Write what a person watches while it grows: the table below a few figures."""
    line = (
        f"q ends. {write_digits(bill.lookups_per_s.estimate)} lookups/s, "
        f"{write_digits(bill.cpu_s_per_day.estimate)} s of CPU a day; "
        f"{bill.windows} windows in {bill.period_s:.0f} s; probes {bill.usage.mean:.2%} of one CPU"
    )
    return f"{fill(line, indent='')}\n\n{_draw_rows(bill)}"


def _draw_rows(bill: Bill) -> str:
    # An address has a line of its own; and a column of numbers takes the fold, so that a name stays in one line.
    rows = list_destinations(bill, "\n  ")
    return draw_table("", rows.header, rows.rows, rows.left, fold=2)


def list_destinations(bill: Bill, gap: str = " ") -> Table:
    """List the lookups of each destination; of many Services the first.

    :param gap: stands between a name and one of its several addresses.
    """
    header = ("Service or address", "lookups\na second", "%\n(95 % bounds)", "mean\nns", "p99 ns\nbelow", "CPU\nms/s")
    return Table("Lookups by destination", header, [_draw_row(row, gap) for row in cut(bill.rows)], header[:1])


def list_facts(bill: Bill) -> list[str]:
    """Return what the numbers rest on: the windows, another counter, and what the probes took."""
    usage, check = bill.usage, bill.check
    verdict = {True: "closed", False: "NOT CLOSED", None: ""}[check.closed]
    counter = "unknown" if check.lookups is None else f"about {check.lookups:,.0f}: {verdict}"
    if check.least is not None and check.most is not None:
        counter = f"{check.least:,.0f} to {check.most:,.0f} at that time: {verdict}"
    how = "measured" if usage.measured else "expected"
    return [
        f"lookups: {_bound(bill.lookups_per_s)} a second; {bill.lookups:,} counted in {bill.windows} windows of "
        f"{bill.seconds:.2f} s in all, {bill.sampled:.2%} of {bill.period_s:.0f} s",
        f"windows: {check.counted:,} lookups; another counter ({check.counter}): {counter}",
        f"the probes took {usage.mean:.3%} of one CPU ({how}; budget {usage.budget:.3%}), at most {usage.peak:.2%} in "
        f"a second, {usage.calls:,} runs; starting bpftrace took {usage.bpftrace_s:.1f} s of CPU beside it",
    ]


def _draw_row(row: Row, gap: str) -> tuple[str, ...]:
    shares = [write_digits(share * 100, 2) for share in (row.share.estimate, row.share.lo, row.share.hi)]
    p99 = f"{row.p99_ns.hi:,.0f}" if row.p99_ns and row.p99_ns.hi is not None else "-"
    name = f"{row.name}{gap}{row.key}" if row.name and row.kind == "address" else row.name or row.key
    return (
        name, f"{row.lookups_per_s:,.1f}", "{} ({} to {})".format(*shares), f"{row.mean_ns:,.0f}", p99,
        write_digits(row.cpu_ms_per_s, 2),
    )  # fmt: skip


def _bound(figure: Bounded) -> str:
    return f"{write_digits(figure.estimate)} ({write_digits(figure.lo)} to {write_digits(figure.hi)})"


def export_bill_csv(bill: Bill) -> Iterator[str]:
    """Write one line a row, all of them."""
    yield csv_row(_FIELDS)
    for row in bill.rows:
        p99 = row.p99_ns
        bounds = (p99.estimate, p99.lo, p99.hi) if p99 else (None, None, None)
        yield csv_row([
            row.name, row.key, row.kind, row.lookups_per_s, row.share.estimate, row.share.lo, row.share.hi, row.mean_ns,
            *bounds, row.cpu_ms_per_s,
        ])  # fmt: skip
