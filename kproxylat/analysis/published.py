"""Published measurements beside our own: figures, slopes, and verdicts by shape. Pure, but for the data files.

The data files are templates/published/NAME.json; adding a measurement is adding a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean

from kproxylat.analysis.stats import crossing, fit_line
from kproxylat.errors import UsageError
from kproxylat.results import Bounded, Result
from kproxylat.results_json import build

FLAT = 0.15
"""A median that changes by no more than this part of the first one is flat."""
AS_PUBLISHED, UNCLEAR, NOT_AS_PUBLISHED = "as published", "unclear", "not as published"


@dataclass(frozen=True)
class Row:
    """Published times of one mode at one number of Services: percentile -> microseconds."""

    mode: str
    services: int
    us: Mapping[str, float]


@dataclass(frozen=True)
class Published:
    """A published measurement, as its data file has it.

    :param differs: what may explain that our numbers differ.
    :param reading_error_us: how far a published figure may be from the truth.
    :param growth_only: only what more Services add is comparable, not the times themselves.
    :param places: Services that are connected to, evenly spread (0: the one at ``position``).
    :param quick: numbers of Services of a quick reproduction.
    :param shapes: mode -> "line" (it grows with the Services) or "flat".
    :param before_ns: mode -> nanoseconds that each Service before it adds to a Service's first packet.
    """

    title: str
    address: str
    date: str
    method: str
    differs: tuple[str, ...]
    reading_error_us: float
    growth_only: bool
    places: int
    position: str
    quick: tuple[int, ...]
    shapes: Mapping[str, str]
    rows: tuple[Row, ...]
    before_ns: Mapping[str, float] = field(default_factory=dict)

    def list_sizes(self, quick: bool) -> list[int]:
        """Return the numbers of Services, ascending."""
        return sorted(self.quick if quick else {row.services for row in self.rows})

    def find_times(self, mode: str, sizes: Iterable[int]) -> dict[int, Mapping[str, float]]:
        """Return number of Services -> percentile -> microseconds."""
        return {row.services: row.us for row in self.rows if row.mode == mode and row.services in set(sizes)}


@dataclass(frozen=True)
class Figure:
    """One published figure and ours, in microseconds; ``ratio`` is ours by theirs."""

    mode: str
    backend: str
    services: int
    percentile: str
    published: float
    measured: Bounded
    ratio: float | None


@dataclass(frozen=True)
class Slope:
    """What each Service adds, in nanoseconds.

    :param percentile: of the times; "" for the medians of the places over the Services before each.
    :param published: None: not published.
    """

    mode: str
    backend: str
    percentile: str
    published: float | None
    measured: Bounded
    ratio: float | None


@dataclass(frozen=True)
class Verdict:
    """Whether a shape is as published; ``evidence`` says why in one sentence."""

    subject: str
    state: str
    evidence: str


@dataclass(frozen=True)
class Reproduction:
    """A published measurement and ours."""

    name: str
    published: Published
    figures: tuple[Figure, ...]
    slopes: tuple[Slope, ...]
    verdicts: tuple[Verdict, ...]


Key = tuple[str, str]
"""Mode and backend."""
Times = dict[Key, dict[int, dict[str, Bounded]]]
"""Mode and backend -> number of Services -> percentile -> microseconds."""


def find_published() -> dict[str, Path]:
    """Return name -> data file."""
    # jinja2 makes --help slow.
    from kproxylat.templates import DIRECTORIES

    return {path.stem: path for folder in DIRECTORIES for path in sorted(folder.glob("published/*.json"))}


def read_published(name: str) -> Published:
    """Read a data file.

    :raises UsageError: the name is unknown.
    """
    files = find_published()
    if name not in files:
        raise UsageError(f"unknown measurement {name!r}", f"reproduce takes one of: {', '.join(files)}")
    published: Published = build(Published, json.loads(files[name].read_text(encoding="utf-8")))
    return published


def compare_published(name: str, published: Published, results: Iterable[Result]) -> Reproduction:
    """Compare our results with a published measurement.

    :param results: runs that timed first packets.
    """
    runs = [result for result in results if result.first_packet and result.run.services is not None]
    times = _collect_times(runs)
    if published.growth_only:
        for key, cells in times.items():
            least = cells[min(cells)]
            times[key] = {
                size: {name: _subtract(row[name], least[name]) for name in row} for size, row in cells.items()
            }
    figures, slopes = list[Figure](), list[Slope]()
    for (mode, backend), cells in times.items():
        theirs = published.find_times(mode, cells)
        if published.growth_only and theirs:
            first = theirs[min(theirs)]
            theirs = {size: {p: us - first[p] for p, us in row.items()} for size, row in theirs.items()}
        for size, row in theirs.items():
            for percentile, us in row.items():
                ours = cells[size][percentile]
                ratio = ours.estimate / us if us else None
                figures.append(Figure(mode, backend, size, percentile, us, ours, ratio))
        slopes += _fit_places((mode, backend), runs, published.before_ns.get(mode))
        slopes += _compare_slopes((mode, backend), cells, theirs)
    if published.growth_only:
        figures = [figure for figure in figures if figure.published]
    verdicts = (
        *_judge_shapes(published, times, slopes),
        *_judge_order(published, times),
        *_judge_crossing(published, times),
    )
    return Reproduction(name, published, tuple(figures), tuple(slopes), verdicts)


def _collect_times(runs: Iterable[Result]) -> Times:
    """Return the percentiles of all repeats: the mean of the estimates, and the outermost bounds."""
    every: dict[Key, dict[int, dict[str, list[Bounded]]]] = {}
    for result in runs:
        key, size = (result.run.mode or "", result.run.backend or ""), result.run.services or 0
        cell = every.setdefault(key, {}).setdefault(size, {})
        for name, percentile in result.first_packet.probe.percentiles.items() if result.first_packet else ():
            figures = (percentile.estimate or 0, percentile.lo or 0, percentile.hi or 0)
            cell.setdefault(name, []).append(Bounded(*(figure / 1000 for figure in figures)))
    return {
        key: {size: {name: _merge(repeats) for name, repeats in cells[size].items()} for size in sorted(cells)}
        for key, cells in every.items()
    }


def _merge(repeats: list[Bounded]) -> Bounded:
    estimate = fmean(repeat.estimate for repeat in repeats)
    return Bounded(estimate, min(repeat.lo for repeat in repeats), max(repeat.hi for repeat in repeats))


def _subtract(a: Bounded, b: Bounded) -> Bounded:
    if a == b:
        return Bounded(0, 0, 0)
    return Bounded(a.estimate - b.estimate, a.lo - b.hi, a.hi - b.lo)


def _compare_slopes(
    key: Key, cells: Mapping[int, Mapping[str, Bounded]], theirs: Mapping[int, Mapping[str, float]]
) -> Iterator[Slope]:
    """Yield what each Service adds to each percentile: a line's slope, with the bounds of its ends."""
    sizes = sorted(theirs)
    for percentile in theirs[sizes[0]] if len(sizes) > 1 else ():
        published = fit_line([(size, theirs[size][percentile] * 1000) for size in sizes])[0]
        slope = fit_line([(size, cells[size][percentile].estimate * 1000) for size in sizes])[0]
        ends = _subtract(cells[sizes[-1]][percentile], cells[sizes[0]][percentile])
        lo, hi = (1000 * end / (sizes[-1] - sizes[0]) for end in (ends.lo, ends.hi))
        measured = Bounded.around(slope, lo, hi)
        yield Slope(*key, percentile, published, measured, slope / published if published else None)


