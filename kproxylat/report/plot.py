"""Pictures of results, sweeps and comparisons, as PNG or SVG. The only importer of matplotlib.

The colours are Okabe and Ito's, which colour-blind people can distinguish; markers and line styles do without colour.
Longer than 350 lines: matplotlib has one importer.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kproxylat.analysis.comparable import counts_before, distribution
from kproxylat.analysis.compare import compare, read_comparisons, read_results
from kproxylat.analysis.comparison import Comparison
from kproxylat.analysis.published import Reproduction
from kproxylat.analysis.series import Series, build_series
from kproxylat.analysis.stats import Distribution, Interval
from kproxylat.errors import LogError, MachineError, UsageError
from kproxylat.report.run_table import name_unit
from kproxylat.results import Result
from kproxylat.system.files import save_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")
Line = tuple[float, float]


class Style(NamedTuple):
    """The look of a series or a run, in matplotlib's words."""

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
"""The styles of series or runs, in turn."""
FEW = 20
"""Up to this number of distinct values are drawn one by one."""
SMALL = 100
"""If the numbers of Services begin at 0 and do not exceed this, their axis is linear."""
LABELLED = 0.02
"""A single value has a label if at least this part of the calls has it."""


def plot(files: Sequence[str], output: Path, allowed: Collection[str] = (), seed: int = 0) -> None:
    """Draw a picture of what the files hold: a run's distribution, a sweep's series, or two files compared.

    :param files: one result, log, sweep or comparison; or two results, logs or sweeps, to be compared.
    :param output: name of the picture; its suffix chooses PNG or SVG.
    :param allowed: reasons not to compare that are ignored.
    :raises UsageError: another suffix, or more than two files.
    :raises MachineError: matplotlib is missing, or the file cannot be written.
    :raises LogError: a file cannot be read, or holds nothing to draw.
    """
    check_output(files, output)
    figure, [axes] = _make_figure()
    pairs = compare(files[0], files[1], allowed, seed) if len(files) == 2 else read_comparisons(files[0])
    if pairs and len(pairs[0].lookups) > 1:
        draw_ratios(axes, pairs)
    elif pairs and len(files) == 1:
        draw_figures(axes, pairs[0])
    elif pairs:
        sides = [(f"{side}: ", result) for side, name in zip("AB", files, strict=True) for result in read_results(name)]
        draw_distributions(axes, sides)
        _write_statement(axes, pairs[0])
    else:
        results = read_results(files[0])
        series = [line for line in build_series(results, seed) if len(line.points) > 1]
        if series:
            draw_series(axes, series, any(map(counts_before, results)))
        else:
            draw_distributions(axes, [("", result) for result in results])
    _save(figure, output)


def plot_clocks(every: Sequence[Sequence[Series]], output: Path) -> None:
    """Draw the same sweep by several clocks, side by side.

    :param every: the series of each clock.
    :raises MachineError: matplotlib is missing, or the file cannot be written.
    """
    figure, axes = _make_figure(wide=len(every))
    for one, series in zip(axes, every, strict=True):
        draw_series(one, sorted(series, key=lambda line: line.name))
    _save(figure, output)


def plot_reproduction(reproduction: Reproduction, output: Path) -> None:
    """Draw published and measured times over numbers of Services, one part for each percentile.

    :raises MachineError: matplotlib is missing, or the file cannot be written.
    """
    names = list(dict.fromkeys(figure.percentile for figure in reproduction.figures))
    if not names:
        raise MachineError("nothing was measured that was published", "measure again")
    figure, every = _make_figure(wide=len(names))
    figure.set_size_inches(max(4.6 * len(names), 7), 5.2)
    more = " more than at the least number" if reproduction.published.growth_only else ""
    for axes, percentile in zip(every, names, strict=True):
        rows = [row for row in reproduction.figures if row.percentile == percentile]
        theirs = {mode: [row for row in rows if row.mode == mode] for mode in dict.fromkeys(row.mode for row in rows)}
        for (mode, own), marker in zip(theirs.items(), "sD", strict=False):
            points = sorted({(row.services, row.published) for row in own})
            axes.plot(*zip(*points, strict=True), color="#000000", linestyle=":", marker=marker, markerfacecolor="none",
                      markersize=9, label=f"{mode}, published")  # fmt: skip
        series = {name: [row for row in rows if f"{row.mode}/{row.backend}" == name]
                  for name in dict.fromkeys(f"{row.mode}/{row.backend}" for row in rows)}  # fmt: skip
        for (name, own), style in zip(series.items(), STYLES, strict=False):
            values = [Interval(row.measured.estimate, row.measured.lo, row.measured.hi) for row in own]
            sizes = [row.services for row in own]
            _draw_points(axes, style, f"{name}, measured", sizes, values)
            axes.plot(sizes, [value.estimate for value in values], color=style.color, linestyle=style.line)
        axes.set_title(f"p{percentile}; bars: 95% bounds", fontsize="small", loc="left")
        axes.set_xlabel("Services")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_ylim(bottom=0)
        axes.set_ylabel(f"first packet, us{more}")
        _write_legend(axes)
    _save(figure, output)


