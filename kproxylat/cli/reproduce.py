"""The command reproduce: published measurements, made again on this machine."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from kproxylat.analysis.published import Reproduction, compare_published, find_published, read_published
from kproxylat.cli.options import LOGS, Form, Format, Kind, OutputDir, Position, end
from kproxylat.cli.places import OnNode
from kproxylat.cli.sweep import SweepOptions
from kproxylat.console import say, show
from kproxylat.errors import MachineError
from kproxylat.measure.plan import keep_possible
from kproxylat.report.columns import paint
from kproxylat.report.figure import save_figure
from kproxylat.report.plot import picture_reproduction
from kproxylat.report.reproduction import draw_reproduction
from kproxylat.results import SCHEMA
from kproxylat.sweep import sweep as sweeping
from kproxylat.system import kernel

DURATION_S = 1
QUICK_REPEATS, REPEATS = 2, 1
"""A whole reproduction loads 30,000 Services, which takes most of its time."""


def reproduce(
    name: Annotated[str | None, typer.Argument(help="Which one (without a name they are listed).")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only the smaller numbers of Services: 2 minutes.")] = False,
    form: Form = Format.TABLE,
    output_dir: OutputDir = LOGS,
) -> None:
    """Measure what others have published, and show both side by side, with a verdict for each shape and a picture.

    It builds labs on this machine's own kernel and times first packets by the sender's clock. It needs no tracing and
    no virtual machine, and no root where users may have namespaces of their own.

    \b
    Examples:
      kproxylat reproduce
      kproxylat reproduce k8s-blog-2025 --quick
      kproxylat reproduce tke-2026
    """
    if name is None:
        for known in find_published():
            show(f"{known}: {read_published(known).title}")
        return
    published = read_published(name)
    options = SweepOptions(
        lab=True, probe=Kind.NONE, first_packet=True, places=published.places or None,
        position=Position(published.position), mode=",".join(dict.fromkeys(row.mode for row in published.rows)),
        services=",".join(map(str, published.list_sizes(quick))), duration=DURATION_S, output_dir=output_dir,
    )  # fmt: skip
    options.enter_namespace()
    points = keep_possible(options.plan(OnNode(), ("reproduce", name)), "send time")

    def order(run: sweeping.Run) -> tuple[float, int]:
        """A lab whose rules load slowly is loaded once, between the two rounds of the others."""
        return run[1] if run[0].mode.loading_cost == 1 else 0.5, points.index(run[0])

    finished, ended = sweeping.sweep(points, QUICK_REPEATS if quick else REPEATS, None, True, None, order)
    show_reproduction(compare_published(name, published, finished.results), form, output_dir)
    end(finished.results, ended)


def show_reproduction(reproduction: Reproduction, form: Format, directory: Path) -> None:
    """Write a reproduction to stdout, and save its picture in a directory."""
    picture = directory / f"reproduce_{reproduction.name}_{datetime.now().astimezone():%Y%m%d_%H%M%S}.png"
    try:
        save_figure(picture_reproduction(reproduction), picture)
    except MachineError as error:
        say(f"no picture: {error}\n  {error.remedy}")
    load = f"load {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} CPUs"
    machine = f"Linux {kernel.release()}; {kernel.describe_processor() or 'unknown processor'}; {load}"
    if form is Format.JSON:
        show(json.dumps({"schema": SCHEMA, "machine": machine, **asdict(reproduction)}, indent=2))
        return
    show("\n".join(draw_reproduction(reproduction, machine)), style=paint)
    if picture.exists():
        show(f"picture: {picture}")
