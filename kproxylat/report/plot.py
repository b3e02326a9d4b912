"""Pictures of results, sweeps and comparisons, as PNG or SVG. The only importer of matplotlib.

Colours are Okabe and Ito's, which the colour-blind tell apart; markers, line styles and hatches do without colour.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kproxylat.analysis.comparable import counts_before, distribution
from kproxylat.analysis.compare import compare, read_comparisons, read_results
from kproxylat.analysis.comparison import Comparison
from kproxylat.analysis.series import Series, build_series
from kproxylat.analysis.stats import Distribution
from kproxylat.errors import LogError, MachineError, UsageError
from kproxylat.results import Result
from kproxylat.system.files import save_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")


class Style(NamedTuple):
    """How a series or a run is drawn: matplotlib's words."""

    color: str
    line: Any
    marker: str


STYLES = (
    Style("#0072B2", "-", "o"),
    Style("#D55E00", "--", "s"),
    Style("#009E73", "-.", "^"),
    Style("#CC79A7", ":", "D"),
    Style("#000000", (0, (5, 1, 1, 1, 1, 1)), "v"),
)
"""Of each series or run in turn."""
FEW = 20
"""Up to so many distinct values are drawn one by one,"""
SMALL = 100
"""Numbers of Services from 0 to so many at most are drawn on linear axes."""
LABELLED = 0.02
"""with a label if so large a part of the calls has them."""
_SIZE = (7.5, 5.2)


def plot(files: Sequence[str], output: Path, allowed: Collection[str] = (), seed: int = 0) -> None:
    """Draw a picture of what the files hold: a run's distribution, a sweep's series, or two files compared.

    :param files: one result, log, sweep or comparison; or two of the former, to be compared.
    :param output: where to, by its suffix as PNG or SVG.
    :param allowed: reasons not to compare that are to be overruled.
    :raises UsageError: another suffix, or more than two files.
    :raises MachineError: matplotlib is missing, or the file cannot be written.
    :raises LogError: a file cannot be read, or holds nothing to draw.
    """
    check_output(files, output)
    figure, axes = _make_figure()
    found = compare(files[0], files[1], allowed, seed) if len(files) == 2 else read_comparisons(files[0])
    if found and len(found[0].lookups) > 1:
        draw_ratios(axes, found)
    elif found and len(files) == 1:
        draw_figures(axes, found[0])
    elif found:
        sides = [(f"{side}: ", each) for side, name in zip("AB", files, strict=True) for each in read_results(name)]
        draw_distributions(axes, [each for _, each in sides], [side for side, _ in sides])
        _write_statement(axes, found[0])
    else:
        results = read_results(files[0])
        series = [each for each in build_series(results, seed) if len(each.points) > 1]
        if series:
            draw_series(axes, series, any(map(counts_before, results)))
        else:
            draw_distributions(axes, results)
    # The same picture gives the same file: neither date nor version in it, nor random names.
    no_date: dict[str, Any] = {"Date": None} if output.suffix.lower() == ".svg" else {"Software": None}
    picture = BytesIO()
    figure.savefig(picture, format=output.suffix[1:].lower(), metadata=no_date)
    save_file(output, picture.getvalue(), "--output", replace=True)


def check_output(files: Sequence[str], output: Path) -> None:
    """Refuse what cannot be drawn, before anything is read.

    :raises UsageError: another suffix than PNG's or SVG's, or more than two files.
    """
    if output.suffix.lower() not in FORMATS:
        raise UsageError(f"{output} is neither PNG nor SVG", "--output takes a name that ends with .png or .svg")
    if len(files) > 2:
        raise UsageError(f"{len(files)} files are too many for a picture", "name one, or two to compare")


