"""The API over real HTTP, through the kubernetes client's configuration: kubeconfig, paging, faults, refusals."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path

import pytest

from kproxylat import cluster
from kproxylat.cluster import Api, connect
from kproxylat.errors import ApiError, MachineError, UsageError
from tests.fake_api import TOKEN, FakeApi

SERVICES = "/api/v1/namespaces/default/services"
RECORDED = Path(__file__).parent / "kube-api"


def service(name: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}}


class AlreadyExists(Exception):  # noqa: N818
    pass


def create(api: Api, name: str) -> None:
    try:
        api.request("POST", SERVICES, service(name))
    except ApiError as error:
        raise AlreadyExists if error.reason == "AlreadyExists" else error from None


def test_objects_come_and_go(api: Api, fake: FakeApi) -> None:
    fake.add(RECORDED / "service-worker.json")
    assert api.get(f"{SERVICES}/worker")["spec"]["clusterIP"] == "10.96.100.50"
    assert api.find(f"{SERVICES}/other") is None
    assert api.request("POST", SERVICES, service("a"))["metadata"]["uid"]
    with pytest.raises(ApiError, match=r"409 AlreadyExists.*already exists"):
        api.request("POST", SERVICES, service("a"))
    api.request("DELETE", f"{SERVICES}/a")
    assert fake.named("services") == ["worker"]


def test_a_list_is_read_in_pages_and_again_when_its_token_expires(
    api: Api, fake: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "PAGE", 10)
    for number in range(35):
        fake.add({**service(f"s{number:02}"), "metadata": {"name": f"s{number:02}", "namespace": "default"}})
    assert len(list(api.list(SERVICES))) == 35
    assert [each.get("limit") for each in fake.queries] == ["10"] * 4
    fake.expire_continue = 1
    assert {each["metadata"]["name"] for each in api.list(SERVICES)} == {f"s{number:02}" for number in range(35)}


def test_faults_are_tried_again(api: Api, fake: FakeApi) -> None:
    api.get(SERVICES)
    fake.fault_rate = 0.4
    for number in range(30):
        # Where the first answer was lost after the server had done it, the second says so.
        with suppress(AlreadyExists):
            create(api, f"s{number}")
    fake.fault_rate = 0
    assert len(list(api.list(SERVICES))) == 30
    assert len(fake.faults) > 4


def test_retry_after_is_kept(api: Api, fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = iter(["overload", ""])
    monkeypatch.setattr(fake, "fault", lambda _: next(faults))
    fake.retry_after = "1"
    started_s = time.monotonic()
    api.get(SERVICES)
    assert 0.7 < time.monotonic() - started_s < 1.5


def test_a_wait_ends_when_it_is_stopped(api: Api, fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "fault", lambda _: api.stop() or "overload")
    fake.retry_after = "10"
    started_s = time.monotonic()
    with pytest.raises(CancelledError):
        api.get(SERVICES)
    assert time.monotonic() - started_s < 1


def test_tries_end(api: Api, fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "fault", lambda _: "overload")
    with pytest.raises(ApiError, match="429 TooManyRequests") as caught:
        api.get(SERVICES)
    assert caught.value.status == 429


def test_refusals_are_one_line_and_a_remedy(api: Api, fake: FakeApi, tmp_path: Path) -> None:
    fake.denied.add(("list", "services"))
    with pytest.raises(ApiError) as caught:
        api.get(SERVICES)
    assert str(caught.value) == (
        'the API server refuses (403 Forbidden): services is forbidden: User "fake" cannot list resource "services"'
        ' in API group "" in the namespace "default"'
    )
    assert "docs/rbac.md" in caught.value.remedy
    expired = connect(fake.kubeconfig(tmp_path, token="old"))  # noqa: S106
    with pytest.raises(ApiError, match=r"401 Unauthorized.*token has expired") as caught:
        expired.get(SERVICES)
    assert "kubectl auth whoami" in caught.value.remedy


def test_no_server_and_no_api(fake: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = connect(fake.kubeconfig(tmp_path, port=free.getsockname()[1]))
    started_s = time.monotonic()
    with pytest.raises(MachineError, match=r"no API server answers at http://127.0.0.1:\d+: .*Connection refused"):
        nobody.get(SERVICES)
    assert time.monotonic() - started_s < 2

    monkeypatch.setattr(fake, "answer", lambda *_: (200, [], ""))
    with pytest.raises(MachineError, match="is no Kubernetes API"):
        connect(fake.kubeconfig(tmp_path)).get(SERVICES)


def test_kubeconfig_contexts_and_namespaces(fake: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fake.kubeconfig(tmp_path, namespace="team")
    assert connect(path).namespace == "team"
    assert connect(path, namespace="mine").namespace == "mine"
    assert connect(path, "fake").context == "fake"
    with pytest.raises(UsageError, match="no context 'prod'") as caught:
        connect(path, "prod")
    assert caught.value.remedy == "--context takes one of: fake"
    with pytest.raises(UsageError, match="does not exist"):
        connect(tmp_path / "nowhere")
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'nowhere'}{os.pathsep}{path}")
    assert connect().namespace == "team"
    document = json.loads(path.read_text())
    del document["current-context"]
    path.write_text(json.dumps(document))
    assert connect(path, "fake").namespace == "team"
    with pytest.raises(UsageError, match="no current context"):
        connect(path)


@pytest.mark.parametrize("text", ["", "a: [", "{}", "[]", "current-context: x", "\x00"])
def test_a_broken_kubeconfig(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises((MachineError, UsageError)) as caught:
        connect(path)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_no_kubeconfig_and_in_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(MachineError, match="there is no kubeconfig") as caught:
        connect()
    assert "under sudo" in caught.value.remedy
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(MachineError, match="token file does not exist"):
        connect()


def test_credentials_of_an_exec_plugin(fake: FakeApi, tmp_path: Path) -> None:
    """The plugin is asked once, not once a request."""
    path = fake.kubeconfig(tmp_path)
    document = json.loads(path.read_text())
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": TOKEN}}
    script = f"open({str(tmp_path / 'asked')!r}, 'a').write('x'); print({json.dumps(answer)!r})"
    plugin = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": sys.executable,
        "args": ["-c", script],
        "interactiveMode": "Never",
    }
    document["users"][0]["user"] = {"exec": plugin}
    path.write_text(json.dumps(document))
    api = connect(path)
    for _ in range(3):
        api.get(SERVICES)
    assert (tmp_path / "asked").read_text() == "x"


def test_a_proxy_is_used(fake: FakeApi, tmp_path: Path) -> None:
    """A proxy gets the whole address of what is asked for."""
    path = fake.kubeconfig(tmp_path)
    document = json.loads(path.read_text())
    document["clusters"][0]["cluster"] = {"server": "http://api.invalid", "proxy-url": f"http://127.0.0.1:{fake.port}"}
    path.write_text(json.dumps(document))
    assert list(connect(path).list(SERVICES)) == []
