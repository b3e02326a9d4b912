"""The client as one file, run by a Python that sees nothing else; and krew's manifest.

`make plugin` installs the packages into .cache/plugin; without them these tests are skipped, and with
KPROXYLAT_REQUIRE=plugin they fail.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from kproxylat import __version__
from kproxylat.cluster.envelope import Envelope, write_begin, write_envelope
from kproxylat.results_json import to_json
from tests.results import COUNTED, load
from tests.support import ROOT
from tests.support.fake_api import FakeApi
from tests.support.kubelet import Kubelet
from tests.support.nodes import node_of

pytestmark = [pytest.mark.xdist_group("plugin"), pytest.mark.slow]
FILE = ROOT / "dist/kproxylat.pyz"
MAC = """
import os, runpy, select, signal, socket, sys
for module, names in {
    os: "pipe2 O_PATH O_TMPFILE O_DIRECT O_NOATIME sched_getaffinity sched_setaffinity pidfd_open eventfd memfd_create "
        "splice getrandom setns unshare posix_fadvise posix_fallocate copy_file_range setresuid getxattr",
    signal: "pidfd_send_signal sigwaitinfo sigtimedwait",
    select: "epoll",
    socket: "AF_NETLINK AF_PACKET SO_BINDTODEVICE",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
sys.argv[:] = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Takes away what Python's documentation says macOS lacks, and runs the file."""


@pytest.fixture(scope="module", autouse=True)
def plugin() -> None:
    """The file, with this kproxylat."""
    if not (ROOT / ".cache/plugin/pyproject.toml").exists() and "plugin" not in os.environ.get("KPROXYLAT_REQUIRE", ""):
        pytest.skip("the packages for the client's file are not there: make plugin")
    subprocess.run([sys.executable, ROOT / "deploy/plugin.py"], check=True, capture_output=True)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that every user may read: pytest's own is root's alone."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(params=[(), ("-c", MAC)], ids=["linux", "macos"])
def run(request: pytest.FixtureRequest, directory: Path) -> Any:
    """Return a function that runs the file without root, and without any program of this machine."""

    # An ordinary user may not read where this Python lies.
    nobody = ["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3"]
    python = [sys.executable] if os.geteuid() else nobody

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*python, "-I", "-S", *request.param, str(FILE), *words],
            env={"PATH": "/nowhere", "HOME": str(directory), **environment},
            cwd="/", capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def test_help(run: Any) -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n  services   Create, list and delete dummy Services" in done.stdout


def test_compare(run: Any, directory: Path) -> None:
    a, b = directory / "a.json", directory / "b.json"
    for path in (a, b):
        path.write_bytes(COUNTED.read_bytes())
    done = run("compare", str(a), str(b))
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "no change" in done.stdout or "same" in done.stdout, done.stdout


def test_services(run: Any, fake: FakeApi, directory: Path) -> None:
    kubeconfig = fake.kubeconfig(directory)
    kubeconfig.chmod(0o644)
    done = run("services", "list", KUBECONFIG=str(kubeconfig))
    assert done.returncode == 0, done.stderr
    assert "0 dummy Services" in done.stdout + done.stderr


def test_a_run_on_a_node(run: Any, fake: FakeApi, directory: Path, tmp_path: Path) -> None:
    """The pod's result is printed, and its files are saved."""
    fake.add(node_of("n1", "192.0.2.1", "10.244.1.0/24"))
    result = Envelope(__version__, 0, to_json(load(COUNTED)[0]), time.time(), {"x.json": "{}"})
    log = tmp_path / "text"
    log.write_text(write_begin(__version__) + write_envelope(result))
    kubelet = Kubelet(fake, tmp_path, wrap=lambda _: ["cat", str(log)])
    fake.after = kubelet.note
    kubeconfig = fake.kubeconfig(directory)
    kubeconfig.chmod(0o644)
    directory.chmod(0o777)
    words = ("--target", "10.96.0.10:53", "1", "100", "--output-dir", str(directory / "logs"))
    done = run("run", "--node", "n1", *words, KUBECONFIG=str(kubeconfig))
    assert done.returncode == 0, done.stderr
    assert "n1" in done.stdout
    assert (directory / "logs/n1/x.json").read_text() == "{}"


def test_the_file_is_the_same_everywhere() -> None:
    """No part of it is compiled."""
    assert FILE.read_bytes().startswith(b"#!/usr/bin/env python3\n")
    listed = subprocess.run([sys.executable, "-m", "zipfile", "--list", FILE], capture_output=True, text=True).stdout
    assert "kproxylat/cli/app.py" in listed
    assert not re.search(r"\.(so|dylib|pyd|pyc) ", listed)


def test_the_manifest_for_krew() -> None:
    """Its fields are those that krew validates (sigs.k8s.io/krew, internal/index/validation)."""
    manifest = yaml.safe_load((ROOT / "dist/krew.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("krew.googlecontainertools.github.com/v1alpha2", "Plugin")
    assert re.fullmatch(r"[\w-]+", manifest["metadata"]["name"])
    spec = manifest["spec"]
    assert set(spec) == {"version", "homepage", "shortDescription", "description", "caveats", "platforms"}
    assert spec["version"] == f"v{__version__}"
    assert re.fullmatch(r"v\d+\.\d+\.\d+", spec["version"]), "semantic"
    assert 0 < len(spec["shortDescription"]) <= 50
    assert "\n" not in spec["shortDescription"]
    [platform] = spec["platforms"]
    assert set(platform) == {"selector", "files", "bin", "uri", "sha256"}
    archive = ROOT / "dist" / platform["uri"].rpartition("/")[2]
    assert platform["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    with tarfile.open(archive) as tar:
        members = {member.name: member for member in tar}
    assert [row["from"] for row in platform["files"]] == [*members]
    assert members[platform["bin"]].mode & 0o111, "the program can be run"
