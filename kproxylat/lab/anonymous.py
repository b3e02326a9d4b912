"""An anonymizer for rulesets: it replaces addresses and names, and keeps the cost of lookups. Pure.

Addresses that share their first k bits still share them afterwards (Xu et al. 2002, "Prefix-preserving IP address
anonymization"): an address inside a network stays inside. The bits that identify private and special networks stay.
"""

from __future__ import annotations

import hmac
import re
from base64 import b32encode
from ipaddress import IPv4Address, IPv4Network

_SPECIAL = [*map(IPv4Network, ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15"))]
_WHOLE = [*map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"))]
"""Networks whose prefix stays, and networks whose addresses stay."""
_KEPT = {
    format(int(network.network_address), "032b")[:length]
    for network in (*_SPECIAL, *_WHOLE)
    for length in range(network.prefixlen)
}
_ADDRESS = re.compile(r"(?<![\w.])(\d{1,3}(?:\.\d{1,3}){3})(/\d{1,2})?(?![\w]|\.\d)")
_CHAIN = re.compile(r"(KUBE-(?:SVC|SVL|SEP|EXT|FW|XLB)-)([A-Z2-7]{16})")
_NFT_NAME = re.compile(r"\b(service|external|firewall|endpoint|local|affinity)-[A-Z2-7]{8}-[^\s,;{}]+")
_COMMENT = re.compile(r'(--comment|comment) "((?:[^"\\]|\\.)*)"|(--comment) ([^\s"]+)')
_WORD = re.compile(r'(--(?:nf|u)?log-prefix|--(?:hex-)?string|log prefix) ("(?:[^"\\]|\\.)*"|[^\s"]+)')
_MAC = re.compile(r"(--mac-source) \S+")
_OWN = {
    "Active ClusterIPs",
    "ClusterIP, ExternalIP and LoadBalancer IP traffic",
    "Drop traffic to unallocated ClusterIPs",
    "IPs that accept NodePort traffic",
    "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose",
    "Kubernetes health check node port",
    "Kubernetes service cluster ip + port for masquerade purpose",
    "Kubernetes service external ip + port for masquerade and filter purpose",
    "Kubernetes service lb portal",
    "NodePort traffic",
    "Reject traffic to invalid ports of ClusterIPs",
    "block incoming localnet connections",
    "destinations that are subject to LoadBalancerSourceRanges",
    "helper for @no-endpoint-services / @no-endpoint-nodeports",
    "kube-proxy firewall rules",
    "kubernetes externally-visible service portals",
    "kubernetes firewall for dropping marked packets",
    "kubernetes forwarding conntrack rule",
    "kubernetes forwarding rules",
    "kubernetes health check rules",
    "kubernetes health check service ports",
    "kubernetes ipvs access filter",
    "kubernetes load balancer firewall",
    "kubernetes postrouting rules",
    "kubernetes service nodeports; NOTE: this must be the last rule in this chain",
    "kubernetes service portals",
    "kubernetes service traffic requiring SNAT",
    "masquerade clusterIP traffic from outside cluster",
    "rules for kube-proxy",
    "service hairpin connections",
    "vmap to drop or reject packets to service nodeports with no endpoints",
    "vmap to drop or reject packets to services with no endpoints",
}
"""Comments of kube-proxy that name nothing of the cluster. All other comments are replaced."""
_NAMED = re.compile(
    r"([^ /]+/[^ ]+)( (?:cluster|external|loadbalancer) IP| has no (?:local )?endpoints| health check node port"
    r"| -> [\d.]+:\d+)?"
)


class Anonymizer:
    """A replacement of addresses and names; the same one for the same text.

    :param key: random bytes. Without them, the replacement cannot be undone by trying all inputs.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._known: dict[str, int] = {}

    def _hash(self, text: str) -> bytes:
        return hmac.digest(self._key, text.encode(), "sha256")

    def _word(self, text: str, length: int) -> str:
        return b32encode(self._hash(text)).decode()[:length]

    def _flip(self, prefix: str) -> int:
        if prefix not in self._known:
            self._known[prefix] = 0 if prefix in _KEPT else self._hash(prefix)[0] & 1
        return self._known[prefix]

    def address(self, text: str, length: int = 32) -> str:
        """Return the replacement of an address.

        :param length: the prefix length, if it is the address of a network.
        :raises ValueError: not an address of IPv4.
        """
        number = int(IPv4Address(text))
        bits = format(number, "032b")
        if any(IPv4Address(text) in network for network in _WHOLE):
            return text
        flips = "".join(str(self._flip(bits[:at])) if at < length else "0" for at in range(32))
        return str(IPv4Address(number ^ int(flips, 2)))

    def _replace_address(self, match: re.Match[str]) -> str:
        length = match[2] or ""
        try:
            return self.address(match[1], int(length[1:] or 32)) + length
        except ValueError:
            return "0.0.0.0"  # noqa: S104 - not an address

    def _replace_comment(self, match: re.Match[str]) -> str:
        word, text = match[1] or match[3], match[2] or match[4] or ""
        named = _NAMED.fullmatch(text)
        if named:
            text = f"{self.name(named[1])}{named[2] or ''}"
        elif text not in _OWN:
            text = self._cover(text)
        return f'{word} "{text}"'

    def _cover(self, text: str) -> str:
        return f"anonymous-{self._word(text, 8).lower()}"

    def name(self, text: str) -> str:
        """Return the replacement of ``namespace/name:port``."""
        name, colon, _ = text.partition(":")
        return f"anonymous/s{self._word(name, 10).lower()}{colon}{colon and 'p' + self._word(text, 4).lower()}"

    def _replace_nft_name(self, match: re.Match[str]) -> str:
        kind, protocol = match[1], re.search(r"/(tcp|udp|sctp)/", match[0])
        name = f"anonymous/s{self._word(match[0], 10).lower()}/{protocol[1] if protocol else 'tcp'}/p"
        return f"{kind}-{self._word(match[0], 8)}-{name}"

    def text(self, text: str) -> str:
        """Replace all addresses, names of Services and of their chains, comments, log prefixes and MAC addresses."""
        text = _NFT_NAME.sub(self._replace_nft_name, text)
        text = _COMMENT.sub(self._replace_comment, text)
        text = _WORD.sub(lambda match: f'{match[1]} "{self._cover(match[2])}"', text)
        text = _MAC.sub(lambda match: f"{match[1]} 02:00:{self._hash(match[0]).hex(':')[:11]}", text)
        text = _CHAIN.sub(lambda match: match[1] + self._word(match[2], 16), text)
        return _ADDRESS.sub(self._replace_address, text)
