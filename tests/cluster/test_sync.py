"""Waiting for kube-proxy: it ends when the rules hold what the API holds, and says what is missing where they don't."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress

import pytest

from kproxylat.cluster import sync
from kproxylat.cluster.api import Api
from kproxylat.cluster.dummies import create, plan_creation, read_dummies
from kproxylat.cluster.metrics import count_nat_rules
from kproxylat.cluster.proxy_mode import Evidence
from kproxylat.cluster.sync import is_idle, keep_existing, live_ports, mode_ports, service_ports, wait_for_rules
from kproxylat.errors import MachineError
from kproxylat.modes import find_mode
from kproxylat.node import live_rules
from kproxylat.node.live_rules import LiveRules, parse_ip_vs, parse_nat, parse_service_ips, read_proxy
from kproxylat.results import Target
from tests.support import TESTS
from tests.support.fake_api import FakeApi

METRICS = (TESTS / "kube-api/metrics.txt").read_text()
PORTS = {Target(f"10.97.0.{number}", 80, "tcp") for number in range(1, 6)}
OTHER = Target("10.96.0.1", 443, "tcp")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "PAUSE_S", 0.01)


def test_the_wait_ends_with_the_last_rule() -> None:
    looks: list[Set[Target]] = [set(), set(list(PORTS)[:4]), PORTS | {OTHER}, PORTS]
    left = iter(looks)
    assert wait_for_rules(PORTS, read=lambda _: next(left), idle=lambda _: True) > 0
    assert next(left) == PORTS  # The fourth look was not needed.


@pytest.mark.parametrize("limit_s", [0.0, 5.0])
def test_a_port_that_is_gone_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, limit_s: float) -> None:
    """Its Service was deleted, or lost its endpoints, after the wait began; also in the last moment."""
    monkeypatch.setattr(sync, "LOOK_UP_S", 0.05)
    wait_for_rules(
        PORTS | {OTHER}, limit_s=limit_s, read=lambda _: PORTS, idle=lambda _: True, look_up=lambda: {*PORTS}
    )
    looks: list[int] = []
    with pytest.raises(MachineError, match=r"1 Service ports are missing, such as 10\.96\.0\.1:443/tcp"):
        wait_for_rules(
            PORTS | {OTHER},
            limit_s=0.01,
            read=lambda _: PORTS,
            idle=lambda _: True,
            look_up=lambda: looks.append(1) or PORTS | {OTHER},
        )
    assert looks


def test_ports_that_still_exist(api: Api, fake: FakeApi) -> None:
    create(api, read_dummies(api), plan_creation(read_dummies(api), 4))
    ports = service_ports(read_dummies(api))
    assert (len(ports), keep_existing(api, {*ports, OTHER})) == (4, ports)
    # One Service is deleted, one endpoint is gone, one terminates and still serves.
    [first, second, third, fourth] = [f"dummy-service-{number}" for number in range(4)]
    address = {key[3]: document["spec"]["clusterIP"] for key, document in fake.objects.items() if key[1] == "services"}
    slices = {key[3]: document for key, document in fake.objects.items() if key[1] == "endpointslices"}
    del fake.objects["", "services", "default", first]
    slices[second]["endpoints"] = []
    slices[third]["endpoints"][0]["conditions"] = {"ready": False, "serving": True, "terminating": True}
    slices[fourth]["endpoints"][0]["conditions"] = {"ready": False, "serving": False, "terminating": True}
    left = {Target(address[third], 80, "tcp")}
    assert keep_existing(api, ports) == left
    assert service_ports(read_dummies(api)) == left
    for key, document in fake.objects.items():
        if key[1:] == ("services", "default", third):
            document["spec"]["externalIPs"] = ["192.0.2.1"]
            document["status"] = {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}, {"hostname": "x"}]}}
    more = {Target(ip, 80, "tcp") for ip in ("192.0.2.1", "203.0.113.7", "192.0.2.2")}
    assert len(keep_existing(api, ports | more)) == 3
    fake.denied.add(("list", "services"))
    assert keep_existing(api, ports) == ports, "without the permission, all are waited for"


def test_a_required_port_is_not_a_removed_one() -> None:
    """A ClusterIP may be given out again."""
    wait_for_rules(PORTS, {*PORTS, OTHER}, 0, read=lambda _: PORTS, idle=lambda _: True)


def test_progress_counts_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []

    @contextmanager
    def counting(_: str, total: int) -> Iterator[Callable[[], None]]:
        shown.append(total)
        yield lambda: shown.append("one")

    monkeypatch.setattr(sync, "counting", counting)
    looks: Iterator[Set[Target]] = iter([{OTHER}, {OTHER, *list(PORTS)[:3]}, set(list(PORTS)[:2]), PORTS])
    wait_for_rules(PORTS, {OTHER}, read=lambda _: next(looks), idle=lambda _: True)
    assert shown == [6, *["one"] * 6]


def test_the_wait_ends_when_removed_ports_have_gone_and_kube_proxy_is_idle() -> None:
    looks, busy = iter([PORTS, {OTHER}, {OTHER}]), iter([False, True])
    wait_for_rules(set(), PORTS, read=lambda _: next(looks), idle=lambda _: next(busy))
    with pytest.raises(StopIteration):
        next(looks)


@pytest.mark.parametrize(
    ("expected", "removed", "held", "idle", "message"),
    [
        (PORTS, set(), {OTHER}, True, "5 Service ports are missing, such as 10.97.0.1:80/tcp"),
        (
            {OTHER},
            PORTS,
            PORTS,
            True,
            "1 Service ports are missing, such as 10.96.0.1:443/tcp; 5 Service ports are still",
        ),
        (set(), set(), set(), False, "it is still busy"),
    ],
)
def test_a_timeout_counts_the_missing_ports(
    expected: set[Target], removed: set[Target], held: set[Target], idle: bool, message: str
) -> None:
    with pytest.raises(MachineError, match=r"not up to date after 0\.05 s") as caught:
        wait_for_rules(expected, removed, 0.05, read=lambda _: held, idle=lambda _: idle)
    assert message in str(caught.value)
    assert "kubectl -n kube-system logs" in caught.value.remedy


def test_recorded_metrics() -> None:
    assert is_idle(METRICS)
    assert not is_idle(METRICS.replace("service_changes_pending 0", "service_changes_pending 2"))
    # Queued after the last sync began, of one family.
    assert not is_idle(
        METRICS.replace(
            'queued_timestamp_seconds{ip_family="IPv6"} 1.795', 'queued_timestamp_seconds{ip_family="IPv6"} 1.995'
        )
    )
    assert is_idle("")
    with pytest.raises(MachineError, match="cannot read kube-proxy's /metrics: ") as caught:
        is_idle("<html>no metrics</html>\n")
    assert "curl http://localhost:10249/metrics" in caught.value.remedy
    assert "\n" not in str(caught.value)
    # Just started: a labelled gauge is not there before it is set.
    started = re.sub(r"(?m)^kubeproxy_sync_proxy_rules_last_\w*timestamp_seconds.*\n", "", METRICS)
    assert started != METRICS
    assert not is_idle(started)
    assert not is_idle(started + "kubeproxy_sync_proxy_rules_last_timestamp_seconds 0\n")
    assert is_idle(started + "kubeproxy_sync_proxy_rules_last_timestamp_seconds 1.7e+09\n")


def test_unreadable_metrics_end_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"/metrics": METRICS}
    monkeypatch.setattr(sync, "read_proxy", lambda path, **_: answers[path])
    wait_for_rules(PORTS, read=lambda _: PORTS)
    answers["/metrics"] = "not metrics"
    with pytest.raises(MachineError, match="cannot read kube-proxy's /metrics"):
        wait_for_rules(PORTS, read=lambda _: PORTS)


def test_service_ports(api: Api, fake: FakeApi) -> None:
    create(api, read_dummies(api), plan_creation(read_dummies(api), 3))
    assert fake.named("services")
    found = read_dummies(api)
    addresses = {each["spec"]["clusterIP"] for each in found.services.values()}
    assert service_ports(found) == {Target(address, 80, "tcp") for address in addresses}
    found.services[0]["spec"]["clusterIPs"] = ["fd00::1"]
    found.services[1]["spec"]["clusterIPs"] = ["fd00::2", "10.97.9.9"]
    names = {each.ip for each in service_ports(found)}
    assert len(names) == 3
    assert {"fd00::1", "10.97.9.9"} < names


def test_mode_ports_are_the_same_in_every_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports of Services without endpoints, and NodePorts, are ipvs' alone; load balancers' are in all of them."""
    balancer = Target("203.0.113.7", 80, "tcp")
    endpoint = "  -> 0A630002:192B      Masq    1      0          0\n"
    ip_vs = f"TCP  0A600001:01BB rr\n{endpoint}TCP  CB007107:0050 rr\n{endpoint}UDP  0A606433:C383 rr\n"
    ip_vs += f"TCP  C0000209:7580 rr\n{endpoint}"
    links = [
        {"ifname": "eth0", "addr_info": [{"local": "192.0.2.9"}]},
        {"ifname": "kube-ipvs0", "addr_info": [{"local": "10.96.0.1"}, {"local": "203.0.113.7"}]},
        {"ifname": "lo"},
    ]
    monkeypatch.setattr(sync, "run", lambda *_, **__: json.dumps(links))
    rule = '[0:0] -A KUBE-SERVICES -d {}/32 -p tcp -m comment --comment "x" -m tcp --dport {} -j KUBE-{}-X'
    nat = "\n".join([rule.format("10.96.0.1", 443, "SVC"), rule.format(balancer.ip, 80, "EXT")])
    firewalled = nat.replace("EXT", "FW")
    elements = [({"concat": [each.ip, "tcp", each.port]}, {"goto": {}}) for each in (OTHER, balancer)]
    service_ips = json.dumps({"nftables": [{"map": {"elem": elements}}]})
    for rules in (
        parse_ip_vs(ip_vs, find_mode("ipvs", None)),
        parse_service_ips(service_ips, find_mode("nftables", None)),
        parse_nat(nat, find_mode("iptables", "nft")),
        parse_nat(firewalled, find_mode("iptables", "legacy")),
    ):
        assert rules
        monkeypatch.setattr(sync, "gather", lambda _, rules=rules, **__: Evidence(rules=(rules,)))
        assert mode_ports(None, rules.mode) == {OTHER, balancer}


