"""The Service under test, as the cluster describes it: its address, ports and endpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address

from kproxylat.cluster.api import Api, join_path
from kproxylat.cluster.kubeconfig import Object
from kproxylat.errors import MachineError
from kproxylat.results import Target, join_host_port

SERVICE = "worker"
SELECTOR = "kubernetes.io/service-name"


def read_target(
    api: Api, name: str = SERVICE, port: str | None = None, protocol: str = "udp", family: int | None = None
) -> Target:
    """Look up a Service in the API's namespace.

    :param port: number or name of the Service's port (None: the only number, perhaps with several protocols).
    :param protocol: protocol of the packets, "udp" or "tcp".
    :param family: IP family of the ClusterIP, 4 or 6 (None: that of the first ClusterIP).
    :return: the target, even if the Service has no port of this protocol: see :func:`miss_path`.
    :raises MachineError: the Service does not exist, or has no such ClusterIP, not exactly one such port, or no ready
        endpoint.
    """
    full_name = f"{api.namespace}/{name}"
    service = api.find(join_path("/api/v1/namespaces", api.namespace, "services", name))
    if service is None:
        raise MachineError(
            f"Service {name} not found in namespace {api.namespace} of context {api.context}",
            "pass --service NAME -n NAMESPACE, or create one: kproxylat services create --count 0 --worker",
        )
    ip = _choose_cluster_ip(full_name, service["spec"], family)
    kind = f"IPv{ip_address(ip).version}"
    ports = _choose_ports(full_name, service["spec"].get("ports") or [], port)
    names = {port.get("name") or "" for port in ports if port["protocol"] == protocol.upper()} or None
    slices = _list_slices(api, api.namespace, name, kind)
    endpoints = sorted(set(_read_endpoints(slices, names)))
    if not endpoints:
        raise MachineError(
            f"Service {full_name} has no ready {kind} endpoint: kube-proxy rejects its packets",
            f"look: kubectl get endpointslices -n {api.namespace} -l {SELECTOR}={name}",
        )
    return Target(ip, ports[0]["port"], protocol, full_name, tuple(map(_describe, ports)), tuple(endpoints))


def _list_slices(api: Api, namespace: str, service: str, kind: str) -> list[Object]:
    path = join_path("/apis/discovery.k8s.io/v1/namespaces", namespace, "endpointslices")
    slices = api.list(path, labelSelector=f"{SELECTOR}={service}")
    return [document for document in slices if document.get("addressType") == kind]


def find_hazards(api: Api, target: Target, node_name: str) -> list[str]:
    """Return what the endpoints of a looked-up target do to its packets on a node, in words; usually nothing.

    :param node_name: the node's name in the cluster.
    :raises ApiError: the Service was deleted, or must not be read.
    """
    namespace, _, name = (target.service or "").partition("/")
    service = api.get(join_path("/api/v1/namespaces", namespace, "services", name))
    slices = _list_slices(api, namespace, name, f"IPv{ip_address(target.ip).version}")
    endpoints = [endpoint for _, endpoint in choose_endpoints(slices)]
    hazards = []
    if endpoints and all(not _has(endpoint, "ready", True) for endpoint in endpoints):
        hazards.append(f"all endpoints of Service {target.service} terminate; kube-proxy uses them while they serve")
    is_local = service["spec"].get("internalTrafficPolicy") == "Local"
    if is_local and all(endpoint.get("nodeName") != node_name for endpoint in endpoints):
        policy = "internalTrafficPolicy Local and no endpoint on this node"
        hazards.append(f"Service {target.service} has {policy} ({node_name}): kube-proxy drops its packets here")
    return hazards


def miss_path(target: Target) -> str | None:
    """Return a note, with the commands that help, if the Service has no port of the packets' protocol; else None."""
    protocol = (target.protocol or "").upper()
    if any(port.endswith(f"/{protocol}") for port in target.ports):
        return None
    namespace, _, name = (target.service or "").partition("/")
    port = f'{{"name":"kproxylat-{target.protocol}","port":{target.port},"protocol":"{protocol}"}}'
    patch = f'[{{"op":"add","path":"/spec/ports/-","value":{port}}}]'
    ports = ", ".join(target.ports)
    return (
        f"miss path: Service {target.service} has no {protocol} port, only {ports}; the packets are {protocol}.\n"
        f"      To add one: kubectl patch service {name} -n {namespace} --type=json -p '{patch}'\n"
        "      or create a worker that has both: kproxylat services create --count 0 --worker -n NAMESPACE"
    )


def _choose_cluster_ip(service: str, spec: Object, family: int | None) -> str:
    if spec.get("type") == "ExternalName":
        raise MachineError(f"Service {service} has no ClusterIP: it is an ExternalName", "pass another --service")
    addresses = spec.get("clusterIPs") or [spec.get("clusterIP") or ""]
    if {"", "None"}.intersection(addresses):
        raise MachineError(f"Service {service} has no ClusterIP: it is headless", "pass another --service")
    for address in addresses:
        if family in (None, ip_address(address).version):
            return str(address)
    raise MachineError(
        f"Service {service} has no IPv{family} ClusterIP, but {addresses[0]}",
        "leave out --family, or, on a dual-stack cluster, give it spec.ipFamilyPolicy: PreferDualStack",
    )


def _describe(port: Object) -> str:
    return f"{port.get('name') or ''} {port['port']}/{port['protocol']}".strip()


def _choose_ports(service: str, ports: list[Object], wish: str | None) -> list[Object]:
    """Return the ports of one number, one for each protocol."""
    numbers = {port["port"] for port in ports if wish in (None, str(port["port"]), port.get("name"))}
    if len(numbers) != 1:
        listed = ", ".join(map(_describe, ports)) or "none"
        problem = f"has no port {wish}" if wish else "has several ports" if ports else "has no port"
        raise MachineError(f"Service {service} {problem}; its ports: {listed}", "pass --port NUMBER or NAME")
    return [port for port in ports if port["port"] in numbers]


def choose_endpoints(slices: Iterable[Object]) -> list[tuple[Object, Object]]:
    """Return the endpoints that kube-proxy uses, each with its slice: the ready ones, or else those that still serve.

    Kubernetes, discovery/v1: a missing condition ``ready`` means true. Only an endpoint that terminates serves without
    being ready.
    """
    pairs = [(document, endpoint) for document in slices for endpoint in document.get("endpoints") or ()]
    ready = [(document, endpoint) for document, endpoint in pairs if _has(endpoint, "ready", True)]
    return ready or [
        (document, endpoint)
        for document, endpoint in pairs
        if _has(endpoint, "serving", False) and _has(endpoint, "terminating", False)
    ]


def _has(endpoint: Object, condition: str, default: bool) -> bool:
    state = (endpoint.get("conditions") or {}).get(condition)
    return default if state is None else bool(state)


def _read_endpoints(slices: Iterable[Object], names: set[str] | None) -> Iterator[str]:
    """Return the endpoints that kube-proxy uses for these port names (None: all) as ``IP:PORT``.

    A slice's port belongs to the Service's port of the same name.
    """
    for document, endpoint in choose_endpoints(slices):
        for port in document.get("ports") or ():
            if port.get("port") and endpoint["addresses"] and (names is None or (port.get("name") or "") in names):
                yield join_host_port(endpoint["addresses"][0], port["port"])
