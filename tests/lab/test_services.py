"""The lab's rulesets against those that the real kube-proxy 1.36.3 wrote (tests/kube-proxy-rules)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import defaultdict
from dataclasses import replace

import pytest

from kproxylat.errors import UsageError
from kproxylat.lab.rules import DEFAULT_RELEASE, EMPTY_TRANSACTION, RELEASES, check_release, render_ruleset
from kproxylat.lab.ruleset_services import _RELEASES
from kproxylat.lab.services import Service, dummy_service, place_services
from kproxylat.modes import MODES, Mode, find_mode
from kproxylat.system import kernel
from tests.support import TESTS
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


SINGLE = Service("ns1/svc1:p80", "tcp", "172.30.0.41", 80, ("10.180.0.1:80",))
DOUBLE = Service("ns4/svc4:p80", "tcp", "172.30.0.44", 80, ("10.180.0.4:80", "10.180.0.5:80"))
SERVICE, OTHER = "chain service-ULMVA6XW-ns1/svc1/tcp/p80", "chain service-LAUZTJTB-ns4/svc4/tcp/p80"
ENDPOINT = "chain endpoint-5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80"
RELEASED: dict[str, dict[str, set[str]]] = {
    "1.33": {
        SERVICE: {
            "ip daddr 172.30.0.41 tcp dport 80 ip saddr != 10.244.0.0/16 jump mark-for-masquerade",
            "numgen random mod 1 vmap { 0 : goto endpoint-5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80 }",
        },
        ENDPOINT: {"ip saddr 10.180.0.1 jump mark-for-masquerade", "meta l4proto tcp dnat to 10.180.0.1:80"},
        OTHER: {
            "ip daddr 172.30.0.44 tcp dport 80 ip saddr != 10.244.0.0/16 jump mark-for-masquerade",
            "numgen random mod 2 vmap { 0 : goto endpoint-UNZV3OEC-ns4/svc4/tcp/p80__10.180.0.4/80, "
            "1 : goto endpoint-5RFCDDV7-ns4/svc4/tcp/p80__10.180.0.5/80 }",
        },
    },
    "1.36": {
        SERVICE: {"meta l4proto tcp dnat ip to numgen random mod 1 map { 0 : 10.180.0.1 . 80 }"},
        OTHER: {
            "meta l4proto tcp dnat ip to numgen random mod 2 map { 0 : 10.180.0.4 . 80, 1 : 10.180.0.5 . 80 }",
        },
    },
    "1.37": {
        SERVICE: {"meta l4proto tcp dnat to 10.180.0.1:80"},
        OTHER: {
            "meta l4proto tcp dnat ip to numgen random mod 2 map { 0 : 10.180.0.4 . 80, 1 : 10.180.0.5 . 80 }",
        },
    },
}
"""Release -> what it writes for these Services, with the names of chains that Kubernetes' own tests have
(pkg/proxy/nftables/proxier_test.go)."""


@pytest.mark.parametrize("release", RELEASES)
def test_each_release_has_its_own_chains(release: str) -> None:
    [(_, text)] = render_ruleset(find_mode("nftables", None), [SINGLE, DOUBLE], release=release)
    blocks = {name.removeprefix("table ip kube-proxy "): lines for name, lines in nft_blocks(text).items()}
    assert {name: blocks.get(name) for name in RELEASED[release]} == RELEASED[release]
    assert any(name.startswith("chain endpoint-") for name in blocks) == (release == "1.33")
    assert ("set hairpin-connections" in blocks) == (release != "1.33")
    assert (" random mod 1 map" in text) == (release == "1.36"), "a map for each Service is what costs in loading"
    [written] = [words for words, pattern in _RELEASES if re.search(pattern, text, re.M) and (
        words.startswith(release) or words == "1.29 to 1.35")]  # fmt: skip
    assert written


@pytest.mark.parametrize("release", [name for name in RELEASES if RELEASES[name].held])
def test_the_default_release_is_the_newest_held_against_a_real_one(release: str) -> None:
    assert release <= DEFAULT_RELEASE
    assert RELEASES[DEFAULT_RELEASE].held


def test_1_33_differs_from_1_35_captured_in_no_base_chain() -> None:
    """tests/rulesets/kube-proxy-1.35-nft.txt has the chains of endpoints, too, as all releases before 1.36."""
    captured_text = (TESTS / "rulesets/kube-proxy-1.35-nft.txt").read_text()
    real = nft_blocks(captured_text[captured_text.index("table ip kube-proxy") :])
    [(_, text)] = render_ruleset(find_mode("nftables", None), [SINGLE], release="1.33")
    rendered = nft_blocks(text)
    base = {name for name in real if "chain " in name and not re.search(r"-[A-Z0-9]{8}-", name)}
    assert len(base) > 15
    for name in base:
        lines = {line.replace("10.43.0.0/16", "10.96.0.0/12") for line in real[name]}
        assert rendered[name] == lines, name


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft"), reason="needs root and nft")
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("affinity", [False, True])
def test_nft_loads_each_release_and_more_on_top(release: str, family: int, affinity: bool) -> None:
    mode = find_mode("nftables", None).for_family(family)
    first, more = (place_services(count, "last", "both", family, affinity=affinity) for count in (2, 7))
    double = replace(first[0], endpoints=(*first[0].endpoints, *first[1].endpoints))
    first, more = [double, *first[1:]], [double, *more[1:]]
    steps = render_ruleset(mode, first, release=release) + render_ruleset(mode, more, standing=first, release=release)
    script = "set -e\n" + "".join(f"nft -f - <<'END'\n{text}\nEND\n" for _, text in steps) + "nft list ruleset\n"
    argv = ["unshare", "--net", "sh", "-c", script]
    texts = (
        subprocess.run(argv, check=True, capture_output=True, text=True).stdout,
        render_ruleset(mode, more, release=release)[0][1],
    )
    # nft_blocks reads tables of family ip.
    # nft lists the usual size of a set to which packets add elements.
    plain = [text.replace("table ip6 ", "table ip ").replace("\t\tsize 65535\n", "") for text in texts]
    listed, rendered = map(nft_blocks, plain)
    assert len(rendered) > 25
    assert {name: len(lines) for name, lines in listed.items() if len(name.split()) > 3} == {
        name: len(lines) for name, lines in rendered.items() if len(name.split()) > 3
    }


@pytest.mark.parametrize(("release", "mode", "message"), [
    ("1.38", "nftables", "unknown release '1.38'"), ("1.37", "iptables", "the same rules in every release"),
    ("x", "ipvs", "unknown release"),
])  # fmt: skip
def test_a_release_that_cannot_be(release: str, mode: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_release(release, find_mode(mode, None, usual=True))


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


def test_portions_of_a_user_namespace_are_the_rules_of_one_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each portion used to append the rule of the node ports, which must be the last one of its chain, once more."""
    mode, services = find_mode("iptables", "nft"), place_services(120, "last", "both")
    [at_once] = [text.splitlines() for argv, text in render_ruleset(mode, services) if "restore" in argv[0]]
    monkeypatch.setattr(kernel, "is_initial_user_namespace", lambda: False)
    portions = [text.splitlines() for argv, text in render_ruleset(mode, services) if "restore" in argv[0]]
    assert len(portions) == 3
    rules = [line for portion in portions for line in portion if line.startswith("-A KUBE-SERVICES")]
    assert rules == [line for line in at_once if line.startswith("-A KUBE-SERVICES")]


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


