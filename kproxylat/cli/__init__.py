"""The command line: one file a command."""

from __future__ import annotations

import os
import shlex
import signal
import sys

from kproxylat.errors import ENDING, Interrupted


def main(argv: list[str] | None = None) -> None:
    """Run the program, see :func:`kproxylat.cli.app.main`. Until its handlers stand, a signal ends it at once.

    :param argv: the arguments without the program's name; ``sys.argv`` if None.
    """
    for signum in ENDING:
        signal.signal(signum, lambda number, _: os._exit(128 + number))
    sys.unraisablehook = _end_unraisable
    from kproxylat.cli.app import main as run

    try:
        run(argv)
    finally:
        # Else a signal ends Python's own end, and its status is lost.
        for signum in ENDING:
            signal.signal(signum, signal.SIG_IGN)


def complete() -> None:
    """Complete a command line of ``kubectl kproxylat``: kubectl runs ``kubectl_complete-kproxylat WORD... LAST``.

    It takes one completion a line, with its description after a tab; and a line with ``:`` and cobra's directive, whose
    0 lets the shell complete names of files where nothing else fits. Typer prints such lines for fish.
    """
    *words, last = sys.argv[1:] or [""]
    line = shlex.join(["kproxylat", *words, *([last] if last else [])])
    os.environ |= {
        "_KPROXYLAT_COMPLETE": "complete_fish",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_ARGS": line if last else f"{line} ",
        "COLUMNS": "1000",
    }
    from kproxylat.console import show

    try:
        main(words[:1])
    finally:
        show(":0")


def _end_unraisable(error: sys.UnraisableHookArgs) -> None:
    """End the program if Python cannot raise a signal, as in a callback of the garbage collector.

    Signals are raised at any line only where nothing is to be cleaned up (:mod:`kproxylat.system.interrupts`).
    """
    if isinstance(error.exc_value, Interrupted):
        os._exit(error.exc_value.exit_code)
    sys.__unraisablehook__(error)
