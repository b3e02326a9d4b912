"""Packet accounting: every deviation opens the books and is named; unavailable counters are not compared."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from kproxylat.measure.accounting import Snapshot, check_losses, check_rate, reconcile
from kproxylat.modes import find_mode
from kproxylat.node.service_rule import ServiceRule
from kproxylat.results import Accounting, Probe, Quality, Result, Run, Traffic
from kproxylat.system import kernel
from kproxylat.trace.dump import parse_dump
from kproxylat.trace.result import check_envelopes, count_rest, judge

SENT = 2000
LEGACY, IPVS = find_mode("iptables", "legacy"), find_mode("ipvs", None)
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
    return reconcile(LEGACY, result, Snapshot(HIT), Snapshot(after or replace(HIT, packets=100 + SENT), counts))


def miss(result: Result = RESULT, after: ServiceRule = MISS, **counts: int) -> Accounting:
    """The same on the miss path."""
    after_all = Snapshot(after, {"delivered": 0, "untranslated": SENT, "rejected": 0} | counts)
    return reconcile(LEGACY, result, Snapshot(MISS), after_all)


def looked_up(count: int) -> Result:
    return replace(RESULT, probes=(replace(LOOKUP, count=count),))


def test_a_hook_that_was_traced_less_often_than_its_lookup_is_named() -> None:
    whole = replace(LOOKUP, engine="nf_hook_slow", lookup=False, envelope=True)
    others = replace(whole, hook="FORWARD", count=1), replace(LOOKUP, lookup=False, count=3)
    assert check_envelopes([LOOKUP, whole, *others]) == ()
    said = "the whole hook PREROUTING was traced 1999 times, the lookup 2000"
    assert check_envelopes([LOOKUP, replace(whole, count=SENT - 1), *others]) == (said,)


class Traced:
    """A tracer at its end."""

    stdout = ("Lost 3 events\n", "@n[1, 0, 5]: 7\n")
    stderr = ("x: WARNING: y\n",)
    map_limit, forgotten, unlogged = 16, 0, 0


def judged(text: str, kind: str = "kprobe", **more: int) -> Quality:
    """Judge what a script printed."""
    tracer = type("Now", (Traced,), more)
    return judge(parse_dump(text), kind, (LOOKUP,), tracer)  # type: ignore[arg-type]


def test_lost_events_reach_the_quality() -> None:
    assert judged("@n[1, 0, 5]: 7\n") == Quality(3, 0, None, (), ("x: WARNING: y",))


@pytest.mark.parametrize(
    ("text", "kind", "missed", "strays"),
    [
        ("@missed: 4\n", "kprobe", 4, None),
        ("@start[11]: 99\n@start[12]: 99\n@begun[5]: 1\n@missed: 4\n", "kprobe", 7, None),
        ("@start[11]: 99\n", "fentry", 1, None),
        ("@n[1, 0, 5]: 7\n", "fentry", None, None),
        ("@strays: 9\n", "kprobe", 0, 9),
        ("@strays[1]: 9\n@missed[3]: 1\n", "kprobe", 0, None),
    ],
    ids=["missed", "left-at-the-end", "fentry", "fentry-says-nothing", "strays", "maps-of-others"],
)
def test_calls_without_an_exit_and_exits_without_a_call(
    text: str, kind: str, missed: int | None, strays: int | None
) -> None:
    quality = judged(text, kind)
    assert (quality.missed_probes, quality.stray_exits) == (missed, strays)


def test_truncated_output_is_a_warning() -> None:
    full = "".join(f"@n[1, 0, {number}]: 1\n" for number in range(16))
    quality = judged(full, forgotten=5, unlogged=6)
    assert quality.full_maps == ("@n",)
    said = " / ".join(quality.warnings)
    assert "5 lines, the first, are in the log alone" in said
    assert "6 lines, the last, are not logged" in said
    assert "full maps (16 keys): @n; events are missing" in said


def test_other_traffic_is_in_the_books_where_it_was_counted() -> None:
    begun = count_rest(parse_dump("@others: 7\n@reasons[6]: 5\n@reasons[99]: 1\n"), {6: "NETFILTER_DROP"})
    after = Snapshot(replace(HIT, packets=100 + SENT), {"delivered": SENT})
    books = reconcile(LEGACY, replace(RESULT, accounting=begun), Snapshot(HIT), after)
    assert (books.closed, books.other_calls, books.freed) == (True, 7, {"NETFILTER_DROP": 5, "99": 1})
    none = count_rest({}, {})
    assert (none.other_calls, none.freed) == (0, None), "a kernel that gives no reasons"


def test_the_reasons_of_this_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "ROOT", tmp_path)
    for top in ("sys/kernel/debug/tracing", "sys/kernel/tracing"):
        form = tmp_path / top / "events/skb/kfree_skb/format"
        form.parent.mkdir(parents=True)
        (tmp_path / top / "available_filter_functions").touch()
        assert kernel.read_drop_reasons() == {}
        form.write_text(
            'print fmt: "skbaddr=%p reason: %s", REC->skbaddr, __print_symbolic(REC->reason, { 2, "NOT_SPECIFIED" }, '
            '{ 0x10000, "RX_TOO_SMALL" }, { SKB_X, "NO_NUMBER" })\n'
        )
        assert kernel.read_drop_reasons() == {2: "NOT_SPECIFIED", 0x10000: "RX_TOO_SMALL"}


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
        (hit(looked_up(SENT - 1)), "lookups 1999 instead of 2000 (1 unexplained)"),
        (hit(looked_up(SENT + 1)), "lookups 2001 instead of 2000 (1 unexplained)"),
        (hit(replace(RESULT, probes=())), "lookups 0 instead of 2000 (2000 unexplained)"),
        (hit(after=replace(HIT, packets=100)), "rule hits 0 instead of 2000 (unexplained)"),
        (hit(after=replace(HIT, packets=101 + SENT)), "rule hits 2001 instead of 2000 (1 unexplained)"),
        (hit(delivered=SENT - 1), "delivered 1999 instead of 2000 (1 unexplained)"),
        (hit(delivered=0), "delivered 0 instead of 2000 (2000 unexplained)"),
        (hit(untranslated=1), "untranslated or rejected 1 instead of 0 (unexplained)"),
        (hit(rejected=2), "untranslated or rejected 2 instead of 0 (unexplained)"),
        (hit(after=replace(HIT, packets=100 + SENT, position=13)), "kube-proxy's rules changed during the run"),
        (hit(after=replace(HIT, packets=100 + SENT, chain_length=14)), "kube-proxy's rules changed during the run"),
        (miss(looked_up(SENT - 1)), "lookups 1999 instead of 2000 (1 unexplained)"),
        (miss(after=replace(MISS, packets=3)), "rule hits 3 instead of 0 (unexplained)"),
        (miss(delivered=1), "delivered 1 instead of 0 (unexplained)"),
        (miss(untranslated=SENT - 1), "untranslated or rejected 1999 instead of 2000 (1 unexplained)"),
        (miss(after=replace(MISS, chain_length=12)), "kube-proxy's rules changed during the run"),
    ],
)
def test_a_single_deviation_opens_the_books_and_is_named(books: Accounting, named: str) -> None:
    assert not books.closed
    assert books.difference == named


def test_all_deviations_are_named() -> None:
    books = hit(looked_up(1), delivered=2)
    assert books.difference == "lookups 1 instead of 2000; delivered 2 instead of 2000 (3997 unexplained)"


FAULTS = [
    (hit(looked_up(1950), replace(HIT, packets=2050), delivered=1950, **{"conntrack drop": 50}), "conntrack drop 50"),
    (
        hit(looked_up(1900), replace(HIT, packets=2000), delivered=1900, **{"conntrack drop": 50, "link pod0": 20}),
        "link pod0 20, conntrack drop 50, 30 unexplained",
    ),
    (hit(delivered=0, rp_filter=SENT), "rp_filter 2000"),
    (hit(delivered=SENT - 9, **{"conntrack early_drop": 9}), "conntrack early_drop 9, 9 unexplained"),
    (hit(delivered=0, rejected=SENT, **{"no route": SENT}), "no route 2000"),
    (hit(delivered=SENT - 7, strayed=7), "7 strayed to another address or port"),
    (hit(after=replace(HIT, packets=105 + SENT), others=5), "5 of other senders"),
    (hit(after=replace(HIT, packets=105 + SENT), others=3), "3 of other senders, 2 unexplained"),
    (hit(replace(looked_up(300), quality=Quality(full_maps=("@n",)))), "map @n was full"),
    (hit(replace(looked_up(SENT - 4), quality=Quality(missed_probes=4))), "4 calls without an exit"),
    (hit(replace(looked_up(SENT - 4), quality=Quality(lost_events=9))), "9 lost events"),
    (miss(untranslated=SENT - 5, **{"conntrack insert_failed": 5}), "conntrack insert_failed 5"),
]


@pytest.mark.parametrize(("books", "causes"), FAULTS, ids=[causes for _, causes in FAULTS])
def test_the_counter_that_explains_a_difference_is_named(books: Accounting, causes: str) -> None:
    assert not books.closed
    assert books.difference is not None
    assert re.search(r" \((.*)\)$", books.difference)[1] == causes  # type: ignore[index]


def test_packets_that_pktgen_sent_again_are_not_lost() -> None:
    result = replace(RESULT, traffic=replace(TRAFFIC, errors=70))
    assert hit(result, **{"link pod0": 70}).drops == {"link pod0": 0}
    books = hit(result, delivered=SENT - 9, **{"link pod0": 75})
    assert books.difference == "delivered 1991 instead of 2000 (link pod0 5, 4 unexplained)"
    sockets = replace(result, traffic=replace(TRAFFIC, generator="sockets", errors=70))
    assert hit(sockets, **{"link pod0": 70}).drops == {"link pod0": 70}


def test_a_link_that_is_down_is_named() -> None:
    after = Snapshot(replace(HIT, packets=100 + SENT), {"delivered": 0, "untranslated": 0, "rejected": 0})
    books = reconcile(LEGACY, RESULT, Snapshot(HIT), after, broken=["be0"])
    assert books.difference == "delivered 0 instead of 2000 (2000 unexplained, link be0 is down or gone)"


def test_drops_alone_do_not_open_the_books() -> None:
    books = hit(rp_filter=3, entries=SENT, strayed=0, others=4)
    assert books.closed
    assert (books.drops, books.entries, books.strayed, books.others) == ({"rp_filter": 3}, SENT, 0, 4)


def elsewhere(lookups: int, outer: int, within: int, delivered: int | None = None) -> Accounting:
    """Close the books over others' traffic: the rule's hits in all, and while the probes were surely attached."""
    result = replace(looked_up(lookups), traffic=Traffic("none", None, None, None, None, None, None, None))
    moments = [Snapshot(replace(HIT, packets=packets)) for packets in (0, 5, 5 + within, outer)]
    if delivered is not None:
        moments = [replace(each, counts={"delivered": 0, "untranslated": 0}) for each in moments]
        moments[3] = replace(moments[3], counts={"delivered": delivered, "untranslated": 0})
    return reconcile(LEGACY, result, moments[0], moments[3], (moments[1], moments[2]))


@pytest.mark.parametrize("lookups", [90, 95, 100])
def test_lookups_of_others_packets_lie_within_the_rules_hits(lookups: int) -> None:
    books = elsewhere(lookups, 100, 90)
    assert books.closed
    assert (books.sent, books.lookups, books.rule_hits) == (None, lookups, 100)


def test_the_nodes_own_packets_hit_the_same_rule() -> None:
    """A client on the node itself: looked up in OUTPUT, of which the probes know."""
    own = replace(LOOKUP, hook="OUTPUT", lookup=False, count=7)
    result = replace(RESULT, probes=(*looked_up(90).probes, own))
    moments = [Snapshot(replace(HIT, packets=packets)) for packets in (100, 101, 198, 199)]
    assert reconcile(LEGACY, result, moments[0], moments[3], (moments[1], moments[2])).closed
    result = replace(result, probes=(*looked_up(85).probes, own))
    books = reconcile(LEGACY, result, moments[0], moments[3], (moments[1], moments[2]))
    assert books.difference == "rule hits 99 instead of 92 (5 unexplained)"


@pytest.mark.parametrize(
    ("books", "named"),
    [
        (elsewhere(89, 100, 90), "rule hits 100 instead of 89 (1 unexplained)"),
        (elsewhere(101, 100, 90), "rule hits 100 instead of 101 (unexplained)"),
        (elsewhere(95, 100, 90, delivered=94), "delivered 94 instead of 95 (1 unexplained)"),
        (elsewhere(0, 0, 0), "no packet of the target was seen"),
    ],
)
def test_others_packets_that_do_not_add_up(books: Accounting, named: str) -> None:
    assert not books.closed
    assert books.difference == named


def test_unavailable_counters_are_not_compared() -> None:
    rule = ServiceRule(True)
    books = reconcile(LEGACY, RESULT, Snapshot(rule), Snapshot(rule, {"rejected": 0}))
    assert books == Accounting(SENT, SENT, None, None, None, 0, True, None)


def test_nothing_sent_is_known_so_nothing_is_proved() -> None:
    assert not hit(replace(RESULT, traffic=None)).closed
    assert not hit(replace(RESULT, traffic=replace(TRAFFIC, sent=None))).closed


@pytest.mark.parametrize("pps", [950.1, 1000.0, 1049.9, None])
def test_a_rate_within_5_percent_is_kept(pps: float | None) -> None:
    assert check_rate(replace(TRAFFIC, pps=pps), "ns") == ()


@pytest.mark.parametrize(
    ("pps", "shown"), [(949.0, "949; try 850 pps"), (1051.0, "1051"), (9.9, "10; try 8 pps"), (0.0, "0; try 1 pps")]
)
def test_a_rate_beyond_5_percent_is_named(pps: float, shown: str) -> None:
    assert check_rate(replace(TRAFFIC, pps=pps), "ns") == (f"asked for 1000 pps, reached {shown}",)


def test_instructions_do_not_know_a_rate() -> None:
    assert check_rate(replace(TRAFFIC, pps=583.0, sent=1234), "instructions") == ("1234 of 2000 packets were sent",)


def test_in_ipvs_a_miss_is_rejected_before_the_lookup() -> None:
    before, after = Snapshot(MISS), Snapshot(MISS, {"delivered": 0, "untranslated": 0, "rejected": SENT})
    assert reconcile(IPVS, replace(RESULT, probes=()), before, after).closed
    assert "lookups 2000 instead of 0" in (reconcile(IPVS, RESULT, before, after).difference or "")


def test_a_script_that_counts_no_calls_closes_its_books_without() -> None:
    before, after = Snapshot(HIT), Snapshot(replace(HIT, packets=100 + SENT), {"delivered": SENT})
    books = reconcile(LEGACY, replace(RESULT, probes=()), before, after, counts_calls=False)
    assert (books.closed, books.lookups) == (True, None)
    short = replace(after, counts={"delivered": SENT - 1})
    books = reconcile(LEGACY, replace(RESULT, probes=()), before, short, counts_calls=False)
    assert books.difference == "delivered 1999 instead of 2000 (1 unexplained)"


def test_a_generator_that_was_stopped_is_named() -> None:
    assert check_rate(replace(TRAFFIC, sent=1234), "ns") == ("1234 of 2000 packets were sent",)


def test_losses_to_load_suggest_a_rate() -> None:
    books = hit(looked_up(1500), replace(HIT, packets=1600), delivered=1500, **{"link pod0": 500, "backlog": 500})
    warning = "packets were lost (link pod0 500, backlog 500) at 1000 pps; try 670 pps"
    assert check_losses(TRAFFIC, books) == (warning,)
    assert check_losses(TRAFFIC, hit(**{"backlog": 500})) == (), "other people's packets"
    assert check_losses(TRAFFIC, hit(delivered=0, rp_filter=SENT)) == (), "no lower rate mends this"


def test_drops_without_a_count_of_passed_packets_are_not_a_loss() -> None:
    """On a node, with a template that counts no calls: neither lookups nor delivered packets are counted."""
    counts = {"backlog": 1}
    books = reconcile(LEGACY, replace(RESULT, probes=()), Snapshot(HIT), Snapshot(HIT, counts), counts_calls=False)
    assert (books.lookups, books.delivered, books.drops) == (None, None, counts)
    assert check_losses(TRAFFIC, books) == ()
