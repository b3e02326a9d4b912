"""The commands that look, read, draw and clean up: they measure nothing.

Each imports what it needs when it runs, so that none waits for another's imports.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kproxylat.cli.options import Form, Format
from kproxylat.console import say
from kproxylat.errors import WORSE, refuse_options


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
        say(f"kproxylat: B lacks what A has: {missing}" if missing else costs)
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
