"""Pictures of results, sweeps, comparisons and reproductions.

Longer than 350 lines: the kinds of pictures share their axes, marks and words.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations, cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kproxylat.analysis.bill import Bill, cut
from kproxylat.analysis.comparable import counts_before, distribution, refuse_mixed_time
from kproxylat.analysis.compare import compare, cross, read_comparisons, read_results
from kproxylat.analysis.comparison import Comparison
from kproxylat.analysis.published import Reproduction
from kproxylat.analysis.series import Key, Series, build_series, find_key
from kproxylat.analysis.stats import Distribution
from kproxylat.errors import LogError, MachineError, UsageError
from kproxylat.report.columns import write_bounded
from kproxylat.report.figure import (
    INK,
    STYLES,
    Style,
    add_value,
    check_output,
    label_ends,
    make_figure,
    save_figure,
    shorten,
    write_below,
    write_beside,
)
from kproxylat.results import Bounded, Result, name_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = tuple[float, float]
FEW = 20
"""Up to this number of distinct values are drawn one by one."""
MOST = 60
"""The most series of a picture. Each pair of them is looked at for a crossing."""
SMALL = 100
"""If the numbers of Services begin at 0 and do not exceed this, their axis is linear."""
DECADE = 10
"""An axis is logarithmic if its greatest value is more than this many times its least."""
MANY = 300
"""More points than this show no values under the pointer: the tables have them."""
MARKS = (0.5, 0.95, 0.99)
"""Quantiles that are marked in a distribution."""
SUBJECTS = {
    "lookup": ("Cost of a Service lookup", "per Service lookup"),
    "first packet": ("Time of a first packet", "from SYN to SYN-ACK"),
    "send time": ("Send time of a packet", "per packet sent"),
}
"""What was measured, as :attr:`kproxylat.results.Probe.measured` has it -> the same in a title, and after a unit."""
UNITS = {"ns": "nanoseconds", "us": "microseconds"}


def plot(
    files: Sequence[str],
    output: Path,
    allowed: Collection[str] = (),
    seed: int = 0,
    title: str | None = None,
    force: bool = False,
) -> None:
    """Draw a picture of what the files hold: a run's distribution, a sweep's series, or two files compared.

    :param files: one result, log, sweep or comparison; or two results, logs or sweeps, to be compared.
    :param output: name of the picture; its suffix chooses PNG, SVG or PDF.
    :param allowed: reasons not to compare that are ignored.
    :param title: None: one that says what is drawn.
    :param force: replace any file, not only a picture of kproxylat.
    :raises UsageError: another suffix, or more than two files.
    :raises MachineError: matplotlib is missing, or the file cannot be written.
    :raises LogError: a file cannot be read, or holds nothing to draw.
    """
    check_output(output)
    if len(files) > 2:
        raise UsageError(f"{len(files)} files are too many for a picture", "name one, or two to compare")
    pairs = compare(files[0], files[1], allowed, seed) if len(files) == 2 else read_comparisons(files[0])
    if len(files) == 2 and len(pairs[0].lookups) == 1:
        sides = [(f"{side}: ", result) for side, name in zip("AB", files, strict=True) for result in read_results(name)]
        figure = picture_runs(sides, title, pairs[0].statement)
    elif pairs:
        figure = picture_comparisons(pairs, title)
    else:
        figure = picture_results(read_results(files[0]), title, seed)
    save_figure(figure, output, force)


def picture_results(results: Sequence[Result], title: str | None = None, seed: int = 0) -> Figure:
    """Draw a sweep's series, or the distributions of runs at one number of Services.

    :raises LogError: the runs hold nothing to draw, too much, or both real and emulated times.
    """
    series = [line for line in build_series(refuse_mixed_time(results), seed) if len(line.points) > 1]
    if not series:
        return picture_runs([("", result) for result in results], title)
    _check_number(len(series))
    before = any(map(counts_before, results))
    size = "the Services before it" if before else "the number of Services"
    figure, [axes] = make_figure(title or f"{SUBJECTS[series[0].measured][0]} by {size}", describe_origin(results))
    draw_series(axes, series, before, find_crossings(results, seed))
    return figure


def _check_number(number: int) -> None:
    if number > MOST:
        raise LogError(
            f"{number:,} series are too many for a picture, which has room for {MOST}", "name a file of fewer"
        )


def picture_runs(results: Sequence[tuple[str, Result]], title: str | None = None, statement: str = "") -> Figure:
    """Draw the distributions of runs; the parameters are those of :func:`draw_distributions`."""
    probe = next((probe for _, result in results if (probe := result.main_probe)), None)
    subject = SUBJECTS[probe.measured if probe else "lookup"][0]
    names = list(dict.fromkeys(name_run(result) for _, result in results))
    _check_number(len(names))
    title = title or f"{subject}, {' and '.join(names) if len(names) < 3 else f'{len(results)} runs'}"
    figure, [axes] = make_figure(title, describe_origin([result for _, result in results]))
    draw_distributions(axes, results, statement)
    return figure


def picture_comparisons(pairs: Sequence[Comparison], title: str | None = None) -> Figure:
    """Draw B's costs by A's: over numbers of Services, or in each figure of a single pair."""
    _check_number(len(pairs))
    first = pairs[0]
    names = ("B", "A") if first.a.name == "A" else (first.b.name, first.a.name)
    title = title or ("Modes compared" if pairs[1:] else f"{names[0]} compared with {names[1]}")
    origin = f"A: {first.a.file}; B: {first.b.file}; clock: {name_unit(first.unit, first.emulated)}"
    figure, [axes] = make_figure(title, origin)
    if any(len(pair.lookups) > 1 for pair in pairs):
        draw_ratios(axes, pairs)
    else:
        draw_figures(axes, first)
    return figure


def plot_clocks(every: Sequence[Sequence[Series]], output: Path, results: Sequence[Result] = ()) -> None:
    """Draw the same sweep by several clocks, side by side.

    :param every: the series of each clock.
    :param results: all runs, which tell where the numbers are from.
    :raises MachineError: matplotlib is missing, or the file cannot be written.
    """
    figure, axes = make_figure("What kube-proxy's rules cost, by two clocks", describe_origin(results), wide=len(every))
    for one, series in zip(axes, every, strict=True):
        draw_series(one, sorted(series, key=lambda line: line.name))
    save_figure(figure, output)


def picture_reproduction(reproduction: Reproduction) -> Figure:
    """Draw published and measured times over numbers of Services, one part for each percentile.

    :raises MachineError: matplotlib is missing, or nothing was measured that was published.
    """
    published = reproduction.published
    names = list(dict.fromkeys(figure.percentile for figure in reproduction.figures))
    if not names:
        raise MachineError("nothing was measured that was published", "measure again")
    origin = f"published: {published.date}, {published.address}; measured by the sender's clock"
    # A page has room for two side by side.
    wide, high = min(len(names), 2), (len(names) + 1) // 2
    figure, every = make_figure(published.title, origin, wide, high)
    figure.set_size_inches(max(4.6 * wide, 7), 5.2 * high)
    for axes in every[len(names) :]:
        axes.remove()
    more = " more than with the fewest" if published.growth_only else ""
    for axes, percentile in zip(every, names, strict=False):
        rows = [row for row in reproduction.figures if row.percentile == percentile]
        theirs = {mode: [row for row in rows if row.mode == mode] for mode in dict.fromkeys(row.mode for row in rows)}
        for (mode, own), marker in zip(theirs.items(), "sD", strict=False):
            points = sorted({(row.services, row.published) for row in own})
            axes.plot(*zip(*points, strict=True), color=INK, linestyle=":", marker=marker, markerfacecolor="none",
                      markersize=9, label=f"{mode}, published")  # fmt: skip
            for size, value in points:
                add_value(axes, size, value, f"{mode}, published, {size:,} Services: {value:,.1f} us")
        series = {name: [row for row in rows if f"{row.mode}/{row.backend}" == name]
                  for name in dict.fromkeys(f"{row.mode}/{row.backend}" for row in rows)}  # fmt: skip
        for (name, own), style in zip(series.items(), STYLES, strict=False):
            values = [row.measured for row in own]
            sizes = [row.services for row in own]
            _draw_points(axes, style, f"{name}, measured", sizes, values, ",.1f", "us")
            axes.plot(sizes, [value.estimate for value in values], color=style.color, linestyle=style.line,
                      marker=style.marker, label=f"{name}, measured")  # fmt: skip
        write_below(axes, f"p{percentile}; bars: 95% bounds")
        axes.set_xlabel("Number of Services")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_ylim(bottom=0)
        axes.set_ylabel(f"Microseconds from SYN to SYN-ACK{more}")
        _write_legend(axes)
    return figure


def picture_bill(bill: Bill) -> Figure:
    """Draw the CPU time of lookups by destination, the most expensive ones.

    :raises MachineError: matplotlib is missing.
    """
    origin = f"Linux {bill.kernel}, bpftrace {bill.bpftrace}, {bill.started[:10]}"
    figure, [axes] = make_figure("CPU time of Service lookups, by destination", origin)
    rows = sorted(cut(bill.rows, FEW), key=lambda row: -row.cpu_ms_per_s)
    bars = axes.barh([row.name or row.key for row in rows], [row.cpu_ms_per_s for row in rows], color=STYLES[0].color)
    for bar, row in zip(bars, rows, strict=True):
        bar.set_gid(f"value: {row.name or row.key}: {row.cpu_ms_per_s:,.2g} ms a second, {row.share.estimate:.2%}")
    axes.bar_label(bars, [f"{row.cpu_ms_per_s:,.2g}" for row in rows], padding=4, fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel("Milliseconds of CPU a second")
    axes.grid(visible=False, axis="y")
    figure.set_size_inches(7.5, 1.8 + 0.3 * len(rows))
    return figure


def describe_origin(results: Iterable[Result]) -> str:
    """Write where the numbers are from: kernel, bpftrace, clock, date and version."""
    origins: dict[str, None] = {}
    for result in results:
        run = result.run
        facts = (
            run.kernel and f"Linux {run.kernel}",
            f"bpftrace {run.bpftrace}" if run.bpftrace else "not traced" if run.probe_kind == "none" else None,
            run.clock and f"clock: {name_unit(run.clock, run.emulated)}",
            (run.started or "")[:10],
            run.kproxylat and f"kproxylat {run.kproxylat}",
        )
        origins[", ".join(filter(None, facts))] = None
    known = list(filter(None, origins))
    return "; ".join([*known[:3], *(["and others"] if known[3:] else [])]) or "unknown kernel, clock and date"


def _name_axis(unit: str, emulated: bool | None, measured: str) -> str:
    name = f"{'emulated ' if emulated and unit in UNITS else ''}{UNITS.get(unit, unit)}"
    return f"{name[:1].upper()}{name[1:]} {SUBJECTS[measured][1]}"


def draw_distributions(axes: Axes, results: Sequence[tuple[str, Result]], statement: str = "") -> None:
    """Draw the lookups of runs: a bar for each value if the values are few, else the distribution function.

    Repeats share a style and an entry of the legend.

    :param results: each with a prefix of its name.
    :param statement: above the axes, in place of an explanation.
    :raises LogError: none of the runs kept values.
    """
    drawn: dict[str, list[Distribution]] = {}
    names: dict[str, None] = {}
    for prefix, result in results:
        probe = result.main_probe
        if probe and (calls := distribution(probe)):
            names[_name_axis(probe.unit, result.run.emulated, probe.measured)] = None
            drawn.setdefault(prefix + name_run(result), []).append(calls)
    if not drawn:
        raise LogError("nothing to draw: the runs kept no values")
    merged = {name: _merge(runs) for name, runs in drawn.items()}
    labels = {
        name: f"{name} ({f'{len(runs)} runs, ' if runs[1:] else ''}{merged[name].count:,} calls)"
        for name, runs in drawn.items()
    }
    axis = " and ".join(names)
    rows = sum(len(calls.lows) for calls in merged.values())
    if all(calls.exact for calls in merged.values()) and rows <= FEW:
        _draw_bars(axes, {labels[name]: calls for name, calls in merged.items()}, axis)
        note = "each bar: one value, and the calls that had it"
    else:
        note = _draw_shares(axes, {labels[name]: runs for name, runs in drawn.items()}, axis)
    write_below(axes, statement or note)


def _merge(runs: Sequence[Distribution]) -> Distribution:
    """Add up the counts of repeats, row by row."""
    counts: dict[tuple[float, float], int] = {}
    for run in runs:
        for lo, hi, count in zip(run.lows, run.highs, run.counts, strict=True):
            counts[lo, hi] = counts.get((lo, hi), 0) + count
    return Distribution((lo, hi, count) for (lo, hi), count in counts.items())


def _write_legend(axes: Axes, below: float = -0.13) -> None:
    """Write the legend below the axes, so that it covers nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(0, below), fontsize="small", frameon=False, borderaxespad=0)


