"""Probes from the script's maps: figures, keys and their order."""

from __future__ import annotations

import sys

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxylat.modes import find_mode
from kproxylat.results import Bucket, Percentile, Probe
from kproxylat.trace.dump import parse_dump
from kproxylat.trace.percentiles import compute_percentiles
from kproxylat.trace.probes import (
    bucket_bounds,
    build_histogram,
    build_path,
    build_probes,
    merge_probes,
    name_target,
    split_maps,
)

LEGACY = find_mode("iptables", "legacy")
NFT = find_mode("nftables", None)
NAT, MANGLE = 0xFFFF_9B80_0112_3440, 0xFFFF_9B80_0112_9980
SIGNED = NAT - (1 << 64)
VALUES = st.dictionaries(st.integers(0, 1 << 40), st.integers(1, 50), max_size=30)
quick = settings(max_examples=100)


def exact_dump() -> str:
    """Two tables; the lookup's pointer is written as a negative number in one map, as a positive one in the other."""
    return f"""Attaching 3 probes...


@chain_of_another_template[1]: 5
@n[{MANGLE}, 90]: 7
@n[{MANGLE + 2}, 5000]: 100
@n[{SIGNED}, 700]: 3
@n[{SIGNED}, 701]: 2
@n[{NAT}, 900]: 3
@n[{SIGNED + 4}, 40]: 1
@table[{NAT}]: nat
@table[{MANGLE}]: mangle
"""


def test_the_lookup_comes_first_and_its_figures_are_exact() -> None:
    probes = build_probes(parse_dump(exact_dump()), LEGACY, "ns")
    lookup = probes[0]
    assert [probe.lookup for probe in probes] == [True, False, False, False]
    assert (lookup.engine, lookup.table, lookup.chain, lookup.hook) == ("ipt_do_table", "nat", None, "PREROUTING")
    assert (lookup.count, lookup.min, lookup.max, lookup.sum) == (8, 700, 900, 3 * 700 + 2 * 701 + 3 * 900)
    assert lookup.mean == pytest.approx(6202 / 8)
    assert lookup.mode == 700  # as common as 900: the lesser
    assert lookup.unit == "ns"
    assert lookup.values == {"700": 3, "701": 2, "900": 3}
    assert lookup.histogram.buckets == (Bucket(688, 704, 5), Bucket(896, 912, 3))
    assert lookup.percentiles["50"] == Percentile(701.0, 701, 701)


def test_the_others_are_split_by_table_and_hook_and_ordered_by_the_time_they_take() -> None:
    probes = build_probes(parse_dump(exact_dump()), LEGACY, "instructions")
    assert [(probe.table, probe.hook, probe.count, probe.sum) for probe in probes[1:]] == [
        ("mangle", "FORWARD", 100, 500_000),
        ("mangle", "PREROUTING", 7, 630),
        ("nat", "POSTROUTING", 1, 40),
    ]
    assert {probe.unit for probe in probes} == {"instructions"}


def test_nft_chains_are_told_apart() -> None:
    text = f"""@chain[{SIGNED}]: nat-prerouting
@chain[{MANGLE}]: filter-forward
@n[{NAT}, 10]: 1
@n[{MANGLE + 2}, 20]: 1
@n[{MANGLE + 7}, 20]: 1
@table[{NAT}]: kube-proxy
@table[{MANGLE}]: kube-proxy
"""
    probes = build_probes(parse_dump(text), NFT, "ns")
    assert [(probe.table, probe.chain, probe.hook, probe.lookup) for probe in probes] == [
        ("kube-proxy", "nat-prerouting", "PREROUTING", True),
        ("kube-proxy", "filter-forward", "FORWARD", False),
        ("kube-proxy", "filter-forward", "7", False),
    ]


def test_a_pointer_without_a_name_is_no_lookup() -> None:
    (probe,) = build_probes(parse_dump(f"@n[{NAT}, 10]: 1\n"), LEGACY, "ns")
    assert (probe.table, probe.lookup) == (None, False)


