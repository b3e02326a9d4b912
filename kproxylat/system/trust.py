"""Users and files that root trusts: the caller of sudo, and files that other users cannot write."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kproxylat.errors import MachineError

Check = Callable[[Path, os.stat_result, os.stat_result], None]
_MAX_LINKS = 40


def find_caller() -> tuple[int, int] | None:
    """Return the user and group ids of the caller of sudo; None without sudo, or if this process is not root.

    :raises MachineError: SUDO_UID or SUDO_GID is not a valid id.
    """
    if os.geteuid() != 0 or "SUDO_UID" not in os.environ:
        return None
    numbers = []
    for name in ("SUDO_UID", "SUDO_GID"):
        value = os.environ.get(name, "")
        # The greatest number stands for "unchanged" (chown(2)).
        if not (value.isascii() and value.isdecimal() and len(value) < 11 and int(value) < 2**32 - 1):
            raise MachineError(f"the environment has {name}={value[:20]!r}, not an id", "call sudo again")
        numbers.append(int(value))
    return numbers[0], numbers[1]


def open_path(path: Path, check: Check, make: Callable[[str, int], None] | None = None) -> int:
    """Open a path component by component, so that a component that was checked cannot be replaced meanwhile.

    :param check: called with the path of each component, also of links, its status, and that of its directory.
    :param make: called with the name of a missing component, and the descriptor of its directory.
    :return: a descriptor of the file or directory (open(2), O_PATH); links are resolved.
    :raises OSError: a component is missing, or not a directory.
    """
    if not hasattr(os, "O_PATH"):
        return _open_elsewhere(path)
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor, place, links = os.open("/", flags), Path("/"), 0
    names = list(reversed(path.absolute().parts))
    try:
        while names:
            try:
                child = os.open(names[-1], flags, dir_fd=descriptor)
            except FileNotFoundError:
                if not make:
                    raise
                make(names[-1], descriptor)
                continue
            name, parent, status = names.pop(), os.fstat(descriptor), os.fstat(child)
            try:
                check(place / name, status, parent)
                if stat.S_ISLNK(status.st_mode):
                    links += 1
                    if links > _MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                    names += reversed(Path(os.readlink("", dir_fd=child)).parts)
                else:
                    descriptor, child, place = child, descriptor, place / name
            finally:
                os.close(child)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open_elsewhere(path: Path) -> int:
    """Open a path on macOS, where the client of ``--node`` runs, and nothing is protected from other users."""
    if os.geteuid() == 0:
        raise MachineError("files that root uses are checked on Linux only", "run kproxylat as an ordinary user")
    return os.open(path, os.O_RDONLY)


def read_trusted(path: Path, inside: Path | None = None) -> bytes:
    """Read a file as root that no other user can change, see :func:`check_trusted`.

    :param inside: a directory; the file has to lie below it, and to have one name only (None: it may lie anywhere).
    :raises MachineError: others can change it, or it is elsewhere.
    """
    with _open_trusted(path) as descriptor:
        place = Path(f"/proc/self/fd/{descriptor}")
        if inside:
            with _open_trusted(inside) as directory:
                top = Path(f"/proc/self/fd/{directory}").readlink()
            if not place.readlink().is_relative_to(top) or os.fstat(descriptor).st_nlink != 1:
                raise MachineError(f"{path} is not read as root: it is a link out of {top}", "copy the file there")
        return place.read_bytes()


def check_trusted(path: Path) -> None:
    """As root, refuse a file that another user could change or replace.

    :param path: the file. Symbolic links on the path are checked, and so are their targets.
    :raises MachineError: as root; the file, a link or a directory on the way to it has another owner than root and the
        caller of sudo, or its group or others can write to it. A sticky directory may be writable: only the owner of a
        file can rename it there. Or the file cannot be opened.
    """
    if os.geteuid() == 0:
        with _open_trusted(path):
            pass


@contextmanager
def _open_trusted(path: Path) -> Iterator[int]:
    caller = find_caller()
    owners = {0, caller[0]} if caller else {0}

    def check(part: Path, status: os.stat_result, _: os.stat_result) -> None:
        shared = status.st_mode & (stat.S_IWOTH | stat.S_IWGRP)
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        safe = stat.S_ISLNK(status.st_mode) or not shared or sticky
        if status.st_uid not in owners or not safe:
            raise MachineError(
                f"{path} is not read as root: other users can change {part}",
                f"chmod go-w {part}, and chown it to root or to the caller of sudo",
            )

    try:
        descriptor = open_path(path, check)
    except OSError as error:
        raise MachineError(f"{path} cannot be read: {error.strerror}", "pass the path of a file") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)
