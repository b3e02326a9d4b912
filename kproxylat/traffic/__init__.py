"""Packet generators: who sends."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Return the table GENERATORS, imported when it is asked for."""
    if name != "GENERATORS":
        raise AttributeError(name)
    from kproxylat.traffic.generators import GENERATORS

    return GENERATORS
