"""The Job that runs one command on one node: its rights are data, in the table :data:`PROFILES`.

The pod has no credentials of the cluster: the client looks everything up and passes plain arguments.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kproxylat import __version__
from kproxylat.cluster.kubeconfig import Object

NAMESPACE = "kproxylat"
"""The namespace of the Jobs, unless the user names another one."""
IMAGE = f"kproxylat:{__version__}"
"""The image that ``make image`` builds."""
OUTPUT = "/tmp/kproxylat"  # noqa: S108 - in the pod's own file system
"""The directory in the pod whose files come back with the result."""
CONTAINER = "kproxylat"
COMMAND = ("python3", "-m", "kproxylat.pod", __version__)
OURS = {"app.kubernetes.io/name": "kproxylat", "app.kubernetes.io/managed-by": "kproxylat"}
SPARE_S = 120
"""Seconds that a Job has beyond its command, for the image, the start and the clean-up."""
GRACE_S = 60
"""Seconds that a pod has for its clean-up; the tracer's own limit is 30."""
KEPT_S = 3600
"""Seconds after which the cluster deletes a finished Job whose client died."""


@dataclass(frozen=True)
class Mount:
    """A directory or file of the node in the pod.

    :param kind: the type of a hostPath volume.
    :param reason: why the pod needs it.
    """

    path: str
    kind: str
    reason: str
    is_read_only: bool = False


@dataclass(frozen=True)
class Profile:
    """The rights of a pod; all others are dropped.

    :param capabilities: name, without ``CAP_`` -> why the pod needs it.
    :param is_confined: whether AppArmor's default profile allows all that the command does.
    """

    capabilities: Mapping[str, str]
    mounts: tuple[Mount, ...]
    is_confined: bool


_TRACEFS = Mount("/sys/kernel/tracing", "Directory", "the functions that bpftrace may trace", is_read_only=True)
_LOCK = Mount("/run/kproxylat", "DirectoryOrCreate", "the lock and its notes outlive the pod, for cleanup --node")
_XTABLES = Mount("/run/xtables.lock", "FileOrCreate", "iptables and kube-proxy exclude each other by this file")
_TRACING = (
    "load and attach the probes: CAP_BPF and CAP_PERFMON do not suffice, as the kernel gives types of modules (BTF), "
    "and at kernel.perf_event_paranoid 3 perf events, to this right only, which includes both"
)
PROFILES = {
    "observe": Profile(
        {"NET_ADMIN": "list rules", "NET_RAW": "list those of iptables-legacy", "SYS_ADMIN": _TRACING},
        (_TRACEFS,),
        is_confined=True,
    ),
    "measure": Profile(
        {
            "NET_ADMIN": "links, rules, pktgen",
            "SYS_ADMIN": f"network namespaces; {_TRACING}",
            "NET_RAW": "raw sockets of iptables-legacy and hping3",
        },
        (_TRACEFS, _LOCK, _XTABLES),
        is_confined=False,
    ),
}
"""Profile -> its rights, with a reason for each."""
_MODULES = Mount("/lib/modules", "Directory", "the modules of the node's kernel", is_read_only=True)
PROFILES["load modules"] = Profile(
    {**PROFILES["measure"].capabilities, "SYS_MODULE": "load missing kernel modules, such as pktgen"},
    (*PROFILES["measure"].mounts, _MODULES),
    is_confined=False,
)
COMMANDS = {
    "run": "measure",
    "sweep": "measure",
    "trace": "observe",
    "bill": "observe",
    "mode show": "observe",
    "capture": "observe",
    "doctor": "measure",
    "cleanup": "measure",
}
"""A command that runs on nodes -> its profile. doctor looks at the rights that a run would have."""


def make_name(command: str, node: str) -> str:
    """Return a new name for a Job: a label's value, of 63 characters at most."""
    words = re.sub("[^a-z0-9]+", "-", f"kproxylat-{command}-{node}".lower())[:52].strip("-")
    return f"{words}-{secrets.token_hex(4)}"


def make_job(
    command: str,
    node: str,
    words: Sequence[str],
    namespace: str,
    image: str,
    expected_s: float,
    load_modules: bool = False,
) -> Object:
    """Return the Job of a command on a node.

    :param command: a key of :data:`COMMANDS`.
    :param words: the whole command line for the pod, without the program's name.
    :param expected_s: how long the command takes.
    :param load_modules: of profile measure: let the pod load kernel modules.
    """
    name, profile = make_name(command, node), PROFILES["load modules" if load_modules else COMMANDS[command]]
    limit_s = int(expected_s) + SPARE_S
    labels = {**OURS, "kproxylat/command": command.replace(" ", "-")}
    mounts: list[tuple[str, Object, bool]] = [
        *((path, {"emptyDir": {"medium": "Memory"}}, False) for path in ("/run", "/tmp")),  # noqa: S108
        *(
            (mount.path, {"hostPath": {"path": mount.path, "type": mount.kind}}, mount.is_read_only)
            for mount in profile.mounts
        ),
    ]
    confined = "RuntimeDefault" if profile.is_confined else "Unconfined"
    container = {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": [*COMMAND, *words],
        # No limit of CPU time: it would measure how the kernel throttles the tracer.
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsUser": 0,
            "capabilities": {"drop": ["ALL"], "add": sorted(profile.capabilities)},
            "seccompProfile": {"type": "RuntimeDefault"},
            "appArmorProfile": {"type": confined},
        },
        "volumeMounts": [
            {"name": _name_volume(path), "mountPath": path, "readOnly": is_fixed} for path, _, is_fixed in mounts
        ],
    }
    field = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    pod = {
        "restartPolicy": "Never",
        "hostNetwork": True,
        "dnsPolicy": "Default",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "affinity": {
            "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [field]}}
        },
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
        "volumes": [{"name": _name_volume(path), **source} for path, source, _ in mounts],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": limit_s,
            "ttlSecondsAfterFinished": KEPT_S,
            "template": {"metadata": {"labels": {**labels}}, "spec": pod},
        },
    }


def _name_volume(path: str) -> str:
    return re.sub("[/.]", "-", path.strip("/"))


def find_changes(sent: object, got: object, path: str = "spec") -> list[str]:
    """Return the fields of a Job that the cluster's admission rewrote; additions do not count.

    :param sent: the Job's ``spec``, or a part of it; ``got``: the same as the API server returned it.
    """
    if isinstance(sent, dict) and isinstance(got, dict):
        pairs = [(value, got.get(name), f"{path}.{name}") for name, value in sent.items()]
    elif isinstance(sent, list) and isinstance(got, list) and len(sent) <= len(got):
        pairs = [(value, got[index], f"{path}[{index}]") for index, value in enumerate(sent)]
    else:
        # The server leaves out false; before Kubernetes 1.30 it does not know appArmorProfile.
        is_left_out = got is None and (not sent or path.endswith("appArmorProfile"))
        return [] if sent == got or is_left_out else [path]
    return [change for value, other, place in pairs for change in find_changes(value, other, place)]
