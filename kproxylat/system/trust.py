"""Whom root believes: the user behind sudo, and files that nobody else can write."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kproxylat.errors import MachineError


def find_caller() -> tuple[int, int] | None:
    """Return user and group of who called sudo; None where nobody did, or we are not root.

    :raises MachineError: SUDO_UID or SUDO_GID is no number of a user or group.
    """
    if os.geteuid() != 0 or "SUDO_UID" not in os.environ:
        return None
    numbers = []
    for name in ("SUDO_UID", "SUDO_GID"):
        value = os.environ.get(name, "")
        # The greatest number stands for "unchanged" (chown(2)).
        if not (value.isascii() and value.isdecimal() and len(value) < 11 and int(value) < 2**32 - 1):
            raise MachineError(f"the environment has {name}={value[:20]!r}", "it takes a number: call sudo anew")
        numbers.append(int(value))
    return numbers[0], numbers[1]


def check_trusted(path: Path) -> None:
    """As root, refuse a file that another user could change: itself, or a directory on its way.

    :param path: a file that exists; symbolic links count as their targets do.
    :raises MachineError: the file or a directory belongs to another than root and the caller of sudo, or others may
        write to it. A directory may be everybody's if it is sticky: there nobody renames what is another's.
    """
    if os.geteuid() != 0:
        return
    caller = find_caller()
    known = {0, caller[0]} if caller else {0}
    real = path.resolve()
    for each in dict.fromkeys([real, *real.parents, *path.absolute().parents, path.absolute()]):
        found = each.lstat()
        if stat.S_ISLNK(found.st_mode):
            mine = found.st_uid in known
        else:
            shared = found.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if found.st_gid else 0))
            sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
            mine = found.st_uid in known and (not shared or bool(sticky))
        if not mine:
            raise MachineError(
                f"{path} is not read as root: others can change {each}",
                f"chmod go-w {each}, and let it belong to root or to the caller of sudo",
            )
