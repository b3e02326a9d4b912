"""A parser for the ClusterIPs and endpoints in kube-proxy's rules. Pure.

Rules of Kubernetes 1.18 to 1.36: pkg/proxy/iptables, nftables, ipvs/proxier.go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network

from kproxylat.lab.ruleset_check import find_tables
from kproxylat.lab.services import Service
from kproxylat.node.iptables_save import read_tables, strip_quoted

_SERVICE_JUMP = re.compile(r"KUBE-SV[CL]-|(?:REJECT|DROP)$")
_ELEMENT = re.compile(
    r"([\d.]+) \. (tcp|udp|sctp|6|17|132) \. (\d{1,5})"
    r"(?: (?:comment \"([^\"]*)\"|counter packets \d+ bytes \d+))* : goto ([^\s,]+)"
)
_NUMBERS = {"6": "tcp", "17": "udp", "132": "sctp"}
"""Number of a protocol, which nft prints with ``--numeric``, -> its name."""
_SERVER = re.compile(r"-A -([tu]) ([\d.]+):(\d{1,5})(?: |$)")
_REAL = re.compile(r"-a -([tu]) ([\d.]+):(\d{1,5}) -r ([\d.]+:\d+)(?: |$)")
_CIDR = r"([\d.]+/\d+)"
_NODE_PORTS = range(30000, 32768)
"""kube-apiserver's usual --service-node-port-range."""
_LEFT_OUT = {
    "session affinity": r"--rcheck |@affinity-\S+ goto|^-A -[tu] \S+ .*-p \d",
    "NodePorts": r"-A KUBE-NODEPORTS .*-j KUBE-(?:EXT|SVC|SVL|XLB)-|(?<!\. )\b(?:tcp|udp|sctp|6|17|132) \. \d+ : goto"
    r"|add KUBE-NODE-PORT\S* ",
    "addresses of LoadBalancers and others": r"-A KUBE-SERVICES -d .*-j KUBE-(?:EXT|FW|XLB)-"
    r"|^\s.*[\d.]+ \. \w+ \. \d+.* : goto (?:external|firewall)-|add KUBE-(?:LOAD-BALANCER|EXTERNAL-IP)(?:-LOCAL)? ",
}
"""Other parts of a ruleset -> a pattern of their lines, as iptables-save, nft, ipvsadm and ipset print them."""


def parse_iptables(text: str) -> list[Service]:
    """Parse the Services of mode iptables, as ``iptables-save`` prints them.

    Sample (a Service's rule leads to the Service's chain, whose rules lead to endpoints' chains, which translate)::

        -A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m comment --comment "default/web:http cluster IP" -m tcp --dport 80
        -j KUBE-SVC-X
        -A KUBE-SVC-X -m comment --comment "default/web:http -> 10.244.1.7:8080" -j KUBE-SEP-Y
        -A KUBE-SEP-Y -p tcp -m comment --comment "default/web:http" -m tcp -j DNAT --to-destination 10.244.1.7:8080

    :return: Services in the order of the rules of KUBE-SERVICES; last those without endpoints, which table filter
        rejects. Only Services of IPv4.
    """
    tables = read_tables(text)
    nat, rejecting = tables.get("nat", {}), tables.get("filter", {}).get("KUBE-SERVICES", [])
    services = []
    for rule in [*nat.get("KUBE-SERVICES", []), *rejecting]:
        port = rule.service
        # Up to Kubernetes 1.22 the Service's other addresses led to the same chain.
        other = rule.comment.endswith(("external IP", "loadbalancer IP"))
        if port is None or ":" in port.ip or other or not _SERVICE_JUMP.match(rule.jump):
            continue
        choices = [choice for choice in nat.get(rule.jump, []) if choice.jump.startswith("KUBE-SEP-")]
        # With session affinity, two rules lead to each endpoint's chain.
        chains = dict.fromkeys(choice.jump for choice in choices)
        translations = [translation.bare for chain in chains for translation in nat.get(chain, [])]
        endpoints = re.findall(r"--to-destination ([\d.]+:\d+)", "\n".join(translations))
        name, commented = rule.comment.partition(" ")[0], any(choice.comment for choice in choices)
        services.append(_make_service(name, port.protocol, port.ip, port.port, endpoints, commented))
    return services


def _make_service(
    name: str, protocol: str, ip: str, port: str | int, endpoints: Iterable[str], commented: bool = True
) -> Service:
    """Return a Service; if the rules do not hold its name, ``namespace/name:port``, with one made of the address."""
    if not re.fullmatch(r"[a-z0-9.-]{1,63}/[a-z0-9.-]{1,63}(?::[a-z0-9-]{0,63})?", name):
        name = f"unnamed/{ip.replace('.', '-')}:{protocol}-{port}"
    return Service(name, protocol, ip, int(port), tuple(endpoints), commented)


