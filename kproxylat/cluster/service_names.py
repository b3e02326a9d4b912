"""The names of the Services that addresses and ports lead to, as the cluster's API has them."""

from __future__ import annotations

from kproxylat.cluster.api import Api
from kproxylat.cluster.sync import list_ips
from kproxylat.console import plain_line
from kproxylat.results import Target


def read_names(api: Api) -> dict[str, tuple[str, str]]:
    """Return the Services of all namespaces by address.

    :return: ``IP:PORT/PROTOCOL``, or ``:PORT/PROTOCOL`` of a NodePort -> "service" for a ClusterIP, "address" for
        another address, and ``namespace/name:port``.
    :raises MachineError: the Services must not be listed, or the API cannot be reached.
    """
    names = {}
    for service in api.list("/api/v1/services"):
        meta, spec = service["metadata"], service["spec"]
        cluster_ips = {spec.get("clusterIP"), *(spec.get("clusterIPs") or ())}
        for port in spec.get("ports") or ():
            name = plain_line(
                f"{meta['namespace']}/{meta['name']}{':' if port.get('name') else ''}{port.get('name', '')}"
            )
            protocol = port.get("protocol", "TCP").lower()
            for ip in list_ips(service):
                kind = "service" if ip in cluster_ips else "address"
                names[str(Target(ip, port["port"], protocol))] = kind, name
            if port.get("nodePort"):
                names[f":{port['nodePort']}/{protocol}"] = "address", name
    return names
