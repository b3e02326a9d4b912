"""The sweep around its runs: order, repeats, resume after an interruption, what it saves. Runs are fakes."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from kproxylat.cli import sweep as cli_sweep
from kproxylat.cli.options import Kind, WorkerPorts
from kproxylat.cli.places import OnNode
from kproxylat.cli.run import words
from kproxylat.errors import Interrupted, MachineError, UsageError
from kproxylat.measure import standing_lab
from kproxylat.measure.options import WORKER, Lab, Options, Record, Sending, Tracing
from kproxylat.measure.replay import plan_backends
from kproxylat.results import Result
from kproxylat.results_json import list_from_json, to_json
from kproxylat.sweep import state as sweep_state
from kproxylat.sweep import sweep
from kproxylat.system import kernel
from kproxylat.traffic.generators import GENERATORS
from tests.results import COUNTED, change_run, load, with_values
from tests.support import ROOT
from tests.support.costs import RULES, measured

COST = {("iptables", "legacy"): 26, ("iptables", "nft"): 84, ("nftables", "nft"): 0}


class Machine:
    """Measures as the real one does: a log's name and a result on disk for each run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.measured: list[str] = []
        self.end_after: int | None = None
        self.fail = False

    def measure(self, options: Options, *_: object) -> tuple[Result, Interrupted | None]:
        assert options.lab
        mode, services = options.mode, options.lab.services
        if self.end_after == len(self.measured) and self.fail:
            raise MachineError("the machine broke")
        self.measured.append(f"{mode.name}/{mode.backend} {services}")
        log = self.directory / f"ebpf_{mode.name}_{len(list(self.directory.glob('ebpf_*'))):03}.log"
        value = 2000 + COST[mode.name, mode.backend] * services
        ended = Interrupted(2) if not self.fail and self.end_after == len(self.measured) else None
        result = change_run(
            with_values(load(COUNTED)[0], {value: 2000}, services),
            mode=mode.name, backend=mode.backend, kube_proxy=options.lab.release or None,
            script_sha256=mode.engine, log=str(log), cut_short=bool(ended),
        )  # fmt: skip
        result = replace(result, target=options.target)
        log.with_suffix(".json").write_text(to_json(result))
        return result, ended


TEMPLATE = ROOT / "templates/overhead.bt.j2"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(sweep, "measure", made.measure)
    monkeypatch.setattr(kernel, "check_root", lambda: None)
    monkeypatch.setattr(kernel, "detect_clock", lambda: ("instructions", True))
    monkeypatch.setattr(kernel, "user_clock_s", monotonic)
    monkeypatch.setattr(sweep, "find_version", lambda: ("v0.17.0", (0, 17)))
    return made


def points(directory: Path, *sizes: int, rate: int = 1000) -> list[Options]:
    modes = sweep.find_modes(("iptables", "nftables"), ())
    sending = Sending(duration_s=2, rate_pps=rate)
    base = Options(modes[0], where=Lab(), sending=sending, record=Record(directory))
    return sweep.plan_points(base, modes, sizes or (10, 100, 1000))


def test_the_order_of_the_runs_does_not_change_the_bounds() -> None:
    """report and plot compute them from the document: they showed other bounds than sweep had printed."""
    timed = change_run(load(COUNTED)[0], clock="ns", emulated=False)
    results = [
        replace(result, probes=tuple(replace(probe, unit="ns") for probe in result.probes))
        for count in (10, 100, 1000)
        for result in [with_values(timed, {900 + 20 * count + 37 * step: 3 for step in range(40)}, count)]
    ]
    one, other = (sweep.Sweep(seed, 1, results=results).series for seed in (7, 8))
    assert one[0].per_service
    assert one[0].per_service.lo < one[0].per_service.hi
    assert one == other


def test_a_sweep_without_tracing_does_not_ask_for_bpftrace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> tuple[str, tuple[int, int]]:
        raise MachineError("the program 'bpftrace' is missing")

    monkeypatch.setattr(sweep, "find_version", fail)
    untraced = replace(points(tmp_path)[0], tracing=Tracing(probe="none"))
    assert sweep._describe(untraced, {})["bpftrace"] is None


