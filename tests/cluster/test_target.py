"""The Service under test, looked up in the recorded answers of a real API server, and all that can be wrong with it."""

from __future__ import annotations

import copy
import json
from functools import partial
from typing import Any

import pytest

from kproxylat.cluster.api import Api
from kproxylat.cluster.target import find_hazards, miss_path, read_target
from kproxylat.errors import MachineError
from kproxylat.measure import completion
from kproxylat.results import Target
from tests.support.fake_api import FakeApi
from tests.support.kube_proxy import RECORDED

SERVICE = json.loads((RECORDED / "service-worker-dual.json").read_text())
SLICE = json.loads((RECORDED / "endpointslice-worker-dual.json").read_text())


@pytest.fixture
def recorded(fake: FakeApi) -> FakeApi:
    for each in RECORDED.glob("*worker*.json"):
        fake.add(each)
    return fake


@pytest.mark.parametrize(
    ("name", "ip", "ports", "is_hit"),
    [
        ("worker", "10.96.100.50", ("grpc 50051/TCP",), False),
        ("worker-udp", "10.96.100.51", ("grpc-udp 50051/UDP",), True),
        ("worker-dual", "10.96.100.52", ("grpc 50051/TCP", "grpc-udp 50051/UDP"), True),
    ],
)
def test_recorded_services(
    api: Api, recorded: FakeApi, name: str, ip: str, ports: tuple[str, ...], is_hit: bool
) -> None:
    assert recorded.objects
    found = read_target(api, name)
    assert vars(found) == vars(Target(ip, 50051, "udp", f"default/{name}", ports, ("10.244.1.10:50051",)))
    missing = miss_path(found)
    assert (missing is None) == is_hit
    if missing:
        assert missing.startswith("miss path: Service default/worker has no UDP port")
        assert "services create --count 0 --worker" in missing
        # The command that it names would add the port.
        patch = json.loads(missing.split("-p '")[1].split("'")[0])
        assert patch[0]["value"] == {"name": "kproxylat-udp", "port": 50051, "protocol": "UDP"}


def add(fake: FakeApi, spec: dict[str, Any], endpoints: dict[str, Any] | None = None) -> None:
    """Add the Service worker-dual with another spec, and its slice with other contents."""
    service, endpoint_slice = copy.deepcopy(SERVICE), copy.deepcopy(SLICE)
    service["spec"] |= spec
    endpoint_slice |= endpoints or {}
    fake.add(service)
    fake.add(endpoint_slice)


PORTS = [{"name": "http", "port": 80, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]


@pytest.mark.parametrize(
    ("spec", "endpoints", "message"),
    [
        ({"type": "ExternalName", "externalName": "x.org"}, None, "ExternalName"),
        ({"clusterIP": "None", "clusterIPs": ["None"]}, None, "headless"),
        ({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1"]}, None, "no ready IPv6 endpoint"),
        ({"ports": PORTS}, None, "has several ports; its ports: http 80/TCP, dns 53/UDP"),
        ({"ports": []}, None, "has no port; its ports: none"),
        ({}, {"endpoints": []}, "no ready IPv4 endpoint"),
        ({}, {"endpoints": None}, "no ready IPv4 endpoint"),
        ({}, {"addressType": "IPv6"}, "no ready IPv4 endpoint"),
        ({}, {"endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": False}}]}, "no ready IPv4 endpoint"),
        ({}, {"ports": [{"name": "grpc", "port": 50051, "protocol": "TCP"}]}, "no ready IPv4 endpoint"),
    ],
)
def test_services_that_cannot_be_measured(
    api: Api, fake: FakeApi, spec: dict[str, Any], endpoints: dict[str, Any] | None, message: str
) -> None:
    add(fake, spec, endpoints)
    with pytest.raises(MachineError) as caught:
        read_target(api, "worker-dual")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_dual_stack_and_ports_by_name_and_number(api: Api, fake: FakeApi) -> None:
    spec = {"clusterIPs": ["10.96.0.9", "fd00::1"], "ports": PORTS}
    ports = [{"name": "dns", "port": 5353}, {"name": "http", "port": 8080}]
    endpoint_slice = copy.deepcopy(SLICE)
    endpoint_slice |= {"addressType": "IPv6", "endpoints": [{"addresses": ["fd00:244::10"]}], "ports": ports}
    endpoint_slice["metadata"]["name"] += "-v6"
    add(fake, spec, {"ports": ports})
    fake.add(endpoint_slice)
    found = read_target(api, "worker-dual", "dns", family=6)
    assert (found.ip, found.port, found.endpoints) == ("fd00::1", 53, ("[fd00:244::10]:5353",))
    assert str(found) == "[fd00::1]:53/udp"
    for port in ("dns", "53"):
        found = read_target(api, "worker-dual", port)
        assert (found.ip, found.port, found.endpoints) == ("10.96.0.9", 53, ("10.244.1.10:5353",))
    assert read_target(api, "worker-dual", "http").endpoints == ("10.244.1.10:5353", "10.244.1.10:8080")
    add(fake, {"clusterIPs": ["10.96.0.9"]})
    with pytest.raises(MachineError, match=r"has no IPv6 ClusterIP, but 10\.96\.0\.9"):
        read_target(api, "worker-dual", "dns", family=6)
    add(fake, spec)
    with pytest.raises(MachineError, match="has no port 443; its ports: http 80/TCP, dns 53/UDP"):
        read_target(api, "worker-dual", "443")


