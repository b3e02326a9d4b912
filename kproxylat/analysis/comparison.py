"""A comparison, and the sentence that a person can act on. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from kproxylat.analysis.contrast import Contrast
from kproxylat.analysis.series import ROUNDING, Series
from kproxylat.analysis.stats import Interval
from kproxylat.errors import UsageError
from kproxylat.results_json import build

SCHEMA = "kproxylat-comparison/1"
_TWICE = 2


@dataclass(frozen=True)
class Side:
    """One of the two: where it comes from, and what it is called in a sentence."""

    name: str
    file: str
    mode: str
    backend: str
    runs: int


@dataclass(frozen=True)
class Comparison:
    """Two sides compared.

    :param unit: of all figures ("ns against us" where a user had it so); ``emulated`` as in a result.
    :param changed: what was asked for or known differently: name -> A's and B's.
    :param overruled: reasons not to compare that the user overruled. ``unknown``: facts that neither side tells.
    :param lookups: the lookup, by number of Services. ``calls``: the other engine calls of a single pair.
    :param series: the lines of two sweeps. ``crossing``: the number of Services at which they are equal.
    :param alarms: how often two samples of the same thing may be said to differ.
    :param only: series and numbers of Services that one file alone has. ``missing``: what A has of them.
    :param differs: whether any lookup does (None: nobody can tell). ``statement`` says what a person can act on.
    :param worse_pct: by how many percent B certainly costs more, where that is most (None: nobody can tell).
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
    crossing: Interval | None = None
    alarms: float = 0.0
    differs: bool | None = None
    worse_pct: float | None = None
    statement: str = ""
    only: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def state(found: Comparison) -> str:
    """Say in a sentence or two what a person can act on."""
    last = max(found.lookups, key=lambda each: each.services[0] or 0)
    text = _state_one(found, last)
    if found.lookups[0].level < 1 and found.a.runs == found.b.runs == len(found.lookups):
        text += " Of single runs: what drifts from run to run is not in it."
    if len(found.lookups) == 1:
        others = [each for each in found.calls if each.differs]
        if found.unit == "instructions" and others:
            text += f" Other calls differ, too: {', '.join(each.what for each in others)}."
        return text
    if found.a.name == "A":
        same = [each for each in found.lookups if each.differs is False]
        text += f" They differ at {len(found.lookups) - len(same)} of {len(found.lookups)} numbers of Services."
    return text + _state_crossing(found)


def _state_one(found: Comparison, each: Contrast) -> str:
    a, b, unit = found.a.name, found.b.name, found.unit
    where = (
        f" at {each.services[0]:,} Services"
        if each.services[0] is not None and each.services[0] == each.services[1]
        else ""
    )
    main = each.main
    if each.differs is None or not main.ratio or not main.difference or main.a is None or main.b is None:
        return f"Whether they differ{where}, nobody can tell: {each.reason}."
    if not each.differs:
        if each.level == 1:
            costs = f"{main.a:,.0f} {unit}" if main.a == main.b else f"{main.a:,.0f} and {main.b:,.0f} {unit}"
            same = "cost the same" if abs(main.a - main.b) <= ROUNDING else "cannot be told apart"
            return f"{a} and {b} {same}{where}: {costs}; {each.reason}."
        return (
            f"No difference beyond chance{where} (said wrongly at most {found.alarms:.0%} of the time); that of the "
            f"median is between {100 * (main.ratio.lo - 1):+.1f} and {100 * (main.ratio.hi - 1):+.1f}%."
        )
    if each.level < 1 and each.reason.startswith("beyond chance: ") and main.difference.lo <= 0 <= main.difference.hi:
        return f"The medians{where} do not differ beyond chance, but these do: {each.reason.partition(': ')[2]}."
    dearer, cheaper = (b, a) if main.b > main.a else (a, b)
    ratios = [main.ratio.lo, main.ratio.hi] if main.b > main.a else [1 / main.ratio.hi, 1 / main.ratio.lo]
    low, high = sorted((main.a, main.b))
    exact = f" ({low:,.0f} against {high:,.0f} {unit}, exactly)" if each.level == 1 else ""
    if ratios[0] >= _TWICE:
        times = _range(ratios[0], ratios[1], ".3g")
        return f"{cheaper}'s lookup is {times} times cheaper than {dearer}'s{where}{exact}."
    apart = sorted(map(abs, (main.difference.lo, main.difference.hi)))
    more, percent = _range(apart[0], apart[1], ",.0f"), _range(100 * (ratios[0] - 1), 100 * (ratios[1] - 1), ".2g")
    return f"{dearer}'s lookup costs {more} {unit} more than {cheaper}'s{where}, {percent}%{exact}."


def _range(lo: float, hi: float, form: str) -> str:
    low, high = format(lo, form), format(hi, form)
    return low if low == high else f"{low} to {high}"


def _state_crossing(found: Comparison) -> str:
    """Say where the lines of two sweeps meet, and who is cheaper on which side."""
    if len(found.series) != 2 or not all(each.per_service for each in found.series):
        return ""
    measured = [each.services[0] or 0 for each in found.lookups]
    where, (first, second) = found.crossing, found.series
    signs = {each.main.difference.estimate > 0 for each in found.lookups if each.main.difference}
    if where is None and len(signs) == 1 and all(each.differs for each in found.lookups):
        return " So it is at every number of Services that was measured."
    if where is None and len(signs) > 1:
        return " Where they are equal, the lines do not tell for certain."
    if where is None or not first.per_service or not second.per_service:
        return ""
    cheap = found.a.name if first.per_service.estimate > second.per_service.estimate else found.b.name
    text = f" They are equal at {_range(where.lo, where.hi, ',.3g')} Services; {cheap} is cheaper below"
    if not min(measured) <= where.estimate <= max(measured):
        text += f", as far as the lines hold outside of what was measured ({min(measured):,} to {max(measured):,})"
    return f"{text}."


def check_worse(found: Sequence[Comparison], limit_pct: float) -> bool:
    """Return whether B certainly costs more than ``limit_pct`` percent more than A anywhere, or lacks what A has.

    :raises UsageError: the limit is none, or nobody can tell.
    """
    if not 0 <= limit_pct < float("inf"):
        raise UsageError(f"--fail-if-worse {limit_pct:g} is no limit", "it takes percent, 0 or more")
    known = [each.worse_pct for each in found]
    if None in known:
        raise UsageError("--fail-if-worse: nobody can tell from these files", "compare results that kept their values")
    return any(each is not None and each > limit_pct for each in known) or any(each.missing for each in found)


def to_json(found: Sequence[Comparison]) -> str:
    """Write comparisons as one JSON document, ``{"schema": ..., "comparisons": [...]}``."""
    document = {"schema": SCHEMA, "comparisons": [asdict(each) for each in found]}
    return json.dumps(document, indent=2, ensure_ascii=False)


def from_json(text: str | bytes) -> tuple[Comparison, ...]:
    """Read what :func:`to_json` wrote.

    :raises ValueError: it is something else.
    """
    data = json.loads(text)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f"no document of schema {SCHEMA}")
    try:
        return tuple(build(Comparison, each) for each in data["comparisons"])
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"no document of schema {SCHEMA}: {error}") from error
