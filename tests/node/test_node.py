"""The node to measure: containers, and network namespaces."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kproxylat.errors import KproxylatError, MachineError, UsageError
from kproxylat.node.node import Node, find_containers, find_node
from kproxylat.system import processes

INSPECT = """
[ "$1" = inspect ] || exit 9
for name; do :; done
case $name in
kind-worker) echo {pid} ;;
stopped) echo 0 ;;
*) echo "Error: no such container: $name" >&2; exit 1 ;;
esac
"""
LABELS = """kind-worker io.x-k8s.kind.cluster=kind,io.x-k8s.kind.role=worker
minikube created_by.minikube.sigs.k8s.io=true,name.minikube.sigs.k8s.io=minikube,role.minikube.sigs.k8s.io=
k3d-a-server-0 app=k3d,k3d.cluster=a,k3d.role=server
k3d-a-serverlb app=k3d,k3d.cluster=a,k3d.role=loadbalancer
web maintainer=kind people
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a directory of programs: setpriv, cat and those that a test adds."""
    for name in ("setpriv", "cat"):
        (tmp_path / name).symlink_to(processes.find(name))
    monkeypatch.setattr(processes, "PATH", str(tmp_path))
    return tmp_path


def program(directory: Path, name: str, body: str) -> None:
    (directory / name).write_text(f"#!/bin/sh\n{body}")
    (directory / name).chmod(0o755)


@pytest.mark.parametrize("runtime", ["docker", "podman", "nerdctl", "crictl"])
def test_a_container_is_found_by_the_installed_runtime(install: Path, runtime: str) -> None:
    program(install, runtime, INSPECT.format(pid=os.getpid()))
    node = find_node(None, "kind-worker")
    assert node == Node(f"/proc/{os.getpid()}/ns/net", "kind-worker")
    assert node.inode == Path("/proc/self/ns/net").stat().st_ino == Node().inode


def test_the_next_runtime_is_asked_after_a_failure(install: Path) -> None:
    program(install, "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    program(install, "podman", INSPECT.format(pid=4711))
    assert find_node(None, "kind-worker").netns == "/proc/4711/ns/net"


@pytest.mark.parametrize(("netns", "container", "kind", "message"), [
    (None, "other", MachineError, "container other not found (docker: Error: no such container: other)"),
    (None, "stopped", MachineError, "does it run?"),
    (None, "-f", UsageError, "invalid container name '-f'"),
    (None, "a b", UsageError, "invalid container name 'a b'"),
    ("/run/netns/nowhere", None, UsageError, "/run/netns/nowhere is not a network namespace"),
    ("/etc/passwd", None, UsageError, "/etc/passwd is not a network namespace"),
    ("/proc/self/ns/net", "kind-worker", UsageError, "exclude each other"),
])  # fmt: skip
def test_an_invalid_node(
    install: Path, netns: str | None, container: str | None, kind: type[KproxylatError], message: str
) -> None:
    program(install, "docker", INSPECT.format(pid=1))
    with pytest.raises(kind) as caught:
        find_node(netns, container)
    assert message in str(caught.value)
    assert caught.value.remedy


@pytest.mark.usefixtures("install")
def test_no_runtime() -> None:
    with pytest.raises(MachineError, match="no container program found: docker, podman, nerdctl, crictl"):
        find_node(None, "kind-worker")


def test_a_namespace_and_this_machine() -> None:
    assert find_node(None, None).netns is None
    assert find_node("/proc/self/ns/net", None).netns == "/proc/self/ns/net"
    with pytest.raises(MachineError, match="network namespace gone: No such file"):
        assert Node("gone").inode


def test_nodes_among_containers(install: Path) -> None:
    assert find_containers() == []
    program(install, "docker", f"cat <<'END'\n{LABELS}END\n")
    program(install, "podman", "echo no daemon >&2; exit 125")
    assert find_containers() == ["kind-worker (kind)", "minikube (minikube)", "k3d-a-server-0 (k3d)"]
