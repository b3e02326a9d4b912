"""Users and files that root trusts: the caller of sudo, and files that other users cannot write."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kproxylat.errors import MachineError


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


def check_trusted(path: Path) -> None:
    """As root, refuse a file that another user could change or replace.

    :param path: an existing file. Symbolic links on the path are checked, and so are their targets.
    :raises MachineError: the file, or a directory above it, has another owner than root and the caller of sudo, or
        others can write to it. A sticky directory may be writable: only the owner of a file can rename it there.
    """
    if os.geteuid() != 0:
        return
    caller = find_caller()
    owners = {0, caller[0]} if caller else {0}
    real = path.resolve()
    for part in dict.fromkeys([real, *real.parents, *path.absolute().parents, path.absolute()]):
        status = part.lstat()
        shared = status.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if status.st_gid else 0))
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        safe = stat.S_ISLNK(status.st_mode) or not shared or sticky
        if status.st_uid not in owners or not safe:
            raise MachineError(
                f"{path} is not read as root: other users can change {part}",
                f"chmod go-w {part}, and chown it to root or to the caller of sudo",
            )