def _draw_bars(axes: Axes, drawn: Mapping[str, Distribution], axis: str) -> None:
    """Draw a bar for each distinct value of each run: its part of the calls."""
    ticks: list[str] = []
    for (label, calls), style in zip(drawn.items(), cycle(STYLES), strict=False):
        for value, end, count in zip(calls.lows, calls.ends, calls.counts, strict=True):
            at = len(ticks)
            marks = [f"p{100 * p:g}" for p in MARKS if calls.quantile(p)[0] == value]
            words = f"{count:,} call{'s' * (count > 1)}, {count / calls.count:.2%}"
            if len(calls.lows) == 1:
                words = f"all {count:,} calls"
            [bar] = axes.barh([at], [count / calls.count], color=style.color, height=0.6,
                              label=label if end == count else "_")  # fmt: skip
            bar.set_gid(f"value: {label}: {value:,.0f}: {words}")
            axes.annotate(f"{words}{f' ({chr(32).join(marks)})' if marks else ''}", (count / calls.count, at),
                          xytext=(5, 0), textcoords="offset points", va="center", fontsize="small")  # fmt: skip
            ticks.append(f"{value:,.0f}")
    axes.set_yticks(range(len(ticks)), ticks)
    axes.set_ylim(len(ticks) - 0.4, -0.6)
    figure: Any = axes.figure
    figure.set_size_inches(7.5, 2.5 + 0.35 * len(ticks))
    axes.set_xlim(0, 1.45)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel("Fraction of lookups" if "lookup" in axis else "Fraction of packets")
    axes.set_ylabel(textwrap.fill(axis, 16 + 8 * len(ticks)))
    axes.grid(visible=False, axis="y")
    if len(drawn) > 1:
        _write_legend(axes, -0.55 / len(ticks) - 0.1)


