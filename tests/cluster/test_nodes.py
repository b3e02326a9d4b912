"""Commands on nodes: Jobs, their pods' logs, many nodes, and all that can go wrong with them."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kproxylat import __version__
from kproxylat.cli.bill import read_address
from kproxylat.cluster import envelope, nodes
from kproxylat.cluster.envelope import Envelope, read_log, write_begin, write_envelope
from kproxylat.cluster.job import COMMANDS, IMAGE, PROFILES, find_changes, make_job, make_name
from kproxylat.report.nodes import pool
from kproxylat.results_json import list_from_json, to_json
from kproxylat.trace.percentiles import add_percentiles
from tests.results import COUNTED
from tests.support import ROOT
from tests.support.bills import count, make_bill, window
from tests.support.command import Captured, call
from tests.support.fake_api import FakeApi
from tests.support.kube_proxy import RECORDED
from tests.support.kubelet import Kubelet, Pod, find_command, find_node
from tests.support.nodes import node_of
from tests.support.rights import MANIFESTS, rights

NAMES = ("n1", "n2", "n3")
TARGET = ("--target", "10.96.0.10:53", "1", "100")
RESULTS = list_from_json(COUNTED.read_text())


def write_log(stdout: str, status: int = 0, progress: str = "", version: str = __version__, **more: Any) -> str:
    """Return the log of a pod that printed a text."""
    text = write_envelope(Envelope(version, status, stdout, more.pop("time_s", time.time()), **more))
    return write_begin(version) + progress + text


class Cluster:
    """A cluster whose pods print given logs."""

    def __init__(self, fake: FakeApi, directory: Path) -> None:
        self.fake, self.directory = fake, directory
        self.kubelet = Kubelet(fake, directory, wrap=self.wrap)
        self.texts: dict[str, tuple[str, int]] = {}
        fake.after = self.kubelet.note
        for number, name in enumerate(NAMES):
            fake.add(node_of(name, f"192.0.2.{number}", f"10.244.{number}.0/24"))

    def wrap(self, pod: Pod) -> list[str]:
        """Return a command that prints the log of a pod's node."""
        text, status = self.texts[find_node(pod.job)]
        file = self.directory / f"{pod.name}.text"
        file.write_text(text)
        return ["sh", "-c", 'cat "$0"; exit "$1"', str(file), str(status)]

    def print(self, node: str, text: str, status: int = 0) -> None:
        """Let the pods of a node print this log."""
        self.texts[node] = (text, status)

    def left(self) -> list[str]:
        """Return the Jobs and pods that stay; the garbage collector takes the pods of a Job some time after it."""
        ends_s = time.monotonic() + 10
        while self._list() and time.monotonic() < ends_s:
            threading.Event().wait(0.02)
        return self._list()

    def _list(self) -> list[str]:
        return [key[3] for key in self.fake.objects if key[1] in ("jobs", "pods")]


@pytest.fixture
def pods(fake: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Three nodes; the pod of each prints a result, those of n2 and n3 a slower one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path)))
    monkeypatch.setattr("kproxylat.cli.app.signal.signal", lambda *_: None)
    monkeypatch.setattr(nodes, "POLL_S", 0.02)
    monkeypatch.setattr(nodes, "EVENTS_S", 0.1)
    cluster = Cluster(fake, tmp_path)
    slow, *_, fast = sorted(RESULTS, key=lambda result: -((result.headline and result.headline.middle) or 0))
    for name, result in zip(NAMES, (fast, slow, RESULTS[1]), strict=True):
        cluster.print(
            name, write_log(to_json(result), progress="[1/7] Checks\n", files={"x.log": "raw", "x.json": "{}"})
        )
    yield cluster
    cluster.kubelet.end()


