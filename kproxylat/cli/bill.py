"""The command bill. Imported in the function: what takes long to import, for the sake of ``--help``."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kproxylat.cli.nodes import Errand, Remote, list_words, run_on_nodes
from kproxylat.cli.options import Backend, Kind, ModeName, ProbeKind
from kproxylat.cli.places import Place
from kproxylat.cli.spread import spread
from kproxylat.console import say, show, waiting
from kproxylat.errors import MachineError, UsageError, refuse_options
from kproxylat.system import interrupts
from kproxylat.system.kernel import check_root

if TYPE_CHECKING:
    from kproxylat.analysis.alternatives import WhatIf
    from kproxylat.measure.bill import Billing

START_S = 120
"""How much longer than its period a bill in a pod may take: the start of bpftrace, and the windows' ends."""
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


class BillFormat(StrEnum):
    """How a bill is written to stdout."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    CSV = "csv"
    OPENMETRICS = "openmetrics"


def read_seconds(text: str) -> float:
    """Read a duration such as ``60``, ``60s``, ``5m`` or ``1h``.

    :raises UsageError: it is another text, or not from 2 s to a day.
    """
    match = re.fullmatch(r"(\d{1,7}(?:\.\d{1,3})?)([smh]?)", text, re.ASCII)
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0
    if not 2 <= seconds <= 86400:
        raise UsageError(f"a duration of {text!r} is not possible", "--for takes 2s to 24h, e.g. 60s, 5m")
    return seconds


def read_address(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``, ``[IPv6]:PORT`` or ``:PORT`` (this machine alone).

    :raises UsageError: it is another text.
    """
    host, colon, port = text.rpartition(":")
    if not (colon and port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536):
        raise UsageError(f"invalid address {text!r}", "--serve takes HOST:PORT, e.g. 127.0.0.1:9105")
    return host.strip("[]") or "127.0.0.1", int(port)


@spread
def bill(
    ctx: typer.Context,
    duration: Annotated[str, typer.Option("--for", metavar="TIME", help="How long to count: 60s, 5m.")] = "60s",
    budget: Annotated[float, typer.Option("--budget", help="Percent of one CPU for the probes, on average.")] = 1.0,
    mode: ModeName = None,
    backend: Backend = None,
    probe: ProbeKind = Kind.AUTO,
    whatif: Annotated[
        Path | None, typer.Option("--whatif", metavar="FILE", help="What whatif saved, for what other modes give back.")
    ] = None,
    serve: Annotated[
        str | None, typer.Option("--serve", metavar="ADDRESS", help="Count on and on, for Prometheus to scrape.")
    ] = None,
    form: Annotated[BillFormat | None, typer.Option("--format", "-o", help="How the bill is written (table).")] = None,
    *,
    place: Place,
    nodes: Remote,
) -> None:
    """Count what lookups of live traffic cost now, by Service. Nothing is sent, and nothing changes.

    An attached probe costs every packet, so kproxylat attaches its probes for short windows only, as --budget allows,
    and detaches them at once where they take more.

    \b
    Examples:
      sudo kproxylat bill
      sudo kproxylat bill --for 5m --budget 0.5 --format json
      sudo kproxylat bill --whatif logs/ebpf/whatif_20261128_150000.json
      sudo kproxylat bill --serve 127.0.0.1:9105
      kubectl kproxylat bill --all-nodes --for 5m
    """
    from kproxylat.analysis.bill import save_by_mode
    from kproxylat.measure import bill as billing
    from kproxylat.report.bill import draw_bill, export_bill_csv
    from kproxylat.report.openmetrics import BillTotals

    period_s, address = read_seconds(duration), read_address(serve) if serve is not None else None
    if not 0.001 <= budget <= 5:
        raise UsageError(f"a budget of {budget:g} % is not possible", "--budget takes 0.001 to 5, percent of one CPU")
    if probe is Kind.NONE:
        raise UsageError("--probe none counts nothing", "leave it out")
    if nodes.asked():
        nodes.refuse(place, serve=serve, whatif=whatif)
        if form in (BillFormat.CSV, BillFormat.OPENMETRICS):
            raise UsageError(f"the bills of several nodes have no format {form}", "--format takes table, json or yaml")
        errand = Errand("bill", list_words(ctx), period_s + START_S)
        run_on_nodes(nodes, nodes, lambda _: errand, form or BillFormat.TABLE)
    if address:
        refuse_options("Prometheus scrapes its own format", "leave out --serve", format=form, whatif=whatif)
    model = _read_model(whatif) if whatif else None
    check_root()
    with waiting("reading the live rules", 5), interrupts.deferred():
        plan = billing.plan_bill(mode, backend, place.find(), budget / 100, period_s, probe)
    if address:
        serve_bills(plan, *address)
        return
    answer, ended = billing.bill(plan)
    if model:
        answer = replace(answer, savings=save_by_mode(answer.rows, model, answer.mode, answer.backend))
    if form is BillFormat.JSON:
        show(answer.to_json())
    elif form is BillFormat.CSV:
        show("".join(export_bill_csv(answer)), end="")
    elif form is BillFormat.OPENMETRICS:
        totals = BillTotals()
        totals.add(answer)
        show(totals.export(), end="")
    else:
        show(draw_bill(answer))
    if ended:
        raise ended


def serve_bills(plan: Billing, host: str, port: int) -> None:
    """Count until a signal comes, and answer scrapes.

    :raises MachineError: as :func:`kproxylat.measure.bill.bill`, or the address cannot be listened on.
    """
    from kproxylat.measure.bill import NothingCountedError, bill
    from kproxylat.report.openmetrics import BillTotals

    totals = BillTotals()
    try:
        totals.serve(host, port)
    except OSError as error:
        raise MachineError(f"cannot listen on {host}, port {port}: {error.strerror}", "pass another --serve") from None
    say(f"serving /metrics on {host}, port {port}; Ctrl-C ends it")
    while True:
        try:
            answer, ended = bill(plan)
        except MachineError as error:
            # What fails at once would fail for ever; later, a busy time passes.
            if not (totals.bills or isinstance(error, NothingCountedError)):
                raise
            say(f"kproxylat: {error}")
            interrupts.wait(threading.Event(), plan.period_s)
            continue
        totals.add(answer)
        if ended:
            raise ended


def _read_model(path: Path) -> WhatIf:
    """Read what whatif saved.

    :raises UsageError: the file is not that.
    """
    from kproxylat.analysis.alternatives import build_outcome
    from kproxylat.results import SCHEMA
    from kproxylat.results_json import load_document

    try:
        return build_outcome(load_document(path.read_bytes(), SCHEMA))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"--whatif {path}: {error}", "kproxylat whatif RULESET saves such a file") from None
