"""IPv6: addresses in brackets, kube-proxy's other rules, the kernel's other functions, the other counters."""

from __future__ import annotations

import json
import re
import socket
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from kproxylat.lab.services import ADDRESSES, dummy_service, place_services, worker_services
from kproxylat.measure.options import LAB_SOURCE, WORKER, Lab, Options, match_family, parse_destination
from kproxylat.measure.plan import make_flow
from kproxylat.modes import IPV6, MODES, find_mode
from kproxylat.node import counters, drops, service_rule
from kproxylat.node.network import Network
from kproxylat.node.service_rule import ServiceRule, read_service_rule
from kproxylat.results import Result, Run, Target, target_text
from kproxylat.trace.plan import network_words
from kproxylat.traffic import pktgen, sockets
from kproxylat.traffic.burst import Burst
from tests.support.rules import captured, iptables_chains, nft_blocks, text_of

BURST = Burst(
    2000, 1000, LAB_SOURCE[6], Target("fd00:10:96::50", 50051, "udp"), "client", "pod0", "02:00:00:00:00:01", skip=1
)


def test_brackets_wherever_an_address_has_a_port() -> None:
    found = parse_destination("[FD00:10:96:0::50]:50051", "udp")
    assert found == Target("fd00:10:96::50", 50051, "udp")
    assert str(found) == "[fd00:10:96::50]:50051/udp"
    assert target_text(Result(Run(), found)) == "[fd00:10:96::50]:50051/udp"
    assert target_text(Result(Run(), Target(found.ip, None, None))) == "fd00:10:96::50"


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode.name}-{mode.backend}")
def test_a_target_makes_the_mode_its_familys(mode: Any) -> None:
    options = Options(mode, WORKER[6], where=Lab())
    assert options.mode == mode.for_family(6) == match_family(mode, WORKER[6], None) == match_family(mode, None, 6)
    assert options.mode.for_family(4) == mode == match_family(mode, None, None)
    assert (options.family, options.mode.ip, str(options.sources)) == (6, "ip6", "fd00:10:244:80::/64")
    words = {*options.mode.modules, *options.mode.tools, options.mode.module}
    words |= {function for engine in options.mode.engines for function in engine.functions}
    words |= {module for engine in options.mode.engines for module, _, _ in engine.offsets}
    assert not words & IPV6.keys()


def test_the_flow_has_four_words_of_each_address() -> None:
    flow = make_flow(WORKER[6], LAB_SOURCE[6])
    assert flow.daddr == network_words(ip_address("fd00:10:96::50").packed)
    match = flow.match("$conn")
    assert len(re.findall(r"daddr[1-3] == \d+", match)) == 3
    assert match.startswith("($conn->ends & 0xffffffff00000000) == 0x")
    # 64 bits of the source are fixed.
    assert re.findall(r"saddr(\d) & 4294967295\)", match) == ["0", "1"]


def test_the_labs_addresses_are_in_their_networks() -> None:
    for lab in ADDRESSES.values():
        family = ip_address(lab.node_ip).version
        services = [dummy_service(number, family=family) for number in (*range(600), *range(59_400, 60_000))]
        ips = {ip_address(each.ip) for each in (*services, *worker_services("udp", family))}
        assert len(ips) == 1201
        assert all(ip in ip_network(lab.service_cidr) for ip in ips)
        assert ip_network(lab.source).subnet_of(ip_network(lab.cluster_cidr))  # type: ignore[arg-type]
        assert ip_address(lab.endpoint_ip) in ip_network(lab.cluster_cidr)
        assert ip_address(lab.endpoint_ip) not in ip_network(lab.source)


def test_iptables_rules_without_services_are_kube_proxys() -> None:
    theirs = captured("ip6/ip6tables-nft-save.txt")
    for backend in ("legacy", "nft"):
        ours = text_of(find_mode("iptables", backend).for_family(6), [])
        assert iptables_chains(ours) == iptables_chains(theirs)


def test_nftables_rules_are_kube_proxys() -> None:
    """The captured node has no IPv6 address and no IPv6 clusterCIDR: the rules that name these are not compared."""
    rules = captured("nftables/n0/nft-list-ruleset.txt")
    theirs = nft_blocks(rules[rules.index("table ip6 kube-proxy") :].replace("table ip6", "table ip"))
    ours = nft_blocks(text_of(find_mode("nftables", None).for_family(6), []).replace("table ip6", "table ip"))
    name = "table ip kube-proxy"
    addressed = {
        f"{name} {each}"
        for each in ("set nodeport-ips", "chain services", "chain nodeport-endpoints-check", "chain cluster-ips-check")
    }
    del ours[f"{name} set cluster-ips"], theirs[f"{name} set cluster-ips"]
    assert ours.keys() - {f"{name} set nodeport-ips"} == theirs.keys()
    assert {each: ours[each] for each in theirs.keys() - addressed} == {
        each: theirs[each] for each in theirs.keys() - addressed
    }
    [lookup] = theirs[f"{name} chain services"] & ours[f"{name} chain services"]
    assert lookup == "ip6 daddr . meta l4proto . th dport vmap @service-ips"


