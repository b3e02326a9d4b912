"""One command on many nodes: Jobs, the logs of their pods, and the outcome of each node.

The API is asked once a second instead of watched: a watch that breaks off needs the same requests, and one right more.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kproxylat import __version__
from kproxylat.cluster.api import Api, join_path
from kproxylat.cluster.envelope import Envelope, PodLog, check_version, read_log
from kproxylat.cluster.job import COMMAND, CONTAINER, GRACE_S, SPARE_S, find_changes
from kproxylat.cluster.kubeconfig import Object
from kproxylat.console import say
from kproxylat.errors import ApiError, KproxylatError, MachineError, UsageError
from kproxylat.system import interrupts

POLL_S = 1.0
START_S = 120.0
"""How long a pod may take to start, with the pull of its image."""
EVENTS_S = 5.0
"""After this time without a pod, the Job's events are read."""
CLOCK_S = 10.0
"""A node's clock that differs by more is reported."""
FATAL = ("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError",
         "CreateContainerError", "RunContainerError")  # fmt: skip
"""Reasons for which a container waits, and will not start by itself (Kubernetes, ``pkg/kubelet/images/types.go``)."""
ENFORCE = "pod-security.kubernetes.io/enforce"


@dataclass(frozen=True)
class Outcome:
    """What a command did on a node.

    :param envelope: the result; None if there is none, and ``error`` has the reason.
    :param remedy: the next step after an error; "" if none is known.
    """

    node: str
    envelope: Envelope | None = None
    error: str = ""
    remedy: str = ""

    @property
    def status(self) -> int:
        """The command's exit status; 1 if there is no result."""
        return self.envelope.status if self.envelope else 1


def find_nodes(api: Api, names: Sequence[str], selector: str) -> list[Object]:
    """Return the Node objects of these names, or those that a selector of labels matches ("": all).

    :raises UsageError: no node matches.
    :raises MachineError: a node has a name that Kubernetes does not allow.
    :raises ApiError: the nodes must not be listed.
    """
    objects = list(api.list("/api/v1/nodes", **({"labelSelector": selector} if selector else {})))
    nodes = {document["metadata"]["name"]: document for document in objects}
    # A name is a directory's, too, and part of commands that are printed.
    if invalid := [name for name in nodes if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,252}", name)]:
        raise MachineError(f"invalid answer of the API server: a node has the name {invalid[0][:100]!r}")
    missing = [name for name in names if name not in nodes]
    if missing or not nodes:
        problem = f"no such node: {', '.join(missing)}" if missing else f"no node matches {selector or 'the cluster'}"
        listed = f"the cluster has {', '.join(nodes)}" if nodes else "look: kubectl get nodes --show-labels"
        raise UsageError(problem, listed[:500])
    return [nodes[name] for name in dict.fromkeys(names)] or list(nodes.values())


