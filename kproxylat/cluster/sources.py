"""The source addresses of packets on a node: a free part of its podCIDR."""

from __future__ import annotations

import json
from collections.abc import Iterable
from ipaddress import ip_network

from kproxylat.cluster.api import Api
from kproxylat.cluster.kubeconfig import Object
from kproxylat.errors import ApiError, MachineError
from kproxylat.node.addresses import find_free, read_taken
from kproxylat.node.node import Node
from kproxylat.results import IpNetwork
from kproxylat.system.processes import run

NODES = "/api/v1/nodes"
PODS = "/api/v1/pods"


def choose_source(
    api: Api,
    node: Node | None,
    addresses: int,
    family: int,
    endpoints: Iterable[str] = (),
    document: Object | None = None,
) -> IpNetwork:
    """Return a free part of a node's podCIDR: the last one, because pods get the first addresses.

    :param node: the node (None: its kernel cannot be asked from here; its pods are in the API).
    :param addresses: number of addresses in the part, without its first and last.
    :param family: 4 or 6.
    :param endpoints: endpoints of the Service under test, each ``IP:PORT``.
    :param document: the Node object (None: look it up).
    :raises MachineError: no part is free, or the API does not permit the look-up; the message is the reason.
    """
    try:
        document = document or find_node_object(api, node or Node(), family)
        pods = list(api.list(PODS, fieldSelector=f"spec.nodeName={document['metadata']['name']}"))
    except ApiError as error:
        if error.status != 403:
            raise
        raise MachineError(f"cannot list nodes and pods: {error}", error.remedy) from None
    pod_cidr = read_pod_cidr(document, family)
    # A bridge of pods has a route for its broadcast address.
    last = {ip_network(pod_cidr.broadcast_address): "the broadcast address"}
    taken = read_taken(node.netns, pod_cidr, bridged=True) if node else last
    pod_ips = [pod_ip.get("ip", "") for pod in pods for pod_ip in (pod.get("status") or {}).get("podIPs") or ()]
    hosts = [endpoint.rpartition(":")[0].strip("[]") for endpoint in endpoints]
    for user, ips in (("a pod", pod_ips), ("an endpoint", hosts)):
        own = [ip for ip in ips if ip not in ("", "None") and (":" in ip) == (family == 6)]
        taken |= {ip_network(ip): f"{user}, {ip}" for ip in own}
    return find_free(pod_cidr, taken, addresses)


def find_node_object(api: Api, node: Node, family: int) -> Object:
    """Return the Node object that has an address of this node's network namespace, or else the node's name.

    :raises ApiError: the nodes must not be listed.
    :raises MachineError: the cluster has no such node.
    """
    listed = json.loads(run("ip", "-json", f"-{family}", "address", "show", netns=node.netns) or "[]")
    own = {info["local"] for link in listed for info in link.get("addr_info", ())}
    objects = list(api.list(NODES))
    for document in objects:
        addresses = (document.get("status") or {}).get("addresses") or ()
        if any(address["type"] == "InternalIP" and address["address"] in own for address in addresses):
            return document
    for document in objects:
        if document["metadata"]["name"] == node.name:
            return document
    raise MachineError(
        f"none of the cluster's {len(objects)} nodes has an address of this one, or is named {node.name}"
    )


def read_pod_cidr(document: Object, family: int) -> IpNetwork:
    """Return the podCIDR of a Node object in an IP family.

    :raises MachineError: the node has no such podCIDR, for example because the cloud's network assigns pod addresses.
    """
    spec = document.get("spec") or {}
    for text in spec.get("podCIDRs") or [spec.get("podCIDR") or ""]:
        try:
            network = ip_network(text)
        except ValueError:
            continue
        if network.version == family:
            return network
    raise MachineError(f"node {document['metadata']['name']} has no IPv{family} podCIDR")
