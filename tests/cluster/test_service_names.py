"""The names of Services from the API: any answer gives names that can be printed, or one clear error."""

from __future__ import annotations

import json
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kproxylat.cluster.api import Api
from kproxylat.cluster.service_names import read_names
from kproxylat.cluster.shapes import find_misfit
from kproxylat.cluster.transport import parse_object
from kproxylat.errors import MachineError
from tests.support.command import Captured, call
from tests.support.fake_api import FakeApi
from tests.support.odd import ODD, put, walk

PORT = {"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}
SERVICE: dict[str, Any] = {
    "metadata": {"name": "web", "namespace": "shop"},
    "spec": {"clusterIP": "10.96.7.7", "clusterIPs": ["10.96.7.7"], "externalIPs": ["192.0.2.4"], "ports": [PORT]},
    "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.5"}]}},
}


def read(service: Any) -> dict[str, tuple[str, str]]:
    answer = parse_object(json.dumps(service).encode())
    if answer is None or find_misfit(answer):
        raise MachineError("the API client refuses this")
    return read_names(cast("Api", SimpleNamespace(list=lambda _: iter([answer]))))


def test_each_address_has_a_name() -> None:
    name = "shop/web:http"
    assert read(SERVICE) == {
        "10.96.7.7:80/tcp": ("service", name),
        "192.0.2.4:80/tcp": ("address", name),
        "192.0.2.5:80/tcp": ("address", name),
        ":30080/tcp": ("address", name),
    }


@pytest.mark.parametrize(
    "place", [place for place in walk(SERVICE) if place not in (("metadata",), ("metadata", "name"))]
)
def test_any_value_anywhere_in_an_answer(place: tuple[Any, ...]) -> None:
    for odd in (*ODD, KeyError):
        names = list[tuple[str, str]]()
        with suppress(MachineError):
            names += read(put(SERVICE, place, odd)).values()
        assert all(name.isprintable() and len(name) <= 200 for _, name in names)


def test_an_answer_without_what_kubernetes_requires(capsys: Captured, fake: FakeApi, tmp_path: Any) -> None:
    labels = {"type": "dummy"}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "dummy-service-1", "namespace": "default"}}
    service["metadata"] |= {"labels": labels}  # type: ignore[operator]
    fake.add(service | {"spec": {"ports": [PORT]}})
    for stored in fake.objects.values():
        stored["metadata"].pop("uid", None)
    status, _, err = call(capsys, "services", "list", "--kubeconfig", str(fake.kubeconfig(tmp_path)))
    assert (status, "invalid answer of the API server: an object lacks 'uid'" in err) == (1, True), err
