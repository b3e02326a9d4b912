"""The commands that speak to a cluster, from the command line to the fake API and back."""

from __future__ import annotations

import copy
import json
import re
import socket
from pathlib import Path

import pytest
import yaml

from kproxylat.cluster import proxy_mode
from kproxylat.measure.options import Options
from kproxylat.node.live_rules import LiveRules
from kproxylat.results import Target
from tests.support.command import Captured, call
from tests.support.fake_api import FakeApi
from tests.support.fixtures import RULES, running
from tests.support.kube_proxy import RECORDED


def test_mode_show(capsys: Captured, cluster: FakeApi) -> None:
    status, out, _ = call(capsys, "mode", "show")
    assert status == 0
    assert out.splitlines() == [
        "kube-proxy mode iptables, backend nft: certain",
        "  the kernel holds only rules of iptables on nft",
        "ConfigMap kube-proxy, config.conf: empty, the default: iptables",
        "this kernel's rules: iptables on nft (5 rules, 0 Service ports)",
        "not asked: /proxyMode: no kube-proxy answers on port 10249 of this machine: Connection refused",
    ]
    assert cluster.calls


@pytest.mark.parametrize("words", [("mode", "show"), ("services", "list")])
@pytest.mark.parametrize("form", ["text", "json"])
def test_output_writes_to_a_file_what_stdout_would_get(
    capsys: Captured, cluster: FakeApi, tmp_path: Path, words: tuple[str, ...], form: str
) -> None:
    assert cluster.port
    argv = (*words, *(("--format", "json") if form == "json" else ()))
    path = tmp_path / "answer"
    expected = call(capsys, *argv)[1]
    assert call(capsys, *argv, "--output", str(path))[:2] == (0, "")
    assert (path.read_text(), form == "json") == (expected, expected.startswith("{"))
    status, out, err = call(capsys, *argv, "--output", str(path))
    assert (status, out, path.read_text()) == (1, "", expected)
    assert f"{path} cannot be written: it exists" in err


