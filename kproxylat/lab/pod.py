"""A pod's packet in the lab: source addresses and a link that the rules do not masquerade. Pure."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from typing import NamedTuple

from kproxylat.lab.services import ADDRESSES, Service
from kproxylat.node.network import BACKEND_LINK, NODE_LINK, POD_LINK
from kproxylat.results import IpNetwork

_MASQUERADES = re.compile(
    r"-j (?:KUBE-MARK-MASQ|MASQUERADE|SNAT)\b"
    r"|\b(?:jump mark-for-masquerade|meta mark set meta mark \||masquerade|snat (?:ip )?to)(?: |$)"
)
_CONDITION = re.compile(r'(?:(! )?(?<![\w-])-([sdi])|\b([sd]addr|iifname)( !=)?) "?([^\s"]+)')
_COMMENT = re.compile(r'comment (?:"(?:[^"\\]|\\.)*"|\S+)')
_CLUSTER_IPS = re.compile(r"KUBE-CLUSTER-IP dst,dst|daddr @cluster-ips ")
_OTHER_LINKS = {"lo", BACKEND_LINK, NODE_LINK, "kube-ipvs0", "node0", "pod0"}
OUTSIDE = IPv4Network("198.18.0.0/15")
"""Addresses of no cluster (RFC 2544), to send from where no part of the pods' network is free."""


class Masquerade(NamedTuple):
    """A rule that masquerades packets to Services; None is a condition that it does not have.

    :param outside: not from this network. ``inside``: from this network.
    :param link: not over a link of this name; a last ``+`` or ``*`` stands for any letters.
    :param to: to endpoints in this network. ``not_to``: to endpoints outside this network.
    """

    outside: IpNetwork | None = None
    inside: IpNetwork | None = None
    link: str | None = None
    to: IpNetwork | None = None
    not_to: IpNetwork | None = None

    def applies(self, source: IpNetwork, link: str, endpoints: Collection[str]) -> bool:
        """Return whether the rule masquerades packets from these sources over this link to one of these endpoints."""
        return (
            (self.outside is None or not _holds(self.outside, source))
            and (self.inside is None or self.inside.overlaps(source))
            and (self.link is None or not _fits(self.link, link))
            and (self.to is None or any(ip_address(ip) in self.to for ip in endpoints))
            and (self.not_to is None or any(ip_address(ip) not in self.not_to for ip in endpoints))
        )

    def __str__(self) -> str:
        conditions = {"from outside": self.outside, "from": self.inside, "over another link than": self.link,
                      "to": self.to, "to others than": self.not_to}  # fmt: skip
        named = [f"{words} {value}" for words, value in conditions.items() if value is not None]
        return " ".join(["packets", *named] if named else ["all packets to ClusterIPs"])


@dataclass(frozen=True)
class Pod:
    """How to send a pod's packets.

    :param network: the network of the pods.
    :param sources: a part of it that nothing else uses; None if no part is free.
    :param link: the name of the node's end of a pod's link.
    :param rules: the rules that masquerade.
    :param full: networks of pods that have no free part.
    """

    network: IpNetwork
    sources: IpNetwork | None
    link: str = POD_LINK
    rules: tuple[Masquerade, ...] = ()
    full: tuple[IpNetwork, ...] = ()

    def find_masquerade(self, source: IpNetwork, link: str, endpoints: Collection[str]) -> Masquerade | None:
        """Return the first rule that masquerades such packets; None if none is known to do so."""
        return next((rule for rule in self.rules if rule.applies(source, link, endpoints)), None)


def _holds(network: IpNetwork, part: IpNetwork) -> bool:
    return part.network_address in network and part.broadcast_address in network


def _fits(pattern: str, link: str) -> bool:
    return link.startswith(pattern[:-1]) if pattern[-1] in "+*" else link == pattern


@cache
def own_pod(family: int) -> Pod:
    """Return a pod of the lab's own cluster."""
    network = ip_network(ADDRESSES[family].cluster_cidr)
    return Pod(network, ip_network(ADDRESSES[family].source), rules=(Masquerade(outside=network),))


