"""The main job on a real kernel, with the real bpftrace and the real pktgen: exact costs, closed books."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.vm.conftest import Guest

SIZES = (10, 100, 1000)
BACKENDS = [("iptables", "legacy"), ("iptables", "nft"), ("nftables", "nft")]


@pytest.fixture(scope="module")
def sweep(counting: Guest) -> list[dict[str, Any]]:
    """Three backends, each with 10, 100 and 1,000 Services: 2,000 packets at 1,000 pps."""
    done = counting.kproxylat(
        "sweep", "2", "1000", "--lab", "--services", ",".join(map(str, SIZES)), "--format", "json"
    )
    assert done.status == 0, done.err
    results: list[dict[str, Any]] = done.json["results"]
    return results


def find(sweep: list[dict[str, Any]], mode: str, backend: str, services: int) -> dict[str, Any]:
    wanted = {"mode": mode, "backend": backend, "services": services}
    [result] = [each for each in sweep if wanted.items() <= each["run"].items()]
    return result


@pytest.mark.parametrize("services", SIZES)
@pytest.mark.parametrize(("mode", "backend"), BACKENDS)
def test_books_close(sweep: list[dict[str, Any]], mode: str, backend: str, services: int) -> None:
    result = find(sweep, mode, backend, services)
    counts = result["accounting"]
    assert counts["sent"] == counts["lookups"] == counts["delivered"] == 2000
    assert counts["rule_hits"] == (None if mode == "nftables" else 2000)
    assert counts["untranslated"] == counts["rejected"] == 0
    assert counts["closed"] is True
    assert result["traffic"]["asked"] == result["traffic"]["sent"] == 2000
    assert result["traffic"]["pps"] == pytest.approx(1000, rel=0.05)
    assert result["quality"]["lost_events"] == 0
    assert result["quality"]["full_maps"] == []


@pytest.mark.parametrize("services", SIZES)
@pytest.mark.parametrize(("mode", "backend"), BACKENDS)
def test_probes_are_split_by_table_chain_and_hook(
    sweep: list[dict[str, Any]], mode: str, backend: str, services: int
) -> None:
    result = find(sweep, mode, backend, services)
    probes = {(each["table"], each["chain"], each["hook"]): each for each in result["probes"]}
    hooks = {
        "nat": ("PREROUTING", "POSTROUTING"),
        "filter": ("FORWARD",),
        "mangle": ("PREROUTING", "FORWARD", "POSTROUTING"),
    }
    expected = {(table, None if backend == "legacy" else hook, hook) for table, each in hooks.items() for hook in each}
    if mode == "nftables":
        chains = {"filter-prerouting-pre-dnat": "PREROUTING", "nat-prerouting": "PREROUTING"}
        chains |= {"filter-forward": "FORWARD", "nat-postrouting": "POSTROUTING"}
        expected = {("kube-proxy", chain, hook) for chain, hook in chains.items()}
    assert set(probes) == expected
    for probe in probes.values():
        assert probe["count"] == 2000
        assert probe["unit"] == "instructions"
        assert sum(probe["values"].values()) == 2000
        assert sum(bucket["count"] for bucket in probe["histogram"]["buckets"]) == 2000
        assert probe["min"] <= probe["mode"] <= probe["max"]
        assert probe["sum"] == sum(int(value) * count for value, count in probe["values"].items())
    [lookup] = [key for key, probe in probes.items() if probe["lookup"]]
    assert (
        lookup
        == {
            "legacy": ("nat", None, "PREROUTING"),
            "nft": ("nat", "PREROUTING", "PREROUTING"),
        }[backend]
        if mode == "iptables"
        else ("kube-proxy", "nat-prerouting", "PREROUTING")
    )


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_iptables_grows_by_one_integer_a_service(sweep: list[dict[str, Any]], backend: str) -> None:
    costs = {size: lookup_of(find(sweep, "iptables", backend, size))["mode"] for size in SIZES}
    growth = {(costs[b] - costs[a]) / (b - a) for a, b in ((10, 100), (100, 1000), (10, 1000))}
    assert len(growth) == 1
    [each] = growth
    assert each == int(each)
    assert each > 10


def test_nftables_does_not_grow(sweep: list[dict[str, Any]]) -> None:
    costs = [lookup_of(find(sweep, "nftables", "nft", size))["mode"] for size in SIZES]
    assert max(costs) - min(costs) < 200, "more than a hash bucket's chain"


def lookup_of(result: dict[str, Any]) -> dict[str, Any]:
    [probe] = [each for each in result["probes"] if each["lookup"]]
    return dict(probe)


def test_result_says_what_it_is(sweep: list[dict[str, Any]]) -> None:
    result = find(sweep, "iptables", "legacy", 1000)
    run = result["run"]
    assert (run["clock"], run["emulated"], run["probe_kind"], run["path"]) == ("instructions", True, "fentry", "hit")
    assert (run["position"], run["chain_length"]) == (1002, 1003)
    assert run["kernel"].startswith(("5.", "6.", "7."))
    assert run["bpftrace"].startswith("v0.")
    assert result["target"] == {"ip": "10.96.100.50", "port": 50051, "protocol": "udp"}


def test_log_and_result_are_saved(sweep: list[dict[str, Any]]) -> None:
    result = find(sweep, "iptables", "nft", 100)
    log = Path(result["run"]["log"])
    assert json.loads(log.with_suffix(".json").read_text())["probes"] == result["probes"]
    text = log.read_text()
    assert "Kube-proxy mode: iptables\n" in text
    assert "--- IPTABLES MODE ---\nTotal invocations: 2000\n" in text
    assert "Avg latency: " in text


def test_nothing_is_left(sweep: list[dict[str, Any]], counting: Guest) -> None:
    assert sweep
    assert counting.state() == ["lo"]


@pytest.mark.parametrize(("mode", "backend", "astray"), [
    ("iptables", "legacy", "untranslated"),
    ("nftables", "nft", "rejected"),
])  # fmt: skip
def test_tcp_only_worker_is_the_miss_path(counting: Guest, mode: str, backend: str, astray: str) -> None:
    done = counting.kproxylat(
        *("run", "0.5", "1000", "--lab", "--mode", mode, "--backend", backend, "--services", "10"),
        *("--worker-ports", "tcp", "--format", "json"),
    )
    assert done.status == 0, done.err
    assert done.err.index("miss path") < done.err.index("Starting packet generation")
    counts = done.json["accounting"]
    assert done.json["run"]["path"] == "miss"
    assert counts["sent"] == counts["lookups"] == counts[astray] == 500
    assert counts["delivered"] == 0
    assert not counts["rule_hits"]
    assert counts["closed"] is True


def test_position_first_costs_less(counting: Guest, sweep: list[dict[str, Any]]) -> None:
    done = counting.kproxylat(
        *("run", "0.2", "1000", "--lab", "--mode", "iptables", "--backend", "legacy", "--services", "1000"),
        *("--position", "first", "--format", "json"),
    )
    assert done.status == 0, done.err
    assert done.json["run"]["position"] == 1
    last = lookup_of(find(sweep, "iptables", "legacy", 1000))["mode"]
    each = (last - lookup_of(find(sweep, "iptables", "legacy", 10))["mode"]) / 990
    # Last, 1,000 dummies and the worker's own TCP port stand before it. The latter's address matches, so that it
    # takes somewhat longer to turn away.
    assert 0 < last - 1000 * each - lookup_of(done.json)["mode"] < 4 * each
