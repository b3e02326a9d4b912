"""Texts of rulesets are written anew: the real tools load the same rules, and nothing that was not understood."""

from __future__ import annotations

import gzip
import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from kproxylat.errors import RulesetError
from kproxylat.lab import iptables_rules
from kproxylat.lab.rules import render_ruleset
from kproxylat.lab.ruleset import build, read_ruleset
from kproxylat.lab.ruleset_check import CHECKS
from kproxylat.lab.services import Service, place_services
from kproxylat.modes import MODES, find_mode
from tests.support.rules import OTHERS, captured

RULE = '-A X -d 10.0.0.1/32 -p udp -m comment --comment "a \\"b\\" c" -m udp --dport 53 -j Y'
SAVED = f"*nat\n:X - [0:0]\n:Y - [0:0]\n{RULE}\nCOMMIT\n"


def read(file: Path) -> str:
    data = file.read_bytes()
    return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHECKS)
@given(some.data())
@settings(max_examples=300)
def test_no_random_text_reaches_a_tool_unparsed(kind: str, data: some.DataObject) -> None:
    """What is accepted is written in a form that is accepted and stays as it is, without comments and control bytes."""
    base = {
        "iptables-save": read(OTHERS / "cni-iptables-save.txt"),
        "nft": read(OTHERS / "kube-proxy-1.31-nft.txt"),
        "ipvsadm": read(OTHERS / "ipvsadm.txt"),
        "ipset": "create A hash:ip,port family inet hashsize 1024\nadd A 10.0.0.1,tcp:80\n",
    }[kind]
    at = data.draw(some.integers(0, len(base)))
    parts = ['"', "\\", "\n", " -M /x", 'include "/etc/passwd"', "#", "\\\n", "{", "}", ";", "$x", " --set", "\0", "é"]
    noise = data.draw(some.lists(some.sampled_from(parts) | some.text(max_size=3), max_size=6).map("".join))
    text = base[:at] + noise + base[at + data.draw(some.integers(0, 3)) :]
    try:
        written = CHECKS[kind]("x", text, [])
    except RulesetError:
        return
    assert CHECKS[kind]("x", written, []) == written
    assert not iptables_rules.FORBIDDEN.search(written)
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', written)
    assert not re.search(r" -\w*M|--mod[ =p]|include|-file|[#$`]|\\", bare)


@given(some.text(max_size=40).filter(lambda text: not iptables_rules.FORBIDDEN.search(text) and "\n" not in text))
def test_any_comment_stays_a_comment(comment: str) -> None:
    quoted = comment.replace("\\", "\\\\").replace('"', '\\"')
    line = RULE.replace('a \\"b\\" c', quoted)
    assert line in CHECKS["iptables-save"]("x", SAVED.replace(RULE, line), []).splitlines()


def test_names_in_a_comment_are_no_names_of_objects(tmp_path: Path) -> None:
    comment = '-m comment --comment "--nfacct-name -flush --match-set -file x"'
    text = read(OTHERS / "cni-iptables-save.txt").replace("-A DOCKER-USER -j", f"-A DOCKER-USER {comment} -j")
    (tmp_path / "x").write_text(text)
    commands = read_ruleset(tmp_path / "x").commands()
    assert [argv[0] for argv, _ in commands] == ["ipset", "iptables-nft-restore"]
    assert commands[0][1].split() == ["create", "cali40all-ipam-pools", "hash:ip"]


def test_usual_rules_are_written_as_they_are() -> None:
    """The pattern that tells them agrees with the parser."""
    for name in ("iptables-nft/n0/iptables-nft-save.txt", "iptables-nft/n100/iptables-nft-save.txt"):
        lines = [line for line in captured(name).splitlines() if iptables_rules._CANONICAL.fullmatch(line)]
        assert len(lines) > 30
        for line in lines:
            rule = iptables_rules._RULE.fullmatch(line)
            assert rule
            words = iptables_rules._rewrite_rule("x", 1, line, rule[3]) or []
            assert f"{rule[1] or ''}-A {rule[2]} {' '.join(words)}" == line


