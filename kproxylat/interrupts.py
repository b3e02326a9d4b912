"""Signals that ask us to end: raised at once; while there is something to take away, only where we wait.

An exception out of a signal's handler comes anywhere: in a lock's release, so that the lock stays held and other
threads wait for ever, or in a callback of the garbage collector, which swallows it.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kproxylat.errors import Interrupted

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class _State:
    """``pending``: the signal that came; ``depth``: of the blocks that defer it, ``shields``: of those that keep it."""

    pending: int = 0
    depth: int = 0
    shields: int = 0


_state = _State()


def install() -> None:
    """Let the signals raise Interrupted from here on."""
    _state.pending = _state.depth = _state.shields = 0
    for each in ENDING:
        signal.signal(each, _handle)


def _handle(signum: int, _frame: object) -> None:
    # Only the first counts, so that the clean-up is not cut short.
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    if not _state.depth:
        raise Interrupted(signum)
    _state.pending = signum


@contextmanager
def deferred() -> Iterator[None]:
    """In the block, only :func:`check` and :func:`wait` raise a signal, and only in the main thread."""
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


def pending() -> int:
    """Return the number of the signal that :func:`check` would raise in the main thread; 0 if there is none."""
    return 0 if _state.shields else _state.pending


def check() -> None:
    """Raise the signal that came, if one did and this is the main thread: it stops the others.

    :raises Interrupted: one did.
    """
    if pending() and threading.current_thread() is threading.main_thread():
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