def test_releases_of_kube_proxy_are_series_of_their_own(tmp_path: Path) -> None:
    base = points(tmp_path)[0]
    planned = sweep.plan_points(base, sweep.find_modes(("iptables", "nftables"), ("nft",)), (10, 20), ("1.33", "1.37"))
    names = [sweep.title(point) for point in planned]
    assert names == [
        f"{series}, {count} Services"
        for series in ("iptables on nft", "nftables on nft 1.33", "nftables on nft 1.37")
        for count in (10, 20)
    ]
    assert len({sweep._key(point, 0) for point in planned}) == 2 * len({standing_lab._kind(point) for point in planned})
    [first, *_] = [point for point in planned if point.lab and point.lab.release]
    assert "--kube-proxy=1.33" in words(first)
    with pytest.raises(UsageError, match="names a release twice"):
        sweep.plan_points(base, sweep.find_modes(("nftables",), ()), (10,), ("1.33", "1.33"))
    with pytest.raises(UsageError, match="the same rules in every release"):
        sweep.plan_points(base, sweep.find_modes(("ipvs",), ()), (10,), ("1.33",))


@pytest.mark.usefixtures("machine")
def test_a_sweep_of_two_releases_has_a_series_for_each(tmp_path: Path) -> None:
    base = points(tmp_path)[0]
    planned = sweep.plan_points(base, sweep.find_modes(("nftables",), ()), (10, 100, 1000), ("", "1.37"))
    found, _ = sweep.sweep(planned)
    assert [series.name for series in found.series] == ["nftables/nft", "nftables/nft 1.37"]
    assert {result.run.kube_proxy for result in list_from_json(found.to_json())} == {None, "1.37"}


@pytest.mark.usefixtures("machine")
def test_endpoints_affinity_and_node_ports_are_sweeps_and_labs_of_their_own(tmp_path: Path) -> None:
    base = points(tmp_path)[0]
    places = [Lab(), Lab(endpoints=4), Lab(affinity=True), Lab(endpoints=4, affinity=True)]
    places += [Lab(node_port=True)]
    planned = [sweep.plan_points(replace(base, where=place), [base.mode], (10,))[0] for place in places]
    assert [sweep.name_series(point) for point in planned] == [
        "iptables/legacy",
        "iptables/legacy 4 endpoints",
        "iptables/legacy affinity",
        "iptables/legacy 4 endpoints affinity",
        "iptables/legacy NodePort",
    ]
    assert len({standing_lab._kind(point) for point in planned}) == 5
    assert len({str(sweep._describe(point, {})) for point in planned}) == 5


def states(directory: Path) -> list[str]:
    return [each.name for each in directory.glob("sweep_*.state")]


@pytest.mark.usefixtures("machine")
def test_a_whole_sweep_is_one_document_on_disk_too(tmp_path: Path) -> None:
    found, interrupted = sweep.sweep(points(tmp_path))
    assert (interrupted, found.complete, found.seed, len(found.results)) == (None, True, None, 9)
    document = json.loads(found.to_json())
    assert document["schema"] == "kproxylat/1"
    assert [(each["mode"], each["backend"], each["verdict"]) for each in document["series"]] == [
        ("iptables", "legacy", "O(n)"), ("iptables", "nft", "O(n)"), ("nftables", "nft", "O(1)"),
    ]  # fmt: skip
    assert [each["per_service"]["estimate"] for each in document["series"]] == [26, 84, 0]
    assert document["sweep"]["complete"] is True
    assert len(document["sweep"]["seconds"]) == 9
    [saved] = tmp_path.glob("sweep_*.json")
    assert json.loads(saved.read_text()) == document
    assert tuple(list_from_json(saved.read_text())) == tuple(found.results)
    assert not states(tmp_path)


