"""Addresses to send from: a part of podCIDR that no route, neighbour, pod or endpoint has; else the reason why not."""

from __future__ import annotations

import json
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxylat.cluster import sources
from kproxylat.cluster.api import Api
from kproxylat.cluster.sources import choose_source, read_pod_cidr
from kproxylat.errors import MachineError
from kproxylat.node import addresses
from kproxylat.node.addresses import check_free, find_free
from kproxylat.node.node import Node
from tests.support.fake_api import FakeApi
from tests.support.nodes import ADDRESSES, BRIDGE, node_of

CIDR = IPv4Network("10.244.1.0/24")
DEFAULT = {"dst": "default", "gateway": "192.0.2.1", "dev": "eth0"}
CLUSTER = {"dst": "10.244.0.0/16", "gateway": "192.0.2.9", "dev": "eth0"}
LOCAL = {"type": "local", "dst": "10.244.1.1", "dev": "cni0", "table": "local"}
BROADCAST = {"type": "broadcast", "dst": "10.244.1.255", "dev": "cni0", "table": "local"}


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """What ip(8) lists on the node in namespace n1, by the object asked for."""
    listed = {"address": ADDRESSES, "route": [DEFAULT, CLUSTER, BRIDGE, LOCAL, BROADCAST], "neighbour": []}

    def run(*argv: str, netns: str | None) -> str:
        assert (argv[:3], netns) == (("ip", "-json", "-4"), "n1")
        # It prints nothing at all where there is nothing.
        return json.dumps(listed[argv[3]]) if listed[argv[3]] else ""

    for module in (addresses, sources):
        monkeypatch.setattr(module, "run", run)
    return listed


def pod_of(name: str, node: str, *ips: str) -> dict[str, Any]:
    status = {"podIPs": [{"ip": ip} for ip in ips]}
    meta = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"nodeName": node}, "status": status}


@pytest.fixture
def nodes(fake: FakeApi) -> FakeApi:
    fake.add(node_of("elsewhere", "192.0.2.3", "10.244.2.0/24"))
    fake.add(node_of("here", "192.0.2.2", "fd00:1::/64", "10.244.1.0/24"))
    return fake


@pytest.mark.usefixtures("nodes", "kernel")
def test_the_last_free_part(api: Api, fake: FakeApi) -> None:
    """The very last one holds the bridge's broadcast address."""
    assert choose_source(api, Node("n1", "x"), 6, 4) == IPv4Network("10.244.1.240/29")
    assert choose_source(api, Node("n1", "x"), 7, 4) == IPv4Network("10.244.1.224/28")
    assert choose_source(api, Node("n1", "x"), 1, 4) == IPv4Network("10.244.1.248/30")
    here = fake.objects["", "nodes", "", "here"]
    assert choose_source(api, None, 6, 4, document=here) == IPv4Network("10.244.1.240/29"), (
        "of a node that is not asked"
    )


def test_used_parts_are_not_chosen(api: Api, nodes: FakeApi, kernel: dict[str, list[dict[str, Any]]]) -> None:
    def choose() -> str:
        return str(choose_source(api, Node("n1", "x"), 6, 4, ["10.244.1.229:50051"]))

    nodes.add(pod_of("idle", "here", "10.244.1.241", "fd00:1::5"))
    nodes.add(pod_of("far", "elsewhere", "10.244.1.233"))
    assert choose() == "10.244.1.232/29", "not a pod's; those of another node are not asked for"
    kernel["neighbour"] += [
        {"dst": "10.244.1.234", "dev": "cni0", "state": ["STALE"]},
        {"dst": "10.244.1.217", "dev": "cni0", "state": ["FAILED"]},
    ]
    assert choose() == "10.244.1.216/29", "not a neighbour's, nor the endpoint's; a failed neighbour does not count"
    kernel["route"].append({"dst": "10.244.1.192/26", "gateway": "192.0.2.3", "dev": "eth0"})
    assert choose() == "10.244.1.184/29", "not what is routed elsewhere"
    kernel["route"].append({"type": "blackhole", "dst": "10.244.1.128/25"})
    assert choose() == "10.244.1.120/29"
    kernel["route"][2] = {**BRIDGE, "gateway": "192.0.2.3"}
    with pytest.raises(MachineError, match=r"podCIDR 10.244.1.0/24 has no free part of 6 addresses"):
        choose()