def test_each_right_has_a_reason() -> None:
    for profile in PROFILES.values():
        assert all(profile.capabilities.values())
        assert all(mount.reason for mount in profile.mounts)
    assert "SYS_MODULE" not in PROFILES["measure"].capabilities
    assert set(PROFILES["observe"].capabilities) <= set(PROFILES["measure"].capabilities)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_job(command: str) -> None:
    job = make_job(command, "node.example", ["x"], "ns", "image:1", 30)
    spec = job["spec"]["template"]["spec"]
    [container] = spec["containers"]
    security = container["securityContext"]
    assert find_node(job) == "node.example"
    assert (job["spec"]["backoffLimit"], job["spec"]["activeDeadlineSeconds"]) == (0, 150)
    assert (spec["automountServiceAccountToken"], spec["hostNetwork"], spec["restartPolicy"]) == (False, True, "Never")
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert not {"hostPID", "hostIPC"} & set(spec)
    assert (security["privileged"], security["readOnlyRootFilesystem"]) == (False, True)
    assert security["capabilities"] == {"drop": ["ALL"], "add": sorted(PROFILES[COMMANDS[command]].capabilities)}
    assert "cpu" not in container["resources"]["limits"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    writable = {volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
    assert ("/run/kproxylat" in writable) == (COMMANDS[command] == "measure")


def test_the_job_that_loads_modules() -> None:
    """It adds one capability and one directory, read-only; nothing else differs."""
    plain, loading = (make_job("run", "n1", [], "ns", "image:1", 30, load) for load in (False, True))
    containers = [job["spec"]["template"]["spec"]["containers"][0] for job in (plain, loading)]
    before, after = (set(one["securityContext"]["capabilities"].pop("add")) for one in containers)
    assert (after - before, before - after) == ({"SYS_MODULE"}, set())
    mount = containers[1]["volumeMounts"].pop()
    volume = loading["spec"]["template"]["spec"]["volumes"].pop()
    assert mount == {"name": volume["name"], "mountPath": "/lib/modules", "readOnly": True}
    assert volume["hostPath"] == {"path": "/lib/modules", "type": "Directory"}
    for job in (plain, loading):
        del job["metadata"]["name"]
    assert plain == loading


MODULES = {
    "run": ("run", *TARGET),
    "sweep": ("sweep", "--lab", "--services", "5"),
    "doctor": ("doctor",),
}


@pytest.mark.parametrize("command", MODULES)
def test_pods_that_may_load_modules(capsys: Captured, pods: Cluster, command: str) -> None:
    """Only if asked: the Job has the right, and the pod's words are the same."""
    words = MODULES[command]
    for more in ((), ("--load-modules",)):
        assert call(capsys, *words, "--node", "n1", *more)[0] == 0
    plain, loading = (pod.job["spec"]["template"]["spec"]["containers"][0] for pod in pods.kubelet.ran)
    assert plain["command"] == loading["command"]
    assert "SYS_MODULE" not in plain["securityContext"]["capabilities"]["add"]
    assert "SYS_MODULE" in loading["securityContext"]["capabilities"]["add"]
    status, _, err = call(capsys, *words, "--load-modules")
    assert (status, "--load-modules" in err, len(pods.kubelet.ran)) == (2, True, 2)


@given(st.text(max_size=80))
def test_a_jobs_name_is_a_label(node: str) -> None:
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])", make_name("mode show", node))


def test_what_admission_rewrites() -> None:
    job = make_job("run", "n", [], "ns", "image:1", 30)
    answer = json.loads(json.dumps(job))
    spec = answer["spec"]["template"]["spec"]
    spec["schedulerName"] = "added"
    spec["tolerations"].append({"key": "added"})
    for mount in spec["containers"][0]["volumeMounts"]:
        mount["readOnly"] or mount.pop("readOnly")
    assert find_changes(job["spec"], answer["spec"]) == []
    spec["containers"][0]["securityContext"]["capabilities"]["add"].remove("SYS_ADMIN")
    spec["hostNetwork"] = False
    assert {change.rpartition(".")[2].partition("[")[0] for change in find_changes(job["spec"], answer["spec"])} == {
        "hostNetwork",
        "add",
    }


@given(st.text(), st.integers(-1, 300), st.lists(st.text(st.characters(exclude_characters="\n")), max_size=5))
def test_a_log_is_read_back(stdout: str, status: int, lines: list[str]) -> None:
    progress = "".join(f"{line}\n" for line in lines if not line.startswith(envelope.RESULT))
    log = read_log(write_log(stdout, status, progress, time_s=1.5, files={"a.log": stdout}))
    assert log.envelope == Envelope(__version__, status, stdout, 1.5, {"a.log": stdout})
    assert "".join(f"{line}\n" for line in log.progress) == progress


TEXT = write_log("x" * 50 + "".join(map(str, range(3000))), progress="one\ntwo\n")


@given(st.integers(1, len(TEXT) - 1), st.booleans())
def test_a_log_that_is_cut_holds_no_result(place: int, is_head: bool) -> None:
    """The kubelet keeps the end of a rotated log; of a log that is read too early there is only the head."""
    text = TEXT[:place] if is_head else TEXT[place:]
    log = read_log(text)
    whole = TEXT.index(envelope.RESULT)
    if is_head and text.endswith(envelope.END):
        assert log.envelope
    elif is_head or place > whole:
        assert log.envelope is None
        assert log.problem
    else:
        assert log.envelope
        assert log.version is None


