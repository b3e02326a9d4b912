"""A histogram as bpftrace draws it (bpftrace, ``src/output.cpp``)."""

from __future__ import annotations

from collections.abc import Iterable

BAR = 52
"""Columns of bpftrace's longest bar."""


def draw_buckets(rows: Iterable[tuple[int | None, int | None, int]], bar: int = BAR) -> list[str]:
    """Draw a histogram's rows, the longest as long as ``bar``.

    :param rows: ascending buckets ``[lo, hi)`` with their counts; None is an open end.
    """
    labels = [(_label(lo, hi), count) for lo, hi, count in rows]
    most = max((count for _, count in labels), default=0) or 1
    return [f"{label:<16} {count:>8} |{'@' * (count * bar // most):<{bar}}|" for label, count in labels]


def _label(lo: int | None, hi: int | None) -> str:
    """Label a bucket: ``[512, 1K)``, ``[100, ...)``; 0 and 1 have a bucket of their own."""
    if lo is not None and hi is not None and hi - lo == 1:
        return f"[{lo}]"
    start = "(..." if lo is None else f"[{_number(lo)}"
    return f"{start}, {'...' if hi is None else _number(hi)})"


def _number(value: int) -> str:
    for shift, suffix in ((30, "G"), (20, "M"), (10, "K")):
        if value and value % (1 << shift) == 0:
            return f"{value >> shift}{suffix}"
    return str(value)
