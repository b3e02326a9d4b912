"""The image's root file system, read-only, with exactly the Job's capabilities: doctor and a run without tracing.

`make image` makes the root; without it these tests are skipped, and with KPROXYLAT_REQUIRE=image they fail.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kproxylat import __version__
from kproxylat.cluster.envelope import Envelope, read_log
from kproxylat.cluster.job import PROFILES, make_job
from tests.support import ROOT
from tests.support.command import Captured, call
from tests.support.fake_api import FakeApi
from tests.support.image import IMAGE, prepare_image, write_pod
from tests.support.kube_proxy import RECORDED
from tests.support.kubelet import Kubelet, Pod, confine, find_command
from tests.support.namespaces import hold_node
from tests.support.nodes import node_of
from tests.support.processes import find_marked
from tests.support.rights import MANIFESTS, rights

pytestmark = [pytest.mark.xdist_group("image"), pytest.mark.slow]
RUN = (
    "run",
    "--lab",
    "--probe",
    "none",
    "--services",
    "20",
    "0.2",
    "500",
    "--format=json",
    "--output-dir=/tmp/kproxylat",
)
TO_SERVICE = ("--service", "worker", "--protocol", "tcp", "--probe", "none")


@pytest.fixture(scope="module", autouse=True)
def image() -> None:
    """The root file system, with this kproxylat."""
    prepare_image()


def run_pod(directory: Path, *words: str, without: str = "") -> tuple[Envelope | None, str]:
    """Run a pod's command as its Job says; return its result and its log.

    :param without: a capability to take away.
    """
    state = directory / "state"
    state.mkdir(exist_ok=True)
    argv = write_pod(str(state), *words, without=without)
    text = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300).stdout
    assert not list(state.iterdir()), "the lock is left"
    return read_log(text).envelope, text


def read_doctor(directory: Path, without: str = "") -> dict[str, Any]:
    """Return check -> what doctor found in a pod."""
    result, text = run_pod(directory, "doctor", "--format=json", without=without)
    assert result, text
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}


def test_doctor(tmp_path: Path) -> None:
    checks = read_doctor(tmp_path)
    programs = ("bpftrace", "setpriv", "ip", "nft", "nsenter", "sysctl", "conntrack", "hping3", "iptables")
    tools = [name for name in checks if name.endswith((": tools", ": rights"))]
    assert {
        name: checks[name]["found"] for name in ("rights", *programs, *tools) if checks[name]["state"] != "ok"
    } == {}
    major, minor = checks["bpftrace"]["found"].lstrip("v").split(".")[:2]
    assert (int(major), int(minor)) >= (0, 25)


@pytest.mark.parametrize("name", PROFILES["measure"].capabilities)
def test_each_right_is_needed(tmp_path: Path, name: str) -> None:
    checks = read_doctor(tmp_path, without=name)
    check = checks["iptables on legacy: rights" if name == "NET_RAW" else "rights"]
    assert (check["state"], f"CAP_{name}" in check["found"]) == ("missing", True)


@pytest.mark.parametrize("load_modules", [False, True])
def test_modules_of_the_node(tmp_path: Path, load_modules: bool) -> None:
    """With --load-modules, modprobe in the pod finds the node's modules, and the kernel lets it load one."""
    (tmp_path / "state").mkdir()
    argv = write_pod(str(tmp_path / "state"), "doctor", load_modules=load_modules)
    argv = argv[: argv.index("python3")]
    look = "ls /lib/modules; grep CapBnd /proc/self/status"
    text = subprocess.run([*argv, "sh", "-c", look], check=True, stdout=subprocess.PIPE, text=True).stdout
    *modules, bounds = text.splitlines()
    assert modules == (sorted(path.name for path in Path("/lib/modules").iterdir()) if load_modules else [])
    assert bool(int(bounds.split()[1], 16) >> 16 & 1) == load_modules


def test_a_run_without_tracing(tmp_path: Path) -> None:
    result, text = run_pod(tmp_path, *RUN)
    assert result, text
    assert result.status == 0, text
    document = json.loads(result.stdout)
    assert (document["accounting"]["closed"], document["run"]["kproxylat"]) == (True, __version__)
    assert {Path(name).suffix for name in result.files} == {".log", ".json"}


def test_a_sweep_without_tracing(tmp_path: Path) -> None:
    words = ("--lab", "--probe", "none", "--mode", "nftables", "--services", "5,10", "0.2", "500")
    result, text = run_pod(tmp_path, "sweep", *words, "--format=json", "--output-dir=/tmp/kproxylat")
    assert result, text
    assert result.status == 0, text
    document = json.loads(result.stdout)
    assert (document["sweep"]["complete"], len(document["results"])) == (True, 2)
    assert any(name.startswith("sweep_") for name in result.files)


def test_a_client_of_another_version(tmp_path: Path) -> None:
    job = make_job("doctor", "n1", ["doctor"], "ns", "image", 30)
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    command[command.index(__version__)] = "9.9.9"
    done = subprocess.run(confine(Pod("x", job, tmp_path), str(IMAGE), tmp_path), capture_output=True, text=True)
    assert done.returncode == 2
    assert f"this image has version {__version__}, and the client is 9.9.9" in done.stdout + done.stderr


