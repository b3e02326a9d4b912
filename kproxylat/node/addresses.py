"""Addresses that the node's routes leave free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import ip_network

from kproxylat.errors import MachineError
from kproxylat.results import IpNetwork
from kproxylat.system.processes import run

Taken = Mapping[IpNetwork, str]
"""A network or address -> what uses it."""


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