HASH = re.compile(r"(?<=-)[A-Z0-9]{8}(?=-)|(?<=KUBE-S..-)[A-Z0-9]{16}")
"""The part of a chain's name that the captured files have replaced."""


def test_affinity_equals_what_kube_proxy_1_35_wrote_in_mode_nftables() -> None:
    """tests/rulesets/kube-proxy-1.35-nft.txt; its set of clients has an element, a client's."""
    text = (TESTS / "rulesets/kube-proxy-1.35-nft.txt").read_text().replace("10.42.0.0/16", "10.244.0.0/16")
    text = text.replace("\t\telements = { 10.42.9.9 expires 2h50m }\n", "")
    real = nft_blocks(text[text.index("table ip kube-proxy") :])
    pods = ("10.42.200.11:8080", "10.42.4.12:8080")
    sticky = Service("secretns/aff:http", "tcp", "10.43.1.5", 80, pods, affinity=True)
    [(_, rendered)] = render_ruleset(find_mode("nftables", None), [sticky], release="1.33")
    ours, theirs = (
        {HASH.sub("H", name): {HASH.sub("H", line) for line in lines}
         for name, lines in blocks.items() if "secretns/aff/" in name}
        for blocks in (nft_blocks(rendered), real)
    )  # fmt: skip
    assert len(theirs) == 5  # its own chain, and a set and a chain of each endpoint
    assert ours == theirs


