"""The commands that measure many times: sweep, whatif.

Each imports what it needs when it runs, so that none waits for another's imports.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from kproxylat.cli.options import (
    LOGS,
    EveryService,
    FamilyOption,
    InLab,
    Kind,
    OnNode,
    OutputDir,
    ProbeKind,
    Rate,
    RulePosition,
    RulesetFile,
    Source,
    Target,
    Warmup,
    check_ruleset,
    end,
    number,
    spread,
)
from kproxylat.cli.virtual import Clock, InVm, KernelImage, VmClock, VmIfNeeded, check_vm, relay_if, wants_vm
from kproxylat.console import confirm, say
from kproxylat.errors import UsageError, refuse_options
from kproxylat.measure.options import Options
from kproxylat.modes import only_backend
from kproxylat.report.export import export_experiment
from kproxylat.report.tables import show_series
from kproxylat.sweep.sweep import Sweep
from kproxylat.system.files import save_file

if TYPE_CHECKING:
    from kproxylat.measure.options import Options


class SweepFormat(StrEnum):
    """How a sweep is written to stdout."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


DURATION_S = {"ns": 2, "instructions": 0.3}
"""How long each point is measured unless said otherwise, by clock: the same lookup takes the same instructions, so that
some hundred packets show its commonest value, and 20,000 rules a packet take an emulated machine long."""
SweepDuration = Annotated[
    float | None, typer.Argument(help="Seconds to send for (2; if instructions are counted 0.3).", show_default=False)
]


@spread
def sweep(
    ctx: typer.Context,
    duration: SweepDuration = None,
    rate: Rate = 1000,
    warmup: Warmup = 100,
    services: Annotated[str, typer.Option("--services", metavar="N,...", help="Numbers of dummy Services.")] = "",
    lab: InLab = False,
    ruleset: RulesetFile = None,
    target: Target = None,
    every_service: EveryService = False,
    mode: Annotated[
        str, typer.Option("--mode", metavar="MODE,...", help="Modes (lab: all; cluster: the one it is in).")
    ] = "",
    backend: Annotated[str, typer.Option("--backend", metavar="BACKEND,...", help="Backends (all).")] = "",
    position: RulePosition = None,
    family: FamilyOption = None,
    probe: ProbeKind = Kind.AUTO,
    repeats: Annotated[int, typer.Option("--repeats", metavar="N", help="Measure each point so many times.")] = 1,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the order, random on the ns clock; another does not resume.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not go on where such a sweep was interrupted.")] = False,
    source: Source = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask before the cluster's mode is set.")] = False,
    form: Annotated[
        SweepFormat, typer.Option("--format", help="How it is written to stdout; csv is the old experiment's.")
    ] = SweepFormat.TABLE,
    output_dir: OutputDir = LOGS,
    vm: InVm = False,
    vm_if_needed: VmIfNeeded = False,
    kernel: KernelImage = None,
    clock: VmClock = None,
    *,
    node: OnNode,
) -> None:
    """Measure the lookup over numbers of Services, for each mode and backend: is it O(1) or O(n)?

    Without --lab, on a node, it creates so many dummy Services, waits for kube-proxy, and deletes them at the end. With
    several modes, it sets kube-proxy's mode and restores it at the end. To resume after an interruption, run the same
    command again with the same --output-dir.

    \b
    Examples:
      sudo kproxylat sweep --services 100,500,1000,5000,10000 30 10000
      sudo kproxylat sweep --services 100,1000 --mode iptables,nftables --yes
      kproxylat sweep --lab --vm --clock instructions --services 10,100,1000
      kproxylat sweep --lab --mode iptables --services 10,100 --repeats 5
      kproxylat sweep --lab --vm --family 6 --services 10,100,1000
      kproxylat sweep --lab --vm --ruleset node.json --every-service
    """
    from kproxylat.measure import options as plan
    from kproxylat.measure import replay
    from kproxylat.sweep import sweep as sweeping
    from kproxylat.system.kernel import detect_clock

    check_ruleset(ruleset, every_service, lab, services=services or None, position=position, family=family)
    node.check(lab)
    check_vm(vm or vm_if_needed, clock, kernel)
    if lab:
        refuse_options("--lab sets no cluster's mode", yes=yes)
    else:
        refuse_options("a cluster is measured mode by mode, in the order of --services", seed=seed)
    measured_clock = clock or Clock(detect_clock()[0])
    if measured_clock is Clock.INSTRUCTIONS:
        refuse_options("on the instruction clock the order is not random", seed=seed)
    if not ruleset and target:
        raise UsageError("--target is for a --ruleset here", "on a cluster: --service; the lab brings its own")
    modes = sweeping.find_modes(filter(None, mode.split(",")), filter(None, backend.split(",")))
    counts = [0] if ruleset else _counts(services)
    options = plan.Options(
        mode=modes[0],
        target=plan.WORKER[number(family) or 4],
        lab=plan.Lab(counts[0], position or "last") if lab else None,
        position=None if lab else position,
        source=plan.parse_source(source) if source else None,
        allow=tuple(node.allow or ()),
        duration_s=DURATION_S["ns" if every_service else detect_clock()[0]] if duration is None else duration,
        rate_pps=rate,
        warmup=warmup,
        output_dir=output_dir,
        probe=probe,
        arguments=ctx.obj,
    )
    points = sweeping.plan_points(options, modes, counts)
    if ruleset:
        from kproxylat.lab.ruleset import read_ruleset

        backends = [each for each in backend.split(",") if each]
        read = read_ruleset(ruleset, mode or None, backends[0] if len(backends) == 1 else None)
        points = replay.plan_backends(options, read, backends, target, every_service)
    sweeping.check_points(points, repeats)
    if lab and wants_vm(vm, vm_if_needed, [each.mode for each in points], probe):
        from kproxylat.sweep.pool import Pool

        usual_s = DURATION_S["ns" if every_service else clock or Clock.NS]
        points = [replace(each, duration_s=usual_s if duration is None else duration) for each in points]
        run = ["run", "--lab", "--format=json", f"--output-dir={output_dir}", f"--probe={probe}"]
        run += [f"--family={family}"] if family else []
        run += [f"--source={source}"] if source else []
        run += [f"--ruleset={ruleset}"] if ruleset else [f"--position={position or 'last'}", "--keep"]
        run += ["--every-service"] if every_service else [f"--target={target}"] if target else []
        place = Pool(clock or Clock.NS, kernel, output_dir, lambda each: [*run, *_words(each)])
        found, ended = sweeping.sweep(points, repeats, seed, fresh, place)
    elif lab:
        found, ended = sweeping.sweep(points, repeats, seed, fresh)
    else:
        relay_if(
            ctx.obj, vm, vm_if_needed, output_dir, clock or Clock.NS, kernel, [each.mode for each in points], probe
        )
        from kproxylat.sweep import on_cluster

        names = [each for each in mode.split(",") if each]
        confirming = None if yes else confirm
        asking = on_cluster.Asking(names, backend or None, node.asked, number(family), confirming)
        options = replace(options, node=node.find())
        found, ended = on_cluster.sweep_cluster(node.connect(), options, counts, asking, repeats, fresh)
        save_csv(found)
    show(found, form)
    end(found.results, ended)