def _fit_places(key: Key, runs: Iterable[Result], published: float | None) -> Iterator[Slope]:
    """Yield what each Service before it adds to a Service's median: the line through the places of all runs."""
    slopes = []
    for result in runs:
        places = result.first_packet.places if result.first_packet else ()
        if (result.run.mode, result.run.backend) == key and len({place.before for place in places}) > 1:
            slopes.append(fit_line([(place.before, place.median.estimate) for place in places])[0])
    if slopes:
        slope = fmean(slopes)
        ratio = slope / published if published else None
        yield Slope(*key, "", published, Bounded(slope, min(slopes), max(slopes)), ratio)


def _judge_shapes(published: Published, times: Times, slopes: Iterable[Slope]) -> Iterator[Verdict]:
    """Judge each mode's median over the numbers of Services: does it grow, or is it flat?"""
    every = [slope for slope in slopes if slope.percentile in ("50", "")]
    # Over the places it is more exact than over the sizes.
    adds = {(slope.mode, slope.backend): slope for slope in sorted(every, key=lambda slope: not slope.percentile)}
    for key, cells in times.items():
        shape, sizes = published.shapes.get(key[0]), sorted(cells)
        if not shape or key not in adds:
            continue
        first, last = cells[sizes[0]]["50"], cells[sizes[-1]]["50"]
        slope = adds[key]
        evidence = (
            f"p50 from {first.estimate:,.1f} at {sizes[0]:,} to {last.estimate:,.1f} us at {sizes[-1]:,} Services, "
            f"a Service adds {slope.measured.estimate:,.1f} ns; published {slope.published or 0:,.1f}"
        )
        if shape == "line":
            grows, shrinks = first.hi < last.lo, first.lo > last.hi
            state = _state(grows or slope.measured.lo > 0, shrinks or slope.measured.hi < 0)
        else:
            least, most = first.estimate * (1 - FLAT), first.estimate * (1 + FLAT)
            evidence += f"; flat is within {FLAT:.0%}"
            contradicted = last.lo > first.hi * (1 + FLAT) or last.hi < first.lo * (1 - FLAT)
            state = _state(least <= last.lo <= last.hi <= most, contradicted)
        yield Verdict(f"{'/'.join(key)}: {'grows with the Services' if shape == 'line' else 'flat'}", state, evidence)


