"""The main job on a real kernel, with the real bpftrace and the real pktgen: exact costs, closed books."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kproxylat.analysis.compare import compare
from tests.vm.commands import BACKENDS, lookup_of, run_sweep
from tests.vm.conftest import Guest

SIZES = (10, 100, 1000)
POINTS = [(*each, size) for each in BACKENDS for size in SIZES if each[0] == "iptables" or size != 100]


@pytest.fixture(scope="module")
def document(counting: Guest) -> dict[str, Any]:
    """Mode iptables: 1,000 UDP packets at 1,000 pps for each number of Services."""
    argv = ("1", "1000", "--mode", "iptables", "--services", "10,100,1000", "--protocol", "udp")
    done = counting.kproxylat("sweep", *argv, "--lab", "--format", "json")
    assert done.status == 0, done.err
    return done.json


@pytest.fixture(scope="module")
def sweep(document: dict[str, Any], counting: Guest) -> list[dict[str, Any]]:
    """Four backends."""
    results: list[dict[str, Any]] = document["results"]
    return results + run_sweep(
        counting, "1", "1000", "--mode", "nftables,ipvs", "--services", "10,1000", "--protocol", "udp"
    )


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_the_sender_sees_what_the_probe_sees(document: dict[str, Any], backend: str) -> None:
    """What each Service adds, by bpftrace around the engine alone, and by the time of the sender's system call."""
    [check] = [series["cross_check"] for series in document["series"] if series["backend"] == backend]
    assert check["unit"] == "instructions"
    assert check["send_time"]["estimate"] == pytest.approx(check["probe"]["estimate"], abs=0.1)
    assert check["agrees"] is True
    timed = [result["send_time"] for result in document["results"] if result["run"]["backend"] == backend]
    assert [times["sent"] for times in timed] == [{"target": 500}] * 3
    assert not any(times["late"] for times in timed)


def find(sweep: list[dict[str, Any]], mode: str, backend: str, services: int) -> dict[str, Any]:
    wanted = {"mode": mode, "backend": backend, "services": services}
    [result] = [each for each in sweep if wanted.items() <= each["run"].items()]
    return result


@pytest.mark.parametrize(("mode", "backend", "services"), POINTS)
def test_books_close(sweep: list[dict[str, Any]], mode: str, backend: str, services: int) -> None:
    result = find(sweep, mode, backend, services)
    counts = result["accounting"]
    assert counts["sent"] == counts["lookups"] == counts["delivered"] == 1000
    assert counts["rule_hits"] == (None if mode == "nftables" else 1000)
    assert counts["untranslated"] == counts["rejected"] == 0
    assert counts["closed"] is True
    assert result["traffic"]["asked"] == result["traffic"]["sent"] == 1000
    assert result["traffic"]["pps"] == pytest.approx(1000, rel=0.05)
    assert result["quality"]["lost_events"] == 0
    assert result["quality"]["missed_probes"] == 0
    assert result["quality"]["full_maps"] == []


@pytest.mark.parametrize(("mode", "backend", "services"), POINTS)
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
    if mode == "ipvs":
        expected = {(None, None, "INPUT"), (None, None, "OUTPUT")}
    if mode == "nftables":
        chains = {"filter-prerouting-pre-dnat": "PREROUTING", "nat-prerouting": "PREROUTING"}
        chains |= {"filter-forward": "FORWARD", "nat-postrouting": "POSTROUTING"}
        expected = {("kube-proxy", chain, hook) for chain, hook in chains.items()}
    assert set(probes) == expected
    for probe in probes.values():
        assert probe["count"] == 1000
        assert probe["unit"] == "instructions"
        assert sum(probe["values"].values()) == 1000
        assert sum(bucket["count"] for bucket in probe["histogram"]["buckets"]) == 1000
        assert probe["min"] <= probe["mode"] <= probe["max"]
        assert probe["sum"] == sum(int(value) * count for value, count in probe["values"].items())
    [lookup] = [key for key, probe in probes.items() if probe["lookup"]]
    chain = "nat-prerouting" if mode == "nftables" else "PREROUTING" if backend == "nft" else None
    table = {"iptables": "nat", "nftables": "kube-proxy", "ipvs": None}[mode]
    assert lookup == (table, chain, "INPUT" if mode == "ipvs" else "PREROUTING")


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_iptables_grows_by_one_integer_a_service(sweep: list[dict[str, Any]], backend: str) -> None:
    costs = {size: lookup_of(find(sweep, "iptables", backend, size))["mode"] for size in SIZES}
    growth = {(costs[b] - costs[a]) / (b - a) for a, b in ((10, 100), (100, 1000), (10, 1000))}
    assert len(growth) == 1
    [each] = growth
    assert each == int(each)
    assert each > 10


