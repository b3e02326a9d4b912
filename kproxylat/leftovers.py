"""What kube-proxy's other modes left in a node's kernel, and the tools' own scripts that remove it.

kube-proxy itself removes, when it starts, only what its own mode surely does not use, and only on the iptables backend
that its image has chosen (Kubernetes, cmd/kube-proxy/app/server_linux.go, platformCleanup). Names are those of
pkg/proxy/iptables/cleanup.go, pkg/proxy/ipvs/proxier.go and pkg/proxy/ipvs/ipset.go; the kubelet's chains
(KUBE-FIREWALL in table filter, KUBE-MARK-DROP, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT) are not among them.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from kproxylat.errors import MachineError
from kproxylat.liverules import LINK, LiveRules, parse_ip_vs, read_live_rules
from kproxylat.nodes import Node
from kproxylat.proc import run

IPTABLES, IPVS = frozenset({"iptables"}), frozenset({"ipvs"})
CHAINS = {
    "nat KUBE-SERVICES": IPTABLES | IPVS,
    "nat KUBE-POSTROUTING": IPTABLES | IPVS,
    "nat KUBE-MARK-MASQ": IPTABLES | IPVS,
    "nat KUBE-NODEPORTS": IPTABLES,
    "nat KUBE-NODE-PORT": IPVS,
    "nat KUBE-LOAD-BALANCER": IPVS,
    "nat KUBE-FIREWALL": IPVS,
    "filter KUBE-FORWARD": IPTABLES | IPVS,
    "filter KUBE-PROXY-FIREWALL": IPTABLES | IPVS,
    "filter KUBE-SERVICES": IPTABLES,
    "filter KUBE-EXTERNAL-SERVICES": IPTABLES,
    "filter KUBE-NODEPORTS": IPTABLES,
    "filter KUBE-NODE-PORT": IPVS,
    "filter KUBE-SOURCE-RANGES-FIREWALL": IPVS,
    "filter KUBE-IPVS-FILTER": IPVS,
    "filter KUBE-IPVS-OUT-FILTER": IPVS,
    **{f"{table} KUBE-PROXY-CANARY": IPTABLES for table in ("nat", "filter", "mangle")},
}
"""Table and chain -> the modes that write it."""
_SERVICE_CHAIN = re.compile(r"nat KUBE-(?:SVC|SVL|SEP|FW|EXT|XLB)-[A-Z2-7]{16}")
BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_COMMENT = re.compile(r'--comment "(?:kubernetes |kube-proxy firewall)')
_JUMP = re.compile(r" -[jg] (\S+)")
_NODE_PORTS = {"-t": ("TCP", "TCP"), "-u": ("UDP", "UDP"), "--sctp-service": ("SCTP-HASH", "SCTP")}
"""Option of ipvsadm -> the end of the name of the ipset that has its NodePorts, and its protocol's."""
_SETS = (
    *("LOOP-BACK", "CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL", "LOAD-BALANCER", "LOAD-BALANCER-LOCAL"),
    *("LOAD-BALANCER-FW", "LOAD-BALANCER-SOURCE-IP", "LOAD-BALANCER-SOURCE-CIDR", "HEALTH-CHECK-NODE-PORT"),
    *(f"NODE-PORT-{each}" for each in ("TCP", "UDP", "SCTP-HASH", "LOCAL-TCP", "LOCAL-UDP", "LOCAL-SCTP-HASH")),
    "IPVS-IPS",
)
SETS = frozenset(f"KUBE-{six}{each}"[:31] for each in _SETS for six in ("", "6-"))
"""The ipsets of mode ipvs; a name has 31 characters at most."""


@dataclass(frozen=True)
class Removal:
    """One call of a tool.

    :param what: what goes, for people.
    :param argv: the tool. ``script``: what it reads.
    """

    what: str
    argv: tuple[str, ...]
    script: str = ""

    def __str__(self) -> str:
        lines = "".join(f"  {line}\n" for line in self.script.splitlines())
        return f"{' '.join(self.argv)}\n{lines}".rstrip()


@dataclass
class Table:
    """A table as ``iptables-save`` prints it.

    :param chains: of all, built-in ones too. ``rules``: each as ``-A CHAIN ...``.
    """

    chains: list[str] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)


