"""Which addresses packets come from on a node: a part of its podCIDR that nobody else has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from ipaddress import ip_network

from kproxylat.cluster import Api, Object
from kproxylat.errors import ApiError, MachineError
from kproxylat.model import IpNetwork
from kproxylat.nodes import Node
from kproxylat.proc import run

NODES = "/api/v1/nodes"
PODS = "/api/v1/pods"
Taken = Mapping[IpNetwork, str]
"""A network or address -> by what it is taken."""


def choose_source(api: Api, node: Node, addresses: int, family: int, endpoints: Iterable[str] = ()) -> IpNetwork:
    """Return a free slice of the node's podCIDR: the last one, as addresses are given out from the first on.

    :param addresses: how many it has to have beside its first and last.
    :param family: 4 or 6.
    :param endpoints: of the Service under test, ``IP:PORT`` each.
    :raises MachineError: there is none, or the API does not say; the message is the reason.
    """
    try:
        document = _find_object(api, node, family)
        pods = list(api.list(PODS, fieldSelector=f"spec.nodeName={document['metadata']['name']}"))
    except ApiError as error:
        if error.status != 403:
            raise
        raise MachineError(f"nodes and pods cannot be listed: {error}", error.remedy) from None
    pod_cidr = read_pod_cidr(document, family)
    taken = read_taken(node.netns, pod_cidr, bridged=True)
    ips = [each.get("ip", "") for pod in pods for each in (pod.get("status") or {}).get("podIPs") or ()]
    hosts = (each.rpartition(":")[0].strip("[]") for each in endpoints)
    taken |= _hosts(ips, "a pod", family) | _hosts(hosts, "an endpoint", family)
    return find_free(pod_cidr, taken, addresses)


def _hosts(addresses: Iterable[str], what: str, family: int) -> dict[IpNetwork, str]:
    return {ip_network(each): f"{what}, {each}" for each in addresses if each and (":" in each) == (family == 6)}


def _find_object(api: Api, node: Node, family: int) -> Object:
    """Return the Node object that has an address of this node's network namespace, or else its name."""
    listed = json.loads(run("ip", "-json", f"-{family}", "address", "show", netns=node.netns) or "[]")
    own = {info["local"] for link in listed for info in link.get("addr_info", ())}
    objects = list(api.list(NODES))
    for each in objects:
        addresses = (each.get("status") or {}).get("addresses") or ()
        if any(one["type"] == "InternalIP" and one["address"] in own for one in addresses):
            return each
    for each in objects:
        if each["metadata"]["name"] == node.name:
            return each
    raise MachineError(
        f"none of the cluster's {len(objects)} nodes has an address of this one, or is named {node.name}"
    )


def read_pod_cidr(document: Object, family: int) -> IpNetwork:
    """Return a Node object's podCIDR of an IP family.

    :raises MachineError: it has none, as where the cloud's network gives pods their addresses.
    """
    spec = document.get("spec") or {}
    for each in spec.get("podCIDRs") or [spec.get("podCIDR") or ""]:
        try:
            found = ip_network(each)
        except ValueError:
            continue
        if found.version == family:
            return found
    raise MachineError(f"node {document['metadata']['name']} has no IPv{family} podCIDR")


def read_taken(netns: str | None, network: IpNetwork, bridged: bool) -> dict[IpNetwork, str]:
    """Return what is taken of a network: by routes of the same size or smaller, and by neighbours.

    A larger route (the default, clusterCIDR's) takes nothing.

    :param bridged: nor does the network's own, if it has no gateway: it leads to the bridge of this node's pods.
    """
    routes = json.loads(run("ip", "-json", f"-{network.version}", "route", "show", "table", "all", netns=netns) or "[]")
    neighbours = json.loads(run("ip", "-json", f"-{network.version}", "neighbour", "show", netns=netns) or "[]")
    taken = {}
    for each in routes:
        place = _parse(each["dst"])
        bridge = bridged and place == network and not {"gateway", "via", "nexthops"} & set(each) and "type" not in each
        if place and place.overlaps(network) and place.prefixlen >= network.prefixlen and not bridge:
            taken[place] = f"a route, {each['dst']} dev {each.get('dev', 'none')}"
    for each in neighbours:
        place = _parse(each["dst"])
        if place and place.overlaps(network) and "FAILED" not in each.get("state", ()):
            taken[place] = f"a neighbour, {each['dst']} dev {each.get('dev', 'none')}"
    return taken


def _parse(text: str) -> IpNetwork | None:
    return None if text == "default" else ip_network(text)


def find_free(network: IpNetwork, taken: Taken, addresses: int) -> IpNetwork:
    """Return the last part of a network that is large enough and free.

    :param addresses: how many it has to have beside its first and last.
    :raises MachineError: there is none.
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
    """Make sure that nothing on the node has an address of a network, before it is routed to us.

    :raises MachineError: something has.
    """
    for what in read_taken(netns, source, bridged=False).values():
        raise MachineError(f"sources {source} are not free: {what}", "pass a free part of podCIDR: --source CIDR")
