"""The command bill. Imported in the function: what takes long to import, for the sake of ``--help``."""

from __future__ import annotations

import re
import sys
import threading
from dataclasses import replace
from enum import StrEnum
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kproxylat.cli.nodes import Errand, Nodes, list_words, run_on_nodes
from kproxylat.cli.options import Backend, Kind, ModeName, ProbeKind, refuse_untraced
from kproxylat.cli.places import Cluster, Place
from kproxylat.cli.spread import spread
from kproxylat.console import ESSENTIAL, can_draw, drawing, plain_line, say, show, waiting
from kproxylat.errors import BOOKS_OPEN, Interrupted, KproxylatError, LogError, MachineError, UsageError, refuse_options
from kproxylat.system import interrupts
from kproxylat.system.kernel import check_root
from kproxylat.system.keys import quitting

if TYPE_CHECKING:
    from kproxylat.analysis.alternatives import WhatIf
    from kproxylat.analysis.bill import Bill
    from kproxylat.cluster.nodes import Outcome
    from kproxylat.measure.bill import Billing

START_S = 120
"""How much longer than its period a bill in a pod may take: the start of bpftrace, and the windows' ends."""
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


BillFormat = StrEnum("BillFormat", ["TABLE", "JSON", "YAML", "CSV", "OPENMETRICS"])
"""How a bill is written to stdout."""


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
    duration: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="How long to count: 60s, 5m (60s; with --watch 10m).")
    ] = None,
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
    watch: Annotated[
        bool, typer.Option("--watch", help="Draw the table in place, after each window; q ends it with the bill.")
    ] = False,
    form: Annotated[BillFormat | None, typer.Option("--format", "-o", help="How the bill is written (table).")] = None,
    *,
    place: Place,
    cluster: Cluster,
    nodes: Nodes,
) -> None:
    """Count what lookups of live traffic cost now, by Service. Nothing is sent, and nothing changes.

    An attached probe costs every packet, so kproxylat attaches its probes for short windows only, as --budget allows,
    and detaches them at once where they take more. Rows that the node's rules do not name (mode ipvs, NodePorts,
    external addresses) get their names from the cluster's API.

    \b
    Examples:
      sudo kproxylat bill
      sudo kproxylat bill --for 5m --budget 0.5 --format json
      sudo kproxylat bill --watch
      sudo kproxylat bill --whatif logs/ebpf/whatif_20261128_150000.json
      sudo kproxylat bill --serve 127.0.0.1:9105
      kubectl kproxylat bill --all-nodes --for 5m
    """
    from kproxylat.analysis.bill import save_by_mode
    from kproxylat.measure import bill as billing
    from kproxylat.report.bill import draw_bill, export_bill_csv
    from kproxylat.report.openmetrics import BillTotals

    period_s = read_seconds(duration if duration is not None else "10m" if watch else "60s")
    address = read_address(serve) if serve is not None else None
    if not 0.001 <= budget <= 5:
        raise UsageError(f"a budget of {budget:g} % is not possible", "--budget takes 0.001 to 5, percent of one CPU")
    refuse_untraced(probe)
    if nodes.asked():
        nodes.refuse(place, serve=serve, whatif=whatif, watch=watch)
        if form in (BillFormat.CSV, BillFormat.OPENMETRICS):
            raise UsageError(f"the bills of several nodes have no format {form}", "--format takes table, json or yaml")
        name = partial(name_outcome, Names(cluster), form or BillFormat.TABLE)
        errand = Errand("bill", [*list_words(ctx, "form"), "--format=json"], period_s + START_S, finish=name)
        run_on_nodes(nodes, cluster, lambda _: errand, form or BillFormat.TABLE)
    if address:
        refuse_options(
            "Prometheus scrapes its own format", "leave out --serve", format=form, whatif=whatif, watch=watch
        )
    if watch and not can_draw():
        raise UsageError("--watch draws on a terminal, and this is not one", "leave it out; or count on with --serve")
    model = _read_model(whatif) if whatif else None
    check_root()
    names = Names(cluster)
    if any(cluster.api_options.values()):
        names.connect()
    with waiting("reading the live rules", 5), interrupts.deferred():
        plan = billing.plan_bill(mode, backend, place.find(), budget / 100, period_s, probe)
    if address:
        serve_bills(plan, names, *address)
        return
    answer, ended = watch_bill(plan, names) if watch else billing.bill(plan)
    try:
        answer = names.complete(answer, asks=not ended)
    except Interrupted as error:
        ended = error
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
    if answer.check.closed is False:
        say("kproxylat: the books don't close: the rules counted another number of lookups", ESSENTIAL)
        sys.exit(BOOKS_OPEN)