@pytest.mark.parametrize("line", [
    "-A X -m comment --comment \"" + "é" * 5200 + "\" --modprobe=/tmp/evil -j Y",
    "-A X -m comment --comment " + "a" * 1100 + " -j Y",
    '-A X -m recent --set --comment "-M/tmp/evil" -j Y',
    '-A X -m mark --mark "" -M/tmp/evil -j Y',
    "-A X -m bpf --object-pinned /etc/shadow -j Y",
    "-A X -m cgroup --path ../../etc -j Y",
    "-A X -j Y -j",
    "-A X -s",
    "-A X -s example.org -j Y",
    "-A X -m mark --mark -1 -j Y",
    "-A X -j TEE --gateway 10.0.0.1",
    "-A X -j NOWHERE",
])  # fmt: skip
def test_what_is_not_understood_is_refused(line: str) -> None:
    with pytest.raises(RulesetError, match="x, line 4: "):
        CHECKS["iptables-save"]("x", SAVED.replace(RULE, line), [])


@pytest.mark.parametrize("inside", [
    'include\\\n#\n"/etc/passwd"', 'include "/etc/passwd"', "define x = 1", "$x", "flush ruleset", "queue num 1",
    "jump include", "dup to 10.0.0.1 device eth0", 'comment "a', "counter }", "goto nowhere", "ip saddr @nowhere",
])  # fmt: skip
def test_nft_reads_no_other_statement(inside: str) -> None:
    for text in (f"table ip x {{\n chain y {{\n {inside}\n }}\n}}\n", f"{inside}\ntable ip x {{\n}}\n"):
        with pytest.raises(RulesetError):
            CHECKS["nft"]("x", text, [])


@pytest.mark.parametrize(("name", "text", "command"), [
    ("iptables -L", "Chain KUBE-SERVICES (2 references)\ntarget     prot opt source\n", "iptables-save"),
    ("iptables -S", "-P INPUT ACCEPT\n-N KUBE-SERVICES\n-A KUBE-SERVICES -j X\n", "iptables-save"),
    ("ipvsadm -L", "IP Virtual Server version 1.2.1\nTCP  10.96.0.1:443 rr\n", "ipvsadm -Sn"),
    ("ipvsadm -L", "TCP  10.96.0.1:443 rr\n  -> 10.0.0.1:6443 Masq 1 0 0\n", "ipvsadm -Sn"),
    ("is not an address and a port", "-A -t kubernetes.local:https -s rr\n", "ipvsadm -S -n"),
    ("ipset list", "Name: KUBE-CLUSTER-IP\nType: hash:ip,port\n", "ipset save"),
    ("input for nft", "add table ip kube-proxy\nadd chain ip kube-proxy services\n", "nft list ruleset"),
    ("nft's JSON", json.dumps({"nftables": [{"metainfo": {}}]}), "nft list ruleset"),
    ("without its tables", "-A KUBE-SERVICES -d 10.0.0.1/32 -j X\n", "iptables-save"),
    ("without its tables", "\t\telements = { 10.96.0.9 . tcp . 80 : goto service-X }\n", "nft list ruleset"),
    ("is cut", SAVED.replace("COMMIT", ""), "iptables-save"),
    ("is cut", f"{SAVED.replace('COMMIT', '')}*filter\nCOMMIT\n", "the line"),
    ("is cut", "table ip kube-proxy {\n chain x {\n", "nft list ruleset"),
    ("is cut", "table ip kube-proxy {\n map service-ips {\n elements = { 10.96.0.9 . tcp . 80 : goto x }\n }\n}\n",
     "the line"),
    ("iptables-nft wrote", captured("iptables-nft/n0/iptables-nft-save.txt"), ""),
    ("input for iptables-restore", "*nat\n:KUBE-SERVICES - [0:0]\n-X KUBE-SVC-Y\nCOMMIT\n", "iptables-save"),
    ("holds no rules", "hello\n", "kproxylat capture"),
])  # fmt: skip
def test_the_form_of_other_listings_is_named(tmp_path: Path, name: str, text: str, command: str) -> None:
    if not command:
        text, command = (
            "table ip nat {\n\tchain KUBE-SERVICES {\n\t\tcounter packets 1 bytes 2 jump X\n\t}\n}\n",
            "iptables-nft",
        )
    (tmp_path / "x").write_text(text)
    with pytest.raises(RulesetError, match=name) as error:
        read_ruleset(tmp_path / "x")
    assert command in error.value.remedy