@pytest.mark.parametrize(("change", "message"), [
    ({"spec": {}}, "node here has no IPv4 podCIDR"),
    ({"spec": {"podCIDR": "fd00:1::/64"}}, "node here has no IPv4 podCIDR"),
    ({"spec": {"podCIDR": "10.244.1.0/30"}}, "podCIDR 10.244.1.0/30 has no free part of 6 addresses"),
    ({"status": {}, "metadata": {"name": "other"}}, "none of the cluster's 1 nodes has an address of this one, or is"),
])  # fmt: skip
@pytest.mark.usefixtures("kernel")
def test_no_free_part(api: Api, fake: FakeApi, change: dict[str, Any], message: str) -> None:
    fake.add({**node_of("here", "192.0.2.2", "10.244.1.0/24"), **change})
    with pytest.raises(MachineError, match=message):
        choose_source(api, Node("n1", "here"), 6, 4)


@pytest.mark.usefixtures("kernel")
def test_a_node_is_recognized_by_its_name(api: Api, fake: FakeApi) -> None:
    fake.add(node_of("here", "203.0.113.7", "10.244.1.0/24"))
    assert choose_source(api, Node("n1", "here"), 6, 4).subnet_of(CIDR)


@pytest.mark.parametrize("resource", ["nodes", "pods"])
@pytest.mark.usefixtures("kernel")
def test_missing_permissions_are_the_reason(api: Api, nodes: FakeApi, resource: str) -> None:
    nodes.denied.add(("list", resource))
    with pytest.raises(MachineError, match=r"cannot list nodes and pods: .*forbidden"):
        choose_source(api, Node("n1", "x"), 6, 4)


@given(st.lists(st.integers(0, 255)), st.integers(1, 300))
def test_a_free_part_is_free_and_large_enough(taken: list[int], addresses: int) -> None:
    hosts = {IPv4Network(int(CIDR.network_address) + each): "" for each in taken}
    try:
        found = find_free(CIDR, hosts, addresses)
    except MachineError:
        size = 1 << (addresses + 1).bit_length()
        assert size >= 256 or {each // size for each in taken} == {*range(256 // size)}
    else:
        assert found.subnet_of(CIDR)
        assert found.num_addresses - 2 >= addresses > found.num_addresses // 2 - 2
        assert not any(found.overlaps(each) for each in hosts)


@pytest.mark.parametrize(("source", "message"), [
    ("10.244.1.0/24", "a route, 10.244.1.0/24 dev cni0"),
    ("10.244.0.0/16", "sources 10.244.0.0/16 are not free: a route, 10.244.0.0/16"),
    ("10.244.1.248/29", "a route, 10.244.1.255 dev cni0"),
    ("10.244.1.240/29", "a neighbour, 10.244.1.241 dev cni0"),
])  # fmt: skip
def test_used_sources_of_the_command_line_are_refused(
    kernel: dict[str, list[dict[str, Any]]], source: str, message: str
) -> None:
    kernel["neighbour"].append({"dst": "10.244.1.241", "dev": "cni0", "state": ["REACHABLE"]})
    with pytest.raises(MachineError, match=message) as caught:
        check_free("n1", IPv4Network(source))
    assert "--source" in caught.value.remedy


@pytest.mark.usefixtures("kernel")
def test_free_sources_of_the_command_line() -> None:
    for each in ("10.244.1.240/29", "10.244.7.0/24", "198.18.0.0/15"):
        check_free("n1", IPv4Network(each))


def test_an_ipv6_part_of_a_dual_stack_node() -> None:
    document = node_of("here", "192.0.2.2", "10.244.1.0/24", "fd00:10:244:1::/64")
    cidr = read_pod_cidr(document, 6)
    assert cidr == IPv6Network("fd00:10:244:1::/64")
    last = IPv6Network("fd00:10:244:1:ffff:ffff:ffff:fff8/125")
    assert find_free(cidr, {}, 6) == last
    assert find_free(cidr, {IPv6Network(f"{last[3]}/128"): "a neighbour"}, 6) == IPv6Network(
        "fd00:10:244:1:ffff:ffff:ffff:fff0/125"
    )
    with pytest.raises(MachineError, match="no IPv6 podCIDR"):
        read_pod_cidr(node_of("here", "192.0.2.2", "10.244.1.0/24"), 6)
