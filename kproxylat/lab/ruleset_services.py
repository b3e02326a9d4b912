"""A parser for the ClusterIPs and endpoints in kube-proxy's rules. Pure.

Rules of Kubernetes 1.18 to 1.36: pkg/proxy/iptables, nftables, ipvs/proxier.go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network

from kproxylat.lab.ipvs_rules import PROTOCOL_OPTIONS
from kproxylat.lab.services import Service
from kproxylat.node.iptables_save import Rule, read_chain, read_tables, strip_quoted
from kproxylat.results import Target

_SERVICE_JUMP = re.compile(r"KUBE-SV[CL]-|(?:REJECT|DROP)$")
_OTHER_JUMP = re.compile(r"KUBE-(?:EXT|FW|XLB)-")
_ELEMENT = re.compile(
    r"(?<![\d.])([\d.]{7,15}) \. (tcp|udp|sctp|6|17|132) \. (\d{1,5})"
    r"(?: (?:comment \"([^\"]*)\"|counter packets \d+ bytes \d+))* : (?:drop|goto ([^\s,]+))"
)
_BLOCK = re.compile(r"^[ \t]*(table|set|map|chain) ([^\s{]+(?: [^\s{]+)?) \{", re.M)
_CHAIN_NAME = re.compile(r"(?:service|local)-[^-]+-([^/]+/[^/]+)/\w+/(.*)")
_HOP = re.compile(r"goto (endpoint-[^\s,]+)")
_NAME = re.compile(r"[a-z0-9.-]{1,63}/[a-z0-9.-]{1,63}(?::[a-z0-9-]{0,63})?")
_MOST_RULES, _MOST_TEXT = 20, 2000
"""Rules and characters that are read of an endpoint's chain, which many Services can name; kube-proxy writes fewer."""
_NUMBERS = {"6": "tcp", "17": "udp", "132": "sctp"}
"""Number of a protocol, which nft prints with ``--numeric``, -> its name."""
_TRANSLATION = re.compile(r"(?<![\d.])([\d.]{7,15})(?: \. |:)(\d{1,5})(?!\S)")
"""An endpoint after dnat: ``A:P`` or ``A . P``, alone or as a value of a map."""
_SERVER = re.compile(r"-A (-t|-u|--sctp-service) ([\d.]+):(\d{1,5})(?: |$)")
_REAL = re.compile(r"-a (-t|-u|--sctp-service) ([\d.]+):(\d{1,5}) -r ([\d.]+:\d+)(?: |$)")
_PROTOCOLS = {option: protocol for protocol, option in PROTOCOL_OPTIONS.items()}
_CIDR = r"([\d.]{7,15}/\d{1,2})"
_NODE_PORTS = range(30000, 32768)
"""kube-apiserver's usual --service-node-port-range."""
_OTHER_ADDRESSES = "addresses of LoadBalancers and others"
_LEFT_OUT = {
    "session affinity": r"--rcheck |@affinity-\S+ goto|^-A -\S+ \S+ -s \w+ -p \d",
    "NodePorts": r"^(?:\[\d+:\d+\] )?-A KUBE-NODEPORTS .*-j KUBE-(?:EXT|SVC|SVL|XLB)-|^add KUBE-NODE-PORT\S* "
    r"|^(?:\s*elements = \{)?\s*(?:tcp|udp|sctp|6|17|132) \. \d+ (?:comment \"\" )?: goto",
    _OTHER_ADDRESSES: r"^(?:\[\d+:\d+\] )?-A KUBE-SERVICES -d .*-j KUBE-(?:EXT|FW|XLB)-"
    r"|(?<![\d.])[\d.]{7,15} \. \w+ \. \d+ (?:comment \"\" )?: goto (?:external|firewall)-"
    r"|^add KUBE-(?:LOAD-BALANCER|EXTERNAL-IP)(?:-LOCAL)? ",
}
"""Other parts of a ruleset -> a pattern of their lines, as iptables-save, nft, ipvsadm and ipset print them."""
_LEFT_OUT_FORMS = {part: re.compile(form) for part, form in _LEFT_OUT.items()}
_OTHER_COMMENT = re.compile(r'--comment "[^" ]+ (?:external|loadbalancer) IP"')
"""The comment of a Service's other address. Up to Kubernetes 1.22 its rule led to the same chain as the ClusterIP's."""
_NOTRACK = re.compile(
    r'(?:-d (?P<to>\S+) )?(?:-p (?P<protocol>\w+) )?(?:-m comment --comment "" )?(?:-m \w+ --dports? (?P<ports>\S+) )?'
    r'(?:-m comment --comment "" )?-j (?:NOTRACK|CT --notrack)'
)
_NFT_NOTRACK = re.compile(
    r"\s*(?:ip daddr (?P<to>[\d./]+) )?(?:(?:meta l4proto |ip protocol )?(?P<protocol>tcp|udp|sctp) )?"
    r"(?:dport (?P<ports>[\d-]+|\{[\d, -]+\}) )?(?:counter packets \d+ bytes \d+ )?notrack"
)
"""Rules that take packets out of conntrack, with no other conditions than a Service's address, protocol and port."""
_REFUSAL = re.compile(r'(?:-m comment --comment "" )?-j (REJECT|DROP)(?: --reject-with \S+)?')
_NFT_FORWARD = re.compile(r"type filter hook forward [^\n]*\n(?:(?!\s*\})[^\n]*\n)*")
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_ADDRESS = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}:\d{{1,5}}", re.A)
_RELEASES = (
    ("1.29 to 1.35", r" : goto endpoint-[^\s,]+"),
    ("1.36", r" numgen random mod 1 map \{"),
    ("1.37 or newer", r"^[ \t]*meta l4proto \w+ dnat (?:ip (?:addr \. port )?)?to [\d.]+(?: \. |:)\d+"),
)
"""kube-proxy's releases, and a line that only these write in mode nftables. 1.37 needs no map for a single endpoint."""


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
    endpoints: dict[str, tuple[tuple[str, ...], bool]] = {}
    for rule in [*nat.get("KUBE-SERVICES", []), *rejecting]:
        port, jump = rule.service, rule.jump
        if port is None or ":" in port.ip or _is_other(rule, jump) or not _SERVICE_JUMP.match(jump):
            continue
        if jump not in endpoints:
            endpoints[jump] = _follow_chain(nat, jump)
        name = rule.comment.partition(" ")[0]
        services.append(_make_service(name, port.protocol or "", port.ip, port.port or 0, *endpoints[jump]))
    return services


