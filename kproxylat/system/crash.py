"""A report of an internal error: versions, arguments and traceback in a file."""

from __future__ import annotations

import os
import pwd
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from kproxylat import __version__
from kproxylat.console import say
from kproxylat.errors import KproxylatError
from kproxylat.system.files import give_to_user, make_directory
from kproxylat.system.trust import find_caller


def report_bug(error: Exception, arguments: Sequence[str]) -> None:
    """Save the report and say in one line where it is; if no file can be written, print the report on stderr.

    :param arguments: the command line, without the program's name.
    """
    report = _render(error, arguments)
    path = _save(report)
    if not path:
        say(report)
    message = " ".join(str(error).split())
    place = path or "above"
    say(f"kproxylat: internal error, please report it (traceback: {place}): {type(error).__name__}: {message}")


def _render(error: Exception, arguments: Sequence[str]) -> str:
    facts = {
        "kproxylat": __version__,
        "Python": sys.version.split()[0],
        "kernel": os.uname().release,
        "arguments": list(arguments),
    }
    head = "".join(f"{name}: {value}\n" for name, value in facts.items())
    return f"{head}\n{''.join(traceback.format_exception(error))}"


def _save(report: str) -> Path | None:
    """Write the report to a new file, in the first directory that can be written to; None if there is none."""
    prefix = f"traceback_{datetime.now().astimezone():%Y%m%d_%H%M%S}_"
    for directory in _list_directories():
        try:
            make_directory(directory)
            descriptor, name = tempfile.mkstemp(".txt", prefix, directory)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(report)
                give_to_user(file.fileno())
        except (OSError, KproxylatError):
            continue
        return Path(name)
    return None


def _list_directories() -> Iterator[Path]:
    """List where a report may go, the best first: the state directory of the user, under sudo of who called it.

    The XDG Base Directory Specification ignores a relative path.
    """
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():
        try:
            caller = find_caller()
            home = Path(pwd.getpwuid(caller[0]).pw_dir) if caller else Path.home()
            state = home / ".local" / "state"
        except (KeyError, KproxylatError, RuntimeError):
            state = Path(tempfile.gettempdir())
    yield state / "kproxylat"
    yield Path(tempfile.gettempdir())