@pytest.mark.parametrize(("services", "protocol", "verdict"), [
    ("10,100", "tcp", "unclear"),
    pytest.param("10,100,200", "both", "O(n)", marks=pytest.mark.long),
])  # fmt: skip
def test_a_rule_on_nft_costs_a_tcp_packet_more(
    counting: Guest, document: dict[str, Any], services: str, protocol: str, verdict: str
) -> None:
    """Its first comparison is the protocol; a legacy rule compares the address first. The other Services are of TCP."""
    words = ("--mode", "iptables", "--services", services, "--protocol", protocol, "--format", "json")
    done = counting.kproxylat("sweep", "--lab", "0.2", "1000", *words)
    assert done.status == 0, done.err
    assert all(result["accounting"]["closed"] for result in done.json["results"])
    series = {(line["backend"], line["protocol"]): line for line in document["series"] + done.json["series"]}
    assert {line["verdict"] for key, line in series.items() if protocol in (key[1], "both")} == {verdict}
    adds = {key: line["per_service"]["estimate"] for key, line in series.items()}
    assert adds["legacy", "tcp"] == pytest.approx(adds["legacy", "udp"], abs=0.02), "one instruction in 90 Services"
    assert adds["nft", "tcp"] > 1.3 * adds["nft", "udp"]


def test_series_are_judged_and_saved(document: dict[str, Any], counting: Guest) -> None:
    verdicts = {(each["mode"], each["backend"]): each["verdict"] for each in document["series"]}
    assert verdicts == {("iptables", "legacy"): "O(n)", ("iptables", "nft"): "O(n)"}
    assert all(point["residual"] == 0 for each in document["series"][:2] for point in each["points"])
    assert document in [json.loads(each.read_text()) for each in counting.directory.glob("sweep_*.json")]
    assert not list(counting.directory.glob("sweep_*.state"))


@pytest.mark.parametrize(("services", "differs"), [pytest.param(10, False, marks=pytest.mark.long), (11, True)])
def test_compare_finds_one_rule_more_and_nothing_in_a_repeat(
    sweep: list[dict[str, Any]], counting: Guest, services: int, differs: bool
) -> None:
    done = counting.kproxylat(
        *("run", "0.5", "1000", "--lab", "--mode", "iptables", "--backend", "nft", "--services", str(services)),
        *("--format", "json"),
    )
    assert done.status == 0, done.err
    logs = [find(sweep, "iptables", "nft", 10)["run"]["log"], done.json["run"]["log"]]
    [found] = compare(*(str(Path(log).with_suffix(".json")) for log in logs))
    assert found.differs is differs, found.statement
    assert [each.what for each in found.calls if each.differs] == []


@pytest.mark.parametrize("mode", ["nftables", "ipvs"])
def test_maps_and_hashes_do_not_grow(sweep: list[dict[str, Any]], mode: str) -> None:
    costs = [lookup_of(each)["mode"] for each in sweep if each["run"]["mode"] == mode]
    assert len(costs) == 2
    assert max(costs) - min(costs) < 200, "more than a hash bucket's chain"


