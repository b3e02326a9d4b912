"""The lab's own packet counters (nft)."""

from __future__ import annotations

import json
from collections.abc import Iterable

from kproxylat.errors import MachineError
from kproxylat.node.network import Network
from kproxylat.results import Destination, IpNetwork
from kproxylat.system.processes import run

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
