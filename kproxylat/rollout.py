"""kube-proxy's mode is set: its ConfigMap patched, its pods rolled out, and both seen to have happened."""

from __future__ import annotations

import difflib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from kproxylat import interrupts
from kproxylat.cluster import JSON_PATCH, MERGE_PATCH, Api, Object
from kproxylat.errors import ApiError, MachineError, UsageError
from kproxylat.liverules import read_proxy
from kproxylat.nodes import Node
from kproxylat.proxyconfig import (
    BY_HAND,
    CONFIGMAPS,
    DAEMONSETS,
    DEFAULT_MODE,
    ConfigMapKey,
    change_mode,
    last_change,
    parse_mode,
    read_configured,
)
from kproxylat.proxymode import Finding, decide, gather
from kproxylat.screen import waiting
from kproxylat.sync import mode_ports, wait_for_rules

MODES = {"iptables": "iptables", "ipvs": "ipvs", "nftables": "nftables", "default": ""}
"""What ``mode set`` takes -> what is written."""
RESTARTED = "kubectl.kubernetes.io/restartedAt"
"""The annotation by which ``kubectl rollout restart`` restarts pods."""
LIMIT_S = 300.0
PAUSE_S = 0.5


@dataclass(frozen=True)
class Change:
    """What is to be done.

    :param daemonsets: those that read the ConfigMap.
    :param old: the mode that the ConfigMap has now, "default" if it is empty.
    :param diff: the ConfigMap's change, in diff's form; empty where there is none.
    :param stale: the ConfigMap was changed after the DaemonSets: their pods may not have read it.
    """

    config: ConfigMapKey
    daemonsets: tuple[str, ...]
    old: str
    mode: str
    text: str
    diff: str
    stale: bool

    @property
    def runs_as(self) -> str:
        """The mode that kube-proxy calls itself by then."""
        return MODES[self.mode] or DEFAULT_MODE

    def undoing(self, api: Api) -> str:
        """Return the command that puts the old mode back."""
        if self.old in MODES:
            return f"kproxylat mode set {self.old} --context {api.context}"
        return f"{BY_HAND} (mode: {self.old})"


def plan_change(api: Api, mode: str) -> Change:
    """Read what there is, and say what would change.

    :raises UsageError: there is no such mode.
    :raises MachineError: kube-proxy's mode is not in a ConfigMap, or no DaemonSet runs it.
    """
    if mode not in MODES:
        raise UsageError(f"unknown mode {mode!r}", f"it takes one of: {', '.join(MODES)}")
    found = read_configured(api, socket.gethostname())
    if not found.config or not found.daemonsets:
        refused = [each.split(":")[0] for each in found.unasked if "cilium" not in each]
        if refused:
            raise MachineError(
                f"kube-proxy's mode cannot be set: it is not permitted to read {refused[0]}",
                "docs/rbac.md lists the permissions that mode set needs",
            )
        where = ", ".join(each.source for each in found.settings) or "nowhere"
        lacking = "ConfigMap" if not found.config else "DaemonSet"
        raise MachineError(
            f"kube-proxy's mode cannot be set: it has no {lacking} in kube-system that can be read ({where})",
            "set --proxy-mode where its flags are (k3s: --kube-proxy-arg), and restart it",
        )
    old = parse_mode(found.config.text)
    text = found.config.text if old == MODES[mode] else change_mode(found.config.text, MODES[mode])
    names = f"{found.config.name}, {found.config.key}"
    lines = difflib.unified_diff(
        found.config.text.splitlines(), text.splitlines(), f"{names} (now)", names, "", "", 0, ""
    )
    names_of = tuple(each["metadata"]["name"] for each in found.daemonsets)
    stale = any("" < last_change(each) < found.config.changed for each in found.daemonsets)
    return Change(found.config, names_of, old or "default", mode, text, "\n".join(lines), stale)


def needs_restart(api: Api, change: Change, netns: str | None, limit_s: float = LIMIT_S) -> bool:
    """Whether anything is to be done: a patch, or pods that do not run in the mode though the ConfigMap has it.

    A rollout that is under way is waited for first: an interrupted command may have left one.

    :param netns: the node's network namespace (None: ours), whose kube-proxy is asked where it answers.
    :raises MachineError: that rollout does not end.
    """
    if change.diff or change.stale:
        return True
    wait_for_rollout(api, change, limit_s)
    return running_mode(netns) not in (None, change.runs_as)


def running_mode(netns: str | None) -> str | None:
    """Return the mode that a node's kube-proxy says it is in (None: none answers)."""
    try:
        return read_proxy("/proxyMode", netns=netns).strip()
    except MachineError:
        return None