@pytest.mark.parametrize(("services", "backends"), [
    ("10", "legacy"),
    pytest.param("10,1000", "legacy,nft,ipvs", marks=pytest.mark.long),
])  # fmt: skip
def test_kprobes_count_the_same(timing: Guest, services: str, backends: str) -> None:
    """The same books by the other kind of probe, on the other clock and two processors."""
    results = run_sweep(
        *(timing, "0.5", "400", "--services", services, "--backend", backends, "--probe", "kprobe"),
        *("--protocol", "udp"),
    )
    expected = {each for each in BACKENDS if each[1] in backends.split(",")}
    assert {(each["run"]["mode"], each["run"]["backend"]) for each in results} == expected
    for each in results:
        assert each["run"]["probe_kind"] == "kprobe"
        assert each["accounting"]["closed"] is True
        assert each["accounting"]["sent"] == each["accounting"]["lookups"] == 200
        assert {probe["count"] for probe in each["probes"]} == {200}
        assert each["quality"]["missed_probes"] == 0


@pytest.mark.parametrize(
    ("mode", "backend"), [pytest.param(*each, marks=[] if "ipvs" in each else [pytest.mark.long]) for each in BACKENDS]
)
def test_the_nodes_own_packets(counting: Guest, mode: str, backend: str) -> None:
    done = counting.kproxylat(
        *("run", "0.2", "1000", "--lab", "--mode", mode, "--backend", backend, "--services", "10"),
        *("--from", "node", "--format", "json"),
    )
    assert done.status == 0, done.err
    result = done.json
    assert result["run"]["origin"] == "node"
    assert lookup_of(result)["hook"] == "OUTPUT"
    # ipvs has a call within the call, which takes 750.
    assert mode != "ipvs" or lookup_of(result)["mode"] > 5000
    counts = result["accounting"]
    assert counts["sent"] == counts["lookups"] == counts["delivered"] == 200
    assert counts["closed"] is True


def test_result_says_what_it_is(sweep: list[dict[str, Any]]) -> None:
    result = find(sweep, "iptables", "legacy", 1000)
    run = result["run"]
    assert (run["clock"], run["emulated"], run["probe_kind"], run["path"]) == ("instructions", True, "fentry", "hit")
    assert (run["position"], run["chain_length"]) == (1002, 1003)
    assert run["kernel"].startswith(("5.", "6.", "7."))
    assert run["bpftrace"].startswith("v0.")
    target = {"ip": "10.96.100.50", "port": 50051, "protocol": "udp"}
    assert {name: result["target"][name] for name in target} == target


def test_log_and_result_are_saved(sweep: list[dict[str, Any]]) -> None:
    result = find(sweep, "iptables", "nft", 100)
    log = Path(result["run"]["log"])
    assert json.loads(log.with_suffix(".json").read_text())["probes"] == result["probes"]
    text = log.read_text()
    assert "Kube-proxy mode: iptables\n" in text
    assert "--- IPTABLES MODE ---\nTotal invocations: 1000\n" in text
    assert "Avg latency: " in text


def test_nothing_is_left(sweep: list[dict[str, Any]], counting: Guest) -> None:
    assert sweep
    assert counting.state() == ["lo"]


@pytest.mark.parametrize(("mode", "backend", "astray"), [
    ("iptables", "legacy", "untranslated"),
    pytest.param("nftables", "nft", "rejected", marks=pytest.mark.long),
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


@pytest.mark.long
def test_position_first_costs_less(counting: Guest, sweep: list[dict[str, Any]]) -> None:
    done = counting.kproxylat(
        *("run", "0.2", "1000", "--lab", "--mode", "iptables", "--backend", "legacy", "--services", "100"),
        *("--position", "first", "--format", "json"),
    )
    assert done.status == 0, done.err
    assert done.json["run"]["position"] == 1
    last = lookup_of(find(sweep, "iptables", "legacy", 100))["mode"]
    each = (last - lookup_of(find(sweep, "iptables", "legacy", 10))["mode"]) / 90
    # Last, 100 dummies and the worker's own TCP port stand before it. The latter's address matches, so that it
    # takes somewhat longer to turn away.
    assert 0 < last - 100 * each - lookup_of(done.json)["mode"] < 4 * each
