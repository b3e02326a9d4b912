"""The processes of this machine."""

from __future__ import annotations

from pathlib import Path


def find_marked(mark: str) -> list[str]:
    """Return the command lines of the processes with a variable in their environment."""
    marked = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes().split(b"\0"):
                marked.append(path.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return marked
