"""The Service under test, looked up in the cluster: its address, ports and endpoints."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from kproxylat.cluster import Api, Object
from kproxylat.errors import MachineError
from kproxylat.model import Destination, Target, join_host_port

SERVICE = "worker"


def read_target(
    api: Api, name: str = SERVICE, port: str | None = None, protocol: str = "udp", family: int | None = None
) -> Target:
    """Look a Service up in the API's namespace.

    :param port: number or name of its port (None: the only one; one number may have several protocols).
    :param protocol: what is sent, "udp" or "tcp".
    :param family: which of its ClusterIPs, 4 or 6 (None: its first).
    :return: where to send to, by this protocol, whether the Service has such a port or not: see :func:`miss_path`.
    :raises MachineError: it is not there, or has no such ClusterIP, no such port, several, or no ready endpoint.
    """
    where = f"{api.namespace}/{name}"
    service = api.find(f"/api/v1/namespaces/{api.namespace}/services/{name}")
    if service is None:
        raise MachineError(
            f"there is no Service {name} in namespace {api.namespace} of context {api.context}",
            "pass --service NAME -n NAMESPACE, or make one: kproxylat services create --count 0 --worker",
        )
    ip = _cluster_ip(where, service["spec"], family)
    kind = f"IPv{ip_address(ip).version}"
    ports = _choose(where, service["spec"].get("ports") or [], port)
    selector = f"kubernetes.io/service-name={name}"
    path = f"/apis/discovery.k8s.io/v1/namespaces/{api.namespace}/endpointslices"
    wanted = {each.get("name") or "" for each in ports if each["protocol"] == protocol.upper()} or None
    endpoints = sorted(set(_ready(api.list(path, labelSelector=selector), kind, wanted)))
    if not endpoints:
        raise MachineError(
            f"Service {where} has no ready {kind} endpoint: kube-proxy rejects its packets",
            f"look: kubectl get endpointslices -n {api.namespace} -l {selector}",
        )
    return Target(ip, ports[0]["port"], protocol, where, tuple(map(_text, ports)), tuple(endpoints))


def destination(target: Target) -> Destination:
    """Return where to send to."""
    return Destination(target.ip, target.port or 0, target.protocol or "")


def miss_path(target: Target) -> str | None:
    """Say so where the Service has no port of what is sent, and how to add one; None where it has."""
    protocol = (target.protocol or "").upper()
    if any(each.endswith(f"/{protocol}") for each in target.ports):
        return None
    namespace, _, name = (target.service or "").partition("/")
    added = f'{{"name":"kproxylat-{target.protocol}","port":{target.port},"protocol":"{protocol}"}}'
    patch = f'[{{"op":"add","path":"/spec/ports/-","value":{added}}}]'
    ports = ", ".join(target.ports)
    return (
        f"miss path: Service {target.service} has no {protocol} port (but {ports}), and {protocol} is sent.\n"
        f"      To add one: kubectl patch service {name} -n {namespace} --type=json -p '{patch}'\n"
        "      or make a worker that has both: kproxylat services create --count 0 --worker -n NAMESPACE"
    )


def _cluster_ip(where: str, spec: Object, family: int | None) -> str:
    if spec.get("type") == "ExternalName":
        raise MachineError(f"Service {where} has no ClusterIP: it is an ExternalName", "pass another --service")
    addresses = spec.get("clusterIPs") or [spec.get("clusterIP") or ""]
    if addresses[0] in ("", "None"):
        raise MachineError(f"Service {where} has no ClusterIP: it is headless", "pass another --service")
    for each in addresses:
        if family in (None, ip_address(each).version):
            return str(each)
    raise MachineError(
        f"Service {where} has no IPv{family} ClusterIP, but {addresses[0]}",
        "leave out --family, or, on a dual-stack cluster, give it spec.ipFamilyPolicy: PreferDualStack",
    )


def _text(port: Object) -> str:
    return f"{port.get('name') or ''} {port['port']}/{port['protocol']}".strip()


def _choose(where: str, ports: list[Object], wanted: str | None) -> list[Object]:
    """Return the ports of one number: of each protocol one."""
    named = [each for each in ports if wanted in (None, str(each["port"]), each.get("name"))]
    numbers = sorted({each["port"] for each in named})
    if len(numbers) != 1:
        listed = ", ".join(map(_text, ports)) or "none"
        lacking = f"has no port {wanted}" if wanted else "has several ports" if ports else "has no port"
        raise MachineError(f"Service {where} {lacking}; its ports: {listed}", "pass --port NUMBER or NAME")
    return [each for each in ports if each["port"] == numbers[0]]


def _ready(slices: Iterator[Object], kind: str, port_names: set[str] | None) -> Iterator[str]:
    """Give the ready endpoints as ``IP:PORT``.

    Kubernetes, discovery/v1: a condition ``ready`` that is absent is to be taken for true; a slice's port belongs to
    the Service's port of the same name.

    :param kind: "IPv4" or "IPv6".
    :param port_names: the ports whose endpoints count (None: all).
    """
    for each in slices:
        if each.get("addressType") != kind:
            continue
        ports = [
            port for port in each.get("ports") or () if port_names is None or (port.get("name") or "") in port_names
        ]
        for endpoint in each.get("endpoints") or ():
            if (endpoint.get("conditions") or {}).get("ready", True) is False:
                continue
            yield from (join_host_port(endpoint["addresses"][0], port["port"]) for port in ports if port.get("port"))
