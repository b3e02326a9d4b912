"""The reader of iptables-save: every form of a rule that kube-proxy and others write."""

from __future__ import annotations

import time

import pytest

from kproxylat.node.iptables_save import Rule, parse_rule, read_chain, read_tables, strip_quoted
from kproxylat.results import Target

MATCH = '-d 10.96.0.9/32 -p tcp -m comment --comment "default/web:http cluster IP" -m tcp --dport 80'
WEB = Target("10.96.0.9", 80, "tcp")


@pytest.mark.parametrize(
    ("line", "packets"),
    [
        (f"[7:420] -A KUBE-SERVICES {MATCH} -j KUBE-SVC-X", 7),
        (f"-A KUBE-SERVICES {MATCH} -c 7 420 -j KUBE-SVC-X", 7),
        (f"-A KUBE-SERVICES {MATCH} -j KUBE-SVC-X", None),
    ],
)
def test_the_forms_of_a_rule(line: str, packets: int | None) -> None:
    rule = parse_rule(line)
    assert rule
    assert (rule.chain, rule.packets, rule.jump, rule.service) == ("KUBE-SERVICES", packets, "KUBE-SVC-X", WEB)
    assert rule.comment == "default/web:http cluster IP"


@pytest.mark.parametrize(
    ("text", "jump", "service"),
    [
        (f"! -s 10.244.0.0/16 {MATCH} -j KUBE-MARK-MASQ", "KUBE-MARK-MASQ", WEB),
        (f"{MATCH} -j REJECT --reject-with icmp-port-unreachable", "REJECT", WEB),
        ("-d fd00::9/128 -p udp -m udp --dport 53 -j KUBE-SVC-Y", "KUBE-SVC-Y", Target("fd00::9", 53, "udp")),
        (f"{MATCH} -m addrtype --dst-type LOCAL -j KUBE-SVC-X", "KUBE-SVC-X", None),
        ("-d 10.0.0.0/8 -p tcp -m tcp --dport 80 -j KUBE-SVC-X", "KUBE-SVC-X", None),
        ("-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS", "KUBE-NODEPORTS", None),
        ("-s 192.0.2.0/24 -g OTHER", "OTHER", None),
        ("-j ACCEPT", "ACCEPT", None),
        ("-p tcp", "", None),
        ("", "", None),
        (f"{MATCH.replace('80', '9' * 5000)} -j KUBE-SVC-X", "KUBE-SVC-X", None),
    ],
)
def test_match_of_a_rule(text: str, jump: str, service: Target | None) -> None:
    rule = parse_rule(f"-A KUBE-SERVICES {text}".rstrip())
    assert rule == Rule("KUBE-SERVICES", text)
    assert (rule.jump, rule.service) == (jump, service)


def test_comments_are_not_read_as_options() -> None:
    comment = r"a \" -c 3 4 -j KUBE-SVC-Z --dport 9 -j KUBE-SVC-Z"
    rule = parse_rule(f'-A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m tcp --dport 80 -j X --comment "{comment}"')
    assert rule
    assert (rule.packets, rule.jump, rule.service, rule.comment) == (None, "X", WEB, comment)
    assert Rule("X", "-m comment --comment word -j Y").comment == "word"
    assert strip_quoted(r'a "b \" c" d "" e') == 'a "" d "" e'


def test_tables_and_chains() -> None:
    text = (
        f"# Generated\n*nat\n:KUBE-SVC-X - [0:0]\n[1:60] -A KUBE-SVC-X -j KUBE-SEP-Y\n-A KUBE-SERVICES {MATCH} -j X\n"
    )
    text += "-A KUBE-SVC-X -j KUBE-SEP-Z\nCOMMIT\n*filter\nCOMMIT\n"
    first, second = Rule("KUBE-SVC-X", "-j KUBE-SEP-Y", 1), Rule("KUBE-SVC-X", "-j KUBE-SEP-Z")
    services = Rule("KUBE-SERVICES", f"{MATCH} -j X")
    assert read_tables(text) == {"nat": {"KUBE-SVC-X": [first, second], "KUBE-SERVICES": [services]}, "filter": {}}
    assert read_chain(text, "KUBE-SVC-X") == [first, second]
    for line in ("COMMIT", ":KUBE-SERVICES - [0:0]", "", "-N KUBE-SERVICES", f"[{'9' * 5000}:0] -A X -j Y"):
        assert parse_rule(line) is None


@pytest.mark.parametrize("part", ['\\"', '--comment "\\" ', "-d 1.2.3.4/32 -p tcp ", "--dport 80 ", " -c 1 1"])
def test_hostile_lines_take_linear_time(part: str) -> None:
    started_s = time.process_time()
    rule = parse_rule(f"-A KUBE-SERVICES -d 10.96.0.9/32 -p tcp {part * 20_000}")
    assert rule
    assert (rule.service, rule.jump) == (None, "")
    assert rule.comment is not None
    assert time.process_time() - started_s < 2