@given(st.integers(TEXT.index(envelope.RESULT), len(TEXT) - len(envelope.END) - 3), st.characters(codec="ascii"))
def test_a_log_with_another_character_holds_no_other_result(place: int, character: str) -> None:
    log = read_log(TEXT[:place] + character + TEXT[place + 1 :])
    assert log.envelope in (None, read_log(TEXT).envelope)


@pytest.mark.parametrize("name", ["../x", "..", ".", "", "a/b", "a\0b", "a" * 300])
def test_a_file_of_an_envelope_stays_in_its_directory(name: str) -> None:
    assert read_log(write_log("", files={name: "x"})).envelope is None


@pytest.mark.parametrize("name", ["../../x", "..", "a/b", "$(reboot)", "a b", "a" * 300])
def test_a_node_whose_name_is_a_path_is_refused(capsys: Captured, pods: Cluster, tmp_path: Path, name: str) -> None:
    node = copy.deepcopy(pods.fake.objects["", "nodes", "", "n1"])
    node["metadata"]["name"] = name
    pods.fake.objects["", "nodes", "", name] = node
    for each in (*NAMES, name):
        pods.print(each, write_log("x", files={"x.log": "raw"}))
    status, _, err = call(capsys, "run", "--all-nodes", *TARGET, "--output-dir", str(tmp_path / "a/b/c"))
    assert (status, "a node has the name" in err, list(tmp_path.rglob("x.log"))) == (1, True, []), err


def test_a_result_that_unpacks_to_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "LARGEST", 1000)
    assert "more than" in read_log(write_log("x" * 2000)).problem


def test_many_nodes(capsys: Captured, pods: Cluster) -> None:
    status, out, err = call(capsys, "run", "--all-nodes", *TARGET)
    assert status == 0, err
    rows = [line.split() for line in out.splitlines() if line.split()[:1] and line.split()[0] in NAMES]
    assert [row[0] for row in rows] == ["n2", "n3", "n1"], "the slowest first"
    assert "n1: [1/7] Checks" in err
    assert Path("logs/ebpf/n2/x.log").read_text() == "raw"
    assert pods.left() == []
    commands = [find_command(pod.job) for pod in pods.kubelet.ran]
    assert commands[0][:5] == ["python3", "-m", "kproxylat.pod", __version__, "run"]
    assert {"--target=10.96.0.10:53", "--format=json", "1.0", "100"} <= set(commands[0])
    sources = {word.rpartition(".")[0] for command in commands for word in command if word.startswith("--source")}
    assert sources == {f"--source=10.244.{number}" for number in range(3)}


def test_nodes_that_are_alike_are_pooled(capsys: Captured, pods: Cluster) -> None:
    """Of n2 and n3, which agree in everything, and n1, which has another processor; values are known exactly."""
    lookup = RESULTS[0].headline
    assert lookup
    facts = {"n1": ("another", {7: 9}), "n2": ("one", {10: 3, 30: 1}), "n3": ("one", {20: 1, 30: 1})}
    runs = {}
    for name, (processor, values) in facts.items():
        kept = {str(value): count for value, count in values.items()}
        probe = replace(lookup, count=sum(values.values()), values=kept, percentiles={})
        runs[name] = replace(RESULTS[0], run=replace(RESULTS[0].run, processor=processor), probes=(probe,))
        pods.print(name, write_log(to_json(add_percentiles(runs[name], (50, 99)))))
    status, out, _ = call(capsys, "run", "--all-nodes", *TARGET, "--format", "json")
    [pooled] = json.loads(out)["pooled"]
    assert (status, sorted(pooled["nodes"])) == (0, ["n2", "n3"])
    assert pooled["probe"]["values"] == {"10": 3, "20": 1, "30": 2}
    assert [pooled["probe"][name] for name in ("count", "min", "max", "sum", "mode")] == [6, 10, 30, 110, 10]
    assert pooled["probe"]["percentiles"]["50"]["estimate"] == 15
    assert sum(bucket["count"] for bucket in pooled["probe"]["histogram"]["buckets"]) == 6
    _, out, _ = call(capsys, "run", "--all-nodes", *TARGET)
    assert re.search(r"^ these 2\*.* 6 .*closed$", out, re.M)
    assert re.search(r"^\* n[23], n[23]: alike in kernel, processor, rules and script$", out, re.M)
    unknown = replace(runs["n3"], run=replace(runs["n3"].run, processor=None))
    assert pool({"a": unknown, "b": unknown}) == {}, "what is unknown does not agree"


