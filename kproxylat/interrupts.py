"""Signals that ask us to end: raised at once; while there is something to take away, only where we wait.

An exception out of a signal's handler comes anywhere: in a lock's release, so that the lock stays held and other
threads wait for ever, or in a callback of the garbage collector, which swallows it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from kproxylat.errors import Interrupted

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RUNNING: dict[int, str] = {}
"""The programs that run now, which a second signal names: any number -> the command."""


@dataclass
class _State:
    """``pending``: the signal that came; ``depth``: of the blocks that defer it, ``shields``: of those that keep it;
    ``came``: whether one came, raised or not."""

    pending: int = 0
    came: bool = False
    depth: int = 0
    shields: int = 0


_state = _State()


def install() -> None:
    """Let the signals raise Interrupted from here on."""
    _state.pending = _state.depth = _state.shields = 0
    _state.came = False
    for each in ENDING:
        signal.signal(each, _handle)


def _handle(signum: int, _frame: object) -> None:
    only_remind()
    if not _state.depth:
        raise Interrupted(signum)
    _state.pending = signum


def only_remind() -> None:
    """After the first signal, let further ones only print which programs run: they do not cut the clean-up short."""
    _state.came = True
    for each in ENDING:
        signal.signal(each, _remind)


def _remind(_signum: int, _frame: object) -> None:
    programs = ", ".join(list(RUNNING.values())) or "no program"
    # print() fails if the signal came in the middle of another one.
    with suppress(OSError):
        os.write(2, f"kproxylat: still cleaning up; running: {programs}\n".encode(errors="replace"))


@contextmanager
def deferred() -> Iterator[None]:
    """In the block, a signal is raised by :func:`check` and :func:`wait` only."""
    _state.depth += 1
    try:
        yield
    finally:
        _state.depth -= 1


@contextmanager
def shielded() -> Iterator[None]:
    """In the block, which takes things away, not even these raise it."""
    _state.shields += 1
    try:
        with deferred():
            yield
    finally:
        _state.shields -= 1


def is_shielded() -> bool:
    """Whether this is a block that takes things away, and no signal is to end it."""
    return _state.shields > 0


def is_deaf() -> bool:
    """Whether no signal ends a wait any more: in a shielded block, or after the one signal that counts."""
    return _state.shields > 0 or (_state.came and not _state.pending)


def check() -> None:
    """Raise the signal that came, if one did.

    :raises Interrupted: one did.
    """
    if _state.pending and not _state.shields:
        signum, _state.pending = _state.pending, 0
        raise Interrupted(signum)


def wait(event: threading.Event, limit_s: float | None, other: threading.Event | None = None) -> bool:
    """Wait for an event, at most ``limit_s`` seconds (None: as long as it takes).

    :param other: one that ends the waiting, too.
    :return: whether it came.
    :raises Interrupted: a signal came first.
    """
    ends_s = None if limit_s is None else time.monotonic() + limit_s
    while not event.is_set() and not (other and other.is_set()):
        check()
        left_s = 0.05 if ends_s is None else min(ends_s - time.monotonic(), 0.05)
        if left_s <= 0:
            break
        event.wait(left_s)
    return event.is_set()
