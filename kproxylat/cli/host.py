"""The commands about this host: capture, cleanup, doctor.

Imported in a function: :mod:`kproxylat.lab`, for the sake of ``--help``, because it imports jinja2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kproxylat.cli.nodes import Errand, LoadModules, Remote, list_words, run_on_nodes
from kproxylat.cli.options import Backend, Form, Format, ModeName, Overwrite
from kproxylat.cli.places import Place
from kproxylat.cli.spread import spread
from kproxylat.console import say, show, waiting
from kproxylat.errors import MachineError
from kproxylat.node import doctor as checks
from kproxylat.node import lock as node_lock
from kproxylat.node.changes import clean_up, describe
from kproxylat.node.network import find_leftovers
from kproxylat.report.tables import show_findings
from kproxylat.system import interrupts
from kproxylat.system.kernel import check_root
from kproxylat.system.virtual_machine import end_leftovers


@spread
def capture(
    ctx: typer.Context,
    mode: ModeName = None,
    backend: Backend = None,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="Replace addresses and names, so that lookups cost the same.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="File to create.")] = Path("ruleset.json"),
    force: Overwrite = False,
    *,
    place: Place,
    nodes: Remote,
) -> None:
    """Save this node's live kube-proxy rules in one file, for run --lab --ruleset on any machine. It changes nothing.

    \b
    Examples:
      sudo kproxylat capture
      sudo kproxylat capture --anonymous --output node-7.json
      sudo kproxylat capture --node-container kind-worker
      kubectl kproxylat capture --node worker-1
    """
    from kproxylat.cluster.job import OUTPUT
    from kproxylat.lab import capture as capturing

    if nodes.asked():
        nodes.refuse(place)
        errand = Errand("capture", [*list_words(ctx), f"--output={OUTPUT}/{output.name}"])
        run_on_nodes(nodes, nodes, lambda _: errand, output_dir=output.parent)
    with waiting("reading the live rules", 5), interrupts.deferred():
        text, read = capturing.capture(mode, backend, anonymous, place.find().netns)
    capturing.save(text, output, force)
    for note in read.notes:
        say(f"note: {note}")
    say(f"mode {read.mode.name}, backend {read.mode.backend}: {len(read.services)} Services in {output}")


@spread
def cleanup(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed and restored.")] = False,
    *,
    nodes: Remote,
) -> None:
    """Remove the namespaces, links and virtual machines, and restore the settings, that a killed run or --keep left.

    \b
    Examples:
      sudo kproxylat cleanup --dry-run
      sudo kproxylat cleanup
      kubectl kproxylat cleanup --node worker-1
    """
    if nodes.asked():
        run_on_nodes(nodes, nodes, lambda _: Errand("cleanup", [*list_words(ctx), *(["--dry-run"] if dry_run else [])]))
    check_root()
    with node_lock.lock() as lock:
        machines = end_leftovers(dry_run)
        if dry_run:
            left = [*machines, *find_leftovers(), *map(describe, lock.notes)]
            show(f"would remove or restore: {', '.join(left)}" if left else "nothing is left")
            return
        removed = machines + clean_up(lock)
        if removed or not lock.notes:
            say(f"removed {', '.join(removed)}" if removed else "nothing was left")
        if lock.notes:
            raise MachineError(
                f"not restored: {', '.join(map(describe, lock.notes))}",
                f"run kproxylat cleanup again; or restore this yourself, and: rm {node_lock.LOCK}",
            )
        interrupts.check()


@spread
def doctor(ctx: typer.Context, form: Form = Format.TABLE, *, nodes: Remote, load_modules: LoadModules = False) -> None:
    """Check this machine for all that a measurement needs, and name the remedies.

    Exit status 0: bpftrace can measure some mode on this machine's own kernel; 1: none. The table at the end says for
    each mode which clocks work. It asks the same questions as a run.

    \b
    Examples:
      kproxylat doctor
      kproxylat doctor --format json
      kubectl kproxylat doctor --all-nodes
    """
    if nodes.asked(load_modules):
        run_on_nodes(nodes, nodes, lambda _: Errand("doctor", list_words(ctx)), form, load_modules=load_modules)
    with waiting("looking", 4), interrupts.deferred():
        findings = checks.examine()
    modes = checks.possible_modes(findings)
    if form is Format.JSON:
        show(checks.to_json(findings, modes))
    else:
        show_findings(findings, modes, checks.find_lacking(findings))
    raise typer.Exit(0 if modes else 1)
