"""Many Services in one run: their values apart, ranked, and put side by side in each mode. Pure."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from kproxylat.analysis.compare import compare
from kproxylat.errors import Interrupted, MachineError
from kproxylat.lab.ruleset import read_ruleset
from kproxylat.measure.completion import check_shares
from kproxylat.measure.options import Lab, Options, Sending
from kproxylat.measure.plan import check_options, make_flow, plan_bursts
from kproxylat.measure.ranking import rank_services
from kproxylat.measure.replay import plan_replay
from kproxylat.modes import MODES, Mode, find_mode
from kproxylat.node.network import Network
from kproxylat.report.tables import show_result, show_whatif
from kproxylat.results import Probe, Result, Target, Traffic
from kproxylat.results_json import from_json, to_json
from kproxylat.sweep.whatif import judge, plan_modes, save, whatif
from kproxylat.trace.dump import parse_dump
from kproxylat.trace.probes import build_probes, exact_probe, split_maps
from tests.results import change_run
from tests.support import TESTS
from tests.support.costs import RULES, measured


def words_of(ip: str, port: int, protocol: int) -> int:
    """The target's key as the probe makes it of struct nf_conn, whose words are in network order."""
    low = port.to_bytes(2, "big") + bytes([protocol, 0])
    return (int.from_bytes(IPv4Address(ip).packed, sys.byteorder) << 32) + int.from_bytes(low, sys.byteorder)


def test_values_are_split_by_target() -> None:
    web, dns = words_of("10.96.0.9", 80, 6), words_of("10.96.0.10", 53, 17)
    text = f"@n[64, 10]: 3\n@n[64, 12]: 1\n@n[128, 5]: 4\n@targets[{web}, 64, 10]: 2\n"
    text += f"@targets[{dns}, 64, 10]: 1\n@targets[{dns}, 64, 12]: 1\n@targets[{web}, 128, 5]: 2\n"
    own, others = split_maps(parse_dump(text + "@table[64]: nat\n@table[128]: mangle\n"))
    assert not others
    lookup, other = build_probes(own, find_mode("iptables", "legacy"), "instructions")
    assert lookup.targets == {"10.96.0.9:80/tcp": {"10": 2}, "10.96.0.10:53/udp": {"10": 1, "12": 1}}
    assert other.targets is None


def test_services_are_ranked_by_cost_with_their_place_in_the_rules() -> None:
    found = measured(find_mode("iptables", "legacy")).services
    assert len(found) == 104, "one has no endpoint"
    assert [each.cost for each in found] == sorted((each.cost for each in found), reverse=True)
    assert (found[0].before, found[0].cost, found[0].calls) == (103, 2000 + 26 * 103, 20)
    assert found[0].name == RULES.services[103].port_name
    timed = Probe(
        "f", None, None, None, True, 3, 1, 9, 4.0, None, 12, "ns", targets={found[0].target: {"9": 1, "2": 2}}
    )
    [ranked] = rank_services(timed, RULES.services)
    assert (ranked.cost, ranked.min, ranked.max) == (2, 2, 9), "on the clock of time it is the median"


def test_modes_are_put_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [measured(mode) for mode in MODES]
    found = judge(RULES, runs)
    rows = {(each.mode, each.backend): each for each in found.alternatives}
    now, nftables = rows["iptables", "legacy"], rows["nftables", "nft"]
    assert (now.captured, now.per_service, now.base, now.verdict) == (True, 26, 2000, "O(n)")
    assert (now.least, now.most, now.mean) == (2000, 2000 + 26 * 103, 2000 + 26 * 51.5)
    assert (nftables.captured, nftables.per_service, nftables.verdict) == (False, 0, "O(1)")
    assert nftables.equal_at == pytest.approx(678 / 26)
    assert rows["iptables", "nft"].equal_at is None, "it is dearer everywhere"
    show_whatif(found)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "26.1" in out
    assert found.dearest[0].name in out
    assert out.count("cluster") == 0
    path = save(found, tmp_path)
    document = json.loads(path.read_text())
    assert [each["equal_at"] for each in document["whatif"]["alternatives"]][2] == pytest.approx(678 / 26)
    pairs = compare(str(path), None)
    assert len(pairs) == 2 * 6, "a sweep's shape: compare takes it, each protocol for itself"
    crossing = next(
        each.crossing for each in pairs if {each.a.name, each.b.name} == {"iptables/legacy tcp", "nftables/nft tcp"}
    )
    assert crossing
    assert crossing.estimate == pytest.approx(678 / 26)


def test_the_result_of_many_is_shown_and_comes_back_from_json(capsys: pytest.CaptureFixture[str]) -> None:
    result = measured(find_mode("iptables", "legacy"))
    assert from_json(to_json(result)) == result
    show_result(result)
    assert capsys.readouterr().out.count("default/dummy-service-") == 100


BASE = Options(find_mode("iptables", "legacy"), sending=Sending(duration_s=1, rate_pps=1000))


def test_a_replay_sends_from_pods_to_endpoints_of_the_rules() -> None:
    [udp] = [f"{each.ip}:{each.port}" for each in RULES.targets if each.protocol == "udp" and each.ip.endswith(".51")]
    one = plan_replay(BASE, RULES, udp, False)
    assert (one.sending.generator.name, one.targets, one.target.protocol) == ("pktgen", (), "udp")
    assert [str(each) for each in one.endpoints] == ["10.244.1.10:50051/udp"]
    assert str(one.sources) == "10.244.128.0/17"
    tcp = plan_replay(BASE, RULES, "10.97.0.1:80", False)
    assert (tcp.sending.generator.name, tcp.target.protocol) == ("sockets", "tcp")
    every = plan_replay(BASE, RULES, None, True)
    assert (every.sending.generator.name, len(every.targets), every.packets) == ("sockets", 104, 936)
    check_options(every)
    _, burst = plan_bursts(every, Network(None, None, None))
    assert (burst.count, burst.targets) == (936, every.targets)
    assert len(plan_replay(BASE, RULES, None, True, "", "udp").targets) == 2
    assert every.lab == Lab(105, "as captured", ruleset=RULES)


