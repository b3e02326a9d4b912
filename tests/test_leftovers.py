"""What is removed of modes that do not run: by the real tools in a network namespace of our own; of ipvs, by fakes."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxylat import leftovers, liverules, rollout
from kproxylat.errors import CommandError, MachineError
from kproxylat.leftovers import is_left, plan_removals, plan_tables, remove
from kproxylat.liverules import read_live_rules
from kproxylat.nodes import Node
from tests.fake_api import FakeApi
from tests.test_cli import Captured, call
from tests.test_cli_cluster import cluster  # noqa: F401

HERE = Path(__file__).parent
RULES = HERE / "kube-proxy-rules"
FOREIGN = """*nat
:CNI-HOSTPORT-DNAT - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-SVC-MINE - [0:0]
-A PREROUTING -m comment --comment "kubernetes -j KUBE-SERVICES" -j CNI-HOSTPORT-DNAT
-A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.1.2.3:80
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -i eth7 -j ACCEPT
-A KUBE-FIREWALL -s 192.0.2.1/32 -j DROP
COMMIT
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
"""
"""Rules of others: a CNI plugin's, the kubelet's, an administrator's."""


class Kernel:
    """A network namespace with what others have in it, before kube-proxy's rules come."""

    def __init__(self, name: str) -> None:
        self.node = Node(f"/run/netns/{name}", "node")
        self.name = name
        self.run("nfacct", "add", "ct_state_invalid_dropped_pkts")
        for backend in ("legacy", "nft"):
            self.load(f"iptables-{backend}", FOREIGN)
            self.load(
                f"ip6tables-{backend}", FOREIGN.replace("10.1.2.3:", "[fd00::3]:").replace("192.0.2.1/32", "fd00::1")
            )
        self.run("nft", "-f", "-", stdin="table ip mine {\n chain kube-proxy {\n }\n}\n")

    def run(self, *argv: str, stdin: str = "") -> str:
        words = ["ip", "netns", "exec", self.name, *argv]
        return subprocess.run(words, input=stdin, check=True, capture_output=True, text=True).stdout

    def load(self, program: str, text: str) -> None:
        self.run(f"{program}-restore", "--noflush", stdin=text)

    def state(self) -> dict[str, str]:
        """Return all rules, by the program that shows them: without counters, and chains in any order."""
        programs = [f"{ip}tables-{each}-save" for ip in ("ip", "ip6") for each in ("legacy", "nft")]
        found = {each: self.run(each) for each in programs}
        found["nft"] = self.run("nft", "list", "tables")
        return {name: "\n".join(sorted(re.sub(r"#.*|\[.*?\]", "", text).split("\n"))) for name, text in found.items()}

    def add(self, kind: str) -> None:
        """Load kube-proxy's rules as they were recorded, but for the kubelet's chain, which it writes too."""
        if kind == "nftables":
            self.run("nft", "-f", str(RULES / "nftables/n0/nft-list-ruleset.txt"))
            return
        text = (RULES / f"iptables-{kind}/n0/iptables-{kind}-save.txt").read_text()
        for program, each in (("iptables", text), ("ip6tables", (RULES / "ip6/ip6tables-nft-save.txt").read_text())):
            self.load(f"{program}-{kind}", re.sub(r".*KUBE-FIREWALL.*\n", "", each))


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    if os.geteuid() != 0:
        say = pytest.fail if "root" in os.environ.get("KPROXYLAT_REQUIRE", "") else pytest.skip
        say("network namespaces take root")
    name = f"kproxylat-test-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield Kernel(name)
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.mark.parametrize(
    ("running", "live", "left"),
    [
        ("nftables", "nftables", ("legacy", "nft")),
        ("iptables", "nft", ("legacy", "nftables")),
        ("iptables", "legacy", ("nft", "nftables")),
    ],
)
def test_what_is_left_goes_and_nothing_else(kernel: Kernel, running: str, live: str, left: tuple[str, ...]) -> None:
    kernel.add(live)
    wanted = kernel.state()
    for each in left:
        kernel.add(each)
    before = kernel.state()
    backend = live if running == "iptables" else None

    def plan() -> list[leftovers.Removal]:
        return plan_removals(running, backend, kernel.node)

    removals = plan()
    assert kernel.state() == before, "looking changes nothing"
    remove(removals, plan, kernel.node)
    # Base chains of a table that a restore made stay, as kube-proxy's own cleanup leaves them.
    assert kernel.state() == wanted
    assert plan() == []
    assert [str(each) for each in read_live_rules(kernel.node.netns)] == [
        {"nftables": "nftables on nft"}.get(live, f"iptables on {live}")
    ]


