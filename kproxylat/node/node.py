"""Which node is measured: this machine, or a container on it, as kind, minikube and k3d run nodes."""

from __future__ import annotations

import re
import shutil
import socket
from dataclasses import dataclass, field

from kproxylat.errors import CommandError, MachineError, UsageError
from kproxylat.system import processes

_GO = "{{.State.Pid}}"
RUNTIMES = {
    "docker": ("inspect", "--type", "container", "--format", _GO),
    "podman": ("inspect", "--type", "container", "--format", _GO),
    "nerdctl": ("inspect", "--mode", "dockercompat", "--format", _GO),
    "crictl": ("inspect", "--output", "go-template", "--template", "{{.info.pid}}"),
}
"""Program that knows containers -> its words, before the container's name, that print the process that it is."""
_LISTING = "ps", "--format", "{{.Names}} {{.Labels}}"
_LISTERS = ("docker", "podman", "nerdctl")
NODE_LABELS = {
    "kind": re.compile(r"\bio\.x-k8s\.kind\.cluster\b"),
    "minikube": re.compile(r"\bname\.minikube\.sigs\.k8s\.io\b"),
    "k3d": re.compile(r"\bk3d\.role[=:](server|agent)\b"),
}
"""What runs nodes as containers -> the label by which it marks them."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,252}", re.ASCII)


@dataclass(frozen=True)
class Node:
    """A node of the cluster.

    :param netns: its network namespace, a name of ip(8)'s or a path (None: the one that we run in).
    :param name: what it is called in the cluster, usually its host name.
    """

    netns: str | None = None
    name: str = field(default_factory=socket.gethostname)

    @property
    def inode(self) -> int:
        """The number by which the kernel knows its network namespace, ``struct net``'s ``ns.inum``.

        :raises MachineError: the namespace is gone.
        """
        try:
            return processes.netns_path(self.netns or "/proc/self/ns/net").stat().st_ino
        except OSError as error:
            raise MachineError(f"network namespace {self.netns}: {error.strerror}", "ip netns list") from None


def find_node(netns: str | None, container: str | None) -> Node:
    """Return the node that the command line names.

    :param netns: ``--netns``. ``container``: ``--node-container``.
    :raises UsageError: both, a name that none can have, or what is no network namespace.
    :raises MachineError: no program on this machine knows such a container, or it does not run.
    """
    if netns and container:
        raise UsageError("--netns and --node-container name the same thing", "leave one of them out")
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
        raise UsageError(f"{netns} is no network namespace", "--netns takes a path such as /run/netns/NAME")
    return Node(str(path))


def _find_process(container: str) -> int:
    if not _NAME.fullmatch(container):
        raise UsageError(f"{container!r} is no name of a container", "look: docker ps, podman ps")
    found = [program for program in RUNTIMES if shutil.which(program, path=processes.PATH)]
    if not found:
        raise MachineError(f"no program that knows containers: {', '.join(RUNTIMES)}", "pass --netns PATH")
    said = []
    for program in found:
        try:
            answer = processes.run(program, *RUNTIMES[program], container).strip()
        except CommandError as error:
            said.append(f"{program}: {' '.join(error.output.split())[:80]}")
            continue
        # A container that does not run has process 0.
        if answer.isdecimal() and int(answer):
            return int(answer)
        said.append(f"{program}: its process is {answer[:20] or 'unknown'}: does it run?")
    raise MachineError(f"container {container} is not found ({'; '.join(said)})", "look: docker ps, podman ps")


def find_containers() -> list[str]:
    """Return the containers on this machine that are nodes of a cluster, as ``NAME (kind)``."""
    nodes = []
    for program in _LISTERS:
        if not shutil.which(program, path=processes.PATH):
            continue
        try:
            lines = processes.run(program, *_LISTING).splitlines()
        except CommandError:
            continue  # It is installed, but its daemon does not run.
        for line in lines:
            name, _, labels = line.partition(" ")
            nodes += [f"{name} ({maker})" for maker, label in NODE_LABELS.items() if label.search(labels)]
    return nodes