def test_mode_show_where_sources_disagree(capsys: Captured, cluster: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster.port
    running(monkeypatch, "nftables", RULES, LiveRules("nftables", "nft", 4, {}))
    status, out, _ = call(capsys, "mode", "show", "--format", "json")
    answer = json.loads(out)
    assert (status, answer["mode"], answer["sure"]) == (0, "nftables", "likely")
    assert "set to iptables but runs nftables" in answer["warnings"][0]
    assert "left behind" in answer["warnings"][1]
    assert answer["settle"] == "sudo kproxylat mode show --send-packet"
    status, out, _ = call(capsys, "mode", "show")
    assert f"leftovers: kube-proxy removes leftover rules when it starts; if they stay, {proxy_mode.CLEAN_UP}\n" in out


def test_mode_show_without_a_cluster(capsys: Captured, cluster: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node without a kubeconfig still has its kernel; without that, too, nothing is known, and the status says so."""
    assert cluster.port
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    status, out, _ = call(capsys, "mode", "show")
    assert status == 0
    assert "not asked: the cluster's API: there is no kubeconfig" in out
    running(monkeypatch, None)
    status, out, _ = call(capsys, "mode", "show")
    assert (status, out.splitlines()[0]) == (1, "kube-proxy mode ?, backend ?: unknown")


def test_mode_show_with_an_unknown_context(capsys: Captured, cluster: FakeApi) -> None:
    assert cluster.port
    status, out, err = call(capsys, "mode", "show", "--context", "prod")
    assert (status, out) == (2, "")
    assert err == "kproxylat: the kubeconfig has no context 'prod'\n  --context takes one of: fake\n"


def test_mode_show_sends_a_packet(capsys: Captured, cluster: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster.port
    legacy, nft = (LiveRules("iptables", backend, 5, {}) for backend in ("legacy", "nft"))
    running(monkeypatch, "iptables", legacy, nft)
    monkeypatch.setattr(proxy_mode, "probe", lambda *_: frozenset({str(nft)}))
    assert call(capsys, "mode", "show")[0] == 1
    status, out, _ = call(capsys, "mode", "show", "--send-packet")
    assert (status, out.splitlines()[0]) == (0, "kube-proxy mode iptables, backend nft: certain")
    assert call(capsys, "mode", "show", "--probe")[0] == 2, "its old name"


@pytest.mark.parametrize("counting", ["legacy", "nft"])
@pytest.mark.parametrize("writing", ["legacy", "nft", None])
def test_mode_show_answers_who_translates_and_what_kube_proxy_writes(
    capsys: Captured, cluster: FakeApi, monkeypatch: pytest.MonkeyPatch, counting: str, writing: str | None
) -> None:
    """By the recorded metrics, kube-proxy has 30 rules in table nat; it writes the backend that holds as many."""
    assert cluster.port
    owned = {"legacy": 30 if writing in ("legacy", None) else 29, "nft": 30 if writing in ("nft", None) else 31}
    rules = {backend: LiveRules("iptables", backend, 5, {}, owned[backend]) for backend in owned}
    running(monkeypatch, "iptables", *rules.values())
    monkeypatch.setattr(proxy_mode, "probe", lambda *_: frozenset({str(rules[counting])}))
    status, out, _ = call(capsys, "mode", "show", "--send-packet")
    lines = out.splitlines()
    is_leftover = writing not in (counting, None)
    subject = "packets meet leftover rules:" if is_leftover else "kube-proxy"
    assert (status, lines[0]) == (0, f"{subject} mode iptables, backend {counting}: certain")
    assert f"translates packets: iptables on {counting}" in lines
    assert f"is written by kube-proxy: {f'iptables on {writing}' if writing else 'unknown'}" in lines
    warnings = " ".join(line for line in lines if line.startswith("warning: "))
    if writing:
        left = "nft" if writing == "legacy" else "legacy"
        assert f"rules of iptables on {left} were left behind: kube-proxy writes iptables on {writing}" in warnings
    else:
        assert "iptables on legacy and iptables on nft both hold rules" in warnings
    assert (f"rules of iptables on {counting}, left behind, translate first" in warnings) == is_leftover
    assert any(line.startswith("leftovers: ") for line in lines)
    answer = json.loads(call(capsys, "mode", "show", "--send-packet", "--format", "json")[1])
    live = f"iptables on {writing}" if writing else None
    assert (answer["translates"], answer["live"]) == (f"iptables on {counting}", live)
    # Without a packet, it is not known who translates; what kube-proxy writes still is.
    status, out, _ = call(capsys, "mode", "show")
    assert (status, "translates packets: unknown" in out) == (1, True)
    assert f"is written by kube-proxy: {live or 'unknown'}" in out
    assert "warning: " in out


def test_run_looks_up_target_and_mode(capsys: Captured, cluster: FakeApi, measured: list[Options]) -> None:
    for each in RECORDED.glob("*worker*.json"):
        cluster.add(each)
    status, _, err = call(capsys, "run", "2", "1000", "--service", "worker-dual", "--format", "json")
    assert status == 0
    [options] = measured
    assert (options.mode.name, options.mode.backend) == ("iptables", "nft")
    assert options.target == Target("10.96.100.52", 50051, "udp")
    assert "ports grpc 50051/TCP, grpc-udp 50051/UDP; 1 endpoints" in err
    status, _, err = call(capsys, "run", "2", "1000", "--mode", "iptables")
    assert status == 0
    assert "miss path: Service default/worker has no UDP port" in err
    assert "packets come from 198.18.0.0/15 and are masqueraded: none of the cluster's 0 nodes has an address" in err
    assert [each.masqueraded for each in measured] == [True, True]
    assert "masqueraded: none of the cluster" in measured[0].record.warnings[0]


def test_run_with_a_target_asks_no_api(
    capsys: Captured, cluster: FakeApi, measured: list[Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    running(monkeypatch, "nftables", LiveRules("nftables", "nft", 4, {}))
    status, _, _ = call(capsys, "run", "--target", "10.96.0.10:50051", "2", "1000")
    assert (status, measured[0].mode.name, cluster.calls) == (0, "nftables", [])


@pytest.mark.parametrize(
    ("argv", "message", "expected"),
    [
        ((), "Service worker not found in namespace default", 1),
        (("-n", "other"), "Service worker not found in namespace other", 1),
        (("--context", "prod"), "no context 'prod'", 2),
        (("--target", "10.96.0.10:1", "--mode", "nftables", "--backend", "legacy"), "no backend 'legacy'", 2),
        (("--target", "10.96.0.10:1", "--mode", "nftables", "0"), "duration", 2),
    ],
)
def test_bad_input_of_run(
    capsys: Captured, cluster: FakeApi, measured: list[Options], argv: tuple[str, ...], message: str, expected: int
) -> None:
    assert cluster.port
    status, out, err = call(capsys, "run", *argv)
    assert (status, out, measured) == (expected, "", [])
    assert message in err
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize(
    ("mode", "rules", "argv", "message"),
    [
        ("iptables", ("legacy", "nft"), (), "ambiguous: the kernel holds the rules of iptables on legacy and iptables"),
        ("iptables", (), (), "mode iptables on an unknown backend"),
        (
            "nftables",
            (),
            ("--mode", "iptables"),
            "--mode iptables was passed, but the running kube-proxy reports nftables",
        ),
        (None, (), (), "no source knows of a kube-proxy"),
    ],
)
def test_an_ambiguous_mode(
    capsys: Captured,
    cluster: FakeApi,
    measured: list[Options],
    monkeypatch: pytest.MonkeyPatch,
    mode: str | None,
    rules: tuple[str, ...],
    argv: tuple[str, ...],
    message: str,
) -> None:
    assert cluster.port
    running(monkeypatch, mode, *(LiveRules("iptables", each, 5, {}) for each in rules))
    status, out, err = call(capsys, "run", "--target", "10.96.0.10:50051", *argv)
    assert (status, out, measured) == (1, "", [])
    assert message in err
    assert err.splitlines()[1].startswith("  ")


def test_the_options_of_kubectl(capsys: Captured, cluster: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """--as goes to the server with each request; --as-group without it is refused, as in kubectl."""
    asked, answer = [], cluster.answer

    def note(method: str, target: str, headers: dict[str, str], body: bytes) -> object:
        asked.append((headers.get("impersonate-user"), headers.get("impersonate-group")))
        return answer(method, target, headers, body)

    monkeypatch.setattr(cluster, "answer", note)
    words = ("services", "list", "--cluster=fake", "--request-timeout", "1m")
    assert call(capsys, *words, "--as", "jane", "--as-group", "ops")[0] == 0
    assert {*asked} == {("jane", "ops")}
    status, _, err = call(capsys, *words, "--as-group", "ops")
    assert (status, "--as-group would have no effect" in err) == (2, True)
    status, _, err = call(capsys, "services", "list", "--request-timeout", "soon")
    assert (status, "--request-timeout 'soon' is not a time" in err) == (2, True)


def test_services_of_all_namespaces_in_each_form(capsys: Captured, cluster: FakeApi) -> None:
    """-A is as in kubectl: whatever --namespace says; wide adds the ports, name is what kubectl delete takes."""
    assert cluster.named("services") == []
    for namespace, count in (("team", "2"), ("default", "1")):
        assert call(capsys, "services", "create", "--count", count, "-n", namespace)[0] == 0
    rows = {}
    for form in ("table", "wide", "name"):
        status, out, err = call(capsys, "services", "list", "-A", "-n", "nowhere", "-o", form)
        assert status == 0
        rows[form] = [line.split() for line in out.splitlines()]
        assert "2 dummy Services in namespace team; without EndpointSlice: 0" in err
    assert [row[:2] for row in rows["table"]] == [
        ["default", "dummy-service-0"],
        ["team", "dummy-service-0"],
        ["team", "dummy-service-1"],
    ]
    assert rows["name"] == [["service/dummy-service-0"], ["service/dummy-service-0"], ["service/dummy-service-1"]]
    assert [row[:3] for row in rows["wide"]] == rows["table"]
    assert all(re.fullmatch(r"[0-9]+/(TCP|UDP)(,[0-9]+/(TCP|UDP))*", row[3]) for row in rows["wide"])
    document = json.loads(call(capsys, "services", "list", "-A", "-o", "json")[1])
    assert [(part["namespace"], part["count"]) for part in document["namespaces"]] == [("default", 1), ("team", 2)]
    assert yaml.safe_load(call(capsys, "services", "list", "-A", "-o", "yaml")[1]) == document
    one = ("services", "list", "-n", "team", "-o")
    assert yaml.safe_load(call(capsys, *one, "yaml")[1]) == json.loads(call(capsys, *one, "json")[1])


def test_services_of_all_namespaces_without_any(capsys: Captured, cluster: FakeApi) -> None:
    assert cluster.named("services") == []
    assert call(capsys, "services", "list", "-A") == (0, "", "0 dummy Services in all namespaces\n")


def test_services_from_the_command_line(capsys: Captured, cluster: FakeApi) -> None:
    assert call(capsys, "services", "create", "--count", "3", "--dry-run")[1] == (
        "would create 3 dummy Services and their EndpointSlices in namespace default; 0 are there\n"
    )
    assert cluster.named("services") == []
    status, out, _ = call(capsys, "services", "create", "--count", "3", "-n", "team")
    assert (status, cluster.named("services", "team")) == (0, [f"dummy-service-{number}" for number in range(3)])
    assert out.startswith("created 3 dummy Services and their EndpointSlices in namespace team; 0 were there: ")
    status, out, err = call(capsys, "services", "list", "-n", "team")
    assert [line.split() for line in out.splitlines()][2][0] == "dummy-service-2"
    assert err == "3 dummy Services in namespace team; without EndpointSlice: 0\n"
    assert json.loads(call(capsys, "services", "list", "-n", "team", "--format", "json")[1])["count"] == 3
    assert "would delete 3 dummy" in call(capsys, "services", "delete", "-n", "team", "--dry-run")[1]
    assert len(cluster.named("services", "team")) == 3
    status, out, _ = call(capsys, "services", "delete", "-n", "team")
    assert (status, cluster.named("services", "team")) == (0, [])
    assert out == "deleted 3 dummy Services and 3 EndpointSlices in namespace team\n"
    status, _, err = call(capsys, "services", "create", "--count", "60001")
    assert (status, err.splitlines()[1]) == (2, "  --count takes 0 to 60000")


def test_a_namespace_keeps_its_name_in_messages(capsys: Captured, cluster: FakeApi) -> None:
    assert cluster.port
    command = ("services", "create", "--count", "1", "-n", "shared-software")
    objects = "1 dummy Services and their EndpointSlices in namespace shared-software"
    assert call(capsys, *command, "--dry-run")[1] == f"would create {objects}; 0 are there\n"
    assert call(capsys, *command)[1].startswith(f"created {objects}; 0 were there: ")


def test_wait_includes_the_workers_rules(capsys: Captured, cluster: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster.port
    running(monkeypatch, "iptables", LiveRules("iptables", "nft", 1, {Target("10.97.0.2", 80, "tcp"): 0}))
    status, _, err = call(capsys, "services", "create", "--count", "1", "--worker", "--wait", "0")
    assert status == 1
    assert "2 Service ports are missing, such as 10.97.0.1:50051/tcp" in err


def test_wait_ends_with_the_rules_and_an_idle_kube_proxy(
    capsys: Captured, cluster: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cluster.port
    running(monkeypatch, "iptables", LiveRules("iptables", "nft", 1, {Target("10.97.0.1", 80, "tcp"): 0}))
    status, out, err = call(capsys, "services", "create", "--count", "1", "--wait", "0")
    assert status == 0, err
    assert "kube-proxy's rules hold them: " in out


def test_run_without_a_cluster_names_target_and_mode(
    capsys: Captured, cluster: FakeApi, measured: list[Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cluster.port
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    status, out, err = call(capsys, "run", "2", "1000")
    assert (status, out, measured) == (1, "", [])
    assert err.startswith("kproxylat: there is no kubeconfig: /nowhere does not exist")
    assert err.endswith("\n  or, without a cluster's API: --target IP:PORT --mode MODE\n")


def test_create_worker_and_keep_another_clients_worker(capsys: Captured, cluster: FakeApi) -> None:
    for _ in range(2):
        status, out, _ = call(capsys, "services", "create", "--count", "0", "--worker")
        assert (status, out.splitlines()[0]) == (0, "applied Service worker and Deployment worker")
    assert cluster.named("services") == cluster.named("deployments") == ["worker"]
    service = cluster.objects["", "services", "default", "worker"]
    assert {(each["port"], each["protocol"]) for each in service["spec"]["ports"]} == {(50051, "TCP"), (50051, "UDP")}
    assert {"fieldManager": "kproxylat"} in cluster.queries
    assert call(capsys, "services", "delete")[0] == 0
    assert cluster.named("services") == ["worker"]
    assert "deleted 2 objects of the worker" in call(capsys, "services", "delete", "--worker")[1]
    assert cluster.named("services") == cluster.named("deployments") == []
    cluster.add(RECORDED / "service-worker.json")
    for argv in (("create", "--count", "0", "--worker"), ("delete", "--worker")):
        status, _, err = call(capsys, "services", *argv)
        assert status == 1
        assert "kproxylat did not create Service default/worker: it is not touched" in err
    assert cluster.named("services") == ["worker"]
    assert cluster.named("deployments") == []


API_COMMANDS = (
    ("services", "create", "--count", "1"),
    ("services", "list"),
    ("services", "delete"),
    ("mode", "set", "nftables", "--yes"),
    ("run", "2", "1000"),
    ("render",),
    ("sweep", "2", "1000", "--services", "1"),
)


@pytest.mark.parametrize(
    ("wrong", "status", "message", "remedy"),
    [
        ("no kubeconfig", 1, "there is no kubeconfig: ", "pass --kubeconfig FILE"),
        ("an expired token", 1, "refuses (401 Unauthorized): the token has expired", "log in again"),
        ("a wrong context", 2, "the kubeconfig has no context 'prod'", "--context takes one of: fake"),
        ("a server that is not there", 1, "no API server answers at http://127.0.0.1:", "kubectl config view --minify"),
        ("no permission", 1, "not permitted|403 Forbidden", "docs/rbac.md"),
        ("no API", 1, "not a Kubernetes API", "kubectl config view --minify"),
    ],
)
@pytest.mark.parametrize("argv", API_COMMANDS, ids=" ".join)
def test_bad_input_of_every_command(
    capsys: Captured,
    cluster: FakeApi,
    measured: list[Options],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    argv: tuple[str, ...],
    wrong: str,
    status: int,
    message: str,
    remedy: str,
) -> None:
    """One clear line, the remedy, and the status; nothing is changed or measured."""
    monkeypatch.setattr("kproxylat.sweep.on_cluster.check_root", lambda: None)
    monkeypatch.setattr("kproxylat.measure.defaults.check_root", lambda: None)
    for each in RECORDED.glob("*worker.json"):
        cluster.add(each)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if wrong == "no kubeconfig":
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    elif wrong == "an expired token":
        cluster.kubeconfig(tmp_path, token="old")  # noqa: S106
    elif wrong == "a server that is not there":
        cluster.kubeconfig(tmp_path, port=port)
    elif wrong == "no permission":
        cluster.permitted = set()
    elif wrong == "no API":
        monkeypatch.setattr(cluster, "answer", lambda *_: (200, [], ""))
    before = copy.deepcopy(cluster.objects)
    found, out, err = call(capsys, *argv, *(("--context", "prod") if wrong == "a wrong context" else ()))
    assert (found, out, measured, cluster.objects) == (status, "", [], before), err
    [line, *remedies] = err.splitlines()
    assert re.search(re.escape(message).replace(r"\|", "|"), line)
    assert line.startswith("kproxylat: ")
    assert remedy in remedies[0]
    assert all(each.startswith("  ") for each in remedies)
    assert len(remedies) <= 2


@pytest.mark.parametrize(
    "argv", [("list",), ("delete",), ("delete", "--dry-run"), ("create", "--count", "1", "--dry-run")], ids=" ".join
)
def test_a_namespace_that_does_not_exist(capsys: Captured, cluster: FakeApi, argv: tuple[str, ...]) -> None:
    """The server calls it empty."""
    cluster.missing_namespaces.add("nope")
    status, out, err = call(capsys, "services", *argv, "-n", "nope")
    assert (status, out) == (1, "")
    assert err.startswith("kproxylat: namespace nope not found in the cluster of context fake\n")
    cluster.denied.add(("get", "namespaces"))
    assert call(capsys, "services", *argv, "-n", "nope")[0] == 0


@pytest.mark.parametrize("argv", [("services", "list"), ("run", "--mode", "iptables"), ("services", "delete")])
def test_a_namespace_cannot_lead_to_another_path(
    capsys: Captured, cluster: FakeApi, measured: list[Options], argv: tuple[str, ...]
) -> None:
    status, _, err = call(capsys, *argv, "-n", "../../x?=")
    assert (status, cluster.calls, measured) == (2, [], [])
    assert err.startswith("kproxylat: invalid name '../../x?='\n  ")


def test_a_dry_run_looks_at_the_worker(capsys: Captured, cluster: FakeApi) -> None:
    create, delete = ("services", "create", "--count", "0", "--worker"), ("services", "delete", "--worker")
    assert call(capsys, *create, "--dry-run")[1].endswith("and Deployment worker; 0 of 2 are there\n")
    assert call(capsys, *delete, "--dry-run")[1].endswith("would delete of the worker: nothing\n")
    assert call(capsys, *create)[0] == 0
    assert call(capsys, *create, "--dry-run")[1].endswith("and Deployment worker; 2 of 2 are there\n")
    expected = "would delete of the worker: Deployment worker, Service worker\n"
    assert call(capsys, *delete, "--dry-run")[1].endswith(expected)
    cluster.add(RECORDED / "service-worker.json")
    for argv in (create, delete):
        status, _, err = call(capsys, *argv, "--dry-run")
        assert status == 1
        assert "kproxylat did not create Service default/worker: it is not touched" in err


def test_numbers_with_zeros_in_front_are_other_names(capsys: Captured, cluster: FakeApi) -> None:
    assert call(capsys, "services", "create", "--count", "8")[0] == 0
    for key, document in [*cluster.objects.items()]:
        if key[3] == "dummy-service-7":
            twin = copy.deepcopy(document)
            twin["metadata"] |= {"name": "dummy-service-007", "uid": f"{key[1]}-007"}
            cluster.objects[(*key[:3], "dummy-service-007")] = twin
    answer = json.loads(call(capsys, "services", "list", "--format", "json")[1])
    assert (answer["count"], answer["not_ours"], answer["without_slice"]) == (8, ["dummy-service-007"], [])
    assert call(capsys, "services", "delete")[0] == 0
    assert cluster.named("services") == ["dummy-service-007"]


def test_run_warns_of_a_target_whose_packets_are_dropped(
    capsys: Captured, cluster: FakeApi, measured: list[Options]
) -> None:
    for path in RECORDED.glob("*worker*.json"):
        cluster.add(path)
    cluster.objects["", "services", "default", "worker-dual"]["spec"]["internalTrafficPolicy"] = "Local"
    status, _, err = call(capsys, "run", "2", "1000", "--service", "worker-dual")
    assert status == 0
    assert "warning: Service default/worker-dual has internalTrafficPolicy Local and no endpoint on this node" in err
    assert any("internalTrafficPolicy Local" in warning for warning in measured[0].record.warnings)


def test_a_service_deleted_while_its_rules_are_waited_for(
    capsys: Captured, cluster: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_live_rules(_: object) -> tuple[LiveRules, ...]:
        """Delete one Service before the first look; kube-proxy has rules of the other."""
        cluster.objects.pop(("", "services", "default", "dummy-service-1"), None)
        service = cluster.objects["", "services", "default", "dummy-service-0"]
        return (LiveRules("iptables", "nft", 1, {Target(service["spec"]["clusterIP"], 80, "tcp"): 0}),)

    running(monkeypatch, "iptables")
    monkeypatch.setattr(proxy_mode, "read_live_rules", read_live_rules)
    status, out, err = call(capsys, "services", "create", "--count", "2", "--wait", "0")
    assert status == 0, err
    assert "kube-proxy's rules hold them: " in out
