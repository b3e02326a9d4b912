"""The Service under test, as the cluster describes it: its address, ports and endpoints."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from kproxylat.cluster.api import Api
from kproxylat.cluster.kubeconfig import Object
from kproxylat.errors import MachineError
from kproxylat.results import Destination, Target, join_host_port

SERVICE = "worker"


def read_target(
    api: Api, name: str = SERVICE, port: str | None = None, protocol: str = "udp", family: int | None = None
) -> Target:
    """Look a Service up in the API's namespace.

    :param port: number or name of its port (None: the only one; one number may have several protocols).
    :param protocol: protocol of the packets, "udp" or "tcp".
    :param family: IP family of the ClusterIP, 4 or 6 (None: the first one's).
    :return: the target, even if the Service has no port of this protocol: see :func:`miss_path`.
    :raises MachineError: the Service does not exist, or has no such ClusterIP, no such port, several, or no ready
        endpoint.
    """
    where = f"{api.namespace}/{name}"
    service = api.find(f"/api/v1/namespaces/{api.namespace}/services/{name}")
    if service is None:
        raise MachineError(
            f"Service {name} not found in namespace {api.namespace} of context {api.context}",
            "pass --service NAME -n NAMESPACE, or create one: kproxylat services create --count 0 --worker",
        )
    ip = _cluster_ip(where, service["spec"], family)
    kind = f"IPv{ip_address(ip).version}"
    ports = _choose(where, service["spec"].get("ports") or [], port)
    selector = f"kubernetes.io/service-name={name}"
    path = f"/apis/discovery.k8s.io/v1/namespaces/{api.namespace}/endpointslices"
    names = {each.get("name") or "" for each in ports if each["protocol"] == protocol.upper()} or None
    endpoints = sorted(set(_ready(api.list(path, labelSelector=selector), kind, names)))
    if not endpoints:
        raise MachineError(
            f"Service {where} has no ready {kind} endpoint: kube-proxy rejects its packets",
            f"look: kubectl get endpointslices -n {api.namespace} -l {selector}",
        )
    return Target(ip, ports[0]["port"], protocol, where, tuple(map(_text, ports)), tuple(endpoints))


def destination(target: Target) -> Destination:
    """Return the target's address, port and protocol."""
    return Destination(target.ip, target.port or 0, target.protocol or "")


def miss_path(target: Target) -> str | None:
    """Return a note, with the commands that help, if the Service has no port of the packets' protocol; else None."""
    protocol = (target.protocol or "").upper()
    if any(each.endswith(f"/{protocol}") for each in target.ports):
        return None
    namespace, _, name = (target.service or "").partition("/")
    added = f'{{"name":"kproxylat-{target.protocol}","port":{target.port},"protocol":"{protocol}"}}'
    patch = f'[{{"op":"add","path":"/spec/ports/-","value":{added}}}]'
    ports = ", ".join(target.ports)
    return (
        f"miss path: Service {target.service} has no {protocol} port, only {ports}; the packets are {protocol}.\n"
        f"      To add one: kubectl patch service {name} -n {namespace} --type=json -p '{patch}'\n"
        "      or create a worker that has both: kproxylat services create --count 0 --worker -n NAMESPACE"
    )


def _cluster_ip(where: str, spec: Object, family: int | None) -> str:
    if spec.get("type") == "ExternalName":
        raise MachineError(f"Service {where} has no ClusterIP: it is an ExternalName", "pass another --service")
    addresses = spec.get("clusterIPs") or [spec.get("clusterIP") or ""]
    if addresses[0] in ("", "None"):
        raise MachineError(f"Service {where} has no ClusterIP: it is headless", "pass another --service")
    for address in addresses:
        if family in (None, ip_address(address).version):
            return str(address)
    raise MachineError(
        f"Service {where} has no IPv{family} ClusterIP, but {addresses[0]}",
        "leave out --family, or, on a dual-stack cluster, give it spec.ipFamilyPolicy: PreferDualStack",
    )


def _text(port: Object) -> str:
    return f"{port.get('name') or ''} {port['port']}/{port['protocol']}".strip()


def _choose(where: str, ports: list[Object], port: str | None) -> list[Object]:
    """Return the ports of one number, one for each protocol."""
    named = [each for each in ports if port in (None, str(each["port"]), each.get("name"))]
    numbers = sorted({each["port"] for each in named})
    if len(numbers) != 1:
        listed = ", ".join(map(_text, ports)) or "none"
        lacking = f"has no port {port}" if port else "has several ports" if ports else "has no port"
        raise MachineError(f"Service {where} {lacking}; its ports: {listed}", "pass --port NUMBER or NAME")
    return [each for each in ports if each["port"] == numbers[0]]


def _ready(slices: Iterator[Object], kind: str, port_names: set[str] | None) -> Iterator[str]:
    """Return the ready endpoints as ``IP:PORT``.

    Kubernetes, discovery/v1: a missing condition ``ready`` means true; a slice's port belongs to the Service's port of
    the same name.

    :param kind: "IPv4" or "IPv6".
    :param port_names: the ports whose endpoints count (None: all).
    """
    for part in slices:
        if part.get("addressType") != kind:
            continue
        ports = [
            port for port in part.get("ports") or () if port_names is None or (port.get("name") or "") in port_names
        ]
        for endpoint in part.get("endpoints") or ():
            if (endpoint.get("conditions") or {}).get("ready", True) is False:
                continue
            yield from (join_host_port(endpoint["addresses"][0], port["port"]) for port in ports if port.get("port"))
