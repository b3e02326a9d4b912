"""IPv6 on a real kernel: the same books, and as exact."""

from __future__ import annotations

import pytest

from tests.vm.commands import BACKENDS, lookup_of, run_sweep
from tests.vm.conftest import Guest

LAB = ("--lab", "--family", "6", "--format", "json")


@pytest.mark.long
def test_the_books_close_and_the_rule_walk_grows_by_one_integer(counting: Guest) -> None:
    results = run_sweep(
        counting,
        "0.2",
        "1000",
        *LAB[1:3],
        "--mode",
        "iptables",
        "--backend",
        "legacy",
        "--services",
        "10,100",
        "--protocol",
        "udp",
    )
    costs = []
    for result in results:
        counts = result["accounting"]
        assert counts["sent"] == counts["lookups"] == counts["rule_hits"] == counts["delivered"] == 200
        assert counts["entries"] == 200
        assert counts["closed"] is True
        assert result["target"]["ip"] == "fd00:10:96::50"
        assert {(probe["engine"], probe["count"]) for probe in result["probes"]} == {("ip6t_do_table", 200)}
        lookup = lookup_of(result)
        assert (lookup["table"], lookup["hook"]) == ("nat", "PREROUTING")
        costs.append(lookup["mode"])
    growth = (costs[1] - costs[0]) / 90
    assert growth == int(growth)
    # An IPv6 rule compares four words where IPv4's compares one.
    assert growth > 26


def test_the_books_close(counting: Guest) -> None:
    [result] = run_sweep(
        counting,
        "0.2",
        "1000",
        *LAB[1:3],
        "--mode",
        "iptables",
        "--backend",
        "legacy",
        "--services",
        "10",
        "--protocol",
        "udp",
    )
    counts = result["accounting"]
    assert counts["sent"] == counts["lookups"] == counts["rule_hits"] == counts["delivered"] == 200
    assert counts["closed"] is True
    assert result["target"]["ip"] == "fd00:10:96::50"
    assert {(probe["engine"], probe["count"]) for probe in result["probes"]} == {("ip6t_do_table", 200)}


@pytest.mark.long
def test_three_numbers_of_services_lie_on_one_line(counting: Guest) -> None:
    done = counting.kproxylat("sweep", "0.2", "1000", *LAB, "--mode", "iptables", "--services", "10,100,1000")
    assert done.status == 0, done.err
    for series in done.json["series"]:
        assert series["verdict"] == "O(n)"
        assert [point["residual"] for point in series["points"]] == [0, 0, 0]


@pytest.mark.long
@pytest.mark.parametrize(("mode", "backend"), BACKENDS)
@pytest.mark.parametrize("words", [
    (),
    ("--probe", "kprobe"),
    ("--generator", "sockets"),
    ("--generator", "sockets", "--protocol", "tcp"),
    ("--from", "node"),
], ids=" ".join)  # fmt: skip
def test_every_backend_and_way(counting: Guest, mode: str, backend: str, words: tuple[str, ...]) -> None:
    done = counting.kproxylat(
        "run", *LAB, "--mode", mode, "--backend", backend, "--services", "10", *words, "0.2", "500"
    )
    assert done.status == 0, done.err
    counts = done.json["accounting"]
    assert counts["sent"] == counts["lookups"] == counts["delivered"] == 100
    assert counts["rule_hits"] == (None if mode == "nftables" else 100)
    assert counts["closed"] is True


@pytest.mark.long
@pytest.mark.parametrize(("mode", "backend", "astray"), [
    ("iptables", "legacy", "untranslated"),
    ("nftables", "nft", "rejected"),
])  # fmt: skip
def test_the_miss_path(counting: Guest, mode: str, backend: str, astray: str) -> None:
    done = counting.kproxylat(
        *("run", *LAB, "--mode", mode, "--backend", backend, "--services", "10", "--worker-ports", "tcp", "0.2", "1000")
    )
    assert done.status == 0, done.err
    counts = done.json["accounting"]
    assert counts["sent"] == counts["lookups"] == counts[astray] == 200
    assert counts["closed"] is True
