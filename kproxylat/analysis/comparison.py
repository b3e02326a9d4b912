"""A comparison, its statement for people, and its JSON document. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, floor

from kproxylat.analysis.contrast import Contrast
from kproxylat.analysis.series import ROUNDING, Series
from kproxylat.errors import UsageError
from kproxylat.results import Bounded, name_unit
from kproxylat.results_json import build, load_document

SCHEMA = "kproxylat-comparison/1"
_TWICE = 2
_LARGE = 99.5
"""From here on two digits would take an exponent."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison: its name in a sentence, and its origin."""

    name: str
    file: str
    mode: str
    backend: str
    runs: int
    protocol: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two sides compared.

    :param unit: of all figures ("ns against us" or "emulated ns against ns" if the user allowed it); ``emulated`` as in
        a result, of both.
    :param changed: conditions that differ: name -> A's and B's value.
    :param overruled: reasons not to compare that the user overruled; ``unknown``: facts unknown on both sides.
    :param lookups: the lookup, by number of Services; ``calls``: the other engine calls of a single pair.
    :param series: the lines of two sweeps; ``crossing``: the number of Services at which they are equal.
    :param alarms: rate of false alarms between two samples of the same thing.
    :param only: series and numbers of Services that only one file has; ``missing``: those that only A has.
    :param differs: whether any lookup differs (None: unknown); ``statement``: the outcome in sentences.
    :param measured: as :attr:`kproxylat.results.Probe.measured`.
    :param worse_pct: percent by which B certainly costs more, at its greatest (None: unknown).
    """

    a: Side
    b: Side
    unit: str
    emulated: bool
    changed: Mapping[str, tuple[str, str]]
    overruled: Mapping[str, str]
    unknown: tuple[str, ...]
    lookups: tuple[Contrast, ...]
    calls: tuple[Contrast, ...] = ()
    series: tuple[Series, ...] = ()
    crossing: Bounded | None = None
    alarms: float = 0.0
    differs: bool | None = None
    worse_pct: float | None = None
    statement: str = ""
    only: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    measured: str = "lookup"


def state(comparison: Comparison, on_screen: bool = False) -> str:
    """State the outcome of a comparison in a few sentences.

    :param on_screen: in words for a screen; those of a document stay as its schema began.
    """
    last = max(comparison.lookups, key=lambda lookup: lookup.services[0] or 0)
    if on_screen and " against " in comparison.unit:
        return f"The figures are {comparison.unit}: their difference means nothing."
    text = _state_one(comparison, last, on_screen)
    if comparison.lookups[0].level < 1 and comparison.a.runs == comparison.b.runs == len(comparison.lookups):
        seen = "between parts of a run is" if comparison.lookups[0].drift_from else "from run to run is not"
        text += f" {'These are' if on_screen else 'Of'} single runs: what drifts {seen} in it."
    if len(comparison.lookups) == 1:
        calls = [call.what for call in comparison.calls if call.differs]
        if comparison.unit == "instructions" and calls:
            text += f" Other calls differ, too: {', '.join(calls)}."
        return text
    if comparison.a.name == "A":
        differing = [lookup for lookup in comparison.lookups if lookup.differs is not False]
        text += f" They differ at {len(differing)} of {len(comparison.lookups)} numbers of Services."
    return text + _state_crossing(comparison, on_screen)


def _state_one(comparison: Comparison, lookup: Contrast, on_screen: bool) -> str:
    a, b = comparison.a.name, comparison.b.name
    unit = name_unit(comparison.unit, comparison.emulated and comparison.unit != "instructions")
    size, size_b = lookup.services
    where = f" at {size:,} Services" if size is not None and size == size_b else ""
    if size is not None and size_b is not None and size != size_b:
        where = f", {a} with {size:,} Services, {b} with {size_b:,}"
    main = lookup.main
    if lookup.differs is None or not main.ratio or not main.difference or main.a is None or main.b is None:
        return f"Cannot tell whether they differ{where}: {lookup.reason}."
    if not lookup.differs:
        if lookup.level == 1:
            costs = f"{main.a:,.0f} {unit}" if main.a == main.b else f"{main.a:,.0f} and {main.b:,.0f} {unit}"
            same = "cost the same" if abs(main.a - main.b) <= ROUNDING else "cannot be told apart"
            return f"{a} and {b} {same}{where}: {costs}; {lookup.reason}."
        span = f"between {100 * (main.ratio.lo - 1):+.1f} and {100 * (main.ratio.hi - 1):+.1f}%"
        alarms = f"(wrong at most {comparison.alarms:.0%} of the time)"
        return f"No difference beyond chance{where} {alarms}; that of the median is {span}."
    beyond, _, figures = lookup.reason.partition("beyond chance: ")
    if lookup.level < 1 and not beyond and figures and main.difference.lo <= 0 <= main.difference.hi:
        return f"The medians{where} do not differ beyond chance, but these do: {figures}."
    dearer, cheaper = (b, a) if main.b > main.a else (a, b)
    ratios = [main.ratio.lo, main.ratio.hi] if main.b > main.a else [1 / main.ratio.hi, 1 / main.ratio.lo]
    low, high = sorted((main.a, main.b))
    is_exact = lookup.level == 1 and main.difference.lo == main.difference.hi
    exact = f" ({low:,.0f} against {high:,.0f} {unit}, exactly)" if is_exact else ""
    verb = "costs" if comparison.measured == "lookup" else "takes"
    if ratios[0] >= _TWICE and on_screen:
        times = _range(ratios[0], ratios[1], ".2g")
        exact = f" ({high:,.0f} against {low:,.0f} {unit}, exactly)" if is_exact else ""
        return f"{dearer}'s {comparison.measured} {verb} {times} times as much as {cheaper}'s{where}{exact}."
    if ratios[0] >= _TWICE:
        times = _range(ratios[0], ratios[1], ".3g")
        return f"{cheaper}'s {comparison.measured} is {times} times cheaper than {dearer}'s{where}{exact}."
    apart = sorted(map(abs, (main.difference.lo, main.difference.hi)))
    more, percent = _range(apart[0], apart[1], ",.0f"), _range(100 * (ratios[0] - 1), 100 * (ratios[1] - 1), ".2g")
    return f"{dearer}'s {comparison.measured} {verb} {more} {unit} more than {cheaper}'s{where}, {percent}%{exact}."


def _range(lo: float, hi: float, form: str) -> str:
    form = ",.0f" if form == ".2g" and max(abs(lo), abs(hi)) >= _LARGE else form
    low, high = format(lo, form), format(hi, form)
    return low if low == high else f"{low} to {high}"


def _state_crossing(comparison: Comparison, on_screen: bool) -> str:
    """State where the lines of two sweeps meet, and which side is cheaper below."""
    if len(comparison.series) != 2 or not all(series.per_service for series in comparison.series):
        return ""
    measured = [lookup.services[0] or 0 for lookup in comparison.lookups]
    where, (first, second) = comparison.crossing, comparison.series
    signs = {lookup.main.difference.estimate > 0 for lookup in comparison.lookups if lookup.main.difference}
    if where is None and len(signs) == 1 and all(lookup.differs for lookup in comparison.lookups):
        return " So it is at every number of Services that was measured."
    if where is None and on_screen and not any(lookup.differs for lookup in comparison.lookups):
        return ""
    if where is None and len(signs) > 1:
        unclear = "At how many Services they cost the same is unclear."
        return f" {unclear}" if on_screen else " Where they are equal, the lines do not tell for certain."
    if where is None or not first.per_service or not second.per_service:
        return ""
    cheap = comparison.a.name if first.per_service.estimate > second.per_service.estimate else comparison.b.name
    text = f" They are equal at {_range(where.lo, where.hi, ',.3g')} Services; {cheap} is cheaper below"
    if on_screen:
        low, high = (where.lo, where.hi) if where.lo == where.hi else (floor(where.lo), ceil(where.hi))
        place = f"at {low:,.3g}" if low == high else f"between {low:,} and {high:,}"
        text = f" The lines cross {place} Services; {cheap} is cheaper below"
    if not min(measured) <= where.estimate <= max(measured):
        text += f", as far as the lines hold outside of what was measured ({min(measured):,} to {max(measured):,})"
    return f"{text}."


def check_worse(comparisons: Sequence[Comparison], limit_pct: float) -> bool:
    """Return whether B certainly costs over ``limit_pct`` percent more than A anywhere, or lacks points that A has.

    :raises UsageError: the limit is invalid, or the files do not suffice.
    """
    if not 0 <= limit_pct < float("inf"):
        raise UsageError(f"--fail-if-worse {limit_pct:g}: invalid limit", "it takes percent, 0 or more")
    known = [comparison.worse_pct for comparison in comparisons]
    if None in known:
        fix = "compare results that kept their values, of more repeats"
        raise UsageError("--fail-if-worse: cannot tell from these files", fix)
    worse = any(percent is not None and percent > limit_pct for percent in known)
    return worse or any(comparison.missing for comparison in comparisons)


def to_json(comparisons: Sequence[Comparison]) -> str:
    """Write comparisons as one JSON document, ``{"schema": ..., "comparisons": [...]}``."""
    document = {"schema": SCHEMA, "comparisons": [asdict(comparison) for comparison in comparisons]}
    return json.dumps(document, indent=2)


def from_json(text: str | bytes) -> tuple[Comparison, ...]:
    """Read the comparisons that :func:`to_json` wrote.

    :raises ValueError: another document.
    """
    document = load_document(text, SCHEMA)
    try:
        return tuple(build(Comparison, item) for item in document["comparisons"])
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a document of schema {SCHEMA}: {error}") from error
