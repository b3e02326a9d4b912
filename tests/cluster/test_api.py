"""The API over real HTTP, through the kubernetes client's configuration: kubeconfig, paging, faults, refusals."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxylat.cluster import api as cluster
from kproxylat.cluster import kubeconfig, transport
from kproxylat.cluster.api import Api, connect, join_path
from kproxylat.cluster.transport import parse_timeout
from kproxylat.errors import ApiError, Interrupted, MachineError, UsageError
from kproxylat.system import interrupts
from kproxylat.system.http import Answer, read_answer
from tests.support import fake_api
from tests.support.fake_api import TOKEN, FakeApi, Refused, serving
from tests.support.kube_proxy import RECORDED

SERVICES = "/api/v1/namespaces/default/services"


def service(name: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}}


class AlreadyExists(Exception):  # noqa: N818
    pass


def create(api: Api, name: str) -> None:
    try:
        api.request("POST", SERVICES, service(name))
    except ApiError as error:
        raise AlreadyExists if error.reason == "AlreadyExists" else error from None


def test_create_get_and_delete(api: Api, fake: FakeApi) -> None:
    fake.add(RECORDED / "service-worker.json")
    assert api.get(f"{SERVICES}/worker")["spec"]["clusterIP"] == "10.96.100.50"
    assert api.find(f"{SERVICES}/other") is None
    assert api.request("POST", SERVICES, service("a"))["metadata"]["uid"]
    with pytest.raises(ApiError, match=r"409 AlreadyExists.*already exists"):
        api.request("POST", SERVICES, service("a"))
    api.request("DELETE", f"{SERVICES}/a")
    assert fake.named("services") == ["worker"]


def test_list_reads_pages_and_restarts_when_the_token_expires(
    api: Api, fake: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "PAGE", 10)
    for number in range(35):
        fake.add({**service(f"s{number:02}"), "metadata": {"name": f"s{number:02}", "namespace": "default"}})
    assert len(list(api.list(SERVICES))) == 35
    assert [each.get("limit") for each in fake.queries] == ["10"] * 4
    fake.expire_continue = 1
    assert {each["metadata"]["name"] for each in api.list(SERVICES)} == {f"s{number:02}" for number in range(35)}


def test_requests_are_repeated_after_faults(api: Api, fake: FakeApi) -> None:
    api.get(SERVICES)
    fake.fault_rate = 0.4
    for number in range(30):
        # Where the first answer was lost after the server had done it, the second says so.
        with suppress(AlreadyExists):
            create(api, f"s{number}")
    fake.fault_rate = 0
    assert len(list(api.list(SERVICES))) == 30
    assert len(fake.faults) > 4


def test_retry_after_is_respected(api: Api, fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = iter(["overload", ""])
    monkeypatch.setattr(fake, "fault", lambda _: next(faults))
    fake.retry_after = "1"
    started_s = time.monotonic()
    api.get(SERVICES)
    assert 1 <= time.monotonic() - started_s < 1.5


def test_a_wait_longer_than_the_limit_fails_at_once(api: Api, fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "fault", lambda _: "overload")
    fake.retry_after = "150"
    started_s = time.monotonic()
    with pytest.raises(ApiError, match="429") as caught:
        api.get(SERVICES)
    assert time.monotonic() - started_s < 1
    assert "again later to resume" in caught.value.remedy


@pytest.mark.parametrize("retry_after", ["0", "", "soon"])
def test_many_short_waits_succeed(api: Api, fake: FakeApi, monkeypatch: pytest.MonkeyPatch, retry_after: str) -> None:
    """Priority and fairness may refuse more than ten times, a second each: here, faster."""
    fake.retry_after = retry_after
    faults = iter(["overload"] * 25 + [""])
    monkeypatch.setattr(cluster, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(fake, "fault", lambda _: next(faults))
    api.get(SERVICES)
    assert next(faults, None) is None


def test_a_silent_server_fails_soon(fake: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster.FIRST_S == 10
    monkeypatch.setattr(cluster, "FIRST_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        unreachable = connect(fake.kubeconfig(tmp_path, port=silent.getsockname()[1]))
        started_s = time.monotonic()
        with pytest.raises(MachineError, match=r"no API server answers at .*Read timed out"):
            unreachable.get(SERVICES)
        assert time.monotonic() - started_s < 0.6


def test_an_exhausted_service_range_is_not_retried(api: Api, fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real server's words; that it is an internal error does not mean that it goes away."""
    message = "Internal error occurred: failed to allocate a serviceIP: range is full"

    def refuse(*_: object) -> None:
        raise Refused(500, message)

    monkeypatch.setattr(fake, "_create", refuse)
    with pytest.raises(ApiError, match="range is full") as caught:
        create(api, "a")
    assert "service CIDR" in caught.value.remedy
    assert len(fake.calls) == 1


