"""A report of an internal error: versions, arguments and traceback in a file."""

from __future__ import annotations

import os
import pwd
import secrets
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from kproxylat import __version__
from kproxylat.console import say
from kproxylat.errors import KproxylatError
from kproxylat.system.files import make_directory, write_new
from kproxylat.system.trust import find_caller


def _choose_state_directory() -> Path:
    """Return the state directory of the user, under sudo of the caller.

    The XDG Base Directory Specification ignores a relative path.
    """
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():
        caller = find_caller()
        home = Path(pwd.getpwuid(caller[0]).pw_dir) if caller else Path.home()
        state = home / ".local" / "state"
    return state / "kproxylat"


DIRECTORIES: list[Callable[[], Path | str]] = [_choose_state_directory, tempfile.gettempdir]
"""Functions that return where to save a report, the best place first. guest.py clears the list: a virtual machine loses
its files, so its reports go to stderr."""


def report_bug(error: Exception, arguments: Sequence[str]) -> None:
    """Save the report and print in one line where it is; if no file can be written, print the report on stderr.

    :param arguments: the command line, without the program's name.
    """
    report = (
        f"kproxylat: {__version__}\nPython: {sys.version.split()[0]}\nkernel: {os.uname().release}\n"
        f"arguments: {list(arguments)}\n\n{''.join(traceback.format_exception(error))}"
    )
    path = _save(report)
    if not path:
        say(report)
    message = f"{type(error).__name__}: {' '.join(str(error).split())}"
    say(f"kproxylat: internal error, please report it (traceback: {path or 'above'}): {message}")


def _save(report: str) -> Path | None:
    """Write the report to a new file in the first of :data:`DIRECTORIES` that works; return None if none does."""
    prefix = f"traceback_{datetime.now().astimezone():%Y%m%d_%H%M%S}_"
    for choose_directory in DIRECTORIES:
        with suppress(OSError, RuntimeError, KeyError, KproxylatError):
            directory = Path(choose_directory())
            make_directory(directory)
            path = directory / f"{prefix}{secrets.token_hex(4)}.txt"
            write_new(path, report.encode(errors="backslashreplace"), 0o600)
            return path
    return None