def _draw_shares(axes: Axes, drawn: Mapping[str, Sequence[Distribution]], axis: str) -> str:
    """Draw the distribution functions up to their p99.9, and mark percentiles.

    :return: a note on the marks, and on what is beyond.
    """
    every = [calls for runs in drawn.values() for calls in runs]
    for (label, runs), style in zip(drawn.items(), cycle(STYLES), strict=False):
        for number, calls in enumerate(runs):
            shares = [end / calls.count for end in calls.ends]
            axes.step([calls.lows[0], *calls.highs], [0, *shares], where="post", label="_" if number else label,
                      color=style.color, linestyle=style.line, linewidth=1 if runs[1:] else 1.8)  # fmt: skip
            for p in MARKS:
                x, name = calls.estimate(p), f"p{100 * p:g}"
                axes.plot(x, p, marker=style.marker, color=style.color, markersize=7)
                if len(every) < 3:
                    left = every.index(calls) == 0 and len(every) > 1
                    axes.annotate(f"{name} {x:,.0f}", (x, p), xytext=(-9 if left else 9, -9), va="center",
                                  textcoords="offset points", ha="right" if left else "left", color=style.color,
                                  fontsize="small")  # fmt: skip
                if len(every) < FEW:
                    add_value(axes, x, p, f"{label}: {name} {x:,.0f}")
    low, most = min(calls.lows[0] for calls in every), max(calls.highs[-1] for calls in every)
    high = max(calls.quantile(0.999)[1] for calls in every)
    log = "" if low <= 0 or high / low <= DECADE else " (log scale)"
    if log:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.1, high * 1.3)
        _number_plainly(axes.xaxis)
    else:
        axes.set_xlim(low - 0.1 * (high - low) - 1, high + 0.15 * (high - low) + 1)
        axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel(axis + log)
    axes.set_ylabel(f"Fraction of {'lookups' if 'lookup' in axis else 'packets'} ≤ x")
    axes.set_ylim(0, 1.03)
    _write_legend(axes)
    beyond = f"; the axis ends at p99.9, the greatest value is {most:,.0f}" if most > axes.get_xlim()[1] else ""
    return f"marks: p50, p95 and p99{beyond}"