def _follow_chain(nat: Mapping[str, list[Rule]], chain: str) -> tuple[tuple[str, ...], bool]:
    """Return the endpoints that a Service's chain leads to, and whether its rules have comments."""
    choices = [(jump, rule) for rule in nat.get(chain, []) if (jump := rule.jump).startswith("KUBE-SEP-")]
    # With session affinity, two rules lead to each endpoint's chain.
    rules = [rule for hop in dict.fromkeys(jump for jump, _ in choices) for rule in nat.get(hop, [])[:_MOST_RULES]]
    translations = "\n".join(rule.bare for rule in rules if "--to-destination" in rule.text)
    endpoints = re.findall(r"--to-destination ([\d.]+:\d+)", translations)
    return tuple(endpoints), any(rule.comment for _, rule in choices)


def _is_other(rule: Rule, jump: str) -> bool:
    """Return whether a rule of KUBE-SERVICES is that of a Service's address other than the ClusterIP."""
    return bool(_OTHER_JUMP.match(jump) or _OTHER_COMMENT.search(rule.text))


def _make_service(
    name: str, protocol: str, ip: str, port: str | int, endpoints: Iterable[str], commented: bool = True
) -> Service:
    """Return a Service; if the rules do not hold its name, ``namespace/name:port``, with one made of the address."""
    if not _NAME.fullmatch(name):
        name = make_up_name(protocol, ip, port)
    return Service(name, protocol, ip, int(port), tuple(endpoints), commented)


def make_up_name(protocol: str, ip: str, port: str | int) -> str:
    """Return the name of a Service whose rules do not hold one, as in mode ipvs."""
    return f"unnamed/{ip.replace('.', '-')}:{protocol}-{port}"


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
    endpoints: dict[str, tuple[str, ...]] = {}
    for map_name in ("service-ips", "no-endpoint-services"):
        for ip, number, port, comment, chain in _ELEMENT.findall(blocks.get(map_name, "")):
            protocol = _NUMBERS.get(number, number)
            if chain.startswith(("external-", "firewall-")):  # another address of the Service
                continue
            if chain not in endpoints:
                body = blocks.get(chain, "")
                bodies = [blocks.get(hop, "")[:_MOST_TEXT] for hop in dict.fromkeys(_HOP.findall(body))] or [body]
                pairs = [pair for text in bodies for pair in _TRANSLATION.findall(text.partition("dnat ")[2])]
                endpoints[chain] = tuple(map(":".join, pairs))
            words = _CHAIN_NAME.fullmatch(chain)
            name = f"{words[1]}:{words[2]}".rstrip(":") if words else comment
            services.append(_make_service(name, protocol, ip, port, endpoints[chain]))
    return services


