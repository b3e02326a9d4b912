"""The bill of live traffic: what windows counted, by destination, as figures with bounds. Pure.

Bounds are those of :data:`kproxylat.analysis.stats.LEVEL`. They hold the chance of sampling; where windows differ more
than chance lets them, the bounds are wider by as much, and by what so few windows leave open (Student's t). One window
does not show how the traffic varies.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import repeat, zip_longest
from random import Random
from statistics import NormalDist

from kproxylat.analysis.alternatives import WhatIf
from kproxylat.analysis.stats import LEVEL, bounds, student
from kproxylat.results import Bounded, Bucket, Histogram, Percentile
from kproxylat.trace.percentiles import estimate_percentiles

SCHEMA = "kproxylat-bill/1"
DAY_S = 86400
TOP = 50
MOST_KEPT = 64
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
NO_SERVICE, OTHER, IPV6 = "no Service", "other", "IPv6"
"""Keys of flows that no rule translated; of those that found the map full; of IPv6's, which are not split."""


@dataclass(frozen=True)
class Count:
    """Lookups of one destination in one window: how many, their nanoseconds, and these as a histogram."""

    lookups: int
    ns: int
    histogram: Histogram = field(default_factory=Histogram)


@dataclass(frozen=True)
class Window:
    """What one window counted.

    :param begins_s: when the script began to count, by CLOCK_BOOTTIME; ``ends_s``: when it ended, or counted its last
        lookup; ``seconds``: how long it counted.
    :param shift: one flow in ``2**shift`` was counted.
    :param total: all lookups; ``counts``: destination -> its lookups, less than all if the map was full.
    :param used_s: CPU seconds of the probes.
    :param parts: how many windows it holds, if :func:`fold` merged some.
    :param passed: packets that another counter counted in the window, at least and at most (None: unknown).
    """

    begins_s: float
    ends_s: float
    seconds: float
    shift: int
    total: Count
    counts: Mapping[str, Count]
    used_s: float = 0
    passed: Bounded | None = None
    parts: int = 1


@dataclass(frozen=True)
class Row:
    """The lookups of one destination.

    :param key: ``IP:PORT/PROTOCOL``, :data:`NO_SERVICE`, :data:`OTHER` or :data:`IPV6`.
    :param kind: "service", "address" (a NodePort's, a load balancer's, another's) or "none".
    :param name: ``namespace/name:port``, "" if unknown.
    :param p99_ns: of a histogram of powers of two, hence its bounds.
    """

    key: str
    kind: str
    name: str
    lookups_per_s: float
    share: Bounded
    mean_ns: float
    p99_ns: Percentile | None
    cpu_ms_per_s: float


@dataclass(frozen=True)
class Usage:
    """What the probes took.

    :param measured: by the kernel's BPF statistics; else expected from bench/README.md.
    :param mean: part of one CPU over the whole period; ``peak``: of the worst second.
    :param bpftrace_s: CPU seconds that the starts of bpftrace took beside that, outside of packets' way.
    """

    measured: bool
    budget: float
    mean: float
    peak: float
    calls: int
    bpftrace_s: float


@dataclass(frozen=True)
class Check:
    """Lookups in the windows, as another counter than the probes has them.

    :param lookups: by that counter, about; ``counted``: by the probes, times the sampling.
    :param closed: whether ``counted`` is within ``least`` and ``most``, by that counter, and what sampling adds to
        them; None if there is no such counter.
    """

    counter: str
    lookups: float | None
    counted: int
    closed: bool | None
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Saving:
    """What another mode would give back of a day's CPU seconds for Services, from the model of ``whatif``."""

    mode: str
    backend: str
    cpu_s_per_day: Bounded


