"""Figures of matplotlib: how they look, how they are saved, and how they are put into a page.

The colours are Okabe and Ito's, which colour-blind people can distinguish, dark enough for text; markers and line
styles do without colour.
"""

from __future__ import annotations

import logging
import os
import re
import textwrap
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kproxylat.errors import MachineError, UsageError
from kproxylat.system.files import save_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
INK, GRID, PAPER = "#222222", "#dddddd", "#ffffff"
STEP = 0.085
"""Least distance of two labels of two lines, as a part of the height of the axes."""


LONGEST = 200
"""The most characters of a line of text in a figure: matplotlib takes minutes for a million."""


class Style(NamedTuple):
    """The look of a series or a run, in matplotlib's words."""

    color: str
    line: Any
    marker: str


_COLORS = ("#0072b2", "#b84e00", "#007d5a", "#a64d82", "#555555")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = "os^DvP"
STYLES = [Style(_COLORS[n % 5], _LINES[(n + n // 5) % 5], _MARKERS[n % 6]) for n in range(12)]
"""The styles of series or runs, in turn. Two of the same colour differ in line and marker."""
COLORS = {
    INK: "ink",
    GRID: "grid",
    PAPER: "paper",
    **{color: f"series-{number}" for number, color in enumerate(_COLORS)},
}
"""Colour of a figure -> the CSS variable that takes its place in a page."""


def check_output(output: Path) -> None:
    """Check the name of a picture.

    :raises UsageError: its suffix is not one of :data:`FORMATS`.
    """
    if output.suffix.lower() not in FORMATS:
        raise UsageError(
            f"{output} is neither PNG nor SVG nor PDF", "--output takes a name that ends with .png, .svg or .pdf"
        )


def _import_matplotlib() -> Any:
    """Import matplotlib, which then reads no user's configuration, and writes and prints nothing."""
    package = find_spec("matplotlib")
    if package and package.origin:
        # With a configuration file at hand, matplotlib makes no directory for one.
        os.environ["MATPLOTLIBRC"] = str(Path(package.origin).with_name("mpl-data") / "matplotlibrc")
    logging.getLogger("matplotlib").setLevel(logging.CRITICAL)
    try:
        import matplotlib

        # Nothing is below this path: matplotlib does without its cache of fonts.
        matplotlib.get_cachedir = lambda: os.devnull
        import matplotlib.figure
    except ImportError as error:
        raise MachineError(
            f"plot needs matplotlib: {error}", "pip install matplotlib # with pipx: pipx inject kproxylat matplotlib"
        ) from None
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    # Text stays text, also in names with dollar signs.
    settings: dict[Any, Any] = {"svg.fonttype": "none", "pdf.fonttype": 42, "text.parse_math": False}
    settings |= {"svg.hashsalt": "kproxylat", "font.size": 9.5, **dict.fromkeys(inked, INK)}
    matplotlib.rcParams.update(settings)
    return matplotlib


def make_figure(title: str, origin: str, wide: int = 0, high: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure with one pair of axes, or with parts, each with its own axes.

    :param title: above everything. ``origin``: where the numbers are from, below everything.
    :param wide: how many parts stand side by side (0: no parts), in ``high`` rows.
    :raises MachineError: matplotlib is missing.
    """
    size = (7.5 * max(wide, 1), 5.2 * high)
    figure: Figure = _import_matplotlib().figure.Figure(figsize=size, dpi=150, layout="constrained")
    width = 92 * max(wide, 1)
    figure.suptitle(_wrap(title, width - 20), x=0.01, ha="left", fontweight="bold", fontsize=11.5)
    figure.supxlabel(_wrap(origin, width + 30), x=0.01, ha="left", fontsize=7.5)
    parts: list[Any] = [*figure.subfigures(high, wide, squeeze=False).flat] if wide else [figure]
    every: list[Axes] = [part.subplots() for part in parts]
    for axes in every:
        axes.grid(visible=True, color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, every


def write_below(axes: Axes, text: str) -> None:
    """Write a small text between a figure's title and its axes."""
    axes.set_title(_wrap(text, 100), fontsize="small", loc="left")


def _wrap(text: str, width: int) -> str:
    return textwrap.fill(text, width, max_lines=3, placeholder=" …")


def shorten(text: str) -> str:
    """Cut lines of text that are longer than :data:`LONGEST`, such as a name of a damaged document."""
    return "\n".join(line if len(line) <= LONGEST else f"{line[:LONGEST]}…" for line in text.split("\n"))


def add_value(axes: Axes, x: float, y: float, text: str) -> None:
    """Add a value that a page shows when the pointer is over its place."""
    axes.plot([x], [y], marker="o", markersize=14, alpha=0, color=INK, gid=f"value: {text}", label="_", zorder=9)


def write_beside(axes: Axes, x: float, height: float, text: str) -> None:
    """Write a small text to the right of a vertical line, over whatever is drawn there.

    :param height: as a part of the axes' own.
    """
    paper = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.85, "pad": 1}
    axes.annotate(text, (x, height), xycoords=axes.get_xaxis_transform(), xytext=(5, 0), textcoords="offset points",
                  va="top", fontsize="small", bbox=paper)  # fmt: skip


def label_ends(axes: Axes, labels: Iterable[tuple[float, str, str]]) -> None:
    """Write a label to the right of each line, as high as its end, or higher if it would cover another label.

    :param labels: height of the end, text, colour.
    """
    x, least = axes.get_xlim()[1], -1.0
    for y, text, color in sorted(labels):
        height = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[1]
        least = max(height, least + STEP)
        axes.annotate(text, (1, least), xycoords="axes fraction", xytext=(6, 0), textcoords="offset points",
                      va="center", color=color, fontsize="small", annotation_clip=False)  # fmt: skip


_MARKS = {"svg": b"<dc:title>kproxylat<", "png": b"Software\0kproxylat", "pdf": b"/Creator (kproxylat)"}
"""Format -> bytes that only pictures of kproxylat have, see :func:`_write`."""


def save_figure(figure: Figure, output: Path, force: bool = False) -> None:
    """Save a figure; its suffix chooses the format. The same figure gives the same file.

    :param force: replace any file, not only a picture of kproxylat.
    :raises MachineError: the file cannot be written.
    """
    form = output.suffix[1:].lower()
    save_file(output, _write(figure, form), "--output, or --force", _MARKS[form], force)


def _write(figure: Figure, form: str, transparent: bool = False) -> bytes:
    # No date, no version, no random names.
    metadata: dict[str, dict[str, Any]] = {
        "svg": {"Date": None, "Title": figure.get_suptitle(), "Creator": "kproxylat"},
        "png": {"Software": "kproxylat"}, "pdf": {"CreationDate": None, "Creator": "kproxylat"},
    }  # fmt: skip
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_text(shorten(text.get_text()))
    stream = BytesIO()
    with warnings.catch_warnings():
        # Long names leave little room, and letters may have no glyph: the picture is less nice then, and still true.
        warnings.simplefilter("ignore")
        figure.savefig(stream, format=form, metadata=metadata[form], transparent=transparent)
    if form != "svg":
        return stream.getvalue()
    return re.sub(rb'<g id="value: ([^"]*)">', rb'<g class="value"><title>\1</title>', stream.getvalue())


def write_inline(figure: Figure, number: int) -> str:
    """Write a figure as SVG to be part of a page: without a size of its own, in the page's colours.

    :param number: tells the figure's names from those of the page's other figures.
    """
    text = _write(figure, "svg", transparent=True).decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg ") :], flags=re.DOTALL)
    head, rest = text.split(">", 1)
    # As wide as the page allows, but neither so narrow nor so wide that the text is hard to read.
    limits = (
        f"{side}-width: {scale * 72 * figure.get_figwidth():.0f}pt" for side, scale in (("min", 0.8), ("max", 1.2))
    )
    text = re.sub(r' (width|height)="[^"]*"', "", head) + f' style="{"; ".join(limits)}">{rest}'
    text = re.sub(r'( id="|url\(#|href="#)', rf"\1figure-{number}-", text)
    return re.sub(f'(?<=: )({"|".join(COLORS)})(?=[;"])', lambda match: f"var(--{COLORS[match[0]]})", text)