def test_ipvs_has_sets_and_servers_of_its_own() -> None:
    text = text_of(find_mode("ipvs", None).for_family(6), place_services(0, "last", "udp", 6))
    server, real = "[fd00:10:96::50]:50051", "[fd00:10:244:1::10]:50051"
    assert text.splitlines() == [f"-A -u {server} -s rr", f"-a -u {server} -r {real} -m -w 1"]


def test_pktgens_words() -> None:
    assert pktgen._addresses(BURST) == (
        "pkt_size 78",
        "dst6 fd00:10:96::50",
        "src6 fd00:10:244:80::2",
        "flag UDPCSUM",
    )


def test_sockets_send_from_any_source() -> None:
    """The address is none of this machine's."""
    with closing(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as server:
        try:
            server.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        server.settimeout(5)
        port = server.getsockname()[1]
        burst = Burst(3, 1000, ip_network("2001:2::/64"), Target("::1", port, "udp"), None, "", "")
        sender = sockets.start_sockets(burst)
        assert sender.wait(10)
        assert sockets.read_sockets(burst, sender).count == 3
        assert {server.recvfrom(100)[1][0] for _ in range(3)} == {"2001:2::1"}


RULES = """-N KUBE-SERVICES
-A KUBE-SERVICES -d fd00:10:96::5/128 -p udp -m udp --dport 50051 -c 1 2 -j KUBE-SVC-A
-A KUBE-SERVICES -d fd00:10:96::50/128 -p udp -m comment --comment "default/worker:grpc-udp cluster IP" -m udp --dport 50051 -c 7 420 -j KUBE-SVC-B
"""  # noqa: E501
SERVERS = """Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes
  -> RemoteAddress:Port
UDP  [fd00:10:96::50]:50051              2000     2000        0    92000        0
"""


def test_the_targets_rule_is_found_in_each_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_rule, "_READING_S", 0)
    asked: list[tuple[str, ...]] = []

    def run(*argv: str, netns: str | None, **_: object) -> str:
        asked.append((*argv, str(netns)))
        if argv[0] == "nft":
            return json.dumps({"nftables": [{"map": {"elem": [[{"concat": ["fd00:10:96::50", "udp", 50051]}, {}]]}}]})
        return SERVERS if argv[0] == "ipvsadm" else RULES

    monkeypatch.setattr(service_rule, "run", run)
    modes = {mode.backend if mode.name == "iptables" else mode.name: mode.for_family(6) for mode in MODES}
    assert read_service_rule(modes["legacy"], WORKER[6], "node") == ServiceRule(True, 2, 2, 7)
    assert asked[-1][0] == "ip6tables-legacy"
    assert read_service_rule(modes["ipvs"], WORKER[6], "node") == ServiceRule(True, packets=2000)
    assert "[fd00:10:96::50]:50051" in asked[-1]
    assert read_service_rule(modes["nftables"], WORKER[6], "node").found
    assert asked[-1][4:6] == ("ip6", "kube-proxy")
    assert not read_service_rule(modes["nftables"], replace(WORKER[6], ip="fd00:10:96::51"), "node").found


def test_counters_in_the_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(counters, "run", lambda *_, stdin, **__: loaded.append(stdin))
    endpoint = Target("fd00:10:244:1::10", 50051, "udp")
    counters.place_counters(
        Network("client", "node", "backend", family=6),
        LAB_SOURCE[6],
        [endpoint],
        ["fd00:10:96::50"],
        "fd00:10:244:2::1",
    )
    assert len(loaded) == 2
    [delivered] = [line.strip() for line in loaded[0].splitlines() if "counter name delivered drop" in line]
    assert delivered == (
        "ip6 saddr fd00:10:244:80::/64 ip6 daddr . meta l4proto . th dport { fd00:10:244:1::10 . udp . 50051 }"
        " counter name delivered drop"
    )
    assert "icmpv6 type destination-unreachable counter name rejected" in loaded[0]
    assert not re.search(r"\bip \w+addr|\bicmp ", loaded[0])


def test_losses_are_those_of_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "/proc/net/snmp6:Ip6InNoRoutes      \t11\n/proc/net/snmp6:Ip6OutDiscards \t3\n"
    lines += "/proc/net/netstat:TcpExt: IPReversePathFilter\n/proc/net/netstat:TcpExt: 300\n"
    lines += "/proc/net/netstat:IpExt: InNoRoutes\n/proc/net/netstat:IpExt: 12\n"
    monkeypatch.setattr(drops, "run", lambda *_, netns, ok=(0,): lines if netns == "node" else "")  # noqa: ARG005
    assert drops.read_drops(Network("client", "node", None, family=6)) == {"no route": 11, "IP OutDiscards": 3}
    assert drops.read_drops(Network("client", "node", None)) == {"rp_filter": 300, "no route": 12}