@dataclass(frozen=True)
class Bill:
    """What lookups of live traffic cost a node.

    :param cpu_s_per_day: CPU seconds; ``no_service_s_per_day``: the part of flows to no Service.
    :param windows: of the period, ``seconds`` counted in all.
    """

    started: str
    mode: str
    backend: str
    kernel: str
    bpftrace: str
    period_s: float
    windows: int
    seconds: float
    sampled: float
    lookups: int
    lookups_per_s: Bounded
    cpu_s_per_day: Bounded
    no_service_s_per_day: float
    rows: tuple[Row, ...]
    usage: Usage
    check: Check
    savings: tuple[Saving, ...] | None = None
    warnings: tuple[str, ...] = field(default=())

    def to_json(self) -> str:
        """Write the document."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1)


def fold(windows: Sequence[Window]) -> list[Window]:
    """Merge windows in pairs where there are :data:`MOST_KEPT`, so that a bill of days keeps within its memory."""
    if len(windows) < MOST_KEPT:
        return list(windows)
    ordered = sorted(windows, key=lambda window: window.shift)
    folded = []
    for first, second in zip_longest(ordered[::2], ordered[1::2]):
        if second and first.shift == second.shift:
            folded.append(_merge_windows(first, second))
        else:
            folded += [window for window in (first, second) if window]
    return folded


def _merge_windows(first: Window, second: Window) -> Window:
    counts = {
        key: _merge_counts(*(window.counts[key] for window in (first, second) if key in window.counts))
        for key in dict.fromkeys([*first.counts, *second.counts])
    }
    return Window(
        first.begins_s, second.ends_s, first.seconds + second.seconds, first.shift,
        _merge_counts(first.total, second.total), counts,
        first.used_s + second.used_s, add_passed([first, second]), first.parts + second.parts,
    )  # fmt: skip


def add_passed(windows: Sequence[Window]) -> Bounded | None:
    """Return what the other counter counted in all windows; None if it is unknown of one."""
    known = [window.passed for window in windows if window.passed]
    sums = (sum(getattr(passed, end) for passed in known) for end in ("estimate", "lo", "hi"))
    return Bounded(*sums) if len(known) == len(windows) else None


def _merge_counts(*counts: Count) -> Count:
    lookups, ns = sum(count.lookups for count in counts), sum(count.ns for count in counts)
    return Count(lookups, ns, _merge(count.histogram for count in counts))


def split_rest(window: Window) -> Mapping[str, Count]:
    """Return the window's counts with those of the full map as :data:`OTHER`."""
    rest = window.total.lookups - sum(count.lookups for count in window.counts.values())
    ns = window.total.ns - sum(count.ns for count in window.counts.values())
    return window.counts if rest <= 0 else {**window.counts, OTHER: Count(rest, max(ns, 0))}


def add_up(windows: Sequence[Window], names: Mapping[str, str]) -> tuple[tuple[Row, ...], Bounded, Bounded]:
    """Add windows up.

    :param windows: at least one. ``names``: ``IP:PORT/PROTOCOL`` of a Service -> its name.
    :return: rows, the most CPU time first; lookups a second; CPU seconds a day.
    """
    seconds = sum(window.seconds for window in windows)
    weights = [1 << window.shift for window in windows]
    split = [split_rest(window) for window in windows]
    totals = [window.total.lookups for window in windows]
    scaled = sum(weight * total for weight, total in zip(weights, totals, strict=True))
    spread = _spread(totals, [window.seconds / weight for window, weight in zip(windows, weights, strict=True)])
    squares = sum(weight**2 * total for weight, total in zip(weights, totals, strict=True))
    rows = []
    for key in dict.fromkeys(key for counts in split for key in counts):
        counts = [counts.get(key, Count(0, 0)) for counts in split]
        lookups = sum(weight * count.lookups for weight, count in zip(weights, counts, strict=True))
        ns = sum(weight * count.ns for weight, count in zip(weights, counts, strict=True))
        own = _spread([count.lookups for count in counts], totals)
        share = _wilson(lookups / scaled, scaled**2 / squares / own * (_Z / _find_z(len(windows), own)) ** 2)
        merged = _merge((count.histogram for count in counts), weights)
        p99 = estimate_percentiles([merged], [99]).get("99") if merged.buckets else None
        kind = "service" if key in names else "none" if key in (NO_SERVICE, OTHER, IPV6) else "address"
        rows.append(Row(key, kind, names.get(key, ""), lookups / seconds, share, ns / lookups, p99, ns / seconds / 1e6))
    z = _find_z(len(windows), spread)
    rate = _around(scaled / seconds, math.sqrt(spread * squares) / scaled if scaled else 1, z)
    histograms = [_merge(count.histogram for count in counts.values()) for counts in split]
    cpu = sum(weight * window.total.ns for weight, window in zip(weights, windows, strict=True)) / seconds / 1e9
    mass = _moment(_merge(histograms, weights), 1)
    second = _moment(_merge(histograms, [weight**2 for weight in weights]), 2)
    relative = math.sqrt(spread * second) / mass if mass else 1
    ordered = tuple(sorted(rows, key=lambda row: -row.cpu_ms_per_s))
    return ordered, rate, _around(cpu * DAY_S, relative, z)


