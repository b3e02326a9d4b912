"""The standard streams and the limit of open files, as a caller may have left them."""

from __future__ import annotations

import codecs
import io
import json
import os
import resource
import sys

from kproxylat.errors import MachineError

FILES = 64
"""A run on this machine opens fewer files."""
USUAL_FILES = 1024
"""The limit that Linux sets by default."""


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Write characters that a stream's encoding lacks as in JSON, which documents on stdout are."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def prepare() -> None:
    """Open closed standard streams, let stdout take any character, and raise the limit of open files.

    :raises MachineError: stdout is closed, so that a result would be lost; or too few files can be open.
    """
    # Otherwise the first file that is opened takes the number of a closed stream, and gets what is printed.
    while (null := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(null)
    closed = sys.stdout is None
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    codecs.register_error("kproxylat", _escape)
    # Python's stderr takes any character already.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="kproxylat")
    if closed:
        raise MachineError("standard output is closed", "leave out >&-; to discard the output: >/dev/null")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < FILES:
        soft = USUAL_FILES if hard < 0 else min(USUAL_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < FILES:
            raise MachineError(f"this process can open only {soft} files", f"ulimit -n {FILES}, or more")
