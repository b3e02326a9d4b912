"""The image's root file system, read-only, with exactly the Job's capabilities: doctor and a run without tracing.

`make image` makes the root; without it these tests are skipped, and with KPROXYLAT_REQUIRE=image they fail.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kproxylat import __version__
from kproxylat.cluster.envelope import Envelope, read_log
from kproxylat.cluster.job import PROFILES, make_job
from tests.support import ROOT
from tests.support.command import Captured, call
from tests.support.fake_api import FakeApi
from tests.support.kubelet import Kubelet, Pod, confine
from tests.support.nodes import node_of

IMAGE = ROOT / ".cache/image/root"
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


@pytest.fixture(scope="module", autouse=True)
def image() -> None:
    """The root file system, with this kproxylat."""
    if os.geteuid() or not (IMAGE / "srv/packages.txt").exists():
        if "image" in os.environ.get("KPROXYLAT_REQUIRE", ""):
            pytest.fail("make image, as root")
        pytest.skip("the image's root file system is not there: make image, as root")
    subprocess.run([ROOT / "deploy/image.sh", "root"], check=True, capture_output=True)


def run_pod(directory: Path, *words: str, without: str = "") -> tuple[Envelope | None, str]:
    """Run a pod's command as its Job says; return its result and its log.

    :param without: a capability to take away.
    """
    job = make_job(words[0], "n1", words, "ns", "image", 30)
    rights = job["spec"]["template"]["spec"]["containers"][0]["securityContext"]["capabilities"]["add"]
    if without:
        rights.remove(without)
    state = directory / "state"
    state.mkdir(exist_ok=True)
    argv = confine(Pod("x", job, directory / "log"), str(IMAGE), state)
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


def test_a_run_without_tracing(tmp_path: Path) -> None:
    result, text = run_pod(tmp_path, *RUN)
    assert result, text
    assert result.status == 0, text
    document = json.loads(result.stdout)
    assert (document["accounting"]["closed"], document["run"]["kproxylat"]) == (True, __version__)
    assert {Path(name).suffix for name in result.files} == {".log", ".json"}


def test_a_client_of_another_version(tmp_path: Path) -> None:
    job = make_job("doctor", "n1", ["doctor"], "ns", "image", 30)
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    command[command.index(__version__)] = "9.9.9"
    done = subprocess.run(confine(Pod("x", job, tmp_path), str(IMAGE), tmp_path), capture_output=True, text=True)
    assert done.returncode == 2
    assert f"this image has version {__version__}, and the client is 9.9.9" in done.stdout + done.stderr


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
