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

from kproxylat.errors import MachineError
from kproxylat.proc import run

PREFIX = "kproxylat-"
CLIENT, NODE, BACKEND = f"{PREFIX}client", f"{PREFIX}node", f"{PREFIX}backend"
POD_LINK, POD_GATEWAY = "kpl-pod", "169.254.77.1"
BACKEND_LINK = "kpl-be"
LOCK = Path("/run/kproxylat.lock")
NETNS = Path("/run/netns")
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
    spaces = sorted(each.name for each in NETNS.glob(f"{PREFIX}*"))
    return spaces + [link for link in (POD_LINK, BACKEND_LINK) if (Path("/sys/class/net") / link).exists()]


def remove_leftovers() -> list[str]:
    """Remove them; what goes with them are their rules, routes and pktgen threads.

    :return: what was removed.
    :raises CommandError: something could not be removed.
    """
    found = find_leftovers()
    if found:
        lines = [f"{'netns' if name.startswith(PREFIX) else 'link'} delete {name}" for name in found]
        # A link may go with its namespace before its turn comes: try all, and look afterwards.
        run("ip", "-force", "-batch", "-", stdin="\n".join(lines) + "\n", ok=(0, 1))
    for name in find_leftovers():
        run("ip", "netns" if name.startswith(PREFIX) else "link", "delete", name)
    return found


def _ip(netns: str | None, *lines: str) -> None:
    """Run a batch of ip(8) commands in a namespace."""
    run("ip", "-batch", "-", netns=netns, stdin="\n".join(lines) + "\n")


def _pair(name: str, peer: str, peer_netns: str) -> list[str]:
    """Return ip(8)'s commands for a veth pair; without IPv6 addresses, whose neighbour discovery would be counted."""
    ends = f"{name} address {MAC[name]} type veth peer name {peer} address {MAC[peer]} {peer_netns}"
    return [f"link add {ends}", f"link set {name} addrgenmode none up"]


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
        _ip(None, *(f"netns add {name}" for name in (made.client, made.node, made.backend) if name))
        node = f"netns {made.node or os.getpid()}"
        _ip(CLIENT, *_pair("pod0", POD_LINK, node))
        to_client = [
            f"link set {POD_LINK} addrgenmode none up",
            f"neighbour replace {POD_GATEWAY} lladdr {MAC['pod0']} dev {POD_LINK} nud permanent",
            # The way back, without which strict reverse-path filtering drops the packets.
            f"route add {source} via {POD_GATEWAY} dev {POD_LINK} onlink",
        ]
        to_backend = [
            *_pair(BACKEND_LINK, "be0", f"netns {made.backend}"),
            f"address add 10.244.1.1/24 dev {BACKEND_LINK}",
            f"neighbour replace {endpoint} lladdr {MAC['be0']} dev {BACKEND_LINK} nud permanent",
            # What is not translated leaves the node by its default route, as on a real node.
            f"route add default via {endpoint}",
        ]
        # A namespace without any address takes no gateway: the backend comes first.
        _ip(made.node, *(to_backend if lab else ()), *to_client)
        if lab:
            # Every rejected packet is to be answered and counted, not one a second.
            forward = ["net.ipv4.ip_forward=1", "net.ipv4.icmp_ratemask=0"]
            run("sysctl", "-q", "-w", *forward, netns=NODE)
            _ip(BACKEND, "link set be0 addrgenmode none up", f"address add {endpoint}/24 dev be0")
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
