"""One row is enough: each test adds a row to an extension table and uses it as a run or a command does."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from kproxylat import modes, templates
from kproxylat.lab.rules import render_ruleset
from kproxylat.lab.services import place_services
from kproxylat.logs import reader, writer
from kproxylat.logs.legacy import RunText
from kproxylat.logs.reader import Dialect, read_log
from kproxylat.logs.writer import RunLog, log_header, render_report
from kproxylat.measure.options import Lab, Options, Sending
from kproxylat.modes import LoadStep, Mode, find_mode
from kproxylat.node import live_rules, service_rule
from kproxylat.node.live_rules import LiveRules, read_live_rules
from kproxylat.node.service_rule import read_service_rule
from kproxylat.report.export import EXPORTERS
from kproxylat.results import Result, Run, Target
from kproxylat.sweep.sweep import check_points, find_modes, plan_points, title
from kproxylat.trace import plan
from kproxylat.trace.dump import parse_dump
from kproxylat.trace.probes import build_probes, split_maps
from kproxylat.trace.script import render_script
from kproxylat.traffic.burst import Burst, Sender, Sent, find_summary, stop_program
from kproxylat.traffic.generators import GENERATORS, Generator, find_generator
from kproxylat.traffic.sending import send
from tests.support import TESTS
from tests.support.command import Captured, call

NFTABLES = find_mode("nftables", None)
OWN = replace(
    NFTABLES,
    name="own",
    engines=(replace(NFTABLES.engines[0], functions=("own_do_chain",)),),
    table="own-table",
    report=("OWN", "own"),
    loading=(LoadStep(("own-load", "{ip}"), "own"),),
    growing=(),
    transaction=0,
    parity_matters=False,
)
"""A mode that kproxylat does not have: its own name, engine, table, report and template, in a known form of rules."""
DUMP = """
@n[-942, 800]: 3
@n[-936, 2256]: 2
@n[-936, 2301]: 1

@table[-936]: own-table
@table[-944]: own-table
@chain[-936]: nat-prerouting
@chain[-944]: filter-forward
"""
OLD_LOG = str(TESTS / "dumps/0.17.0--report_a_both.log")


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Mode]:
    """Add the row wherever the table was imported, and its template for the lab's rules."""
    for name, module in list(sys.modules.items()):
        if name.startswith("kproxylat") and vars(module).get("MODES") is modes.MODES and module is not modes:
            monkeypatch.setattr(module, "MODES", (*modes.MODES, OWN))
    monkeypatch.setattr(modes, "MODES", (*modes.MODES, OWN))
    (tmp_path / "rules-own.j2").write_text("{% for service in services %}{{ service.address }}\n{% endfor %}")
    monkeypatch.setattr(templates, "DIRECTORIES", (tmp_path, *templates.DIRECTORIES))
    templates.environment.cache_clear()
    yield find_mode("own", None)
    templates.environment.cache_clear()


def test_a_modes_script_and_rules_are_rendered(own: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "find_engine", lambda mode, _: (mode.engines[0], "fentry"))
    monkeypatch.setattr(plan, "find_version", lambda: ("v0.23.2", (0, 23)))
    monkeypatch.setattr(plan.btf, "btf_module", lambda module: module)
    monkeypatch.setattr(plan.btf, "struct_offset", lambda *_: 64)
    script = render_script(plan.make_plan(own, None))
    assert "fentry:nf_tables:own_do_chain" in script
    assert "kube-proxy mode own, nft" in script
    services = place_services(1, "last", "udp")
    assert render_ruleset(own, services) == [(("own-load", "ip"), "10.97.0.1:80\n10.96.100.50:50051\n")]
    assert render_ruleset(own.for_family(6), services)[0][0] == ("own-load", "ip6")