def test_the_whole_of_it(
    kernel: Kernel,
    capsys: Captured,
    cluster: FakeApi,  # noqa: F811
    tmp_path: Path,
) -> None:
    """A command line, kube-proxy's word over HTTP in the node's namespace, and the kernel: no fake but the API."""
    (tmp_path / "proxyMode").write_text("nftables")
    cluster.objects["", "configmaps", "kube-system", "kube-proxy"]["data"]["config.conf"] = "mode: nftables\n"
    cluster.objects["apps", "daemonsets", "kube-system", "kube-proxy"]["status"] = {"observedGeneration": 9}
    kernel.add("nftables")
    wanted = kernel.state()
    kernel.add("legacy")
    kernel.add("nft")
    kernel.run("ip", "link", "set", "lo", "up")
    words = ["ip", "netns", "exec", kernel.name, sys.executable, "-m", "http.server", "10249", "--bind", "127.0.0.1"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            deadline = time.monotonic() + 20
            while rollout.running_mode(kernel.node.netns) is None:
                assert time.monotonic() < deadline
            argv = ("mode", "set", "nftables", "--netns", str(kernel.node.netns), "--clean")
            before = kernel.state()
            status, out, err = call(capsys, *argv, "--dry-run")
            assert (status, kernel.state()) == (0, before), err
            assert "iptables-legacy-restore --noflush --wait=5\n  *nat\n  :KUBE-" in out
            status, out, err = call(capsys, *argv, "--yes")
            assert (status, kernel.state()) == (0, wanted), err
            assert "removed: " in out
            assert call(capsys, *argv)[1].splitlines()[-1] == "no rules of other modes are left in this kernel"
        finally:
            server.terminate()


def test_what_is_in_use_or_unclear_stays(kernel: Kernel) -> None:
    with pytest.raises(MachineError, match="says nftables, but this kernel has none of its rules"):
        plan_removals("nftables", None, kernel.node)
    with pytest.raises(MachineError, match="no kube-proxy of this node says"):
        plan_removals(None, None, kernel.node)
    kernel.add("legacy")
    kernel.add("nft")
    with pytest.raises(MachineError, match="both backends have rules of mode iptables") as caught:
        plan_removals("iptables", None, kernel.node)
    assert "iptables --version" in caught.value.remedy
    with pytest.raises(MachineError, match="backend ipvs has no rules of mode iptables"):
        plan_removals("iptables", "ipvs", kernel.node)
    removals = plan_removals("iptables", "nft", kernel.node)
    assert all("legacy" in each.argv[0] for each in removals)
    before = kernel.state()
    with pytest.raises(MachineError, match="changed since they were shown"):
        remove(removals, list, kernel.node)
    kernel.load("iptables-legacy", "*nat\n-A POSTROUTING -s 192.0.2.0/24 -j KUBE-MARK-MASQ\nCOMMIT\n")
    with pytest.raises(MachineError, match="not kube-proxy's jumps to KUBE-MARK-MASQ, table nat of iptables-legacy"):
        plan_removals("iptables", "nft", kernel.node)
    # A chain that is in use is not torn out by a script that was made before: all of it, or nothing.
    with pytest.raises(CommandError):
        remove(removals, lambda: removals, kernel.node)
    mine = "-A POSTROUTING -s 192.0.2.0/24 -j KUBE-MARK-MASQ"
    assert kernel.state()["iptables-legacy-save"].replace(f"{mine}\n", "") == before["iptables-legacy-save"]


def test_whose_chains_they_are() -> None:
    """By table and name, as kube-proxy's sources have them."""
    nothing: set[str] = set()
    for table, chain in (("nat", "KUBE-SVC-FBZZBJLJ6XKH3MG4"), ("nat", "KUBE-MARK-MASQ"), ("filter", "KUBE-NODE-PORT")):
        assert is_left(table, chain, nothing)
    for table, chain in (
        *(("filter", "KUBE-FIREWALL"), ("nat", "KUBE-MARK-DROP"), ("mangle", "KUBE-IPTABLES-HINT")),
        *(("nat", "KUBE-SVC-MINE"), ("filter", "KUBE-SVC-FBZZBJLJ6XKH3MG4"), ("nat", "KUBE-ROUTER-X"), ("nat", "X")),
    ):
        assert not is_left(table, chain, nothing)
    assert not is_left("nat", "KUBE-SVC-FBZZBJLJ6XKH3MG4", {"iptables"})
    assert is_left("nat", "KUBE-SVC-FBZZBJLJ6XKH3MG4", {"ipvs"})
    assert not is_left("nat", "KUBE-LOAD-BALANCER", {"ipvs"})
    assert is_left("nat", "KUBE-LOAD-BALANCER", {"iptables"})
    assert not is_left("nat", "KUBE-SERVICES", {"ipvs"})
    assert is_left("filter", "KUBE-SERVICES", {"ipvs"})
    assert plan_tables(FOREIGN, set(), "here") == ("", 0)


IPVS_ADDRESSES = [
    {"ifname": "eth0", "addr_info": [{"local": "192.0.2.9"}]},
    {"ifname": "kube-ipvs0", "addr_info": [{"local": "10.96.0.1"}, {"local": "fd00:10:96::1"}]},
]
IPVS_SAVED = """-A -t 10.96.0.1:443 -s rr
-a -t 10.96.0.1:443 -r 192.0.2.2:6443 -m -w 1
-A -t [fd00:10:96::1]:443 -s rr
-A -t 192.0.2.9:30080 -s rr
-A -u 192.0.2.9:30080 -s rr
-A --sctp-service 192.0.2.9:30090 -s rr
-A -t 192.0.2.100:80 -s wlc
-A -f 7 -s rr
"""
IPSETS = """create KUBE-CLUSTER-IP hash:ip,port family inet hashsize 1024 maxelem 65536
create KUBE-6-LOAD-BALANCER-SOURCE-CID hash:ip,port,net family inet6 hashsize 1024 maxelem 65536
create KUBE-NODE-PORT-TCP bitmap:port range 0-65535
create KUBE-NODE-PORT-SCTP-HASH hash:ip,port family inet hashsize 1024 maxelem 65536
create KUBE-MINE hash:ip family inet hashsize 1024 maxelem 65536
add KUBE-CLUSTER-IP 10.96.0.1,tcp:443
add KUBE-NODE-PORT-TCP 30080
add KUBE-NODE-PORT-SCTP-HASH 192.0.2.9,sctp:30090
add KUBE-MINE 192.0.2.100
"""
NAT = """*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-LOAD-BALANCER - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
COMMIT
"""
IPVS_NAT = """*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
-A KUBE-SVC-NPX46M4PTMTKRN6Y -j RETURN
COMMIT
"""


class Tools:
    """The programs that look, and what they were told to do."""

    def __init__(self, nat: str, legacy: str = "") -> None:
        self.texts = {
            "cat /proc/net/ip_tables_names": "nat\n" if legacy else "",
            "cat /proc/net/ip6_tables_names": "",
            "nft list tables": "table ip nat",
            "iptables-nft-save -t nat": nat,
            "iptables-nft-save -c -t nat": nat,
            "iptables-legacy-save -t nat": legacy,
            "iptables-legacy-save -c -t nat": legacy,
            "cat /proc/net/ip_vs": "TCP  0A600001:01BB rr\n",
            "ipvsadm -S -n": IPVS_SAVED,
            "ip -json -details address show": json.dumps(IPVS_ADDRESSES),
            "ipset save": IPSETS,
        }
        self.done: list[tuple[str, str]] = []

    def run(self, *argv: str, netns: str | None = None, stdin: str = "", ok: tuple[int, ...] = (0,)) -> str:
        assert (netns, len(ok) > 0) == (None, True)
        if " ".join(argv) in self.texts:
            return self.texts[" ".join(argv)]
        self.done.append((" ".join(argv), stdin))
        return ""


def with_tools(monkeypatch: pytest.MonkeyPatch, tools: Tools) -> Node:
    monkeypatch.setattr(liverules.os, "geteuid", lambda: 0)
    for module in (liverules, leftovers):
        monkeypatch.setattr(module, "run", tools.run)
    return Node()


def test_what_ipvs_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of mode iptables on the same backend nothing goes; of ipvs what is kube-proxy's, not keepalived's."""
    tools = Tools(NAT)
    node = with_tools(monkeypatch, tools)
    removals = plan_removals("iptables", None, node)
    assert tools.done == []
    for each in removals:
        leftovers.run(*each.argv, stdin=each.script)
    assert tools.done == [
        (
            "iptables-nft-restore --noflush --wait=5",
            "*nat\n:KUBE-LOAD-BALANCER - [0:0]\n-X KUBE-LOAD-BALANCER\nCOMMIT\n",
        ),
        (
            "ipvsadm -R",
            "-D -t 10.96.0.1:443\n-D -t [fd00:10:96::1]:443\n-D -t 192.0.2.9:30080\n"
            "-D --sctp-service 192.0.2.9:30090\n",
        ),
        (
            "ipset restore",
            "destroy KUBE-CLUSTER-IP\ndestroy KUBE-6-LOAD-BALANCER-SOURCE-CID\n"
            "destroy KUBE-NODE-PORT-TCP\ndestroy KUBE-NODE-PORT-SCTP-HASH\n",
        ),
        ("ip link delete kube-ipvs0", ""),
    ]
    assert max(map(len, leftovers.SETS)) == 31
    with pytest.raises(MachineError, match="still there: 1 rules"):
        remove(removals, lambda: removals, node)


def test_what_iptables_left_where_ipvs_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = Tools(IPVS_NAT, NAT)
    [legacy, nft] = plan_removals("ipvs", None, with_tools(monkeypatch, tools))
    assert "-X KUBE-SERVICES" in legacy.script
    assert legacy.argv[0] == "iptables-legacy-restore"
    chain = "KUBE-SVC-NPX46M4PTMTKRN6Y"
    assert nft.script == f"*nat\n:{chain} - [0:0]\n-X {chain}\nCOMMIT\n"
    with pytest.raises(MachineError, match="both backends have rules of mode ipvs"):
        plan_removals("ipvs", None, with_tools(monkeypatch, Tools(IPVS_NAT, IPVS_NAT)))


def test_from_the_command_line(
    capsys: Captured,
    cluster: FakeApi,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The script is shown, and somebody asked, before anything is done; with --dry-run, nothing is."""
    tools = Tools(NAT)
    with_tools(monkeypatch, tools)
    status, _, err = call(capsys, "mode", "set", "nftables", "--clean", "--yes")
    assert (status, cluster.calls[-1].verb) == (1, "get"), "nothing is patched where nothing can be cleaned"
    assert "--clean: no kube-proxy of this node says which mode it is in" in err
    with monkeypatch.context() as patch:
        patch.setattr(liverules.os, "geteuid", lambda: 1000)
        status, _, err = call(capsys, "mode", "set", "nftables", "--clean", "--yes")
        assert (status, cluster.calls[-1].verb) == (1, "get")
        assert "reading the kernel's rules takes root" in err
    cluster.objects["apps", "daemonsets", "kube-system", "kube-proxy"]["status"] = {"observedGeneration": 9}
    monkeypatch.setattr(rollout, "read_proxy", lambda *_, **__: "iptables")
    for argv, stdin, says in (
        (("--dry-run",), "", "  -D -t 10.96.0.1:443\n"),
        ((), "n\n", "4 virtual servers of kube-proxy's:\nipvsadm -R\n"),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        status, out, err = call(capsys, "mode", "set", "default", "--clean", *argv)
        assert (status, says in out, tools.done) == (int(bool(stdin)), True, []), err
        assert ("Remove this from the kernel of node" in err) == bool(stdin)
    done: list[leftovers.Removal] = []
    monkeypatch.setattr(leftovers, "remove", lambda removals, *_: done.extend(removals))
    status, out, err = call(capsys, "mode", "set", "default", "--clean", "--yes")
    assert (status, len(done)) == (0, 4), err
    assert "removed: 1 rules of kube-proxy's and their chains, iptables-nft; 4 virtual servers" in out
    tools.texts |= {"iptables-nft-save -t nat": NAT.replace("KUBE-LOAD-BALANCER", "X"), "cat /proc/net/ip_vs": ""}
    tools.texts["ip -json -details address show"] = "[]"
    status, out, _ = call(capsys, "mode", "set", "default", "--clean")
    assert (status, out.splitlines()[-1]) == (0, "no rules of other modes are left in this kernel")