def save_csv(sweep: Sweep) -> None:
    """Save the old experiment's CSV beside a sweep's document, if the sweep is complete.

    :raises MachineError: the file cannot be written.
    """
    if sweep.saved:
        table = sweep.saved.with_suffix(".csv")
        save_file(table, "".join(export_experiment(sweep.results)), replace=True)
        say(f"saved: {table}")


def _words(point: Options) -> list[str]:
    """Return what of a run's command line differs from point to point."""
    backend, services = point.mode.backend, point.lab.services if point.lab and not point.lab.ruleset else None
    words = [str(point.duration_s), str(point.rate_pps), str(point.warmup), f"--mode={point.mode.name}"]
    words += [f"--backend={backend}"] if not only_backend(point.mode.name) else []
    return words + ([] if services is None else [f"--services={services}"])


def _counts(text: str) -> list[int]:
    """Read ``10,100,1000``."""
    try:
        counts = [int(each) for each in text.split(",")]
    except ValueError:
        said = f"invalid list of numbers: --services {text!r}" if text else "no numbers of Services are given"
        raise UsageError(said, "--services takes some such as 10,100,1000") from None
    if len(set(counts)) < len(counts):
        raise UsageError(f"--services {text} names a number twice", "--repeats measures each several times")
    return counts


def show(found: Sweep, form: str) -> None:
    """Write a sweep to stdout.

    :param form: "table", "json" or "csv" (the old experiment's, in microseconds).
    """
    if form == "json":
        print(found.to_json())
    elif form == "csv":
        print("".join(export_experiment(found.results)), end="")
        if any(result.run.clock == "instructions" for result in found.results):
            say("The old CSV has microseconds only: its figures are empty on the instruction clock")
    else:
        show_series(found.series)
        if any(result.services for result in found.results):
            print("Services: those before the one that is looked up; the document has each by name")
        closed = sum(bool(result.accounting and result.accounting.closed) for result in found.results)
        print(f"books closed: {closed} of {len(found.results)} runs")