def test_a_failing_node_spoils_no_other(capsys: Captured, pods: Cluster) -> None:
    pods.print("n1", write_log("", 1, "kproxylat: no kube-proxy\n  start it\n"), 1)
    status, out, err = call(capsys, "run", "--all-nodes", *TARGET, "--format", "json")
    document = json.loads(out)
    assert (status, document["schema"], document["command"]) == (1, "kproxylat-nodes/1", "run")
    assert [(node["node"], node["status"], node["error"]) for node in document["nodes"]] == [
        ("n2", 0, None), ("n3", 0, None), ("n1", 1, "no kube-proxy"),
    ]  # fmt: skip
    assert document["nodes"][0]["result"]["schema"] == "kproxylat/1"
    assert err.endswith("kproxylat: node n1: no kube-proxy\n  start it\n")


def test_the_result_is_the_pods_own(capsys: Captured, pods: Cluster) -> None:
    _, out, _ = call(capsys, "run", "--node", "n1", *TARGET, "--format", "json")
    text = read_log(pods.texts["n1"][0]).envelope
    assert text
    assert json.loads(out)["nodes"][0]["result"] == json.loads(text.stdout)


def test_open_books_are_no_failure(capsys: Captured, pods: Cluster) -> None:
    pods.print("n1", write_log(to_json(RESULTS[0]), 4), 4)
    assert call(capsys, "run", "--all-nodes", *TARGET)[0] == 4


@pytest.mark.parametrize("parallel", [1, 2])
def test_few_nodes_at_a_time(capsys: Captured, pods: Cluster, parallel: int) -> None:
    assert call(capsys, "run", "--all-nodes", *TARGET, "--parallel", str(parallel))[0] == 0
    assert pods.kubelet.most <= parallel
    assert len(pods.kubelet.ran) == 3


def test_a_dry_run_prints_the_jobs(capsys: Captured, pods: Cluster) -> None:
    status, out, _ = call(
        capsys, "run", "--node", "n1", "--node", "n3", *TARGET, "--dry-run", "--job-namespace", "jobs"
    )
    jobs = list(yaml.safe_load_all(out))
    assert (status, [find_node(job) for job in jobs], pods.kubelet.ran) == (0, ["n1", "n3"], [])
    assert {job["metadata"]["namespace"] for job in jobs} == {"jobs"}
    _, out, _ = call(capsys, "run", "--node", "n1", *TARGET, "--dry-run", "--format", "json")
    assert json.loads(out)["items"][0]["kind"] == "Job"


def test_a_selector(capsys: Captured, pods: Cluster) -> None:
    pods.fake.objects["", "nodes", "", "n2"]["metadata"]["labels"] = {"zone": "a"}
    assert call(capsys, "run", "-l", "zone=a", *TARGET)[0] == 0
    assert [find_node(pod.job) for pod in pods.kubelet.ran] == ["n2"]
    status, _, err = call(capsys, "run", "-l", "zone=b", *TARGET)
    assert (status, "no node matches zone=b" in err) == (2, True)


def waiting(reason: str, message: str) -> dict[str, Any]:
    """Return the status of a pod whose container waits."""
    return {"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": reason, "message": message}}}]}