def find_crossings(results: Sequence[Result], seed: int = 0) -> tuple[tuple[str, Bounded], ...]:
    """Find the numbers of Services at which two series of one protocol certainly cost the same, with both names."""
    groups: dict[Key, list[Result]] = {}
    for result in results:
        groups.setdefault(find_key(result), []).append(result)
    alike = ((a, b) for a, b in combinations(groups, 2) if a[2] == b[2])
    pairs = (cross(groups[a], groups[b], seed) for a, b in alike)
    return tuple((" and ".join(line.name for line in series), where) for series, where in pairs if where)


def draw_series(
    axes: Axes, every: Sequence[Series], before: bool = False, crossings: Sequence[tuple[str, Bounded]] = ()
) -> None:
    """Draw the cost of a lookup over numbers of Services, the lines through it, and the bounds of each point.

    :param before: the points are one ruleset's Services, each with the number of Services before it.
    :param crossings: as :func:`find_crossings` returns them.
    """
    labels = []
    first = every[0]
    unit = name_unit(first.unit, first.emulated)
    for series, style in zip(every, cycle(STYLES), strict=False):
        label = series.verdict
        slope, base = series.per_service, series.base
        # A slope that hash effects cause in counts of instructions is not a Service's cost.
        if slope and not (series.verdict == "O(1)" and series.level == 1):
            label += f", {slope.estimate:.4g} per Service"
            label += f"\n({slope.lo:.4g} to {slope.hi:.4g})" if series.level < 1 else ""
        costs = [Bounded(point.cost, point.lo, point.hi) for point in series.points]
        sizes = [point.services for point in series.points]
        _draw_points(axes, style, series.name, sizes, costs, ",.0f", unit)
        if slope and base:
            _draw_curve(axes, style, sizes, (slope.estimate, base.estimate))
        labels.append((costs[-1].estimate, f"{series.name}\n{label}", style.color))
    marks = f"marks: {first.figure}, with {first.level:.0%} bounds"
    if first.level == 1:
        repeated = any(point.runs > 1 for series in every for point in series.points)
        marks = f"marks: {first.figure} value{', with the least and greatest of the repeats' if repeated else ''}"
    scale = _scale_sizes(axes, [point.services for series in every for point in series.points])
    axes.set_xlabel(f"{'Services before the one that is looked up' if before else 'Number of Services'}{scale}")
    costs_drawn = [point.cost for series in every for point in series.points]
    log = " (log scale)" if scale and min(costs_drawn) > 0 and max(costs_drawn) / min(costs_drawn) > DECADE else ""
    axes.set_ylabel(f"{_name_axis(first.unit, first.emulated, first.measured)}{log}")
    write_below(axes, f"{marks}; lines: base + cost per Service")
    if log:
        axes.set_yscale("log")
        _number_plainly(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:,.0f}")
    _mark_crossings(axes, crossings)
    label_ends(axes, labels)


