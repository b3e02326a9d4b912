"""Capturing the rules of a live node, with and without --anonymous. The tools are fakes."""

from __future__ import annotations

import json
import random
import re
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from kproxylat.errors import CommandError, MachineError
from kproxylat.lab import capture
from kproxylat.lab.anonymous import Anonymizer
from kproxylat.lab.rules import render_ruleset
from kproxylat.lab.ruleset import Ruleset, read_ruleset
from kproxylat.lab.services import ADDRESSES, place_services
from kproxylat.modes import MODES, Mode, find_mode
from kproxylat.node import live_rules, service_rule
from kproxylat.node import node as nodes
from kproxylat.system import kernel
from tests.support import TESTS
from tests.support.command import call
from tests.support.rules import CAPTURED

SERVICES = place_services(5, "middle", "both")


class Node:
    """A node with the lab's rules in some modes, and the tools that print them."""

    def __init__(self, *modes: Mode) -> None:
        self.modes = {(mode.name, mode.backend): mode for mode in modes}
        self.ran: set[str] = set()
        self.more: dict[str, str] = {}
        self.ipv6 = False

    def text(self, name: str, backend: str, program: str) -> str:
        mode = self.modes.get((name, backend))
        texts = {argv[0]: text for argv, text in render_ruleset(mode, SERVICES)} if mode else {}
        return texts.get(program, "") + (self.more.get(program, "") if texts else "")

    def run(self, *argv: str, **_: object) -> str:
        self.ran.add(argv[0])
        match argv:
            case (tool, "--version"):
                return f"{tool} v1.2.3\n(more)\n"
            case ("cat", "/proc/net/ip_tables_names"):
                return "nat\n" if ("iptables", "legacy") in self.modes else ""
            case ("cat", "/proc/net/ip6_tables_names"):
                return "nat\n" if self.ipv6 else ""
            case ("ip6tables-legacy-save", *_):
                mode = find_mode("iptables", "legacy").for_family(6)
                return render_ruleset(mode, place_services(1, "last", "udp", 6), ADDRESSES[6])[-1][1]
            case ("cat", "/proc/net/ip_vs"):
                lines = "TCP  0A600001:01BB rr\n"
                return lines if ("ipvs", "ipvs") in self.modes else ""
            case ("iptables-legacy-save", *_):
                return self.text("iptables", "legacy", "iptables-legacy-restore")
            case ("iptables-nft-save", *_):
                own = self.text("iptables", "nft", "iptables-nft-restore")
                return own or self.text("ipvs", "ipvs", "iptables-nft-restore")
            case ("nft", "list", "tables"):
                nat = "table ip nat\n"
                has = {("iptables", "nft"): nat, ("nftables", "nft"): "table ip kube-proxy\n", ("ipvs", "ipvs"): nat}
                return "".join(text for key, text in has.items() if key in self.modes)
            case ("nft", "--json", *_):
                key = {"concat": ["10.96.0.1", "tcp", 443]}
                return json.dumps({"nftables": [{"map": {"elem": [[key, {"goto": {"target": "x"}}]]}}]})
            case ("nft", "list", "table", "ip", "kube-proxy"):
                return self.text("nftables", "nft", "nft")
            case ("ipset", "save"):
                return self.text("ipvs", "ipvs", "ipset")
            case ("ipvsadm", "-S", "-n"):
                return self.text("ipvs", "ipvs", "ipvsadm")
        raise AssertionError(f"{argv} is more than looking")


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Node:
    node = Node()
    for module in (capture, live_rules, service_rule):
        monkeypatch.setattr(module, "run", node.run)
    monkeypatch.setattr(kernel, "has_module", lambda _: True)
    monkeypatch.setattr(kernel, "check_root", lambda: None)
    monkeypatch.setattr(live_rules.os, "geteuid", lambda: 0)
    return node


