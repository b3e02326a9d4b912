"""The wait for kube-proxy's sync: read the kernel's rules until they hold the Services of the API."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Set

from kproxylat.cluster.api import Api
from kproxylat.cluster.dummies import OWNER, Dummies
from kproxylat.cluster.kubeconfig import Object
from kproxylat.cluster.metrics import read_sync_values
from kproxylat.cluster.proxy_mode import AMBIGUOUS, decide, gather
from kproxylat.cluster.target import choose_endpoints
from kproxylat.console import counting
from kproxylat.errors import ApiError, MachineError
from kproxylat.modes import find_rows, only_backend
from kproxylat.node.live_rules import read_proxy
from kproxylat.node.node import Node
from kproxylat.results import Target
from kproxylat.system import interrupts
from kproxylat.system.processes import run

LIMIT_S = 300.0
LOOK_UP_S = 5.0
"""How often a wait looks up again which Service ports it waits for."""
PAUSE_S = 0.2
"""Shortest pause between two reads of the rules; after a longer read, the pause is as long as the read."""


def service_ports(dummies: Dummies, *more: Object) -> set[Target]:
    """Return the ports of Services that the rules should hold; only the IPv4 ones of dual-stack Services.

    A dummy Service without endpoints has no rules.

    :param more: further Services.
    """
    idle = {*dummies.without_endpoints}
    services = [service for number, service in dummies.services.items() if number not in idle]
    return {
        Target(ip, port["port"], port["protocol"].lower())
        for service in (*services, *more)
        for ip in _cluster_ips(service["spec"])
        for port in service["spec"]["ports"]
    }


def keep_existing(api: Api, ports: Set[Target]) -> set[Target]:
    """Return those of the ports that a Service with endpoints still has; all, if the Services must not be listed.

    :raises MachineError: the API cannot be reached.
    """
    slices: dict[tuple[str, str], list[Object]] = {}
    try:
        services = list(api.list("/api/v1/services"))
        for document in api.list("/apis/discovery.k8s.io/v1/endpointslices"):
            meta = document["metadata"]
            slices.setdefault((meta["namespace"], (meta.get("labels") or {}).get(OWNER, "")), []).append(document)
    except ApiError as error:
        if error.status != 403:
            raise
        return {*ports}
    existing = {
        Target(ip, port["port"], port["protocol"].lower())
        for service in services
        if choose_endpoints(slices.get((service["metadata"]["namespace"], service["metadata"]["name"]), []))
        for ip in list_ips(service)
        for port in service["spec"].get("ports") or ()
    }
    return existing & ports


def list_ips(service: Object) -> list[str]:
    """Return the addresses of a Service: ClusterIPs, external ones, and those of its load balancer."""
    spec, status = service["spec"], service.get("status") or {}
    ingress = (status.get("loadBalancer") or {}).get("ingress") or ()
    ips = [spec.get("clusterIP"), *(spec.get("clusterIPs") or ()), *(spec.get("externalIPs") or ())]
    return [ip for ip in (*ips, *(entry.get("ip") for entry in ingress)) if ip]


def _cluster_ips(spec: Object) -> list[str]:
    ips = spec.get("clusterIPs") or [spec.get("clusterIP", "")]
    return [ip for ip in ips if "." in ip] or [ip for ip in ips if ":" in ip]


def live_ports(node: Node | None = None, mode: str | None = None, backend: str | None = None) -> set[Target]:
    """Return the Service ports of the rules that kube-proxy writes, without those of leftover rules.

    :param node: the node (None: this machine).
    :param mode: the mode (None: detect it).
    :param backend: the backend (None: detect it).
    :raises MachineError: the rules cannot be read, or it is ambiguous which of them translate.
    """
    evidence = gather(None, node=node)
    finding = decide(evidence)
    if evidence.rules is None:
        raise MachineError("; ".join(evidence.unasked), "leave out --wait, or run it as root on a node")
    if finding.live and not (mode or backend):
        return {port for live in evidence.rules if str(live) == finding.live for port in live.services}
    mode, backend = mode or finding.mode, backend or only_backend(mode) or finding.backend
    if finding.sure == AMBIGUOUS and not (mode and backend):
        raise MachineError(f"ambiguous: {finding.reason}", f"settle it: {finding.settle}")
    return {port for live in evidence.rules if (live.mode, live.backend) == (mode, backend) for port in live.services}


def mode_ports(node: Node | None, mode: str, combine: Callable[..., set[Target]] = set.union) -> set[Target]:
    """Return the Service ports that a mode's rules translate, on any backend; none if the rules cannot be read.

    NodePorts do not count: a mode whose link holds the Services' addresses has them, too, on the node's own addresses.

    :param node: the node (None: this machine).
    :param combine: combines the ports of several backends; ``set.intersection`` leaves out those of leftover rules.
    """
    port_sets = [set(live.services) for live in gather(None, node=node).rules or () if live.mode == mode]
    ports = combine(*port_sets) if port_sets else set()
    mode_link = next((row.link for row in find_rows(mode)), None)
    if not mode_link or not ports:
        return ports
    links = json.loads(run("ip", "-json", "address", "show", netns=node.netns if node else None) or "[]")
    own = {info["local"] for link in links if link.get("ifname") != mode_link for info in link.get("addr_info", ())}
    return {port for port in ports if port.ip not in own}


def is_idle(metrics: str) -> bool:
    """Return whether kube-proxy has no sync to do, by its /metrics: no change is pending, and the last sync has ended.

    A kube-proxy that has not synced since its start is not idle: an earlier process wrote the present rules.

    Samples: ``kubeproxy_sync_proxy_rules_service_changes_pending 0`` and
    ``kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} 1.7e+09``.

    :param metrics: kube-proxy's answer, in Prometheus' text format.
    :raises MachineError: the text has another format.
    """
    values = read_sync_values(metrics)
    pending = sum(value for (name, _), value in values.items() if name.endswith("_changes_pending"))
    queued = {labels: value for (name, labels), value in values.items() if name == "last_queued_timestamp_seconds"}
    synced = [value for (name, _), value in values.items() if name == "last_timestamp_seconds"]
    if values and not any(synced):
        return False
    return not pending and all(
        values.get(("last_timestamp_seconds", labels), 0) >= value for labels, value in queued.items()
    )


def proxy_is_idle(node: Node | None = None) -> bool:
    """Return whether a node's kube-proxy has no sync to do; True if its metrics cannot be reached.

    :param node: the node (None: this machine).
    :raises MachineError: as :func:`is_idle`.
    """
    try:
        metrics = read_proxy("/metrics", netns=node.netns if node else None)
    except MachineError:
        return True
    return is_idle(metrics)


def wait_for_rules(
    required: Set[Target],
    removed: Set[Target] = frozenset(),
    limit_s: float = LIMIT_S,
    node: Node | None = None,
    read: Callable[[Node | None], Set[Target]] = live_ports,
    idle: Callable[[Node | None], bool] = proxy_is_idle,
    look_up: Callable[[], Set[Target]] | None = None,
) -> float:
    """Wait until the rules hold every required Service port and no removed one, and kube-proxy has no sync to do.

    :param removed: ports that the rules must not hold, unless they are also required.
    :param limit_s: the longest time to wait.
    :param node: the node (None: this machine).
    :param read: returns the Service ports that the rules hold now.
    :param idle: returns whether kube-proxy has no sync to do.
    :param look_up: returns the required ports anew: a Service may be deleted, or lose its endpoints, meanwhile.
    :return: how long it took, in seconds.
    :raises MachineError: the wait took longer (the error counts the missing and the remaining ports), or as
        :func:`is_idle`.
    """
    pause = threading.Event()
    started_s = looked_up_s = time.monotonic()
    to_do = len(required) + len(removed - required)
    with counting("Service ports that kube-proxy has written", to_do) as advance:
        while True:
            begun_s = time.monotonic()
            ports = read(node)
            ended_s = time.monotonic()
            is_late = ended_s - started_s > limit_s
            if look_up and required - ports and (is_late or ended_s - looked_up_s > LOOK_UP_S):
                required, looked_up_s = look_up(), time.monotonic()
            missing, left = required - ports, (removed - required) & ports
            while to_do > len(missing) + len(left):
                to_do -= 1
                advance()
            if not missing and not left and idle(node):
                return ended_s - started_s
            if is_late:
                raise _describe_delay(missing, left, limit_s)
            interrupts.wait(pause, max(PAUSE_S, ended_s - begun_s))


def _describe_delay(missing: Set[Target], left: Set[Target], limit_s: float) -> MachineError:
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
