"""A parser for the output of ``nft list``, and a writer of what it understood. The text is untrusted. Pure.

The text for ``nft -f`` holds only tables with chains, sets, maps and counters, and in them only words of this module's
list, numbers, addresses, quoted strings, and names that the table declares. So no command, include, variable, comment
or continued line reaches nft: nft(8) opens the file that follows ``include`` as root.
"""

from __future__ import annotations

import re

from kproxylat.errors import RulesetError
from kproxylat.lab.iptables_rules import FORBIDDEN, add_note, refuse

_TOKEN = re.compile(
    r'[ \t]*(?:#(?! ?xt_)[^\n]*)?(\n|"[^"\n]*"|[\w@*-][\w.@*/+-]*(?::+[\w.*/+-]+)*(?:::)?|::[\w.:/]*'
    r"|\[[\da-f:.]+\](?::\d+)?|[!=<>]=|<<|>>|[^\n])",
    re.A,
)
"""A token after blanks and a comment. The comment ``# xt_...`` stays, since only rules of iptables-nft have it."""
_NAME = re.compile(r"(?!(?:include|define|redefine|undefine)$)[A-Za-z_][\w./-]{0,255}", re.A)
_VALUE = re.compile(
    r"-?\d[\w.:/-]{0,99}|[\da-fA-F]{0,4}:[\da-fA-F:.]{0,45}(?:/\d{1,3}|-[\da-fA-F:.]{2,45})?"
    r'|\[[\da-fA-F:.]{2,45}\](?::\d{1,5})?|"[^"\\]{0,200}"|[-{}();,=:.|&^<>!+/]|[!=<>]=|<<|>>',
    re.A,
)
"""A number, address, string, operator or separator."""
_OBJECTS = {"chain", "set", "map", "counter"}
_FAMILIES = {"ip", "inet"}
_MANAGED = re.compile(r"^# Warning: table (\w+ \S+) is managed by iptables-nft", re.M)
_OF_IPTABLES = {"xt", "XT", "#"}
_WORDS = """
    table chain set map counter comment type typeof hook priority policy device flags timeout gc-interval size elements
    expires auto-merge verdict ipv4_addr ipv6_addr ether_addr inet_proto inet_service mark ifname iface_index
    dynamic constant interval performance memory dormant
    filter nat route prerouting input forward output postrouting ingress egress raw mangle dstnat srcnat security
    accept drop return continue jump goto reject with tcp reset icmp icmpv6 icmpx port-unreachable host-unreachable
    net-unreachable prot-unreachable net-prohibited host-prohibited admin-prohibited no-route addr-unreachable
    policy-fail reject-route
    dnat snat to masquerade redirect random fully-random persistent addr port prefix netmap notrack
    packets bytes log level group snaplen queue-threshold emerg alert crit err warn notice info debug audit all skuid
    limit rate over burst second minute hour day week kbytes mbytes quota until used
    ip ip6 saddr daddr protocol version hdrlength length dscp ecn ttl id frag-off checksum nexthdr hoplimit flowlabel
    udp sctp udplite dccp esp ah comp th sport dport code fin syn rst psh ack urg cwr window doff sequence ackseq
    option maxseg igmp ipv6-icmp arp vlan ether ip4 sctp chunk
    meta l4proto nfproto iif oif iifname oifname iiftype oiftype skgid pkttype cpu iifgroup oifgroup cgroup nftrace
    ipv4 ipv6 unicast broadcast multicast anycast host local blackhole unreachable prohibit other loopback
    ct state status direction original reply expiration label zone proto-src proto-dst count established related new
    invalid untracked expected seen-reply assured confirmed snat dnat dying
    fib check missing rt classid nexthop mtu socket transparent wildcard ipsec in out
    numgen inc random mod offset jhash symhash seed vmap and or xor not eq ne lt gt le ge lshift rshift
    add update delete null exists kernel user last never
    echo-request echo-reply destination-unreachable time-exceeded parameter-problem router-solicitation
    router-advertisement nd-neighbor-solicit nd-neighbor-advert nd-router-solicit nd-router-advert nd-redirect
    packet-too-big source-quench timestamp-request timestamp-reply info-request info-reply mld-listener-query
    mld-listener-report mld-listener-done mld-listener-reduction mld2-listener-report
    cs0 cs1 cs2 cs3 cs4 cs5 cs6 cs7 af11 af12 af13 af21 af22 af23 af31 af32 af33 af41 af42 af43 ef be
    http https ssh domain bootps bootpc ntp snmp
"""
WORDS = set(_WORDS.split())
"""Words of nft's language that kube-proxy, CNIs, docker and firewalls write in rules."""


