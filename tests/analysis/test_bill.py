"""What windows counted becomes figures with bounds: nothing is lost, and the bounds hold what they say they hold."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import replace
from random import Random
from urllib.request import Request, urlopen

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxylat.analysis.alternatives import build_outcome
from kproxylat.analysis.bill import (
    MOST_KEPT,
    NO_SERVICE,
    OTHER,
    SCHEMA,
    Count,
    Window,
    add_up,
    cut,
    fold,
    name_rows,
    save_by_mode,
)
from kproxylat.analysis.readings import Reading, compare_counter, count_between
from kproxylat.report.bill import describe_bill, draw_bill, export_bill_csv
from kproxylat.report.openmetrics import BillTotals
from kproxylat.report.sections import build_bill
from kproxylat.results import Bounded, Bucket, Histogram
from tests.support import TESTS
from tests.support.bills import NAMES, WINDOWS, count, make_bill, window

MODEL = build_outcome(json.loads((TESTS / "documents/whatif-costs.json").read_text()))
COUNTS = st.dictionaries(st.sampled_from([*NAMES, NO_SERVICE, "10.0.0.1:30080/tcp"]), st.integers(1, 5000), max_size=4)
WINDOW = st.tuples(COUNTS, st.floats(0.25, 100), st.integers(0, 10), st.integers(0, 100))


@given(st.lists(WINDOW, min_size=1, max_size=5))
def test_rows_add_up_to_all_lookups(drawn: list[tuple[dict[str, int], float, int, int]]) -> None:
    windows = [
        window({key: count(number, number * 2000) for key, number in counts.items()}, seconds, shift, rest)
        for counts, seconds, shift, rest in drawn
    ]
    if not sum(each.total.lookups for each in windows):
        return
    rows, rate, day = add_up(windows, NAMES)
    assert sum(row.lookups_per_s for row in rows) == pytest.approx(rate.estimate)
    assert sum(row.share.estimate for row in rows) == pytest.approx(1)
    assert sum(row.cpu_ms_per_s for row in rows) * 86.4 == pytest.approx(day.estimate)
    rest = sum((1 << each.shift) * (drawn[at][3]) for at, each in enumerate(windows))
    assert (OTHER in {row.key for row in rows}) == (rest > 0)
    for bounded in (rate, day, *(row.share for row in rows)):
        assert 0 <= bounded.lo <= bounded.estimate <= bounded.hi
    for row in rows:
        assert row.kind == ("service" if row.key in NAMES else "address" if row.key[:2] == "10" else "none")


def test_names_of_the_api_are_for_rows_without_one() -> None:
    """A name of the rules stays; a NodePort is known by its port, on any address; what has no Service gets no name."""
    bill = make_bill((*WINDOWS, window({"203.0.113.7:443/tcp": count(1, 1), "10.0.0.2:30080/udp": count(1, 1)})))
    names = {
        "10.96.0.9:80/tcp": ("service", "other/name"),
        ":30080/tcp": ("address", "default/web:http"),
        "203.0.113.7:443/tcp": ("address", "default/web:https"),
        NO_SERVICE: ("service", "default/evil"),
    }
    named = {row.key: (row.kind, row.name) for row in name_rows(bill, names).rows}
    assert named["10.96.0.9:80/tcp"] == ("service", "default/web:http")
    assert named["10.0.0.1:30080/tcp"] == ("address", "default/web:http")
    assert named["10.0.0.2:30080/udp"] == ("address", "")
    assert named["203.0.113.7:443/tcp"] == ("address", "default/web:https")
    assert named[NO_SERVICE] == ("none", "")
    unnamed = replace(bill, rows=tuple(replace(row, kind="address", name="") for row in bill.rows))
    assert {row.key: (row.kind, row.name) for row in name_rows(unnamed, names).rows}["10.96.0.9:80/tcp"] == (
        "service",
        "other/name",
    )
    text = draw_bill(name_rows(bill, names))
    assert re.search(r"^ default/web:http .*\n   10.0.0.1:30080/tcp", text, re.M)
    assert re.search(r"^ default/web:https .*\n   203.0.113.7:443/tcp", text, re.M)
    assert max(map(len, text.splitlines())) <= 80


def test_a_share_lies_within_its_bounds_in_95_of_100() -> None:
    """Flows of three unequal Services in five windows, in which the traffic as a whole comes and goes."""
    rng, shares = Random(7), {"a": 0.7, "b": 0.25, NO_SERVICE: 0.05}
    trials = hits = 0
    for _ in range(300):
        windows = []
        for _ in range(5):
            drawn = rng.choices(list(shares), list(shares.values()), k=rng.randrange(100, 400))
            windows.append(window({key: count(drawn.count(key), drawn.count(key) * 3000) for key in shares}))
        for row in add_up(windows, {})[0]:
            trials += 1
            hits += row.share.lo <= shares[row.key] <= row.share.hi
    assert trials == 900
    assert 0.94 <= hits / trials < 1


def test_uneven_windows_widen_the_bounds() -> None:
    even = [window({"a": count(50, 1), "b": count(50, 1)})] * 4
    uneven = [window({"a": count(a, 1), "b": count(100 - a, 1)}) for a in (95, 5, 95, 5)]
    narrow, wide = (next(row.share for row in add_up(each, {})[0] if row.key == "a") for each in (even, uneven))
    assert narrow.estimate == wide.estimate == 0.5
    assert wide.hi - wide.lo > 2 * (narrow.hi - narrow.lo)


def test_sampled_lookups_count_for_all_of_their_kind() -> None:
    rows, rate, _ = add_up([window({"a": count(10, 30_000)}, 2, shift=3)], {})
    assert (rate.estimate, rows[0].lookups_per_s, rows[0].mean_ns) == (40, 40, 3000)
    assert rows[0].cpu_ms_per_s == pytest.approx(40 * 3000 / 1e6)


@pytest.mark.parametrize(
    ("shift", "passed", "closed"),
    [
        (0, (190, 210), True), (0, (200, 200), True), (0, (201, 210), False), (0, (180, 199), False),
        (2, (790, 810), True), (2, (850, 900), True), (2, (700, 750), True), (2, (1000, 1050), False),
        (2, (500, 600), False), (0, None, None),
    ],
)  # fmt: skip
def test_windows_are_checked_against_another_counter(
    shift: int, passed: tuple[int, int] | None, closed: bool | None
) -> None:
    """Without sampling there is no chance in it; one flow in 4 has a standard error of 49 here, three windows of 85."""
    bounds = passed and Bounded(sum(passed) / 2, *passed)
    windows = [replace(window({"a": count(200, 1)}, 2, shift=shift), passed=bounds)] * 3
    check = compare_counter(windows, "name")
    assert (check.counter, check.counted, check.closed) == ("name", 600 << shift, closed)
    numbers = (sum(passed) * 1.5, passed[0] * 3, passed[1] * 3) if passed else (None, None, None)
    assert (check.lookups, check.least, check.most) == numbers


def test_a_document_without_the_bounds_is_still_read() -> None:
    """One of the version before knew about how many the other counter had counted."""
    section = build_bill(json.loads((TESTS / "documents/bill-1.json").read_text()), print)
    assert "another counter (the rules that jump to KUBE-SERVICES): about 1,220: closed" in " ".join(section.methods)


@settings(max_examples=20)
@given(st.lists(st.tuples(WINDOW, st.booleans()), min_size=MOST_KEPT, max_size=MOST_KEPT + 9))
def test_windows_of_days_are_folded_and_nothing_is_lost(
    drawn: list[tuple[tuple[dict[str, int], float, int, int], bool]],
) -> None:
    windows = [
        replace(window({key: count(lookups, lookups * 3000) for key, lookups in counts.items()}, seconds, shift, rest),
                passed=Bounded(5, 4, 7) if has_counter else None)
        for (counts, seconds, shift, rest), has_counter in drawn
    ]  # fmt: skip
    folded = fold(windows)
    assert len(folded) <= len(windows) / 2 + 12, "eleven numbers of sampling"
    assert sum(each.parts for each in folded) == len(windows)
    for figure in ("seconds", "used_s"):
        assert sum(getattr(each, figure) for each in folded) == pytest.approx(
            sum(getattr(each, figure) for each in windows)
        )
    if any(each.total.lookups for each in windows):
        rows, merged = ({row.key: row for row in add_up(some, NAMES)[0]} for some in (windows, folded))
        assert {key: row.lookups_per_s for key, row in merged.items()} == pytest.approx(
            {key: row.lookups_per_s for key, row in rows.items()}
        )
        assert [row.p99_ns for row in rows.values()] == [merged[key].p99_ns for key in rows]
    whole, parts = compare_counter(windows, ""), compare_counter(folded, "")
    assert (whole.counted, whole.lookups) == (parts.counted, parts.lookups)
    assert fold(windows[: MOST_KEPT - 1]) == windows[: MOST_KEPT - 1]


def test_one_window_without_the_other_counter_makes_it_unknown() -> None:
    windows = [window({"a": count(200, 1)}), replace(window({"a": count(200, 1)}), passed=None)]
    assert compare_counter(windows, "name").closed is None


def test_a_counter_is_read_in_bounds() -> None:
    readings = [Reading(0, 1, 100), Reading(2, 3, 200), Reading(4, 5, 250), Reading(7, 8, 400)]
    passed = count_between(readings, 1.5, 6)
    assert passed is not None
    assert (passed.lo, passed.hi) == (50, 300)
    assert passed.estimate == pytest.approx(250 + 150 * 1.5 / 3 - 150)
    assert count_between(readings, 0.5, 6) is None, "no reading before it"
    assert count_between(readings, 1.5, 7.5) is None, "no reading after it"
    assert count_between([*readings[:3], Reading(7, 8, 40)], 1.5, 6) is None, "set back"
    assert count_between([Reading(0, 1, 7), Reading(8, 9, 10)], 2, 3) == Bounded(pytest.approx(3 / 8), 0, 3)


@given(st.data())
def test_what_a_counter_rose_is_within_its_bounds_however_uneven_the_traffic(data: st.DataObject) -> None:
    events = sorted(data.draw(st.lists(st.floats(0, 20), max_size=50)))
    ends = sorted(data.draw(st.lists(st.floats(0, 20), min_size=4, max_size=20, unique=True)))
    readings = []
    for begins_s, ends_s in zip(ends[::2], ends[1::2], strict=False):
        moment_s = data.draw(st.floats(begins_s, ends_s))
        readings.append(Reading(begins_s, ends_s, sum(event <= moment_s for event in events)))
    from_s, till_s = sorted(data.draw(st.tuples(st.floats(0, 20), st.floats(0, 20))))
    passed = count_between(readings, from_s, till_s)
    if passed:
        assert passed.lo <= sum(from_s < event <= till_s for event in events) <= passed.hi
        assert passed.lo <= passed.estimate <= passed.hi


def test_the_sentence_says_what_a_day_costs() -> None:
    bill = make_bill()
    text = describe_bill(bill)
    assert "mode iptables, backend nft" in text
    assert f"{bill.no_service_s_per_day:,.3g} s of them" in text
    assert text.endswith("What another mode would give back is unknown: pass --whatif FILE.")


def test_other_modes_give_back_by_the_mix_of_live_lookups() -> None:
    bill = make_bill()
    [saving] = save_by_mode(bill.rows, MODEL, "iptables", "nft")
    services = [row for row in bill.rows if row.kind == "service"]
    present = (890 * 3000 + 100 * 5000) / 990
    day_s = sum(row.cpu_ms_per_s for row in services) * 86.4
    assert (saving.mode, saving.backend) == ("nftables", "nft")
    assert saving.cpu_s_per_day.estimate == pytest.approx(day_s * (1 - 2000 / present))
    assert saving.cpu_s_per_day.lo == pytest.approx(day_s * (1 - 2100 / present))
    assert save_by_mode(bill.rows, MODEL, "ipvs", "ipvs") == ()


def test_the_table_has_a_row_for_all_and_says_what_was_used() -> None:
    text = draw_bill(make_bill())
    firsts = [line.split()[0] for line in text.splitlines() if line.strip()]
    assert {"kube-system/kube-dns:dns", "no", "other", "IPv6", "10.0.0.1:30080/tcp"} <= set(firsts)
    assert max(map(len, text.splitlines())) <= 80
    text = " ".join(text.split())
    assert "windows: 1,220 lookups; another counter (the rules that jump to KUBE-SERVICES): 1,210 to 1,230" in text
    assert "1,230 at that time: closed" in text
    assert "(measured; budget 1.000%)" in text
    lines = list(export_bill_csv(make_bill()))
    assert len(lines) == 1 + len(make_bill().rows) == 7
    assert json.loads(make_bill().to_json())["schema"] == SCHEMA


def test_many_services_are_cut_to_the_top_and_nothing_is_lost() -> None:
    counts = {f"10.96.1.{number}:80/tcp": count(number, number * 1000) for number in range(1, 101)}
    rows, *_ = add_up([window({**counts, NO_SERVICE: Count(1, 1)})], {})
    kept = cut(rows)
    assert len(kept) == 50 + 1 + 1
    assert kept[-1].key == "50 more"
    assert sum(row.cpu_ms_per_s for row in kept) == pytest.approx(sum(row.cpu_ms_per_s for row in rows))
    totals = BillTotals()
    totals.add(make_bill((window(counts),)))
    text = totals.export()
    assert text.count("kproxylat_lookups_total{") == 51
    assert f'{{mode="iptables",namespace="",port="",protocol="",service="other"}} {sum(range(1, 51)) * 60:.1f}' in text


def test_openmetrics_has_labels_and_counts_on() -> None:
    totals = BillTotals()
    totals.add(make_bill())
    totals.add(make_bill())
    text = totals.export()
    labels = 'mode="iptables",namespace="kube-system",port="dns",protocol="udp",service="kube-dns"'
    assert f"kproxylat_lookups_total{{{labels}}} {890 / 4 * 60 * 2}" in text
    assert 'port="30080",protocol="tcp",service="10.0.0.1"' in text
    assert 'port="",protocol="",service="no Service"' in text
    assert "kproxylat_lookup_seconds_total{" in text
    assert text.endswith("# EOF\n")


def test_windows_stay_as_they_are() -> None:
    assert add_up(WINDOWS, NAMES) == add_up(WINDOWS, NAMES)


def test_prometheus_scrapes_what_was_added_up() -> None:
    totals = BillTotals()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            totals.serve("127.0.0.1", port)
    totals.serve("127.0.0.1", port)

    def scrape() -> str:
        request = Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": "application/openmetrics-text"})
        with urlopen(request, timeout=10) as answer:  # noqa: S310 - of this test
            return str(answer.read().decode())

    assert "kproxylat_lookups_total{" not in scrape(), "nothing was counted yet"
    for bills in (1, 2):
        totals.add(make_bill())
        assert f'service="kube-dns"}} {890 / 4 * 60 * bills}' in scrape()


@pytest.mark.parametrize(
    ("shift", "passed", "closed"), [(2, (5, 7), True), (10, (290, 310), True), (2, (190, 210), False)]
)
def test_no_flow_drawn_of_a_few_is_chance(shift: int, passed: tuple[int, int], closed: bool) -> None:
    none = replace(window({}, 1, shift=shift), passed=Bounded(sum(passed) / 2, *passed))
    assert compare_counter([none], "name").closed == closed


def draw_window(rng: Random, rate: float, shift: int = 0) -> Window:
    """Draw a second of traffic, of which one flow in ``2**shift`` is counted."""
    mean = max(rate, 1) / (1 << shift)
    number = max(round(rng.gauss(mean, mean**0.5)), 0)
    return window({"a": Count(number, number * 768, Histogram((Bucket(512, 1024, number),)))}, 1, shift)


@pytest.mark.parametrize(("varies", "shifts"), [(0.2, (0, 0)), (0.2, (0, 0, 0)), (0, (0, 0)), (0, (0, 5)), (0, (3, 0))])
def test_bounds_hold_with_few_windows_and_mixed_sampling(varies: float, shifts: tuple[int, ...]) -> None:
    """95 of 100 bills have the true rate and the true cost within their bounds; fewer than 92 are no chance of 600."""
    rng, rate, held = Random(11), 5000, [0, 0]
    for _ in range(600):
        windows = [draw_window(rng, rate * (1 + rng.gauss(0, varies)), shift) for shift in shifts]
        _, lookups, day = add_up(windows, {})
        held[0] += lookups.lo <= rate <= lookups.hi
        held[1] += day.lo <= rate * 768e-9 * 86_400 <= day.hi
    assert min(held) > 0.92 * 600


def test_a_percentile_counts_each_window_by_its_sampling() -> None:
    windows = [
        window({"a": Count(100, 76_800, Histogram((Bucket(512, 1024, 100),)))}, 1, 0),
        window({"a": Count(10, 60_000, Histogram((Bucket(4096, 8192, 10),)))}, 1, 5),
    ]
    [row] = add_up(windows, {})[0]
    assert row.p99_ns
    assert (row.p99_ns.lo, row.p99_ns.hi) == (4096, 8192)
    assert row.mean_ns == (76_800 + 32 * 60_000) / 420
