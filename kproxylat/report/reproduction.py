"""Tables of a published measurement beside ours, as text."""

from __future__ import annotations

from collections.abc import Iterator

from kproxylat.analysis.published import Reproduction
from kproxylat.report.columns import Table, fill
from kproxylat.results import Bounded

FIGURES = ("series", "Services", "figure", "published", "measured", "bounds", "ratio")
SLOPES = ("series", "of", "published", "measured", "bounds", "ratio")


def draw_reproduction(reproduction: Reproduction, machine: str) -> Iterator[str]:
    """Yield what was published and what we measured, side by side, what may differ, and the verdicts.

    :param machine: in words, with its kernel.
    """
    published = reproduction.published
    yield fill(f"{published.title} ({published.date}, {published.address})")
    yield fill(f"method: {published.method}")
    for table in list_times(reproduction):
        yield f"\n{table.draw()}"
    yield "\nwhat may differ:"
    for reason in (f"this machine: {machine}", *published.differs):
        yield fill(f"- {reason}")
    yield "\nshape by shape:"
    for subject, state, evidence in list_verdicts(reproduction):
        yield fill(f"{subject}: {state} ({evidence})")


def list_times(reproduction: Reproduction) -> tuple[Table, Table]:
    """List each published figure, and each slope, with ours."""
    figures = [
        (
            f"{figure.mode}/{figure.backend}", f"{figure.services:,}", f"p{figure.percentile}",
            f"{figure.published:,.1f}", *_write(figure.measured, figure.ratio),
        )
        for figure in reproduction.figures
    ]  # fmt: skip
    slopes = [
        (
            f"{slope.mode}/{slope.backend}", f"p{slope.percentile}" if slope.percentile else "each before it",
            "-" if slope.published is None else f"{slope.published:,.1f}", *_write(slope.measured, slope.ratio),
        )
        for slope in reproduction.slopes
    ]  # fmt: skip
    kind = "us more than at the least number of Services" if reproduction.published.growth_only else "us"
    return (
        Table(f"first packet, {kind}", FIGURES, figures, FIGURES[:1]),
        Table("what each Service adds, ns", SLOPES, slopes, SLOPES[:2]),
    )


def list_verdicts(reproduction: Reproduction) -> list[tuple[str, str, str]]:
    """Return subject, state and evidence of each verdict."""
    return [(verdict.subject, verdict.state.upper(), verdict.evidence) for verdict in reproduction.verdicts]


def _write(measured: Bounded, ratio: float | None) -> tuple[str, str, str]:
    bounds = f"{measured.lo:,.1f} to {measured.hi:,.1f}"
    return f"{measured.estimate:,.1f}", bounds, "-" if ratio is None else f"{ratio:.2f}"