def test_a_modes_rule_is_read(own: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    key = {"concat": ["10.96.100.50", "udp", 50051]}
    listed = json.dumps({"nftables": [{"map": {"elem": [[key, {"goto": {"target": "x"}}]]}}]})
    texts = {
        ("nft", "list", "tables"): "table ip own-table\n",
        ("nft", "--json", "list", "map", "ip", "own-table", "service-ips"): listed,
        ("nft", "--json", "list", "map", "ip", "own-table", "service-nodeports"): '{"nftables": []}',
    }
    monkeypatch.setattr(live_rules.os, "geteuid", lambda: 0)
    for module in (service_rule, live_rules):
        monkeypatch.setattr(module, "run", lambda *argv, **_: texts.get(argv, ""))
    service = Target("10.96.100.50", 50051, "udp")
    assert read_service_rule(own, service, None).found
    assert not read_service_rule(own, replace(service, protocol="tcp"), None).found
    assert read_live_rules() == (LiveRules("own", "nft", 1, {service: None}),)


def test_a_mode_is_swept(own: Mode) -> None:
    assert find_modes([], [])[-1] == own
    points = plan_points(Options(own, where=Lab()), find_modes(["own"], ["nft"]), (10, 100))
    check_points(points)
    assert [title(point) for point in points] == ["own on nft, 10 Services", "own on nft, 100 Services"]


def test_a_modes_log_is_parsed(own: Mode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(writer, "find_version", lambda: ("v0.23.2", (0, 23)))
    monkeypatch.setattr(writer.kernel, "detect_clock", lambda: ("ns", False))
    started = datetime(2026, 3, 4, 5, 6, 7)
    maps, _ = split_maps(parse_dump(DUMP))
    result = Result(Run(mode=own.name, backend=own.backend), probes=build_probes(maps, own, "ns"))
    assert result.lookup
    log = RunLog(tmp_path, own.name, started)
    log.write(log_header(own, {"Kube-proxy mode": own.name}, started) + DUMP + render_report(own, result.lookup))
    log.save(result)
    (again,) = read_log(str(log.path))
    assert (again.run.mode, again.run.backend, again.quality.warnings) == ("own", "nft", ())
    assert again.probes == result.probes
    assert again.main_probe
    assert (again.main_probe.engine, again.main_probe.table, again.main_probe.count) == ("own_do_chain", "own-table", 3)
    assert "own_latency_us" not in again.maps, "a map of the report, which is not the run's"


def test_a_generator_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(burst: Burst) -> Sender:
        return Sender(sys.executable, "-c", f"print('own: {burst.count} packets')")

    def read(_: Burst, sender: Sender) -> Sent:
        match = find_summary(r"own: (\d+) packets", sender)
        return Sent(int(match[1]) if match else 0)

    monkeypatch.setitem(GENERATORS, "own", Generator("own", ("udp",), start, stop_program, read))
    sending = Sending(generator=find_generator("own"))
    check_points(plan_points(Options(NFTABLES, where=Lab(), sending=sending), [NFTABLES], (10,)))
    burst = Burst(
        7, 1000, IPv4Network("10.244.128.0/29"), Target("10.96.100.50", 50051, "udp"), None, "pod0", "02:00:00:00:00:01"
    )
    assert send(burst, sending.generator) == (Sent(7), None)


def test_an_exporter_exports(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr("kproxylat.cli.app.signal.signal", lambda *_: None)
    monkeypatch.setitem(EXPORTERS, "own", lambda results: (f"{len(result.probes)} probes\n" for result in results))
    assert call(capsys, "parse", "--format", "own", OLD_LOG) == (0, "2 probes\n", "")


def test_a_dialect_is_read(monkeypatch: pytest.MonkeyPatch, capsys: Captured, tmp_path: Path) -> None:
    def build(text: RunText) -> Result:
        return Result(Run(mode=text.marks["own"][-1].removeprefix("OWN MODE "), cut_short=not text.ended))

    monkeypatch.setattr("kproxylat.cli.app.signal.signal", lambda *_: None)
    monkeypatch.setattr(reader, "DIALECTS", (Dialect("own", re.compile("OWN MODE "), build), *reader.DIALECTS))
    (tmp_path / "own.log").write_text("OWN MODE nftables\n")
    status, out, _ = call(capsys, "parse", "--format", "json", str(tmp_path / "own.log"))
    [result] = json.loads(out)["results"]
    assert (status, result["source"]["dialect"], result["run"]["mode"]) == (0, "own", "nftables")
