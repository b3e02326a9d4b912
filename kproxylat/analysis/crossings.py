"""Where the lines of two series cross: with so many Services both cost the same. Pure."""

from __future__ import annotations

from itertools import product

from kproxylat.analysis.series import ROUNDING, Series
from kproxylat.analysis.stats import crossing
from kproxylat.results import Bounded


def find_crossing(a: Series, b: Series) -> Bounded | None:
    """Find the number of Services at which two series cost the same, with bounds.

    The bounds are those of all lines that differ from a series' own at both ends by at most its largest residual, or
    the clock's rounding if that is more. Where rounding alone leaves the number of Services as it is, they are exact.

    :return: None if the lines do not certainly meet, a series has no line ("unclear"), or a measured point is on the
        wrong side.
    """
    lines = [line for series in (a, b) if (line := series.line)]
    if len(lines) < 2 or (where := crossing(*lines)) is None:
        return None
    meetings = [crossing(x, y) for x, y in product(_lines_within(a), _lines_within(b))]
    places = [place for place in meetings if place is not None]
    if len(places) < len(meetings):
        return None
    interval = Bounded(where, min(places), max(places))
    if max(map(_worst, (a, b))) <= ROUNDING and round(interval.lo) == round(interval.hi):
        interval = Bounded(where, where, where)
    return interval if agrees(a, b, interval) else None


def _worst(series: Series) -> float:
    return max(ROUNDING, *(abs(point.residual or 0) for point in series.points))


def _lines_within(series: Series) -> list[tuple[float, float]]:
    """Return the outermost lines that are as far from a series' own at its ends as its farthest point is."""
    if not series.line:
        return []
    first, last, worst = series.points[0].services, series.points[-1].services, _worst(series)
    slope, base = series.line
    turns = [(low, (high - low) / (last - first)) for low, high in product((-worst, worst), repeat=2)]
    return [(slope + turn, base + low - turn * first) for low, turn in turns]


def agrees(a: Series, b: Series, where: Bounded) -> bool:
    """Return whether two series may cross: both have a line, and no measured point contradicts the crossing."""
    if "unclear" in (a.verdict, b.verdict) or not a.per_service or not b.per_service:
        return False
    opposite = {point.services: point for point in b.points}
    for x in a.points:
        y = opposite.get(x.services)
        if y is None or where.lo <= x.services <= where.hi:
            continue
        dearer = (a.per_service.estimate > b.per_service.estimate) == (x.services > where.estimate)
        if (x.hi < y.lo) if dearer else (x.lo > y.hi):
            return False
    return True