def test_rules_that_nothing_leads_to_are_a_part(tmp_path: Path) -> None:
    """As in the text that kube-proxy passes to iptables-restore --noflush."""
    text = captured("iptables-nft/n0/iptables-nft-save.txt")
    (tmp_path / "x").write_text(re.sub(r"^.*-j KUBE-SERVICES\n", "", text, flags=re.M))
    with pytest.raises(RulesetError, match="a part of the rules: none leads to chain KUBE-SERVICES"):
        read_ruleset(tmp_path / "x")


def test_a_leftover_of_mode_ipvs_does_not_hide_mode_iptables() -> None:
    ruleset = read_ruleset(OTHERS / "leftover.txt")
    assert (ruleset.mode.name, ruleset.mode.backend) == ("iptables", "nft")
    assert [service.endpoints for service in ruleset.services] == [("10.0.20.5:6443",)]


def test_the_backend_of_older_programs(tmp_path: Path) -> None:
    text = read(OTHERS / "backend.txt")
    unknown = "it does not name its backend: nft is assumed"
    (tmp_path / "x").write_text(text)
    assert read_ruleset(tmp_path / "x").mode.backend == "nft"
    assert unknown not in read_ruleset(tmp_path / "x").notes
    (tmp_path / "x").write_text(text.rpartition("# Warning")[0])
    assert unknown in read_ruleset(tmp_path / "x").notes
    assert read_ruleset(tmp_path / "x", backend="legacy").mode.backend == "legacy"
    (tmp_path / "x").write_text(text.rpartition("# Warning")[0].replace("v1.8.7", "v1.8.9"))
    assert read_ruleset(tmp_path / "x").mode.backend == "legacy"


def test_services_without_endpoints_may_be_dropped() -> None:
    services = read_ruleset(OTHERS / "noendpoint-drop.txt").services
    assert [(service.ip, service.port_name, service.endpoints) for service in services] == [
        ("10.96.0.9", "ns/a:p80", ("10.244.1.7:8080",)), ("10.96.0.5", "ns/x:p80", ()), ("10.96.0.6", "ns/y:p80", ()),
    ]  # fmt: skip


@pytest.mark.parametrize(("form", "release"), [
    ("dnat ip to 10.244.1.7 . 8080", "1.37 or newer"),
    ("dnat to 10.244.1.7:8080", "1.37 or newer"),
    ("dnat ip to 10.244.1.7:8080", "1.37 or newer"),
    ("dnat ip addr . port to 10.244.1.7 . 8080", "1.37 or newer"),
    ("dnat ip to numgen random mod 1 map { 0 : 10.244.1.7 . 8080 }", "1.36"),
    ("dnat ip addr . port to numgen random mod 1 map { 0 : 10.244.1.7 . 8080 }", "1.36"),
])  # fmt: skip
def test_a_single_endpoint(tmp_path: Path, form: str, release: str) -> None:
    text = read(OTHERS / "noendpoint-drop.txt")
    text = re.sub(r"dnat ip to .*", form, text)
    other = (
        re.sub(r"\b10\.\d+\.\d+\.(\d+)", r"fd00::\1", text)
        .replace("ip kube", "ip6 kube")
        .replace("dnat ip ", "dnat ip6 ")
    )
    other = re.sub(r"to fd00::(\d+):", r"to [fd00::\1]:", other).replace("ipv4", "ipv6")
    (tmp_path / "x").write_text(text + other)
    ruleset = read_ruleset(tmp_path / "x")
    assert ruleset.services[0].endpoints == ("10.244.1.7:8080",)
    assert f"the form of the rules is that of kube-proxy {release}" in ruleset.notes