def rewrite_nft(source: str, text: str, notes: list[str]) -> str:
    """Parse an nft ruleset, and write the text for ``nft -f``.

    Left out are tables of other families than ip and inet, and those of iptables-nft, which nft cannot load.

    :param source: the file, for messages.
    :param notes: gets a sentence on each table that is left out.
    :raises RulesetError: the text has another form, or holds a word that is not in the list.
    """
    if match := FORBIDDEN.search(text):
        number = text.count("\n", 0, match.start()) + 1
        raise refuse(source, number, text.split("\n")[number - 1], "not a line of nft list: it has a control character")
    tokens = _TOKEN.findall(f"{text}\n")
    managed = set(_MANAGED.findall(text))
    kept: list[str] = []
    for name, tokens_of_table, number in _split_tables(source, text, tokens):
        of_iptables = name in managed or not _OF_IPTABLES.isdisjoint(tokens_of_table)
        if of_iptables or name.split()[0] not in _FAMILIES:
            add_note(notes, f"table {name} is left out{': iptables-nft wrote it' if of_iptables else ''}")
            continue
        _check_table(source, text, tokens_of_table, number)
        kept += [*tokens_of_table, "\n"]
    return " ".join(kept).replace("\n ", "\n").replace(" \n", "\n")


def _error(source: str, text: str, number: int, why: str) -> RulesetError:
    return refuse(source, number, text.split("\n")[number - 1], why)


def _split_tables(source: str, text: str, tokens: list[str]) -> list[tuple[str, list[str], int]]:
    """Split a ruleset into tables: name (``ip kube-proxy``), tokens from "table" to "}", number of the first line."""
    tables, depth, start, end, lines = [], 0, 0, 0, 1
    for at, symbol in enumerate(tokens):
        if symbol == "{":
            if not depth:
                gap = tokens[end:at]
                lines += gap.count("\n")
                words = [word for word in gap if word != "\n"]
                if len(words) != 3 or words[0] != "table" or not _NAME.fullmatch(words[2]):
                    raise _error(source, text, lines, "not a table of nft list")
                start, name = at - 3, " ".join(words[1:])
            depth += 1
        elif symbol == "}":
            depth -= 1
            if depth < 0:
                raise _error(source, text, lines, "nft's braces do not match: the text is cut, or was filtered")
            if not depth:
                end = at + 1
                tables.append((name, tokens[start:end], lines))
                lines += tokens[start:end].count("\n")
    if depth:
        raise RulesetError(
            f"{source} is cut: its table {name} does not end", "run nft list ruleset again, and pass all"
        )
    for symbol in tokens[end:]:
        if symbol != "\n":
            raise _error(source, text, lines, f"not a table of nft list: {symbol[:40]!r}")
        lines += 1
    return tables


def _check_table(source: str, text: str, tokens: list[str], number: int) -> None:
    """Make sure that a table holds only what this module accepts.

    :param number: the number of its first line.
    """
    names, depth, end = set(), 1, 4
    for at in [at for at, token in enumerate(tokens) if token in ("{", "}")][1:]:
        if depth == 1:
            words = [word for word in tokens[end:at] if word not in ("\n", ";")]
            if words[:1] == ["comment"]:
                words = words[2:]
            if tokens[at] == "{":
                if len(words) != 2 or words[0] not in _OBJECTS or not _NAME.fullmatch(words[1]):
                    line = number + tokens[:at].count("\n")
                    raise _error(source, text, line, f"unknown part of a table: {' '.join(words)[:60]!r}")
                names.add(words[1])
            elif words:
                line = number + tokens[:at].count("\n") - 1
                raise _error(source, text, line, f"unknown part of a table: {' '.join(words)[:60]!r}")
        depth += 1 if tokens[at] == "{" else -1
        end = at + 1
    known = names | WORDS | {"\n", *tokens[1:3]} | {f"@{name}" for name in names}
    unknown = {word for word in set(tokens) - known if not _VALUE.fullmatch(word)}
    if not unknown:
        return
    at = next(at for at, token in enumerate(tokens) if token in unknown)
    line = number + tokens[:at].count("\n")
    if tokens[at - 1] in ("goto", "jump") or tokens[at].startswith("@"):
        why = f"the text is cut or was filtered: it names {tokens[at][:60]!r}, but does not hold it"
        raise _error(source, text, line, why)
    raise _error(source, text, line, f"unknown word {tokens[at][:40]!r}")