def test_a_node_port_equals_what_kube_proxy_1_35_wrote_in_mode_nftables() -> None:
    """tests/rulesets/kube-proxy-1.35-nft.txt."""
    text = (TESTS / "rulesets/kube-proxy-1.35-nft.txt").read_text()
    real = nft_blocks(text[text.index("table ip kube-proxy") :])
    balanced = Service("secretns/lb:http", "tcp", "10.43.1.7", 80, ("10.42.4.1:80",), node_port=30080)
    [(_, rendered)] = render_ruleset(find_mode("nftables", None), [balanced], release="1.33")
    names = {"map service-nodeports", "chain external-H-secretns/lb/tcp/http"}
    ours, theirs = (
        {HASH.sub("H", name).partition("kube-proxy ")[2]: {HASH.sub("H", line) for line in lines}
         for name, lines in blocks.items()}
        for blocks in (nft_blocks(rendered), real)
    )  # fmt: skip
    assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}


def test_a_node_port_has_the_form_that_kube_proxy_writes_in_mode_iptables() -> None:
    """The form of kube-proxy since 1.32, in other people's listings of its rules."""
    pods = ("10.244.1.5:8080", "10.244.1.6:8080")
    service = Service("default/web:http", "tcp", "10.106.1.2", 80, pods, node_port=30080)
    ext, svc = service.ext_chain, service.svc_chain
    to_port = '-p tcp -m comment --comment "default/web:http" -m tcp --dport 30080'
    local = f"-A KUBE-NODEPORTS -d 127.0.0.0/8 {to_port} -m nfacct --nfacct-name  localhost_nps_accepted_pkts -j {ext}"
    expected = {
        "KUBE-NODEPORTS": [local, f"-A KUBE-NODEPORTS {to_port} -j {ext}"],
        ext: [
            f'-A {ext} -m comment --comment "masquerade traffic for default/web:http external destinations"'
            " -j KUBE-MARK-MASQ",
            f"-A {ext} -j {svc}",
        ],
    }
    assert ext == svc.replace("SVC", "EXT")
    for family in (4, 6):
        lines = text_of(find_mode("iptables", "nft").for_family(family), [service]).splitlines()
        for chain, rules in expected.items():
            written = [line for line in lines if line.startswith(f"-A {chain} ")]
            assert written == (rules if family == 4 else [rule for rule in rules if rule != local])


def test_affinity_equals_what_kube_proxy_wrote_in_mode_iptables() -> None:
    """tests/rulesets/cni-iptables-save.txt, of an older release, which names no endpoint in a comment."""
    text = (TESTS / "rulesets/cni-iptables-save.txt").read_text()
    real = {HASH.sub("H", line) for line in text.splitlines() if " -m recent " in line}
    sticky = Service("kube-system/kube-dns:dns", "udp", "10.43.0.10", 53, ("10.42.0.5:53",), affinity=True)
    rendered = text_of(find_mode("iptables", "nft"), [sticky]).replace(" -> 10.42.0.5:53", "")
    assert len(real) == 2
    assert {HASH.sub("H", line) for line in rendered.splitlines() if " -m recent " in line} == real


@pytest.mark.parametrize("family", [4, 6])
def test_each_service_of_the_lab_has_so_many_endpoints(family: int) -> None:
    services = place_services(300, "middle", "both", family, 7, affinity=True)
    assert {len(set(service.endpoints)) for service in services} == {7}
    dummies = [endpoint for service in services if "dummy" in service.port_name for endpoint in service.endpoints]
    assert len(set(dummies)) == len(dummies) == 2100, "no two Services share a pod"
    assert sum(service.commented for service in services) == 1000 // 7
    for mode in MODES:
        text = text_of(mode.for_family(family), services)
        counts = {"iptables": (" -m recent --set", 2114), "nftables": ("\tupdate @affinity-", 2114),
                  "ipvs": (" -s rr -p 10800", 302)}  # fmt: skip
        pattern, count = counts[mode.name]
        assert text.count(pattern) == count, mode


@pytest.mark.parametrize(("count", "endpoints"), [(10, 0), (10, -1), (10, 201), (2501, 200)])
def test_impossible_endpoints_are_refused(count: int, endpoints: int) -> None:
    with pytest.raises(UsageError, match=str(endpoints)):
        place_services(count, "last", "both", endpoints=endpoints)


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