def find_fault(node: Object) -> str:
    """Return why a node cannot run a pod; "" if it can."""
    for condition in (node.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "Ready" and condition.get("status") != "True":
            return f"the node is NotReady: {condition.get('message') or condition.get('reason') or 'unknown'}"
    return ""


def check_namespace(api: Api, namespace: str) -> None:
    """Check that the namespace of the Jobs exists and admits them.

    :raises MachineError: it does not; the remedy is a command of kubectl.
    """
    label = f"kubectl label --overwrite namespace {namespace} {ENFORCE}=privileged"
    try:
        document = api.find(join_path("/api/v1/namespaces", namespace))
    except ApiError as error:
        if error.status == 403:
            return  # Without this right, the first Job tells.
        raise
    if document is None:
        raise MachineError(f"namespace {namespace} does not exist", f"kubectl create namespace {namespace} && {label}")
    level = (document["metadata"].get("labels") or {}).get(ENFORCE, "privileged")
    if level != "privileged":
        raise MachineError(f"namespace {namespace} enforces Pod Security level {level}, without hostNetwork", label)


def run_jobs(api: Api, jobs: Mapping[str, Object], parallel: int) -> Iterator[Outcome]:
    """Run Jobs, some at a time, delete them, and yield each node's outcome as it comes.

    :param jobs: node -> Job.
    :raises Interrupted: a signal came. All Jobs are deleted, and their pods have cleaned up.
    """
    stop, done = threading.Event(), threading.Event()
    with ThreadPoolExecutor(parallel) as pool:
        futures = [pool.submit(_run_job, api, node, job, stop) for node, job in jobs.items()]
        for future in futures:
            future.add_done_callback(lambda _: done.set())
        try:
            while futures:
                interrupts.wait(done, None)
                done.clear()
                ended = [future for future in futures if future.done()]
                futures = [future for future in futures if future not in ended]
                yield from (future.result() for future in ended)
        except BaseException:
            stop.set()
            raise


def _run_job(api: Api, node: str, job: Object, stop: threading.Event) -> Outcome:
    if stop.is_set():
        return Outcome(node, error="not started")
    run = _Run(api, node, job, stop)
    try:
        return run.run()
    except KproxylatError as error:
        return Outcome(node, error=str(error), remedy=error.remedy)
    finally:
        run.clean_up()


class _Run:
    """A Job under way: its pod and how many lines of its log were shown."""

    def __init__(self, api: Api, node: str, job: Object, stop: threading.Event) -> None:
        self._api, self._node, self._job, self._stop = api, node, job, stop
        namespace, self._name = job["metadata"]["namespace"], job["metadata"]["name"]
        self._jobs = join_path("/apis/batch/v1/namespaces", namespace, "jobs")
        self._pods = join_path("/api/v1/namespaces", namespace, "pods")
        self._events = join_path("/api/v1/namespaces", namespace, "events")
        self._shown = 0
        self._is_ended = False
        self._pause = threading.Event()
        self._pod: Object | None = None

    def run(self) -> Outcome:
        """Create the Job, follow it to its end, and return the outcome.

        :raises MachineError: the Job cannot run, or its result is lost.
        """
        self._create()
        image = self._job["spec"]["template"]["spec"]["containers"][0]["image"]
        ends_s = time.monotonic() + START_S + self._job["spec"]["activeDeadlineSeconds"]
        started_s = time.monotonic()
        while True:
            pod = self._find_pod()
            phase = pod["status"].get("phase", "Pending") if pod else "Pending"
            if pod is None and self._pod is not None:
                raise MachineError(self._explain_loss(), "")
            self._pod = pod
            if phase == "Pending":
                self._check_start(pod, time.monotonic() - started_s)
            else:
                log = self._read_log()
                check_version(log.version, __version__, image)
                if log.envelope:
                    return self._judge(log, log.envelope)
                if phase in ("Succeeded", "Failed"):
                    raise MachineError(self._explain_end(pod or {}, log), "")
            if time.monotonic() > ends_s:
                raise MachineError(f"pod {self._name} does not end, although its deadline has passed", "")
            if self._stop.wait(POLL_S):
                raise MachineError("interrupted", "")

    def _create(self) -> None:
        try:
            answer = self._api.request("POST", self._jobs, self._job)
        except ApiError as error:
            if error.reason == "AlreadyExists":
                return  # Our own, whose answer was lost: the name is random.
            if error.status == 403:
                error.remedy = f"{error.remedy}\n  or without Jobs, as an administrator: {self._write_debug()}"
            raise
        if changes := find_changes(self._job["spec"], answer.get("spec")):
            raise MachineError(
                f"the cluster's admission rewrote the Job: {', '.join(changes)[:300]}",
                "exempt the namespace of the Jobs from this policy, or pass --job-namespace",
            )

    def _write_debug(self) -> str:
        """Return the line of kubectl that runs the same without a Job."""
        container = self._job["spec"]["template"]["spec"]["containers"][0]
        words = " ".join(container["command"][len(COMMAND) :])
        head = f"kubectl debug node/{self._node} -it --profile=sysadmin --image={container['image']}"
        return f"{head} -- python3 -m kproxylat {words}"

    def _find_pod(self) -> Object | None:
        pods = list(self._api.list(self._pods, labelSelector=f"job-name={self._name}"))
        return pods[-1] if pods else None

    def _check_start(self, pod: Object | None, waited_s: float) -> None:
        """Find out why a pod does not start.

        :raises MachineError: it cannot start, or takes too long.
        """
        status = pod["status"] if pod else {}
        waiting = _state(status, "waiting")
        reasons = [f"{waiting.get('reason')}: {waiting.get('message', '')}"] if waiting.get("reason") else []
        reasons += [
            f"{condition.get('reason')}: {condition.get('message', '')}"
            for condition in status.get("conditions") or ()
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False"
        ]
        if pod is None and waited_s > EVENTS_S:
            reasons += self._read_events()
        is_final = waiting.get("reason") in FATAL or (pod is None and bool(reasons))
        if is_final or waited_s > START_S:
            image = self._job["spec"]["template"]["spec"]["containers"][0]["image"]
            reason = " ".join("; ".join(reasons).split())[:400] or "the cluster names no reason"
            remedy = f"push image {image} where the node finds it, and pass --image" if "mage" in reason else ""
            raise MachineError(f"the pod does not start: {reason}", remedy)

    def _read_events(self) -> list[str]:
        """Return why the Job's pod was not created: quota, or admission. Without the right to read events, nothing."""
        try:
            events = list(self._api.list(self._events, fieldSelector=f"involvedObject.name={self._name}"))
        except ApiError:
            return []
        return [str(event.get("message", "")) for event in events if event.get("reason") == "FailedCreate"][-1:]

    def _read_log(self) -> PodLog:
        """Read the pod's log and show its new lines."""
        if self._pod is None:
            return read_log("")
        try:
            text = self._api.read_text(join_path(self._pods, self._pod["metadata"]["name"], "log"), container=CONTAINER)
        except ApiError as error:
            if error.status not in (400, 404):
                raise
            text = ""  # The container is not there yet, or not any more.
        log = read_log(text)
        # Lines of a log without its first line may be parts of a result.
        for line in log.progress[self._shown :] if log.version else ():
            say(f"{self._node}: {line}")
        self._shown = max(self._shown, len(log.progress))
        self._is_ended = self._is_ended or log.envelope is not None
        return log

    def _judge(self, log: PodLog, envelope: Envelope) -> Outcome:
        off_s = envelope.time_s - time.time()
        if abs(off_s) > CLOCK_S:
            say(f"{self._node}: warning: its clock is {abs(off_s):.0f} s {'ahead' if off_s > 0 else 'behind'}")
        if not envelope.status:
            return Outcome(self._node, envelope)
        errors = [number for number, line in enumerate(log.progress) if line.startswith("kproxylat: ")]
        error, *remedy = log.progress[errors[-1] :] if errors else [f"ended with status {envelope.status}"]
        return Outcome(self._node, envelope, error.removeprefix("kproxylat: "), "\n".join(remedy).strip())

    def _explain_loss(self) -> str:
        """Say why a pod is gone that ran."""
        job = self._api.find(f"{self._jobs}/{self._name}") or {}
        for condition in (job.get("status") or {}).get("conditions") or ():
            if condition.get("type") == "Failed":
                return f"the Job failed ({condition.get('reason')}): {condition.get('message', '')}"
        return "the pod was deleted before it had a result (evicted, or its node was drained)"

    def _explain_end(self, pod: Object, log: PodLog) -> str:
        """Say why a pod has ended without a result."""
        status = pod.get("status") or {}
        ended = _state(status, "terminated")
        facts = [status.get("reason"), status.get("message"), ended.get("reason"), ended.get("message")]
        named = ", ".join(str(fact) for fact in facts if fact and fact not in ("Error", "Completed"))
        code = f"exit status {ended['exitCode']}" if "exitCode" in ended else ""
        last = "" if log.version else "".join(log.progress[-1:])[:200]
        why = "; ".join(filter(None, (named, code, log.problem, last)))
        return f"the pod ended without a result: {why[:400]}"

    def clean_up(self) -> None:
        """Delete the Job; wait for the clean-up of a pod that still runs, and say what was not seen."""
        ran = (self._pod or {"status": {}})["status"].get("phase") == "Running"
        try:
            # A pod that has ended since the last look goes with its Job, and its log with it.
            if ran and not self._is_ended:
                with contextlib.suppress(KproxylatError):  # The Job goes, whatever happens.
                    self._read_log()
            self._api.delete(f"{self._jobs}/{self._name}")
            ends_s = time.monotonic() + GRACE_S + SPARE_S
            while pod := self._find_pod():
                phase = pod["status"].get("phase")
                self._pod, ran = pod, ran or phase == "Running"
                if not self._is_ended:
                    self._read_log()
                if phase in ("Succeeded", "Failed") or time.monotonic() > ends_s:
                    break
                self._pause.wait(POLL_S / 5)
            if ran and not self._is_ended:
                say(f"{self._node}: the end of the pod's clean-up was not seen")
                say(f"  kproxylat cleanup --node {self._node}")
        except KproxylatError as error:
            say(f"{self._node}: Job {self._name} may be left: {error}")
            say(f"  kubectl delete job {self._name} -n {self._job['metadata']['namespace']}")


def _state(status: Object, kind: str) -> Object:
    """Return a state of the pod's container, "waiting" or "terminated"; empty if it is in another one."""
    containers = status.get("containerStatuses") or [{}]
    state: Object = (containers[0].get("state") or {}).get(kind) or {}
    return state