def set_mode(
    api: Api, node: Node, change: Change, report: Callable[[str, float], None], limit_s: float = LIMIT_S
) -> Finding | None:
    """Apply a change, and wait until kube-proxy runs in its mode.

    On a node whose kube-proxy answers, also wait until its rules hold the Service ports that were translated before.

    :param report: called after each step, with a sentence and the seconds that the step took.
    :param limit_s: the longest time for each step.
    :return: the node's mode and warnings afterwards; None if no kube-proxy of the node answers.
    :raises MachineError: see :func:`apply_change`; or a step took longer.
    """
    running = running_mode(node.netns)
    ports = mode_ports(node, running, set.intersection) if running else set()
    apply_change(api, change)
    report("kube-proxy's pods are restarted", wait_for_rollout(api, change, limit_s))
    if not running:
        return None
    mode = change.runs_as
    report(f"kube-proxy of this node is in mode {mode}", wait_for_mode(mode, limit_s, node.netns))
    took_s = wait_for_rules(ports, limit_s=limit_s, node=node, read=partial(mode_ports, mode=mode))
    report(f"its rules hold the {len(ports)} Service ports that were translated before", took_s)
    return decide(gather(None, node=node))


def apply_change(api: Api, change: Change) -> None:
    """Patch the ConfigMap, only if it is still what was shown, and have the pods restarted.

    That they may be restarted is tried first, so that it is not found out with the ConfigMap patched.

    :raises MachineError: the ConfigMap was changed in between, or the pods are not restarted by a rollout.
    """
    for name in change.daemonsets:
        strategy = api.get(f"{DAEMONSETS}/{name}")["spec"].get("updateStrategy", {}).get("type", "RollingUpdate")
        if strategy != "RollingUpdate":
            raise MachineError(
                f"DaemonSet {name} has updateStrategy {strategy}: its pods are not restarted by a rollout",
                "edit the ConfigMap and delete the pods yourself",
            )
    _restart(api, change, dryRun="All")
    if change.diff:
        _patch(api, change)
    _restart(api, change)


def _patch(api: Api, change: Change) -> None:
    pointer = "/data/" + change.config.key.replace("~", "~0").replace("/", "~1")
    patch = [
        {"op": "test", "path": pointer, "value": change.config.text},
        {"op": "replace", "path": pointer, "value": change.text},
    ]
    try:
        api.request("PATCH", f"{CONFIGMAPS}/{change.config.name}", patch, content_type=JSON_PATCH)
    except ApiError as error:
        if error.status != 422:
            raise
        if "immutable" in str(error):
            error.remedy = "it says immutable: true: put a new ConfigMap into its place yourself"
            raise
        # The answer to a first try may have been lost.
        now = (api.find(f"{CONFIGMAPS}/{change.config.name}") or {}).get("data", {}).get(change.config.key)
        if now != change.text:
            raise MachineError(f"ConfigMap {change.config.name} was changed by somebody else", "try again") from None


def _restart(api: Api, change: Change, **query: str) -> None:
    # kubectl writes whole seconds; two changes may come in one.
    annotations = {RESTARTED: datetime.now(UTC).isoformat(timespec="microseconds")}
    body = {"spec": {"template": {"metadata": {"annotations": annotations}}}}
    for name in change.daemonsets:
        api.request("PATCH", f"{DAEMONSETS}/{name}", body, query, MERGE_PATCH)


def pods_to_come(daemonset: Object) -> str | None:
    """Return what a rollout still waits for, None if it is done (as ``kubectl rollout status`` judges)."""
    status = daemonset.get("status") or {}
    if status.get("observedGeneration", 0) < daemonset["metadata"]["generation"]:
        return "the DaemonSet controller has not seen the change"
    wanted = status.get("desiredNumberScheduled", 0)
    for name, what in (("updatedNumberScheduled", "restarted"), ("numberAvailable", "available")):
        if status.get(name, 0) < wanted:
            return f"{status.get(name, 0)} of {wanted} kube-proxy pods are {what}"
    return None


def wait_for_rollout(api: Api, change: Change, limit_s: float = LIMIT_S) -> float:
    """Wait until every pod is a new one, and available.

    :return: how long it took, in seconds.
    :raises MachineError: it took longer; says what is missing.
    """

    def lacking() -> str | None:
        missing = (pods_to_come(api.get(f"{DAEMONSETS}/{name}")) for name in change.daemonsets)
        return next(filter(None, missing), None)

    return _wait(lacking, "kube-proxy's pods", limit_s)


def wait_for_mode(mode: str, limit_s: float = LIMIT_S, netns: str | None = None) -> float:
    """Wait until the kube-proxy of this machine says that it is in a mode.

    :param netns: the node's network namespace (None: ours).
    :return: how long it took, in seconds.
    :raises MachineError: it took longer; says what it answers.
    """

    def lacking() -> str | None:
        try:
            said = read_proxy("/proxyMode", netns=netns).strip()
        except MachineError as error:
            return str(error)
        return None if said == mode else f"it says {said}"

    return _wait(lacking, f"mode {mode}", limit_s)


def _wait(lacking: Callable[[], str | None], text: str, limit_s: float) -> float:
    started_s = time.monotonic()
    pause = threading.Event()
    with waiting(text, limit_s):
        while (missing := lacking()) is not None:
            if time.monotonic() - started_s > limit_s:
                raise MachineError(
                    f"waited {limit_s:g} s for {text}: {missing}",
                    "look: kubectl -n kube-system get pods -l k8s-app=kube-proxy",
                )
            interrupts.wait(pause, PAUSE_S)
    return time.monotonic() - started_s
