"""The node to measure: this machine, or a container on it, as kind, minikube and k3d run nodes."""

from __future__ import annotations

import re
import shutil
import socket
from dataclasses import dataclass, field
from textwrap import shorten

from kproxylat.errors import CommandError, MachineError, UsageError
from kproxylat.system import processes

_GO = "{{.State.Pid}}"
RUNTIMES = {
    "docker": ("inspect", "--type", "container", "--format", _GO),
    "podman": ("inspect", "--type", "container", "--format", _GO),
    "nerdctl": ("inspect", "--mode", "dockercompat", "--format", _GO),
    "crictl": ("inspect", "--output", "go-template", "--template", "{{.info.pid}}"),
}
"""Container program -> its arguments, without the container's name, that print the container's process id."""
_LISTING = "ps", "--format", "{{.Names}} {{.Labels}}"
_LISTERS = ("docker", "podman", "nerdctl")
NODE_LABELS = {
    "kind": re.compile(r"\bio\.x-k8s\.kind\.cluster\b"),
    "minikube": re.compile(r"\bname\.minikube\.sigs\.k8s\.io\b"),
    "k3d": re.compile(r"\bk3d\.role[=:](server|agent)\b"),
}
"""Cluster tool -> the label of its node containers."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,252}", re.ASCII)


@dataclass(frozen=True)
class Node:
    """A node of the cluster.

    :param netns: its network namespace, a name that ip(8) knows or a path (None: the current one).
    :param name: its name in the cluster, usually the host name.
    """

    netns: str | None = None
    name: str = field(default_factory=socket.gethostname)

    @property
    def inode(self) -> int:
        """The inode of its network namespace (kernel, ``struct net``: ``ns.inum``).

        :raises MachineError: the namespace does not exist any more.
        """
        try:
            return processes.netns_path(self.netns or "/proc/self/ns/net").stat().st_ino
        except OSError as error:
            raise MachineError(f"network namespace {self.netns}: {error.strerror}", "ip netns list") from None


def find_node(netns: str | None, container: str | None) -> Node:
    """Return the node that the command line names.

    :param netns: the value of ``--netns``; ``container``: of ``--node-container``.
    :raises UsageError: both are given, or one is invalid.
    :raises MachineError: the container was not found, or does not run.
    """
    if netns and container:
        raise UsageError("--netns and --node-container exclude each other", "leave one of them out")
    if container:
        return Node(f"/proc/{_find_process(container)}/ns/net", container)
    if not netns:
        return Node()
    path = processes.netns_path(netns)
    try:
        is_netns = path.stat().st_dev == processes.netns_path("/proc/self/ns/net").stat().st_dev
    except OSError:
        is_netns = False
    if not is_netns:
        raise UsageError(f"{netns} is not a network namespace", "--netns takes a path such as /run/netns/NAME")
    return Node(str(path))


def _find_process(container: str) -> int:
    if not _NAME.fullmatch(container):
        raise UsageError(f"invalid container name {container!r}", "list the names: docker ps, podman ps")
    programs = [program for program in RUNTIMES if shutil.which(program, path=processes.PATH)]
    if not programs:
        raise MachineError(f"no container program found: {', '.join(RUNTIMES)}", "pass --netns PATH")
    failures = []
    for program in programs:
        try:
            answer = processes.run(program, *RUNTIMES[program], container).strip()
        except CommandError as error:
            failures.append(f"{program}: {shorten(error.output, 200, placeholder=' ...')}")
            continue
        # A container that does not run has process id 0.
        if answer.isdecimal() and int(answer):
            return int(answer)
        failures.append(f"{program}: process id {answer[:20] or 'unknown'}: does it run?")
    raise MachineError(f"container {container} not found ({'; '.join(failures)})", "list them: docker ps, podman ps")


def find_containers() -> list[str]:
    """Return the containers on this machine that are nodes of a cluster, such as ``NAME (kind)``."""
    nodes = []
    for program in _LISTERS:
        if not shutil.which(program, path=processes.PATH):
            continue
        try:
            lines = processes.run(program, *_LISTING).splitlines()
        except CommandError:
            continue  # The program is installed, but its daemon does not run.
        for line in lines:
            name, _, labels = line.partition(" ")
            nodes += [f"{name} ({tool})" for tool, label in NODE_LABELS.items() if label.search(labels)]
    return nodes