def _mark_crossings(axes: Axes, crossings: Sequence[tuple[str, Bounded]], height: float = 0.97) -> None:
    """Mark where two lines cross, with a label below ``height``; leave out what is not on the axes."""
    left, right = axes.get_xlim()
    shown = [(names, where) for names, where in crossings if left < where.lo <= where.hi < right]
    for number, (names, where) in enumerate(shown):
        span = f"{where.lo:,.3g} to {where.hi:,.3g}" if where.lo < where.hi else f"{where.estimate:,.3g}"
        axes.axvspan(where.lo, where.hi, color=INK, alpha=0.15, linewidth=1)
        axes.axvline(
            where.estimate, color=INK, linestyle=":", linewidth=1, gid=f"value: {names}: equal at {span} Services"
        )
        write_beside(axes, where.estimate, height - 0.12 * number, f"{names}:\nequal at {span} Services")


def _draw_points(
    axes: Axes, style: Style, name: str, sizes: Sequence[int], values: Sequence[Bounded], form: str, unit: str
) -> None:
    """Draw values over numbers of Services, with their bounds where they have some.

    :param form: of the values in words, before ``unit``.
    """
    bars = _measure_bars(values)
    axes.errorbar(sizes, [value.estimate for value in values], yerr=bars if any(map(any, bars)) else None,
                  linestyle="none", capsize=4, color=style.color, marker=style.marker,
                  markersize=3 if len(sizes) > FEW else None)  # fmt: skip
    for size, value in zip(sizes, values, strict=True) if len(sizes) <= MANY else ():
        add_value(axes, size, value.estimate, f"{name}, {size:,} Services: {write_bounded(value, form)} {unit}")


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
        return " (log scale)"
    # Up to the least number above 0 the axis is linear; matplotlib's own ticks would crowd there.
    axes.set_xscale("symlog", linthresh=known[1], linscale=0.5)
    axes.set_xlim(left=-known[1] / 5)
    ticks = [0]
    for size in known[1:]:
        ticks += [size] if size > 1.6 * ticks[-1] else []
    _number_plainly(axes.xaxis)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    return " (log scale)"


