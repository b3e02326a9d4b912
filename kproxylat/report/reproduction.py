"""Tables of a published measurement beside ours, as text."""

from __future__ import annotations

from collections.abc import Iterator

from kproxylat.analysis.published import Reproduction, Slope
from kproxylat.report.columns import draw_table, fill
from kproxylat.results import Bounded


def draw_reproduction(reproduction: Reproduction, machine: str) -> Iterator[str]:
    """Yield what was published and what we measured, side by side, what may differ, and the verdicts.

    :param machine: in words, with its kernel.
    """
    published = reproduction.published
    yield fill(f"{published.title} ({published.date}, {published.address})")
    yield fill(f"method: {published.method}")
    kind = "us more than at the least number of Services" if published.growth_only else "us"
    rows = [
        (
            f"{figure.mode}/{figure.backend}", f"{figure.services:,}", f"p{figure.percentile}",
            f"{figure.published:,.1f}", *_write(figure.measured), _write_ratio(figure.ratio),
        )
        for figure in reproduction.figures
    ]  # fmt: skip
    header = ("series", "Services", "figure", "published", "measured", "bounds", "ratio")
    yield draw_table(f"\nfirst packet, {kind}", header, rows, header[:1])
    slopes = []
    for slope in reproduction.slopes:
        published_ns = "-" if slope.published is None else f"{slope.published:,.1f}"
        figures = (published_ns, *_write(slope.measured), _write_ratio(slope.ratio))
        slopes.append((f"{slope.mode}/{slope.backend}", _name(slope), *figures))
    columns = ("series", "of", "published", "measured", "bounds", "ratio")
    yield draw_table("\nwhat each Service adds, ns", columns, slopes, columns[:2])
    yield "\nwhat may differ:"
    for reason in (f"this machine: {machine}", *published.differs):
        yield fill(f"- {reason}")
    yield "\nshape by shape:"
    for verdict in reproduction.verdicts:
        yield fill(f"{verdict.subject}: {verdict.state.upper()} ({verdict.evidence})")


def _name(slope: Slope) -> str:
    return f"p{slope.percentile}" if slope.percentile else "each before it"


def _write(figure: Bounded) -> tuple[str, str]:
    return f"{figure.estimate:,.1f}", f"{figure.lo:,.1f} to {figure.hi:,.1f}"


def _write_ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
