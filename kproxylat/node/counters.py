"""The packet counters of the lab (nft)."""

from __future__ import annotations

import json
from collections.abc import Iterable

from kproxylat.errors import MachineError
from kproxylat.node.network import Network
from kproxylat.results import IpNetwork, Target
from kproxylat.system.processes import run

_DROPPED = "counter name delivered drop", "counter name masqueraded drop"
# The sender ends each connection by a RST, which is not counted.
_ANSWERED = "goto answered", "goto answered-masqueraded"
# Counters at the ends of the path, before conntrack, so that they add no entries.
_COUNT = """
table inet kproxylat
delete table inet kproxylat
table inet kproxylat {{
	counter delivered {{ }}
	counter masqueraded {{ }}
	counter untranslated {{ }}
	counter strayed {{ }}
	counter others {{ }}
	counter rejected {{ }}
	chain answered {{
		tcp flags & (syn | ack) == syn counter name delivered
		accept
	}}
	chain answered-masqueraded {{
		tcp flags & (syn | ack) == syn counter name masqueraded
		accept
	}}
	chain prerouting {{
		type filter hook prerouting priority raw; policy accept;
		{ip} saddr {source} {ip} daddr . meta l4proto . th dport {{ {endpoints} }} {delivered}
		{ip} saddr {source} {ip} daddr {{ {targets} }} counter name untranslated drop
		{ip} saddr {source} counter name strayed drop
		{ip} saddr {own} {ip} daddr . meta l4proto . th dport {{ {endpoints} }} counter name others drop
		{ip} daddr . meta l4proto . th dport {{ {endpoints} }} {masqueraded}
		{ip} daddr {source} {icmp} type destination-unreachable counter name rejected drop
		{ip} daddr {source} meta l4proto udp drop comment "without this, an ICMP error would follow each answer"
	}}
}}
"""


def place_counters(
    network: Network,
    source: IpNetwork,
    endpoints: Iterable[Target],
    targets: Iterable[str],
    own: str,
    answered: bool = False,
) -> None:
    """Count and drop the packets that arrive at the client and at the backend, by nft counters.

    So nothing answers in the lab. (On a node the client answers a backend's SYN-ACK by RST, which starts no new flow.)
    They replace the counters that are placed already.

    :param network: the namespaces of the run.
    :param source: the addresses that the packets come from.
    :param endpoints: the backend's addresses, ports and protocols.
    :param targets: the ClusterIPs.
    :param own: the address of the node's own packets, which are other senders'; further addresses are masqueraded.
    :param answered: count the SYNs that arrive at the backend, but drop nothing there, so that a responder can answer.
    """
    delivered, masqueraded = _ANSWERED if answered else _DROPPED
    ip, icmp = ("ip", "icmp") if source.version == 4 else ("ip6", "icmpv6")
    words = {
        "ip": ip,
        "icmp": icmp,
        "source": source,
        "own": own,
        "endpoints": ", ".join(dict.fromkeys(endpoint.element for endpoint in endpoints)),
        "targets": ", ".join(dict.fromkeys(targets)),
        "delivered": delivered,
        "masqueraded": masqueraded,
    }
    for netns in (_find_rejecting(network), network.backend):
        if netns:
            run("nft", "-f", "-", netns=netns, stdin=_COUNT.format(**words))


def _find_rejecting(network: Network) -> str | None:
    """Return the namespace in which ICMP errors about the packets arrive."""
    return network.client if network.origin == "pod" else network.node if network.is_lab else None


def read_counters(network: Network) -> dict[str, int]:
    """Return counter -> packets.

    At the client: "rejected". At the backend: "delivered" from the sources; "masqueraded", delivered from another
    address; "untranslated"; "strayed", sent by the run but to another address or port; "others", of other senders to
    the endpoint.

    :raises MachineError: nft does not list the counters, because another program has removed them.
    """
    counts: dict[str, int] = {}
    at_backend = "delivered", "masqueraded", "untranslated", "strayed", "others"
    for netns, names in ((_find_rejecting(network), ("rejected",)), (network.backend, at_backend)):
        if netns:
            output = run("nft", "--json", "list", "counters", netns=netns)
            try:
                counters = [row["counter"] for row in json.loads(output)["nftables"] if "counter" in row]
                packets = {counter["name"]: int(counter["packets"]) for counter in counters}
                counts |= {name: packets[name] for name in names}
            except (ValueError, LookupError, TypeError):
                raise MachineError(
                    f"nft does not list the counters of {netns}: {output[:100]!r}",
                    "does something on this machine flush the rules of all network namespaces?",
                ) from None
    return counts