SERVES = {"ready": False, "serving": True, "terminating": True}
ENDS = {"ready": False, "serving": False, "terminating": True}


def endpoint(number: int, conditions: dict[str, bool] | None = None, node: str = "a") -> dict[str, Any]:
    address = {"addresses": [f"10.244.1.{number}"], "nodeName": node}
    return address | ({} if conditions is None else {"conditions": conditions})


@pytest.mark.parametrize(
    ("endpoints", "used", "hazard"),
    [
        (
            [endpoint(1, SERVES), endpoint(2, ENDS)],
            ["10.244.1.1:50051"],
            "all endpoints of Service default/",
        ),
        ([endpoint(1, SERVES), endpoint(2)], ["10.244.1.2:50051"], ""),
        ([endpoint(1, SERVES), endpoint(2, {"ready": True})], ["10.244.1.2:50051"], ""),
        ([endpoint(1, {"ready": False, "serving": True, "terminating": False})], [], ""),
        ([endpoint(1, ENDS)], [], ""),
    ],
)
def test_endpoints_that_terminate_are_used_if_there_are_no_others(
    api: Api, fake: FakeApi, endpoints: list[dict[str, Any]], used: list[str], hazard: str
) -> None:
    """kube-proxy: KEP-1669, proxy terminating endpoints."""
    add(fake, {}, {"endpoints": endpoints})
    if not used:
        with pytest.raises(MachineError, match="no ready IPv4 endpoint"):
            read_target(api, "worker-dual")
        return
    target = read_target(api, "worker-dual")
    assert list(target.endpoints) == used
    hazards = find_hazards(api, target, "a")
    assert bool(hazards) == bool(hazard)
    assert hazard in " ".join(hazards)


def test_a_local_policy_without_a_local_endpoint(api: Api, fake: FakeApi) -> None:
    add(fake, {"internalTrafficPolicy": "Local"}, {"endpoints": [endpoint(1, None, "a"), endpoint(2, ENDS, "b")]})
    target = read_target(api, "worker-dual")
    assert find_hazards(api, target, "a") == []
    for node in ("b", "c"):
        assert find_hazards(api, target, node) == [
            "Service default/worker-dual has internalTrafficPolicy Local and no endpoint on this node"
            f" ({node}): kube-proxy drops its packets here"
        ]
    add(fake, {"internalTrafficPolicy": "Cluster"}, {"endpoints": [endpoint(1)]})
    assert find_hazards(api, target, "c") == []


def test_a_missing_service(api: Api) -> None:
    with pytest.raises(MachineError, match="Service worker not found in namespace default of context fake") as caught:
        read_target(api)
    assert "--service NAME -n NAMESPACE" in caught.value.remedy


def test_a_target_that_changes_during_the_run_is_a_warning(api: Api, recorded: FakeApi) -> None:
    found = read_target(api, "worker-udp")
    read = partial(read_target, api, "worker-udp")
    assert completion.check_target(found, read) == ()
    [key] = [key for key in recorded.objects if key[3] == "worker-udp-1"]
    recorded.objects[key]["endpoints"].append({"addresses": ["10.244.1.11"]})
    [warning] = completion.check_target(found, read)
    assert warning.startswith("the target changed during the run: 10.96.100.51, endpoints 10.244.1.10:50051; now")
    recorded.denied.add(("get", "services"))
    [warning] = completion.check_target(found, read)
    assert "could not be looked up after the run" in warning
