"""Files that a command saves: under sudo they belong to the caller, and an error names its remedy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from kproxylat.console import say
from kproxylat.errors import MachineError
from kproxylat.system.trust import find_caller


def save_file(path: Path, content: str | bytes, option: str = "--output-dir", replace: bool = False) -> None:
    """Save a file.

    :param option: the option that chooses another place, for the remedy.
    :param replace: replace an existing file.
    :raises MachineError: the file cannot be written, or exists and ``replace`` is not set.
    """
    with explain_errors(path, option):
        if replace:
            path.write_bytes(_encode(content))
            give_to_user(path)
        else:
            write_new(path, content)


def write_new(path: Path, content: str | bytes) -> None:
    """Write a new file. A symbolic link is not followed, since the directory may be another user's.

    :raises OSError: the file exists, or cannot be written.
    """
    with path.open("xb") as file:
        file.write(_encode(content))
        give_to_user(file.fileno())


def _encode(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


@contextmanager
def explain_errors(path: Path, option: str = "--output-dir", action: str = "written") -> Iterator[None]:
    """Turn an OSError of the block into an error that names the file and a remedy.

    :param option: the option that chooses another place.
    :param action: completes "PATH cannot be ...".
    :raises MachineError: the block raised OSError.
    """
    try:
        yield
    except OSError as error:
        raise MachineError(f"{path} cannot be {action}: {error.strerror or error}", f"pass another {option}") from None


def make_directory(directory: Path) -> None:
    """Make a directory for logs, if it does not exist.

    :raises MachineError: the directory cannot be made or written to.
    """
    with explain_errors(directory, action="made"):
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        directory.mkdir(parents=True, exist_ok=True)
        for path in missing:
            give_to_user(path)
    if not os.access(directory, os.W_OK):
        # Root without CAP_DAC_OVERRIDE writes only to its own directories.
        owner = " that root owns" if os.geteuid() == 0 else ""
        raise MachineError(f"{directory} cannot be written to", f"pass another --output-dir{owner}")


def give_to_user(path: Path | int) -> None:
    """Under sudo, give a file or directory to the caller. Root without CAP_CHOWN warns once instead.

    :param path: the descriptor of an open file, or a path; a symbolic link is not followed.
    """
    caller = find_caller()
    try:
        if caller:
            os.chown(path, *caller, follow_symlinks=isinstance(path, int))
    except PermissionError:
        _warn_of_owner()


@cache
def _warn_of_owner() -> None:
    say("warning: logs and results belong to root: giving them to the caller of sudo needs CAP_CHOWN")