def parse_tables(text: str) -> dict[str, Table]:
    """Read what ``iptables-save`` prints, without counters: name -> table."""
    found: dict[str, Table] = defaultdict(Table)
    name = ""
    for line in text.splitlines():
        if line.startswith("*"):
            name = line[1:]
        elif line.startswith(":"):
            found[name].chains.append(line[1:].split()[0])
        elif line.startswith("-A "):
            found[name].rules.append(line)
    return dict(found)


def is_left(table: str, chain: str, live: Set[str]) -> bool:
    """Whether a chain is kube-proxy's, but of no mode that is live on this backend."""
    name = f"{table} {chain}"
    modes = IPTABLES if _SERVICE_CHAIN.fullmatch(name) else CHAINS.get(name, frozenset())
    return bool(modes) and not modes & live


def plan_tables(text: str, live: Set[str], where: str) -> tuple[str, int]:
    """Write the script by which ``iptables-restore --noflush`` removes what is left: chains, and the jumps to them.

    :param text: what ``iptables-save`` prints. ``live``: the modes that use this backend now.
    :param where: the backend, for messages.
    :return: the script, "" if nothing is left; and how many rules go.
    :raises MachineError: a rule that is not kube-proxy's jumps to what would go.
    """
    script, count = [], 0
    for name, table in parse_tables(text).items():
        left = dict.fromkeys(each for each in table.chains if is_left(name, each, live))
        jumps = []
        for rule in table.rules:
            chain, target = rule.split()[1], _JUMP.search(re.sub(r'"(?:[^"\\]|\\.)*"', "", rule))
            count += chain in left
            if chain in left or not target or target[1] not in left:
                continue
            # In a live chain of kube-proxy's there is no such rule: each sync writes it anew.
            if chain not in BUILT_IN or not _COMMENT.search(rule):
                raise MachineError(
                    f"a rule that is not kube-proxy's jumps to {target[1]}, table {name} of {where}: {rule}",
                    "nothing is removed; remove that rule yourself, if nobody needs it",
                )
            jumps.append(f"-D {rule.removeprefix('-A ')}")
        if left:
            count += len(jumps)
            # A chain that is declared is emptied.
            flushes, ends = [f":{each} - [0:0]" for each in left], [f"-X {each}" for each in left]
            script += [f"*{name}", *flushes, *jumps, *ends, "COMMIT"]
    return "\n".join([*script, ""]) if script else "", count


def plan_removals(running: str | None, backend: str | None, node: Node) -> list[Removal]:
    """Say what is left of the modes that kube-proxy does not run in, and how it goes, in that order.

    :param running: the mode that kube-proxy of this node says it is in (None: it does not answer).
    :param backend: the one that kube-proxy uses in modes iptables and ipvs (None: the only one that has its rules).
    :raises MachineError: it is not sure what is live; or what is left is in use.
    """
    live = read_live_rules(node.netns)
    if running is None:
        raise MachineError("no kube-proxy of this node says which mode it is in", "nothing is removed: start it first")
    tables = run("nft", "list", "tables", netns=node.netns).splitlines()
    saved = {(ip, each): _save(ip, each, tables, node) for ip in ("ip", "ip6") for each in ("legacy", "nft")}
    ours = _find_backend(running, backend, live, saved)
    removals = []
    for (ip, each), text in saved.items():
        script, count = plan_tables(text, {running} if each == ours else set(), f"{ip}tables-{each}")
        if script:
            argv = (f"{ip}tables-{each}-restore", "--noflush", "--wait=5")
            removals.append(Removal(f"{count} rules of kube-proxy's and their chains, {ip}tables-{each}", argv, script))
    owned = [each for each in ("table ip kube-proxy", "table ip6 kube-proxy") if each in tables]
    if running != "nftables" and owned:
        script = "".join(f"delete {each}\n" for each in owned)
        removals.append(Removal(" and ".join(owned), ("nft", "-f", "-"), script))
    return removals if running == "ipvs" else [*removals, *_plan_ipvs(node)]


def _save(ip: str, backend: str, tables: list[str], node: Node) -> str:
    """Return the rules of a backend: of tables that are there alone, as asking for another one would make it."""
    names = f"/proc/net/{ip}_tables_names"
    there = {
        "legacy": run("cat", names, netns=node.netns, ok=(0, 1)).split() if backend == "legacy" else [],
        "nft": [each.split()[2] for each in tables if each.startswith(f"table {ip} ")],
    }[backend]
    wanted = [each for each in ("nat", "filter", "mangle") if each in there]
    return "".join(run(f"{ip}tables-{backend}-save", "-t", each, netns=node.netns) for each in wanted)


