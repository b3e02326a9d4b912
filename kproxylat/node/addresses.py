"""Free addresses of a network, by the routes and neighbours of the node."""

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
    """Return the parts of a network that routes and neighbours use.

    A route to a larger network, such as the default route, does not count.

    :param netns: the node's network namespace (None: the current one).
    :param bridged: also ignore the route to the network itself if it has no gateway, since it leads to the bridge of
        the node's pods.
    :raises CommandError: ip(8) cannot list them.
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
    """Return the last free part of a network.

    :param addresses: how many addresses the part needs besides its first and last.
    :raises MachineError: no part of this size is free.
    """
    prefix = network.max_prefixlen - (addresses + 1).bit_length()
    if prefix > network.prefixlen:
        size = 1 << (network.max_prefixlen - prefix)
        for start in range(int(network.broadcast_address) + 1 - size, int(network.network_address) - 1, -size):
            part = type(network)((start, prefix))
            if not any(part.overlaps(used) for used in taken):
                return part
    raise MachineError(f"podCIDR {network} has no free part of {addresses} addresses")


def check_free(netns: str | None, source: IpNetwork) -> None:
    """Check that nothing on the node uses the source addresses, before kproxylat routes them to its client.

    :raises MachineError: a route or a neighbour uses one.
    """
    for user in read_taken(netns, source, bridged=False).values():
        raise MachineError(f"sources {source} are not free: {user}", "pass a free part of podCIDR: --source CIDR")
