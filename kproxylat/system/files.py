"""Files that a command leaves behind: they belong to the user who called sudo, and an error names its remedy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from kproxylat.console import say
from kproxylat.errors import MachineError
from kproxylat.system.trust import find_caller


def save_new(path: Path, content: str | bytes, option: str = "--output-dir") -> None:
    """Write a new file.

    :param option: the option that chooses another place.
    :raises MachineError: the file exists, or cannot be written.
    """
    with explain_errors(path, option):
        write_new(path, content)


def save_over(path: Path, content: str | bytes, option: str = "--output-dir") -> None:
    """Write a file; an existing one is replaced.

    :param option: the option that chooses another place.
    :raises MachineError: the file cannot be written.
    """
    with explain_errors(path, option):
        path.write_bytes(_encode(content))
        give_to_user(path)


def write_new(path: Path, content: str | bytes) -> None:
    """Write a new file; no symbolic link is followed, since the directory may be another user's.

    :raises OSError: the file exists, or cannot be written.
    """
    with path.open("xb") as file:
        file.write(_encode(content))
        give_to_user(file.fileno())


def _encode(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


@contextmanager
def explain_errors(path: Path, option: str = "--output-dir") -> Iterator[None]:
    """Turn an error of the system into one that names the file and a remedy.

    :param option: the option that chooses another place.
    :raises MachineError: the block raised OSError.
    """
    try:
        yield
    except OSError as error:
        raise MachineError(f"{path} cannot be written: {error.strerror or error}", f"pass another {option}") from None


def make_directory(directory: Path) -> None:
    """Make a directory for logs, if it does not exist yet.

    :raises MachineError: the directory cannot be made or written to.
    """
    try:
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        directory.mkdir(parents=True, exist_ok=True)
        for path in missing:
            give_to_user(path)
    except OSError as error:
        raise MachineError(f"{directory} cannot be made: {error.strerror}", "pass another --output-dir") from None
    if not os.access(directory, os.W_OK):
        # Root without CAP_DAC_OVERRIDE writes only to its own directories.
        also = " of root's own" if os.geteuid() == 0 else ""
        raise MachineError(f"{directory} cannot be written to", f"pass another --output-dir{also}")


def give_to_user(path: Path | int) -> None:
    """Under sudo, give a file or directory to the user who called it; a root that may not do so says so, once.

    :param path: an open file's descriptor; for a directory its path, which may not be a symbolic link.
    """
    caller = find_caller()
    try:
        if caller:
            os.chown(path, *caller, follow_symlinks=isinstance(path, int))
    except PermissionError:
        _warn_of_owner()


@cache
def _warn_of_owner() -> None:
    say("warning: logs and results stay root's: to give them to the user who called sudo takes CAP_CHOWN")
