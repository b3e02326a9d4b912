"""How much a counter rose in a window, of which readings show only what it had before, in, and after it; its comparison
with a bill. Pure."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from kproxylat.analysis.bill import Check, Window, add_passed
from kproxylat.results import Bounded

_SURE = 4
"""Standard deviations that chance exceeds in one sampled bill of 16,000."""


class Reading(NamedTuple):
    """What a counter had at an unknown moment between ``begins_s`` and ``ends_s``."""

    begins_s: float
    ends_s: float
    total: int


def count_between(readings: Sequence[Reading], from_s: float, till_s: float) -> Bounded | None:
    """Return how much a counter rose in a window; nothing is assumed of how even the traffic is.

    It rose at least as between the first and the last reading that lie in the window, and at most as between the last
    one before the window and the first one after it. The estimate goes straight from reading to reading.

    :param readings: in the order of time.
    :return: None without a reading before and one after the window, or if the counter was set back.
    """
    before = [reading for reading in readings if reading.ends_s <= from_s]
    after = [reading for reading in readings if reading.begins_s >= till_s]
    if not before or not after:
        return None
    around = [reading for reading in readings if before[-1].begins_s <= reading.begins_s <= after[0].begins_s]
    if any(second.total < first.total for first, second in pairwise(around)):
        return None
    inside = [reading.total for reading in around if reading.begins_s >= from_s and reading.ends_s <= till_s] or [0]
    least, most = inside[-1] - inside[0], after[0].total - before[-1].total
    estimate = _interpolate(around, till_s) - _interpolate(around, from_s)
    return Bounded(min(max(estimate, least), most), least, most)


def _interpolate(readings: Sequence[Reading], time_s: float) -> float:
    """Return the count at a time between the first reading's end and the last one's begin."""
    middles = [(reading.begins_s + reading.ends_s) / 2 for reading in readings]
    at = bisect(middles, time_s, 1, len(middles) - 1)
    part = (time_s - middles[at - 1]) / max(middles[at] - middles[at - 1], 1e-9)
    return readings[at - 1].total + part * (readings[at].total - readings[at - 1].total)


def compare_counter(windows: Sequence[Window], counter: str) -> Check:
    """Compare the windows' lookups with those of another counter.

    Without sampling, no chance is allowed for: each lookup is in both counts.
    """
    counted = sum(window.total.lookups << window.shift for window in windows)
    passed = add_passed(windows)
    if not passed:
        return Check(counter, None, counted, None)
    # Of a flow in 2^k, drawn by its hash: the binomial's variance, times 4^k. Of few drawn, the counter knows more.
    variance = sum(
        max(window.total.lookups << window.shift, window.passed.estimate if window.passed else 0)
        * ((1 << window.shift) - 1)
        for window in windows
    )
    chance = _SURE * math.sqrt(variance)
    closed = passed.lo - chance <= counted <= passed.hi + chance
    return Check(counter, passed.estimate, counted, closed, passed.lo, passed.hi)
