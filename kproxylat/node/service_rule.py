"""The target's rule in the node's live ruleset. Reading it changes nothing."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kproxylat.errors import CommandError, MachineError
from kproxylat.modes import LOCK_WAIT, MAP, SERVERS, Mode
from kproxylat.node.iptables_save import parse_rule
from kproxylat.results import Target
from kproxylat.system.processes import run

_NODE_PORT = re.compile(r"-p (tcp|udp|sctp) .*--dport (\d{1,5})(?: -c \d+ \d+)? -j ")
_READING_S, _ADDED_UP, _READINGS = 0.5, 6, 120
"""ipvs sums the counters of its CPUs every 2 s (kernel, net/netfilter/ipvs/ip_vs_est.c)."""


@dataclass(frozen=True)
class ServiceRule:
    """The target's rule: in KUBE-SERVICES, in map service-ips, or a virtual server.

    :param found: whether the target has a rule.
    :param position: the rule's place in the chain, from 1; None in modes nftables and ipvs.
    :param chain_length: the number of rules in the chain; None in modes nftables and ipvs.
    :param packets: how many packets the rule has counted; in ipvs, connections. None in mode nftables, whose rules have
        no counters.
    """

    found: bool
    position: int | None = None
    chain_length: int | None = None
    packets: int | None = None

    @property
    def path(self) -> str:
        """The path that the target's packets take: "hit", or "miss" if no rule matches them."""
        return "hit" if self.found else "miss"


def read_service_rule(
    mode: Mode, target: Target, netns: str | None, further: Sequence[Target] = (), at_rest: bool = True
) -> ServiceRule:
    """Find the target's rule in the live ruleset.

    :param netns: the node's network namespace (None: the current one).
    :param further: more targets. The result then sums the packets of all targets, and has no position.
    :param at_rest: in mode ipvs, whose counters lag behind, wait until the counter stops changing.
    :raises CommandError: the rules cannot be read, or KUBE-SERVICES or map service-ips does not exist.
    :raises MachineError: the counter keeps changing.
    """
    targets = (target, *further)
    if mode.form == MAP:
        # To get a single element, nft would read the elements of all sets and maps.
        words = "--json", "list", "map", mode.ip, f"{mode.table}"
        services = parse_elements(call_nft(*words, "service-ips", netns=netns))
        if set(targets) <= set(services) or further:
            return ServiceRule(set(targets) <= set(services))
        ports = parse_elements(call_nft(*words, "service-nodeports", netns=netns), "service-nodeports")
        return ServiceRule(replace(target, ip="") in ports and _is_local(target.ip, netns))
    if mode.form == SERVERS:
        return _read_virtual_servers(targets, netns, _ADDED_UP if at_rest else 1)
    lines = list_rules(mode.iptables, netns, "-v")
    matches: dict[Target, tuple[int, int]] = {}
    # Most rules are of other Services: to skip them unparsed takes a tenth of the time.
    address = "" if further else f"-d {target.ip}/"
    for position, line in enumerate(lines, 1):
        rule = parse_rule(line) if address in line else None
        if rule and rule.service and rule.jump != "KUBE-MARK-MASQ":
            matches.setdefault(rule.service, (position, rule.packets or 0))
    if not set(targets) <= set(matches):
        packets = None if further else _read_node_port(mode.iptables, target, netns)
        # The last rule leads to the NodePorts.
        return ServiceRule(packets is not None, None if packets is None else len(lines), len(lines), packets or 0)
    packets = sum(matches[service][1] for service in targets)
    return ServiceRule(True, None if further else matches[target][0], len(lines), packets)


def _read_node_port(iptables: str, target: Target, netns: str | None) -> int | None:
    """Return how many packets the rule of a NodePort has counted; None if the target is not a NodePort of this node."""
    for line in list_chain(iptables, "KUBE-NODEPORTS", netns, "-v", ok=(0, 1)):
        rule = parse_rule(line)
        match = rule and _NODE_PORT.match(rule.bare)
        if rule and match and (match[1], int(match[2])) == (target.protocol, target.port):
            return (rule.packets or 0) if _is_local(target.ip, netns) else None
    return None


def _is_local(ip: str, netns: str | None) -> bool:
    """Return whether the node has an address."""
    return run("ip", "route", "get", ip, netns=netns, ok=(0, 1, 2)).startswith("local ")