RAW = "*raw\n:PREROUTING ACCEPT [0:0]\n{}\nCOMMIT\n"


@pytest.mark.parametrize(("rule", "untracked"), [
    ("-A PREROUTING -d 10.43.0.10/32 -p udp -m udp --dport 53 -j NOTRACK", True),
    ('-A PREROUTING -d 10.43.0.10/32 -p udp -m comment --comment "NodeLocal" -m udp --dport 53 -j CT --notrack', True),
    ("-A PREROUTING -d 10.43.0.0/16 -j CT --notrack", True),
    ("-A PREROUTING -p udp -m multiport --dports 50:60,80 -j NOTRACK", True),
    ("-A PREROUTING -d 10.43.0.10/32 -p tcp -m tcp --dport 53 -j NOTRACK", False),
    ("-A PREROUTING -d 10.43.0.10/32 -p udp -m udp --dport 54 -j NOTRACK", False),
    ("-A PREROUTING ! -d 10.43.0.11/32 -j NOTRACK", False),
    ("-A PREROUTING -i lo -j NOTRACK", False),
])  # fmt: skip
def test_services_outside_of_conntrack_are_left_out(tmp_path: Path, rule: str, untracked: bool) -> None:
    text = read(OTHERS / "cni-iptables-save.txt").partition("*filter")[2]
    service = "-A KUBE-SERVICES -d 10.43.0.11/32 -p sctp -m sctp --dport 7 -j KUBE-SVC-TCOU7JCQXEZGVUNU\n"
    service += service.replace("sctp", "tcp").replace("--dport 7", "--dport 8").replace("10.43.0.11", "10.44.0.11")
    text = text.replace("-A KUBE-SVC-TCOU", f"{service}-A KUBE-SVC-TCOU", 1)
    (tmp_path / "x").write_text(f"{RAW.format(rule)}*filter{text}")
    ruleset = read_ruleset(tmp_path / "x")
    assert ("10.43.0.10" in {target.ip for target in ruleset.targets}) is not untracked
    assert "10.44.0.11" in {target.ip for target in ruleset.targets}
    assert ("10.43.0.10:53/udp" in str(ruleset.notes)) is untracked
    if untracked:
        [(target, reason)] = ruleset.left_out.items()
        assert str(target) == "10.43.0.10:53/udp"
        assert "out of conntrack: " in reason


def test_a_chain_that_refuses_the_rest_is_named(tmp_path: Path) -> None:
    text = read(OTHERS / "cni-iptables-save.txt").replace(":FORWARD DROP", ":FORWARD ACCEPT")
    rule = "-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n-A DOCKER-USER"
    (tmp_path / "x").write_text(text.replace("-A DOCKER-USER", rule, 1))
    assert "its chain FORWARD ends with REJECT: " in str(read_ruleset(tmp_path / "x").notes)
    nft = (
        "table inet firewall {\n chain forward {\n type filter hook forward priority 0; policy drop;\n reject\n }\n}\n"
    )
    (tmp_path / "x").write_text(nft + read(OTHERS / "kube-proxy-1.31-nft.txt"))
    notes = str(read_ruleset(tmp_path / "x").notes)
    assert "an nft chain at hook forward drops packets" in notes
    assert "an nft chain at hook forward ends with reject" in notes


