"""The lock that allows one run on a machine, and the notes in it of the changes of runs."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from kproxylat.errors import MachineError
from kproxylat.system import interrupts

LOCK = Path("/run/kproxylat/lock")
"""The path of the lock. It has a directory of its own, which pods on the node mount."""


class Lock:
    """The file of a lock that this process holds: its process id, and notes of changes.

    :param file: the locked file.
    :ivar notes: the changes of this run and of earlier ones that are not restored, the oldest first. The first word is
        the kind of change. The file is kept as long as it holds a note.
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
    """Yield the notes of a lock's text without torn lines, and without the first line, the process id."""
    for line in text.splitlines():
        try:
            words = json.loads(line)
        except ValueError:
            continue
        if isinstance(words, list) and words and all(isinstance(word, str) for word in words):
            yield tuple(words)


@contextmanager
def lock() -> Iterator[Lock]:
    """Hold the lock. Its file is removed at the end, unless it holds a note.

    :raises MachineError: another run holds the lock, or its path is not a regular file of this user.
    """
    with interrupts.deferred(), _take_lock() as file:
        try:
            held = Lock(file)
        except OSError as error:
            LOCK.unlink()
            raise MachineError(f"the lock {LOCK} cannot be written: {error.strerror}", "make room there") from None
        try:
            yield held
        finally:
            if not held.notes and _is_lock(file):
                LOCK.unlink()
                # A pod cannot remove the directory, which is mounted there.
                with suppress(OSError):
                    LOCK.parent.rmdir()


def _take_lock() -> TextIO:
    while True:
        try:
            LOCK.parent.mkdir(mode=0o755, exist_ok=True)
            # Do not follow a symbolic link, and do not wait for the other end of a pipe.
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            number = os.open(LOCK, flags, 0o600)
            status = os.fstat(number)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                os.close(number)
                raise OSError(errno.EPERM, "not a regular file of this user")
        except OSError as error:
            if isinstance(error, FileNotFoundError) and LOCK.parent.parent.is_dir():
                continue  # The run before removed the directory in between.
            raise MachineError(f"the lock {LOCK} cannot be taken: {error.strerror}", f"rm {LOCK}") from None
        file = os.fdopen(number, "r+", errors="replace")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_holder(file)
            file.close()
            raise MachineError(f"another run is under way (process {holder})", "wait for its end") from None
        # The run before may have removed the file after it was opened here.
        if _is_lock(file):
            return file
        file.close()


def _read_holder(file: TextIO) -> str:
    """Return the number of the process that holds the lock; it writes the number just after it takes the lock."""
    pause = threading.Event()
    for _ in range(50):
        file.seek(0)
        if holder := file.readline(20).strip():
            return holder
        pause.wait(0.01)
    return "unknown"


def _is_lock(file: TextIO) -> bool:
    """Return whether this open file is still the one at the path of the lock."""
    try:
        return os.path.samestat(LOCK.lstat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
