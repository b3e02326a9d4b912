"""The commands that look, read, draw and clean up: they measure nothing.

Each imports what it needs when it runs, so that none waits for another's imports.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kproxylat.cli.options import Backend, Form, Format, ModeName, Place, spread
from kproxylat.console import say
from kproxylat.errors import WORSE, MachineError, refuse_options
from kproxylat.system import interrupts


@spread
def capture(
    mode: ModeName = None,
    backend: Backend = None,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="Replace addresses and names, so that lookups cost the same.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="A new file.")] = Path("ruleset.json"),
    *,
    place: Place,
) -> None:
    """Save this node's live kube-proxy rules in one file, which run --lab --ruleset measures anywhere. Looks only.

    \b
    Examples:
      sudo kproxylat capture
      sudo kproxylat capture --anonymous --output node-7.json
      sudo kproxylat capture --node-container kind-worker
    """
    from kproxylat.console import waiting
    from kproxylat.lab import capture as capturing

    with waiting("reading the live rules", 5), interrupts.deferred():
        text, read = capturing.capture(mode, backend, anonymous, place.find().netns)
    capturing.save(text, output)
    for note in read.notes:
        say(f"note: {note}")
    say(f"mode {read.mode.name}, backend {read.mode.backend}: {len(read.services)} Services in {output}")


def cleanup() -> None:
    """Remove whatever an interrupted run or --keep left: namespaces, links, and what is in them.

    \b
    Example:
      sudo kproxylat cleanup
    """
    from kproxylat.node import lock as node_lock
    from kproxylat.node.changes import clean_up, describe
    from kproxylat.system.kernel import check_root

    check_root()
    with node_lock.lock() as lock:
        removed = clean_up(lock)
        if removed or not lock.notes:
            say(f"removed {', '.join(removed)}" if removed else "nothing was left")
        if lock.notes:
            raise MachineError(
                f"not restored: {', '.join(map(describe, lock.notes))}",
                f"run kproxylat cleanup again; or restore this yourself, and: rm {node_lock.LOCK}",
            )
        interrupts.check()


def doctor(form: Form = Format.TABLE) -> None:
    """Look for what a measurement takes of this machine, and for what mends it; status 0 if one is possible.

    \b
    Examples:
      kproxylat doctor
      kproxylat doctor --format json
    """
    from kproxylat.console import waiting
    from kproxylat.node import doctor as checks
    from kproxylat.report.tables import show_findings

    with waiting("looking", 4), interrupts.deferred():
        findings = checks.examine()
    modes = checks.possible_modes(findings)
    if form is Format.JSON:
        print(checks.to_json(findings, modes))
    else:
        show_findings(findings, modes)
    raise typer.Exit(0 if modes else 1)


def parse(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Logs, also compressed by gzip; - is stdin.")],
    output: Annotated[
        str | None, typer.Option("--format", help="table (unless given), json, csv or openmetrics.")
    ] = None,
    csv_dialect: Annotated[str, typer.Option(help="Header of the CSV: run, or experiment (the old one).")] = "run",
    percentiles: Annotated[str | None, typer.Option(help="Which ones, 0 to 100 (50,95,99).")] = None,
    prints: Annotated[str, typer.Option(help="last, or all: every print of a map as a line of JSON.")] = "last",
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Every interval and slow line, as CSV or JSON.")
    ] = False,
) -> None:
    """Read logs, old and new, and bpftrace's own text.

    \b
    Examples:
      kproxylat parse logs/ebpf/*.log
      kproxylat parse --format csv --csv-dialect experiment old.log.gz
    """
    from kproxylat.cli.logs import Wanted, parse_logs

    wanted = Wanted(output, csv_dialect, "50,95,99" if percentiles is None else percentiles, prints, intervals)
    for fixed, why in (
        (prints == "all", "--prints all writes maps as they are"),
        (intervals, "--intervals writes the log's own figures"),
        (csv_dialect == "experiment", "--csv-dialect experiment has its own percentiles"),
    ):
        if fixed:
            refuse_options(why, percentiles=percentiles)
    if intervals and csv_dialect != "run":
        refuse_options("--intervals has its own columns", csv_dialect=csv_dialect)
    raise typer.Exit(parse_logs(files, wanted, say))


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A result (.json), a log, or a sweep (.json).")],
    b: Annotated[str | None, typer.Argument(metavar="B", help="Another; without it, A's series each other.")] = None,
    form: Form = Format.TABLE,
    fail_if_worse: Annotated[
        float | None,
        typer.Option(metavar="PCT", help="Exit with 5 if B certainly costs PCT % more, or lacks points."),
    ] = None,
    allow: Annotated[str, typer.Option(metavar="REASON,...", help="Compare in spite of these reasons not to.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Compare in spite of any.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the bootstrap.")] = 0,
) -> None:
    """Say what changed from A to B, with what chance alone would do.

    What must not be compared is refused: another clock, probe, sender, script, kernel, bpftrace or mitigations, books
    that do not close, lost events. Exit status: 0 compared; 1 refused; 5 worse than --fail-if-worse allows.

    \b
    Examples:
      kproxylat compare before.json after.json --fail-if-worse 5
      kproxylat compare logs/ebpf/sweep_20260101_120000.json
      kproxylat compare --allow kernel,script old.log new.log
    """
    from kproxylat.analysis import compare as comparing
    from kproxylat.analysis.comparison import check_worse, to_json
    from kproxylat.report.tables import show_comparison

    if force:
        refuse_options("--force overrules every reason", allow=allow or None)
    found = comparing.compare(a, b, comparing.find_allowed(allow, force), seed)
    worse = fail_if_worse is not None and check_worse(found, fail_if_worse)
    if form is Format.JSON:
        print(to_json(found))
    for each in found if form is Format.TABLE else ():
        show_comparison(each)
    if worse:
        missing = ", ".join(name for each in found for name in each.missing)
        costs = f"kproxylat: B costs over {fail_if_worse:g} % more than A"
        say(f"kproxylat: nobody knows what B costs where A has {missing}" if missing else costs)
        sys.exit(WORSE)


def plot(
    a: Annotated[str, typer.Argument(metavar="A", help="A result, sweep or comparison (.json), or a log.")],
    b: Annotated[str | None, typer.Argument(metavar="B", help="Another, to compare A with.")] = None,
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="Where to: .png or .svg.")] = Path(
        "kproxylat.png"
    ),
    allow: Annotated[str, typer.Option(metavar="REASON,...", help="Compare in spite of these reasons not to.")] = "",
    seed: Annotated[int, typer.Option("--seed", help="Of the bootstrap.")] = 0,
) -> None:
    """Draw a run's distribution, a sweep's series with error bars, or a comparison; takes kproxylat[plot].

    \b
    Examples:
      kproxylat plot logs/ebpf/sweep_20260101_120000.json --output sweep.svg
      kproxylat plot before.json after.json
    """
    from kproxylat.analysis.compare import find_allowed
    from kproxylat.report.plot import plot as draw

    if not b:
        refuse_options("without B nothing is compared", "name B", allow=allow or None)
    draw([a, b] if b else [a], output, find_allowed(allow, False), seed)
    say(f"drawn: {output}")
