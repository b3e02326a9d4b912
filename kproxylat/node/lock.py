"""The lock of the node under test, and the notes of what a run changes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from kproxylat.errors import MachineError
from kproxylat.system import interrupts

LOCK = Path("/run/kproxylat.lock")


class Lock:
    """The machine's one run: who holds this file's lock. The file says which process that is, and what it changed.

    :ivar notes: the changes that this run and earlier ones made and did not restore, the oldest first: words, the
        first of which says what kind of change it is. The file stays as long as it holds a note.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.notes = list(_parse_notes(file.read(100_000)))
        self._write()

    def note(self, *words: str) -> None:
        """Add a note, so that the next run or ``kproxylat cleanup`` can restore the change after a SIGKILL."""
        self.notes.append(words)
        self._file.write(json.dumps(words) + "\n")
        self._file.flush()

    def forget(self, note: tuple[str, ...]) -> None:
        """Remove a note, because nothing is left to restore."""
        self.notes.remove(note)
        self._write()

    def _write(self) -> None:
        """Write the file anew: first over its old text, then cut off the rest. A SIGKILL in between loses no note."""
        self._file.seek(0)
        self._file.writelines(json.dumps(line) + "\n" for line in (os.getpid(), *self.notes))
        self._file.flush()
        self._file.truncate()


def _parse_notes(text: str) -> Iterator[tuple[str, ...]]:
    """Read the lock's lines, as far as they are whole: the first is the process's number."""
    for line in text.splitlines():
        try:
            words = json.loads(line)
        except ValueError:
            continue
        if isinstance(words, list) and words and all(isinstance(word, str) for word in words):
            yield tuple(words)


@contextmanager
def lock() -> Iterator[Lock]:
    """Hold the machine's one run. The lock's file stays if it holds a note.

    :raises MachineError: another run holds it, or something that is not ours stands at the lock's path.
    """
    with interrupts.deferred(), _take_lock() as file:
        held = Lock(file)
        try:
            yield held
        finally:
            if not held.notes and _is_lock(file):
                LOCK.unlink()


def _take_lock() -> TextIO:
    while True:
        try:
            # No symbolic link is followed, and nobody waits for a pipe's other end.
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            number = os.open(LOCK, flags, 0o600)
            found = os.fstat(number)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                os.close(number)
                raise OSError(errno.EPERM, "it is no file of ours")
        except OSError as error:
            raise MachineError(f"the lock {LOCK} cannot be taken: {error.strerror}", f"rm {LOCK}") from None
        file = os.fdopen(number, "r+", errors="replace")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.readline(20).strip() or "unknown"
            file.close()
            raise MachineError(f"another run is under way (process {holder})", "wait for its end") from None
        # The run before us may have removed the file between our opening and locking it.
        if _is_lock(file):
            return file
        file.close()


def _is_lock(file: TextIO) -> bool:
    """Whether this open file is still the one at the lock's path."""
    try:
        return os.path.samestat(LOCK.lstat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