def test_an_interrupted_sweep_goes_on_where_it_was(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.end_after = 5
    found, interrupted = sweep.sweep(points(tmp_path))
    assert interrupted
    assert not found.complete
    assert len(found.results) == 5
    assert not list(tmp_path.glob("sweep_*.json"))
    machine.end_after = None
    found, interrupted = sweep.sweep(points(tmp_path))
    # The fifth was cut short, and is measured again.
    assert len(machine.measured) == 10
    assert machine.measured[4] == machine.measured[5]
    assert (found.complete, found.resumed, len(found.results)) == (True, 4, 9)
    assert "4 of 9 runs are there" in capsys.readouterr().err
    assert [each.run.services for each in found.results] == [10, 100, 1000] * 3
    assert not states(tmp_path)
    sweep.sweep(points(tmp_path))
    assert len(machine.measured) == 19, "a whole sweep is not gone on with"


def test_a_failure_keeps_what_was_measured(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.end_after, machine.fail = 3, True
    with pytest.raises(MachineError, match="broke"):
        sweep.sweep(points(tmp_path))
    assert "3 of 9 runs are kept" in capsys.readouterr().err
    machine.fail, machine.end_after = False, None
    found, _ = sweep.sweep(points(tmp_path))
    assert found.resumed == 3
    assert len(machine.measured) == 9


@pytest.mark.parametrize("other", ["rate", "kernel", "fresh"])
def test_other_options_measure_anew(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    machine.end_after = 5
    sweep.sweep(points(tmp_path))
    machine.end_after = None
    if other == "kernel":
        monkeypatch.setattr(kernel, "release", lambda: "6.99")
    found, _ = sweep.sweep(points(tmp_path, rate=999 if other == "rate" else 1000), fresh=other == "fresh")
    assert found.resumed == 0
    assert len(machine.measured) == 14
    assert len(states(tmp_path)) == 1, "the older state is left alone"


def test_more_services_take_over_what_is_there(machine: Machine, tmp_path: Path) -> None:
    machine.end_after = 5
    sweep.sweep(points(tmp_path, 10, 100, 1000))
    machine.end_after = None
    found, _ = sweep.sweep(points(tmp_path, 10, 5000))
    assert found.resumed == 2
    assert [each.run.services for each in found.results] == [10, 5000] * 3
    # What this sweep did not want is still there for the first one.
    found, _ = sweep.sweep(points(tmp_path, 10, 100, 1000))
    assert found.resumed == 2
    assert not states(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        '{"point": ["iptables/legacy", 10, 0], "seconds": 1, "result": "gone.json"}\n',
        '{"point": [["iptables/legacy"], 10, 0], "seconds": 1, "result": "gone.json"}\n',
        '{"point": 7}\n',
        "[]\n",
    ],
)
def test_a_torn_state_costs_only_what_is_torn(machine: Machine, tmp_path: Path, damage: str) -> None:
    machine.end_after, machine.fail = 2, True
    with pytest.raises(MachineError):
        sweep.sweep(points(tmp_path))
    machine.fail = False
    [state] = tmp_path.glob("*.state")
    head, _, second = state.read_text().splitlines()
    state.write_text("\n".join([head, second, damage]))
    found, _ = sweep.sweep(points(tmp_path))
    assert (found.resumed, found.complete) == (1, True)
    (tmp_path / "sweep_20260101_000000.state").write_text(damage)
    assert sweep.sweep(points(tmp_path))[0].complete


def test_the_spacing_of_a_states_json_does_not_matter(machine: Machine, tmp_path: Path) -> None:
    machine.end_after = 5
    sweep.sweep(points(tmp_path))
    machine.end_after = None
    [state] = tmp_path.glob("*.state")
    lines = [json.dumps(json.loads(line), separators=(",", ":")) for line in state.read_text().splitlines()]
    state.write_text("\n".join(lines))
    found, _ = sweep.sweep(points(tmp_path))
    assert (found.resumed, found.complete) == (4, True)
    assert not states(tmp_path), "the finished points are forgotten"


def test_a_state_of_an_older_version_is_left_alone(machine: Machine, tmp_path: Path) -> None:
    machine.end_after = 5
    sweep.sweep(points(tmp_path))
    machine.end_after = None
    [state] = tmp_path.glob("*.state")
    head, *lines = [json.loads(line) for line in state.read_text().splitlines()]
    del head["format"]
    for line in lines:
        line["point"] = " ".join(str(part) for part in line["point"])
    older = "\n".join(json.dumps(line) for line in [head, *lines])
    state.write_text(older)
    found, _ = sweep.sweep(points(tmp_path))
    assert (found.resumed, found.complete) == (0, True)
    assert state.read_text() == older


def test_the_clock_of_time_takes_a_random_order_that_can_be_had_again(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernel, "detect_clock", lambda: ("ns", False))
    first, _ = sweep.sweep(points(tmp_path), 2)
    assert first.seed is not None
    assert f"seed {first.seed}" in capsys.readouterr().err
    assert json.loads(first.to_json())["sweep"]["seed"] == first.seed
    order = machine.measured[:]
    assert order != [f"{p.mode.name}/{p.mode.backend} {p.lab.services}" for p in points(tmp_path) if p.lab] * 2
    assert sorted(order[:9]) == sorted(order[9:]), "each round has every point once"
    machine.measured.clear()
    sweep.sweep(points(tmp_path), 2, seed=first.seed)
    assert machine.measured == order
    machine.measured.clear()
    sweep.sweep(points(tmp_path), 2, seed=first.seed + 1)
    assert machine.measured != order


def test_a_resumed_sweep_keeps_its_order(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "detect_clock", lambda: ("ns", False))
    machine.end_after = 4
    first, _ = sweep.sweep(points(tmp_path), 3)
    machine.end_after = None
    second, _ = sweep.sweep(points(tmp_path), 3)
    assert (second.seed, second.resumed, len(second.results)) == (first.seed, 3, 27)


def test_another_seed_is_another_sweep(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "detect_clock", lambda: ("ns", False))
    machine.end_after = 4
    first, _ = sweep.sweep(points(tmp_path), seed=5)
    assert first.seed == 5
    machine.end_after = 7
    other, _ = sweep.sweep(points(tmp_path), seed=6)
    assert (other.seed, other.resumed) == (6, 0)
    machine.end_after = None
    again, _ = sweep.sweep(points(tmp_path), seed=5)
    assert (again.seed, again.resumed) == (5, 3)


@pytest.mark.usefixtures("machine")
def test_the_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    times = iter(range(0, 100_000, 50))
    monkeypatch.setattr(kernel, "user_clock_s", lambda: next(times))
    sweep.sweep(points(tmp_path))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("==")]
    assert said[0].startswith("== run 1 of 9: iptables on legacy, 10 Services; this takes about ")
    assert said[1] == "== run 2 of 9: iptables on legacy, 100 Services; more than 6 min 40 s left"
    assert said[3].endswith("10 Services; about 5 min 0 s left"), "as many Services as ever are known"
    assert said[8].endswith("1,000 Services; about 50 s left")


def test_the_time_left_of_machines_side_by_side(tmp_path: Path) -> None:
    """The same series tells most, the longest having been first."""
    state = sweep_state.State(tmp_path, {}, None, fresh=True)
    state.seconds = {
        sweep_state.Key("iptables/legacy", 1000, 0): 100,
        sweep_state.Key("nftables/nft", 100, 0): 300,
        sweep_state.Key("nftables/nft", 10, 0): 20,
    }
    runs = [(each, 0) for each in points(tmp_path, 100) if each.mode.backend == "legacy"]
    assert sweep._time_left(runs, state, 2) == "; about 50 s left"
    runs = [(each, 0) for each in points(tmp_path, 100) if each.mode.name == "iptables"]
    assert sweep._time_left(runs, state, 1) == "; about 6 min 40 s left", "nothing is known of the other backend"


@pytest.mark.usefixtures("machine")
def test_the_old_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = sweep.sweep(points(tmp_path, 10))
    cli_sweep.show_sweep(found, "csv")
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["ServiceCount"], row["ProxyMode"]) for row in rows] == [
        ("10", "iptables"), ("10", "iptables"), ("10", "nftables"),
    ]  # fmt: skip
    assert rows[0]["MeanLatency_us"] == "", "instructions are no microseconds"
    assert "empty on the instruction clock" in err