def name_rows(bill: Bill, names: Mapping[str, tuple[str, str]]) -> Bill:
    """Name the rows that the node's rules do not name.

    :param names: as :func:`kproxylat.cluster.service_names.read_names` returns them.
    """
    rows = []
    for row in bill.rows:
        node_port = f":{row.key.rpartition(':')[2]}"
        kind, name = names.get(row.key) or names.get(node_port) or (row.kind, "")
        rows.append(row if row.name or row.kind == "none" else replace(row, kind=kind, name=name))
    return replace(bill, rows=tuple(rows))


def _around(estimate: float, relative: float, z: float) -> Bounded:
    return Bounded(estimate, max(estimate * (1 - z * relative), 0), estimate * (1 + z * relative))


def _find_z(windows: int, spread: float) -> float:
    """Return how many standard errors the bounds are away: more, where few windows show how far windows are apart."""
    return _Z if spread <= 1 or windows > MOST_KEPT else _find_t(windows - 1)


@cache
def _find_t(freedom: int) -> float:
    draws = student(freedom, Random(freedom), 20_000)  # noqa: S311
    return bounds(map(abs, draws), 2 * LEVEL - 1)[1]


def _spread(counts: Sequence[int], expected: Sequence[float]) -> float:
    """Return how much more counts vary than chance lets them (1: not more), if they should be as ``expected``."""
    mean = sum(counts) / sum(expected) if sum(expected) else 0
    if not mean:
        return 1
    terms = [(count - mean * part) ** 2 / (mean * part) for count, part in zip(counts, expected, strict=True) if part]
    return max(sum(terms) / (len(terms) - 1), 1) if len(terms) > 1 else 1


def _wilson(share: float, count: float) -> Bounded:
    """Return a share of ``count`` drawn flows with Wilson's bounds, which hold for few flows, too."""
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return Bounded.around(share, max(middle - half, 0), min(middle + half, 1))


def _merge(histograms: Iterable[Histogram], weights: Iterable[int] = repeat(1)) -> Histogram:
    """Add histograms up, each count as often as its histogram's weight says."""
    counts: Counter[tuple[int, int]] = Counter()
    for histogram, weight in zip(histograms, weights, strict=False):
        for bucket in histogram.buckets:
            counts[bucket.lo or 0, bucket.hi or 0] += weight * bucket.count
    return Histogram(tuple(Bucket(lo, hi, count) for (lo, hi), count in sorted(counts.items())))


def _moment(histogram: Histogram, power: int) -> float:
    """Return the sum of the values' powers, each taken for the middle of its bucket."""
    return sum((((row.lo or 0) + (row.hi or 0)) / 2) ** power * row.count for row in histogram.buckets)


def cut(rows: Sequence[Row], most: int = TOP) -> tuple[Row, ...]:
    """Return the first rows of Services, and all others of these as one; rows of other kinds stay."""
    named = [row for row in rows if row.kind != "none"]
    rest = named[most:]
    left_out = {row.key for row in rest}
    kept = [row for row in rows if row.key not in left_out]
    if not rest:
        return tuple(kept)
    per_s, ms = sum(row.lookups_per_s for row in rest), sum(row.cpu_ms_per_s for row in rest)
    lo, estimate, hi = (sum(getattr(row.share, end) for row in rest) for end in ("lo", "estimate", "hi"))
    share = Bounded(estimate, lo, min(hi, 1))
    return (*kept, Row(f"{len(rest)} more", "none", "", per_s, share, ms / per_s * 1e6, None, ms))


def save_by_mode(rows: Sequence[Row], outcome: WhatIf, mode: str, backend: str) -> tuple[Saving, ...]:
    """Return what other modes would give back of the Services' CPU time, by the costs that ``whatif`` measured.

    The present cost weighs each Service's by its live lookups. Flows to no Service are left out: the model has none.

    :param outcome: of ``whatif``.
    :return: empty if the outcome lacks the present mode, or its costs are 0.
    """
    costs = {service.target: service.cost for service in outcome.dearest}
    alternatives = {(row.mode, row.backend): row for row in outcome.alternatives}
    now = alternatives.pop((mode, backend), None)
    services = [row for row in rows if row.kind == "service"]
    looked_up = sum(row.lookups_per_s for row in services)
    if not now or not looked_up:
        return ()
    present = sum(row.lookups_per_s * costs.get(row.key, now.mean) for row in services) / looked_up
    if not present:
        return ()
    day_s = sum(row.cpu_ms_per_s for row in services) * DAY_S / 1000
    return tuple(
        Saving(*key, Bounded.around(*(day_s * (1 - cost / present) for cost in (other.mean, other.most, other.least))))
        for key, other in alternatives.items()
    )
