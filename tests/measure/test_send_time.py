"""The send time, on this machine's own kernel: real packets, real rules, no tracing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections import Counter
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from kproxylat.cli.options import Kind
from kproxylat.errors import CommandError, MachineError
from kproxylat.measure import conntrack
from kproxylat.measure.expected import expect_s
from kproxylat.measure.options import Lab, Options, Sending, Tracing
from kproxylat.measure.send_time import build_send_time, time_sends
from kproxylat.modes import find_mode
from kproxylat.node.network import Network
from kproxylat.results import Result, SendTime, Target
from kproxylat.results_json import from_json, to_json
from kproxylat.system import kernel
from kproxylat.traffic.burst import Burst
from kproxylat.traffic.generators import GENERATORS
from kproxylat.traffic.sender import open_arrivals
from tests.support.command import RULES
from tests.support.namespaces import measure_alone, run_alone, run_on_node, run_python, sweep_alone

pytestmark = pytest.mark.slow

LAB = ("--lab", "--probe", "none", "--services", "20")
PACKETS = 200
SHORT = ("0.2", "1000", "20")
ROWS = [("iptables", "legacy"), ("iptables", "nft"), ("nftables", "nft")]

FOUND: dict[str, Any] = {
    "sent": 4, "errors": 0, "seconds": 1.0, "clock": 50, "checked": 3, "late": 0, "totals": [5, 5, 5],
    "preempted": [0, 1, 0], "times": [{"10": 3, "30": 1}, {"8": 3}, {"9": 4}],
    "apart": [{"2": 3}, {"1": 3, "21": 1}], "blocks": [[10, 20], [8, 8], [9, 9], [2, 2], [1, 11]],
}  # fmt: skip


def test_times_become_distributions_and_differences_with_bounds() -> None:
    times = build_send_time(FOUND, "ns")
    assert times.endpoint
    assert times.no_service
    assert times.target.values == {"10": 3, "30": 1}
    assert (times.target.min, times.target.max, times.target.count) == (10, 30, 4)
    assert times.target.percentiles["50"].estimate == 10
    assert times.over_endpoint
    assert times.over_no_service
    assert (times.over_endpoint.estimate, times.over_endpoint.lo, times.over_endpoint.hi) == (2, 2, 2)
    assert (times.over_no_service.estimate, times.over_no_service.lo, times.over_no_service.hi) == (1, 1, 11)
    assert times.preempted == {"target": 0, "endpoint": 1, "no_service": 0}
    assert times.blocks == (10, 20)


def test_without_controls_there_are_no_differences() -> None:
    alone = {**FOUND, "totals": [5], "preempted": [0], "times": FOUND["times"][:1], "apart": [], "blocks": [[1, 2]]}
    times = build_send_time(alone, "ns")
    assert (times.endpoint, times.no_service, times.over_endpoint, times.over_no_service) == (None,) * 4
    assert times.sent == {"target": 5}


def test_packets_that_arrive_after_the_call_are_refused() -> None:
    with pytest.raises(MachineError, match="1 of 3 packets arrived after their system call had returned") as caught:
        build_send_time({**FOUND, "late": 1}, "ns")
    assert "rps_cpus" in caught.value.remedy


def test_no_time_is_an_error() -> None:
    with pytest.raises(MachineError, match="took no times"):
        build_send_time({**FOUND, "times": [{}, {}, {}]}, "ns")


@pytest.mark.parametrize(("free", "kept", "needed"), [(1000, True, 660), (659, False, 360)])
def test_conntrack_has_room_for_the_control_packets_too(
    monkeypatch: pytest.MonkeyPatch, free: int, kept: bool, needed: int
) -> None:
    """Each of 200 rounds has three packets, and so has each of the warm-up's 20; at 100 rounds a second."""
    monkeypatch.setattr(kernel, "conntrack_room", lambda _: free)
    monkeypatch.setattr(conntrack, "run", lambda *_, **__: "")
    sending = Sending(GENERATORS["sockets"], duration_s=2, rate_pps=100, warmup=20)
    options = Options(find_mode("nftables", None), where=Lab(), sending=sending, tracing=Tracing("none"))
    room = conntrack.make_room(options, Network("client", "node", "backend"))
    assert (room.kept, room.needed) == (kept, needed)


def test_the_rate_that_there_is_room_for_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "conntrack_room", lambda _: 359)
    monkeypatch.setattr(conntrack, "run", lambda *_, **__: "")
    sending = Sending(GENERATORS["sockets"], duration_s=20, rate_pps=100, warmup=20)
    options = Options(find_mode("nftables", None), where=Lab(), sending=sending, tracing=Tracing("none"))
    with pytest.raises(MachineError, match="360 flows at a time") as caught:
        conntrack.make_room(options, Network("client", "node", "backend"))
    assert caught.value.remedy == "there is room for 99 pps, or for a shorter run"