def _save(figure: Figure, output: Path) -> None:
    # The same picture gives the same file: without date, version and random names.
    no_date: dict[str, Any] = {"Date": None} if output.suffix.lower() == ".svg" else {"Software": None}
    picture = BytesIO()
    figure.savefig(picture, format=output.suffix[1:].lower(), metadata=no_date)
    save_file(output, picture.getvalue(), "--output", replace=True)


def check_output(files: Sequence[str], output: Path) -> None:
    """Check the arguments of :func:`plot` before any file is read.

    :raises UsageError: another suffix than PNG's or SVG's, or more than two files.
    """
    if output.suffix.lower() not in FORMATS:
        raise UsageError(f"{output} is neither PNG nor SVG", "--output takes a name that ends with .png or .svg")
    if len(files) > 2:
        raise UsageError(f"{len(files)} files are too many for a picture", "name one, or two to compare")


def _make_figure(wide: int = 0) -> tuple[Figure, list[Axes]]:
    """Return a figure with one pair of axes; or with ``wide`` parts side by side, each with its own axes and legend."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MachineError(f"plot needs matplotlib: {error}", "pip install 'kproxylat[plot]'") from None
    matplotlib.rcParams["svg.hashsalt"] = "kproxylat"
    figure = Figure(figsize=(7.5 * max(wide, 1), 5.2), dpi=150, layout="constrained")
    parts: list[Any] = [*figure.subfigures(1, wide, squeeze=False)[0]] if wide else [figure]
    every: list[Axes] = [part.subplots() for part in parts]
    for axes in every:
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, every


def draw_distributions(axes: Axes, results: Sequence[tuple[str, Result]]) -> None:
    """Draw the lookups of runs: the calls of each value if the values are few, else the distribution function.

    Repeats share a style and an entry of the legend.

    :param results: each with a prefix of its name in the legend.
    :raises LogError: none of the runs kept values.
    """
    drawn: dict[str, list[Distribution]] = {}
    units: set[str] = set()
    measured = "lookup"
    for prefix, result in results:
        probe = result.main_probe
        if probe and (calls := distribution(probe)):
            units.add(name_unit(probe.unit, result.run.emulated))
            measured = probe.measured
            drawn.setdefault(prefix + _name_run(result), []).append(calls)
    if not drawn:
        raise LogError("nothing to draw: the runs kept no values")
    axes.set_xlabel(f"{'cost of a lookup' if measured == 'lookup' else measured}, {' and '.join(sorted(units))}")
    merged = {name: _merge(runs) for name, runs in drawn.items()}
    labels = [
        f"{name} ({f'{len(runs)} runs, ' if runs[1:] else ''}{merged[name].count:,} calls)"
        for name, runs in drawn.items()
    ]
    if all(calls.exact and len(calls.lows) <= FEW for calls in merged.values()):
        _draw_stems(axes, dict(zip(labels, merged.values(), strict=True)))
        _write_legend(axes)
    else:
        _draw_shares(axes, dict(zip(labels, drawn.values(), strict=True)))
        _write_legend(axes, "marks: 50, 95 and 99 %")


def _merge(runs: Sequence[Distribution]) -> Distribution:
    """Add up the counts of repeats, row by row."""
    counts: dict[tuple[float, float], int] = {}
    for run in runs:
        for lo, hi, count in zip(run.lows, run.highs, run.counts, strict=True):
            counts[lo, hi] = counts.get((lo, hi), 0) + count
    return Distribution((lo, hi, count) for (lo, hi), count in counts.items())


def _write_legend(axes: Axes, title: str | None = None) -> None:
    """Write the legend below the axes, so that it covers nothing."""
    labels = axes.get_legend_handles_labels()[1]
    figure: Any = axes.figure
    columns = 2 if len(labels) > 2 and max(map(len, labels)) < 50 else 1
    figure.legend(loc="outside lower left", ncols=columns, fontsize="small", title=title, title_fontsize="small")


def _draw_stems(axes: Axes, drawn: Mapping[str, Distribution]) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = (edge(value for calls in drawn.values() for value in calls.lows) for edge in (min, max))
    for number, ((label, calls), style) in enumerate(zip(drawn.items(), cycle(STYLES), strict=False)):
        axes.vlines(calls.lows, 0.5, calls.counts, color=style.color, linestyle=style.line, linewidth=1.5)
        # Hollow, and smaller from run to run, so that equal values show each other.
        axes.plot(calls.lows, calls.counts, label=label, color=style.color, linestyle="none", marker=style.marker,
                  markerfacecolor="none", markersize=max(11 - 2 * number, 4), markeredgewidth=1.6)  # fmt: skip
        for value, count in zip(calls.lows, calls.counts, strict=True):
            if count >= LABELLED * calls.count:
                left, up = value > (low + high) / 2, 5 + 12 * number
                axes.annotate(f"{value:,.0f}: {count:,} calls", (value, count), xytext=(-9 if left else 9, up),
                              ha="right" if left else "left", textcoords="offset points", color=style.color,
                              fontsize="small")  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(0.5, 8 * max(calls.count for calls in drawn.values()))
    axes.set_ylabel("calls (logarithmic)")
    axes.set_xlim(low - max(2, 0.06 * (high - low)), high + max(2, 0.06 * (high - low)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _number_plainly(axes.yaxis, (1,))


def _draw_shares(axes: Axes, drawn: Mapping[str, Sequence[Distribution]]) -> None:
    for (label, runs), style in zip(drawn.items(), cycle(STYLES), strict=False):
        for number, calls in enumerate(runs):
            shares = [end / calls.count for end in calls.ends]
            axes.step([calls.highs[0], *calls.highs], [0, *shares], where="post", label="_" if number else label,
                      color=style.color, linestyle=style.line, linewidth=1 if runs[1:] else 1.8)  # fmt: skip
            for p in (0.5, 0.95, 0.99):
                axes.plot(calls.quantile(p)[1], p, marker=style.marker, color=style.color, markersize=7)
    axes.set_xscale("log")
    _number_plainly(axes.xaxis)
    axes.set_xlabel(f"{axes.get_xlabel()} (logarithmic)")
    axes.set_ylabel("share of the calls that cost at most so much")
    axes.set_ylim(0, 1.03)


def draw_series(axes: Axes, every: Sequence[Series], before: bool = False) -> None:
    """Draw the cost of a lookup over numbers of Services, the lines through it, and the bounds of each point.

    :param before: the points are one ruleset's Services, each with the number of Services before it.
    """
    for series, style in zip(every, cycle(STYLES), strict=False):
        label = f"{series.name}: {series.verdict}"
        slope, base = series.per_service, series.base
        # A slope that hash effects cause in counts of instructions is not a Service's cost.
        if slope and not (series.verdict == "O(1)" and series.level == 1):
            label += f", {slope.estimate:.4g} per Service"
            label += f" ({slope.lo:.4g} to {slope.hi:.4g})" if series.level < 1 else ""
        costs = [Interval(point.cost, point.lo, point.hi) for point in series.points]
        sizes = [point.services for point in series.points]
        _draw_points(axes, style, label, sizes, costs)
        if slope and base:
            _draw_curve(axes, style, sizes, (slope.estimate, base.estimate))
    first = every[0]
    marks = f"bars: {first.level:.0%} bounds of the median"
    if first.level == 1:
        repeated = any(point.runs > 1 for series in every for point in series.points)
        marks = "bars: least and greatest of the repeats" if repeated else "marks: exact values"
    scale = _scale_sizes(axes, [point.services for series in every for point in series.points])
    axes.set_xlabel(f"Services{' before the one that is looked up' if before else ''}{scale}")
    axes.set_ylabel(f"{first.figure} {first.measured}, {name_unit(first.unit, first.emulated)}{scale}")
    axes.set_title(f"{marks}; lines: base + cost per Service", fontsize="small", loc="left")
    _write_legend(axes)
    if scale:
        axes.set_yscale("log")
        _number_plainly(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:,.0f}")


def _draw_points(axes: Axes, style: Style, label: str, sizes: Sequence[int], values: Sequence[Interval]) -> None:
    """Draw values over numbers of Services with their bounds, and an entry of the legend."""
    bars = [[value.estimate - value.lo for value in values], [value.hi - value.estimate for value in values]]
    axes.errorbar(sizes, [value.estimate for value in values], yerr=bars, linestyle="none", capsize=4,
                  color=style.color, marker=style.marker, markersize=3 if len(sizes) > FEW else None)  # fmt: skip
    axes.plot([], [], color=style.color, linestyle=style.line, marker=style.marker, label=label)


def _draw_curve(axes: Axes, style: Style, sizes: Sequence[int], line: Line, divisor: Line = (0, 1)) -> None:
    """Draw a line (slope, base) divided by another; the first steps are closer, for a logarithmic axis."""
    span = sizes[-1] - sizes[0]
    steps = sorted({*sizes, *(sizes[0] + span * (10 ** (3 * at / 200) - 1) / 999 for at in range(201))})
    values = [(line[1] + line[0] * size) / (divisor[1] + divisor[0] * size) for size in steps]
    axes.plot(steps, values, color=style.color, linestyle=style.line, linewidth=1.2)


def _scale_sizes(axes: Axes, sizes: Sequence[int]) -> str:
    """Scale the axis of numbers of Services: linear if these are small or many, else logarithmic.

    :return: an addition to the axis' label.
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