@pytest.mark.parametrize("jump", ["KUBE-EXT-X", "KUBE-SVC-TCOU7JCQXEZGVUNU"])
def test_other_addresses_in_iptables_rules_are_named(tmp_path: Path, jump: str) -> None:
    """Chain KUBE-EXT since Kubernetes 1.24; the ClusterIP's chain up to 1.22."""
    text = read(OTHERS / "cni-iptables-save.txt").replace(":KUBE-SVC-TCOU", ":KUBE-EXT-X - [0:0]\n:KUBE-SVC-TCOU")
    rule = (
        '-A KUBE-SERVICES -d 203.0.113.9/32 -p udp -m comment --comment "kube-system/kube-dns:dns {}" -m udp --dport 53'
    )
    rules = "".join(f"{rule.format(kind)} -j {jump}\n" for kind in ("loadbalancer IP", "external IP"))
    (tmp_path / "x").write_text(text.replace("-A KUBE-SVC-TCOU", f"{rules}-A KUBE-SVC-TCOU", 1))
    ruleset = read_ruleset(tmp_path / "x")
    assert "addresses that are not ClusterIPs are not measured: 203.0.113.9" in ruleset.notes
    assert "addresses of LoadBalancers and others (2 lines)" in ruleset.rewrite(find_mode("nftables", None)).notes[-1]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode.name}-{mode.backend}")
def test_services_of_sctp_can_be_written_and_read(tmp_path: Path, mode: str) -> None:
    services = [Service("a/b:c", name, "10.96.0.1", 80, ("10.244.0.1:80",)) for name in ("tcp", "udp", "sctp")]
    services.append(Service("a/d:c", "sctp", "10.96.0.2", 80, ()))
    for argv, text in render_ruleset(mode, services):  # type: ignore[arg-type]
        (tmp_path / argv[0]).write_text(text)
        assert "-A -s " not in text
    again = read_ruleset(tmp_path, mode.name, mode.backend).services  # type: ignore[attr-defined]
    assert [(service.protocol, service.ip, service.endpoints) for service in again] == [
        (service.protocol, service.ip, service.endpoints) for service in services
    ]


HOSTILE = {
    "iptables-save": ("-d a/128 ", '"', "! ", "*nat\n", '--comment "', "-A KUBE-SERVICES -d ", "! -s 1.1.1.1/1 ", "\n"),
    "nft": ("table a b {", "ip daddr ", "{", '"', "#", "10.0.0.1 . ", " ", "chain a {\n", "hook forward ", "notrack "),
    "ipvsadm": ("-A -t 1.1.1.1:1 ", "-s rr ", "[", '"'),
    "ipset": ("create a ", "1,", ",", "10.0.0.1-", '"'),
}


@pytest.mark.parametrize(("kind", "part"), [(kind, part) for kind, parts in HOSTILE.items() for part in parts])
def test_hostile_texts_take_linear_time(tmp_path: Path, kind: str, part: str) -> None:
    heads = {"iptables-save": "*nat\n:X - [0:0]\n", "nft": "table ip x {\n", "ipvsadm": "-A -t 10.0.0.1:1 -s rr\n"}
    head = heads.get(kind, "create A hash:ip family inet\n")
    started_s = time.process_time()
    for text in (head + part * (400_000 // len(part)), head + part * 500 + "\n"):
        (tmp_path / "x").write_text(text)
        with pytest.raises(RulesetError):
            read_ruleset(tmp_path / "x")
    assert time.process_time() - started_s < 2


@pytest.mark.parametrize(
    "mode", [find_mode("iptables", "nft"), find_mode("nftables", None)], ids=lambda mode: mode.name
)
def test_5_mb_are_read_in_a_second(mode: str) -> None:
    """The bound is wider than that, since other tests run at the same time."""
    count = {"iptables": 8000, "nftables": 16_000}[mode.name]  # type: ignore[attr-defined]
    commands = render_ruleset(mode, place_services(count, "last", "both"))  # type: ignore[arg-type]
    kind = mode.form.tool  # type: ignore[attr-defined]
    text = commands[-1][1] if kind != "nft" else max((text for _, text in commands), key=len) * 1
    started_s = time.process_time()
    build("x", mode, {kind: text})  # type: ignore[arg-type]
    assert time.process_time() - started_s < 2
