"""Messages to a person: words on stderr, questions, progress."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from kproxylat.errors import DeclinedError, UsageError

left_out: list[str] = []
"""Input that was left out. With any, a command that succeeds otherwise ends with status 1."""
_SUSPECT = re.compile(r"[^\n\t -~]")


def plain(text: object) -> str:
    """Escape the characters that control a terminal, as ``\\x1b``: names, logs and results may contain any.

    Controls, escapes, marks of direction, blanks that look like others, and lone surrogates; not line ends and tabs.
    """
    return _SUSPECT.sub(lambda match: match[0] if match[0].isprintable() else ascii(match[0])[1:-1], str(text))


def plain_line(text: object) -> str:
    """Escape as :func:`plain`, and line ends and tabs, too: a name cannot pretend to be a line of ours."""
    return plain(text).replace("\n", "\\n").replace("\t", "\\t")


def show(text: object = "", end: str = "\n", file: IO[str] | None = None, flush: bool = False) -> None:
    """Print a text without what controls a terminal. All output passes here, but for bars and colours of our own.

    :param file: stdout if None.
    """
    print(plain(text), end=end, file=file, flush=flush)


def say(message: str) -> None:
    """Print a line on stderr; stdout is for results."""
    show(message, file=sys.stderr, flush=True)


def leave_out(reason: str) -> None:
    """Name input that is left out, with its file and place."""
    left_out.append(reason)
    say(f"kproxylat: {plain_line(reason)}")


def confirm(question: str, alternative: str = "", outcome: str = "nothing was changed") -> None:
    """Ask a person for permission to continue.

    :param alternative: an option that avoids the question.
    :param outcome: the state after a refusal.
    :raises UsageError: stdin is not a terminal, so no person can answer.
    :raises DeclinedError: the answer is not yes.
    """
    if not sys.stdin or not sys.stdin.isatty():
        raise UsageError(f"no terminal to ask on: {question}", f"pass --yes{alternative and f', or {alternative}'}")
    show(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise DeclinedError(f"declined: {outcome}", alternative and f"to go on without this question: {alternative}")


@contextmanager
def waiting(text: str, expected_s: float) -> Iterator[None]:
    """Show a bar with the time left while the block runs, if stderr is a terminal and the block takes long.

    :param expected_s: expected duration.
    """
    if expected_s < 2 or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    label = TextColumn("      {task.description}", markup=False)
    columns = label, BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    ended = threading.Event()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(plain_line(text), total=expected_s)

        def advance() -> None:
            while not ended.wait(0.25):
                progress.advance(task, min(0.25, max(expected_s - progress.tasks[0].completed, 0)))

        thread = threading.Thread(target=advance, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextmanager
def counting(text: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar that counts up to ``total``, if stderr is a terminal.

    :return: a function to call after each step.
    """
    if not total or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    label = TextColumn("      {task.description}", markup=False)
    columns = label, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(plain_line(text), total=total)
        yield lambda: progress.advance(task)