def test_mode_ports_without_those_of_leftover_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    left = LiveRules("iptables", "legacy", 6, dict.fromkeys([OTHER, Target("10.96.7.7", 1, "udp")], 0))
    rules = left, LiveRules("iptables", "nft", 6, dict.fromkeys([OTHER, *PORTS], 0))
    monkeypatch.setattr(sync, "gather", lambda _, **__: Evidence(running="iptables", rules=rules))
    assert mode_ports(None, "iptables", set.intersection) == {OTHER}
    assert mode_ports(None, "iptables") == {*left.services, *PORTS}
    assert mode_ports(None, "nftables", set.intersection) == set()


def test_live_ports_without_those_of_leftover_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = (
        LiveRules("iptables", "legacy", 6, dict.fromkeys(PORTS, 0)),
        LiveRules("nftables", "nft", 1, {OTHER: None}),
    )
    monkeypatch.setattr(sync, "gather", lambda _, **__: Evidence(running="nftables", rules=rules))
    assert live_ports() == {OTHER}
    monkeypatch.setattr(sync, "gather", lambda _, **__: Evidence(rules=rules))
    with pytest.raises(MachineError, match="ambiguous: the kernel holds the rules of iptables on legacy and nftables"):
        live_ports()
    assert live_ports(mode="nftables") == {OTHER}
    assert live_ports(mode="iptables", backend="legacy") == PORTS
    monkeypatch.setattr(sync, "gather", lambda _, **__: Evidence(unasked=["this kernel's rules: it takes root"]))
    with pytest.raises(MachineError, match="takes root"):
        live_ports()


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf"])
def test_a_number_of_rules_that_is_none_is_unknown(value: str) -> None:
    assert count_nat_rules(f'kubeproxy_sync_proxy_rules_iptables_total{{table="nat"}} {value}\n') is None


@pytest.mark.parametrize(
    ("head", "piece"), [(b"HTTP/1.1 200 OK\r\n\r\n", b"x"), (b"", b"HTTP/1.1 100 Continue\r\n\r\n")]
)
def test_an_answer_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch, head: bytes, piece: bytes) -> None:
    """Where no kube-proxy holds the port, anybody may listen there."""
    monkeypatch.setattr(live_rules, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(live_rules, "METRICS_PORT", server.getsockname()[1])

        def drip() -> None:
            with suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.sendall(head)
                    while True:
                        connection.sendall(piece)
                        time.sleep(0.01)

        threading.Thread(target=drip, daemon=True).start()
        with pytest.raises(MachineError, match="its answer has no end within 16 MiB"):
            read_proxy("/metrics")
