"""The detection table: each recorded state of a node and each mixture has one answer with a reason."""

from __future__ import annotations

import errno
import gzip
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from kproxylat.cluster.proxy_config import Setting
from kproxylat.cluster.proxy_mode import CLEAN_UP, SETTLE, Evidence, decide
from kproxylat.errors import CommandError, MachineError
from kproxylat.modes import find_mode
from kproxylat.node import live_rules, service_rule
from kproxylat.node.live_rules import LiveRules, parse_ip_vs, parse_nat, parse_service_ips, probe, read_live_rules
from kproxylat.results import Target
from kproxylat.system import kernel
from tests.support import TESTS

HERE = TESTS
RULES = HERE / "kube-proxy-rules"
SWITCHES = (HERE / "kube-api/mode-switches.txt").read_text()
LEGACY, NFT, NFTABLES = "iptables on legacy", "iptables on nft", "nftables on nft"
IP_VS = """IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr
  -> 0A630002:192B      Masq    1      0          0
UDP  0A606433:C383 rr
  -> 0A630002:192B      Masq    1      0          0
"""


def read(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()


def ruleset(backend: str, size: str) -> str:
    """Return table nat of a recorded ruleset, as ``iptables-save -t nat`` prints it."""
    [path] = (RULES / backend / size).glob("iptables-*save.txt*")
    return nat(read(path))


def nat(text: str) -> str:
    return "*nat\n" + text.split("*nat\n")[1].split("COMMIT\n")[0] + "COMMIT\n"


class Node:
    """A node's kernel as far as the programs show it that look at it."""

    def __init__(
        self, legacy: str = "", nft: str = "", service_ips: str = "", tables: str = "", ip_vs: str = ""
    ) -> None:
        self.texts = {
            ("cat", "/proc/net/ip_tables_names"): "filter\nmangle\nnat\n" if legacy else "",
            ("cat", "/proc/net/ip6_tables_names"): "",
            ("ip6tables-nft-save", "-c", "-t", "nat"): "",
            ("nft", "--json", "list", "map", "ip6", "kube-proxy", "service-ips"): "",
            ("iptables-legacy-save", "-c", "-t", "nat"): legacy,
            ("iptables-nft-save", "-c", "-t", "nat"): nft,
            ("nft", "list", "tables"): tables or "\n".join(["table ip nat"] * bool(nft)),
            ("nft", "--json", "list", "map", "ip", "kube-proxy", "service-ips"): service_ips,
            ("cat", "/proc/net/ip_vs"): ip_vs,
        }
        self.called: list[tuple[str, ...]] = []

    def run(self, *argv: str, netns: str | None = None, ok: tuple[int, ...] = (0,)) -> str:
        assert netns is None
        assert ok
        self.called.append(argv)
        if argv[-1] == "service-ips" and not self.texts[argv]:
            raise CommandError(list(argv), 1, "Error: No such file or directory")
        return self.texts[argv]


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_rules.os, "geteuid", lambda: 0)


def test_ipv6_rules_where_there_are_none_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(nft=":KUBE-SERVICES - [0:0]\n", tables="table ip nat\ntable ip6 nat\ntable ip6 kube-proxy")
    rules = "[3:180] -A KUBE-SERVICES -d fd00:10:96::50/128 -p udp -m udp --dport 50051 -j KUBE-SVC-A\n"
    node.texts["cat", "/proc/net/ip6_tables_names"] = "nat\n"
    node.texts["ip6tables-legacy-save", "-c", "-t", "nat"] = node.texts["ip6tables-nft-save", "-c", "-t", "nat"] = rules
    key = {"concat": ["fd00:10:96::1", "tcp", 443]}
    element = json.dumps({"nftables": [{"map": {"elem": [[key, {"goto": {"target": "x"}}]]}}]})
    node.texts["nft", "--json", "list", "map", "ip6", "kube-proxy", "service-ips"] = element
    worker = {Target("fd00:10:96::50", 50051, "udp"): 3}
    assert look(monkeypatch, node) == (
        LiveRules("iptables", "legacy", 1, worker),
        LiveRules("iptables", "nft", 1, worker),
        LiveRules("nftables", "nft", 1, {Target("fd00:10:96::1", 443, "tcp"): None}),
    )
    own = parse_ip_vs(
        "UDP  [fd00:0010:0096:0000:0000:0000:0000:0050]:C383 rr\n  -> [fd00:0099::0002]:192B Masq 1 0 0\n",
        find_mode("ipvs", None),
    )
    assert own == LiveRules("ipvs", "ipvs", 1, {Target("fd00:10:96::50", 50051, "udp"): None})


