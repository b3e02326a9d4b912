"""A server may answer anything: any value at any place of any answer gives a result, or one clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from kproxylat.cluster.api import Api
from kproxylat.cluster.dummies import create, plan_creation, read_all_dummies, read_dummies
from kproxylat.cluster.nodes import check_namespace, find_fault, find_nodes
from kproxylat.cluster.proxy_config import read_configured
from kproxylat.cluster.rollout import describe_rollouts, plan_change
from kproxylat.cluster.service_names import read_names
from kproxylat.cluster.shapes import find_misfit
from kproxylat.cluster.sources import choose_source, read_pod_cidr
from kproxylat.cluster.sync import keep_existing
from kproxylat.cluster.target import find_hazards, miss_path, read_target
from kproxylat.cluster.worker import find_worker
from kproxylat.errors import KproxylatError
from kproxylat.results import Target
from tests.support.fake_api import FakeApi
from tests.support.kube_proxy import RECORDED
from tests.support.odd import ODD, put, walk

NODE = json.loads((RECORDED / "node.json").read_text())
NAME = NODE["metadata"]["name"]
POD = {
    "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "b"}, "spec": {"nodeName": NAME},
    "status": {"podIPs": [{"ip": "10.244.1.10"}, {"ip": "fd00::1"}]},
}  # fmt: skip
SLICE = json.loads((RECORDED / "endpointslice-worker.json").read_text())
TARGET = Target("10.96.100.52", 50051, "udp", "default/worker-dual", ("grpc 50051/TCP",), ("10.244.1.10:50051",))


def read_node(api: Api) -> None:
    for node in find_nodes(api, [NAME], ""):
        find_fault(node)
        read_pod_cidr(node, 4)


READERS: dict[str, Callable[[Api], object]] = {
    "target": lambda api: miss_path(read_target(api, "worker-dual", family=4)),
    "hazards": lambda api: find_hazards(api, TARGET, NAME),
    "proxy": lambda api: read_configured(api, NAME),
    "change": lambda api: describe_rollouts(api, plan_change(api, "iptables")),
    "dummies": read_dummies,
    "all-dummies": read_all_dummies,
    "existing": lambda api: keep_existing(api, {TARGET}),
    "node": read_node,
    "source": lambda api: choose_source(api, None, 6, 4, ["10.244.1.10:80"], NODE),
    "target6": lambda api: read_target(api, "worker-dual", family=6),
    "namespace": lambda api: check_namespace(api, "default"),
    "worker": find_worker,
    "names": read_names,
}
"""What kproxylat asks the API for -> the function that does."""


def _answer(answers: dict[str, bytes], _: str, path: str, *__: object, **___: object) -> bytes:
    return answers.get(path, b'{"items": []}')


@pytest.mark.parametrize(
    "reader", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("change", "proxy"))) for name in READERS]
)
def test_any_value_anywhere_in_any_answer(
    reader: str, api: Api, fake: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in RECORDED.glob("*.json"):
        fake.add(file)
    fake.add(POD)
    dummies = read_dummies(api)
    create(api, dummies, plan_creation(dummies, 1))
    read, send, answers = READERS[reader], api._send, dict[str, bytes]()

    def record(method: str, path: str, *rest: Any, **more: Any) -> bytes:
        answers[path] = send(method, path, *rest, **more)
        return answers[path]

    monkeypatch.setattr(api, "_send", record)
    with suppress(KproxylatError):
        read(api)
    tried, faults = 0, dict[str, str]()
    for path, data in [*answers.items()]:
        document = json.loads(data)
        # Two items of each list are enough.
        for place in [place for place in walk(document) if {"managedFields", 2, 3, 4, 5, 6}.isdisjoint(place)]:
            for odd in (*ODD, "10.0.0.300", "None", "", "\ud800", 1 << 70, KeyError):
                changed = {**answers, path: json.dumps(put(document, place, odd)).encode()}
                monkeypatch.setattr(api, "_send", partial(_answer, changed))
                try:
                    with suppress(KproxylatError):
                        read(api)
                except Exception as error:
                    faults.setdefault(repr(error), f"{path}: {place} is {odd!r}")
                tried += 1
    assert not faults
    assert tried > 50


@pytest.mark.parametrize("file", sorted(RECORDED.glob("*.json")), ids=lambda file: file.name)
def test_what_real_servers_answered_fits(file: Any) -> None:
    document = json.loads(file.read_text())
    assert find_misfit(document) == find_misfit({"items": [document]}) == ""


@pytest.mark.parametrize(
    ("place", "value", "misfit"),
    [
        (("endpoints", 0, "addresses"), "10.0.0.1", ".endpoints[0].addresses: not a list"),
        (("ports", 0, "port"), 1 << 16, ".ports[0].port: not a port"),
        (("ports", 0, "port"), True, ".ports[0].port: not a port"),
        (("endpoints", 0, "conditions", "ready"), "yes", ".endpoints[0].conditions.ready: not true or false"),
        (("metadata", "labels"), {"a": 1}, ".metadata.labels.a: not a text"),
        (("metadata",), [], ".metadata: not an object"),
        (("metadata", "name"), "a\ud800", ".metadata.name: not a text"),
    ],
)
def test_what_does_not_fit_is_named(place: tuple[Any, ...], value: Any, misfit: str) -> None:
    changed = put(SLICE, place, value)
    assert find_misfit(changed) == find_misfit({**changed, "items": []}) == misfit
    assert find_misfit({"items": [SLICE, changed]}) == f".items[1]{misfit}"


def test_addresses_with_leading_zeros_are_kept() -> None:
    """Kubernetes parses external addresses sloppily (k8s.io/utils/net, ParseIPSloppy)."""
    spec = {"clusterIP": "None", "externalIPs": ["172.016.0.1"]}
    assert find_misfit({"spec": spec, "status": {"loadBalancer": {"ingress": [{"ip": "010.0.0.1"}]}}}) == ""
