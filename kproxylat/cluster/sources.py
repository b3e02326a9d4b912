"""The source addresses of packets on a node: a free part of its podCIDR."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from ipaddress import ip_network

from kproxylat.cluster.api import Api, Object
from kproxylat.errors import ApiError, MachineError
from kproxylat.node.node import Node
from kproxylat.results import IpNetwork
from kproxylat.system.processes import run

NODES = "/api/v1/nodes"
PODS = "/api/v1/pods"
Taken = Mapping[IpNetwork, str]
"""A network or address -> what uses it."""


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


def read_taken(netns: str | None, network: IpNetwork, bridged: bool) -> dict[IpNetwork, str]:
    """Return the parts of a network that are in use: by routes of the same size or smaller, and by neighbours.

    A larger route (the default route, clusterCIDR's) does not count.

    :param bridged: whether the network's own route does not count, either, if it has no gateway: it leads to the bridge
        of this node's pods.
    """
    routes = json.loads(run("ip", "-json", f"-{network.version}", "route", "show", "table", "all", netns=netns) or "[]")
    neighbours = json.loads(run("ip", "-json", f"-{network.version}", "neighbour", "show", netns=netns) or "[]")
    taken = {}
    for route in routes:
        part = _parse(route["dst"])
        bridge = bridged and part == network and not {"gateway", "via", "nexthops", "type"} & set(route)
        if part and part.overlaps(network) and part.prefixlen >= network.prefixlen and not bridge:
            taken[part] = f"a route, {route['dst']} dev {route.get('dev', 'none')}"
    for neighbour in neighbours:
        part = _parse(neighbour["dst"])
        if part and part.overlaps(network) and "FAILED" not in neighbour.get("state", ()):
            taken[part] = f"a neighbour, {neighbour['dst']} dev {neighbour.get('dev', 'none')}"
    return taken


def _parse(text: str) -> IpNetwork | None:
    return None if text == "default" else ip_network(text)


def find_free(network: IpNetwork, taken: Taken, addresses: int) -> IpNetwork:
    """Return the last part of a network that is large enough and free.

    :param addresses: how many addresses it needs beside its first and last.
    :raises MachineError: no such part is free.
    """
    prefix = network.max_prefixlen - (addresses + 1).bit_length()
    if prefix > network.prefixlen:
        size = 1 << (network.max_prefixlen - prefix)
        for start in range(int(network.broadcast_address) + 1 - size, int(network.network_address) - 1, -size):
            part = type(network)((start, prefix))
            if not any(part.overlaps(each) for each in taken):
                return part
    raise MachineError(f"podCIDR {network} has no free part of {addresses} addresses")


def check_free(netns: str | None, source: IpNetwork) -> None:
    """Check that nothing on the node uses an address of a network, before kproxylat routes it to its lab.

    :raises MachineError: a route or a neighbour does.
    """
    for user in read_taken(netns, source, bridged=False).values():
        raise MachineError(f"sources {source} are not free: {user}", "pass a free part of podCIDR: --source CIDR")
