"""A reader of rules as ``iptables-save`` and ``iptables -S`` print them. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import NamedTuple

from kproxylat.results import Target

_RULE = re.compile(r"(?:\[(\d{1,20}):\d+\] )?-A (\S+) ?(.*)")
_COUNTERS = re.compile(r"(?:^| )-c (\d{1,20}) \d+(?= |$)")
_QUOTED = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?')
"""A quoted string. One without an end matches too, so that a search takes linear time in any text."""
_COMMENT = re.compile(r'--comment (?:"((?:[^"\\]|\\.)*)"|(\S+))')
_JUMP = re.compile(r" -[jg] (\S+)")
_SERVICE = re.compile(
    r"(?:! -s \S+ )?-d ([\da-f.:]+)(?:/32|/128)? -p (tcp|udp|sctp) .*--dport (\d{1,5})(?: -c \d+ \d+)? -j "
)


class Rule(NamedTuple):
    """One rule.

    :param chain: the chain that holds the rule.
    :param text: the rule as printed, without ``-A CHAIN``.
    :param packets: how many packets the rule has counted; None if it was printed without counters.
    """

    chain: str
    text: str
    packets: int | None = None

    @property
    def bare(self) -> str:
        """The text without quoted strings."""
        return strip_quoted(self.text)

    @property
    def comment(self) -> str:
        """The comment, without quotes; "" if the rule has none."""
        match = _COMMENT.search(self.text)
        return (match[1] or match[2] or "") if match else ""

    @property
    def jump(self) -> str:
        """The chain or target that the rule leads to; "" if it only counts."""
        # Most rules end with the jump: without a quote after it, no comment holds it.
        _, _, end = self.text.rpartition(" -j ")
        if end != self.text and '"' not in end:
            return end.partition(" ")[0]
        match = _JUMP.search(f" {self.bare}")
        return match[1] if match else ""

    @property
    def service(self) -> Target | None:
        """The Service port that the rule matches; None if it matches anything else, or has further conditions."""
        match = _SERVICE.match(self.bare)
        return Target(match[1], int(match[3]), match[2]) if match else None


def strip_quoted(text: str) -> str:
    """Replace each quoted string, whose content can be anything, by ``""``."""
    return _QUOTED.sub('""', text)


def parse_rule(line: str) -> Rule | None:
    """Parse one line; None if it is not a rule.

    Samples, with counters, of ``iptables-save -c`` and of ``iptables -v -S``::

        [7:420] -A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m comment --comment "default/web cluster IP" -m tcp --dport 80
        -j KUBE-SVC-X
        -A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m comment --comment "default/web cluster IP" -m tcp --dport 80 -c 7 420
        -j KUBE-SVC-X
    """
    match = _RULE.match(line)
    if not match:
        return None
    packets, chain, text = match.groups()
    if packets is None and " -c " in text:
        counters = _COUNTERS.search(strip_quoted(text))
        packets = counters[1] if counters else None
    return Rule(chain, text, None if packets is None else int(packets))


def read_chain(text: str, chain: str) -> list[Rule]:
    """Return a chain's rules out of the output of ``iptables-save`` for one table, without parsing other chains."""
    rules = (parse_rule(line) for line in text.split("\n") if f"-A {chain} " in line)
    return [rule for rule in rules if rule and rule.chain == chain]


def read_tables(text: str) -> dict[str, dict[str, list[Rule]]]:
    """Read the output of ``iptables-save``.

    Sample::

        *nat
        :KUBE-SERVICES - [0:0]
        [7:420] -A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-X
        COMMIT

    :return: table -> chain -> rules in their order. A table can be empty; a chain without rules is absent.
    """
    tables: dict[str, dict[str, list[Rule]]] = {}
    chains: dict[str, list[Rule]] = defaultdict(list)
    for line in text.split("\n"):
        if line.startswith("*"):
            chains = tables.setdefault(line[1:].strip(), defaultdict(list))
        elif rule := parse_rule(line):
            chains[rule.chain].append(rule)
    return tables