def call_nft(*words: str, netns: str | None) -> str:
    """Return what nft prints about a node's rules.

    :raises CommandError: nft refuses.
    :raises MachineError: nft crashes, as old versions do on sets that newer ones wrote (kubernetes/kubernetes #136786).
    """
    try:
        return run("nft", *words, netns=netns)
    except CommandError as error:
        if 0 <= error.status < 128:
            raise
        version = run("nft", "--version", netns=netns).split(" (")[0].strip()
        raise MachineError(
            f"{version} crashed (status {error.status}) at nft {' '.join(words)}: "
            "did another version of nft write some of this node's rules?",
            "use the newest nft, or that of the program which wrote the rules",
        ) from error


def parse_elements(text: str, name: str = "service-ips") -> list[Target]:
    """Parse the keys of a map, as ``nft --json list map ip kube-proxy service-ips`` prints it.

    An element is ``[{"concat": ["10.96.0.1", "tcp", 443]}, {"goto": ...}]``; one of service-nodeports has no address.

    :raises MachineError: the text has another form.
    """
    try:
        maps = [item["map"] for item in json.loads(text)["nftables"] if "map" in item]
        keys = [element[0] for listed in maps for element in listed.get("elem", ())]
        # An element with a comment or counter is wrapped once more.
        plain = [key["elem"]["val"] if "elem" in key else key for key in keys]
        return [Target("".join(ip), port, protocol) for *ip, protocol, port in (key["concat"] for key in plain)]
    except (ValueError, LookupError, TypeError):
        raise MachineError(f"cannot parse nft's list of map {name}: {text[:100]!r}") from None


def list_rules(iptables: str, netns: str | None, *options: str) -> list[str]:
    """Return the rules of KUBE-SERVICES, in the form ``-A KUBE-SERVICES ...``.

    :param iptables: the program for the family and the backend, e.g. ``ip6tables-nft``.
    :param netns: the node's network namespace (None: the current one).
    :param options: further options of iptables(8), e.g. ``-v`` for counters.
    :raises CommandError: the chain does not exist.
    """
    return [line for line in list_chain(iptables, "KUBE-SERVICES", netns, *options) if line.startswith("-A ")]


def list_chain(
    iptables: str,
    chain: str,
    netns: str | None,
    *options: str,
    ok: tuple[int, ...] = (0,),
    limit_s: float | None = None,
) -> list[str]:
    """Return the lines of ``iptables -S`` for a chain of table nat; the other parameters are those of :func:`run`.

    iptables-legacy waits up to 5 s while another program, such as kube-proxy, holds the lock of the tables.
    """
    listed = run(iptables, LOCK_WAIT, "-t", "nat", *options, "-S", chain, netns=netns, ok=ok, limit_s=limit_s)
    return listed.split("\n")


def is_rule_of(target: Target, line: str) -> bool:
    """Return whether a rule of KUBE-SERVICES, as ``-A KUBE-SERVICES ...``, matches the target."""
    rule = parse_rule(line)
    return rule is not None and rule.service == target


def _read_virtual_servers(targets: Sequence[Target], netns: str | None, readings: int) -> ServiceRule:
    """Find the targets' virtual servers in ipvs. They count connections: one for each lookup.

    :param readings: how many readings in a row must be equal.
    :raises MachineError: the counters keep changing.

    Sample of ``ipvsadm -L -n --stats --exact -u 10.96.100.50:50051``::

        Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes
          -> RemoteAddress:Port
        UDP  10.96.100.50:50051               2000     2000        0    92000        0
          -> 10.244.1.10:50051                2000     2000        0    92000        0
    """
    one = (f"--{targets[0].protocol}-service", targets[0].address) if len(targets) == 1 else ()
    argv = ("ipvsadm", "-L", "-n", "--stats", "--exact", *one)
    counts: list[int] = []
    # Readings must stay equal for longer than ipvs takes to sum its counters.
    while len(counts) < readings or len(set(counts[-readings:])) > 1:
        if counts:
            threading.Event().wait(_READING_S)
        try:
            listed = re.findall(r"^(TCP|UDP|SCTP)\s+\[?([\da-f.:]+?)\]?:(\d+)\s+(\d+)", run(*argv, netns=netns), re.M)
        except CommandError:
            listed = []
        connections = {Target(ip, int(port), name.lower()): int(count) for name, ip, port, count in listed}
        if not set(targets) <= set(connections):
            run("ipvsadm", "-L", "-n", "--timeout", netns=netns)
            return ServiceRule(False, packets=0)
        counts.append(sum(connections[target] for target in targets))
        if len(counts) > _READINGS:
            raise MachineError(
                f"the ipvs connection counter of {targets[0]} keeps changing", "is there other traffic to it?"
            )
    return ServiceRule(True, packets=counts[-1])