def draw_ratios(axes: Axes, pairs: Sequence[Comparison]) -> None:
    """Draw the ratio of B's cost to A's over numbers of Services, with the bounds."""
    for pair, style in zip(pairs, cycle(STYLES), strict=False):
        label = f"{pair.a.mode}/{pair.a.backend}" if pair.a.name == "A" else f"{pair.b.name} by {pair.a.name}"
        rows = [(lookup.services[0] or 0, lookup.main.ratio) for lookup in pair.lookups if lookup.main.ratio]
        sizes = [size for size, _ in rows]
        _draw_points(axes, style, label, sizes, [ratio for _, ratio in rows])
        lines = [line for side in pair.series if (line := side.line)]
        if len(lines) == 2:
            _draw_curve(axes, style, sizes, lines[1], divisor=lines[0])
    axes.axhline(1, color="black", linewidth=1)
    lookups = [lookup for pair in pairs for lookup in pair.lookups]
    ratios = [lookup.main.ratio.estimate for lookup in lookups if lookup.main.ratio]
    if ratios and min(ratios) > 0 and max(ratios) / min(ratios) > 2:
        axes.set_yscale("log")
        _number_plainly(axes.yaxis)
    axes.set_xlabel(f"Services{_scale_sizes(axes, [lookup.services[0] or 0 for lookup in lookups])}")
    axes.set_ylabel(_label_ratio(pairs[0]))
    title = f"above 1 B costs more; {_name_bars(lookups[0].level)}; lines: of the lines through both sweeps"
    axes.set_title(title, fontsize="small", loc="left")
    _write_legend(axes)