def draw_ratios(axes: Axes, pairs: Sequence[Comparison]) -> None:
    """Draw the ratio of B's cost to A's over numbers of Services, with the bounds."""
    labels = []
    for pair, style in zip(pairs, cycle(STYLES), strict=False):
        name = f"{pair.a.mode}/{pair.a.backend}" if pair.a.name == "A" else f"{pair.b.name} / {pair.a.name}"
        rows = [(lookup.services[0] or 0, lookup.main.ratio) for lookup in pair.lookups if lookup.main.ratio]
        sizes = [size for size, _ in rows]
        _draw_points(axes, style, name, sizes, [ratio for _, ratio in rows], ".3f", "")
        lines = [line for side in pair.series if (line := side.line)]
        if len(lines) == 2 and sizes:
            _draw_curve(axes, style, sizes, lines[1], divisor=lines[0])
        last = rows[-1][1].estimate if rows else 1
        labels.append((last, f"{name}\n{f'× {last:.3g}' if rows else 'unknown'}", style.color))
    axes.axhline(1, color=INK, linewidth=1)
    lookups = [lookup for pair in pairs for lookup in pair.lookups]
    ratios = [lookup.main.ratio.estimate for lookup in lookups if lookup.main.ratio]
    if ratios and min(ratios) > 0 and max(ratios) / min(ratios) > 2:
        axes.set_yscale("log")
        _number_plainly(axes.yaxis)
    axes.set_xlabel(f"Number of Services{_scale_sizes(axes, [lookup.services[0] or 0 for lookup in lookups])}")
    # The labels of several pairs name their own sides.
    sides = "B / A" if len(pairs) == 1 or pairs[0].a.name == "A" else "first / second"
    axes.set_ylabel(f"{sides}: {_label_costs(pairs[0])}")
    different = any(lookup.differs is not False for lookup in lookups)
    note = f"above 1 B costs more; {_name_bars(lookups[0].level)}; lines: ratio of the lines through both sweeps"
    write_below(axes, note if different else f"no difference beyond chance; {_name_bars(lookups[0].level)}")
    _mark_crossings(axes, [(f"{pair.b.name} and {pair.a.name}", pair.crossing) for pair in pairs if pair.crossing], 0.2)
    label_ends(axes, labels)


def _label_costs(pair: Comparison) -> str:
    return f"{name_unit(pair.unit, pair.emulated)} {SUBJECTS.get(pair.measured, SUBJECTS['lookup'])[1]}"


def _name_bars(level: float) -> str:
    return "exact values" if level == 1 else f"bars: {level:.1%} bounds"


def draw_figures(axes: Axes, pair: Comparison) -> None:
    """Draw the ratio of B's cost to A's in each figure of a single pair, with the bounds."""
    contrast, style = pair.lookups[0], STYLES[0]
    rows = [(figure, figure.ratio) for figure in contrast.figures if figure.ratio]
    for at, (figure, ratio) in enumerate(rows):
        bars = _measure_bars([ratio])
        axes.errorbar([ratio.estimate], [at], xerr=bars if any(map(any, bars)) else None, capsize=4,
                      color=style.color, marker=style.marker)  # fmt: skip
        sides = f"{figure.a or 0:,.0f} → {figure.b or 0:,.0f}"
        axes.annotate(f"× {ratio.estimate:.3g}", (ratio.estimate, at), xytext=(0, 7), textcoords="offset points",
                      ha="center", fontsize="small", color=style.color)  # fmt: skip
        add_value(axes, ratio.estimate, at, f"{figure.name}: {sides} {pair.unit}, × {ratio.estimate:.3f}")
    axes.axvline(1, color=INK, linewidth=1)
    names = {"p50": "median", "commonest": "commonest value"}
    axes.set_yticks(range(len(rows)), [shorten(names.get(figure.name, figure.name)) for figure, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.8)
    axes.set_xlabel(f"B / A: {_label_costs(pair)}; {_name_bars(contrast.level)}")
    write_below(axes, pair.statement)


def _number_plainly(axis: Any) -> None:
    """Write 1,000 instead of 10³ on a logarithmic axis, at 1, 2 and 5 times each power of ten (only 1 for many)."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    at = (1, 2, 5) if low <= 0 or high / low < 1000 else (1,)
    axis.set_major_locator(LogLocator(subs=at, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def name_run(result: Result) -> str:
    """Write a run's mode, backend and number of Services."""
    run = result.run
    size = f", {run.services:,} Services" if run.services is not None else ""
    return f"{'/'.join(run.rules)}{size}"


def _measure_bars(values: Sequence[Bounded]) -> list[list[float]]:
    """Return how far the bounds are below and above each estimate, which a file may have outside of them."""
    below = [max(value.estimate - value.lo, 0) for value in values]
    return [below, [max(value.hi - value.estimate, 0) for value in values]]
