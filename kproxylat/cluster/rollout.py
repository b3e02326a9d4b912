"""The change of kube-proxy's mode: patch its ConfigMap, restart its pods by a rollout, and wait for the effect."""

from __future__ import annotations

import difflib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from kproxylat.cluster.api import JSON_PATCH, MERGE_PATCH, Api, join_path
from kproxylat.cluster.kubeconfig import Object
from kproxylat.cluster.nodes import find_fault
from kproxylat.cluster.proxy_config import (
    BY_HAND,
    CONFIGMAPS,
    DAEMONSETS,
    ConfigMapKey,
    change_mode,
    last_change,
    parse_mode,
    read_configured,
)
from kproxylat.cluster.proxy_mode import Finding, decide, gather
from kproxylat.cluster.sync import keep_existing, mode_ports, wait_for_rules
from kproxylat.console import waiting
from kproxylat.errors import ApiError, MachineError, UsageError, find_page
from kproxylat.modes import DEFAULT_MODE, mode_names
from kproxylat.node.live_rules import read_proxy
from kproxylat.node.node import Node
from kproxylat.system import interrupts

MODES = {**{name: name for name in mode_names()}, "default": ""}
"""Argument of ``mode set`` -> ``mode`` in the ConfigMap."""
RESTARTED = "kubectl.kubernetes.io/restartedAt"
"""The annotation that ``kubectl rollout restart`` sets to restart pods."""
LIMIT_S = 300.0
PAUSE_S = 0.5


