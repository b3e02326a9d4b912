"""Tables of a published measurement beside ours, as text."""

from __future__ import annotations

from collections.abc import Iterator

from kproxylat.analysis.published import Reproduction
from kproxylat.report.columns import draw_table, fill
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
    kind = "us more than at the least number of Services" if published.growth_only else "us"
    yield draw_table(f"\nfirst packet, {kind}", FIGURES, list_figures(reproduction), FIGURES[:1])
    yield draw_table("\nwhat each Service adds, ns", SLOPES, list_slopes(reproduction), SLOPES[:2])
    yield "\nwhat may differ:"
    for reason in (f"this machine: {machine}", *published.differs):
        yield fill(f"- {reason}")
    yield "\nshape by shape:"
    for subject, state, evidence in list_verdicts(reproduction):
        yield fill(f"{subject}: {state} ({evidence})")


def list_figures(reproduction: Reproduction) -> list[tuple[str, ...]]:
    """Return a row of :data:`FIGURES` for each published figure."""
    return [
        (
            f"{figure.mode}/{figure.backend}", f"{figure.services:,}", f"p{figure.percentile}",
            f"{figure.published:,.1f}", *_write(figure.measured), _write_ratio(figure.ratio),
        )
        for figure in reproduction.figures
    ]  # fmt: skip


def list_slopes(reproduction: Reproduction) -> list[tuple[str, ...]]:
    """Return a row of :data:`SLOPES` for each slope."""
    return [
        (
            f"{slope.mode}/{slope.backend}", f"p{slope.percentile}" if slope.percentile else "each before it",
            "-" if slope.published is None else f"{slope.published:,.1f}", *_write(slope.measured),
            _write_ratio(slope.ratio),
        )
        for slope in reproduction.slopes
    ]  # fmt: skip


def list_verdicts(reproduction: Reproduction) -> list[tuple[str, str, str]]:
    """Return subject, state and evidence of each verdict."""
    return [(verdict.subject, verdict.state.upper(), verdict.evidence) for verdict in reproduction.verdicts]


def _write(figure: Bounded) -> tuple[str, str]:
    return f"{figure.estimate:,.1f}", f"{figure.lo:,.1f} to {figure.hi:,.1f}"


def _write_ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
