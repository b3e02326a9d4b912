"""The commands compare and plot: they read results, and measure nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kproxylat.analysis import compare as comparing
from kproxylat.analysis.comparison import check_worse, to_json
from kproxylat.cli.options import Form, Format, Overwrite
from kproxylat.console import ESSENTIAL, say, show
from kproxylat.errors import WORSE, refuse_options
from kproxylat.report import plot as plotting
from kproxylat.report.tables import show_comparison

Allow = Annotated[str, typer.Option(metavar="REASON,...", help="Ignore these reasons against a comparison.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed for the bootstrap.")]


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A result (.json), a log, or a sweep (.json).")],
    b: Annotated[
        str | None, typer.Argument(metavar="B", help="Second file. Default: compare the series of A with each other.")
    ] = None,
    form: Form = Format.TABLE,
    fail_if_worse: Annotated[
        float | None,
        typer.Option(metavar="PCT", help="Exit with 5 if B costs PCT % more, beyond chance, or lacks points."),
    ] = None,
    allow: Allow = "",
    force: Annotated[bool, typer.Option("--force", help="Ignore all reasons against a comparison.")] = False,
    seed: Seed = 0,
) -> None:
    """Show the change from A to B, and how large it would be by chance alone.

    It refuses results that differ in clock, probe, sender, script, kernel, bpftrace or mitigations, that lost events,
    or whose packet accounting does not balance. Exit status: 0 compared; 1 refused; 5 worse than --fail-if-worse
    allows.

    \b
    Examples:
      kproxylat compare before.json after.json --fail-if-worse 5
      kproxylat compare logs/ebpf/sweep_20260101_120000.json
      kproxylat compare --allow kernel,script old.log new.log
    """
    if force:
        refuse_options("--force overrules every reason", allow=allow or None)
    if b is None:
        refuse_options("without B no side is before the other", "name B", fail_if_worse=fail_if_worse)
    comparisons = comparing.compare(a, b, comparing.find_allowed(allow, force), seed)
    worse = fail_if_worse is not None and check_worse(comparisons, fail_if_worse)
    if form is Format.JSON:
        show(to_json(comparisons))
    else:
        for comparison in comparisons:
            show_comparison(comparison)
    if worse:
        missing = ", ".join(name for comparison in comparisons for name in comparison.missing)
        worst = max(comparisons, key=lambda comparison: comparison.worse_pct or 0)
        costs = f"kproxylat: B costs over {fail_if_worse:g} % more than A: {worst.b.mode}/{worst.b.backend}"
        say(f"kproxylat: B lacks what A has: {missing}" if missing else costs, ESSENTIAL)
        sys.exit(WORSE)


def plot(
    a: Annotated[str, typer.Argument(metavar="A", help="A result, sweep or comparison (.json), or a log.")],
    b: Annotated[str | None, typer.Argument(metavar="B", help="Second file, to compare A with.")] = None,
    output: Annotated[
        Path, typer.Option("--output", metavar="FILE", help="File for the picture: .png, .svg or .pdf.")
    ] = Path("kproxylat.png"),
    title: Annotated[str | None, typer.Option("--title", help="Title (unless given, it says what is drawn).")] = None,
    force: Overwrite = False,
    allow: Allow = "",
    seed: Seed = 0,
) -> None:
    """Draw a run's distribution, a sweep's series with error bars, or a comparison; needs matplotlib.

    \b
    Examples:
      kproxylat plot logs/ebpf/sweep_20260101_120000.json --output sweep.svg
      kproxylat plot before.json after.json
    """
    if not b:
        refuse_options("without B nothing is compared", "name B", allow=allow or None)
    plotting.plot([a, b] if b else [a], output, comparing.find_allowed(allow, False), seed, title, force)
    say(f"drawn: {output}")