def parse_nft(text: str) -> list[Service]:
    """Parse the Services of mode nftables, as ``nft list table ip kube-proxy`` prints them.

    Samples of 1.36, and of 1.29 to 1.35, in which each endpoint has a chain of its own::

        elements = { 10.96.0.9 . tcp . 80 : goto service-ABCDEFGH-default/web/tcp/http, ... }
        chain service-ABCDEFGH-default/web/tcp/http {
            meta l4proto tcp dnat ip to numgen random mod 1 map { 0 : 10.244.1.7 . 8080 }
            numgen random mod 1 vmap { 0 : goto endpoint-...__10.244.1.7/8080 }

    :return: Services in the order of maps service-ips and no-endpoint-services.
    """
    blocks = _split_blocks(text)
    services = []
    for map_name in ("service-ips", "no-endpoint-services"):
        for ip, number, port, comment, chain in _ELEMENT.findall(blocks.get(map_name, "")):
            protocol = _NUMBERS.get(number, number)
            if chain.startswith(("external-", "firewall-")):  # another address of the Service
                continue
            body = strip_quoted(blocks.get(chain, ""))
            hops = dict.fromkeys(re.findall(r"goto (endpoint-[^\s,]+)", body))
            endpoints = [":".join(pair) for pair in re.findall(r"\d+ : ([\d.]+) \. (\d+)", body)]
            for hop in hops:
                endpoints += re.findall(r"dnat to ([\d.]+:\d+)", blocks.get(hop, ""))
            words = re.fullmatch(r"(?:service|local)-[^-]+-([^/]+/[^/]+)/\w+/(.*)", chain)
            name = f"{words[1]}:{words[2]}".rstrip(":") if words else comment
            services.append(_make_service(name, protocol, ip, port, endpoints))
    return services


def _split_blocks(text: str) -> dict[str, str]:
    """Split kube-proxy's table in an nft ruleset: name of a set, map or chain -> its content."""
    table = dict(find_tables(text)).get("ip kube-proxy", "")
    return dict(re.findall(r"^\s+(?:set|map|chain) (\S+) \{(.*?)^\s+\}$", table, re.M | re.S))


def parse_ipvsadm(text: str) -> list[Service]:
    """Parse the virtual servers of TCP and UDP over IPv4, as ``ipvsadm -Sn`` prints them.

    Samples: ``-A -t 10.96.0.9:80 -s rr`` and ``-a -t 10.96.0.9:80 -r 10.244.1.7:8080 -m -w 1``.
    """
    servers: dict[tuple[str, ...], list[str]] = {}
    for line in text.splitlines():
        if server := _SERVER.match(line):
            servers.setdefault(server.groups(), [])
        elif (endpoint := _REAL.match(line)) and endpoint.groups()[:3] in servers:
            servers[endpoint.groups()[:3]].append(endpoint[4])
    protocols = {"t": "tcp", "u": "udp"}
    return [_make_service("", protocols[letter], ip, port, servers[letter, ip, port]) for letter, ip, port in servers]


def find_foreign(texts: Mapping[str, str], services: Iterable[Service]) -> tuple[set[str], bool]:
    """Find the Services' addresses that are not ClusterIPs: of LoadBalancers, external ones, the node's for NodePorts.

    :param texts: kind of text -> text.
    :param services: the Services in these texts.
    :return: the addresses, and whether a set identifies them; otherwise they are a guess.
    """
    services = list(services)
    addresses = {service.ip for service in services}
    cluster_ips = re.findall(r"[\d.]{7,}", strip_quoted(_split_blocks(texts.get("nft", "")).get("cluster-ips", "")))
    cluster_ips += re.findall(r"^add KUBE-CLUSTER-IP ([\d.]+),", texts.get("ipset", ""), re.M)
    if cluster_ips:
        return addresses - set(cluster_ips), True
    if "ipvsadm" not in texts:
        return set(), False
    pods = {endpoint.rpartition(":")[0] for service in services for endpoint in service.endpoints}
    with_other_ports = {service.ip for service in services if service.port not in _NODE_PORTS}
    return (addresses & pods) | (addresses - with_other_ports), False


def count_left_out(texts: Mapping[str, str]) -> dict[str, int]:
    """Count the lines that a ruleset holds beside ClusterIPs and that make lookups slower: name of a part -> lines."""
    lines = [strip_quoted(line) for text in texts.values() for line in text.splitlines()]
    counts = {part: sum(bool(re.search(form, line)) for line in lines) for part, form in _LEFT_OUT.items()}
    return {part: count for part, count in counts.items() if count}


def find_cluster_cidr(text: str) -> IPv4Network | None:
    """Return clusterCIDR, which the rules that masquerade traffic from outside name; None if no rule names it.

    Samples: ``! -s 10.244.0.0/16 -d 10.96.0.9/32 ... -j KUBE-MARK-MASQ``; in 1.36 ``ip daddr @cluster-ips ip saddr !=
    10.244.0.0/16 meta mark set``; before ``ip daddr 10.96.0.9 tcp dport 80 ip saddr != 10.244.0.0/16 jump
    mark-for-masquerade``.
    """
    match = re.search(rf"! -s {_CIDR} .*-j KUBE-MARK-MASQ", text)
    match = match or re.search(rf"ip daddr (?:\S+ )*?ip saddr != {_CIDR} (?:jump mark-for-masq|meta mark set)", text)
    try:
        return IPv4Network(match[1]) if match else None
    except ValueError:
        return None
