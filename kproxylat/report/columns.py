"""The drawer of all tables. It does without rich: importing rich takes longer than parsing a log."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Sequence
from itertools import zip_longest

from kproxylat.console import plain

WIDTH = 80
_NARROWEST = 16


def draw_table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[str] = (), fold: int = 0
) -> str:
    """Draw a table: title, header, rule, rows. A cell may have several lines.

    :param left: headers of the left-aligned columns; the other columns are right-aligned.
    :param fold: index of the column that is folded if the table is wider than 80 columns.
    :return: the lines, without a newline after the last one; characters that control a terminal are escaped.
    """
    grid = [[plain(cell).split("\n") for cell in row] for row in (header, *rows)]
    widths = [max(len(line) for cell in column for line in cell) for column in zip(*grid, strict=True)]
    total = sum(widths) + 2 * len(widths) - 1
    if total > WIDTH:
        widths[fold] = min(widths[fold], max(widths[fold] + WIDTH - total, _NARROWEST))
        for row in grid:
            pieces = [textwrap.wrap(line, widths[fold], break_on_hyphens=False) or [""] for line in row[fold]]
            row[fold] = [piece for line in pieces for piece in line]
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