class Names:
    """The names that only the cluster's API has: it is asked when a bill has a row without a name."""

    def __init__(self, cluster: Cluster) -> None:
        self.connect = cache(cluster.connect)
        self._names: dict[str, tuple[str, str]] = {}
        self._asked: set[str] = set()
        self._problem = ""

    def complete(self, bill: Bill, asks: bool = True) -> Bill:
        """Name a bill's rows; if the API cannot be asked, say why, once.

        :param asks: ask about rows that are new.
        """
        from kproxylat.analysis.bill import name_rows
        from kproxylat.cluster.service_names import read_names

        nameless = {row.key for row in bill.rows if row.kind != "none" and not row.name}
        if asks and nameless - self._asked:
            try:
                self._names = read_names(self.connect())
                self._asked |= nameless
            except KproxylatError as error:
                if str(error) != self._problem:
                    say(f"rows without a Service's name: {len(nameless)}: {plain_line(error)}", ESSENTIAL)
                self._problem = str(error)
        return name_rows(bill, self._names)


def name_outcome(names: Names, form: str, outcome: Outcome) -> Outcome:
    """Return a pod's outcome with the names of the API, drawn as ``form`` asks; what is not a bill stays as it is."""
    from kproxylat.analysis.bill import SCHEMA, Bill
    from kproxylat.report.bill import draw_bill
    from kproxylat.results_json import build, load_document

    if not outcome.envelope:
        return outcome
    try:
        bill: Bill = build(Bill, load_document(outcome.envelope.stdout, SCHEMA))
    except (ValueError, LookupError, TypeError):
        return outcome
    bill = names.complete(bill)
    text = bill.to_json() if form == BillFormat.JSON else draw_bill(bill)
    return replace(outcome, envelope=replace(outcome.envelope, stdout=text + "\n"))


def watch_bill(plan: Billing, names: Names) -> tuple[Bill, Interrupted | None]:
    """Count, and draw the bill so far after each window, until its time is over, or q or a signal comes.

    :return: the bill, and the signal that cut it short: q is not one.
    :raises MachineError: as :func:`kproxylat.measure.bill.bill`, or q came before a window ended.
    """
    from kproxylat.measure.bill import bill
    from kproxylat.report.bill import draw_live

    with interrupts.deferred(), drawing() as draw, quitting() as pressed:
        draw("q ends. Waiting for the first window.")
        try:
            answer, ended = bill(plan, lambda bill: draw(draw_live(names.complete(bill))))
        except Interrupted:
            if not pressed.is_set():
                raise
            raise MachineError("ended by q before the first window: nothing was counted") from None
    return answer, None if pressed.is_set() else ended


def serve_bills(plan: Billing, names: Names, host: str, port: int) -> None:
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
        totals.add(names.complete(answer, asks=not ended))
        if ended:
            raise ended


def _read_model(path: Path) -> WhatIf:
    """Read what whatif saved.

    :raises UsageError: the file is not that.
    """
    from kproxylat.analysis.alternatives import build_outcome
    from kproxylat.logs.files import open_log, read_whole
    from kproxylat.results import SCHEMA
    from kproxylat.results_json import load_document

    try:
        with open_log(str(path)) as stream:
            return build_outcome(load_document(read_whole(str(path), stream), SCHEMA))
    except LogError as error:
        raise UsageError(f"--whatif {error}", "kproxylat whatif RULESET saves such a file") from None
    except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
        problem = f"invalid member {error}" if isinstance(error, LookupError) else error
        raise UsageError(f"--whatif {path}: {problem}", "kproxylat whatif RULESET saves such a file") from None
