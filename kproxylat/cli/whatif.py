"""The command whatif.

Imported in the function: :mod:`kproxylat.lab` and what uses it, for the sake of ``--help``, because it imports jinja2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from kproxylat.cli.options import (
    LOGS,
    Backend,
    DryRun,
    Form,
    Format,
    ModeName,
    OutputDir,
    Protocol,
    ProtocolOption,
    end,
    show_runs,
)
from kproxylat.cli.spread import spread
from kproxylat.cli.virtual import Clock, InVm
from kproxylat.console import say, show
from kproxylat.modes import MODES, find_mode
from kproxylat.report import plot as plotting
from kproxylat.report.tables import show_whatif
from kproxylat.system.kernel import detect_clock


@dataclass(frozen=True)
class InCountingVm(InVm):
    """The same, where the virtual machine counts instructions unless asked otherwise."""

    clock: Annotated[Clock | None, typer.Option("--clock", help="Clock with --vm: ns, or instructions (those).")] = None
    usual = Clock.INSTRUCTIONS


@spread
def whatif(
    ctx: typer.Context,
    ruleset: Annotated[
        Path, typer.Argument(metavar="RULESET", help="Rules of capture, iptables-save, nft or ipvsadm.")
    ],
    mode: ModeName = None,
    backend: Backend = None,
    packets: Annotated[int, typer.Option("--packets", metavar="N", help="Packets to each Service, in each mode.")] = 20,
    kube_proxy: Annotated[
        str,
        typer.Option("--kube-proxy", metavar="RELEASE,...", help="Releases whose nftables rules to measure."),
    ] = "",
    rate: Annotated[int, typer.Option("--rate", metavar="PPS", help="Packets per second.")] = 1000,
    protocol: ProtocolOption = Protocol.BOTH,
    picture: Annotated[bool, typer.Option("--plot", help="Also draw the result: a PNG beside it.")] = False,
    dry_run: DryRun = False,
    form: Form = Format.TABLE,
    output_dir: OutputDir = LOGS,
    *,
    machine: InCountingVm,
) -> None:
    """Measure the lookups of a captured ruleset, in its own mode and in each other mode.

    Without --vm, this machine's clock counts.

    \b
    Examples:
      kproxylat whatif ruleset.json --vm
      kproxylat whatif iptables-save.txt --vm-if-needed --plot
      kproxylat whatif ruleset.json --dry-run
      kproxylat whatif ruleset.json --vm --kube-proxy 1.36,1.37
    """
    from kproxylat.lab.rules import check_release
    from kproxylat.lab.ruleset import read_ruleset
    from kproxylat.measure.expected import expect_s, say_expected
    from kproxylat.measure.options import Options, Record, Sending
    from kproxylat.measure.preview import preview
    from kproxylat.sweep import whatif as alternatives

    machine.check()
    releases = kube_proxy.split(",")
    for release in releases:
        check_release(release, find_mode("nftables", None))
    rules = read_ruleset(ruleset, mode, backend)
    options = Options(rules.mode, sending=Sending(rate_pps=rate), record=Record(output_dir, ctx.obj))
    alternatives.check(options, packets)
    only = "" if protocol is Protocol.BOTH else protocol
    plan_all = partial(alternatives.plan_modes, options, rules, MODES, packets, only, releases)
    if dry_run:
        runs = [preview(plan) for plan in plan_all()]
        show_runs("whatif", runs, form, virtual_machine=machine.describe(), picture=picture)
        return
    machine.relay_if(ctx.obj, output_dir, MODES)
    plans, (_, emulated) = plan_all(), detect_clock()
    say_expected(sum(expect_s(plan, emulated) for plan in plans))
    answer, ended = alternatives.whatif(rules, plans)
    path = alternatives.save(answer, output_dir)
    say(f"saved: {path}")
    if picture:
        plotting.plot([str(path)], path.with_suffix(".png"))
        say(f"drawn: {path.with_suffix('.png')}")
    if form is Format.JSON:
        show(answer.to_json())
    else:
        show_whatif(answer)
    end(list(answer.results), ended)
