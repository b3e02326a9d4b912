"""The commands about this host: capture, cleanup, doctor.

Imported in a function: :mod:`kproxylat.lab`, for the sake of ``--help``, because it imports jinja2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kproxylat.cli.options import Backend, Form, Format, ModeName
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


@spread
def capture(
    mode: ModeName = None,
    backend: Backend = None,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="Replace addresses and names, so that lookups cost the same.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="File to create.")] = Path("ruleset.json"),
    *,
    place: Place,
) -> None:
    """Save this node's live kube-proxy rules in one file, for run --lab --ruleset on any machine. It changes nothing.

    \b
    Examples:
      sudo kproxylat capture
      sudo kproxylat capture --anonymous --output node-7.json
      sudo kproxylat capture --node-container kind-worker
    """
    from kproxylat.lab import capture as capturing

    with waiting("reading the live rules", 5), interrupts.deferred():
        text, read = capturing.capture(mode, backend, anonymous, place.find().netns)
    capturing.save(text, output)
    for note in read.notes:
        say(f"note: {note}")
    say(f"mode {read.mode.name}, backend {read.mode.backend}: {len(read.services)} Services in {output}")


def cleanup(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed and restored.")] = False,
) -> None:
    """Remove the namespaces and links, and restore the settings, that an interrupted run or run --keep left.

    \b
    Examples:
      sudo kproxylat cleanup --dry-run
      sudo kproxylat cleanup
    """
    check_root()
    with node_lock.lock() as lock:
        if dry_run:
            left = [*find_leftovers(), *map(describe, lock.notes)]
            show(f"would remove or restore: {', '.join(left)}" if left else "nothing is left")
            return
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
    """Check this machine for all that a measurement needs, and name the remedies.

    Exit status 0: a measurement is possible in some mode; 1: in none.

    \b
    Examples:
      kproxylat doctor
      kproxylat doctor --format json
    """
    with waiting("looking", 4), interrupts.deferred():
        findings = checks.examine()
    modes = checks.possible_modes(findings)
    if form is Format.JSON:
        show(checks.to_json(findings, modes))
    else:
        show_findings(findings, modes)
    raise typer.Exit(0 if modes else 1)