def test_the_summed_maps_of_trace() -> None:
    text = f"""@hist[{SIGNED}]:
[512, 1K)              3 |@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@|
[1K, 2K)               0 |                                                    |
[2K, 4K)               1 |@@@@@@@@@@@@@@@@@                                   |

@max[{SIGNED}]: 2100

@min[{SIGNED}]: 600

@stats[{MANGLE + 3}]: count 2, average 5, total 11
@stats[{SIGNED}]: count 4, average 1000, total 4001

@table[{NAT}]: nat
@table[{MANGLE}]: mangle
"""
    lookup, other = build_probes(parse_dump(text), LEGACY, "ns")
    assert (lookup.table, lookup.hook, lookup.lookup) == ("nat", "PREROUTING", True)
    assert (lookup.count, lookup.min, lookup.max, lookup.sum, lookup.mean) == (4, 600, 2100, 4001, 4001 / 4)
    assert lookup.histogram.buckets == (Bucket(512, 1024, 3), Bucket(2048, 4096, 1))
    assert (lookup.mode, lookup.values) == (None, None)
    assert (other.table, other.hook, other.count, other.sum) == ("mangle", "OUTPUT", 2, 11)
    assert (other.min, other.max, other.histogram.buckets) == (None, None, ())


ENVELOPES = f"""@n[{NAT}, 700]: 3
@n[{MANGLE}, 100]: 3
@n[{MANGLE + 2}, 50]: 3
@envelope[0, 3000]: 2
@envelope[0, 6000]: 1
@envelope[4, 500]: 3
@table[{NAT}]: nat
@table[{MANGLE}]: mangle
"""


def test_envelopes_come_last_with_the_share_of_the_calls_at_their_hook() -> None:
    probes = build_probes(parse_dump(ENVELOPES), LEGACY, "instructions")
    assert [(each.engine, each.hook, each.count, each.lookup) for each in probes] == [
        ("ipt_do_table", "PREROUTING", 3, True),
        ("ipt_do_table", "PREROUTING", 3, False),
        ("ipt_do_table", "FORWARD", 3, False),
        ("nf_hook_slow", "PREROUTING", 3, False),
        ("nf_hook_slow", "POSTROUTING", 3, False),
    ]
    before, after = probes[3:]
    assert before.envelope
    assert (before.sum, before.mode, before.share) == (12_000, 3000, (3 * 700 + 3 * 100) / 12_000)
    assert after.share == 0
    assert {each.share for each in probes[:3]} == {None}


def test_an_envelope_is_no_lookup_and_not_in_the_path() -> None:
    ipvs = find_mode("ipvs", None)
    probes = build_probes(parse_dump(f"@n[{NAT + 1}, 700]: 3\n@envelope[1, 900]: 3\n"), ipvs, "ns")
    assert [(each.lookup, each.envelope) for each in probes] == [(True, False), (False, True)]
    path = build_path(probes, "ns")
    assert path
    assert (path.calls, path.sum, path.per_packet) == (3, 2100, 700)


def test_a_chains_hook_may_stand_by_itself() -> None:
    dump = parse_dump(
        f"@hook[{NAT}]: 0\n@hook[{MANGLE}]: 2\n@n[{SIGNED}, 10]: 3\n@n[{MANGLE}, 20]: 3\n"
        f"@chain[{NAT}]: nat-prerouting\n@table[{NAT}]: kube-proxy\n"
    )
    probes = build_probes(dump, NFT, "ns")
    assert [(each.chain, each.hook, each.lookup) for each in probes] == [
        ("nat-prerouting", "PREROUTING", True),
        (None, "FORWARD", False),
    ]


def test_ipvs_call_within_the_lookup_is_not_counted_twice() -> None:
    ipvs = find_mode("ipvs", None)
    dump = parse_dump(f"@n[{NAT + 1}, 700]: 3\n@n[{NAT + 3}, 75]: 3\n")
    path = build_path(build_probes(dump, ipvs, "ns"), "ns")
    assert path
    assert (path.calls, path.sum, path.per_packet) == (3, 2100, 700)
    own = build_path(build_probes(dump, ipvs.from_node(), "ns"), "ns")
    assert own
    assert own.sum == 2325, "the node's own are looked up at OUTPUT"


@pytest.mark.parametrize("count", [0, -3])
def test_what_a_template_has_zeroed_is_no_call(count: int) -> None:
    (probe,) = build_probes(parse_dump(f"@n[{NAT}, 10]: {count}\n@n[{NAT}, 11]: 2\n"), LEGACY, "ns")
    assert (probe.count, probe.min) == (2, 11)
    assert build_probes(parse_dump(f"@n[{NAT}, 10]: {count}\n"), LEGACY, "ns") == ()


def test_no_maps_no_probes() -> None:
    assert build_probes({}, LEGACY, "ns") == ()


