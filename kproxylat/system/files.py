"""Files that a command saves. Only this module makes files and directories.

Under sudo they belong to the caller, who can rename anything in the own directories at any moment: each step works on
the descriptor that the step before opened. An error names its remedy.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from kproxylat.console import say
from kproxylat.errors import MachineError
from kproxylat.system.trust import find_caller, open_path

_NOBODY = 65534
"""The owner of root's files on a share that maps root (exports(5), root_squash)."""
_OWN = os.O_NOFOLLOW | os.O_CLOEXEC


def save_file(
    path: Path, content: str | bytes, option: str = "--output-dir", mark: bytes = b"", force: bool = False
) -> None:
    """Save a new file.

    :param option: the option that chooses another place, for the remedy.
    :param mark: bytes of files like this one; an existing file that has them is replaced (empty: none is).
    :param force: replace any existing file.
    :raises MachineError: the file cannot be written, or exists.
    """
    with explain_errors(path, option):
        if force or (mark and _is_own(path, mark)):
            with hold_directory(path.parent) as directory, suppress(FileNotFoundError):
                os.unlink(path.name, dir_fd=directory)
        write_new(path, content)


def _is_own(path: Path, mark: bytes) -> bool:
    try:
        return mark in read_own(path)
    except OSError:
        return False


def write_new(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Write a new file, as :func:`create` makes it.

    :raises OSError: the file exists, or cannot be written.
    """
    descriptor = create(path, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_encode(content))
    except OSError:
        # On a full disk: what is left would have to be overwritten by force.
        with suppress(OSError), hold_directory(path.parent) as directory:
            os.unlink(path.name, dir_fd=directory)
        raise


def create(path: Path, mode: int = 0o666) -> int:
    """Make a new file. Symbolic links are not followed, since the directory may be another user's.

    :return: its descriptor, to write.
    :raises OSError: the file exists, or cannot be made.
    """
    with hold_directory(path.parent) as directory:
        descriptor = os.open(path.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OWN, mode, dir_fd=directory)
    give_to_user(descriptor)
    return descriptor


def append(path: Path, text: str) -> None:
    """Append a line to a file that kproxylat made, after a torn one, too.

    :raises OSError: the file cannot be written, or is not one that kproxylat made.
    """
    with os.fdopen(_open_own(path, os.O_WRONLY | os.O_APPEND), "a", encoding="utf-8") as file:
        file.write(f"\n{text}")


def read_own(path: Path) -> bytes:
    """Return the content of a file that kproxylat made.

    :raises OSError: the file cannot be read, or is not one that kproxylat made.
    """
    with os.fdopen(_open_own(path, os.O_RDONLY), "rb") as file:
        return file.read()


def _open_own(path: Path, flags: int) -> int:
    """Open a file, as root only one of root or the caller of sudo; a link, also a hard one, could lead anywhere."""
    with hold_directory(path.parent) as directory:
        descriptor = os.open(path.name, flags | os.O_NONBLOCK | _OWN, dir_fd=directory)
    status = os.fstat(descriptor)
    owners = (0, _NOBODY, *(find_caller() or ())[:1]) if os.geteuid() == 0 else (status.st_uid,)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_uid not in owners:
        os.close(descriptor)
        raise OSError(errno.EPERM, "not a file that kproxylat made")
    return descriptor


@contextmanager
def hold_directory(directory: Path, make: bool = False) -> Iterator[int]:
    """Open a directory, in a context that closes it: the descriptor stays the same, whatever is renamed.

    :param make: make it, and those above it, if they are missing.
    :raises MachineError: as root, another user can change a link on the way.
    """
    if make and not hasattr(os, "O_PATH"):  # macOS
        directory.mkdir(parents=True, exist_ok=True)
    descriptor = open_path(directory, _check_link, _make_child if make else None)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check_link(part: Path, link: os.stat_result, directory: os.stat_result) -> None:
    """As root, follow only links that no other user can make, the caller of sudo included."""
    is_shared = link.st_uid or directory.st_uid or directory.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if stat.S_ISLNK(link.st_mode) and os.geteuid() == 0 and is_shared:
        raise MachineError(
            f"{part} is not followed as root: other users can change this symbolic link", f"name {part.resolve()}"
        )


def _make_child(name: str, directory: int) -> None:
    """Make a directory, and give it to the caller of sudo, who may put another in its place at any moment."""
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=directory)
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _OWN, dir_fd=directory)
        try:
            if os.listdir(descriptor):  # noqa: PTH208 - no path
                raise OSError(errno.EPERM, "another program replaced it")
            # A share may make it another user's, as the guest of a virtual machine sees it.
            if os.fstat(descriptor).st_uid == os.getuid():
                give_to_user(descriptor)
        finally:
            os.close(descriptor)


def _encode(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


@contextmanager
def explain_errors(path: Path, option: str = "--output-dir", action: str = "written") -> Iterator[None]:
    """Turn an OSError of the block into an error that names the file and a remedy.

    :param option: the option that chooses another place; after a comma what helps if the file exists.
    :param action: completes "PATH cannot be ...".
    :raises MachineError: the block raised OSError.
    """
    try:
        yield
    except OSError as error:
        fix = option if error.errno == errno.EEXIST else option.partition(",")[0]
        raise MachineError(f"{path} cannot be {action}: {error.strerror or error}", f"pass another {fix}") from None


def make_directory(directory: Path) -> None:
    """Make a directory for logs, if it does not exist.

    :raises MachineError: the directory cannot be made or written to.
    """
    with explain_errors(directory, action="made"), hold_directory(directory, make=True) as descriptor:
        # "." asks for a directory.
        os.close(os.open(".", os.O_RDONLY | _OWN, dir_fd=descriptor))
    if not os.access(directory, os.W_OK):
        # Root without CAP_DAC_OVERRIDE writes only to its own directories.
        owner = " that root owns" if os.geteuid() == 0 else ""
        raise MachineError(f"{directory} cannot be written to", f"pass another --output-dir{owner}")


def give_to_user(descriptor: int) -> None:
    """Under sudo, give an open file or directory to the caller. Root without CAP_CHOWN warns once instead."""
    caller = find_caller()
    try:
        if caller:
            os.chown(descriptor, *caller, follow_symlinks=True)
    except PermissionError:
        _warn_of_owner()


@cache
def _warn_of_owner() -> None:
    say("warning: logs and results belong to root: giving them to the caller of sudo needs CAP_CHOWN")
