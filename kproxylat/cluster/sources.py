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


def choose_source(api: Api, node: Node, addresses: int, family: int, endpoints: Iterable[str] = ()) -> IpNetwork:
    """Return a free part of the node's podCIDR: the last one, because pods get the first addresses.

    :param addresses: how many addresses it needs beside its first and last.
    :param family: 4 or 6.
    :param endpoints: endpoints of the Service under test, each ``IP:PORT``.
    :raises MachineError: no part is free, or the API does not tell; the message is the reason.
    """
    try:
        document = _find_object(api, node, family)
        pods = list(api.list(PODS, fieldSelector=f"spec.nodeName={document['metadata']['name']}"))
    except ApiError as error:
        if error.status != 403:
            raise
        raise MachineError(f"cannot list nodes and pods: {error}", error.remedy) from None
    pod_cidr = read_pod_cidr(document, family)
    taken = read_taken(node.netns, pod_cidr, bridged=True)
    ips = [each.get("ip", "") for pod in pods for each in (pod.get("status") or {}).get("podIPs") or ()]
    hosts = (each.rpartition(":")[0].strip("[]") for each in endpoints)
    taken |= _hosts(ips, "a pod", family) | _hosts(hosts, "an endpoint", family)
    return find_free(pod_cidr, taken, addresses)


def _hosts(addresses: Iterable[str], user: str, family: int) -> dict[IpNetwork, str]:
    return {ip_network(each): f"{user}, {each}" for each in addresses if each and (":" in each) == (family == 6)}


def _find_object(api: Api, node: Node, family: int) -> Object:
    """Return the Node object that has an address of this node's network namespace, or else the node's name."""
    listed = json.loads(run("ip", "-json", f"-{family}", "address", "show", netns=node.netns) or "[]")
    own = {info["local"] for link in listed for info in link.get("addr_info", ())}
    objects = list(api.list(NODES))
    for document in objects:
        addresses = (document.get("status") or {}).get("addresses") or ()
        if any(each["type"] == "InternalIP" and each["address"] in own for each in addresses):
            return document
    for document in objects:
        if document["metadata"]["name"] == node.name:
            return document
    raise MachineError(
        f"none of the cluster's {len(objects)} nodes has an address of this one, or is named {node.name}"
    )


def read_pod_cidr(document: Object, family: int) -> IpNetwork:
    """Return a Node object's podCIDR of an IP family.

    :raises MachineError: the node has none, for example because the cloud's network gives pods their addresses.
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
