"""The lab's rulesets against those that the real kube-proxy 1.36.3 wrote (tests/kube-proxy-rules)."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace

import pytest

from kproxylat.errors import UsageError
from kproxylat.lab.rules import EMPTY_TRANSACTION, render_ruleset
from kproxylat.lab.services import Service, dummy_service, place_services
from kproxylat.modes import MODES, Mode, find_mode
from tests.support.rules import ALWAYS, captured, iptables_chains, nft_blocks, text_of


def commented(service: Service, rules: str) -> Service:
    """Above 1,000 endpoints kube-proxy writes new endpoint rules without comments: take over which ones it did so."""
    return replace(service, commented=f'"{service.port_name} -> ' in rules)


@pytest.mark.parametrize("dummies", [0, 100, 1000])
@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_iptables_rules_equal_those_of_kube_proxy(backend: str, dummies: int) -> None:
    rules = captured(f"iptables-{backend}/n{dummies}/iptables-{backend}-save.txt")
    real = iptables_chains(rules)
    services = [*ALWAYS, *(commented(dummy_service(number), rules) for number in range(dummies))]
    assert sum(each.commented for each in services) > 0.9 * dummies
    rendered = iptables_chains(text_of(find_mode("iptables", backend), services))
    assert sum(len(rules) for name, rules in real.items() if name.startswith("*nat KUBE-S")) > 12 + 5 * dummies
    assert rendered == real


@pytest.mark.parametrize("dummies", [0, 100, 1000])
def test_nftables_rules_equal_those_of_kube_proxy(dummies: int) -> None:
    real = nft_blocks(captured(f"nftables/n{dummies}/nft-list-ruleset.txt"))
    services = [*ALWAYS, *(dummy_service(number) for number in range(dummies))]
    rendered = nft_blocks(text_of(find_mode("nftables", None), services))
    assert len(real["table ip kube-proxy map service-ips"]) == 2 + 4 + dummies
    assert rendered == real


RULES_PER_SERVICE = {
    "iptables": (r"^-A KUBE-S", 5),
    "nftables": (r" : goto service-| dnat ip to ", 2),
    "ipvs": (r"^-[Aa] -[tu] ", 2),
}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode.name}-{mode.backend}")
def test_20_000_services_have_all_their_rules(mode: Mode) -> None:
    text = text_of(mode, place_services(20_000, "last", "both"))
    pattern, count = RULES_PER_SERVICE[mode.name]
    # In mode iptables the last rule of KUBE-SERVICES is that of the node ports.
    assert len(re.findall(pattern, text, re.M)) == 20_002 * count + (mode.name == "iptables")


@pytest.mark.parametrize("dummies", [0, 499, 1400])
def test_the_number_of_nft_transactions_is_odd(dummies: int) -> None:
    assert len(render_ruleset(find_mode("nftables", None), place_services(dummies, "last", "both"))) % 2 == 1


def test_many_services_take_several_nft_transactions() -> None:
    texts = [text for _, text in render_ruleset(find_mode("nftables", None), place_services(1000, "last", "both"))]
    assert [text.count("chain services {") for text in texts] == [1, 0, 0], "a rule that came twice would stand twice"
    assert [len(re.findall(r"chain service-[A-Z2-7]{8}-", text)) for text in texts] == [500, 500, 2]


def rows(mode: Mode, loaded: list[tuple[tuple[str, ...], str]]) -> dict[str, set[str]]:
    """Return the rules after commands, by table and chain or by command; iptables-restore flushes the chains that it
    declares."""
    stands: dict[str, set[str]] = defaultdict(set)
    for argv, text in loaded:
        new = {" ".join(argv[:2]): set(text.splitlines())}
        if mode.name == "iptables":
            new = iptables_chains(text)
            stands.update({name: set() for name in new if f"\n:{name.split()[1]} - " in text})
        elif mode.name == "nftables":
            new = nft_blocks(text)
        elif argv[0] == "ipvsadm":
            taken = {f"-{each}{line[2:]}" for line in text.splitlines() if line.startswith("-D") for each in "Aa"}
            stands["ipvsadm --restore"] -= {
                each for each in stands["ipvsadm --restore"] if each.split(" -s ")[0].split(" -r ")[0] in taken
            }
            new["ipvsadm --restore"] -= {line for line in text.splitlines() if line.startswith("-D")}
        for name, lines in new.items():
            assert not stands[name] & lines or mode.name == "nftables", "a rule that came twice would stand twice"
            stands[name] |= lines
    return stands


@pytest.mark.parametrize("position", ["first", "middle", "last"])
@pytest.mark.parametrize(
    "mode", [mode for mode in MODES if mode.growing], ids=lambda mode: f"{mode.name}-{mode.backend}"
)
def test_grown_rules_equal_rules_loaded_at_once(mode: Mode, position: str) -> None:
    grown, standing = list[tuple[tuple[str, ...], str]](), list[Service]()
    for count in (0, 10, 10, 1100):
        services = place_services(count, position, "both")
        more = render_ruleset(mode, services, standing=standing)
        assert mode.name != "nftables" or not standing or len(more) % 2 == 0, (
            "the parity of nft's transactions would change"
        )
        grown, standing = grown + more, services
    at_once = rows(mode, render_ruleset(mode, services))
    assert (render_ruleset(mode, services, standing=services), "create" in str(more), "*filter" in str(more)) == (
        [],
        False,
        False,
    )
    grown = [each for each in grown if each != EMPTY_TRANSACTION]
    assert {name: lines for name, lines in rows(mode, grown).items() if lines} == at_once


@pytest.mark.parametrize(("position", "index"), [("first", 0), ("middle", 6), ("last", 11)])
def test_position_of_the_worker(position: str, index: int) -> None:
    services = place_services(10, position, "both")
    assert len(services) == 12
    assert services[index].port_name == "default/worker:grpc-udp"


def test_worker_with_tcp_only() -> None:
    assert [each.protocol for each in place_services(0, "last", "tcp")] == ["tcp"]


def test_large_cluster_has_fewer_comments() -> None:
    services = place_services(1500, "last", "both")
    assert sum(each.commented for each in services) == 1000
    assert all(each.commented for each in services if "worker" in each.port_name)


@pytest.mark.parametrize(("count", "position", "ports"), [(-1, "last", "both"), (10, "here", "both"), (1, "last", "x")])
def test_impossible_lab_is_refused(count: int, position: str, ports: str) -> None:
    with pytest.raises(UsageError):
        place_services(count, position, ports)


def test_several_endpoints_share_by_probability() -> None:
    """Kubernetes, pkg/proxy/iptables/proxier.go: the k-th of n endpoints gets 1/(n-k), the last gets the rest."""
    service = Service("default/many:http", "tcp", "10.96.0.9", 80, ("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"))
    text = text_of(find_mode("iptables", "nft"), [service])
    assert re.findall(r"--probability (\S+)", text) == ["0.3333333333", "0.5000000000"]
    nft = text_of(find_mode("nftables", None), [service])
    assert "numgen random mod 3 map { 0 : 10.0.0.1 . 80, 1 : 10.0.0.2 . 80, 2 : 10.0.0.3 . 80 }" in nft


def test_services_that_share_an_endpoint_are_one_element_of_a_set() -> None:
    for argv, text in render_ruleset(find_mode("ipvs", None), ALWAYS):
        if argv[0] in ("ipset", "ip", "ipvsadm"):
            assert len(set(text.splitlines())) == len(text.splitlines()), argv
    assert "add KUBE-LOOP-BACK 10.244.1.10,udp:50051,10.244.1.10" in text_of_sets(ALWAYS)


def text_of_sets(services: list[Service]) -> list[str]:
    return dict(render_ruleset(find_mode("ipvs", None), services))[("ipset", "restore")].splitlines()


def test_ipvs_has_every_service_in_each_of_its_parts() -> None:
    services = place_services(3, "last", "both")
    parts = {argv[0]: text for argv, text in render_ruleset(find_mode("ipvs", None), services)}
    addresses = parts["ip"].splitlines()
    assert addresses[0] == "link add kube-ipvs0 type dummy"
    assert addresses[1:] == [f"address add {ip}/32 dev kube-ipvs0" for ip in dict.fromkeys(s.ip for s in services)]
    sets = parts["ipset"].splitlines()
    assert "add KUBE-CLUSTER-IP 10.96.100.50,udp:50051" in sets
    assert "add KUBE-LOOP-BACK 10.244.1.10,tcp:50051,10.244.1.10" in sets
    servers = parts["ipvsadm"].splitlines()
    assert servers[:2] == ["-A -t 10.97.0.1:80 -s rr", "-a -t 10.97.0.1:80 -r 10.245.0.1:80 -m -w 1"]
    assert servers[-2:] == ["-A -u 10.96.100.50:50051 -s rr", "-a -u 10.96.100.50:50051 -r 10.244.1.10:50051 -m -w 1"]
    named = set(re.findall(r"--match-set (\S+)", parts["iptables-nft-restore"]))
    assert named <= {line.split()[1] for line in sets if line.startswith("create")}
