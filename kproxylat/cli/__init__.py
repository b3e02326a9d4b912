"""The command line: one file a command."""

from __future__ import annotations

import os
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


def _end_unraisable(error: sys.UnraisableHookArgs) -> None:
    """End the program if Python cannot raise a signal, as in a callback of the garbage collector.

    Signals are raised at any line only where nothing is to be cleaned up (:mod:`kproxylat.system.interrupts`).
    """
    if isinstance(error.exc_value, Interrupted):
        os._exit(error.exc_value.exit_code)
    sys.__unraisablehook__(error)
