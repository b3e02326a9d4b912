"""The target's rule among the live rules: that of a NodePort."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kproxylat.modes import find_mode
from kproxylat.node import service_rule
from kproxylat.node.service_rule import ServiceRule, read_service_rule
from kproxylat.results import Target

LEGACY, NFTABLES = find_mode("iptables", "legacy"), find_mode("nftables", None)
NODE_PORT = Target("10.99.0.2", 30051, "udp")
SERVICES = """-N KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.9/32 -p udp -m comment --comment "default/web cluster IP" -m udp --dport 30051 -c 9 9 -j X
-A KUBE-SERVICES -m comment --comment "must be the last rule" -m addrtype --dst-type LOCAL -c 9 9 -j KUBE-NODEPORTS
"""
PORTS = """-N KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m comment --comment "default/web --dport 30051" -m tcp --dport 30052 -c 1 60 -j KUBE-EXT-A
-A KUBE-NODEPORTS -d 127.0.0.0/8 -p udp -m comment --comment x -m udp --dport 30051 -m nfacct -c 5 5 -j KUBE-EXT-B
-A KUBE-NODEPORTS -p udp -m comment --comment "default/worker:grpc-udp" -m udp --dport 30051 -c 7 420 -j KUBE-EXT-B
"""
MAPS: dict[str, list[Any]] = {
    "service-ips": [[{"concat": ["10.96.0.9", "udp", 30051]}, {}]],
    "service-nodeports": [[{"concat": ["udp", 30051]}, {}]],
}


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that has one address."""

    def run(*argv: str, **_: object) -> str:
        if argv[0] == "nft":
            return json.dumps({"nftables": [{"map": {"elem": MAPS[argv[-1]]}}]})
        if argv[0] == "ip":
            own = argv[-1] == NODE_PORT.ip
            return f"local {argv[-1]} dev lo src x" if own else f"{argv[-1]} via 10.0.0.1 dev eth0"
        return {"KUBE-SERVICES": SERVICES, "KUBE-NODEPORTS": PORTS}[argv[-1]]

    monkeypatch.setattr(service_rule, "run", run)


def test_packets_to_a_node_port_pass_all_rules() -> None:
    assert read_service_rule(LEGACY, NODE_PORT, None) == ServiceRule(True, 2, 2, 7)
    assert read_service_rule(NFTABLES, NODE_PORT, None) == ServiceRule(True)


@pytest.mark.parametrize("target", [Target("10.99.0.3", 30051, "udp"), Target("10.99.0.2", 30051, "tcp"),
                                    Target("10.99.0.2", 30052, "udp")])  # fmt: skip
def test_other_ports_and_the_ports_of_other_addresses_are_not_found(target: Target) -> None:
    assert read_service_rule(LEGACY, target, None) == ServiceRule(False, None, 2, 0)
    assert not read_service_rule(NFTABLES, target, None).found


def test_one_of_several_targets_cannot_be_a_node_port() -> None:
    service = Target("10.96.0.9", 30051, "udp")
    assert read_service_rule(LEGACY, service, None, (service,)).found
    assert not read_service_rule(LEGACY, NODE_PORT, None, (service,)).found
    assert not read_service_rule(NFTABLES, NODE_PORT, None, (service,)).found
