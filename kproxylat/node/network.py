"""The network namespaces and veth pairs of a run, and their removal.

    client [pod0] ----- [kpl-pod] node [kpl-be] ----- [be0] backend

The packets enter the node as a pod's do. In the lab the node is a namespace of ours, too; on a real node it is the
namespace that we run in, and there is no backend. Addresses are static and neighbours fixed, so that nothing but
the traffic under test passes.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path

from kproxylat.errors import MachineError
from kproxylat.results import IpNetwork
from kproxylat.system import interrupts
from kproxylat.system.processes import run

PREFIX = "kproxylat-"
CLIENT, NODE, BACKEND = f"{PREFIX}client", f"{PREFIX}node", f"{PREFIX}backend"
POD_LINK, POD_GATEWAYS = "kpl-pod", {4: "169.254.77.1", 6: "fe80::4b:1"}
NODE_LINK = "kpl-node"
"""The node's end of the pod's link, and the address that on both ends stands for the other one."""
FORWARDING = {
    4: ("net.ipv4.ip_forward=1", "net.ipv4.icmp_ratemask=0"),
    6: ("net.ipv6.conf.all.forwarding=1", "net.ipv6.icmp.ratemask=2"),
}
"""Every rejected packet is to be answered and counted, not one a second. (IPv6's mask is a list; 2: Packet Too Big.)"""
BACKEND_LINK = "kpl-be"
NETNS = Path("/run/netns")
LINKS = Path("/sys/class/net")
MAC = {"pod0": "02:00:00:00:4b:01", POD_LINK: "02:00:00:00:4b:02", BACKEND_LINK: "02:00:00:00:4b:03"}
MAC["be0"] = "02:00:00:00:4b:04"


@dataclass(frozen=True)
class Network:
    """Namespaces of a run (None: the one that we run in, or none at all), whose packets: "pod" or "node", IP family.

    :param skip: how many source addresses earlier runs in them have used.
    """

    client: str | None
    node: str | None
    backend: str | None
    origin: str = "pod"
    family: int = 4
    skip: int = 0

    @property
    def is_lab(self) -> bool:
        """Whether the node is one of ours."""
        return self.backend is not None


@contextmanager
def _claim(name: str) -> Iterator[None]:
    """Hold a namespace: should somebody remove the lock's file, no other run takes ours for leftovers.

    :raises MachineError: another run holds it.
    """
    with (NETNS / name).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MachineError(f"another run is under way: it holds {name}", "wait for its end") from None
        yield


def find_leftovers() -> list[str]:
    """Return the namespaces and links that an interrupted run, or one that kept its lab, left."""
    spaces = sorted(each.name for each in NETNS.glob(f"{PREFIX}*"))
    return spaces + [link for link in (POD_LINK, BACKEND_LINK, NODE_LINK) if (LINKS / link).exists()]


def remove_leftovers() -> list[str]:
    """Remove them; what goes with them are their rules, routes and pktgen threads.

    :return: what was removed.
    :raises MachineError: something could not be removed (the rest is), or a run that is under way holds them.
    """
    found = find_leftovers()
    if found:
        if CLIENT in found:
            with _claim(CLIENT):
                pass
        lines = [f"{'netns' if name.startswith(PREFIX) else 'link'} delete {name}" for name in found]
        # A link may go with its namespace before its turn comes: try all, and look afterwards.
        with suppress(MachineError):
            run("ip", "-force", "-batch", "-", stdin="\n".join(lines) + "\n", ok=(0, 1))
    failures = []
    for name in find_leftovers():
        try:
            run("ip", "netns" if name.startswith(PREFIX) else "link", "delete", name)
        except MachineError as error:
            failures.append(error)
    if failures:
        raise MachineError("; ".join(map(str, failures)), failures[0].remedy or "try again: kproxylat cleanup")
    return found


def _remove_own() -> None:
    with interrupts.shielded():
        remove_leftovers()


def write_label(words: str) -> None:
    """Write on the lab what it is, which leaves it standing (""; a run has it now). It is gone when the lab is."""
    run("ip", "link", "set", BACKEND_LINK, "alias", words, netns=NODE)


def read_label() -> str:
    """Return what is written on the lab that a run left standing ("": there is none)."""
    if not all((NETNS / name).exists() for name in (CLIENT, NODE, BACKEND)):
        return ""
    listed = run("ip", "-json", "link", "show", "dev", BACKEND_LINK, netns=NODE, ok=(0, 1)).strip()
    return str(json.loads(listed)[0].get("ifalias", "")) if listed else ""


def _ip(netns: str | None, *lines: str) -> None:
    """Run a batch of ip(8) commands in a namespace."""
    run("ip", "-batch", "-", netns=netns, stdin="\n".join(lines) + "\n")


def _pair(name: str, peer: str, peer_netns: str) -> list[str]:
    """Return ip(8)'s commands for a veth pair; without IPv6 addresses, whose neighbour discovery would be counted."""
    ends = f"{name} address {MAC[name]} type veth peer name {peer} address {MAC[peer]} {peer_netns}"
    return [f"link add {ends}", f"link set {name} addrgenmode none up"]


@contextmanager
def network(
    source: IpNetwork,
    lab: bool,
    endpoint: str,
    origin: str = "pod",
    node: str | None = None,
    skip: int | None = None,
    keep: bool = False,
) -> Iterator[Network]:
    """Make the namespaces and links of a run, and remove them at the end.

    :param source: the addresses that our packets come from, routed back over the client's link.
    :param lab: whether the node is a namespace of ours with a backend behind it.
    :param endpoint: the backend's address in the lab, of the same family.
    :param origin: who sends, "pod" or "node", which then has the addresses as its own.
    :param node: the network namespace that is the node, where it is none of ours (None: the one that we run in).
    :param skip: take over the lab that stands, of whose source addresses so many have been used (None: make one).
    :param keep: do not remove a lab that has its label at the end.
    :raises CommandError: ip(8) refuses something.
    """
    made = Network(CLIENT, NODE if lab else node, BACKEND if lab else None, origin, source.version, skip or 0)
    with ExitStack() as stack:
        stack.callback(_remove_own)
        if skip is None:
            _ip(None, *(f"netns add {name}" for name in ((CLIENT, NODE, BACKEND) if lab else (CLIENT,))))
        with _claim(CLIENT):
            if skip is None:
                _connect(made, source, endpoint)
            else:
                write_label("")
            yield made
        if keep and read_label():
            stack.pop_all()


def _connect(made: Network, source: IpNetwork, endpoint: str) -> None:
    """Make the links of a run, the addresses and the routes."""
    lab, origin = made.is_lab, made.origin
    gateway, bits = POD_GATEWAYS[source.version], source.max_prefixlen
    # IPv6 would try for a second whether another has an address, and let none be used meanwhile.
    at_once = " nodad" if source.version == 6 else ""
    client = [
        *_pair("pod0", POD_LINK, f"netns {made.node or os.getpid()}"),
        # Sockets may be bound to any of our sources; hping3 wants an address on the link.
        "link set lo up",
        f"route add local {source} dev lo",
        f"address add {source.network_address + 1}/{bits} dev pod0{at_once}",
        f"neighbour replace {gateway} lladdr {MAC[POD_LINK]} dev pod0 nud permanent",
        f"route add default via {gateway} dev pod0 onlink",
    ]
    to_client = [
        f"link set {POD_LINK} addrgenmode none up",
        f"neighbour replace {gateway} lladdr {MAC['pod0']} dev {POD_LINK} nud permanent",
        # The way back, without which strict reverse-path filtering drops the packets.
        f"route add {source} via {gateway} dev {POD_LINK} onlink",
    ]
    if origin == "node":
        # Its other end is the client's, so that it goes when that goes, from whichever node it is.
        client += [f"link add node0 type veth peer name {NODE_LINK} netns {made.node or os.getpid()}"]
        client += ["link set node0 addrgenmode none up"]
        to_client[-1:] = [f"link set {NODE_LINK} addrgenmode none up", f"route add local {source} dev {NODE_LINK}"]
    subnet = ip_interface(f"{endpoint}/{24 if source.version == 4 else 64}").network
    to_backend = [
        *_pair(BACKEND_LINK, "be0", f"netns {made.backend}"),
        f"address add {subnet.network_address + 1}/{bits} dev {BACKEND_LINK}{at_once}",
        f"neighbour replace {gateway} lladdr {MAC['be0']} dev {BACKEND_LINK} nud permanent",
        # The backend has whatever endpoint a rule names. What is not translated leaves by this route, too.
        f"route add default via {gateway} dev {BACKEND_LINK} onlink",
    ]
    _ip(CLIENT, *client)
    # A namespace without any address takes no gateway: the backend comes first.
    _ip(made.node, *(to_backend if lab else ()), *to_client)
    if lab:
        run("sysctl", "-q", "-w", *FORWARDING[source.version], netns=NODE)
        address = f"address add {endpoint}/{subnet.prefixlen} dev be0{at_once}"
        _ip(BACKEND, "link set be0 addrgenmode none up", address)


def find_broken_links(made: Network) -> list[str]:
    """Return our links that are gone, or down."""
    ends = [(made.client, "pod0"), (made.node, POD_LINK)] if made.client else []
    ends += [(made.node, BACKEND_LINK), (made.backend, "be0")] if made.backend else []
    broken = []
    for netns, name in ends:
        listed = run("ip", "-json", "link", "show", "dev", name, netns=netns, ok=(0, 1)).strip()
        if not listed or json.loads(listed)[0]["operstate"] != "UP":
            broken.append(name)
    return broken
