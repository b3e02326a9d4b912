"""What people see: lines and progress on stderr, tables on stdout. rich is imported only where it draws."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from kproxylat.model import Probe, Result


def say(message: str) -> None:
    """Print a line on stderr, where everything goes that is no result."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def waiting(text: str, expected_s: float) -> Iterator[None]:
    """Show a bar with the time left while the block runs, if a person is watching and it takes long.

    :param expected_s: how long it should take.
    """
    if expected_s < 2 or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = TextColumn("      {task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    ended = threading.Event()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(text, total=expected_s)

        def advance() -> None:
            while not ended.wait(0.25):
                progress.advance(task, min(0.25, max(expected_s - progress.tasks[0].completed, 0)))

        thread = threading.Thread(target=advance, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def show_result(result: Result) -> None:
    """Print a run's tables: what was measured, the books, and what may have spoiled them."""
    run, target = result.run, result.target
    clock = f"{'emulated ' if run.emulated else ''}{run.clock}"
    print(
        f"kube-proxy mode {run.mode}, backend {run.backend}; clock: {clock}\n"
        f"Linux {run.kernel}, bpftrace {run.bpftrace}"
    )
    if target:
        place = f", rule {run.position} of {run.chain_length}" if run.position else ""
        print(f"target {target.ip}:{target.port}/{target.protocol}, {run.path} path{place}")
    unit = result.probes[0].unit if result.probes else run.clock
    table = _table(f"{result.probes[0].engine if result.probes else 'no calls'}, {unit}")
    table.add_column("table, chain", overflow="fold")
    table.add_column("hook", no_wrap=True)
    for name in ("calls", "min", "commonest", "mean", "p99", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    for probe in result.probes:
        # In mode iptables a base chain is named after its hook, and adds nothing.
        chain = f"\n  {probe.chain}" if probe.chain not in (None, probe.hook) else ""
        table.add_row(f"{probe.table or '?'}{' *' if probe.lookup else ''}{chain}", probe.hook or "?", *_figures(probe))
    _print(table)
    if result.path and result.path.per_packet is not None:
        print(f"* the Service lookup; all hooks together: {result.path.per_packet:,.1f} {result.path.unit} a packet")
    books = result.accounting
    if books and result.traffic:
        counts = {
            "sent": books.sent,
            "lookups": books.lookups,
            "rule hits": books.rule_hits,
            "delivered": books.delivered,
            "untranslated": books.untranslated or None,
            "rejected": books.rejected or None,
        }
        counted = ", ".join(f"{name} {count}" for name, count in counts.items() if count is not None)
        print(f"books: {counted}: {'closed' if books.closed else 'NOT CLOSED, ' + (books.difference or '')}")
        print(f"rate: {result.traffic.pps or 0:,.0f} packets per second, {result.traffic.rate_pps:,} asked for")
    for warning in result.quality.warnings:
        print(f"warning: {warning}")
    if run.cut_short:
        print("cut short by a signal")
    if run.log:
        print(f"log: {run.log}")


def _figures(probe: Probe) -> list[str]:
    p99 = probe.percentiles.get("99")
    values = (probe.count, probe.min, probe.mode, probe.mean, p99.estimate if p99 else None, probe.max)
    return ["-" if value is None else f"{value:,.0f}" for value in values]


def show_sweep(results: Iterable[Result]) -> None:
    """Print the lookup's cost by mode, backend and number of Services, and what each Service adds."""
    found = list(results)
    sizes = sorted({result.run.services for result in found if result.run.services is not None})
    clock = found[0].run.clock if found else ""
    what = "commonest" if clock == "instructions" else "median"
    emulated = "emulated " if found and found[0].run.emulated else ""
    table = _table(f"{what} lookup by Services, {emulated}{clock}", "mode", "backend")
    for name in (*(f"{size:,}" for size in sizes), "per Service"):
        table.add_column(name, justify="right")
    rows: dict[tuple[str, str], dict[int, float]] = {}
    for result in found:
        if result.lookup and result.run.services is not None:
            cost = result.lookup.mode if clock == "instructions" else result.lookup.percentiles["50"].estimate
            rows.setdefault((result.run.mode or "", result.run.backend or ""), {})[result.run.services] = cost or 0
    for (mode, backend), costs in rows.items():
        slopes = [(costs[b] - costs[a]) / (b - a) for a, b in zip(sorted(costs), sorted(costs)[1:], strict=False)]
        shown = [f"{costs[size]:,.0f}" if size in costs else "-" for size in sizes]
        table.add_row(mode, backend, *shown, ", ".join(f"{slope:.4g}" for slope in dict.fromkeys(slopes)))
    _print(table)
    closed = sum(bool(result.accounting and result.accounting.closed) for result in found)
    print(f"books closed: {closed} of {len(found)} runs")


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _print(table: Table) -> None:
    from rich.console import Console

    with StringIO() as text:
        Console(file=text, width=80, highlight=False).print(table)
        print("\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n"))