@quick
@given(VALUES)
def test_a_histogram_loses_nothing(values: dict[int, int]) -> None:
    buckets = build_histogram(values).buckets
    assert sum(bucket.count for bucket in buckets) == sum(values.values())
    assert list(buckets) == sorted(buckets, key=lambda bucket: bucket.lo or 0)
    for bucket in buckets:
        assert bucket.lo is not None
        assert bucket.hi is not None
        assert bucket.count == sum(values[value] for value in values if bucket.lo <= value < bucket.hi)


@quick
@given(st.integers(0, (1 << 64) - 1))
def test_a_bucket_holds_its_value_and_is_narrow(value: int) -> None:
    lo, hi = bucket_bounds(value)
    assert lo <= value < hi
    assert bucket_bounds(lo) == bucket_bounds(hi - 1) == (lo, hi)
    assert hi - lo == 1 or (hi - lo) / lo <= 1 / 32


@quick
@given(VALUES.filter(bool), st.lists(st.floats(0, 100).map(lambda each: round(each, 1)), min_size=1, max_size=4))
def test_percentiles_are_numpys(values: dict[int, int], wanted: list[float]) -> None:
    events = numpy.repeat(sorted(values), [values[value] for value in sorted(values)])
    found = compute_percentiles(values, wanted)
    for percent in wanted:
        each = found[f"{percent:g}"]
        assert each.estimate == pytest.approx(float(numpy.percentile(events, percent)), rel=1e-9, abs=1e-6)
        assert each.lo is not None
        assert each.hi is not None
        assert each.lo <= each.estimate <= each.hi


def test_no_values_no_percentiles() -> None:
    assert compute_percentiles({}, (50,)) == {}


def test_merged_probes_are_the_sum_of_their_parts() -> None:
    probes = build_probes(parse_dump(exact_dump()), LEGACY, "ns")
    merged = merge_probes(probes)
    assert merged is not None
    assert (merged.count, merged.min, merged.max, merged.sum) == (116, 40, 5000, 6202 + 500_000 + 630 + 40)
    assert merged.mean == pytest.approx(506_872 / 116)
    assert (merged.engine, merged.table, merged.hook, merged.lookup, merged.unit) == (
        "ipt_do_table",
        None,
        None,
        False,
        "ns",
    )
    assert merge_probes([]) is None


def test_merging_probes_without_extremes() -> None:
    probe = Probe("e", None, None, None, False, 2, None, None, None, None, None, "ns")
    merged = merge_probes([probe, probe])
    assert merged is not None
    assert (merged.count, merged.min, merged.max, merged.sum) == (4, None, None, 0)


def test_the_path_is_all_calls_for_each_lookup() -> None:
    probes = build_probes(parse_dump(exact_dump()), LEGACY, "ns")
    path = build_path(probes, "ns")
    assert path is not None
    assert (path.calls, path.sum, path.unit) == (116, 506_872, "ns")
    assert path.per_packet == pytest.approx(506_872 / 8)
    without = build_path(probes[1:], "ns")
    assert without is not None
    assert without.per_packet is None
    assert build_path([], "ns") is None


@pytest.mark.parametrize(
    "text",
    [
        "@n: 5\n",
        "@n[1]: 5\n",
        "@n[a, 1]: 5\n",
        "@n[8, 1]: text\n",
        "@stats[8]: 7\n",
        "@stats[1, 0]: count 3, average 2, total 6\n\n",
        "@start[77]: 5\n@latency_ns:\n[1]        2 |@@@@|\n\n",
    ],
)
def test_a_templates_maps_of_our_names_stay_the_templates(text: str) -> None:
    maps = parse_dump(text)
    own, others = split_maps(maps)
    assert (own, others) == ({}, maps)
    assert build_probes(own, LEGACY, "ns") == ()


def test_our_own_maps_are_told_from_others() -> None:
    own, others = split_maps(parse_dump(exact_dump()))
    assert (set(own), set(others)) == ({"n", "table"}, {"chain_of_another_template"})


def test_a_chain_may_be_named_like_a_number() -> None:
    own, _ = split_maps(parse_dump("@chain[8]: 7\n@n[8, 3]: 1\n@table[8]: 12\n"))
    (probe,) = build_probes(own, NFT, "ns")
    assert (probe.table, probe.chain) == ("12", "7")


def test_a_target_has_its_protocols_name() -> None:
    words = int.from_bytes(bytes([10, 96, 0, 5]), sys.byteorder) << 32 | int.from_bytes(
        (3868).to_bytes(2, "big") + bytes([132, 0]), sys.byteorder
    )
    assert name_target(words) == "10.96.0.5:3868/sctp"
