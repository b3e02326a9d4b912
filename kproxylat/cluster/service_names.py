"""The names of the Services that addresses and ports lead to, as the cluster's API has them."""

from __future__ import annotations

from kproxylat.cluster.api import Api
from kproxylat.cluster.kubeconfig import Object
from kproxylat.cluster.sync import list_ips
from kproxylat.console import plain_line
from kproxylat.results import Target

_LONGEST = 200
"""Characters of a name; Kubernetes allows 191."""


def read_names(api: Api) -> dict[str, tuple[str, str]]:
    """Return the Services of all namespaces by address.

    :return: ``IP:PORT/PROTOCOL``, or ``:PORT/PROTOCOL`` of a NodePort -> "service" for a ClusterIP, "address" for
        another address, and ``namespace/name:port``.
    :raises MachineError: the Services must not be listed, or the API cannot be reached, or its answer is invalid.
    """
    names = dict[str, tuple[str, str]]()
    for service in api.list("/api/v1/services"):
        names |= _name_ports(service)
    return names


def _name_ports(service: Object) -> dict[str, tuple[str, str]]:
    names = {}
    meta, spec = service["metadata"], service["spec"]
    cluster_ips = {spec.get("clusterIP"), *(spec.get("clusterIPs") or ())}
    for port in spec.get("ports") or ():
        end = f":{port['name']}" if port.get("name") else ""
        name = plain_line(f"{meta['namespace']}/{meta['name']}{end}")[:_LONGEST]
        protocol = port.get("protocol", "TCP").lower()
        for ip in list_ips(service):
            names[str(Target(ip, port["port"], protocol))] = "service" if ip in cluster_ips else "address", name
        if port.get("nodePort"):
            names[f":{port['nodePort']}/{protocol}"] = "address", name
    return names