@pytest.mark.parametrize("anonymous", [False, True])
@pytest.mark.parametrize("mode", MODES, ids=lambda each: f"{each.name}-{each.backend}")
def test_a_capture_can_be_loaded(live: Node, tmp_path: Path, mode: Mode, anonymous: bool) -> None:
    live.modes[mode.name, mode.backend] = mode
    text, _ = capture.capture(None, None, anonymous)
    capture.save(text, tmp_path / "ruleset.json")
    ruleset = read_ruleset(tmp_path / "ruleset.json")
    assert ruleset.mode == mode
    assert len(ruleset.services) == len(SERVICES)
    assert [len(each.endpoints) for each in ruleset.services] == [len(each.endpoints) for each in SERVICES]
    assert [argv[0] for argv, _ in ruleset.commands()][-1] == render_ruleset(mode, SERVICES)[-1][0][0]
    hidden = not {each.ip for each in SERVICES} & {each.ip for each in ruleset.services}
    assert hidden is anonymous
    assert ("dummy-service" in text) is (not anonymous and mode.name != "ipvs")
    assert json.loads(text)["anonymous"] is anonymous
    printed = {"nftables": ["nft"], "ipvs": ["iptables-nft", "ipset", "ipvsadm"]}
    tools = printed.get(mode.name, [f"iptables-{mode.backend}"])
    assert json.loads(text)["tools"] == {tool: f"{tool} v1.2.3" for tool in tools}
    with pytest.raises(MachineError, match="File exists"):
        capture.save(text, tmp_path / "ruleset.json")
    capture.save("", tmp_path / "ruleset.json", force=True)
    assert (tmp_path / "ruleset.json").read_text() == ""


def test_reading_creates_no_table(live: Node) -> None:
    """Without legacy rules the program that could make legacy tables is not even called."""
    live.modes["iptables", "nft"] = find_mode("iptables", "nft")
    capture.capture(None, None, False)
    assert "iptables-legacy-save" not in live.ran
    assert "ipset" not in live.ran, "no rule names a set"