def test_releases_of_kube_proxy_are_put_side_by_side() -> None:
    plans = plan_modes(BASE, RULES, MODES, 20, "", ("1.36", "1.37"))
    assert [(plan.mode.name, plan.lab and plan.lab.release) for plan in plans] == [
        ("iptables", ""), ("iptables", ""), ("nftables", "1.36"), ("nftables", "1.37"), ("ipvs", "")]  # fmt: skip
    texts = ["".join(text for _, text in plan.ruleset.commands()) for plan in plans if plan.ruleset]
    assert [" random mod 1 map" in text for text in texts] == [False, False, True, False, False]
    runs = [measured(plan.mode) for plan in plans]
    named = [
        change_run(run, kube_proxy=plan.lab.release or None) for run, plan in zip(runs, plans, strict=True) if plan.lab
    ]
    answer = judge(RULES, named)
    assert [each.backend for each in answer.alternatives if each.mode == "nftables"] == ["nft 1.36", "nft 1.37"]


def test_the_flow_of_many_targets_is_told_by_its_sources() -> None:
    flow = make_flow(None, BASE.sources)
    assert flow.match("$conn") == replace(make_flow(BASE.target, BASE.sources), daddr=(), port_protocol=None).match(
        "$conn"
    )
    assert "ends" not in flow.match("$conn")
    assert "saddr0" in flow.match("$conn")


def test_a_service_that_was_looked_up_less_often_is_a_warning() -> None:
    result = measured(find_mode("iptables", "legacy"))
    traffic = Traffic("sockets", 2080, 2080, 0, 1000.0, 1000, 2080, 0)
    result = replace(result, traffic=traffic)
    assert check_shares(result, result.services, 104).warnings == ()
    fewer = (replace(result.services[0], calls=19), *result.services[2:])
    assert check_shares(result, fewer, 104).warnings == ("2 of 104 Services were not looked up 20 times",)


@pytest.mark.parametrize("error", [MachineError("no ipvs here"), Interrupted(2)], ids=["failure", "signal"])
def test_what_is_measured_is_shown_though_a_later_mode_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    tried: list[str] = []

    def measure(options: Options) -> tuple[Result, None]:
        tried.append(options.mode.backend)
        if len(tried) == 3:
            raise error
        return measured(options.mode), None

    monkeypatch.setattr("kproxylat.sweep.whatif.measure", measure)
    monkeypatch.setattr("kproxylat.measure.plan.require", lambda *_, **__: None)
    found, ended = whatif(RULES, plan_modes(BASE, RULES, MODES, 20))
    assert ended is error
    assert [each.backend for each in found.alternatives] == ["legacy", "nft"]
    assert "2 of 4 are measured, and shown" in capsys.readouterr().err
    show_whatif(found)
    assert "iptables/nft" in capsys.readouterr().out
    tried[:] = ["x", "y"]
    with pytest.raises(type(error)):
        whatif(RULES, plan_modes(BASE, RULES, MODES, 20))


def test_modes_that_this_kernel_lacks_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def require(mode: Mode, *_: str, probe: str) -> None:
        assert probe == "auto"
        if mode.module == "nf_tables":
            raise MachineError("module not found for this kernel: nf_tables (CONFIG_NF_TABLES)")

    monkeypatch.setattr("kproxylat.sweep.whatif.measure", lambda options: (measured(options.mode), None))
    monkeypatch.setattr("kproxylat.measure.plan.require", require)
    answer, ended = whatif(RULES, plan_modes(BASE, RULES, MODES, 20))
    assert ended is None
    assert [each.mode for each in answer.alternatives] == ["iptables", "ipvs"]
    assert "nftables on nft is left out: module not found for this kernel: nf_tables" in capsys.readouterr().err


def test_what_rewritten_rules_leave_out_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    rules = read_ruleset(TESTS / "rulesets/kube-proxy-1.35-nft.txt")
    found = judge(rules, [measured(find_mode("nftables", None))])
    assert "session affinity (2 lines), NodePorts (1 line)" in found.notes[-1]
    assert "leave out" in json.loads(found.to_json())["whatif"]["notes"][-1]
    show_whatif(found)
    out = capsys.readouterr().out
    assert "note: rewritten rules leave out what the captured ones pay for: session" in out
    assert "before counts Services, not rules" in out
    assert max(map(len, out.splitlines())) <= 80


def test_only_services_with_endpoints_stand_before_another() -> None:
    """A virtual server of ipvs may have none, and has no rule in mode iptables then."""
    [first, *_] = [service for service in RULES.services if service.endpoints]
    target = str(Target(first.ip, first.port, first.protocol))
    probe = exact_probe("x", (None, None, None), Counter({5: 1}), "ns", lookup=True)
    lookup = replace(probe, targets={target: {"5": 1}})
    empty = replace(first, ip="10.96.77.7", endpoints=())
    [row] = rank_services(lookup, [empty, replace(first, ip="10.96.77.8"), empty, first])
    assert row.before == 1
