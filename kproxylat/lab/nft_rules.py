"""A parser for the output of ``nft list``, and a writer of what it understood. The text is untrusted. Pure.

The text for ``nft -f`` holds only tables with chains, sets, maps and counters, and in them only words of this module's
list, numbers, addresses, quoted strings, and names that the table declares. So no command, include, variable, comment
or continued line reaches nft: nft(8) opens the file that follows ``include`` as root.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

from kproxylat.errors import RulesetError
from kproxylat.lab.iptables_rules import FORBIDDEN, add_note, refuse

_QUOTED_OR_COMMENT = re.compile(r'("[^"\n]*"|#[^\n]*)')
_LINE_END = "\0"
"""The token of a line's end: a character that no text holds."""
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
_OF_IPTABLES = {"xt", "XT"}
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
    managed = set(_MANAGED.findall(text) if "managed by iptables-nft" in text else ())
    kept: list[str] = []
    for table in _split_tables(source, text, _tokenize(text)):
        of_iptables = table.name in managed or not _OF_IPTABLES.isdisjoint(table.tokens)
        if of_iptables or table.tokens[1] not in _FAMILIES:
            add_note(notes, f"table {table.name} is left out{': iptables-nft wrote it' if of_iptables else ''}")
            continue
        _check_table(source, text, table)
        kept += [*table.tokens, _LINE_END]
    return " ".join(kept).replace(f" {_LINE_END}", "\n").replace("\n ", "\n")


def _tokenize(text: str) -> list[str]:
    """Split a text into words, quoted strings, separators and line ends, without comments."""
    tokens: list[str] = []
    for number, part in enumerate(_QUOTED_OR_COMMENT.split(text)):
        if number % 2 == 0:
            spaced = part.replace("\n", f" {_LINE_END} ")
            for symbol in "{}();,":
                spaced = spaced.replace(symbol, f" {symbol} ")
            tokens += spaced.split()
        elif part[0] == '"':
            tokens.append(part)
        elif part.startswith("# xt_"):  # only rules of iptables-nft have this comment
            tokens.append("xt")
    return tokens


class _Table(NamedTuple):
    """One table.

    :param tokens: those from "table" to the last "}".
    :param braces: the indexes of its braces in the tokens.
    :param line: the number of its first line.
    """

    tokens: list[str]
    braces: list[int]
    line: int

    @property
    def name(self) -> str:
        """E.g. ``ip kube-proxy``."""
        return " ".join(self.tokens[1:3])

    def count_lines(self, at: int) -> int:
        """Return the number of the line that holds a token."""
        return self.line + self.tokens[:at].count(_LINE_END)


def _error(source: str, text: str, number: int, why: str) -> RulesetError:
    return refuse(source, number, text.split("\n")[number - 1], why)


def _split_tables(source: str, text: str, tokens: list[str]) -> list[_Table]:
    tables, depth, first, end, line = [], 0, 0, 0, 1
    braces = [at for at, symbol in enumerate(tokens) if symbol in ("{", "}")]
    for number, at in enumerate(braces):
        if tokens[at] == "{":
            if not depth:
                line += tokens[end:at].count(_LINE_END)
                words = [word for word in tokens[end:at] if word != _LINE_END]
                if len(words) != 3 or words[0] != "table" or not _NAME.fullmatch(words[2]):
                    raise _error(source, text, line, f"not a table of nft list: {' '.join(words)[:40]!r}")
                first = number
            depth += 1
            continue
        depth -= 1
        if depth < 0:
            raise _error(source, text, line, "nft's braces do not match: the text is cut, or was filtered")
        if not depth:
            start, end = braces[first] - 3, at + 1
            inside = [brace - start for brace in braces[first : number + 1]]
            tables.append(_Table(tokens[start:end], inside, line))
            line += tokens[start:end].count(_LINE_END)
    if depth:
        name = " ".join(tokens[braces[first] - 2 : braces[first]])
        raise RulesetError(
            f"{source} is cut: its table {name} does not end", "run nft list ruleset again, and pass all"
        )
    for symbol in tokens[end:]:
        if symbol != _LINE_END:
            raise _error(source, text, line, f"not a table of nft list: {symbol[:40]!r}")
        line += 1
    return tables


def _check_table(source: str, text: str, table: _Table) -> None:
    """Make sure that a table holds only what this module accepts."""
    tokens, names, depth = table.tokens, set(), 1
    for before, at in pairwise(table.braces):
        if depth == 1:
            words = [word for word in tokens[before + 1 : at] if word not in (_LINE_END, ";")]
            if words[:1] == ["comment"]:
                words = words[2:]
            is_object = len(words) == 2 and words[0] in _OBJECTS and _NAME.fullmatch(words[1])
            if words and not (is_object and tokens[at] == "{"):
                at_words = next(number for number in range(before + 1, at) if tokens[number] == words[0])
                why = f"unknown part of a table: {' '.join(words)[:60]!r}"
                raise _error(source, text, table.count_lines(at_words), why)
            names.update(words[1:])
        depth += 1 if tokens[at] == "{" else -1
    known = names | WORDS | {_LINE_END, *tokens[1:3]} | {f"@{name}" for name in names}
    unknown = {word for word in set(tokens) - known if not _VALUE.fullmatch(word)}
    if not unknown:
        return
    at = next(number for number, token in enumerate(tokens) if token in unknown)
    if tokens[at - 1] in ("goto", "jump") or tokens[at].startswith("@"):
        why = f"the text is cut or was filtered: it names {tokens[at][:60]!r}, but does not hold it"
    else:
        why = f"unknown word {tokens[at][:40]!r}"
    raise _error(source, text, table.count_lines(at), why)
