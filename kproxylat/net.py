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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from kproxylat.errors import CommandError, MachineError
from kproxylat.proc import run

PREFIX = "kproxylat-"
CLIENT, NODE, BACKEND = f"{PREFIX}client", f"{PREFIX}node", f"{PREFIX}backend"
POD_LINK, POD_GATEWAY = "kpl-pod", "169.254.77.1"
BACKEND_LINK = "kpl-be"
LOCK = Path("/run/kproxylat.lock")
MAC = {"pod0": "02:00:00:00:4b:01", POD_LINK: "02:00:00:00:4b:02", BACKEND_LINK: "02:00:00:00:4b:03"}
MAC["be0"] = "02:00:00:00:4b:04"


@dataclass(frozen=True)
class Network:
    """Namespaces of a run (None: the one that we run in, or none at all)."""

    client: str
    node: str | None
    backend: str | None


@contextmanager
def lock() -> Iterator[None]:
    """Hold the machine's one run.

    :raises MachineError: another run holds it.
    """
    with os.fdopen(os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The run before us may have removed the file between our opening and locking it.
            if os.fstat(file.fileno()).st_nlink == 0:
                raise BlockingIOError
        except BlockingIOError:
            file.seek(0)
            raise MachineError(
                f"another run is under way (process {file.read().strip() or 'unknown'})", "wait for its end"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            LOCK.unlink()


def find_leftovers() -> list[str]:
    """Return the namespaces and links that an interrupted run left."""
    listed = json.loads(run("ip", "-json", "netns", "list") or "[]")
    spaces = [each["name"] for each in listed if each["name"].startswith(PREFIX)]
    links = json.loads(run("ip", "-json", "link", "show", "type", "veth") or "[]")
    return spaces + [each["ifname"] for each in links if each.get("ifname") in (POD_LINK, BACKEND_LINK)]


def remove_leftovers() -> list[str]:
    """Remove them; what goes with them are their rules, routes and pktgen threads.

    :return: what was removed.
    """
    found = find_leftovers()
    for name in found:
        kind = ["netns"] if name.startswith(PREFIX) else ["link"]
        try:
            run("ip", *kind, "delete", name)
        except CommandError:
            if name in find_leftovers():
                raise
    return found


def _ip(netns: str | None, *lines: str) -> None:
    """Run a batch of ip(8) commands in a namespace."""
    run("ip", "-batch", "-", netns=netns, stdin="\n".join(lines) + "\n")


@contextmanager
def network(source: IPv4Network, lab: bool, endpoint: str) -> Iterator[Network]:
    """Make the namespaces and links of a run, and remove them at the end.

    :param source: the addresses that our packets come from, routed back over the client's link.
    :param lab: whether the node is a namespace of ours with a backend behind it.
    :param endpoint: the backend's address in the lab.
    :raises CommandError: ip(8) refuses something.
    """
    made = Network(CLIENT, NODE if lab else None, BACKEND if lab else None)
    with ExitStack() as stack:
        stack.callback(remove_leftovers)
        names = [name for name in (made.client, made.node, made.backend) if name]
        _ip(None, *(f"netns add {name}" for name in names))
        for name in names:
            # No router solicitations, no neighbour discovery: they would be counted, too.
            run("sysctl", "-q", "-e", "-w", "net.ipv6.conf.all.disable_ipv6=1", netns=name)
        node = f"netns {made.node}" if made.node else ""
        _ip(
            CLIENT, f"link add pod0 address {MAC['pod0']} type veth peer name {POD_LINK} address {MAC[POD_LINK]} {node}"
        )
        if made.node is None:
            _ip(CLIENT, f"link set {POD_LINK} netns {os.getpid()}")
        _ip(CLIENT, "link set lo up", "link set pod0 up")
        if lab:
            forward = ["net.ipv4.ip_forward=1", "net.ipv4.icmp_ratemask=0"]
            run("sysctl", "-q", "-w", *forward, netns=NODE)
            _ip(
                NODE,
                "link set lo up",
                f"link add {BACKEND_LINK} address {MAC[BACKEND_LINK]} type veth "
                f"peer name be0 address {MAC['be0']} netns {BACKEND}",
                f"link set {BACKEND_LINK} up",
                "address add 10.244.1.1/24 dev kpl-be",
                f"neighbour replace {endpoint} lladdr {MAC['be0']} dev {BACKEND_LINK} nud permanent",
                # What is not translated leaves the node by its default route, as on a real node.
                f"route add default via {endpoint}",
            )
            _ip(BACKEND, "link set lo up", "link set be0 up", f"address add {endpoint}/24 dev be0")
        _ip(
            made.node,
            f"link set {POD_LINK} up",
            f"neighbour replace {POD_GATEWAY} lladdr {MAC['pod0']} dev {POD_LINK} nud permanent",
            # The way back, without which strict reverse-path filtering drops the packets.
            f"route add {source} via {POD_GATEWAY} dev {POD_LINK} onlink",
        )
        yield made


# Counters at the ends of the road, before conntrack, so that they add no entry to it.
_COUNT = """
table inet kproxylat {{
	counter delivered {{ }}
	counter untranslated {{ }}
	counter rejected {{ }}
	chain prerouting {{
		type filter hook prerouting priority raw; policy accept;
		ip saddr {source} ip daddr {endpoint} counter name delivered drop
		ip saddr {source} ip daddr {target} counter name untranslated drop
		ip daddr {source} icmp type destination-unreachable counter name rejected drop
	}}
}}
"""


def place_counters(made: Network, source: IPv4Network, endpoint: str, target: str) -> None:
    """Let the client's and the backend's namespace count what arrives there, by nft counters."""
    for name in (made.client, made.backend):
        if name:
            run("nft", "-f", "-", netns=name, stdin=_COUNT.format(source=source, endpoint=endpoint, target=target))


def read_counters(made: Network) -> dict[str, int]:
    """Return the packets of each counter: delivered and untranslated at the backend, rejected at the client."""
    counts: dict[str, int] = {}
    for name, wanted in ((made.client, ["rejected"]), (made.backend, ["delivered", "untranslated"])):
        if name:
            listed = json.loads(run("nft", "--json", "list", "counters", netns=name))["nftables"]
            found = {each["counter"]["name"]: each["counter"]["packets"] for each in listed if "counter" in each}
            counts |= {each: found[each] for each in wanted}
    return counts
