"""The drawer of all tables, as wide as the terminal. It does without rich: importing rich takes longer than parsing a
log."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from kproxylat import console
from kproxylat.console import plain
from kproxylat.results import Bounded

WIDTH = 80
"""Columns of a pipe or a file."""
_NARROWEST = 16
_SCALES = (("s", 1e9), ("ms", 1e6), ("µs", 1e3), ("ns", 1.0))
_NS = {"ns": 1, "us": 1000}
_COLOURS = {
    r"^ \S+ \*  .*": "1",
    r"\A[A-Z][^(]*\((?:p50|the\s+commonest)(?s:.*)": "1",
    r"\b(warning|unclear)\b": "33",
    r"\b(NOT CLOSED|NOT REPRODUCED|THE CLOCKS DISAGREE|missing|do not balance)\b": "31",
    r"(?<=: )closed$|(?<=  )ok(?=  )|\bREPRODUCED\b": "32",
}
"""Words that a terminal shows in colour -> the colour. Each says the same without it."""


def width() -> int:
    """Return the columns of the terminal, or :data:`WIDTH` if stdout is not a terminal."""
    return max(shutil.get_terminal_size().columns, 40) if sys.stdout.isatty() else WIDTH


def paint(text: str) -> str:
    """Add colours, if stdout is a terminal that has them and NO_COLOR is not set."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    for pattern, colour in _COLOURS.items():
        text = re.sub(pattern, rf"\033[{colour}m\g<0>\033[0m", text, flags=re.MULTILINE)
    return text


def show(text: str = "") -> None:
    """Print a text of a result on stdout, in colours where they are possible."""
    console.show(text, style=paint)


def fill(text: str, indent: str = "  ") -> str:
    """Break a text into lines of the terminal's width, never inside a word.

    :param indent: before the second line and those after it.
    """
    return textwrap.fill(plain(text), width(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def write_figure(number: float | None, unit: str | None) -> str:
    """Write a figure: a time with three digits and its scaled unit (``38.2 µs``), a count with thousands separators.

    :param number: None: it is unknown.
    """
    if number is None:
        return "-"
    if unit not in _NS:
        return f"{number:,.1f}" if number % 1 and abs(number) < 1000 else f"{number:,.0f}"
    if not number:
        return "0 ns"
    ns = number * _NS[unit]
    name, scale = next((row for row in _SCALES if abs(ns) >= 0.9995 * row[1]), _SCALES[-1])
    return f"{ns / scale:.3g} {name}" if abs(ns) < 999.5 * scale else f"{ns / scale:,.0f} {name}"


def write_digits(number: float, digits: int = 3) -> str:
    """Write a number with so many digits, and a great one without an exponent: ``1,390``, ``0.147``."""
    return f"{float(f'{number:.{digits}g}'):,.15g}"


def write_bounded(figure: Bounded | None, form: str = ",.4g") -> str:
    """Write an estimate with its bounds, where it has some; "-" if it is unknown.

    :param form: of each number, in Python's words.
    """
    if figure is None:
        return "-"
    bounds = f" ({figure.lo:{form}} to {figure.hi:{form}})" if figure.lo < figure.hi else ""
    return f"{figure.estimate:{form}}{bounds}"


@dataclass(frozen=True)
class Table:
    """A table, for the screen or a page; ``left`` are the headers of the columns of words."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    left: Collection[str]

    def draw(self) -> str:
        """Draw the table for the screen, see :func:`draw_table`."""
        return draw_table(self.title, self.header, self.rows, self.left)


def draw_table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[object]], left: Collection[str] = (), fold: int = 0
) -> str:
    """Draw a table: title, header, rule, rows. A cell may have several lines.

    :param left: headers of the left-aligned columns; the other columns are right-aligned.
    :param fold: index of the column that is folded if the table is wider than the terminal; if that is not enough, the
        first one is, too.
    :return: the lines, without a newline after the last one; characters that control a terminal are escaped.
    """
    grid = [[plain(cell).split("\n") for cell in row] for row in (header, *rows)]
    widths = [max(len(line) for cell in column for line in cell) for column in zip(*grid, strict=True)]
    limit = width()
    for column in dict.fromkeys((fold, 0)):
        total = sum(widths) + 2 * len(widths) - 1
        if total <= limit:
            break
        widths[column] = min(widths[column], max(widths[column] + limit - total, _NARROWEST))
        for row in grid:
            pieces = [textwrap.wrap(line, widths[column], break_on_hyphens=False) or [""] for line in row[column]]
            row[column] = [piece for line in pieces for piece in line]
    lines = []
    for row in grid:
        for cells in zip_longest(*row, fillvalue=""):
            aligned = (
                cell.ljust(width) if name in left else cell.rjust(width)
                for cell, width, name in zip(cells, widths, header, strict=True)
            )
            lines.append(f" {'  '.join(aligned)}".rstrip())
    rule = " " + "─" * (sum(widths) + 2 * len(widths) - 2)
    height = max(map(len, grid[0]))
    return "\n".join([*([title, ""] if title else []), *lines[:height], rule, *lines[height:]])
