"""Waiting for kube-proxy's sync: read the kernel's rules until they hold the Services of the API."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Set
from contextlib import ExitStack

from kproxylat.cluster.dummies import Dummies
from kproxylat.cluster.kubeconfig import Object
from kproxylat.cluster.proxy_mode import AMBIGUOUS, decide, gather
from kproxylat.console import counting
from kproxylat.errors import MachineError
from kproxylat.modes import find_rows, only_backend
from kproxylat.node.live_rules import METRICS_PORT, read_proxy
from kproxylat.node.node import Node
from kproxylat.results import Destination
from kproxylat.system import interrupts
from kproxylat.system.processes import run

LIMIT_S = 300.0
PAUSE_S = 0.2
"""Least pause between two looks; after a longer look, the pause is as long, so that others get half of the time."""
_PREFIX = "kubeproxy_sync_proxy_rules_"


def service_ports(found: Dummies, *others: Object) -> set[Destination]:
    """Return the ports of the dummy Services and others that the rules should hold; of dual-stack ones only IPv4."""
    return {
        Destination(ip, port["port"], port["protocol"].lower())
        for spec in (each["spec"] for each in (*found.services.values(), *others))
        for ip in _cluster_ips(spec)
        for port in spec["ports"]
    }


def _cluster_ips(spec: Object) -> list[str]:
    every = spec.get("clusterIPs") or [spec.get("clusterIP", "")]
    return [each for each in every if "." in each] or [each for each in every if ":" in each]


def live_ports(node: Node | None = None, mode: str | None = None, backend: str | None = None) -> set[Destination]:
    """Return the Service ports that the running mode's rules translate, without those of leftover rules.

    :param node: the node (None: this machine).
    :param mode: the mode that the user names, and ``backend`` (None: detected).
    :raises MachineError: the rules cannot be read, or it is ambiguous which of them translate.
    """
    evidence = gather(None, node=node)
    finding = decide(evidence)
    if evidence.rules is None:
        raise MachineError("; ".join(evidence.unasked), "leave out --wait, or run it as root on a node")
    mode, backend = mode or finding.mode, backend or only_backend(mode) or finding.backend
    if finding.sure == AMBIGUOUS and not (mode and backend):
        raise MachineError(f"ambiguous: {finding.reason}", f"settle it: {finding.settle}")
    return {port for each in evidence.rules if (each.mode, each.backend) == (mode, backend) for port in each.services}


def mode_ports(node: Node | None, mode: str, combine: Callable[..., set[Destination]] = set.union) -> set[Destination]:
    """Return the Service ports that a mode's rules translate, on any backend; none if the rules cannot be read.

    NodePorts do not count: a mode whose link holds the Services' addresses has them, too, on the node's own addresses.

    :param combine: combines those of several backends; ``set.intersection`` leaves out those of leftover rules.
    """
    found = [set(each.services) for each in gather(None, node=node).rules or () if each.mode == mode]
    ports = combine(*found) if found else set()
    link = next((row.link for row in find_rows(mode)), None)
    if not link or not ports:
        return ports
    links = json.loads(run("ip", "-json", "address", "show", netns=node.netns if node else None) or "[]")
    own = {info["local"] for each in links if each.get("ifname") != link for info in each.get("addr_info", ())}
    return {each for each in ports if each.ip not in own}


def is_idle(metrics: str) -> bool:
    """Whether kube-proxy has no sync before it, by its /metrics: nothing pending, and the last sync begun is done.

    One that has just been started, and has not synced at all yet, is not idle: rules that are there are another's.

    Samples: ``kubeproxy_sync_proxy_rules_service_changes_pending 0`` and
    ``kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} 1.7e+09``.

    :raises MachineError: this is not Prometheus' text format.
    """
    values = _read_values(metrics)
    pending = sum(value for (name, _), value in values.items() if name.endswith("_changes_pending"))
    queued = {labels: value for (name, labels), value in values.items() if name == "last_queued_timestamp_seconds"}
    synced = [value for (name, _), value in values.items() if name == "last_timestamp_seconds"]
    if values and not any(synced):
        return False
    return not pending and all(
        values.get(("last_timestamp_seconds", labels), 0) >= value for labels, value in queued.items()
    )


def _read_values(metrics: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the values of kube-proxy's metrics of its syncs, by name (without the prefix) and labels."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        samples = [sample for family in text_string_to_metric_families(metrics) for sample in family.samples]
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise MachineError(
            f"cannot read kube-proxy's /metrics: {reason}",
            f"check what answers on this node: curl http://localhost:{METRICS_PORT}/metrics",
        ) from None
    return {
        (sample.name.removeprefix(_PREFIX), frozenset(sample.labels.items())): sample.value
        for sample in samples
        if sample.name.startswith(_PREFIX)
    }


def proxy_is_idle(node: Node | None = None) -> bool:
    """The same of a node's kube-proxy (None: this machine's); one whose metrics cannot be reached is taken for idle.

    :raises MachineError: as :func:`is_idle`.
    """
    try:
        metrics = read_proxy("/metrics", netns=node.netns if node else None)
    except MachineError:
        return True
    return is_idle(metrics)


def wait_for_rules(
    wanted: Set[Destination],
    unwanted: Set[Destination] = frozenset(),
    limit_s: float = LIMIT_S,
    node: Node | None = None,
    read: Callable[[Node | None], Set[Destination]] = live_ports,
    idle: Callable[[Node | None], bool] = proxy_is_idle,
) -> float:
    """Wait until the rules hold every wanted Service port and no unwanted one, and kube-proxy has no sync to do.

    :param node: the node (None: this machine).
    :param read: returns the Service ports that the rules hold now.
    :param idle: returns whether kube-proxy has no sync to do.
    :return: how long it took, in seconds.
    :raises MachineError: it took longer than ``limit_s`` (it counts the missing and the remaining ports), or as
        :func:`is_idle`.
    """
    started_s = time.monotonic()
    pause = threading.Event()
    with ExitStack() as stack:
        advance, to_come = None, 0
        while True:
            look_s = time.monotonic()
            held = read(node)
            missing, left = wanted - held, (unwanted - wanted) & held
            now_s = time.monotonic()
            if advance is None:
                to_come = len(missing) + len(left)
                advance = stack.enter_context(counting("Service ports that kube-proxy has not written yet", to_come))
            while to_come > len(missing) + len(left):
                to_come -= 1
                advance()
            if not missing and not left and idle(node):
                return now_s - started_s
            if now_s - started_s > limit_s:
                raise _late(missing, left, limit_s)
            interrupts.wait(pause, max(PAUSE_S, now_s - look_s))


def _late(missing: Set[Destination], left: Set[Destination], limit_s: float) -> MachineError:
    counts = [
        f"{len(ports)} Service ports are {state}, such as {min(ports)}"
        for ports, state in ((missing, "missing"), (left, "still there"))
        if ports
    ]
    return MachineError(
        f"kube-proxy's rules are not up to date after {limit_s:g} s: {'; '.join(counts) or 'it is still busy'}",
        "a Service without a ready endpoint has no rules; if it has one, kube-proxy's log:\n"
        "  kubectl -n kube-system logs -l k8s-app=kube-proxy --tail=20",
    )