def _find_backend(
    running: str, named: str | None, live: Sequence[LiveRules], saved: Mapping[tuple[str, str], str]
) -> str | None:
    """Return the iptables backend that the running kube-proxy uses, if any; see that its rules are there.

    :raises MachineError: none has them, or both do: then counters don't tell who writes them.
    """
    found = [each.backend for each in live if each.mode == running]
    if running == "ipvs" and found:
        texts = {each: saved["ip", each] + saved["ip6", each] for each in ("legacy", "nft")}
        found = [each for each, text in texts.items() if re.search(r"^-A KUBE-SERVICES .*--match-set", text, re.M)]
    if not found:
        raise MachineError(
            f"kube-proxy says {running}, but this kernel has none of its rules", "nothing is removed: wait for a sync"
        )
    if running == "nftables":
        return None
    if named and named not in found:
        raise MachineError(f"backend {named} has no rules of mode {running}", f"--backend takes: {', '.join(found)}")
    if not named and len(found) > 1:
        raise MachineError(
            f"both backends have rules of mode {running}: which are kube-proxy's own, they don't tell",
            "kubectl -n kube-system exec ds/kube-proxy -- iptables --version tells: add --backend legacy or nft",
        )
    return named or found[0]


def _plan_ipvs(node: Node) -> Iterator[Removal]:
    """Remove virtual servers, the ipsets that rules looked into, and the link with the addresses."""
    links = json.loads(run("ip", "-json", "-details", "address", "show", netns=node.netns) or "[]")
    own = [each for each in links if each.get("ifname") == LINK]
    ipsets = run("ipset", "save", netns=node.netns) if own else ""
    if parse_ip_vs(run("cat", "/proc/net/ip_vs", netns=node.netns, ok=(0, 1))):
        addresses = {info["local"] for each in own for info in each.get("addr_info", ())}
        lines = run("ipvsadm", "-S", "-n", netns=node.netns).splitlines()
        servers = [line.split()[1:3] for line in lines if line.startswith("-A ")]
        gone = [(option, server) for option, server in servers if _is_own(option, server, addresses, ipsets)]
        if gone:
            script = "".join(f"-D {option} {server}\n" for option, server in gone)
            yield Removal(f"{len(gone)} virtual servers of kube-proxy's", ("ipvsadm", "-R"), script)
    if own:
        sets = [line.split()[1] for line in ipsets.splitlines() if line.startswith("create ")]
        if left := [each for each in sets if each in SETS]:
            script = "".join(f"destroy {each}\n" for each in left)
            yield Removal(f"{len(left)} ipsets of kube-proxy's", ("ipset", "restore"), script)
        # Last, since it is by this link that the others are known, should they be interrupted.
        yield Removal(f"link {LINK} and its addresses", ("ip", "link", "delete", LINK))


def _is_own(option: str, server: str, addresses: Set[str], ipsets: str) -> bool:
    """Whether a virtual server is kube-proxy's: its address is on kube-ipvs0, or its port in the ipset of NodePorts.

    Others, such as keepalived's, have neither.
    """
    ip, _, port = server.rpartition(":")
    if ip.strip("[]") in addresses:
        return True
    if option not in _NODE_PORTS:
        return False
    name, protocol = _NODE_PORTS[option]
    entry = rf"^add KUBE-(?:6-)?NODE-PORT-{name} (?:\S+,)?(?:{protocol.lower()}:)?{port}$"
    return re.search(entry, ipsets, re.M) is not None


def remove(removals: list[Removal], plan: Callable[[], list[Removal]], node: Node) -> None:
    """Remove what was shown.

    :param plan: makes the plan anew: nothing is done if it is another one by now, and nothing may be left at the end.
    :raises MachineError: it is, or something is left. ``CommandError``: a tool refuses its script.
    """
    if plan() != removals:
        raise MachineError("kube-proxy's rules changed since they were shown: nothing is removed", "try again")
    for each in removals:
        run(*each.argv, netns=node.netns, stdin=each.script)
    if left := plan():
        raise MachineError(f"still there: {'; '.join(each.what for each in left)}", "try again")