def imitate_pod(texts: Iterable[str], services: Sequence[Service], cluster_cidr: IpNetwork | None) -> Pod:
    """Choose sources and link so that the rules masquerade as few Services' packets as possible.

    :param texts: the rules, as iptables-save and nft print them.
    :param cluster_cidr: the network of the pods that kube-proxy's rules name.
    """
    cluster_ips = {service.ip for service in services}
    endpoints = {ip for service in services for ip, _ in service.pairs}
    read = [rule for text in texts for rule in read_masquerades(text, cluster_ips)]
    rules = tuple(dict.fromkeys([*([Masquerade(cluster_cidr)] if cluster_cidr else []), *read]))
    link = next((name for rule in rules if rule.link and (name := _name_link(rule.link))), POD_LINK)
    named = [*(rule.outside for rule in rules), *(rule.inside for rule in rules)]
    networks = [network for network in named if isinstance(network, IPv4Network)]
    taken = [int(IPv4Address(ip)) for ip in cluster_ips | endpoints]
    candidates = dict.fromkeys([*networks, IPv4Network(ADDRESSES[4].cluster_cidr), OUTSIDE])
    parts = {network: find_free(network, taken) for network in candidates}
    full = tuple(network for network, part in parts.items() if not part)
    pods = [Pod(network, part, link, rules, full) for network, part in parts.items()]
    return min(pods, key=lambda pod: _count_masqueraded(pod, services))


def _count_masqueraded(pod: Pod, services: Iterable[Service]) -> int:
    """Count the Services whose packets are masqueraded; without free sources no packet can be sent."""
    if pod.sources is None:
        return sys.maxsize
    return sum(
        pod.find_masquerade(pod.sources, pod.link, [ip for ip, _ in service.pairs]) is not None for service in services
    )


def read_masquerades(text: str, cluster_ips: Collection[str]) -> Iterator[Masquerade]:
    """Find the rules that masquerade packets of pods, or spare them; not those that depend on anything else.

    Samples of kube-proxy (clusterCIDR, interface prefix, masqueradeAll; iptables and nft) and of a CNI::

        -A KUBE-SVC-X ! -s 10.244.0.0/16 -d 10.96.0.9/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
        -A KUBE-SVC-X ! -i azv+ -d 10.96.0.9/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
        ip daddr @cluster-ips meta mark set meta mark | 0x00004000 comment "masquerade clusterIP traffic"
        -A WEAVE ! -s 10.32.0.0/12 -d 10.32.0.0/12 -j MASQUERADE

    :param cluster_ips: the ClusterIPs; rules for other single addresses do not matter.
    """
    for line in text.splitlines():
        if not _MASQUERADES.search(line):
            continue
        bare = _COMMENT.sub("", line)
        every, values = bool(_CLUSTER_IPS.search(bare)), dict[tuple[str, bool], str]()
        for negation, option, name, unequal, value in _CONDITION.findall(bare):
            kind = (option or name)[0]
            if kind == "d" and value.removesuffix("/32") in cluster_ips:
                every = True
            elif not value.startswith("@cluster-ips"):
                values[kind, bool(negation or unequal)] = value
        try:
            outside, inside, to, not_to = (
                ip_network(values[key]) if key in values else None
                for key in (("s", True), ("s", False), ("d", False), ("d", True))
            )
        except ValueError:  # a set, or a concatenation
            continue
        rule = Masquerade(outside, inside, values.get(("i", True)), to, not_to)
        if to and to.num_addresses == 1:
            continue
        if outside or rule.link or (inside and not_to == inside) or (every and not values):
            yield rule


def _name_link(pattern: str) -> str | None:
    """Return a link's name that fits a condition; None if the lab needs it for another link."""
    name = f"{pattern[:-1]}{POD_LINK}"[:15] if pattern[-1] in "+*" else pattern
    return name if re.fullmatch(r"[\w.-]{1,15}", name) and name not in _OTHER_LINKS else None


def find_free(network: IPv4Network, taken: Iterable[int]) -> IPv4Network | None:
    """Return a large part of a network without taken addresses, from its upper half if possible: pods get the first
    addresses of a network.

    :param taken: addresses as numbers.
    :return: None if no part is free.
    """
    if network.prefixlen > 28:
        return None
    numbers = list(taken)
    for longest in (network.prefixlen + 8, 29):
        for half in reversed(list(network.subnets())):
            for length in range(half.prefixlen, min(longest, 29) + 1):
                shift = 32 - length
                used = {number >> shift for number in numbers}
                last, first = int(half.broadcast_address) >> shift, int(half.network_address) >> shift
                part = next((part for part in range(last, first - 1, -1) if part not in used), None)
                if part is not None:
                    return IPv4Network((part << shift, length))
    return None
