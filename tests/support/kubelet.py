"""A stand-in for the Job controller and the kubelets: each Job's command really runs, under the Job's capabilities."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import ROOT
from tests.support.fake_api import Call, FakeApi, Object


@dataclass
class Pod:
    """A pod: its process (None: it has none yet), and the file of its log."""

    name: str
    job: Object
    log: Path
    process: subprocess.Popen[bytes] | None = None


@dataclass
class Kubelet:
    """Runs the Jobs that a fake API server holds.

    :param directory: for logs and the nodes' /run/kproxylat.
    :param status: node -> the status of its pods, which then run nothing.
    :param started: called with each pod whose process runs.
    :param log: changes the text of a log before it is read. ``events``: node -> why its pods are not created.
    :param wrap: returns the command line of a pod (None: its command, on this machine's own root).
    :ivar most: the most pods that ran at the same time.
    """

    fake: FakeApi
    directory: Path
    status: dict[str, Object] = field(default_factory=dict)
    events: dict[str, str] = field(default_factory=dict)
    started: Callable[[Pod], None] = lambda _: None
    log: Callable[[str], str] = lambda text: text
    wrap: Callable[[Pod], Sequence[str]] | None = None
    pods: dict[str, Pod] = field(default_factory=dict)
    ran: list[Pod] = field(default_factory=list)
    most: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, call: Call) -> None:
        """Carry out what a request to the API server asks for."""
        if (call.verb, call.resource) == ("create", "jobs"):
            [new] = [key for key in self.fake.objects if key[1] == "jobs" and key[3] not in self.pods]
            self._start(self.fake.objects[new])
        elif (call.verb, call.resource) == ("delete", "jobs") and call.name in self.pods:
            self._stop(self.pods[call.name])

    def _start(self, job: Object) -> None:
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        node = find_node(job)
        pod = Pod(f"{name}-x", job, self.directory / f"{name}.log")
        pod.log.touch()
        self.pods[name] = pod
        if node in self.events:
            event = {"reason": "FailedCreate", "message": self.events[node], "involvedObject": {"name": name}}
            meta = {"name": f"{name}.1", "namespace": namespace}
            self.fake.add({"apiVersion": "v1", "kind": "Event", "metadata": meta, **event})
            return
        spec = job["spec"]["template"]["spec"]
        labels = {**job["spec"]["template"]["metadata"]["labels"], "job-name": name}
        meta = {"name": pod.name, "namespace": namespace, "labels": labels}
        status = self.status.get(node, {"phase": "Running"})
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec, "status": status}
        self.fake.add(document)
        self.fake.logs[pod.name] = lambda: self.log(pod.log.read_text(errors="replace"))
        if node in self.status:
            return
        with pod.log.open("wb") as file:
            argv = self._wrap(pod)
            pod.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd="/")
        self.ran.append(pod)
        self.most = max(self.most, sum(one.process is not None and one.process.poll() is None for one in self.ran))
        threading.Thread(target=self._wait, args=(pod, document), daemon=True).start()
        self.started(pod)

    def _wrap(self, pod: Pod) -> Sequence[str]:
        if self.wrap:
            return self.wrap(pod)
        python, *words = find_command(pod.job)
        assert python == "python3"
        return ["env", f"PYTHONPATH={ROOT}", sys.executable, *words]

    def _wait(self, pod: Pod, document: Object) -> None:
        assert pod.process
        status = pod.process.wait()
        state = {"terminated": {"exitCode": status, "reason": "Completed" if status == 0 else "Error"}}
        document["status"] = {
            "phase": "Failed" if status else "Succeeded",
            "containerStatuses": [{"name": "kproxylat", "state": state}],
        }

    def _stop(self, pod: Pod) -> None:
        """End a pod as the garbage collector and the kubelet do, some time after its Job was deleted."""

        def end() -> None:
            if pod.process and pod.process.poll() is None:
                pod.process.send_signal(signal.SIGTERM)
                pod.process.wait(60)
            if pod.process:
                # The garbage collector takes its time, and the kubelet reports the end before it removes the pod.
                threading.Event().wait(0.5)
            self.fake.objects.pop(("", "pods", pod.job["metadata"]["namespace"], pod.name), None)

        threading.Thread(target=end, daemon=True).start()

    def end(self) -> None:
        """Kill what still runs."""
        for pod in self.ran:
            if pod.process and pod.process.poll() is None:
                pod.process.kill()
                pod.process.wait(10)


def find_node(job: Object) -> str:
    """Return the node that a Job's pod is pinned to."""
    affinity = job["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    [term] = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    [expression] = term["matchFields"]
    assert (expression["key"], expression["operator"]) == ("metadata.name", "In")
    [name] = expression["values"]
    return str(name)


def find_command(job: Object) -> list[str]:
    """Return the command line of a Job's container."""
    command: list[str] = job["spec"]["template"]["spec"]["containers"][0]["command"]
    return command


def confine(pod: Pod, root: str, state: Path, netns: str = "") -> list[str]:
    """Return the command line of a pod in a root file system: read-only, with exactly the Job's capabilities.

    :param root: the root file system. ``state``: the node's /run/kproxylat.
    :param netns: the file of the node's network namespace ("": a new one).
    """
    container = pod.job["spec"]["template"]["spec"]["containers"][0]
    security = container["securityContext"]
    assert (security["privileged"], security["readOnlyRootFilesystem"]) == (False, True)
    assert security["capabilities"]["drop"] == ["ALL"]
    rights = ",".join(["-all", *(f"+{name.lower()}" for name in security["capabilities"]["add"])])
    paths = {mount["mountPath"]: mount["readOnly"] for mount in container["volumeMounts"]}
    modules = "/lib/modules" if paths.get("/lib/modules") else ""
    limit = ["setpriv", f"--bounding-set={rights}", "--inh-caps=-all", "--reset-env"]
    place = ["nsenter", f"--net={netns}", "unshare"] if netns else ["unshare", "--net"]
    return [
        *place,
        "--mount",
        "--ipc",
        "sh",
        "-c",
        CHROOT,
        "sh",
        root,
        str(state),
        modules,
        *limit,
        *container["command"],
    ]


CHROOT = """
set -eu
root=$1 state=$2 modules=$3
shift 3
mount --bind "$root" "$root"
mount --rbind /proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mkdir "$root/run/kproxylat"
mount --bind "$state" "$root/run/kproxylat"
[ -z "$modules" ] || mount --bind -o ro "$modules" "$root/usr/lib/modules"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -o remount,bind,ro "$root"
ip link set lo up
exec chroot "$root" "$@"
"""
"""Makes the file systems of a container and enters them; the network namespace is the node's."""