@dataclass(frozen=True)
class Change:
    """A planned change of kube-proxy's mode.

    :param config: the ConfigMap's key as it is now.
    :param daemonsets: names of the DaemonSets that read the ConfigMap.
    :param old: the mode in the ConfigMap now; "default" if it is empty.
    :param mode: the new mode, a key of :data:`MODES`.
    :param text: the new value of the ConfigMap's key.
    :param diff: the difference between the old value and the new one; "" if they are equal.
    :param stale: the ConfigMap was changed after the DaemonSets, so that their pods may not have read it.
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
        """The mode that kube-proxy reports after the change."""
        return MODES[self.mode] or DEFAULT_MODE

    def undoing(self, api: Api) -> str:
        """Return the command that restores the old mode."""
        if self.old in MODES:
            return f"kproxylat mode set {self.old} --context {api.context}"
        return f"{BY_HAND} (mode: {self.old})"


def plan_change(api: Api, mode: str) -> Change:
    """Read kube-proxy's configuration, and plan a change of its mode.

    :raises UsageError: unknown mode.
    :raises MachineError: kube-proxy's mode is not in a ConfigMap, or no DaemonSet runs it.
    """
    if mode not in MODES:
        raise UsageError(f"unknown mode {mode!r}", f"pass one of: {', '.join(MODES)}")
    configured = read_configured(api, socket.gethostname())
    config = configured.config
    if not config or not configured.daemonsets:
        forbidden = [source.split(":")[0] for source in configured.unasked if "cilium" not in source]
        if forbidden:
            raise MachineError(
                f"cannot set kube-proxy's mode: not permitted to read {forbidden[0]}",
                f"{find_page('rbac.md')} lists the permissions that mode set needs",
            )
        if configured.problems:
            raise MachineError(f"cannot set kube-proxy's mode: {'; '.join(configured.problems)}", BY_HAND)
        sources = ", ".join(setting.source for setting in configured.settings) or "nowhere"
        missing = "DaemonSet" if config else "ConfigMap"
        raise MachineError(
            f"cannot set kube-proxy's mode: kube-system has no readable {missing} of kube-proxy (mode from: {sources})",
            "set --proxy-mode where its flags are (k3s: --kube-proxy-arg), and restart it",
        )
    old = parse_mode(config.text)
    text = config.text if old == MODES[mode] else change_mode(config.text, MODES[mode])
    title = f"{config.name}, {config.key}"
    lines = difflib.unified_diff(config.text.splitlines(), text.splitlines(), f"{title} (now)", title, "", "", 0, "")
    names = tuple(daemonset["metadata"]["name"] for daemonset in configured.daemonsets)
    stale = any("" < last_change(daemonset) < config.changed for daemonset in configured.daemonsets)
    return Change(config, names, old or "default", mode, text, "\n".join(lines), stale)


def needs_restart(
    api: Api, change: Change, netns: str | None, limit_s: float = LIMIT_S, *, is_dry_run: bool = False
) -> bool:
    """Return whether a change takes a restart: the ConfigMap changes, or pods do not run in the mode that it has.

    If the node's kube-proxy runs in the mode already, the rest of the cluster is not asked. Otherwise first wait for
    the end of a running rollout, which an interrupted command may have started.

    :param netns: the network namespace of the node whose kube-proxy is asked (None: the current one).
    :param limit_s: the longest time to wait.
    :param is_dry_run: do not wait.
    :raises MachineError: the rollout takes longer.
    """
    if change.diff or change.stale:
        return True

    def describe() -> str | None:
        return None if running_mode(netns) == change.runs_as else describe_rollouts(api, change)

    if not is_dry_run:
        _wait(describe, "kube-proxy's pods", limit_s)
    return running_mode(netns) not in (None, change.runs_as)


def running_mode(netns: str | None) -> str | None:
    """Return the mode that a node's kube-proxy reports; None if no kube-proxy answers.

    :param netns: the node's network namespace (None: the current one).
    """
    try:
        return _ask_mode(netns)
    except MachineError:
        return None


def _ask_mode(netns: str | None) -> str:
    return read_proxy("/proxyMode", netns=netns).strip()


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
    look_up, read = partial(keep_existing, api, ports), partial(mode_ports, mode=mode)
    took_s = wait_for_rules(ports, limit_s=limit_s, node=node, read=read, look_up=look_up)
    report(f"its rules hold the {len(ports)} Service ports that were translated before", took_s)
    return decide(gather(None, node=node))


def apply_change(api: Api, change: Change) -> None:
    """Patch the ConfigMap, if it has not changed since the plan, and restart the pods.

    Dry-run the restart first, so that a missing permission does not surface after the ConfigMap is patched.

    :raises MachineError: the ConfigMap was changed meanwhile, or a rollout does not restart the pods.
    :raises ApiError: the API server refuses a request.
    """
    for name in change.daemonsets:
        strategy = api.get(join_path(DAEMONSETS, name))["spec"].get("updateStrategy", {}).get("type", "RollingUpdate")
        if strategy != "RollingUpdate":
            raise MachineError(
                f"DaemonSet {name} has updateStrategy {strategy}: a rollout does not restart its pods",
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
        api.request("PATCH", join_path(CONFIGMAPS, change.config.name), patch, content_type=JSON_PATCH)
    except ApiError as error:
        if error.status != 422:
            raise
        if "immutable" in str(error):
            error.remedy = "the ConfigMap has immutable: true: replace it by a new one yourself"
            raise
        # An earlier attempt may have succeeded although its answer was lost.
        present = (api.find(join_path(CONFIGMAPS, change.config.name)) or {}).get("data", {}).get(change.config.key)
        if present != change.text:
            raise MachineError(f"ConfigMap {change.config.name} was changed by another client", "try again") from None


def _restart(api: Api, change: Change, **query: str) -> None:
    # kubectl writes whole seconds; microseconds tell two changes in the same second apart.
    annotations = {RESTARTED: datetime.now(UTC).isoformat(timespec="microseconds")}
    body = {"spec": {"template": {"metadata": {"annotations": annotations}}}}
    for name in change.daemonsets:
        api.request("PATCH", join_path(DAEMONSETS, name), body, query, MERGE_PATCH)


def describe_rollout(daemonset: Object, not_ready: int = 0) -> str | None:
    """Return the state of an unfinished rollout; None if it is complete, by the rule of ``kubectl rollout status``.

    :param not_ready: the number of nodes that are not ready, whose pods cannot be restarted.
    """
    status = daemonset.get("status") or {}
    if status.get("observedGeneration", 0) < daemonset["metadata"]["generation"]:
        return "the DaemonSet controller has not seen the change"
    desired = status.get("desiredNumberScheduled", 0)
    for name, state in (("updatedNumberScheduled", "restarted"), ("numberAvailable", "available")):
        if status.get(name, 0) < desired - not_ready:
            return f"{status.get(name, 0)} of {desired} kube-proxy pods are {state}"
    return None


def describe_rollouts(api: Api, change: Change) -> str | None:
    """Return the state of the first unfinished rollout of a change; None if pods are missing on unready nodes only.

    :raises ApiError: the API server refuses a request.
    """
    daemonsets = [api.get(join_path(DAEMONSETS, name)) for name in change.daemonsets]
    state = next(filter(None, map(describe_rollout, daemonsets)), None)
    if not state or not (not_ready := _find_unready_nodes(api)):
        return state
    state = next(filter(None, (describe_rollout(daemonset, len(not_ready)) for daemonset in daemonsets)), None)
    return state and f"{state}; nodes that are not ready: {', '.join(not_ready[:5])}"


def _find_unready_nodes(api: Api) -> list[str]:
    """Return the names of the nodes that are not ready; none if the nodes must not be listed."""
    try:
        nodes = list(api.list("/api/v1/nodes"))
    except ApiError:
        return []
    return [node["metadata"]["name"] for node in nodes if find_fault(node)]


def wait_for_rollout(api: Api, change: Change, limit_s: float = LIMIT_S) -> float:
    """Wait until every pod was restarted and is available, except on nodes that are not ready.

    :param limit_s: the longest time to wait.
    :return: how long it took, in seconds.
    :raises MachineError: the rollout takes longer; names the step that is missing.
    """
    return _wait(partial(describe_rollouts, api, change), "kube-proxy's pods", limit_s)


def wait_for_mode(mode: str, limit_s: float = LIMIT_S, netns: str | None = None) -> float:
    """Wait until a node's kube-proxy reports a mode.

    :param limit_s: the longest time to wait.
    :param netns: the node's network namespace (None: the current one).
    :return: how long it took, in seconds.
    :raises MachineError: the change takes longer; carries kube-proxy's last answer.
    """

    def describe() -> str | None:
        try:
            running = _ask_mode(netns)
        except MachineError as error:
            return str(error)
        return None if running == mode else f"kube-proxy reports {running}"

    return _wait(describe, f"mode {mode}", limit_s)


def _wait(describe: Callable[[], str | None], text: str, limit_s: float) -> float:
    """Wait until ``describe``, which returns the unfinished state, returns None; return the time in seconds."""
    started_s = time.monotonic()
    pause = threading.Event()
    with waiting(text, limit_s):
        while (state := describe()) is not None:
            if time.monotonic() - started_s > limit_s:
                raise MachineError(
                    f"waited {limit_s:g} s for {text}: {state}",
                    "see: kubectl -n kube-system get pods -l k8s-app=kube-proxy",
                )
            interrupts.wait(pause, PAUSE_S)
    return time.monotonic() - started_s