@dataclass
class OneNode:
    """A cluster of one node with kube-proxy's rules in mode iptables, whose pods run the image.

    :param netns: the file of the node's network namespace.
    :param state: the node's /run/kproxylat. ``mark``: a variable in the environment of all that runs in its pods.
    """

    fake: FakeApi
    netns: str
    state: Path
    mark: str

    def wrap(self, pod: Pod) -> list[str]:
        """Return the command line of a pod."""
        argv = confine(pod, str(IMAGE), self.state, self.netns)
        words = len(find_command(pod.job))
        return [*argv[:-words], "env", self.mark, *argv[-words:]]

    def look(self) -> str:
        """Return what a command must leave as it was, and what it must not leave."""
        script = "ip -brief link; ip route; nft --stateless list ruleset"
        argv = ["nsenter", f"--net={self.netns}", "sh", "-c", script]
        text = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout
        left = [key[3] for key in self.fake.objects if key[1] in ("jobs", "pods")]
        return "\n".join([text, *left, *map(str, self.state.iterdir()), *find_marked(self.mark)])

    def settle(self, before: str) -> str:
        """Return what is left, once that is as before; the garbage collector takes pods some time after their Job."""
        ends_s = time.monotonic() + 10
        while (after := self.look()) != before and time.monotonic() < ends_s:
            time.sleep(0.05)
        return after


@pytest.fixture
def node(fake: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OneNode]:
    state = tmp_path / "state"
    state.mkdir()
    monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path)))
    monkeypatch.chdir(tmp_path)
    fake.add(node_of("n1", "192.0.2.1", "10.244.1.0/24"))
    for file in RECORDED.glob("*-worker.json"):
        fake.add(file)
    with hold_node("iptables") as netns:
        node = OneNode(fake, netns, state, f"KPROXYLAT_TEST={tmp_path}")
        kubelet = Kubelet(fake, tmp_path, wrap=node.wrap)
        fake.after = kubelet.note
        yield node
        kubelet.end()


def test_a_run_to_a_service(capsys: Captured, node: OneNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From a client with the documented permissions alone, over the pod on the node, to the Service's pod and back."""
    monkeypatch.setattr("kproxylat.cli.app.signal.signal", lambda *_: None)
    node.fake.permitted = set().union(*(rights(MANIFESTS[name]) for name in ("run", "run --node")))
    before = node.look()
    status, out, err = call(capsys, "run", "--node", "n1", *TO_SERVICE, "1", "1000", "--format", "json")
    assert status == 0, err
    [outcome] = json.loads(out)["nodes"]
    [saved] = (tmp_path / "logs/ebpf/n1").glob("*.json")
    result = outcome["result"]
    assert result == json.loads(saved.read_text()), "the client's is the pod's own"
    run, accounting = result["run"], result["accounting"]
    assert (run["mode"], run["masqueraded"], result["target"]["ip"]) == ("iptables", False, "10.96.100.50"), run
    assert accounting["sent"] == accounting["rule_hits"] == 1000, accounting
    assert accounting["closed"] is True
    assert node.settle(before) == before


def test_ctrl_c_at_any_moment(node: OneNode, record_property: pytest.RecordProperty) -> None:
    """No Job, pod, process, link, rule or lock is left, whenever it comes. KPROXYLAT_MOMENTS: how often (4)."""
    moments = int(os.environ.get("KPROXYLAT_MOMENTS", "4"))
    seed = int(os.environ.get("KPROXYLAT_SEED", time.time_ns() % 10**6))
    print(f"KPROXYLAT_SEED={seed}")
    dice, before = random.Random(seed), node.look()
    program = "from kproxylat.cli import main; print('begins', flush=True); main()"
    words = [sys.executable, "-c", program, "run", "--node", "n1", *TO_SERVICE, "0.5", "1000"]

    def strike(delay_s: float) -> tuple[int, str]:
        """Run the command and end it by Ctrl-C, if it has not ended by then; return status and messages."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as client:
            assert client.stdout
            assert client.stdout.readline() == "begins\n"
            try:
                client.wait(delay_s)
            except subprocess.TimeoutExpired:
                client.send_signal(signal.SIGINT)
            _, err = client.communicate(timeout=120)
            return client.returncode, err

    began_s = time.monotonic()
    assert strike(120)[0] == 0
    took_s, hits = time.monotonic() - began_s, 0
    for _ in range(moments):
        delay_s = dice.random() * took_s * 0.9
        status, err = strike(delay_s)
        moment = f"after {delay_s:.2f} s: {err}"
        assert status in (0, 130), moment
        assert "Traceback" not in err, moment
        # Before its first line, a pod has made nothing.
        assert "not seen" not in err or "n1: [1/7]" not in err, moment
        assert node.settle(before) == before, moment
        hits += status == 130
    record_property("note", f"{hits} of {moments} within the command")
    assert hits >= moments / 2


def test_doctor_on_a_node(capsys: Captured, fake: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the client's command line to the table that the pod printed."""
    state = tmp_path / "state"
    state.mkdir()
    monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path)))
    monkeypatch.setattr("kproxylat.cli.app.signal.signal", lambda *_: None)
    kubelet = Kubelet(fake, tmp_path, wrap=lambda pod: confine(pod, str(IMAGE), state))
    fake.after = kubelet.note
    fake.add(node_of("n1", "192.0.2.1", "10.244.1.0/24"))
    _, out, err = call(capsys, "doctor", "--node", "n1")
    assert out.startswith("== node n1\nwhat a measurement takes"), err
