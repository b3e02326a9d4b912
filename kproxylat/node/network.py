"""The network namespaces and veth pairs of a run, and their removal.

    client [pod0] ----- [kpl-pod] node [kpl-be] ----- [be0] backend

The packets enter the node as those of a pod do. In the lab, kproxylat creates all three namespaces; on a real node it
creates the client's only, and there is no backend. Addresses are static and neighbours fixed, so that only the traffic
under test passes.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from kproxylat.errors import MachineError
from kproxylat.results import IpNetwork
from kproxylat.system import interrupts
from kproxylat.system.processes import run

PREFIX = "kproxylat-"
CLIENT, NODE, BACKEND = f"{PREFIX}client", f"{PREFIX}node", f"{PREFIX}backend"
POD_LINK, POD_GATEWAYS = "kpl-pod", {4: "169.254.77.1", 6: "fe80::4b:1"}
"""The usual name of the node's end of the client's link, and the address that each end uses for the other one."""
NODE_LINK = "kpl-node"
"""The link that makes the source addresses local to the node, if the origin is "node"."""
FORWARDING = {
    4: ("net.ipv4.ip_forward=1", "net.ipv4.icmp_ratemask=0"),
    6: ("net.ipv6.conf.all.forwarding=1", "net.ipv6.icmp.ratemask=2"),
}
"""Settings of the lab's node. The kernel then answers each rejected packet, not one a second, so that all are counted.
(For IPv6 the mask is a list; 2 is Packet Too Big.) Kernel, Documentation/networking/ip-sysctl.rst."""
BACKEND_LINK = "kpl-be"
NETNS = Path("/run/netns")
MAC = {"pod0": "02:00:00:00:4b:01", POD_LINK: "02:00:00:00:4b:02", BACKEND_LINK: "02:00:00:00:4b:03"}
MAC["be0"] = "02:00:00:00:4b:04"


@dataclass(frozen=True)
class Network:
    """The namespaces of a run.

    :param client: the client's (None: the run sends no packets).
    :param node: the node's, a name or a path (None: the current one).
    :param backend: the backend's (None: outside the lab).
    :param origin: who sends: a "pod", or the "node", which then owns the source addresses.
    :param family: the IP family, 4 or 6.
    :param skip: how many source addresses earlier runs in a kept lab have used.
    :param pod_link: the name of the node's end of the client's link.
    """

    client: str | None
    node: str | None
    backend: str | None
    origin: str = "pod"
    family: int = 4
    skip: int = 0
    pod_link: str = POD_LINK

    @property
    def is_lab(self) -> bool:
        """Whether the node is a namespace that kproxylat created."""
        return self.backend is not None


@contextmanager
def _claim(name: str) -> Iterator[None]:
    """Hold a namespace, so that another run does not remove it as a leftover even if the lock's file was removed.

    :raises MachineError: another run holds it.
    """
    with (NETNS / name).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MachineError(f"another run is under way: it holds {name}", "wait for its end") from None
        yield


def find_leftovers() -> list[str]:
    """Return the namespaces and links of an interrupted run, or of one that kept its lab."""
    names, links = sorted(path.name for path in NETNS.glob(f"{PREFIX}*")), list_links()
    return names + [link for link in (POD_LINK, BACKEND_LINK, NODE_LINK) if link in links]


def list_links() -> list[str]:
    """Return the links of this network namespace; /sys/class/net has those of the one in which it was mounted."""
    return [name for _, name in socket.if_nameindex()]


def remove_leftovers() -> list[str]:
    """Remove the leftovers, and with them their rules, routes and pktgen threads.

    :return: the names of what was removed.
    :raises MachineError: some cannot be removed (all others are), or belong to another run that is under way.
    """
    leftovers = find_leftovers()
    if CLIENT in leftovers:
        with _claim(CLIENT):
            pass
    if leftovers:
        # A link may disappear with its namespace: delete all, and check afterwards.
        with suppress(MachineError):
            lines = [" ".join(_delete(name)) + "\n" for name in leftovers]
            run("ip", "-force", "-batch", "-", stdin="".join(lines), ok=(0, 1))
    failures = []
    for name in find_leftovers():
        try:
            run("ip", *_delete(name))
        except MachineError as error:
            failures.append(error)
    if failures:
        raise MachineError("; ".join(map(str, failures)), failures[0].remedy or "try again: kproxylat cleanup")
    return leftovers


def _delete(name: str) -> tuple[str, str, str]:
    """Return the words of ip(8) that delete a namespace or a link."""
    return "netns" if name.startswith(PREFIX) else "link", "delete", name


def write_label(words: str) -> None:
    """Label the lab, so that it is kept at the end of the run. The label disappears with the lab.

    :param words: the label; "" removes it.
    """
    run("ip", "link", "set", BACKEND_LINK, "alias", words, netns=NODE)


def read_label() -> str:
    """Return the label of a kept lab; "" if no lab is kept."""
    if not all((NETNS / name).exists() for name in (CLIENT, NODE, BACKEND)):
        return ""
    return str(_show_link(BACKEND_LINK, NODE).get("ifalias", ""))


def _show_link(name: str, netns: str | None) -> dict[str, Any]:
    """Return a link as ip(8) shows it in JSON; empty if it does not exist."""
    output = run("ip", "-json", "link", "show", "dev", name, netns=netns, ok=(0, 1)).strip()
    link: dict[str, Any] = json.loads(output)[0] if output else {}
    return link


def _ip(netns: str | None, *lines: str) -> None:
    run("ip", "-batch", "-", netns=netns, stdin="\n".join(lines) + "\n")


def _pair(name: str, peer: str, peer_netns: str) -> list[str]:
    """Return the commands of ip(8) for a veth pair without IPv6 addresses: neighbour discovery would be counted."""
    mac = MAC.get(peer, MAC[POD_LINK])
    ends = f"{name} address {MAC[name]} type veth peer name {peer} address {mac} {peer_netns}"
    return [f"link add {ends}", f"link set {name} addrgenmode none up"]


@contextmanager
def build_network(network: Network, source: IpNetwork, endpoint: str, keep: bool = False) -> Iterator[None]:
    """Create the namespaces and links of a run, and remove them at the end.

    :param source: the addresses that the packets come from, routed back over the client's link.
    :param endpoint: the backend's address in the lab, of the same family.
    :param keep: keep a lab that has a label at the end.
    :raises CommandError: ip(8) refuses a command.
    """
    with _removed_at_end(keep):
        _ip(None, *(f"netns add {name}" for name in ((CLIENT, NODE, BACKEND) if network.is_lab else (CLIENT,))))
        with _claim(CLIENT):
            _connect(network, source, endpoint)
            yield


@contextmanager
def take_over(keep: bool) -> Iterator[None]:
    """Use a kept lab, whose label goes, and remove it at the end.

    :param keep: keep the lab if it has a label at the end.
    """
    with _removed_at_end(keep), _claim(CLIENT):
        write_label("")
        yield


def _remove_own() -> None:
    with interrupts.shielded():
        remove_leftovers()


@contextmanager
def _removed_at_end(keep: bool) -> Iterator[None]:
    with ExitStack() as stack:
        stack.callback(_remove_own)
        yield
        if keep and read_label():
            stack.pop_all()


def _connect(network: Network, source: IpNetwork, endpoint: str) -> None:
    gateway, bits, link = POD_GATEWAYS[source.version], source.max_prefixlen, network.pod_link
    # Duplicate address detection would make an IPv6 address unusable for a second.
    at_once = " nodad" if source.version == 6 else ""
    client = [
        *_pair("pod0", link, f"netns {network.node or os.getpid()}"),
        # Sockets bind to any of the source addresses; hping3 needs an address on the link.
        "link set lo up",
        f"route add local {source} dev lo",
        f"address add {source.network_address + 1}/{bits} dev pod0{at_once}",
        f"neighbour replace {gateway} lladdr {MAC[POD_LINK]} dev pod0 nud permanent",
        f"route add default via {gateway} dev pod0 onlink",
    ]
    to_client = [
        f"link set {link} addrgenmode none up",
        f"neighbour replace {gateway} lladdr {MAC['pod0']} dev {link} nud permanent",
        # The route back, without which strict reverse-path filtering drops the packets.
        f"route add {source} via {gateway} dev {link} onlink",
    ]
    if network.origin == "node":
        # The client has the other end, so that this link disappears with the client's namespace.
        client += [f"link add node0 type veth peer name {NODE_LINK} netns {network.node or os.getpid()}"]
        client += ["link set node0 addrgenmode none up"]
        to_client[-1:] = [f"link set {NODE_LINK} addrgenmode none up", f"route add local {source} dev {NODE_LINK}"]
    length = 24 if source.version == 4 else 64
    masquerading, own = name_addresses(endpoint)
    to_backend = [
        *_pair(BACKEND_LINK, "be0", f"netns {network.backend}"),
        *(f"address add {ip}/{bits} dev {BACKEND_LINK}{at_once}" for ip in (masquerading, own)),
        f"neighbour replace {gateway} lladdr {MAC['be0']} dev {BACKEND_LINK} nud permanent",
        # The backend has every endpoint of the rules. Packets that are not translated leave by this route, too.
        f"route add default via {gateway} dev {BACKEND_LINK} onlink src {own}",
    ]
    _ip(CLIENT, *client)
    # A namespace without an address refuses a gateway: the backend's link comes first.
    _ip(network.node, *(to_backend if network.is_lab else ()), *to_client)
    if network.is_lab:
        run("sysctl", "-q", "-w", *FORWARDING[source.version], netns=NODE)
        address = f"address add {endpoint}/{length} dev be0{at_once}"
        _ip(BACKEND, "link set be0 addrgenmode none up", address)


def name_addresses(endpoint: str) -> tuple[str, str]:
    """Return the addresses of the lab's node: that of masqueraded packets, and that of its own other packets.

    The first is the nearest to the backend's address, for that is the one that the kernel takes to masquerade.
    """
    size = 256 if ":" not in endpoint else 1 << 64
    subnet = int(ip_address(endpoint)) // size * size
    first, second = (type(ip_address(endpoint))(subnet + start + 1) for start in (0, size))
    return str(first), str(second)


def route_back(network: Network, endpoints: Iterable[str]) -> None:
    """Let the backend of a lab answer: it owns the endpoints' addresses, and has a route to the clients.

    :raises CommandError: ip(8) refuses a command.
    """
    gateway = POD_GATEWAYS[network.family]
    _ip(
        network.backend,
        "link set lo up",
        f"neighbour replace {gateway} lladdr {MAC[BACKEND_LINK]} dev be0 nud permanent",
        f"route replace default via {gateway} dev be0 onlink",
        *(f"route replace local {address} dev lo" for address in endpoints),
    )


def find_broken_links(network: Network) -> list[str]:
    """Return the links of a run that do not exist any more, or are down."""
    ends = [(network.client, "pod0"), (network.node, network.pod_link)] if network.client else []
    ends += [(network.node, BACKEND_LINK), (network.backend, "be0")] if network.backend else []
    return [name for netns, name in ends if _show_link(name, netns).get("operstate") != "UP"]
