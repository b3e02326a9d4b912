"""Signals that end the program: raised at once, or, where a clean-up would follow, only at certain calls.

The exception of a signal handler may come anywhere: while a lock is released, so that other threads wait for ever, or
in a callback of the garbage collector, which ignores the exception.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from kproxylat.errors import ENDING, Interrupted

RUNNING: dict[int, str] = {}
"""The programs that run now, which a second signal names: an id -> the command."""


@dataclass
class _State:
    """The state of the signals.

    :param pending: the signal that is not raised yet (0: none).
    :param came: whether a signal came, raised or not.
    :param depth: how many blocks that defer signals are nested at the moment; ``shields``: that shield from them.
    :param postponed: how many blocks that postpone them.
    :param arrivals: the two ends of a pipe with the numbers of the signals as they came: Python calls the handlers of
        those that come together in the order of their numbers.
    """

    pending: int = 0
    came: bool = False
    depth: int = 0
    shields: int = 0
    postponed: int = 0
    arrivals: tuple[int, ...] = ()


_state = _State()


def install() -> None:
    """Let the signals raise Interrupted from now on."""
    _state.pending = _state.depth = _state.shields = _state.postponed = 0
    _state.came = False
    for descriptor in _state.arrivals:
        os.close(descriptor)
    _state.arrivals = os.pipe()
    for descriptor in _state.arrivals:
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(_state.arrivals[1], warn_on_full_buffer=False)
    for signum in ENDING:
        signal.signal(signum, _handle)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


@contextmanager
def raised() -> Iterator[None]:
    """Let the signals raise Interrupted in the block, and none after it: the command has cleaned up and ends."""
    install()
    try:
        yield
    finally:
        _state.depth += 1


def _handle(signum: int, frame: object) -> None:
    """Raise the first signal or keep it. Later ones do not cut the clean-up short."""
    if _state.came:
        return _remind(signum, frame)
    _state.came = True
    with suppress(BlockingIOError):
        signum = os.read(_state.arrivals[0], 1)[0]
    if not _state.depth:
        raise Interrupted(signum)
    _state.pending = signum
    return None


def _remind(_signum: int, _frame: object) -> None:
    """Print which programs run."""
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
    """In the block, which cleans up, :func:`check` and :func:`wait` do not raise a signal, either."""
    _state.shields += 1
    try:
        with postponed():
            yield
    finally:
        _state.shields -= 1


@contextmanager
def postponed() -> Iterator[None]:
    """In the block, which ends by itself and must not lose its work, no signal is raised; :func:`take` tells of it."""
    _state.postponed += 1
    try:
        with deferred():
            yield
    finally:
        _state.postponed -= 1


def pending() -> int:
    """Return the number of the signal that :func:`check` would raise in the main thread; 0 if there is none."""
    return 0 if _state.postponed else _state.pending


def take() -> Interrupted | None:
    """Return the pending signal, which is then not raised any more."""
    signum, _state.pending = _state.pending, 0
    return Interrupted(signum) if signum else None


def are_ignored() -> bool:
    """Return whether signals no longer end a wait: in a shielded block, or after the first signal was raised."""
    return _state.shields > 0 or (_state.came and not _state.pending)


def check() -> None:
    """Raise a pending signal, but only in the main thread, which stops the other threads.

    :raises Interrupted: a signal is pending.
    """
    if pending() and threading.current_thread() is threading.main_thread():
        signum, _state.pending = _state.pending, 0
        raise Interrupted(signum)


def wait(event: threading.Event, limit_s: float | None, other: threading.Event | None = None) -> bool:
    """Wait for an event, at most ``limit_s`` seconds (None: without a limit).

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