def _split_blocks(text: str) -> dict[str, str]:
    """Split kube-proxy's table in an nft ruleset: name of a set, map or chain -> its content."""
    heads = list(_BLOCK.finditer(text))
    ends = [*(head.start() for head in heads), len(text)][1:]
    blocks, table = {}, ""
    for head, end in zip(heads, ends, strict=True):
        if head[1] == "table":
            table = head[2]
        elif table == "ip kube-proxy":
            blocks[head[2]] = text[head.end() : end]
    return blocks


def parse_ipvsadm(text: str) -> list[Service]:
    """Parse the virtual servers over IPv4, as ``ipvsadm -Sn`` prints them.

    Samples: ``-A -t 10.96.0.9:80 -s rr`` and ``-a --sctp-service 10.96.0.9:80 -r 10.244.1.7:8080 -m -w 1``.
    """
    servers: dict[tuple[str, ...], list[str]] = {}
    for line in text.splitlines():
        if server := _SERVER.match(line):
            servers.setdefault(server.groups(), [])
        elif (endpoint := _REAL.match(line)) and endpoint.groups()[:3] in servers:
            servers[endpoint.groups()[:3]].append(endpoint[4])
    return [_make_service("", _PROTOCOLS[option], ip, port, servers[option, ip, port]) for option, ip, port in servers]


def find_foreign(texts: Mapping[str, str], services: Iterable[Service]) -> tuple[set[str], bool]:
    """Find the Services' addresses that are not ClusterIPs: of LoadBalancers, external ones, the node's for NodePorts.

    :param texts: kind of text -> text.
    :param services: the Services in these texts.
    :return: the addresses, and whether a set or the rules identify them; otherwise they are a guess.
    """
    services = list(services)
    addresses = {service.ip for service in services}
    nft = texts.get("nft", "")
    lines = [line for line in nft.split("\n") if " : goto external-" in line or " : goto firewall-" in line]
    elements = _ELEMENT.findall("\n".join(lines))
    other = {ip for ip, *_, chain in elements if chain.startswith(("external-", "firewall-"))}
    if "ipvsadm" not in texts:
        rules = read_chain(texts.get("iptables-save", ""), "KUBE-SERVICES")
        other |= {rule.service.ip for rule in rules if _is_other(rule, rule.jump) and rule.service}
    _, _, cluster_set = nft.partition("set cluster-ips {")
    cluster_ips = re.findall(r"(?<![\d.])[\d.]{7,15}(?=,|\s)", strip_quoted(cluster_set.partition("\n}\n")[0]))
    cluster_ips += re.findall(r"^add KUBE-CLUSTER-IP ([\d.]+),", texts.get("ipset", ""), re.M)
    if cluster_ips:
        return (addresses | other) - set(cluster_ips), True
    if "ipvsadm" not in texts:
        return other, True
    pods = {endpoint.rpartition(":")[0] for service in services for endpoint in service.endpoints}
    with_other_ports = {service.ip for service in services if service.port not in _NODE_PORTS}
    return (addresses & pods) | (addresses - with_other_ports), False


def count_left_out(texts: Mapping[str, str]) -> dict[str, int]:
    """Count the lines that a ruleset holds beside ClusterIPs and that make lookups slower: name of a part -> lines."""
    counts = dict.fromkeys(_LEFT_OUT_FORMS, 0)
    for line in (line for text in texts.values() for line in text.split("\n")):
        bare = strip_quoted(line) if '"' in line else line
        for part, form in _LEFT_OUT_FORMS.items():
            counts[part] += bool(form.search(bare))
        counts[_OTHER_ADDRESSES] += bare is not line and "-j KUBE-SVC-" in bare and bool(_OTHER_COMMENT.search(line))
    return {part: count for part, count in counts.items() if count}


def find_cluster_cidr(text: str) -> IPv4Network | None:
    """Return clusterCIDR, which the rules that masquerade traffic from outside name; None if no rule names it.

    Samples: ``! -s 10.244.0.0/16 -d 10.96.0.9/32 ... -j KUBE-MARK-MASQ``; in 1.36 ``ip daddr @cluster-ips ip saddr !=
    10.244.0.0/16 meta mark set``; before ``ip daddr 10.96.0.9 tcp dport 80 ip saddr != 10.244.0.0/16 jump
    mark-for-masquerade``.
    """
    for match in re.finditer(rf"! -s {_CIDR} |ip saddr != {_CIDR} (?:jump mark-for-masq|meta mark set)", text):
        end = text.find("\n", match.end())
        if match[1] and text.find("-j KUBE-MARK-MASQ", match.end(), end if end >= 0 else len(text)) < 0:
            continue
        try:
            return IPv4Network(match[1] or match[2])
        except ValueError:
            return None
    return None