def _label_ratio(pair: Comparison) -> str:
    return f"B's {pair.measured} by A's (both in {name_unit(pair.unit, pair.emulated)})"


def _name_bars(level: float) -> str:
    return "exact values" if level == 1 else f"bars: {level:.1%} bounds"


def draw_figures(axes: Axes, pair: Comparison) -> None:
    """Draw the ratio of B's cost to A's in each figure of a single pair, with the bounds."""
    contrast, style = pair.lookups[0], STYLES[0]
    rows = [(figure.name, figure.ratio) for figure in contrast.figures if figure.ratio]
    for at, (_, ratio) in enumerate(rows):
        bars = [[ratio.estimate - ratio.lo], [ratio.hi - ratio.estimate]]
        axes.errorbar([ratio.estimate], [at], xerr=bars, capsize=4, color=style.color, marker=style.marker)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), ["median" if name == "p50" else name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"{_label_ratio(pair)}; {_name_bars(contrast.level)}")
    axes.set_ylabel("figure")
    _write_statement(axes, pair)


def _write_statement(axes: Axes, pair: Comparison) -> None:
    axes.set_title("\n".join(textwrap.wrap(pair.statement, 100)), fontsize="small", loc="left")


def _number_plainly(axis: Any, at: Sequence[int] = (1, 2, 5)) -> None:
    """Write 1,000 instead of 10³ on a logarithmic axis, at ``at`` times each power of ten (only 1 for many powers)."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    at = at if low <= 0 or high / low < 1000 else (1,)
    axis.set_major_locator(LogLocator(subs=at, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _name_run(result: Result) -> str:
    run = result.run
    size = f", {run.services:,} Services" if run.services is not None else ""
    return f"{'/'.join(run.rules)}{size}"
