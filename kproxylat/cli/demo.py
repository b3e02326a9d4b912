"""The command demo: the first thing to try."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kproxylat.cli.options import Kind, OutputDir, Protocol, ProtocolOption, end
from kproxylat.cli.places import OnNode
from kproxylat.cli.sweep import Finished, SweepOptions, keep_possible, sweep_in_vms
from kproxylat.cli.virtual import Clock, InVm
from kproxylat.console import say, show
from kproxylat.errors import KproxylatError
from kproxylat.report.plot import plot_clocks
from kproxylat.report.tables import show_clocks, show_series
from kproxylat.sweep import sweep as sweeping

Numbers = Annotated[str, typer.Option("--services", metavar="N,...", help="Numbers of dummy Services.")]


def demo(
    services: Numbers = "10,1000,5000",
    traced: Annotated[
        str, typer.Option("--traced-services", metavar="N,...", help="Those of the sweep that traces.")
    ] = "10,100,1000",
    protocol: ProtocolOption = Protocol.TCP,
    output_dir: OutputDir = Path("logs/demo"),
) -> None:
    """Show what kube-proxy's rules cost, by two clocks: real nanoseconds here, then every instruction by bpftrace.

    The first part needs no tracing, and no root where users may have namespaces of their own. The second part uses
    this machine's own kernel as root, if it can be traced, else virtual machines. A part that is not possible here is
    left out, with the reason.

    \b
    Examples:
      kproxylat demo
      kproxylat demo --services 10,1000
    """
    base = SweepOptions(lab=True, mode="iptables,nftables", protocol=protocol, output_dir=output_dir)
    parts = {
        "1. Real nanoseconds: the sender's clock, nothing traced": replace(
            base, services=services, probe=Kind.NONE, duration=0.5, rate=2000
        ),
        "2. Instructions: bpftrace around each lookup": replace(base, services=traced),
    }
    done: list[Finished] = []
    problem: KproxylatError | None = None
    for title, options in parts.items():
        say(f"\n{title}\n")
        try:
            done.append(_sweep_untraced(options) if options.probe is Kind.NONE else _sweep_traced(options))
        except KproxylatError as error:
            say(f"kproxylat: this part is left out: {error}\n  {error.remedy}")
            problem = error
            continue
        show_series(done[-1][0].series)
        show()
        if done[-1][1]:
            break
    if not done and problem:
        raise problem
    every = [sweep.series for sweep, _ in done]
    results = [result for sweep, _ in done for result in sweep.results]
    show_clocks(every)
    try:
        plot_clocks(every, output_dir / "demo.png", results)
        show(f"picture: {output_dir / 'demo.png'}")
    except KproxylatError as error:
        say(f"no picture: {error}\n  {error.remedy}")
    end(results, next((ended for _, ended in done if ended), None))


def _sweep_untraced(options: SweepOptions) -> Finished:
    """Sweep the modes that this kernel has; name the others."""
    options.enter_namespace()
    return sweeping.sweep(keep_possible(options.plan(OnNode(), ("demo",))), 1, None, True)


def _sweep_traced(options: SweepOptions) -> Finished:
    """Sweep by bpftrace: here, or where that is not possible in virtual machines that count instructions."""
    points = options.plan(OnNode(), ("demo",))
    if InVm(vm_if_needed=True).is_used([point.mode for point in points], options.probe):
        return sweep_in_vms(replace(options, fresh=True), points, Clock.INSTRUCTIONS, None)
    return sweeping.sweep(points, 1, None, True)