def test_nft_that_crashes_is_named(live: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """As nft 1.0.4 does on sets that nft 1.1.3 wrote."""
    live.modes["nftables", "nft"] = find_mode("nftables", None)

    def crash(*argv: str, **more: object) -> str:
        if argv == ("nft", "list", "tables"):
            raise CommandError([*argv], -11, "")
        return "nftables v1.0.4 (Lester Gooch)\n" if argv == ("nft", "--version") else live.run(*argv, **more)

    monkeypatch.setattr(service_rule, "run", crash)
    with pytest.raises(MachineError, match=r"nftables v1.0.4 crashed \(status -11\) at nft list tables") as caught:
        capture.capture(None, None, False)
    assert "newest nft" in caught.value.remedy


@pytest.mark.parametrize("lacks", ["nf_tables", "ip_tables"])
def test_a_kernel_without_a_module_has_no_such_rules(live: Node, monkeypatch: pytest.MonkeyPatch, lacks: str) -> None:
    """There nft refuses to list tables; the rules that the kernel has are read nevertheless."""
    for backend in ("legacy", "nft"):
        live.modes["iptables", backend] = find_mode("iptables", backend)
    monkeypatch.setattr(kernel, "has_module", lambda name: name != lacks)

    def refuse(*argv: str, **more: object) -> str:
        if argv == ("nft", "list", "tables") and lacks == "nf_tables":
            raise CommandError([*argv], 1, "netlink: Error: cache initialization failed: Protocol not supported")
        return live.run(*argv, **more)

    monkeypatch.setattr(service_rule, "run", refuse)
    [rules] = live_rules.read_live_rules()
    assert rules.backend == ("legacy" if lacks == "nf_tables" else "nft")


def test_several_backends_require_a_choice(live: Node) -> None:
    for backend in ("legacy", "nft"):
        live.modes["iptables", backend] = find_mode("iptables", backend)
    with pytest.raises(MachineError, match="several backends are live: iptables on legacy, iptables on nft"):
        capture.capture(None, None, False)
    assert '"backend": "legacy"' in capture.capture("iptables", "legacy", False)[0]


def test_a_node_that_is_a_container(
    live: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    live.modes["iptables", "nft"] = find_mode("iptables", "nft")
    asked = []

    def run(*argv: str, netns: str | None = None, **more: Any) -> str:
        asked.append(netns)
        return live.run(*argv, netns=None, **more)

    for module in (capture, live_rules):
        monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr("kproxylat.cli.app.signal.signal", lambda *_: None)
    monkeypatch.setattr(nodes, "_find_process", {"kind-worker": 4711}.get)
    for place in (("--node-container", "kind-worker"), ("--netns", "/proc/self/ns/net")):
        assert call(capsys, "capture", "--output", str(tmp_path / place[0]), *place)[0] == 0
    assert {*asked} == {"/proc/4711/ns/net", "/proc/self/ns/net"}


@pytest.mark.usefixtures("live")
def test_a_node_without_rules_says_so() -> None:
    with pytest.raises(MachineError, match="this kernel holds no rules of kube-proxy's"):
        capture.capture(None, None, False)


def test_anonymous_addresses_share_as_many_bits_as_before() -> None:
    hide, rng = Anonymizer(b"key"), random.Random(1)
    addresses = [IPv4Address(rng.getrandbits(32)) for _ in range(200)]
    addresses += [IPv4Address(int(each) ^ 1 << rng.randrange(24)) for each in addresses]
    hidden = [IPv4Address(hide.address(str(each))) for each in addresses]
    assert sum(a != b for a, b in zip(addresses, hidden, strict=True)) > 200
    for one, other in zip(addresses, addresses[1:] + addresses[:1], strict=True):
        a, b = (hidden[addresses.index(each)] for each in (one, other))
        assert (int(one) ^ int(other)).bit_length() == (int(a) ^ int(b)).bit_length()


@pytest.mark.parametrize("address", ["0.0.0.1", "127.0.0.1", "169.254.20.10", "224.0.0.1", "255.255.255.255"])
def test_special_addresses_stay(address: str) -> None:
    assert Anonymizer(b"key").address(address) == address


@pytest.mark.parametrize("network", ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"])
def test_private_addresses_stay_private(network: str) -> None:
    inside = IPv4Network(network)
    for key in (b"a", b"b", b"c"):
        for number in (0, 1, inside.num_addresses - 1):
            assert IPv4Address(Anonymizer(key).address(str(inside[number]))) in inside


def test_no_name_of_the_cluster_stays() -> None:
    text = (CAPTURED / "iptables-nft/n0/iptables-nft-save.txt").read_text()
    text += '-A X -m comment --comment "name: \\"prod\\" id: \\"abc\\"" -j Y\n'
    hidden = Anonymizer(b"key").text(text)
    assert not re.findall(r"default|worker|grpc|prod|10\.96\.100|10\.244|NSEVGQHS", hidden)
    assert hidden.count("\n") == text.count("\n")
    counters = re.compile(r"\[\d+:\d+\]")
    assert counters.findall(hidden) == counters.findall(text)
    assert "block incoming localnet connections" in hidden


OTHERS = TESTS / "rulesets"
SECRET = re.compile(r"secret|acme|itplocal|kube-dns|203\.0\.113|10\.4[23]\.|__[\d.]+/|fd00|de:ad", re.I)


def read_again(directory: Path, text: str) -> Ruleset:
    (directory / "hidden").write_text(text)
    return read_ruleset(directory / "hidden")


def test_chains_and_sets_of_nftables_lose_their_names(tmp_path: Path) -> None:
    """Session affinity, policies of local traffic, and a name that is cut where its protocol would stand."""
    text = (OTHERS / "kube-proxy-1.35-nft.txt").read_text()
    text = text.replace("AAAAAAAQ-kube-system/kube-dns/udp/", "AAAAAAAQ-secret-system/kube-dns-with-a-very-lo...")
    assert SECRET.search(text)
    hidden = Anonymizer(b"key").text(text)
    assert not SECRET.search(hidden)
    before, after = (read_again(tmp_path, each) for each in (text, hidden))
    assert [(len(each.endpoints), each.port, each.protocol) for each in after.services] == [
        (len(each.endpoints), each.port, each.protocol) for each in before.services
    ]
    assert [each for each in after.services if each.port_name.startswith("anonymous/")]
    assert after.cluster_cidr
    assert after.cluster_cidr.prefixlen == 16
    for name in re.findall(r"@?((?:affinity|endpoint|local|service)-[A-Z2-7]{8}-[^\s,;]+)", hidden):
        assert re.search(rf"^\t(?:set|chain) {re.escape(name)} \{{", hidden, re.M), "each name is still somebody's"


FOREIGN = """-A FORWARD -m comment --comment customer-acme-vpn -j ACCEPT
-A FORWARD -m comment --comment "Drop traffic of customer ACME" -j DROP
-A FORWARD -m comment --comment "Reject acme" -j DROP
-A FORWARD -m comment --comment "service billing-db of ACME" -j ACCEPT
-A FORWARD -m comment --comment "masquerade for acme" -j ACCEPT
-A FORWARD -m comment --comment "kubernetes nodes of ACME" -j ACCEPT
-A FORWARD -m comment --comment "traffic to acme/web:http is accepted" -j ACCEPT
-A FORWARD -m mac --mac-source de:ad:be:ef:00:01 -j LOG --log-prefix "ACME-FW: "
-A FORWARD -j LOG --log-prefix acme --log-level 4
-A FORWARD -j NFLOG --nflog-prefix "acme.internal"
-A FORWARD -m string --string "secret.acme.com" --algo bm --to 65535 -j DROP
-A FORWARD -m string --hex-string "|61|cme" --algo bm --to 65535 -j DROP
"""


def test_words_of_foreign_rules_are_hidden(tmp_path: Path) -> None:
    text = (
        (OTHERS / "cni-iptables-save.txt").read_text().replace("-A FORWARD -j DOCKER", f"{FOREIGN}-A FORWARD -j DOCKER")
    )
    hidden = Anonymizer(b"key").text(text).partition("# Generated by ip6tables")[0]
    assert not re.search(f"{SECRET.pattern}|cme|cbr0|8c1e|cali:|flanneld", hidden, re.I)
    assert "kubernetes service traffic requiring SNAT" in hidden
    ruleset = read_again(tmp_path, hidden)
    assert [len(each.endpoints) for each in ruleset.services] == [2]
    kept = re.compile(r"^(?:\[\d+:\d+\] )?-A \S+|-j \S+", re.M)
    own = re.compile(r"KUBE-S\w\w-\w+")
    assert kept.findall(own.sub("", hidden)) == kept.findall(own.sub("", text.partition("# Generated by ip6")[0]))


TOOLS = ("ipset save", "ipvsadm -Sn")


def test_lines_of_ipv6_are_not_in_a_capture(live: Node) -> None:
    live.modes["ipvs", "ipvs"] = find_mode("ipvs", None)
    live.more = {
        "ipset": "create KUBE-6-CLUSTER-IP hash:ip,port family inet6\nadd KUBE-6-CLUSTER-IP fd00::a,tcp:53\n",
        "ipvsadm": "-A -t [fd00::a]:53 -s rr\n-a -t [fd00::a]:53 -r [fd00::1:b]:53 -m -w 1\n",
    }
    for anonymous in (True, False):
        text, ruleset = capture.capture(None, None, anonymous)
        assert "fd00" not in text
        assert len(ruleset.services) == len(SERVICES)
        assert ruleset.notes == tuple(f"{tool}: lines other than IPv4 are left out" for tool in TOOLS)


def test_a_node_of_ipv6_alone_is_refused(live: Node) -> None:
    live.ipv6 = True
    with pytest.raises(MachineError, match="the live rules hold no IPv4 Services") as error:
        capture.capture(None, None, False)
    assert "--family 6" in error.value.remedy