@pytest.mark.parametrize(
    ("status", "message", "remedy"),
    [
        (403, 'services "a" is forbidden: exceeded quota: q, used: services=5', "kubectl describe quota -n default"),
        (
            403,
            'services "a" is forbidden: unable to create new content in namespace x because it is being terminated',
            "wait until the namespace is gone",
        ),
        (
            409,
            'Apply failed with 1 conflict: conflict with "kubectl-edit" using v1: .spec.ports',
            "measure it as it is",
        ),
        (409, 'object "a-401" was modified', "another client changes the same object"),
    ],
)
def test_remedies(
    api: Api, fake: FakeApi, monkeypatch: pytest.MonkeyPatch, status: int, message: str, remedy: str
) -> None:
    def refuse(*_: object) -> None:
        raise Refused(status, message, "Forbidden" if status == 403 else "Invalid")

    monkeypatch.setattr(fake, "_create", refuse)
    with pytest.raises(ApiError) as caught:
        create(api, "a")
    assert remedy in caught.value.remedy


def test_a_patch_is_repeated_after_a_race_but_not_after_a_field_manager_conflict(
    api: Api, fake: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [
        "Operation cannot be fulfilled on services: the object has been modified",
        "Apply failed with 1 conflict",
    ]
    patch = fake._patch

    def refuse(*argv: Any) -> object:
        if messages:
            raise Refused(409, messages.pop(0), "Conflict")
        return patch(*argv)

    monkeypatch.setattr(fake, "_patch", refuse)
    create(api, "a")
    with pytest.raises(ApiError, match="Apply failed"):
        api.request("PATCH", f"{SERVICES}/a", {"metadata": {"labels": {"x": "y"}}}, content_type=cluster.MERGE_PATCH)
    messages = messages or ["Operation cannot be fulfilled on services: the object has been modified"]
    api.request("PATCH", f"{SERVICES}/a", {"metadata": {"labels": {"x": "y"}}}, content_type=cluster.MERGE_PATCH)
    assert fake.objects["", "services", "default", "a"]["metadata"]["labels"] == {"x": "y"}


def test_the_user_agent_names_kproxylat(api: Api, fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, heard = fake.answer, []

    def listen(method: str, target: str, headers: dict[str, str], body: bytes) -> Any:
        heard.append(headers["user-agent"].partition("/")[0])
        return answer(method, target, headers, body)

    monkeypatch.setattr(fake, "answer", listen)
    create(api, "a")
    assert heard == ["kproxylat"]


def test_stop_ends_a_wait(api: Api, fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "fault", lambda _: api.stop() or "overload")
    fake.retry_after = "10"
    started_s = time.monotonic()
    with pytest.raises(CancelledError):
        api.get(SERVICES)
    assert time.monotonic() - started_s < 1


@pytest.mark.parametrize("retry_after", ["0", "1", "9" * 400, "\u00b2"])
def test_attempts_end(api: Api, fake: FakeApi, monkeypatch: pytest.MonkeyPatch, retry_after: str) -> None:
    assert cluster.PATIENCE_S == 120
    monkeypatch.setattr(cluster, "PATIENCE_S", 1)
    monkeypatch.setattr(fake, "fault", lambda _: "overload")
    fake.retry_after = retry_after
    started_s = time.monotonic()
    with pytest.raises(ApiError, match="429 TooManyRequests") as caught:
        api.get(SERVICES)
    assert caught.value.status == 429
    assert time.monotonic() - started_s < 3


def test_a_refusal_is_one_line_with_a_remedy(api: Api, fake: FakeApi, tmp_path: Path) -> None:
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


def test_no_server_and_another_server(fake: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        unreachable = connect(fake.kubeconfig(tmp_path, port=free.getsockname()[1]))
    started_s = time.monotonic()
    with pytest.raises(MachineError, match=r"no API server answers at http://127.0.0.1:\d+: .*Connection refused"):
        unreachable.get(SERVICES)
    assert time.monotonic() - started_s < 2

    monkeypatch.setattr(fake, "answer", lambda *_: (200, [], ""))
    with pytest.raises(MachineError, match="not a Kubernetes API"):
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


def with_user(fake: FakeApi, directory: Path, user: dict[str, object]) -> Api:
    path = fake.kubeconfig(directory)
    document = json.loads(path.read_text())
    document["users"][0]["user"] = user
    path.write_text(json.dumps(document))
    return connect(path)


def plugin(command: str, *args: str) -> dict[str, object]:
    version = "client.authentication.k8s.io/v1"
    return {"exec": {"apiVersion": version, "command": command, "args": [*args], "interactiveMode": "Never"}}


@pytest.mark.parametrize("kind", ["tokenFile", "exec"])
def test_rejected_credentials_are_read_again(
    fake: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    token = tmp_path / "token"
    answer = '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "%s"}}'
    script = f"open({str(tmp_path / 'asked')!r}, 'a').write('x'); print({answer!r} % open({str(token)!r}).read())"
    token.write_text(TOKEN)
    user = {"tokenFile": str(token)} if kind == "tokenFile" else plugin(sys.executable, "-c", script)
    api = with_user(fake, tmp_path, user)
    api.get(SERVICES)
    monkeypatch.setattr(fake_api, "TOKEN", "new")
    with pytest.raises(ApiError, match="401 Unauthorized"):
        api.get(SERVICES)
    token.write_text("new")
    (tmp_path / "asked").write_text("")
    # Each of many threads is refused: one of them asks.
    with ThreadPoolExecutor(8) as pool:
        assert [each["kind"] for each in pool.map(lambda _: api.get(SERVICES), range(8))] == ["List"] * 8
    assert (tmp_path / "asked").read_text() == ("x" if kind == "exec" else "")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("/nowhere/aws",), "exec plugin /nowhere/aws failed: .*No such file or directory"),
        ((sys.executable, "-c", "exit('log in first')"), "exec plugin .* failed: .*log in first"),
        ((sys.executable, "-c", "print('x')"), "exec plugin .* failed: .*decode"),
    ],
)
def test_a_failing_exec_plugin(
    fake: FakeApi, tmp_path: Path, capfd: pytest.CaptureFixture[str], command: tuple[str, ...], message: str
) -> None:
    with pytest.raises(MachineError, match=message) as caught:
        with_user(fake, tmp_path, plugin(*command))
    assert caught.value.remedy
    assert capfd.readouterr().err == ""


def test_a_proxy_is_used(fake: FakeApi, tmp_path: Path) -> None:
    """A proxy gets the whole address of what is asked for."""
    path = fake.kubeconfig(tmp_path)
    document = json.loads(path.read_text())
    document["clusters"][0]["cluster"] = {"server": "http://api.invalid", "proxy-url": f"http://127.0.0.1:{fake.port}"}
    path.write_text(json.dumps(document))
    assert list(connect(path).list(SERVICES)) == []


def test_proxies_of_the_environment(fake: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fake.kubeconfig(tmp_path)
    document = json.loads(path.read_text())
    document["clusters"][0]["cluster"] = {"server": "http://api.invalid"}
    path.write_text(json.dumps(document))
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{fake.port}")
    assert list(connect(path).list(SERVICES)) == []
    monkeypatch.setenv("no_proxy", ".example,api.invalid")
    with pytest.raises(MachineError, match=r"no API server answers at http://api\.invalid"):
        connect(path).get(SERVICES)


def test_a_socks_proxy(fake: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of SOCKS5 (RFC 1928) connects to what the client names."""
    pytest.importorskip("socks")
    asked: list[bytes] = []

    def relay(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)

    def serve() -> None:
        with suppress(OSError), proxy.accept()[0] as client:
            client.recv(262)
            client.sendall(b"\x05\x00")
            asked.append(client.recv(262))
            with socket.create_connection(("127.0.0.1", fake.port)) as server:
                client.sendall(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50")
                threading.Thread(target=relay, args=(server, client), daemon=True).start()
                relay(client, server)

    path = fake.kubeconfig(tmp_path)
    document = json.loads(path.read_text())
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        url = f"socks5h://127.0.0.1:{proxy.getsockname()[1]}"
        document["clusters"][0]["cluster"] = {"server": "http://api.invalid", "proxy-url": url}
        path.write_text(json.dumps(document))
        threading.Thread(target=serve, daemon=True).start()
        assert list(connect(path).list(SERVICES)) == []
    assert asked[0][5:-2] == b"api.invalid"
    monkeypatch.setitem(sys.modules, "socks", None)
    monkeypatch.delitem(sys.modules, "urllib3.contrib.socks")
    with pytest.raises(MachineError) as caught:
        connect(path)
    assert (str(caught.value), caught.value.remedy) == (
        "a SOCKS proxy takes the Python package PySocks",
        "pip install PySocks",
    )


def test_several_kubeconfig_files_are_merged(fake: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As kubectl has it: the first file that says something, of a name or of the current context, is right."""
    whole = json.loads(fake.kubeconfig(tmp_path, namespace="team").read_text())
    other = {"name": "other", "context": {"cluster": "fake", "user": "fake", "namespace": "others"}}
    first = {**whole, "users": [], "clusters": None}
    second = {**whole, "contexts": [other, {"name": "fake", "context": {}}], "current-context": "other"}
    paths = [tmp_path / each for each in ("nowhere", "first", "second", "empty")]
    for path, document in zip(paths[1:], (first, second, None), strict=True):
        path.write_text(json.dumps(document) if document else "")
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join(map(str, [*paths, ""])))
    api = connect()
    assert (api.context, api.namespace) == ("fake", "team")
    assert list(api.list(SERVICES)) == []
    assert connect(context="other").namespace == "others"
    paths[1].write_text(json.dumps({**first, "current-context": ""}))
    assert connect().context == "other"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that vouches for itself, for 127.0.0.1, with its key."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    made = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2", "-subj", "/CN=fake")
    files = ("-nodes", "-keyout", str(path), "-out", str(path.with_suffix(".crt")))
    words = ["openssl", "req", "-x509", *made, *files, "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(words, check=True, capture_output=True)
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


def test_tls(certificate: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The server's certificate is checked, unless the kubeconfig says otherwise; ours is shown."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate)
    tls.load_cert_chain(certificate)
    tls.verify_mode = ssl.CERT_REQUIRED
    with serving(FakeApi(anonymous=True), tls) as fake:
        path = fake.kubeconfig(tmp_path)
        document = json.loads(path.read_text())
        server = {"server": f"https://127.0.0.1:{fake.port}"}
        encoded = base64.b64encode(certificate.read_bytes()).decode()
        document["users"][0]["user"] = {"client-certificate-data": encoded, "client-key-data": encoded}
        for cluster_, message in (
            ({**server, "certificate-authority": certificate.name}, None),
            ({**server, "certificate-authority-data": encoded}, None),
            ({**server, "insecure-skip-tls-verify": True}, None),
            (server, "certificate verify failed"),
            (
                {**server, "certificate-authority-data": encoded, "tls-server-name": "x"},
                "certificate verify failed",
            ),
        ):
            document["clusters"][0]["cluster"] = cluster_
            path = certificate.with_name("kubeconfig")
            path.write_text(json.dumps(document))
            if message:
                with pytest.raises(MachineError, match=message):
                    connect(path).get(SERVICES)
            else:
                assert list(connect(path).list(SERVICES)) == []
    assert capfd.readouterr().err == ""


def test_tls_through_a_proxy(certificate: Path, tmp_path: Path) -> None:
    """A proxy of HTTP opens a tunnel, also after a connection was lost."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    asked: list[bytes] = []

    def relay(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError), source:
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                client = proxy.accept()[0]
                asked.append(client.recv(65536).partition(b"\r\n")[0])
                server = socket.create_connection(("127.0.0.1", fake.port))
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                for pair in ((server, client), (client, server)):
                    threading.Thread(target=relay, args=pair, daemon=True).start()

    with serving(FakeApi(), tls) as fake, socket.create_server(("127.0.0.1", 0)) as proxy:
        threading.Thread(target=serve, daemon=True).start()
        path = fake.kubeconfig(tmp_path)
        document = json.loads(path.read_text())
        encoded = base64.b64encode(certificate.read_bytes()).decode()
        server = {"server": f"https://127.0.0.1:{fake.port}", "certificate-authority-data": encoded}
        server["proxy-url"] = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        document["clusters"][0]["cluster"] = server
        path.write_text(json.dumps(document))
        api = connect(path)
        for _ in range(2):
            assert list(api.list(SERVICES)) == []
        assert len(asked) == 1, "the tunnel is kept"
        connection = api._client.transport._pool._get_conn()
        connection.close()
        api._client.transport._pool._put_conn(connection)
        assert list(api.list(SERVICES)) == []
        assert [line.split()[:2] for line in asked] == [[b"CONNECT", f"127.0.0.1:{fake.port}".encode()]] * 2
        api._client.transport._pool.close()
        proxy.shutdown(socket.SHUT_RDWR)


def test_in_a_pod(certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The account's token, namespace and CA, and no kubeconfig."""
    from kubernetes.config import incluster_config

    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    for name, text in (("token", TOKEN), ("namespace", "team"), ("ca.crt", certificate.read_text())):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(kubeconfig, "IN_CLUSTER", tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    with serving(FakeApi(), tls) as fake:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(fake.port))
        api = connect()
        assert (api.namespace, list(api.list(SERVICES))) == ("team", [])


def headers_of_one_request(fake: FakeApi, api: Api) -> list[str]:
    """Return the lines of a request's head, as they pass over the wire."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        api._client.transport._pool.port = server.getsockname()[1]
        asked = pool.submit(api.get, SERVICES)
        connection, _ = server.accept()
        with connection:
            head = connection.recv(65536).decode()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        assert asked.result() == {}
    assert fake.port
    return head.split("\r\n")


def test_impersonation(fake: FakeApi, tmp_path: Path) -> None:
    """kubectl's fields and headers; the client ignores them."""
    user = {"as": "jane", "as-uid": "7", "as-groups": ["a", "b"], "as-user-extra": {"x.io/y": ["1", "2"]}}
    lines = headers_of_one_request(fake, with_user(fake, tmp_path, {"token": TOKEN, **user}))
    assert [line for line in lines if line.startswith("Impersonate")] == [
        "Impersonate-User: jane",
        "Impersonate-Uid: 7",
        "Impersonate-Group: a",
        "Impersonate-Group: b",
        "Impersonate-Extra-x.io%2Fy: 1",
        "Impersonate-Extra-x.io%2Fy: 2",
    ]
    with pytest.raises(MachineError, match="as-groups or as-user-extra, but not as"):
        with_user(fake, tmp_path, {"token": TOKEN, "as-groups": ["a"]})


def test_the_command_lines_user_replaces_the_kubeconfigs(fake: FakeApi, tmp_path: Path) -> None:
    """As in kubectl, --as and --as-group replace their own field alone."""
    with_user(fake, tmp_path, {"token": TOKEN, "as": "jane", "as-groups": ["a", "b"]})
    for identity, groups in (({"as": "joe"}, ["a", "b"]), ({"as": "joe", "as-groups": ["c"]}, ["c"])):
        lines = headers_of_one_request(fake, connect(tmp_path / "kubeconfig", identity=identity))
        assert [line.partition(": ")[2] for line in lines if line.startswith("Impersonate")] == ["joe", *groups]


def test_another_cluster_of_the_kubeconfig(fake: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fake.kubeconfig(tmp_path, port=1)
    document = json.loads(path.read_text())
    document["clusters"].append({"name": "other", "cluster": {"server": f"http://127.0.0.1:{fake.port}"}})
    path.write_text(json.dumps(document))
    assert list(connect(path, cluster="other").list(SERVICES)) == []
    with pytest.raises(UsageError, match="the kubeconfig has no cluster 'prod'") as caught:
        connect(path, cluster="prod")
    assert caught.value.remedy == "--cluster takes one of: fake, other"
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    with pytest.raises(UsageError, match="--cluster takes a kubeconfig, and there is none"):
        connect(cluster="prod")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10", 10), ("10s", 10), ("1m", 60), ("1m30s", 90), ("1.5s", 1.5), (".5m", 30), ("500ms", 0.5), ("2h", 7200)]
    + [(text, 86400) for text in ("0", "0s", "0h0m", "100h", "999999999")],
)
def test_a_timeout_is_written_as_for_kubectl(text: str, seconds: float) -> None:
    assert parse_timeout(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "10x", "-1s", "+1s", "1 s", "1s2", "1.5", "1e3s", "٣s", "9" * 200, "inf"])
def test_what_is_not_a_timeout(text: str) -> None:
    with pytest.raises(UsageError, match=r"--request-timeout .* is not a time") as caught:
        parse_timeout(text)
    assert caught.value.remedy == "it takes e.g. 10, 10s, 1m30s or 0"


@pytest.mark.parametrize("patience_s", [0.05, 60])
def test_a_timeout_ends_a_request(fake: FakeApi, tmp_path: Path, patience_s: float) -> None:
    """Earlier than the usual patience, or later; and the request is not repeated after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "FIRST_S", patience_s)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            api = connect(fake.kubeconfig(tmp_path, port=silent.getsockname()[1]), timeout_s=0.4)
            started_s = time.monotonic()
            with pytest.raises(MachineError, match=r"no API server answers at .*Read timed out"):
                api.get(SERVICES)
            assert 0.4 <= time.monotonic() - started_s < 2


@pytest.mark.parametrize("end", ["\n", "\r\n", "  \n\n"])
def test_a_token_file_ends_with_a_line_end(fake: FakeApi, tmp_path: Path, end: str) -> None:
    """As kubectl does, ignore it."""
    (tmp_path / "token").write_text(TOKEN + end)
    assert list(with_user(fake, tmp_path, {"tokenFile": str(tmp_path / "token")}).list(SERVICES)) == []


@pytest.mark.parametrize(
    "user",
    [
        {"token": "s3cret\nInjected: yes"},
        {"token": "s3cret\x00"},
        {"token": "s3c\u20acret"},
        {"token": TOKEN, "as": "s3cret\r\nX: y"},
    ],
)
def test_no_error_shows_a_secret(fake: FakeApi, tmp_path: Path, user: dict[str, object]) -> None:
    with pytest.raises(MachineError, match="another character that HTTP excludes") as caught:
        with_user(fake, tmp_path, user).get(SERVICES)
    assert "s3c" not in str(caught.value) + caught.value.remedy
    assert fake.calls == []


def test_a_yaml_error_and_an_address_show_no_secret(fake: FakeApi, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("users:\n- user: {token: s3cret: x}\n")
    with pytest.raises(MachineError, match="line 2 is not YAML: ") as caught:
        connect(path)
    assert "s3cret" not in str(caught.value)
    path = fake.kubeconfig(tmp_path)
    path.write_text(path.read_text().replace("http://127.0.0.1", "http://me:s3cret@127.0.0.1"))
    fake.anonymous = True
    api = connect(path)
    assert list(api.list(SERVICES)) == []
    assert "s3cret" not in str(api._describe_invalid(""))


def test_an_exec_plugin_that_is_missing_shows_its_install_hint(fake: FakeApi, tmp_path: Path) -> None:
    user = plugin("/nowhere/kubelogin")
    assert isinstance(user["exec"], dict)
    user["exec"]["installHint"] = "install it:\n  krew install oidc-login\n"
    with pytest.raises(MachineError, match="exec plugin /nowhere/kubelogin failed") as caught:
        with_user(fake, tmp_path, user)
    assert caught.value.remedy == "install it: krew install oidc-login"


def test_a_refused_client_certificate_is_not_called_a_token(certificate: Path, tmp_path: Path) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    encoded = base64.b64encode(certificate.read_bytes()).decode()
    user = {"client-certificate-data": encoded, "client-key-data": encoded}
    with serving(FakeApi(), tls) as fake:
        path = fake.kubeconfig(tmp_path)
        document = json.loads(path.read_text())
        server = {"server": f"https://127.0.0.1:{fake.port}", "certificate-authority-data": encoded}
        document["clusters"][0]["cluster"] = server
        for access, message in (
            (user, "the client certificate has expired or is invalid"),
            ({}, "the kubeconfig's user has no credentials"),
        ):
            document["users"][0]["user"] = access
            path.write_text(json.dumps(document))
            with pytest.raises(ApiError, match=f"401 Unauthorized.*: {message}$"):
                connect(path).get(SERVICES)


@contextmanager
def hostile(fake: FakeApi, directory: Path, head: bytes, piece: bytes, pause_s: float = 0) -> Iterator[Api]:
    """Serve a head, and then a piece again and again, to each connection."""
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(head)
            while not ended.wait(pause_s) and piece:
                connection.sendall(piece)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield connect(fake.kubeconfig(directory, port=server.getsockname()[1]))
        ended.set()
        server.shutdown(socket.SHUT_RDWR)


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "piece", "pause_s", "message"),
    [
        (OK + b"\r\n", b"x" * 65536, 0, "more than 1 MiB"),
        (CHUNKED, b"10000\r\n" + b"x" * 65536 + b"\r\n", 0, "more than 1 MiB"),
        (CHUNKED + b"fffffffffff\r\n", b"x" * 65536, 0, "more than 1 MiB"),
        (OK + b"Content-Length: 99999999999\r\n\r\n", b"x", 0, "more than 1 MiB"),
        (OK + b"Content-Length: 900\r\n\r\n", b"x", 0.05, "Read timed out"),
        (OK, b"X: y\r\n" * 1000, 0, "got more than 100 headers|Read timed out"),
        (OK + b"X: ", b"y", 0.05, "Read timed out"),
        (OK, b"y" * 1024, 0, "got more than 65536 bytes when reading header line|Read timed out"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", 0, "more than 1 MiB|Read timed out"),
        (OK + b"Content-Length: -5\r\n\r\n", b"", 0, "not a Kubernetes API|Read timed out"),
        (OK + b"Content-Length: many\r\n\r\n", b"", 0, "not a Kubernetes API|Read timed out"),
        (b"SSH-2.0-OpenSSH\r\n", b"", 0, r"SSH-2\.0-OpenSSH|Read timed out"),
        (OK + b"Content-Length: 2\r\n\r\n[]", b"", 0, "not a Kubernetes API"),
        (OK + b"Content-Length: 40000\r\n\r\n" + b"[" * 40000, b"", 0, "not a Kubernetes API"),
    ],
)
def test_a_hostile_answer_has_an_end(
    fake: FakeApi,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    head: bytes,
    piece: bytes,
    pause_s: float,
    message: str,
) -> None:
    assert (cluster.ANSWER_S, cluster.PATIENCE_S, transport.LARGEST) == (60, 120, 64 * 2**20)
    # A busy machine may take its time for what ends by another reason.
    answer_s = 20 if message == "more than 1 MiB" else 1
    for name, limit_s in {"FIRST_S": answer_s, "PATIENCE_S": 2 * answer_s, "ANSWER_S": answer_s}.items():
        monkeypatch.setattr(cluster, name, limit_s)
    monkeypatch.setattr(transport, "LARGEST", 2**20)
    with hostile(fake, tmp_path, head, piece, pause_s) as api:
        started_s = time.monotonic()
        with pytest.raises(MachineError, match=message) as caught:
            api.get(SERVICES)
        assert time.monotonic() - started_s < 3 * answer_s
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("pages", "message", "requests"),
    [
        ([{"metadata": {"continue": "x"}}], "the same continue token twice", 2),
        ([{"metadata": {"continue": "x"}}, 410], "410 Expired", 2 * (cluster.RESTARTS + 1)),
        ([{"metadata": {"continue": "x"}}, {"metadata": {"continue": "y"}}], "more than 20 pages of a list", 20),
        ([{"items": ["x"]}], r"services: \.items\[0\]: not an object", 1),
        ([{"items": [{"metadata": {"name": 5}}]}], r"services: \.items\[0\]\.metadata\.name: not a text", 1),
        ([{"items": {"a": 1}}], r"services: \.items: not a list", 1),
        ([{"metadata": {"continue": ["x"]}}], r"services: \.metadata\.continue: not a text", 1),
    ],
)
def test_a_hostile_list_has_an_end(
    api: Api, fake: FakeApi, monkeypatch: pytest.MonkeyPatch, pages: list[Any], message: str, requests: int
) -> None:
    answers = itertools.cycle(pages)
    seen = []

    def answer(*_: object) -> tuple[int, object, str]:
        page = next(answers)
        seen.append(page)
        return (page, {"reason": "Expired"}, "") if page == 410 else (200, page, "")

    monkeypatch.setattr(fake, "answer", answer)
    monkeypatch.setattr(cluster, "MOST_PAGES", 20)
    with pytest.raises(MachineError, match=message):
        list(api.list(SERVICES))
    assert len(seen) == requests


@pytest.mark.parametrize("name", ["../../x?=", "..", ".", "a/b", "a%2fb", ""])
def test_a_name_that_would_be_another_path_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="invalid name"):
        join_path("/api/v1/namespaces", name, "services")


def test_names_are_quoted(fake: FakeApi, api: Api) -> None:
    path = join_path("/api/v1/namespaces", "a?b=#c d\r\n\u20ac", "services")
    assert re.fullmatch("[ -~]+", path)
    assert not re.search("[?#= ]", path)
    assert list(api.list(path)) == []
    assert fake.calls[0].namespace == "a?b=#c d\r\n\u20ac"


@given(body=st.binary(max_size=5000), cuts=st.lists(st.integers(1, 700), max_size=30), chunked=st.booleans())
def test_an_answer_is_read_however_it_is_cut(body: bytes, cuts: list[int], chunked: bool) -> None:
    """A read may return any number of bytes."""
    head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nA: b\r\n"
    if chunked:
        parts = [body[at : at + 999] for at in range(0, len(body), 999)]
        text = b"".join(b"%x;x=y\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\nT: u\r\n\r\n"
        text = head + b"Transfer-Encoding: chunked\r\n\r\n" + text
    else:
        text = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    sizes = iter(cuts)

    class Cut:
        def __init__(self) -> None:
            self.left = text

        def settimeout(self, _: float) -> None:
            pass

        def recv_into(self, buffer: bytearray) -> int:
            size = min(next(sizes, len(buffer)), len(buffer), len(self.left))
            buffer[:size], self.left = self.left[:size], self.left[size:]
            return size

    answer, reusable = read_answer(Cut(), time.monotonic() + 60, 10_000)
    assert (answer, reusable) == (Answer(201, dict([*answer.headers.items()]), body), True)
    assert answer.headers["a"] == "b"


def test_a_deferred_signal_ends_a_wait_for_an_answer(fake: FakeApi, api: Api) -> None:
    """Only if the request changes nothing: what another one changed would have no owner."""
    before = {signum: signal.getsignal(signum) for signum in interrupts.ENDING}
    interrupts.install()
    fake.delay_s = 2
    try:
        for method, is_ended in (("POST", False), ("GET", True)):
            body = {"metadata": {"name": "x"}} if method == "POST" else None
            timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            started_s = time.monotonic()
            with interrupts.deferred(), suppress(Interrupted, MachineError):
                api.request(method, "/api/v1/namespaces/default/services", body)
            assert (time.monotonic() - started_s < 1) == is_ended
            interrupts.install()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@pytest.mark.parametrize("answer", [b"garbage\r\n\r\n", b"HTTP/1.1 200 " + b"x" * 70000 + b"\r\n\r\n"])
def test_a_proxy_that_is_none_is_one_line(fake: FakeApi, tmp_path: Path, answer: bytes) -> None:
    path = fake.kubeconfig(tmp_path)
    document = json.loads(path.read_text())
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
        document["clusters"][0]["cluster"] = {"server": "https://api.invalid", "proxy-url": proxy}
        path.write_text(json.dumps(document))
        with pytest.raises(MachineError, match="no API server answers at"):
            connect(path).get(SERVICES)
        server.shutdown(socket.SHUT_RDWR)