def _make_figure() -> tuple[Figure, Axes]:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MachineError(f"plot needs matplotlib: {error}", "pip install 'kproxylat[plot]'") from None
    matplotlib.rcParams["svg.hashsalt"] = "kproxylat"
    figure = Figure(figsize=_SIZE, dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def draw_distributions(axes: Axes, results: Sequence[Result], names: Sequence[str] = ()) -> None:
    """Draw the lookups of runs: the calls of each value where these are few, else which part cost at most so much.

    Repeats share a style and an entry of the legend.

    :param names: what precedes each run's name in the legend.
    :raises LogError: none of the runs kept values.
    """
    drawn: dict[str, list[Distribution]] = {}
    units: set[str] = set()
    for number, result in enumerate(results):
        probe = result.main_probe
        found = distribution(probe) if probe else None
        if probe and found:
            units.add(f"{'emulated ' if result.run.emulated else ''}{probe.unit}")
            drawn.setdefault(f"{names[number] if names else ''}{_say_run(result)}", []).append(found)
    if not drawn:
        raise LogError("nothing to draw: the runs kept no values")
    axes.set_xlabel(f"cost of a lookup, {' and '.join(sorted(units))}")
    merged = {name: _merge(runs) for name, runs in drawn.items()}
    labels = {
        name: f"{name} ({f'{len(runs)} runs, ' if runs[1:] else ''}{merged[name].count:,} calls)"
        for name, runs in drawn.items()
    }
    if all(found.exact and len(found.lows) <= FEW for found in merged.values()):
        _draw_stems(axes, [(labels[name], found) for name, found in merged.items()])
        _write_legend(axes)
    else:
        _draw_shares(axes, [(labels[name], runs) for name, runs in drawn.items()])
        _write_legend(axes, "marks: 50, 95 and 99 %")


def _merge(runs: Sequence[Distribution]) -> Distribution:
    """Add repeats up: those that are exact value by value."""
    counts: dict[tuple[float, float], int] = {}
    for run in runs:
        for lo, hi, begin, end in zip(run.lows, run.highs, [0, *run.ends], run.ends, strict=False):
            counts[lo, hi] = counts.get((lo, hi), 0) + end - begin
    return Distribution((lo, hi, count) for (lo, hi), count in counts.items())


def _write_legend(axes: Axes, title: str | None = None) -> None:
    """Write the legend below the axes, where it covers nothing."""
    labels = axes.get_legend_handles_labels()[1]
    figure: Any = axes.figure
    columns = 2 if len(labels) > 2 and max(map(len, labels)) < 50 else 1
    figure.legend(loc="outside lower left", ncols=columns, fontsize="small", title=title, title_fontsize="small")


def _draw_stems(axes: Axes, drawn: Sequence[tuple[str, Distribution]]) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = (edge(value for _, found in drawn for value in found.lows) for edge in (min, max))
    for number, ((label, found), style) in enumerate(zip(drawn, cycle(STYLES), strict=False)):
        counts = [end - begin for begin, end in zip([0, *found.ends], found.ends, strict=False)]
        axes.vlines(found.lows, 0.5, counts, color=style.color, linestyle=style.line, linewidth=1.5)
        # Hollow, and smaller from run to run, so that equal values show each other.
        axes.plot(found.lows, counts, label=label, color=style.color, linestyle="none", marker=style.marker,
                  markerfacecolor="none", markersize=max(11 - 2 * number, 4), markeredgewidth=1.6)  # fmt: skip
        for value, count in zip(found.lows, counts, strict=True):
            if count >= LABELLED * found.count:
                left, up = value > (low + high) / 2, 5 + 12 * number
                axes.annotate(f"{value:,.0f}: {count:,} calls", (value, count), xytext=(-9 if left else 9, up),
                              ha="right" if left else "left", textcoords="offset points", color=style.color,
                              fontsize="small")  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(0.5, 8 * max(found.count for _, found in drawn))
    axes.set_ylabel("calls (logarithmic)")
    axes.set_xlim(low - max(2, 0.06 * (high - low)), high + max(2, 0.06 * (high - low)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _number_plainly(axes.yaxis, (1,))


def _draw_shares(axes: Axes, drawn: Sequence[tuple[str, Sequence[Distribution]]]) -> None:
    for (label, runs), style in zip(drawn, cycle(STYLES), strict=False):
        for number, found in enumerate(runs):
            shares = [end / found.count for end in found.ends]
            axes.step([found.highs[0], *found.highs], [0, *shares], where="post", label="_" if number else label,
                      color=style.color, linestyle=style.line, linewidth=1 if runs[1:] else 1.8)  # fmt: skip
            for p in (0.5, 0.95, 0.99):
                axes.plot(found.quantile(p)[1], p, marker=style.marker, color=style.color, markersize=7)
    axes.set_xscale("log")
    _number_plainly(axes.xaxis)
    axes.set_xlabel(f"{axes.get_xlabel()} (logarithmic)")
    axes.set_ylabel("share of the calls that cost at most so much")
    axes.set_ylim(0, 1.03)


def draw_series(axes: Axes, found: Sequence[Series], before: bool = False) -> None:
    """Draw what a lookup costs over numbers of Services, the lines through it, and the bounds of each point.

    :param before: the points are one ruleset's Services, each with the number of those before it.
    """
    many = max(len(series.points) for series in found) > FEW
    for series, style in zip(found, cycle(STYLES), strict=False):
        points = series.points
        below = [point.cost - point.lo for point in points]
        above = [point.hi - point.cost for point in points]
        label = f"{series.name}: {series.verdict}"
        # What hash effects make of a line through counts of instructions is no cost of a Service.
        if series.per_service and not (series.verdict == "O(1)" and series.level == 1):
            label += f", {series.per_service.estimate:.4g} per Service"
            if series.level < 1:
                label += f" ({series.per_service.lo:.4g} to {series.per_service.hi:.4g})"
        sizes = [point.services for point in points]
        axes.errorbar(sizes, [point.cost for point in points], yerr=[below, above], linestyle="none", capsize=4,
                      color=style.color, marker=style.marker, markersize=3 if many else None)  # fmt: skip
        axes.plot([], [], color=style.color, linestyle=style.line, marker=style.marker, label=label)
        if series.per_service and series.base:
            # A line is a curve on logarithmic axes.
            steps = _space(sizes)
            costs = [series.base.estimate + series.per_service.estimate * size for size in steps]
            axes.plot(steps, costs, color=style.color, linestyle=style.line, linewidth=1.2)
    first = found[0]
    marks = f"bars: {first.level:.0%} bounds of the median"
    if first.level == 1:
        repeated = any(point.runs > 1 for series in found for point in series.points)
        marks = "bars: least and greatest of the repeats" if repeated else "marks: exact values"
    emulated = "emulated " if first.emulated else ""
    scale = _scale_sizes(axes, [point.services for series in found for point in series.points])
    axes.set_xlabel(f"Services{' before the one that is looked up' if before else ''}{scale}")
    axes.set_ylabel(f"{first.figure} lookup, {emulated}{first.unit}{scale}")
    axes.set_title(f"{marks}; lines: base + cost per Service", fontsize="small", loc="left")
    _write_legend(axes)
    if scale:
        axes.set_yscale("log")
        _number_plainly(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:,.0f}")


def _scale_sizes(axes: Axes, sizes: Sequence[int]) -> str:
    """Scale the axis of numbers of Services: linear if these are small or many, else logarithmic.

    :return: what its label has to say of that.
    """
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    known = sorted(set(sizes))
    if len(known) > FEW or (known[0] == 0 and known[-1] <= SMALL):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        return ""
    if known[0] > 0:
        axes.set_xscale("log")
        _number_plainly(axes.xaxis)
        return " (logarithmic)"
    # Up to the least number above 0 the axis is linear; matplotlib's own ticks would crowd there.
    axes.set_xscale("symlog", linthresh=known[1], linscale=0.5)
    axes.set_xlim(left=-known[1] / 5)
    ticks = [0]
    for size in known[1:]:
        ticks += [size] if size > 1.6 * ticks[-1] else []
    _number_plainly(axes.xaxis)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    return " (logarithmic)"


def draw_ratios(axes: Axes, found: Sequence[Comparison]) -> None:
    """Draw what B costs by A over numbers of Services, with the bounds."""
    for each, style in zip(found, cycle(STYLES), strict=False):
        rows = [(one.services[0] or 0, one.main.ratio) for one in each.lookups if one.main.ratio]
        ratios = [ratio for _, ratio in rows]
        bars = [[ratio.estimate - ratio.lo for ratio in ratios], [ratio.hi - ratio.estimate for ratio in ratios]]
        name = f"{each.a.mode}/{each.a.backend}"
        label = name if each.a.name == "A" else f"{each.b.name} by {each.a.name}"
        sizes = [size for size, _ in rows]
        axes.errorbar(sizes, [ratio.estimate for ratio in ratios], yerr=bars, capsize=4, linestyle="none",
                      color=style.color, marker=style.marker, markersize=3 if len(rows) > FEW else None)  # fmt: skip
        axes.plot([], [], color=style.color, linestyle=style.line, marker=style.marker, label=label)
        lines = [(one.per_service.estimate, one.base.estimate) for one in each.series if one.per_service and one.base]
        if len(lines) == 2:
            (slope_a, base_a), (slope_b, base_b) = lines
            steps = _space(sizes)
            curve = [(base_b + slope_b * size) / (base_a + slope_a * size) for size in steps]
            axes.plot(steps, curve, color=style.color, linestyle=style.line, linewidth=1.2)
    axes.axhline(1, color="black", linewidth=1)
    first = found[0]
    every = [one.main.ratio.estimate for each in found for one in each.lookups if one.main.ratio]
    if every and min(every) > 0 and max(every) / min(every) > 2:
        axes.set_yscale("log")
        _number_plainly(axes.yaxis)
    level = first.lookups[0].level
    scale = _scale_sizes(axes, [one.services[0] or 0 for each in found for one in each.lookups])
    axes.set_xlabel(f"Services{scale}")
    emulated = "emulated " if first.emulated else ""
    axes.set_ylabel(f"cost of B's lookup by A's (both in {emulated}{first.unit})")
    bounds = "exact values" if level == 1 else f"bars: {level:.1%} bounds"
    axes.set_title(
        f"above 1 B costs more; {bounds}; lines: of the lines through both sweeps", fontsize="small", loc="left"
    )
    _write_legend(axes)


def _space(sizes: Sequence[int]) -> list[float]:
    """Return numbers of Services to draw a curve through: closer together where a logarithmic axis shows more."""
    span = sizes[-1] - sizes[0]
    return sorted({*sizes, *(sizes[0] + span * (10 ** (3 * at / 200) - 1) / 999 for at in range(201))})


def draw_figures(axes: Axes, found: Comparison) -> None:
    """Draw what B costs by A in each figure of a single pair, with the bounds."""
    each = found.lookups[0]
    rows = [(one.name, one.ratio) for one in each.figures if one.ratio]
    style = STYLES[0]
    for at, (_, ratio) in enumerate(rows):
        bars = [[ratio.estimate - ratio.lo], [ratio.hi - ratio.estimate]]
        axes.errorbar([ratio.estimate], [at], xerr=bars, capsize=4, color=style.color, marker=style.marker)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), ["median" if name == "p50" else name for name, _ in rows])
    axes.invert_yaxis()
    bounds = "exact values" if each.level == 1 else f"bars: {each.level:.1%} bounds"
    emulated = "emulated " if found.emulated else ""
    axes.set_xlabel(f"cost of B's lookup by A's (both in {emulated}{found.unit}); {bounds}")
    axes.set_ylabel("figure")
    _write_statement(axes, found)


def _write_statement(axes: Axes, found: Comparison) -> None:
    axes.set_title("\n".join(textwrap.wrap(found.statement, 100)), fontsize="small", loc="left")


def _number_plainly(axis: Any, at: Sequence[int] = (1, 2, 5)) -> None:
    """Write 1,000 in place of 10³ on a logarithmic axis, ``at`` these of each power of ten; of many powers each one."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    at = at if low <= 0 or high / low < 1000 else (1,)
    axis.set_major_locator(LogLocator(subs=at, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _say_run(result: Result) -> str:
    run = result.run
    size = f", {run.services:,} Services" if run.services is not None else ""
    return f"{run.mode or 'unknown mode'}/{run.backend or 'unknown'}{size}"
