"""The network namespaces and veth pairs of a run, and their removal.

    client [pod0] ----- [kpl-pod] node [kpl-be] ----- [be0] backend

The packets enter the node as a pod's do. In the lab the node is a namespace of ours, too; on a real node it is the
namespace that we run in, and there is no backend. Addresses are static and neighbours fixed, so that nothing but
the traffic under test passes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path
from typing import TextIO

from kproxylat.errors import MachineError
from kproxylat.results import Destination, IpNetwork
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
LOCK = Path("/run/kproxylat.lock")
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


class Lock:
    """The machine's one run: who holds this file's lock. The file says which process that is, and what it changed.

    :ivar notes: the changes that this run and earlier ones made and did not restore, the oldest first: words, the
        first of which says what kind of change it is. The file stays as long as it holds a note.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.notes = list(_parse_notes(file.read(100_000)))
        self._write()

    def note(self, *words: str) -> None:
        """Add a note, so that the next run or ``kproxylat cleanup`` can restore the change after a SIGKILL."""
        self.notes.append(words)
        self._file.write(json.dumps(words) + "\n")
        self._file.flush()

    def forget(self, note: tuple[str, ...]) -> None:
        """Remove a note, because nothing is left to restore."""
        self.notes.remove(note)
        self._write()

    def _write(self) -> None:
        """Write the file anew: first over its old text, then cut off the rest. A SIGKILL in between loses no note."""
        self._file.seek(0)
        self._file.writelines(json.dumps(line) + "\n" for line in (os.getpid(), *self.notes))
        self._file.flush()
        self._file.truncate()


def _parse_notes(text: str) -> Iterator[tuple[str, ...]]:
    """Read the lock's lines, as far as they are whole: the first is the process's number."""
    for line in text.splitlines():
        try:
            words = json.loads(line)
        except ValueError:
            continue
        if isinstance(words, list) and words and all(isinstance(word, str) for word in words):
            yield tuple(words)


@contextmanager
def lock() -> Iterator[Lock]:
    """Hold the machine's one run. The lock's file stays if it holds a note.

    :raises MachineError: another run holds it, or something that is not ours stands at the lock's path.
    """
    with interrupts.deferred(), _take_lock() as file:
        held = Lock(file)
        try:
            yield held
        finally:
            if not held.notes and _is_lock(file):
                LOCK.unlink()


def _take_lock() -> TextIO:
    while True:
        try:
            # No symbolic link is followed, and nobody waits for a pipe's other end.
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            number = os.open(LOCK, flags, 0o600)
            found = os.fstat(number)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                os.close(number)
                raise OSError(errno.EPERM, "it is no file of ours")
        except OSError as error:
            raise MachineError(f"the lock {LOCK} cannot be taken: {error.strerror}", f"rm {LOCK}") from None
        file = os.fdopen(number, "r+", errors="replace")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.readline(20).strip() or "unknown"
            file.close()
            raise MachineError(f"another run is under way (process {holder})", "wait for its end") from None
        # The run before us may have removed the file between our opening and locking it.
        if _is_lock(file):
            return file
        file.close()


def _is_lock(file: TextIO) -> bool:
    """Whether this open file is still the one at the lock's path."""
    try:
        return os.path.samestat(LOCK.lstat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


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


# Counters at the ends of the road, before conntrack, so that they add no entry to it.
_COUNT = """
table inet kproxylat {{
	counter delivered {{ }}
	counter untranslated {{ }}
	counter strayed {{ }}
	counter others {{ }}
	counter rejected {{ }}
	chain prerouting {{
		type filter hook prerouting priority raw; policy accept;
		{ip} saddr {sender} {ip} daddr . meta l4proto . th dport {{ {endpoints} }} counter name delivered drop
		{ip} saddr {source} {ip} daddr {{ {targets} }} counter name untranslated drop
		{ip} saddr {source} counter name strayed drop
		{ip} daddr . meta l4proto . th dport {{ {endpoints} }} counter name others drop
		{ip} daddr {source} {icmp} type destination-unreachable counter name rejected drop
		{ip} daddr {source} meta l4proto udp drop comment "else an answer would be answered by an ICMP error"
	}}
}}
"""


def place_counters(
    made: Network, source: IpNetwork, endpoints: Iterable[Destination], targets: Iterable[str], masqueraded: bool
) -> None:
    """Let the client's and the backend's namespace count what arrives there, by nft counters, and drop it: nothing
    answers our packets in the lab. (On a node the client answers a backend's SYN-ACK by RST, which is no new flow.)

    :param endpoints: the backend's addresses, ports and protocols. ``targets``: the ClusterIPs.
    :param masqueraded: whether our packets may arrive from an address of the node.
    """
    ip, icmp, anyone = ("ip", "icmp", "0.0.0.0/0") if source.version == 4 else ("ip6", "icmpv6", "::/0")
    words = {
        "ip": ip,
        "icmp": icmp,
        "source": source,
        "sender": anyone if masqueraded else source,
        "endpoints": ", ".join(dict.fromkeys(each.element for each in endpoints)),
        "targets": ", ".join(dict.fromkeys(targets)),
    }
    for name in (_rejecting(made), made.backend):
        if name:
            run("nft", "-f", "-", netns=name, stdin=_COUNT.format(**words))


def _rejecting(made: Network) -> str | None:
    """Return the namespace in which errors that answer our packets arrive."""
    return made.client if made.origin == "pod" else made.node if made.is_lab else None


def read_counters(made: Network) -> dict[str, int]:
    """Return the packets of each counter: rejected at the client; at the backend delivered, untranslated, strayed (ours
    at another address or port), others (of other senders at the endpoint).

    :raises MachineError: they cannot be read; another has removed them.
    """
    counts: dict[str, int] = {}
    at_backend = ["delivered", "untranslated", "strayed", "others"]
    for name, wanted in ((_rejecting(made), ["rejected"]), (made.backend, at_backend)):
        if name:
            said = run("nft", "--json", "list", "counters", netns=name)
            try:
                listed = [each["counter"] for each in json.loads(said)["nftables"] if "counter" in each]
                found = {each["name"]: each["packets"] for each in listed}
                counts |= {each: int(found[each]) for each in wanted}
            except (ValueError, LookupError, TypeError):
                raise MachineError(
                    f"nft does not list the counters of {name}: {said[:100]!r}",
                    "does something on this machine flush the rules of all network namespaces?",
                ) from None
    return counts