def _state(holds: bool, contradicted: bool) -> str:
    return NOT_AS_PUBLISHED if contradicted else AS_PUBLISHED if holds else UNCLEAR


def _judge_order(published: Published, times: Times) -> Iterator[Verdict]:
    """Judge for each percentile which mode is faster, wherever the published figures certainly differ."""
    names = dict.fromkeys(percentile for row in published.rows for percentile in row.us)
    for percentile in names:
        states, pairs, certain = [], [], 2 * published.reading_error_us
        for one, other in product(times, times):
            theirs = [published.find_times(key[0], times[key]) for key in (one, other)]
            for size in theirs[0]:
                if size in theirs[1] and theirs[1][size][percentile] - theirs[0][size][percentile] > certain:
                    faster, slower = times[one][size][percentile], times[other][size][percentile]
                    states.append(_state(faster.hi < slower.lo, faster.lo > slower.hi))
                    pairs.append(
                        f"{one[0]} {faster.estimate:,.1f} < {'/'.join(other)} {slower.estimate:,.1f} at {size:,}"
                    )
        if states:
            worst = next(state for state in (NOT_AS_PUBLISHED, UNCLEAR, AS_PUBLISHED) if state in states)
            shown = [pair for pair, state in zip(pairs, states, strict=True) if state == worst]
            yield Verdict(f"order of the modes at p{percentile}", worst, f"us: {'; '.join(shown)}")


def _judge_crossing(published: Published, times: Times) -> Iterator[Verdict]:
    """Judge whether the lines of a growing and a flat mode cross below all numbers of Services, as published."""
    for one, other in product(times, times):
        if (published.shapes.get(one[0]), published.shapes.get(other[0])) != ("line", "flat"):
            continue
        # Of a sweep that was cut short, a mode may lack numbers of Services.
        sizes = sorted(times[one].keys() & times[other].keys())
        if len(sizes) < 2:
            continue
        lines = [fit_line([(size, times[key][size]["50"].estimate) for size in sizes]) for key in (one, other)]
        theirs = [published.find_times(key[0], sizes) for key in (one, other)]
        drawn = [fit_line([(size, row[size]["50"]) for size in sizes]) for row in theirs]
        places = [_name_crossing(crossing(*pair)) for pair in (drawn, lines)]
        ends = [times[key][sizes[0]]["50"] for key in (one, other)]
        state = _state(ends[0].lo > ends[1].hi, ends[0].hi < ends[1].lo)
        yield Verdict(
            f"{'/'.join(one)} and {other[0]} cross below {sizes[0]:,} Services", state,
            f"the lines through p50 cross {places[1]}; published {places[0]}",
        )  # fmt: skip


def _name_crossing(where: float | None) -> str:
    return "nowhere above 0" if where is None else f"at {where:,.0f} Services"
