"""The books: whatever deviates opens them and is named; what cannot be had is not held against anybody."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kproxylat.books import check_rate, reconcile
from kproxylat.detect import ServiceRule
from kproxylat.model import Accounting, Probe, Result, Run, Traffic

SENT = 2000
LOOKUP = Probe("ipt_do_table", "nat", None, "PREROUTING", True, SENT, 1, 1, 1, 1, SENT, "ns")
TRAFFIC = Traffic("pktgen", SENT, SENT, 0, 1000.0, 1000, SENT, 100)
RESULT = Result(Run(), probes=(LOOKUP,), traffic=TRAFFIC)
HIT = ServiceRule(True, 12, 13, 100)
MISS = ServiceRule(False, None, 13, 0)


def hit(
    result: Result = RESULT, after: ServiceRule | None = None, delivered: int = SENT, untranslated: int = 0, **more: int
) -> Accounting:
    """Close the books of a run on the hit path, with the deviations that are passed."""
    counts = {"delivered": delivered, "untranslated": untranslated, "rejected": 0} | more
    return reconcile(result, HIT, after or replace(HIT, packets=100 + SENT), counts)


def miss(result: Result = RESULT, after: ServiceRule = MISS, **counts: int) -> Accounting:
    """The same on the miss path."""
    return reconcile(result, MISS, after, {"delivered": 0, "untranslated": SENT, "rejected": 0} | counts)


def looked_up(count: int) -> Result:
    return replace(RESULT, probes=(replace(LOOKUP, count=count),))


def test_the_hit_path_closes() -> None:
    assert hit() == Accounting(SENT, SENT, SENT, SENT, 0, 0, True, None)


def test_the_miss_path_closes() -> None:
    assert miss() == Accounting(SENT, SENT, 0, 0, SENT, 0, True, None)


def test_the_miss_path_closes_over_rejected_packets() -> None:
    assert miss(untranslated=0, rejected=SENT).closed
    assert miss(untranslated=SENT - 5, rejected=5).closed


@pytest.mark.parametrize(
    ("books", "named"),
    [
        (hit(looked_up(SENT - 1)), "lookups 1999 instead of 2000"),
        (hit(looked_up(SENT + 1)), "lookups 2001 instead of 2000"),
        (hit(replace(RESULT, probes=())), "lookups 0 instead of 2000"),
        (hit(after=replace(HIT, packets=100)), "rule hits 0 instead of 2000"),
        (hit(after=replace(HIT, packets=101 + SENT)), "rule hits 2001 instead of 2000"),
        (hit(delivered=SENT - 1), "delivered 1999 instead of 2000"),
        (hit(delivered=0), "delivered 0 instead of 2000"),
        (hit(untranslated=1), "untranslated or rejected 1 instead of 0"),
        (hit(rejected=2), "untranslated or rejected 2 instead of 0"),
        (hit(after=replace(HIT, packets=100 + SENT, position=13)), "kube-proxy's rules changed during the run"),
        (hit(after=replace(HIT, packets=100 + SENT, chain_length=14)), "kube-proxy's rules changed during the run"),
        (miss(looked_up(SENT - 1)), "lookups 1999 instead of 2000"),
        (miss(after=replace(MISS, packets=3)), "rule hits 3 instead of 0"),
        (miss(delivered=1), "delivered 1 instead of 0"),
        (miss(untranslated=SENT - 1), "untranslated or rejected 1999 instead of 2000"),
        (miss(after=replace(MISS, chain_length=12)), "kube-proxy's rules changed during the run"),
    ],
)
def test_a_single_deviation_opens_the_books_and_is_named(books: Accounting, named: str) -> None:
    assert not books.closed
    assert books.difference == named


def test_all_deviations_are_named() -> None:
    books = hit(looked_up(1), delivered=2)
    assert books.difference == "lookups 1 instead of 2000; delivered 2 instead of 2000"


def test_counters_that_cannot_be_had_are_not_held_against_the_others() -> None:
    rule = ServiceRule(True)
    books = reconcile(RESULT, rule, rule, {"rejected": 0})
    assert books == Accounting(SENT, SENT, None, None, None, 0, True, None)


def test_nothing_sent_is_known_so_nothing_is_proved() -> None:
    assert not hit(replace(RESULT, traffic=None)).closed
    assert not hit(replace(RESULT, traffic=replace(TRAFFIC, sent=None))).closed


@pytest.mark.parametrize("pps", [950.1, 1000.0, 1049.9, None])
def test_a_rate_within_5_percent_is_kept(pps: float | None) -> None:
    assert check_rate(replace(TRAFFIC, pps=pps)) == ()


@pytest.mark.parametrize(("pps", "shown"), [(949.0, "949"), (1051.0, "1051"), (0.0, "0")])
def test_a_rate_beyond_5_percent_is_named(pps: float, shown: str) -> None:
    assert check_rate(replace(TRAFFIC, pps=pps)) == (f"asked for 1000 pps, reached {shown}",)