UNSCHEDULED = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "Insufficient cpu"}
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "image": (
        waiting("ImagePullBackOff", 'Back-off pulling image "x"'),
        "the pod does not start: ImagePullBackOff: Back-off",
    ),
    "unschedulable": ({"phase": "Pending", "conditions": [UNSCHEDULED]}, "Unschedulable: Insufficient cpu"),
    "pending": ({"phase": "Pending"}, "the pod does not start: the cluster names no reason"),
    "evicted": (
        {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."},
        "without a result: Evicted, The node was low on resource: memory.",
    ),
    "oom": (
        {"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]},
        "without a result: OOMKilled; exit status 137",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_pod_that_does_not_run(capsys: Captured, pods: Cluster, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(nodes, "START_S", 0.3)
    pods.kubelet.status["n1"], expected = BROKEN[name]
    status, _, err = call(capsys, "run", "--node", "n1", *TARGET)
    assert status == 1
    assert expected in err
    assert pods.left() == []


LOGS: dict[str, tuple[str, str]] = {
    "rotated": (TEXT[TEXT.index(envelope.RESULT) + 100 :], "the log lacks kproxylat's first line"),
    "cut": (TEXT[:-20], "the log ends in the middle of the result"),
    "damaged": (TEXT.replace("\neN", "\neA"), "the result in the log is damaged"),
    "empty": ("", "the log lacks kproxylat's first line"),
    "no result": (write_begin(__version__) + "Killed\n", "the log holds no result"),
    "another version": (write_log("", version="9.9.9"), f"has kproxylat 9.9.9, and this client is {__version__}"),
}


@pytest.mark.parametrize("name", LOGS)
def test_a_log_that_is_not_whole(capsys: Captured, pods: Cluster, name: str) -> None:
    text, expected = LOGS[name]
    pods.print("n1", text)
    status, _, err = call(capsys, "run", "--node", "n1", *TARGET)
    assert (status, expected in err) == (1, True), err
    assert pods.left() == []


def test_quota_and_admission_of_pods(capsys: Captured, pods: Cluster) -> None:
    message = 'pods "x" is forbidden: exceeded quota: small, requested: pods=1'
    pods.kubelet.events["n1"] = message
    status, _, err = call(capsys, "run", "--node", "n1", "--node", "n2", *TARGET)
    assert (status, f"node n1: the pod does not start: {message}" in err) == (1, True), err


def test_a_node_that_is_not_ready(capsys: Captured, pods: Cluster) -> None:
    condition = {"type": "Ready", "status": "Unknown", "message": "Kubelet stopped posting node status."}
    pods.fake.objects["", "nodes", "", "n1"]["status"]["conditions"] = [condition]
    status, out, err = call(capsys, "run", "--all-nodes", *TARGET)
    assert status == 1
    assert "node n1: the node is NotReady: Kubelet stopped posting node status." in err
    assert "n2" in out
    assert [find_node(pod.job) for pod in pods.kubelet.ran] == ["n2", "n3"]


def test_no_such_node(capsys: Captured, pods: Cluster) -> None:
    status, _, err = call(capsys, "run", "--node", "n9", *TARGET)
    assert (status, err) == (2, "kproxylat: no such node: n9\n  the cluster has n1, n2, n3\n")
    assert pods.kubelet.ran == []


def test_the_namespace(capsys: Captured, pods: Cluster) -> None:
    pods.fake.missing_namespaces.add("kproxylat")
    _, _, err = call(capsys, "run", "--node", "n1", *TARGET)
    label = "kubectl label --overwrite namespace kproxylat pod-security.kubernetes.io/enforce=privileged"
    assert err.endswith(f"namespace kproxylat does not exist\n  kubectl create namespace kproxylat && {label}\n")
    pods.fake.missing_namespaces.clear()
    labels = {nodes.ENFORCE: "baseline"}
    pods.fake.add({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kproxylat", "labels": labels}})
    status, _, err = call(capsys, "run", "--node", "n1", *TARGET)
    assert (status, err.endswith(f"enforces Pod Security level baseline, without hostNetwork\n  {label}\n")) == (
        1,
        True,
    )
    assert pods.kubelet.ran == []


def test_jobs_that_are_forbidden(capsys: Captured, pods: Cluster) -> None:
    pods.fake.denied.add(("create", "jobs"))
    status, _, err = call(capsys, "run", "--node", "n1", *TARGET)
    assert status == 1
    assert "kubectl debug node/n1 -it --profile=sysadmin --image=kproxylat:" in err
    assert "-- python3 -m kproxylat run " in err


def test_a_clock_that_differs(capsys: Captured, pods: Cluster) -> None:
    pods.print("n1", write_log(to_json(RESULTS[0]), time_s=time.time() - 100))
    status, _, err = call(capsys, "run", "--node", "n1", *TARGET)
    assert (status, bool(re.search("n1: warning: its clock is (99|100|101) s behind", err))) == (0, True), err


def test_an_overloaded_server(capsys: Captured, pods: Cluster) -> None:
    pods.fake.fault_rate = 0.3
    status, _, err = call(capsys, "run", "--all-nodes", *TARGET)
    pods.fake.fault_rate = 0
    assert (status, pods.left()) == (0, []), err
    assert len(pods.kubelet.ran) == 3


def test_ctrl_c_waits_for_the_pods(pods: Cluster, tmp_path: Path) -> None:
    """The client deletes the Jobs; each pod gets SIGTERM, cleans up, and its last lines are shown."""
    script = 'trap "echo cleaned; cat $0; exit 143" TERM; echo "$1"; while :; do sleep 0.05; done'
    last = tmp_path / "last"
    last.write_text(write_envelope(Envelope(__version__, 143, "", time.time())))
    pods.kubelet.wrap = lambda _: ["sh", "-c", script, str(last), write_begin(__version__) + "working"]
    argv = [sys.executable, "-m", "kproxylat", "run", "--all-nodes", "--parallel", "2", *TARGET]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as client:
        assert client.stderr
        seen = ""
        while seen.count("working") < 2:
            line = client.stderr.readline()
            assert line, seen
            seen += line
        client.send_signal(signal.SIGINT)
        seen += client.stderr.read()
        assert client.wait(60) == 130, seen
    assert seen.count("cleaned") == 2, seen
    assert "not seen" not in seen
    assert "Traceback" not in seen
    assert pods.left() == []
    assert [pod.process.poll() for pod in pods.kubelet.ran if pod.process] == [143, 143]


def test_a_signal_while_a_pod_starts() -> None:
    """A container's first process has no default action of signals: it would lose one that it does not handle yet."""
    program = """
import os, runpy, signal, sys
class Finder:
    def find_spec(name, *_):
        if name == "kproxylat.cli":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder)
sys.argv[1:] = [sys.argv[1], "doctor"]
runpy.run_module("kproxylat.pod", run_name="__main__")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", program, __version__]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    result = read_log(done.stdout).envelope
    assert result, done.stdout
    assert (result.status, result.stdout, done.returncode) == (143, "", 143)


def test_a_pod_that_is_killed_in_its_clean_up(pods: Cluster, tmp_path: Path) -> None:
    script = 'trap "exit 137" TERM; echo "$0"; while :; do sleep 0.05; done'
    pods.kubelet.wrap = lambda _: ["sh", "-c", script, write_begin(__version__) + "working"]
    argv = [sys.executable, "-m", "kproxylat", "run", "--node", "n1", *TARGET]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as client:
        assert client.stderr
        while "working" not in client.stderr.readline():
            assert client.poll() is None
        client.send_signal(signal.SIGTERM)
        seen = client.stderr.read()
        assert client.wait(60) == 143
    assert "n1: the end of the pod's clean-up was not seen\n  kproxylat cleanup --node n1\n" in seen
    assert pods.left() == []


def test_a_pod_that_ended_just_before_the_signal(
    pods: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes with its Job: its end is looked for before the Job is deleted."""

    def stop(pod: Pod) -> None:
        pods.fake.objects.pop(("", "pods", pod.job["metadata"]["namespace"], pod.name))

    monkeypatch.setattr(pods.kubelet, "_stop", stop)
    last, goes_on = tmp_path / "last", tmp_path / "goes-on"
    last.write_text(write_envelope(Envelope(__version__, 0, "", time.time())))
    script = 'echo "$0"; while ! [ -e "$2" ]; do sleep 0.01; done; cat "$1"'
    pods.kubelet.wrap = lambda _: ["sh", "-c", script, write_begin(__version__) + "working", str(last), str(goes_on)]
    argv = [sys.executable, "-m", "kproxylat", "run", "--node", "n1", *TARGET]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as client:
        assert client.stderr
        while "working" not in client.stderr.readline():
            assert client.poll() is None
        # The client has just looked, and looks again in a second.
        goes_on.touch()
        [pod] = pods.kubelet.ran
        assert pod.process
        assert pod.process.wait(0.5) == 0
        client.send_signal(signal.SIGTERM)
        seen = client.stderr.read()
        assert client.wait(60) == 143
    assert "not seen" not in seen
    assert pods.left() == []


def test_the_documented_permissions_suffice(capsys: Captured, pods: Cluster) -> None:
    """From the first word to the last, against a server that permits what the manifests have, and no more."""
    for file in RECORDED.glob("*worker-dual.json"):
        pods.fake.add(file)
    pods.fake.permitted = set().union(*(rights(MANIFESTS[name]) for name in ("run", "run --node")))
    status, _, err = call(capsys, "run", "--all-nodes", "--service", "worker-dual", "1", "100")
    assert (status, "orbidden" in err) == (0, False), err
    command = find_command(pods.kubelet.ran[0].job)
    assert any(word.startswith("--target=10.") for word in command)
    assert not any(word.startswith(("--service", "--kubeconfig", "--all-nodes")) for word in command)


NEEDED = [("list", "nodes"), ("create", "jobs"), ("list", "pods"), ("get", "pods/log"), ("delete", "jobs")]


@pytest.mark.parametrize(("verb", "resource"), NEEDED)
def test_a_permission_that_is_missing(capsys: Captured, pods: Cluster, verb: str, resource: str) -> None:
    pods.fake.denied.add((verb, resource))
    _, _, err = call(capsys, "run", "--node", "n1", *TARGET)
    assert "403 Forbidden" in err
    assert f'cannot {verb} resource "{resource}"' in err


def test_the_manifest_for_kubectl() -> None:
    """deploy/nodes.yaml has the namespace with its label, and the roles of docs/rbac.md."""
    namespace, *roles = yaml.safe_load_all((ROOT / "deploy/nodes.yaml").read_text())
    assert namespace["metadata"] == {"name": "kproxylat", "labels": {nodes.ENFORCE: "privileged"}}
    assert roles == list(yaml.safe_load_all(MANIFESTS["run --node"]))


def test_the_daemonset_of_bill() -> None:
    """Its pods have the rights of profile observe and no more; kustomize gives them the image of this version."""
    kustomization = yaml.safe_load((ROOT / "deploy/bill/kustomization.yaml").read_text())
    [daemonset] = [yaml.safe_load((ROOT / "deploy/bill" / name).read_text()) for name in kustomization["resources"]]
    template = daemonset["spec"]["template"]
    assert daemonset["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert kustomization["namespace"] == "kproxylat"
    [image] = kustomization["images"]
    spec = template["spec"]
    [container] = spec["containers"]
    assert (container["image"], f"{image['newName']}:{image['newTag']}") == (image["name"], IMAGE)
    job = make_job("trace", "n1", [], "kproxylat", IMAGE, 30)["spec"]["template"]["spec"]
    own = {"affinity", "restartPolicy", "containers"}
    assert {name: spec.get(name) for name in job if name not in own} == {
        name: value for name, value in job.items() if name not in own
    }
    [pod] = job["containers"]
    for name in ("securityContext", "volumeMounts", "resources", "imagePullPolicy"):
        assert container[name] == pod[name]
    python, option, *words = container["command"]
    assert (python, option, words[:3]) == ("python3", "-m", ["kproxylat", "bill", "--serve"])
    assert read_address(words[3]) == ("0.0.0.0", container["ports"][0]["containerPort"])  # noqa: S104


@pytest.mark.parametrize("line", ["doctor", "cleanup", "mode show", "trace --mode ipvs --duration 1", "bill --for 5s"])
def test_other_commands_print_what_the_pods_printed(capsys: Captured, pods: Cluster, line: str) -> None:
    words = line.split()
    pods.print("n1", write_log("text of n1\n"))
    status, out, err = call(capsys, *words, "--node", "n1")
    assert (status, out) == (0, "== node n1\ntext of n1\n"), err
    assert find_command(pods.kubelet.ran[0].job)[4] == words[0]


BILL = make_bill(
    (
        window(
            {"10.96.0.9:80/tcp": count(5, 9000), "192.0.2.1:30080/tcp": count(2, 900), "10.96.7.7:1/sctp": count(1, 9)}
        ),
    )
)
ANONYMOUS = replace(BILL, mode="ipvs", rows=tuple(replace(row, name="") for row in BILL.rows))


LAB_WORDS = {
    "run": ("run", "--lab", "--services", "7", "1", "100", "--family", "6"),
    "sweep": ("sweep", "--lab", "--services", "5,10", "--mode", "nftables", "--repeats", "2", "1", "100"),
}


@pytest.mark.parametrize("command", LAB_WORDS)
def test_a_lab_on_nodes(capsys: Captured, pods: Cluster, command: str) -> None:
    """The words reach the pods, without those of the client; no Service is looked up."""
    pods.fake.permitted = rights(MANIFESTS["run --node"])
    words = LAB_WORDS[command]
    status, out, err = call(capsys, *words, "--all-nodes", "--request-timeout", "9s", "-o", "json")
    assert status == 0, err
    assert len(json.loads(out)["nodes"]) == 3
    sent = find_command(pods.kubelet.ran[0].job)[4:]
    named = {word for word in sent if word.startswith("--")}
    assert {"--lab", "--format=json", "--output-dir=/tmp/kproxylat", f"--services={words[3]}"} <= named
    assert not {"--all-nodes", "--request-timeout=9s", "--yes"} & named
    assert [word for word in sent if not word.startswith("--")] == [command, "1.0", "100"]
    assert (Path("logs/ebpf/n1/x.json").read_text(), Path("logs/ebpf/n3/x.log").read_text()) == ("{}", "raw")


def test_the_deadline_of_a_sweep_grows_with_its_points(capsys: Captured, pods: Cluster) -> None:
    words = ("--lab", "--node", "n1", "--mode", "nftables", "--dry-run", "-o", "json")
    limits = []
    for services in ("5", "5,10", "5,10,10000"):
        status, out, _ = call(capsys, "sweep", *words, "--services", services)
        assert status == 0
        [job] = json.loads(out)["items"]
        limits.append(job["spec"]["activeDeadlineSeconds"])
    assert limits == sorted(set(limits))
    assert pods.kubelet.ran == []


def test_a_sweep_that_changes_the_cluster_is_not_for_pods(capsys: Captured, pods: Cluster) -> None:
    status, _, err = call(capsys, "sweep", "--services", "5", "--all-nodes")
    assert (status, err.splitlines()[-1]) == (2, "  add --lab to --all-nodes")
    assert pods.kubelet.ran == []


def add_service(fake: FakeApi) -> None:
    """Add a Service with a NodePort, and a port without a name."""
    ports = [{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 1, "protocol": "SCTP"}]
    spec = {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "externalIPs": ["10.96.7.7"], "ports": ports}
    meta = {"name": "web", "namespace": "shop"}
    fake.add({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec})


def test_bills_have_the_names_of_the_api(capsys: Captured, pods: Cluster) -> None:
    """With the rights of docs/rbac.md and no more; the API is asked once for all nodes."""
    add_service(pods.fake)
    for name in NAMES:
        pods.print(name, write_log(ANONYMOUS.to_json() + "\n"))
    pods.fake.permitted = set().union(*(rights(MANIFESTS[name]) for name in ("bill", "run --node")))
    status, out, err = call(capsys, "bill", "--all-nodes", "--for", "5s")
    assert (status, "orbidden" in err) == (0, False), err
    rows = re.findall(r"^ +(shop/\S+|[0-9]+\.\S+:\S+)", out, re.M)
    assert rows == ["shop/web:http", "shop/web:http", "192.0.2.1:30080/tcp", "shop/web", "10.96.7.7:1/sctp"] * 3, out
    assert [call.resource for call in pods.fake.calls].count("services") == 1
    assert find_command(pods.kubelet.ran[0].job)[4:] == ["bill", "--for=5s", "--format=json"]
    _, out, _ = call(capsys, "bill", "--node", "n1", "--format", "json")
    [document] = json.loads(out)["nodes"]
    assert [(row["kind"], row["name"]) for row in document["result"]["rows"]] == [
        ("service", "shop/web:http"),
        ("address", "shop/web:http"),
        ("address", "shop/web"),
    ]


def test_bills_without_the_right_to_list_services(capsys: Captured, pods: Cluster) -> None:
    pods.fake.denied.add(("list", "services"))
    for name in NAMES:
        pods.print(name, write_log(ANONYMOUS.to_json()))
    status, out, err = call(capsys, "bill", "--all-nodes")
    assert (status, out.count("10.96.0.9:80/tcp")) == (0, 3)
    [line] = err.splitlines()
    assert line.startswith("rows without a Service's name: 3: ")
    assert "403" in line


def test_bills_with_all_names_ask_for_none(capsys: Captured, pods: Cluster) -> None:
    pods.print("n1", write_log(replace(BILL, rows=BILL.rows[:1]).to_json()))
    assert call(capsys, "bill", "--node", "n1")[0] == 0
    assert "services" not in [call.resource for call in pods.fake.calls]


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_what_a_terminal_must_not_get_stays_valid_in_documents(capsys: Captured, pods: Cluster, form: str) -> None:
    """A terminal's controls are printed as \\x9b, which is an escape in Python, and an error in JSON."""
    warning = "a\x9b2J\u202e\U000e0041"
    pods.print("n1", write_log(replace(BILL, warnings=(warning,)).to_json()))
    status, out, _ = call(capsys, "bill", "--node", "n1", "-o", form)
    assert status == 0
    assert all(char.isprintable() or char == "\n" for char in out)
    [node] = (yaml.safe_load(out) if form == "yaml" else json.loads(out))["nodes"]
    assert node["result"]["warnings"] == [warning]


def test_captured_rules_are_saved_by_node(capsys: Captured, pods: Cluster) -> None:
    for name in NAMES:
        pods.print(name, write_log("", files={"rules.json": name}))
    assert call(capsys, "capture", "--all-nodes", "--anonymous", "--output", "saved/rules.json")[0] == 0
    assert [Path("saved", name, "rules.json").read_text() for name in NAMES] == list(NAMES)
    assert find_command(pods.kubelet.ran[0].job)[4:] == ["capture", "--anonymous", "--output=/tmp/kproxylat/rules.json"]