def test_an_ipv6_cluster_has_a_rule_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """kube-proxy writes both families' chains; NodePorts' rule, which is no Service's, is in each."""
    node_ports = "[0:0] -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n"
    node = Node(nft=node_ports, tables="table ip nat\ntable ip6 nat")
    rule = "[3:180] -A KUBE-SERVICES -d fd00:10:96::50/128 -p udp -m udp --dport 50051 -j KUBE-SVC-A\n"
    node.texts["ip6tables-nft-save", "-c", "-t", "nat"] = rule + node_ports
    assert look(monkeypatch, node) == (LiveRules("iptables", "nft", 3, {Target("fd00:10:96::50", 50051, "udp"): 3}),)


def look(monkeypatch: pytest.MonkeyPatch, node: Node) -> tuple[LiveRules, ...]:
    for module in (live_rules, service_rule):
        monkeypatch.setattr(module, "run", node.run)
    monkeypatch.setattr(kernel, "has_module", lambda _: True)
    return read_live_rules()


def steps() -> dict[str, tuple[str | None, Node]]:
    """Build the node of each step of mode-switches.txt: running mode, kernel. Forty-four rules are those of n0."""
    # At the file's end, what iptables-legacy-save and iptables-nft-save print after the last step.
    legacy_left, nft_left = (nat(each) for each in SWITCHES.split("# Warning: iptables-legacy tables present"))
    found: dict[str, tuple[str | None, Node]] = {}
    running = None
    lines = SWITCHES.splitlines()
    for line, following in pairwise(lines):
        mode = re.search(r"proxyMode=(\w+)", line)
        running = mode[1] if mode else running
        if not re.match(r"\d ", line):
            continue
        if line.startswith(("0", "6", "7")):
            running = None
        counts = re.search(
            r"nft-ipt rules: (\d+) .*legacy rules: (\d+) .*nft tables:(.*)ip_tables_names: (.*)$", following
        )
        assert counts
        texts = {"0": "", "3": None, "44": "n0"}
        nft = {"": "", None: nft_left, "n0": ruleset("iptables-nft", "n0")}[texts[counts[1]]]
        legacy = {"": "", None: legacy_left, "n0": ruleset("iptables-legacy", "n0")}[texts[counts[2]]]
        tables = counts[3].strip().replace(";", "\n")
        service_ips = read(RULES / "nftables/n0/service-ips.json") if "table ip kube-proxy" in tables else ""
        assert bool(legacy) == ("nat" in counts[4])
        found[line] = (running, Node(legacy, nft, service_ips, tables))
    return found


STEPS = steps()
ANSWERS = {
    "0 fresh": (None, None, "unknown"),
    "1 ": ("iptables", "nft", "certain"),
    "2 ": ("nftables", "nft", "certain"),
    "3 ": ("iptables", "legacy", "certain"),
    "4 ": ("iptables", None, "ambiguous"),
    "5 ": ("nftables", "nft", "likely"),
    "6 ": (None, None, "ambiguous"),
    "7 kube-proxy --cleanup with PATH=nft": ("iptables", "legacy", "likely"),
    "7 kube-proxy --cleanup with PATH=legacy": (None, None, "unknown"),
}


def test_every_step_has_an_answer() -> None:
    assert len(STEPS) == len(ANSWERS) == 9