def check_complete(times: SendTime | None, packets: int = PACKETS) -> SendTime:
    """Check that every packet's time was taken, or that its lack is accounted for."""
    assert times
    assert times.target.unit == "ns"
    parts = {"target": times.target, "endpoint": times.endpoint, "no_service": times.no_service}
    measured = {kind: probe.count for kind, probe in parts.items() if probe}
    assert set(times.sent.values()) == {packets}
    assert sum(measured.values()) + sum(times.preempted.values()) + times.checked == packets * len(measured)
    assert times.checked == packets // 50 * len(measured)
    assert times.late == 0
    for probe in filter(None, parts.values()):
        assert Counter(probe.values).total() == probe.count
        # A whole way takes more than a microsecond, and less than a second.
        assert 1_000 < (probe.percentiles["50"].estimate or 0) < 1_000_000_000
    return times


@pytest.mark.parametrize("origin", ["pod", "node"])
@pytest.mark.parametrize(("mode", "backend"), ROWS)
def test_packets_to_a_node_port_are_all_translated_and_masqueraded(
    mode: str, backend: str, origin: str, tmp_path: Path
) -> None:
    words = (*LAB, *SHORT, "--node-port", "--mode", mode, "--backend", backend, "--from", origin)
    result = measure_alone(*words, directory=tmp_path)
    assert result.target == Target("10.99.0.2", 30051, "udp")
    books = result.accounting
    assert books
    hits = None if mode == "nftables" else PACKETS
    assert (books.closed, books.sent, books.rule_hits, books.delivered) == (True, PACKETS, hits, PACKETS)
    assert books.delivered_masqueraded == PACKETS
    assert (result.run.path, result.run.node_port, result.run.masqueraded) == ("hit", True, True)
    if mode == "iptables":
        # After the rules of 20 Services and both of the worker's.
        assert (result.run.position, result.run.chain_length) == (23, 23)
    assert not any("masqueraded" in warning for warning in result.quality.warnings)


@pytest.mark.parametrize(("mode", "backend"), ROWS)
def test_a_lab_is_measured_without_tracing_and_its_accounting_closes(mode: str, backend: str, tmp_path: Path) -> None:
    result = measure_alone(*LAB, *SHORT, "--mode", mode, "--backend", backend, directory=tmp_path)
    times = check_complete(result.send_time)
    assert set(times.sent) == {"target", "endpoint", "no_service"}
    books = result.accounting
    assert books
    hits = None if mode == "nftables" else PACKETS
    assert (books.sent, books.lookups, books.rule_hits, books.delivered) == (PACKETS, None, hits, PACKETS)
    assert (books.closed, books.strayed, books.entries) == (True, 0, 3 * PACKETS)
    assert (result.run.probe_kind, result.run.bpftrace, result.run.clock, result.run.emulated) == (
        *("none", None, "ns", False),
    )
    assert from_json(to_json(result)) == result


@pytest.mark.parametrize(
    ("more", "target"),
    [
        (("--family", "6", "--mode", "nftables"), "fd00:10:96::50"),
        (("--protocol", "tcp", "--mode", "iptables"), "10.96.100.50"),
        (("--from", "node", "--mode", "nftables"), "10.96.100.50"),
    ],
    ids=["IPv6", "TCP", "from the node"],
)
def test_other_packets(more: tuple[str, ...], target: str, tmp_path: Path) -> None:
    result = measure_alone(*LAB, *SHORT, *more, directory=tmp_path)
    check_complete(result.send_time)
    assert result.target
    assert result.target.ip == target
    assert result.accounting
    assert result.accounting.closed


@pytest.mark.parametrize(("mode", "backend"), ROWS)
def test_an_ordinary_user_needs_no_root(mode: str, backend: str, tmp_path: Path) -> None:
    # More Services than one transaction of a user namespace takes.
    many = ("--lab", "--probe", "none", "--services", "120")
    words = (*many, *SHORT, "--mode", mode, "--backend", backend)
    result = measure_alone(*words, user="nobody", directory=tmp_path)
    check_complete(result.send_time)
    assert result.accounting
    assert result.accounting.closed
    assert {path.owner() for path in tmp_path.iterdir()} == {"nobody"}


