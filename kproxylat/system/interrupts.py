"""Signals that end the program: raised at once, or, while there is something to clean up, only at certain calls.

A signal handler's exception may be raised anywhere: while a lock is released, so that other threads wait for it for
ever, or in a callback of the garbage collector, which ignores it.
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
    """The signal that came, and how many blocks that defer it, or shield from it, are nested at the moment.

    ``came``: whether a signal came, even if it was raised since.
    """

    pending: int = 0
    came: bool = False
    depth: int = 0
    shields: int = 0


_state = _State()


def install() -> None:
    """Let the signals raise Interrupted from now on."""
    _state.pending = _state.depth = _state.shields = 0
    _state.came = False
    for signum in ENDING:
        signal.signal(signum, _handle)


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
    """In the block, only :func:`check` and :func:`wait` raise a signal, and only in the main thread."""
    _state.depth += 1
    try:
        yield
    finally:
        _state.depth -= 1


@contextmanager
def shielded() -> Iterator[None]:
    """In the block, which cleans up, not even these raise it."""
    _state.shields += 1
    try:
        with deferred():
            yield
    finally:
        _state.shields -= 1


def is_shielded() -> bool:
    """Return whether the caller is in a block of :func:`shielded`."""
    return _state.shields > 0


def pending() -> int:
    """Return the number of the signal that :func:`check` would raise in the main thread; 0 if there is none."""
    return 0 if _state.shields else _state.pending


def is_deaf() -> bool:
    """Whether no signal ends a wait any more: in a shielded block, or after the one signal that counts."""
    return _state.shields > 0 or (_state.came and not _state.pending)


def check() -> None:
    """Raise the signal that came, if one did and this is the main thread: it stops the others.

    :raises Interrupted: one did.
    """
    if pending() and threading.current_thread() is threading.main_thread():
        signum, _state.pending = _state.pending, 0
        raise Interrupted(signum)


def wait(event: threading.Event, limit_s: float | None, other: threading.Event | None = None) -> bool:
    """Wait for an event, at most ``limit_s`` seconds (None: as long as it takes).

    :param other: another event that ends the wait.
    :return: whether ``event`` is set.
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