@pytest.mark.parametrize("step", STEPS)
def test_recorded_mode_switches(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    running, node = STEPS[step]
    finding = decide(Evidence(running=running, rules=look(monkeypatch, node)))
    [expected] = [answer for start, answer in ANSWERS.items() if step.startswith(start)]
    assert (finding.mode, finding.backend, finding.sure) == expected
    assert finding.reason
    if step[0] in "456":
        assert finding.settle == SETTLE
    if step[0] == "5":
        assert finding.warnings == (f"rules of {LEGACY} were left behind, and may translate before its own",)
    # iptables-legacy is never started where it would create the table that it looks for.
    started = {argv[0] for argv in node.called}
    assert ("iptables-legacy-save" in started) == (step[0] in "34567")


@pytest.mark.parametrize(
    ("step", "counted", "expected"),
    [
        ("4", {NFT}, ("iptables", "nft", "certain")),
        ("4", {LEGACY}, ("iptables", "legacy", "certain")),
        ("4", {LEGACY, NFT}, ("iptables", None, "ambiguous")),
        ("4", set(), ("iptables", None, "ambiguous")),
        ("5", set(), ("nftables", "nft", "certain")),
        ("5", {LEGACY}, ("iptables", "legacy", "certain")),
        ("6", set(), ("nftables", "nft", "certain")),
        ("6", {LEGACY}, ("iptables", "legacy", "certain")),
    ],
)
def test_counters_decide_between_backends(
    monkeypatch: pytest.MonkeyPatch, step: str, counted: set[str], expected: tuple[str | None, str | None, str]
) -> None:
    [(running, node)] = [each for name, each in STEPS.items() if name.startswith(step)]
    finding = decide(Evidence(running=running, rules=look(monkeypatch, node), counted=frozenset(counted)))
    assert (finding.mode, finding.backend, finding.sure) == expected
    assert bool(finding.settle) == (expected[2] == "ambiguous")
    if finding.settle:
        assert finding.settle == CLEAN_UP
    if step == "5" and counted:
        assert "left behind, translate first" in finding.warnings[0]
        assert finding.removal.endswith(CLEAN_UP)
    if step == "4":
        # A second backend of the same mode was left behind, too.
        assert finding.warnings == (
            f"{LEGACY} and {NFT} both hold rules; kube-proxy writes one of them, the other was left behind",
        )
        assert finding.removal.endswith(CLEAN_UP)


@pytest.mark.parametrize("size", ["n0", "n100", "n1000"])
@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_recorded_rules_of_iptables(size: str, backend: str) -> None:
    rules = parse_nat(ruleset(f"iptables-{backend}", size), find_mode("iptables", backend))
    assert rules
    dummies = int(size[1:])
    assert (rules.mode, rules.backend, rules.rules, len(rules.services)) == (
        "iptables",
        backend,
        dummies + 5,
        dummies + 4,
    )
    # kube-proxy's kubeproxy_sync_proxy_rules_iptables_total, recorded with the rules.
    assert rules.owned == 25 + 5 * dummies
    assert rules.services[Target("10.96.100.51", 50051, "udp")] == 0
    if dummies:
        assert Target(f"10.97.{(dummies - 1) // 250}.{(dummies - 1) % 250 + 1}", 80, "tcp") in rules.services


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("path", sorted(RULES.glob("[!i]*/n*")) + sorted(RULES.glob("iptables*/n*")), ids=str)
def test_recorded_nodes(monkeypatch: pytest.MonkeyPatch, path: Path, running: bool) -> None:
    """Each recorded state as a whole node: kube-proxy's word and the kernel's rules, or these alone."""
    mode, _, backend = path.parent.name.partition("-")
    if mode == "iptables":
        node = Node(**{backend: nat(read(next(path.glob("iptables-*save.txt*"))))})
    else:
        # Of n1000, the map was recorded as text alone.
        text = read(next(path.glob("nft-list-ruleset.txt*")))
        elements = re.findall(r"([\d.]+) \. (\w+) \. (\d+) : goto service-", text)
        keys = [[{"concat": [ip, protocol, int(port)]}, {"goto": {}}] for ip, protocol, port in elements]
        tables = "\n".join(re.findall(r"^table .*(?= \{)", text, re.M))
        node = Node(service_ips=json.dumps({"nftables": [{"map": {"elem": keys}}]}), tables=tables)
    [rules] = found = look(monkeypatch, node)
    finding = decide(Evidence(running=mode if running else None, rules=found))
    sure = "certain" if running else "likely"
    assert (finding.mode, finding.backend, finding.sure, finding.warnings) == (mode, backend or "nft", sure, ())
    assert len(rules.services) == int(path.name[1:]) + 4


@pytest.mark.parametrize("size", ["n0", "n100"])
def test_recorded_rules_of_nftables(size: str) -> None:
    rules = parse_service_ips(read(RULES / "nftables" / size / "service-ips.json"), find_mode("nftables", None))
    assert rules
    assert (str(rules), rules.rules) == (NFTABLES, int(size[1:]) + 4)
    iptables = parse_nat(ruleset("iptables-nft", size), find_mode("iptables", "nft"))
    assert iptables
    assert set(rules.services) == set(iptables.services)


def test_elements_with_comments_and_empty_maps() -> None:
    element = [{"elem": {"val": {"concat": ["10.96.0.1", "tcp", 443]}, "comment": "x"}}, {"goto": {"target": "y"}}]
    rules = parse_service_ips(
        json.dumps({"nftables": [{"metainfo": {}}, {"map": {"elem": [element]}}]}), find_mode("nftables", None)
    )
    assert rules
    assert dict(rules.services) == {Target("10.96.0.1", 443, "tcp"): None}
    assert (
        parse_service_ips(json.dumps({"nftables": [{"map": {"name": "service-ips"}}]}), find_mode("nftables", None))
        is None
    )


def test_ipvs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode ipvs writes rules of iptables, too; they look addresses up in an ipset."""
    rules = parse_ip_vs(IP_VS, find_mode("ipvs", None))
    assert rules
    assert set(rules.services) == {Target("10.96.0.1", 443, "tcp"), Target("10.96.100.51", 50051, "udp")}
    iptables = "-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT"
    finding = decide(Evidence(running="ipvs", rules=look(monkeypatch, Node(nft=iptables, ip_vs=IP_VS))))
    assert (finding.mode, finding.backend, finding.sure) == ("ipvs", "ipvs", "certain")


IPT = parse_nat(ruleset("iptables-nft", "n0"), find_mode("iptables", "nft"))
NFT_MAP = parse_service_ips(read(RULES / "nftables/n0/service-ips.json"), find_mode("nftables", None))
assert IPT
assert NFT_MAP
IN_IPTABLES, IN_NFTABLES = Setting("ConfigMap kube-proxy, config.conf", "iptables"), Setting("DaemonSet x", "nftables")


@pytest.mark.parametrize(
    ("evidence", "expected", "message"),
    [
        (Evidence(settings=[IN_IPTABLES], rules=(IPT,)), ("iptables", "nft", "certain"), "only rules of"),
        (
            Evidence(settings=[IN_NFTABLES], rules=(IPT,)),
            ("iptables", "nft", "likely"),
            "is set to nftables, but the rules",
        ),
        (Evidence(settings=[IN_NFTABLES]), ("nftables", "nft", "likely"), "could not be read"),
        (Evidence(settings=[IN_IPTABLES]), ("iptables", None, "likely"), "could not be read"),
        (Evidence(settings=[IN_IPTABLES], rules=()), ("iptables", None, "likely"), "is it a node's?"),
        (Evidence(settings=[IN_IPTABLES], rules=(), workloads=0), ("iptables", None, "likely"), "no DaemonSet, pod"),
        (Evidence(settings=[IN_IPTABLES, IN_NFTABLES]), (None, None, "ambiguous"), "set to iptables and nftables"),
        (
            Evidence([IN_IPTABLES], running="nftables", rules=(NFT_MAP,)),
            ("nftables", "nft", "certain"),
            "set to iptables but runs nftables",
        ),
        (Evidence(running="iptables", rules=()), ("iptables", None, "likely"), "none of its rules"),
        (Evidence(running="nftables", rules=(IPT,)), ("nftables", "nft", "likely"), f"{NFT} were left behind"),
        (
            Evidence(rules=(), workloads=0, replacements=["Cilium (DaemonSet cilium)"]),
            (None, None, "none"),
            "no kube-proxy, but Cilium",
        ),
        (
            Evidence(settings=[IN_IPTABLES], rules=(), workloads=0, replacements=["Cilium"]),
            (None, None, "none"),
            "no kube-proxy, but Cilium",
        ),
        (
            Evidence(running="iptables", rules=(IPT,), workloads=1, replacements=["Cilium"]),
            ("iptables", "nft", "certain"),
            "besides kube-proxy, the cluster runs Cilium",
        ),
        (Evidence(rules=()), (None, None, "unknown"), "no source knows"),
        (
            Evidence(rules=(), workloads=0, candidates=["Calico (DaemonSet calico-node)"]),
            (None, None, "unknown"),
            "Calico (DaemonSet calico-node) can replace kube-proxy; this kernel has no Service rules: is it a node's?",
        ),
        (
            Evidence(rules=(), workloads=0, candidates=["Calico (DaemonSet calico-node)"], has_node=True),
            (None, None, "none"),
            "the cluster has no kube-proxy, but Calico (DaemonSet calico-node)",
        ),
        (
            Evidence(workloads=0, candidates=["Calico"], has_node=True),
            (None, None, "unknown"),
            "Calico can replace kube-proxy; this kernel could not be read",
        ),
        (
            Evidence(rules=(IPT,), workloads=0, candidates=["Calico"], has_node=True),
            ("iptables", "nft", "likely"),
            "the kernel holds only rules of iptables on nft",
        ),
        (
            Evidence(workloads=0, disabled=["node a: k3s.io/node-args: --disable-kube-proxy"]),
            (None, None, "none"),
            "the cluster has no kube-proxy (node a: k3s.io/node-args: --disable-kube-proxy)",
        ),
        (
            Evidence(workloads=1, problems=["pod x reads its configuration from the file /etc/y of its node"]),
            (None, None, "unknown"),
            "pod x reads its configuration from the file /etc/y of its node; this kernel could not be read",
        ),
        (
            Evidence(workloads=0, replacements=["Calico"], problems=["DaemonSet kube-proxy has no pods"]),
            (None, None, "none"),
            "the cluster has no kube-proxy, but Calico (DaemonSet kube-proxy has no pods)",
        ),
    ],
)
def test_mixed_evidence(evidence: Evidence, expected: tuple[str | None, str | None, str], message: str) -> None:
    finding = decide(evidence)
    assert (finding.mode, finding.backend, finding.sure) == expected
    assert message in " ".join([finding.reason, *finding.warnings])


def test_probe_returns_the_rules_that_count_its_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def connect(address: tuple[str, int], _: float) -> None:
        tried.append(address)
        raise ConnectionRefusedError

    def unreachable(*_: object) -> None:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    before = look(monkeypatch, STEPS[next(name for name in STEPS if name.startswith("4"))][1])
    legacy, nft = ruleset("iptables-legacy", "n0"), ruleset("iptables-nft", "n0")
    counted = re.sub(r"\[0:0\](.*-d 10.96.100.50/32.*KUBE-SVC-)", r"[1:60]\1", nft)
    monkeypatch.setattr(live_rules.socket, "create_connection", connect)
    look(monkeypatch, Node(legacy, counted))
    assert probe(before) == {NFT}
    assert tried == [("10.96.100.50", 50051)]
    look(monkeypatch, Node(legacy, nft))
    assert probe(before) == frozenset()
    # Without a route no packet is sent, and that no rule counts it tells nothing.
    monkeypatch.setattr(live_rules.socket, "create_connection", unreachable)
    with pytest.raises(MachineError, match=r"cannot send a packet to 10.96.100.50:50051/tcp: Network is unreach"):
        probe(before)
    monkeypatch.setattr(live_rules.socket, "create_connection", connect)
    # A sync in between: the counts went down.
    assert probe(look(monkeypatch, Node(legacy, counted))) == {*()}
    first = look(monkeypatch, Node(legacy, counted))
    look(monkeypatch, Node(legacy, nft))
    with pytest.raises(MachineError, match="wrote its rules anew"):
        probe(first)
    with pytest.raises(MachineError, match="these rules have no TCP Service in common"):
        probe(())


def test_reading_rules_requires_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_rules.os, "geteuid", lambda: 1000)
    with pytest.raises(MachineError, match="requires root"):
        read_live_rules()