def test_a_user_without_namespaces_is_told_which_right_is_missing(tmp_path: Path) -> None:
    words = f"run {' '.join(LAB)} --mode nftables --output-dir {tmp_path}".split()
    limit = (
        "import resource, runpy, sys, ctypes\n"
        "ctypes.CDLL(None, use_errno=True).unshare = lambda _: -1\n"
        "import kproxylat.system.user_namespace as u\n"
        "u.ctypes.CDLL = lambda *_, **__: type('Refusing', (), {'unshare': staticmethod(lambda _: 1)})()\n"
        "u.ctypes.get_errno = lambda: 1\n"
        "sys.argv[1:] = " + json.dumps(words) + "\n"
        "runpy.run_module('kproxylat', run_name='__main__')\n"
    )
    done = run_python("-c", limit, user="nobody", directory=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "not root, and this kernel gives ordinary users no namespaces of their own" in done.stderr
    assert "kernel.unprivileged_userns_clone=1" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_log_is_parsed_to_the_same_times(tmp_path: Path) -> None:
    result = measure_alone(*LAB, *SHORT, "--mode", "nftables", directory=tmp_path)
    [log] = tmp_path.glob("*.log")
    done = run_python("-m", "kproxylat", "parse", "--format", "json", str(log), directory=tmp_path)
    [parsed] = json.loads(done.stdout)["results"]
    assert parsed["send_time"] == json.loads(to_json(result))["send_time"]


def test_options_of_tracing_are_refused(tmp_path: Path) -> None:
    for words, name in (
        (("--envelope",), "--envelope"),
        (("--overhead",), "--overhead"),
        (("--others",), "--others"),
        (("--generator", "pktgen"), "--generator pktgen"),
        (("--set", "a=b"), "--set"),
        (("--ruleset", RULES, "--every-service"), "--every-service"),
    ):
        done = run_alone("run", "--lab", "--probe", "none", *words, directory=tmp_path)
        assert done.returncode == 2
        assert f"{name} cannot be used with --probe none" in done.stderr


def test_a_sweep_judges_the_way_through_the_rules(tmp_path: Path) -> None:
    words = ("--lab", "--probe", "none", "--mode", "iptables,nftables", "--backend", "nft", "--services", "10,500,3000")
    document = sweep_alone(*words, "0.5", "1000", directory=tmp_path)
    assert all(result["accounting"]["closed"] for result in document["results"])
    verdicts = {series["mode"]: series["verdict"] for series in document["series"]}
    # A busy machine may leave it unclear, but never the other way round.
    assert verdicts["iptables"] in ("O(n)", "unclear")
    assert verdicts["nftables"] in ("O(1)", "unclear")
    costs = {series["mode"]: [point["cost"] for point in series["points"]] for series in document["series"]}
    assert costs["iptables"][-1] > 1.5 * costs["iptables"][0]


@pytest.mark.parametrize(("rules", "mode"), [
    ("iptables-legacy/n100/iptables-legacy-save.txt.gz", "iptables"),
    ("iptables-nft/n100/iptables-nft-save.txt.gz", "iptables"),
    ("nftables/n100/nft-list-ruleset.txt.gz", "nftables"),
])  # fmt: skip
@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_on_a_node_its_own_rules_are_measured(rules: str, mode: str, protocol: str, tmp_path: Path) -> None:
    """The node's rules are those that a kube-proxy wrote; nothing is measured at the pod."""
    target = {"udp": "10.96.100.51:50051", "tcp": "10.96.100.50:50051"}[protocol]
    words = ("--mode", mode, "--backend", rules.partition("/")[0].removeprefix("iptables-").replace("nftables", "nft"))
    more = ("--target", target, "--protocol", protocol, "--probe", "none", *SHORT)
    done = run_on_node(f"tests/kube-proxy-rules/{rules}", *words, *more, directory=tmp_path)
    assert done.returncode == 0, done.stderr
    result = from_json(done.stdout)
    assert str(result.target) == f"{target}/{protocol}"
    assert result.send_time
    assert dict(result.send_time.sent) == {"target": PACKETS}, "control packets would reach others' pods"
    assert result.send_time.late == 0
    books = result.accounting
    assert books
    # In mode nftables nothing on a node counts packets.
    assert (books.closed, books.sent, books.delivered) == (True if mode == "iptables" else None, PACKETS, None)
    assert books.rule_hits == (PACKETS if mode == "iptables" else None)


@pytest.mark.parametrize(
    ("backend", "origin", "arrivals"),
    [
        ("b", "pod", ("/run/netns/b", "InReceives")),
        ("b", "node", ("/run/netns/b", "InReceives")),
        (None, "pod", ("/run/netns/n", "ForwDatagrams")),
        (None, "node", ("", "")),
    ],
)
def test_where_a_packet_has_to_arrive(backend: str | None, origin: str, arrivals: tuple[str, str]) -> None:
    """Other traffic of a node raises its InReceives; no counter tells of the node's own packets."""
    burst = Burst(1, 1, IPv4Network("10.0.0.0/24"), Target("10.96.0.1", 1, "udp"), None, "pod0", "")
    options = Options(find_mode("nftables", "nft"))
    assert time_sends(burst, options, Network("c", "n", backend, origin)).arrivals == arrivals


@pytest.mark.parametrize(("counter", "first"), [("InReceives", "127.0.0.1"), ("ForwDatagrams", "::1")])
def test_a_counter_of_packets_is_read(counter: str, first: str) -> None:
    read = open_arrivals("/proc/self/ns/net", counter, ":" in first)
    before = read()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flow:
        flow.sendto(b"x", ("127.0.0.1", 9))
    assert (read() - before > 0) == (counter == "InReceives")


def test_on_a_container_its_own_rules_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docker is a stand-in, which knows one container and its process."""
    docker = tmp_path / "bin/docker"
    docker.parent.mkdir()
    docker.write_text('#!/bin/sh\nfor name; do :; done\n[ "$name" = kind-worker ] && ip netns pids node | head -1\n')
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{docker.parent}:{os.environ['PATH']}")
    words = ("--mode", "nftables", "--target", "10.96.100.50:50051", "--protocol", "udp", "--probe", "none", *SHORT)
    done = run_on_node("", *words, directory=tmp_path, place="--node-container=kind-worker")
    assert done.returncode == 0, done.stderr
    result = from_json(done.stdout)
    assert result.send_time
    assert dict(result.send_time.sent) == {"target": PACKETS}
    assert result.accounting
    assert result.accounting.closed is None
    refused = run_on_node("", *words, directory=tmp_path, place="--node-container=other")
    assert refused.returncode == 1
    assert "container other not found" in refused.stderr


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    before = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    result: Result = measure_alone(*LAB, *SHORT, "--mode", "nftables", directory=tmp_path)
    assert result.accounting
    after = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert after == before


SIGNALLED = """
import os, runpy, signal, sys
from kproxylat.measure import run

look, calls = run.look, []

def look_late(*words):
    calls.append(words)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return look(*words)

run.look = look_late
runpy.run_module("kproxylat", run_name="__main__")
"""
"""A signal comes when all packets are sent, while the counters are read."""


def test_a_signal_after_the_last_packet_loses_nothing(tmp_path: Path) -> None:
    words = ("run", "--lab", "--mode", "nftables", "--probe", "none", "--format", "json", *SHORT)
    done = run_python("-c", SIGNALLED, *words, "--output-dir", str(tmp_path), directory=tmp_path)
    assert done.returncode == 130, done.stderr
    result = from_json(done.stdout)
    assert result.accounting
    assert (result.accounting.closed, result.accounting.sent, result.run.cut_short) == (True, PACKETS, False)
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_flows_are_deleted_until_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """conntrack(8) stops at a flow that ended by itself since it was listed."""
    said = ["such conntrack doesn't exist", "such conntrack doesn't exist", "0 flow entries have been deleted."]

    def run(*argv: str, **_: object) -> str:
        if not said:
            return ""
        raise CommandError(list(argv), 1, said.pop(0))

    monkeypatch.setattr(conntrack, "run", run)
    conntrack.forget_flows(Network(None, "n", None), IPv4Network("10.0.0.0/24"))
    assert said == []
    said += ["Operation not permitted"]
    with pytest.raises(CommandError, match="not permitted"):
        conntrack.forget_flows(Network(None, "n", None), IPv4Network("10.0.0.0/24"))
    monkeypatch.setattr(conntrack, "DELETE_TRIES", 3)
    said += ["such conntrack doesn't exist"] * 9
    with pytest.raises(MachineError, match="conntrack still has flows of ours"):
        conntrack.forget_flows(Network(None, "n", None), IPv4Network("10.0.0.0/24"))


def test_packets_beside_each_other_take_no_longer() -> None:
    """Those to the endpoint and to no Service go at the rate of the others."""
    sending = Sending(GENERATORS["sockets"], 10, 1000, 0)
    untraced = Options(find_mode("nftables", "nft"), where=Lab(10), sending=sending, tracing=Tracing(Kind.NONE))
    assert len(untraced.controls) == 2
    assert 10 < expect_s(untraced, False) < 15