@pytest.mark.usefixtures("machine")
def test_the_table_says_whether_books_closed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = sweep.sweep(points(tmp_path))
    found.results[0] = replace(found.results[0], accounting=None)
    cli_sweep.show_sweep(found, "table")
    assert "books closed: 8 of 9 runs" in capsys.readouterr().out


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 repeats"):
        sweep.check_points(points(tmp_path), 0)
    assert [each.lab.services for each in points(tmp_path, 10, 10) if each.lab] == [10] * 3, "each number once"


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("target", [None, "10.97.0.1:80"])
def test_a_ruleset_is_swept_on_each_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], target: str | None
) -> None:
    sending = Sending(duration_s=2, rate_pps=1000)
    base = Options(RULES.mode, where=Lab(), sending=sending, record=Record(tmp_path))
    every = plan_backends(base, RULES, (), target, target is None)
    assert [each.where.services for each in every] == [105, 105]

    def measure(point: Options, *_: object) -> tuple[Result, None]:
        result = measured(point.mode)
        return (result if point.targets else replace(result, services=())), None

    monkeypatch.setattr(sweep, "measure", measure)
    found, ended = sweep.sweep(every)
    assert ended is None
    said = capsys.readouterr().err
    assert "run 1 of 2: iptables on legacy, 105 Services" in said
    assert "run 2 of 2: iptables on nft, 105 Services; about" in said
    assert [len(each.points) for each in found.series] == ([102, 102, 2, 2] if target is None else [1, 1])
    document = json.loads(found.to_json())
    assert [len(each["points"]) for each in document["series"]] == [len(each.points) for each in found.series]
    assert len(list_from_json(found.to_json())) == 2
    cli_sweep.show_sweep(found, "table")
    table = capsys.readouterr().out
    assert ("before the one that is looked up" in table) is (target is None)
    assert ("iptables/nft tcp: each Service adds 84, residual 0 at all 102 points" in table) is (target is None)
    cli_sweep.show_sweep(found, "csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["ServiceCount"] for row in rows] == ["105", "105"]


@pytest.mark.parametrize(("asked", "sent"), [
    ({"lab": True}, ["tcp sockets"]),
    ({"lab": True, "protocol": "udp"}, ["udp pktgen"]),
    ({"lab": True, "protocol": "both"}, ["tcp sockets", "udp pktgen"]),
    ({"lab": True, "protocol": "both", "probe": Kind.NONE}, ["tcp sockets", "udp sockets"]),
    ({"lab": True, "generator": "pktgen"}, ["udp pktgen"]),
    ({"lab": True, "generator": "hping3"}, ["tcp hping3"]),
    ({"lab": True, "worker_ports": WorkerPorts.UDP}, ["udp pktgen"]),
    ({}, ["udp pktgen"]),
])  # fmt: skip
def test_the_labs_usual_protocol_is_that_of_most_services(asked: dict[str, Any], sent: list[str]) -> None:
    asking = cli_sweep.SweepOptions(mode="nftables", services="10", **asked)
    planned = asking.plan(OnNode(), ())
    assert [f"{each.target.protocol} {each.sending.generator.name}" for each in planned] == sent


def test_a_sweep_of_both_protocols_has_a_line_for_each_and_is_resumed(tmp_path: Path, machine: Machine) -> None:
    base = points(tmp_path)[:2]
    both = [replace(each, target=replace(each.target, protocol=name)) for name in ("tcp", "udp") for each in base]
    machine.end_after = 3
    sweep.sweep(both)
    machine.end_after = None
    finished, _ = sweep.sweep(both)
    assert (finished.resumed, len(finished.results)) == (2, 4)
    assert [line.name for line in finished.series] == ["iptables/legacy tcp", "iptables/legacy"]
    assert [[point.services for point in line.points] for line in finished.series] == [[10, 100]] * 2


SOCKETS = Sending(GENERATORS["sockets"], 2, 1000)


@pytest.mark.parametrize(("before", "after"), [
    ({}, {"tracing": Tracing(envelope=True)}),
    ({}, {"tracing": Tracing(settings={"name": "value"})}),
    ({}, {"tracing": Tracing(template=TEMPLATE)}),
    ({}, {"sending": SOCKETS}),
    ({"sending": SOCKETS}, {"sending": replace(SOCKETS, origin="node")}),
    ({"sending": SOCKETS}, {"sending": SOCKETS, "target": replace(WORKER[4], protocol="tcp")}),
])  # fmt: skip
def test_a_sweep_with_other_options_is_not_resumed(
    tmp_path: Path, machine: Machine, before: dict[str, Any], after: dict[str, Any]
) -> None:
    machine.end_after = 2
    sweep.sweep([replace(point, **before) for point in points(tmp_path)])
    machine.end_after = None
    finished, _ = sweep.sweep([replace(point, **after) for point in points(tmp_path)])
    assert finished.resumed == 0


def test_a_sweep_with_the_same_tracing_is_resumed(tmp_path: Path, machine: Machine) -> None:
    traced = [replace(point, tracing=Tracing(envelope=True, template=TEMPLATE)) for point in points(tmp_path)]
    machine.end_after = 2
    sweep.sweep(traced)
    machine.end_after = None
    assert sweep.sweep(traced)[0].resumed > 0
