"""Run logs: written, read, and what was written before."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Return the table DIALECTS, imported when it is asked for."""
    if name != "DIALECTS":
        raise AttributeError(name)
    from kproxylat.logs.reader import DIALECTS

    return DIALECTS