def find_release(text: str) -> str | None:
    """Return which releases of kube-proxy write rules of this form in mode nftables; None if the form does not tell."""
    return next((release for release, sign in _RELEASES if re.search(sign, text, re.M)), None)


def find_untracked(texts: Mapping[str, str], services: Iterable[Service]) -> dict[Target, str]:
    """Find Services whose packets a rule takes out of conntrack, so that no rule translates them.

    Samples: ``-A PREROUTING -d 10.96.0.10/32 -p udp -m udp --dport 53 -j NOTRACK`` of NodeLocal DNSCache; ``ip daddr
    10.96.0.10 udp dport 53 notrack``. Rules with other conditions are not understood, and match nothing here.

    :return: Service -> the reason, with the rule.
    """
    rules = [rule.bare for chain in read_table(texts, "raw").values() for rule in chain]
    matches = [match for rule in rules if (match := _NOTRACK.fullmatch(rule))]
    lines = (line for line in texts.get("nft", "").split("\n") if "notrack" in line)
    matches += [match for line in lines if (match := _NFT_NOTRACK.match(line))]
    conditions = [condition for match in matches if (condition := _read_condition(match))]
    return {
        Target(service.ip, service.port, service.protocol): f"a rule takes its packets out of conntrack: {rule}"
        for service in services
        for network, protocol, ports, rule in conditions
        if IPv4Address(service.ip) in network
        and protocol in ("", service.protocol)
        and any(service.port in part for part in ports)
    }


def _read_condition(match: re.Match[str]) -> tuple[IPv4Network, str, list[range], str] | None:
    """Return the network, protocol and ports that a rule matches, and the rule."""
    pairs = re.findall(r"(\d{1,5})(?:[:-](\d{1,5}))?", match["ports"] or "0:65535")
    try:
        network = IPv4Network(match["to"] or "0.0.0.0/0")
    except ValueError:
        return None
    return network, match["protocol"] or "", [range(int(a), int(b or a) + 1) for a, b in pairs], match[0].strip()


def read_table(texts: Mapping[str, str], name: str) -> dict[str, list[Rule]]:
    """Return one table of iptables-save's text: chain -> rules."""
    _, _, rest = f"\n{texts.get('iptables-save', '')}".partition(f"\n*{name}\n")
    return read_tables(f"*{name}\n{rest.partition('COMMIT')[0]}")[name]


def find_refusals(texts: Mapping[str, str]) -> list[str]:
    """Return a sentence on each chain that refuses all forwarded packets that no rule before accepts."""
    notes = []
    if "\n:FORWARD DROP" in texts.get("iptables-save", ""):
        notes.append("its chain FORWARD drops packets that no rule accepts")
    rules = read_table(texts, "filter").get("FORWARD", [])
    if rules and (match := _REFUSAL.fullmatch(rules[-1].bare)):
        notes.append(f"its chain FORWARD ends with {match[1]}: packets that no rule before accepts do not arrive")
    for chain in _NFT_FORWARD.findall(texts.get("nft", "")):
        if "policy drop" in chain.partition("\n")[0]:
            notes.append("an nft chain at hook forward drops packets that no rule accepts")
        if match := re.search(r"^\s*(?:counter packets \d+ bytes \d+ )?(reject|drop)\b[^\n]*\n\Z", chain, re.M):
            notes.append(
                f"an nft chain at hook forward ends with {match[1]}: packets that no rule accepts do not arrive"
            )
    return notes


def select_valid(services: Iterable[Service]) -> list[Service]:
    """Return the Services whose address and endpoints are addresses and ports of IPv4."""
    # Services can share their endpoints, which are then checked once.
    services = list(services)
    lists = {id(service.endpoints): service.endpoints for service in services}
    valid = {number for number, endpoints in lists.items() if all(map(_is_address, endpoints))}
    return [service for service in services if id(service.endpoints) in valid and _is_address(service.address)]


def _is_address(text: str) -> bool:
    return bool(_ADDRESS.fullmatch(text)) and 0 < int(text.rpartition(":")[2]) < 65536


def find_names(option: str, text: str) -> list[str]:
    """Return the values of an option in iptables-save's text, sorted."""
    return sorted(set(re.findall(rf" {option} (\S+)", strip_quoted(text)))) if option in text else []
