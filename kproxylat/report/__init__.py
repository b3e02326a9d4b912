"""Results for people and machines."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Return the table EXPORTERS, imported on demand."""
    if name != "EXPORTERS":
        raise AttributeError(name)
    from kproxylat.report.export import EXPORTERS

    return EXPORTERS
