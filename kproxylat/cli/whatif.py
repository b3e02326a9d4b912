"""The command whatif."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kproxylat.cli.options import (
    LOGS,
    Backend,
    Form,
    Format,
    ModeName,
    OutputDir,
    end,
)
from kproxylat.cli.virtual import Clock, InVm, KernelImage, VmIfNeeded, check_vm, relay_if
from kproxylat.console import say


def whatif(
    ctx: typer.Context,
    ruleset: Annotated[Path, typer.Argument(metavar="RULESET", help="As run --ruleset takes it.")],
    mode: ModeName = None,
    backend: Backend = None,
    packets: Annotated[int, typer.Option("--packets", metavar="N", help="To each Service, in each mode.")] = 20,
    rate: Annotated[int, typer.Option("--rate", metavar="PPS", help="Packets per second.")] = 1000,
    picture: Annotated[bool, typer.Option("--plot", help="Draw it, too: a PNG beside the result.")] = False,
    form: Form = Format.TABLE,
    output_dir: OutputDir = LOGS,
    vm: InVm = False,
    vm_if_needed: VmIfNeeded = False,
    kernel: KernelImage = None,
    clock: Annotated[Clock | None, typer.Option("--clock", help="Of --vm: ns, or instructions (that).")] = None,
) -> None:
    """Say what the lookups of a captured ruleset cost, and what they would cost in each other mode.

    Without --vm the clock is this machine's.

    \b
    Examples:
      kproxylat whatif ruleset.json --vm
      kproxylat whatif iptables-save.txt --vm-if-needed --plot
    """
    from kproxylat.lab.ruleset import read_ruleset
    from kproxylat.measure import options as plan
    from kproxylat.modes import MODES
    from kproxylat.report.tables import show_whatif
    from kproxylat.sweep import whatif as asking

    check_vm(vm or vm_if_needed, clock, kernel)
    read = read_ruleset(ruleset, mode, backend)
    options = plan.Options(read.mode, sending=plan.Sending(rate_pps=rate), record=plan.Record(output_dir, ctx.obj))
    asking.check(options, packets)
    relay_if(ctx.obj, vm, vm_if_needed, output_dir, clock or Clock.INSTRUCTIONS, kernel, MODES)
    found, ended = asking.whatif(options, read, MODES, packets)
    path = asking.save(found, output_dir)
    say(f"saved: {path}")
    if picture:
        from kproxylat.report.plot import plot as draw

        draw([str(path)], path.with_suffix(".png"))
        say(f"drawn: {path.with_suffix('.png')}")
    if form is Format.JSON:
        print(found.to_json())
    else:
        show_whatif(found)
    end(list(found.results), ended)
