"""Messages to a person: words on stderr, questions, progress."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import threading
import time
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


def show(
    text: object = "",
    end: str = "\n",
    file: IO[str] | None = None,
    flush: bool = False,
    style: Callable[[str], str] = str,
) -> None:
    """Print a text without what controls a terminal. All output passes here, but for bars and colours of our own.

    :param file: stdout if None.
    :param style: adds colours of our own.
    """
    print(style(plain(text)), end=end, file=file, flush=flush)


ESSENTIAL, NORMAL, DETAIL = range(3)
"""How much a message matters: an error; progress; each program that is run."""
_volume = NORMAL


def set_volume(quiet: bool = False, verbose: bool = False) -> None:
    """Choose which messages are printed.

    :param quiet: errors only; ``verbose``: details, too.
    """
    global _volume
    _volume = ESSENTIAL if quiet else DETAIL if verbose else NORMAL


def say(message: str, level: int = NORMAL) -> None:
    """Print a line on stderr; stdout is for results.

    :param level: :data:`ESSENTIAL`, :data:`NORMAL` or :data:`DETAIL`.
    """
    if level <= _volume:
        lines = map(_wrap, message.split("\n")) if sys.stderr.isatty() else [message]
        show("\n".join(lines), file=sys.stderr, flush=True)


def _wrap(line: str) -> str:
    """Break a line between words where a terminal ends; remedies, which are indented, are left to be copied."""
    if line.startswith("  "):
        return line
    width = shutil.get_terminal_size().columns
    return textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def can_ask() -> bool:
    """Return whether a person can answer a question: stdin is a terminal."""
    return bool(sys.stdin) and sys.stdin.isatty()


def leave_out(reason: str) -> None:
    """Name input that is left out, with its file and place."""
    left_out.append(reason)
    say(f"kproxylat: {plain_line(reason)}")


def confirm(question: str, alternative: str = "") -> None:
    """Ask a person for permission to continue.

    :param alternative: an option that avoids the question.
    :raises UsageError: stdin is not a terminal, so no person can answer.
    :raises DeclinedError: the answer is not yes.
    """
    if not can_ask():
        raise UsageError(f"no terminal to ask on: {question}", f"pass --yes{alternative and f', or {alternative}'}")
    show(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise DeclinedError(
            "declined: nothing was changed", alternative and f"to go on without this question: {alternative}"
        )


@contextmanager
def waiting(text: str, expected_s: float) -> Iterator[None]:
    """Show a bar with the time left while the block runs, if stderr is a terminal and the block takes long.

    After the expected time the bar goes on moving, with the machine's load as the likely reason.

    :param expected_s: expected duration.
    """
    if expected_s < 2 or not sys.stderr.isatty() or _volume < NORMAL:
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    label = TextColumn("      {task.description}", markup=False)
    columns = label, BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    ended = threading.Event()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as progress:
        task = progress.add_task(plain_line(text), total=expected_s)

        def advance() -> None:
            started_s = time.monotonic()
            while not ended.wait(0.25):
                elapsed_s = time.monotonic() - started_s
                if elapsed_s < expected_s:
                    progress.update(task, completed=elapsed_s)
                    continue
                # A bar without a total moves on; the clock of a full one stops.
                progress.tasks[0].total = None
                load = f"load {os.getloadavg()[0]:.0f} on {os.cpu_count()} CPUs"
                progress.update(task, description=f"{plain_line(text)}, longer than usual ({load})")

        thread = threading.Thread(target=advance, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def can_draw() -> bool:
    """Return whether a person watches and can press keys: stdin and stderr are a terminal that can move its cursor."""
    return can_ask() and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


@contextmanager
def drawing() -> Iterator[Callable[[str], None]]:
    """Draw texts in place on stderr, a terminal; of other messages only errors are printed in the block.

    :return: draws a text over the one before.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    volume = _volume
    set_volume(quiet=True)
    try:
        with Live(console=Console(stderr=True), auto_refresh=False, redirect_stdout=False, transient=True) as live:
            yield lambda text: live.update(Text(plain(text), no_wrap=True, overflow="crop"), refresh=True)
    finally:
        set_volume(volume == ESSENTIAL, volume == DETAIL)


@contextmanager
def counting(text: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar that counts up to ``total``, if stderr is a terminal.

    :return: a function to call after each step.
    """
    if not total or not sys.stderr.isatty() or _volume < NORMAL:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    label = TextColumn("      {task.description}", markup=False)
    columns = label, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as progress:
        task = progress.add_task(plain_line(text), total=total)
        yield lambda: progress.advance(task)
