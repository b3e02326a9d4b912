"""Windows of live traffic: what is read from counters and from bpftrace, and when probes are detached."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxylat.analysis.bill import IPV6, NO_SERVICE
from kproxylat.analysis.readings import Reading
from kproxylat.analysis.windows import SECOND, Load
from kproxylat.errors import Interrupted, MachineError
from kproxylat.lab.ruleset_services import parse_ipvsadm
from kproxylat.measure import bill, live_load
from kproxylat.measure.bill import Meter, NothingCountedError, parse_window, plan_bill
from kproxylat.measure.live_load import Counters, find_load, read_counters, read_lookups
from kproxylat.modes import find_mode
from kproxylat.node import service_rule
from kproxylat.node.node import Node
from kproxylat.results import Bounded
from kproxylat.system import interrupts, processes
from kproxylat.system.bpf_stats import Used
from kproxylat.trace.plan import TICK_S, Live
from tests.support.bills import WINDOWS, make_bill, window
from tests.support.command import Captured, call
from tests.support.fake_api import FakeApi

IPTABLES, NFTABLES = find_mode("iptables", "nft"), find_mode("nftables", "nft")
PRINTED = """\
@cost[0]: count 2, average 30000, total 60000
@cost[1]: count 1, average 900, total 900
@cost[759160843520462848]: count 3, average 2000, total 6000

@from: 1000000000
@lookups: count 7, average 9557, total 66901

@on: 2
@shape[0]:
[16K, 32K)             1 |@@@@@@@@@@@@@@@@@@@@@@@@@@                          |
[32K, 64K)             1 |@@@@@@@@@@@@@@@@@@@@@@@@@@                          |

@shape[759160843520462848]:
[1K, 2K)               3 |@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@|

@till: 1500000000
"""


def traced(text: str) -> Any:
    """Return a tracer that printed a text."""
    return cast("Any", SimpleNamespace(stdout=text.splitlines(keepends=True)))


def test_a_window_is_read() -> None:
    window = parse_window(traced(PRINTED), 3)
    assert window is not None
    assert (window.seconds, window.shift) == (0.5, 3)
    assert (window.total.lookups, window.total.ns) == (7, 66901)
    [service] = [key for key in window.counts if key not in (NO_SERVICE, IPV6)]
    assert service.endswith(("/tcp", "/udp", "/?"))
    assert {key: count.lookups for key, count in window.counts.items()} == {NO_SERVICE: 2, IPV6: 1, service: 3}
    assert sum(row.count for row in window.counts[NO_SERVICE].histogram.buckets) == 2
    assert window.counts[IPV6].histogram.buckets == ()


@pytest.mark.parametrize("missing", ["@from", "@till"])
def test_a_window_that_did_not_count_is_none(missing: str) -> None:
    assert parse_window(traced(PRINTED.replace(missing, "@gone")), 0) is None


def test_a_window_that_was_detached_ends_with_its_last_lookup() -> None:
    """The script's END runs a while after bpftrace has closed its probes. 7 lookups stand for 8 mean gaps."""
    window = parse_window(traced(PRINTED.replace("@on: 2", "@on: 1")), 0)
    assert window is not None
    assert (window.begins_s, window.ends_s, window.seconds) == (1, 1.5, pytest.approx(0.5 * 8 / 7))


def test_a_window_without_traffic_counts_nothing() -> None:
    window = parse_window(traced("@from: 1000000000\n@on: 2\n@till: 2000000000\n"), 0)
    assert window is not None
    assert (window.total.lookups, window.counts) == (0, {})


def test_the_rules_of_services_tell_the_load() -> None:
    before = Counters(9.5, 1000, 0, Reading(10, 10.5, 50))
    after = Counters(11.5, 3000, 0, Reading(12, 12.5, 150))
    assert find_load(before, after) == Load(1000, 50)


def test_conntrack_tells_the_load_where_it_counts_inserts() -> None:
    assert find_load(Counters(10, 1000, 5, None), Counters(12, 3000, 45, None)) == Load(1000, 20)


def test_every_packet_may_begin_a_flow_where_nothing_counts_flows() -> None:
    assert find_load(Counters(10, 2**32 - 1000, 0, None), Counters(12, 1000, 0, None)) == Load(1000, 1000)


def test_the_counter_of_the_jump_to_services_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "grep": "/proc/net/softnet_stat:0000000a 00000000\n/proc/net/softnet_stat:00000005 00000000\n",
        "PREROUTING": '-P PREROUTING ACCEPT -c 1 1\n-A PREROUTING -m comment --comment "-j KUBE-SERVICES" -c 9 9 -j X\n'
        '-A PREROUTING -m comment --comment "kubernetes service portals" -c 300 15000 -j KUBE-SERVICES\n',
        "OUTPUT": "-A OUTPUT -m comment --comment portals -c 20 1000 -j KUBE-SERVICES\n",
    }
    tables = {"ip"}
    for module in (live_load, service_rule):
        monkeypatch.setattr(module, "run", lambda *argv, **_: answers["grep" if argv[0] == "grep" else argv[-1]])
    monkeypatch.setattr(live_load, "has_table", lambda mode, _: mode.ip in tables)
    clock = iter(range(10, 100, 4))
    monkeypatch.setattr(live_load, "clock_gettime", lambda _: next(clock))
    counters = read_counters(IPTABLES, None)
    assert counters == Counters(10, 15, 0, Reading(14, 18, 320))
    tables.add("ip6")
    readings = [read_lookups(mode, None) for mode in (IPTABLES, find_mode("iptables", "legacy"))]
    assert [reading and reading.total for reading in readings] == [640, 320], (
        "one engine walks the rules of both families; with legacy, ip6t_do_table is not traced"
    )
    assert read_counters(NFTABLES, None).lookups is None


@given(st.lists(st.tuples(st.floats(0.01, 0.3), st.floats(0, 0.1)), min_size=1, max_size=50), st.floats(0.001, 1))
def test_probes_are_detached_as_soon_as_they_take_too_much(steps: list[tuple[float, float]], budget_s: float) -> None:
    meter, now_s, used_s, seen = Meter(budget_s), 0.0, 0.0, [(0.0, 0.0)]
    for step_s, took_s in steps:
        now_s, used_s = now_s + step_s, used_s + took_s
        seen.append((now_s, used_s))
        problem = meter.check(used_s, now_s)
        since = max((used for time_s, used in seen if time_s <= now_s - 1), default=0)
        ahead = took_s if len(seen) > 2 else 0
        if used_s + ahead > budget_s or used_s - since + ahead > SECOND:
            assert problem
            return
    assert not problem


def test_probes_are_detached_before_they_take_too_much() -> None:
    meter = Meter(1)
    assert [bool(meter.check(0.011 * look, 5 + look / 20)) for look in range(1, 5)] == [False, False, False, True]
    assert meter.peak < SECOND, "the next look would have seen 55 ms"


def test_a_meter_counts_windows_together() -> None:
    meter = Meter(0.1)
    assert meter.check(0.04, 5.0) == ""
    meter.used_s = 0.04
    assert "in a second" in meter.check(0.02, 5.5), "two windows within a second"
    assert meter.check(0.03, 9.0) == ""
    assert "more than the period's 100.0 ms" in meter.check(0.07, 12.0)


def test_rules_that_cannot_be_read_leave_names_out_only_if_the_mode_is_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise MachineError("the rules cannot be replayed: why")

    monkeypatch.setattr(bill, "capture", refuse)
    with pytest.raises(MachineError, match="cannot be replayed"):
        plan_bill("iptables", None, Node(), 0.01, 60, "auto")
    plan = plan_bill("iptables", "legacy", Node(), 0.01, 60, "auto")
    assert (plan.mode.backend, plan.names) == ("legacy", {})
    assert "names are unknown" in capsys.readouterr().err


class Lister:
    """A thread that lists rules, which takes so long by the world's clock."""

    def __init__(self, world: World) -> None:
        self.world = world

    def submit(self, _: object) -> Any:
        begun_s = self.world.now_s
        ends_s = begun_s + self.world.list_s

        def result() -> Reading:
            self.world.now_s = max(self.world.now_s, ends_s)
            return self.world.count(begun_s)

        return SimpleNamespace(result=result, done=lambda: self.world.now_s >= ends_s)

    def shutdown(self) -> None:
        pass


def test_rules_of_virtual_servers_hold_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    services = parse_ipvsadm("-A -t 10.96.0.9:80 -s rr\n-a -t 10.96.0.9:80 -r 10.244.1.7:8080 -m -w 1\n")
    rules = SimpleNamespace(
        services=[*services, replace(services[0], ip="10.96.0.8", port_name="a/b:c")], mode=IPTABLES
    )
    monkeypatch.setattr(bill, "capture", lambda *_: ("", rules))
    names = plan_bill(None, None, Node(), 0.01, 60, "auto").names
    assert names == {"10.96.0.9:80/tcp": "", "10.96.0.8:80/tcp": "a/b:c"}


@pytest.mark.parametrize("has_api", [True, False])
def test_a_bill_on_a_node_asks_the_api_for_names(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, fake: FakeApi, tmp_path: Path, has_api: bool
) -> None:
    ports = [{"name": "http", "port": 80, "nodePort": 30080}]
    meta, spec = {"name": "web", "namespace": "shop"}, {"clusterIP": "10.96.7.7", "ports": ports}
    fake.add({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec})
    monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig(tmp_path) if has_api else tmp_path / "none"))
    monkeypatch.setattr("kproxylat.cli.bill.check_root", lambda: None)
    monkeypatch.setattr(bill, "plan_bill", lambda *_: None)
    monkeypatch.setattr(bill, "bill", lambda _: (make_bill(), None))
    status, out, err = call(capsys, "bill")
    assert (status, "shop/web:http" in out) == (0, has_api)
    line = "rows without a Service's name: 1: "
    assert [text.startswith(line) for text in err.splitlines()] == ([] if has_api else [True])
    assert call(capsys, "bill", "--context", "gone")[0] == (2 if has_api else 1), "before it counts"


def test_a_signal_while_the_api_is_asked_leaves_the_bill(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted(2)

    monkeypatch.setattr("kproxylat.cli.bill.check_root", lambda: None)
    monkeypatch.setattr("kproxylat.cluster.service_names.read_names", interrupt)
    monkeypatch.setattr("kproxylat.cli.places.Cluster.connect", lambda _: None)
    monkeypatch.setattr(bill, "plan_bill", lambda *_: None)
    monkeypatch.setattr(bill, "bill", lambda _: (make_bill(), None))
    status, out, _ = call(capsys, "bill")
    assert (status, "cost this node" in " ".join(out.split())) == (130, True)


class World:
    """A node without a kernel: a clock that waits move on, and probes that take a part of one CPU while attached."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, share: float, start_s: float, interrupt_s: float = 1e9) -> None:
        self.now_s, self.share, self.start_s, self.interrupt_s = 0.0, share, start_s, interrupt_s
        self.attached_s = self.length_s = self.lead_s = 0.0
        self.stdout: list[str] = []
        self.alive, self.pid, self.attachments = False, 1, 0
        self.is_deaf, self.list_s = False, 0.0
        for name, answer in {
            "check_machine": lambda *_: None,
            "render_script": lambda _: "",
            "read_counters": self.read_counters,
            "monotonic": lambda: self.now_s,
            "make_plan": self.plan,
            "trace": self.trace,
            "find_version": lambda: ("v0", (0, 17)),
            "lock.lock": nullcontext,
            "bpf_stats.counting": lambda: nullcontext(True),
            "bpf_stats.programs_of": lambda _: nullcontext([7]),
            "read_used": lambda _: Used(self.share * (self.now_s - self.attached_s), 1000),
            "interrupts.wait": lambda _, limit_s, *__: self.pass_time(limit_s),
        }.items():
            monkeypatch.setattr(f"kproxylat.measure.bill.{name}", answer)
        monkeypatch.setattr(live_load, "read_lookups", self.read)
        monkeypatch.setattr(live_load, "ThreadPoolExecutor", lambda _: Lister(self))

    def plan(self, *_: object, live: Live, **__: object) -> None:
        self.lead_s, self.length_s = live.lead_ticks * TICK_S, live.window_ms / 1000

    def count(self, begun_s: float) -> Reading:
        return Reading(begun_s, begun_s + self.list_s, round(begun_s * 100))

    def read(self, *_: object) -> Reading:
        begun_s = self.now_s + 0.001
        self.now_s = begun_s + self.list_s
        return self.count(begun_s)

    def read_counters(self, *_: object) -> Counters:
        return Counters(self.now_s, round(self.now_s * 1000), 0, self.read())

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        if self.now_s >= self.interrupt_s:
            raise Interrupted(2)

    @contextmanager
    def trace(self, *_: object) -> Iterator[World]:
        self.pass_time(self.start_s)
        self.attached_s, self.alive, self.attachments = self.now_s, True, self.attachments + 1
        yield self

    def wait(self, limit_s: float) -> None:
        ends_s = self.attached_s + self.lead_s + self.length_s
        self.pass_time(min(limit_s, ends_s - self.now_s))
        if self.now_s >= ends_s - 1e-9:
            self.stop()

    def stop(self, detach_s: float = 0) -> None:
        if detach_s and self.is_deaf:
            self.pass_time(detach_s)
            raise MachineError("bpftrace did not end within 10 s of SIGINT: x")
        self.alive = False
        from_s = self.attached_s + self.lead_s
        lookups = int(self.now_s * 100 + 1e-6) - int(from_s * 100 + 1e-6)
        count = f"count {lookups}, average 3000, total {lookups * 3000}"
        times = round(from_s * 1e9), round(self.now_s * 1e9)
        self.stdout = ["@cost[0]: {0}\n\n@from: {1}\n@lookups: {0}\n\n@till: {2}\n".format(count, *times)]
        if self.now_s <= from_s:
            self.stdout = []

    def check_end(self) -> None:
        assert not self.alive


@given(
    share=st.floats(1e-5, 0.19),
    start_s=st.floats(0.1, 5),
    budget=st.floats(0.0005, 0.05),
    period_s=st.floats(5, 300),
    is_watched=st.booleans(),
)
def test_a_bill_keeps_its_budget_whatever_the_probes_take(
    share: float, start_s: float, budget: float, period_s: float, is_watched: bool
) -> None:
    """The plan expects 1,000 packets and 100 flows a second to take 0.21 %; they take up to 100 times as much.

    One that is watched keeps its budget in every minute.
    """
    drawn: list[int] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = World(monkeypatch, share, start_s)
        billing = bill.Billing(IPTABLES, Node("x"), {}, budget, period_s)
        monkeypatch.setattr("kproxylat.node.node.Node.inode", 1)
        try:
            result, ended = bill.bill(billing, (lambda so_far: drawn.append(so_far.windows)) if is_watched else None)
        except NothingCountedError:
            assert share * 2 * live_load.LEAD_S > min(budget * period_s, SECOND), "before the window even began"
            return
    assert ended is None
    parts = math.ceil(period_s / bill.WATCH_S) if is_watched else 1
    step = parts * share * (bill.STEP_S + 0.001)
    assert drawn == ([*range(1, result.windows + 1)] if is_watched else [])
    assert result.usage.mean * result.period_s <= budget * period_s + step
    assert result.usage.peak <= SECOND
    assert 1 <= world.attachments == result.windows <= 5 * parts
    assert sum(row.lookups_per_s for row in result.rows) == pytest.approx(100, rel=0.1)
    if result.usage.mean * result.period_s > budget * period_s:
        assert any("detached before its time" in warning for warning in result.warnings)


def test_a_window_that_does_not_end_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """bpftrace is killed as it does not hear SIGINT; what its probes took is in the bill, what they counted is not."""
    monkeypatch.setattr("kproxylat.node.node.Node.inode", 1)
    world = World(monkeypatch, 0.001, 1)
    costly = iter([0.001] * 100 + [0.2] * 1000)
    monkeypatch.setattr(
        "kproxylat.measure.bill.read_used", lambda _: Used((world.now_s - world.attached_s) * next(costly), 1000)
    )
    world.is_deaf = True
    result, ended = bill.bill(bill.Billing(IPTABLES, Node("x"), {}, 0.01, 60))
    assert (result.windows, world.attachments, ended) == (world.attachments - 1, world.attachments, None)
    assert result.warnings == (
        "no further window: bpftrace did not end within 10 s of SIGINT: x",
        "one window: how the traffic varies is not in the bounds",
    )
    assert result.usage.mean * result.period_s > 10 * 0.2, "the time until it was killed"


@pytest.mark.parametrize("share", [0.002, 0.02])
def test_probes_are_watched_while_rules_are_listed(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Listing takes longer than the window: of a large node's rules, or on a slow machine."""
    monkeypatch.setattr("kproxylat.node.node.Node.inode", 1)
    world = World(monkeypatch, share, 1)
    world.list_s = 20
    result, _ = bill.bill(bill.Billing(IPTABLES, Node("x"), {}, 0.01, 300))
    assert 0 < result.usage.peak <= SECOND
    check = result.check
    assert check.lookups is not None
    assert check.lookups == pytest.approx(check.counted, rel=0.05)
    assert check.closed is True


def test_a_signal_ends_the_bill_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kproxylat.node.node.Node.inode", 1)
    World(monkeypatch, 0.001, 1, interrupt_s=20)
    result, ended = bill.bill(bill.Billing(IPTABLES, Node("x"), {}, 0.01, 60))
    assert (result.windows, bool(ended)) == (1, True)
    World(monkeypatch, 0.001, 1, interrupt_s=1.5)
    with pytest.raises(Interrupted):
        bill.bill(bill.Billing(IPTABLES, Node("x"), {}, 0.01, 60))


def test_a_signal_while_the_counter_is_read_after_a_window_does_not_cost_the_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kproxylat.node.node.Node.inode", 1)
    world = World(monkeypatch, 0.001, 1)

    def read(*_: object) -> Reading:
        if not interrupts.are_ignored():
            raise Interrupted(2)
        monkeypatch.setattr(interrupts._state, "pending", 2)
        return world.read()

    monkeypatch.setattr(live_load, "read_lookups", read)
    result, ended = bill.bill(bill.Billing(IPTABLES, Node("x"), {}, 0.01, 60))
    assert (result.windows, bool(ended), result.check.closed) == (1, True, True)


@pytest.mark.parametrize("in_window", [True, False])
def test_a_reading_that_fails_does_not_cost_the_window(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, in_window: bool
) -> None:
    """As the other readings stand, the bounds without one in the window are wider; without one after it are unknown."""
    monkeypatch.setattr("kproxylat.node.node.Node.inode", 1)
    world = World(monkeypatch, 0.001, 1)
    world.list_s = 0.1

    def fail(*_: object) -> Reading:
        raise MachineError("another program holds the lock")

    monkeypatch.setattr(Lister, "submit", lambda *_: SimpleNamespace(result=fail, done=lambda: True))
    monkeypatch.setattr(live_load, "read_lookups", world.read if in_window else fail)
    result, _ = bill.bill(bill.Billing(IPTABLES, Node("x"), {}, 0.01, 60))
    assert (result.windows, result.check.closed, result.warnings) == (5, True if in_window else None, ())
    assert "warning: a reading of the rules' counter failed: another program" in capsys.readouterr().err


def test_a_program_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not even after Ctrl-C: another program may hold the lock of the tables for ever."""
    (tmp_path / "iptables-legacy").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "iptables-legacy").chmod(0o755)
    monkeypatch.setattr(processes, "PATH", f"{tmp_path}{os.pathsep}{processes.PATH}")
    monkeypatch.setattr(live_load, "READ_LIMIT_S", 0.1)
    with pytest.raises(
        MachineError, match=r"iptables-legacy --wait=5 -t nat -v -S PREROUTING did not end within 0\.1 s"
    ):
        read_counters(find_mode("iptables", "legacy"), None)


def test_a_counter_is_read_before_a_window_in_it_and_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 0.001, 1)
    world.list_s = 0.3
    with live_load.Readings(IPTABLES, None, world.read(), 5) as readings:
        assert readings.lead_s == pytest.approx(live_load.LEAD_S + 2 * 0.3)
        attached_s, taken = world.now_s, []
        while world.now_s < attached_s + readings.lead_s + 5:
            readings.look(world.now_s - attached_s)
            taken.append(len(readings._taken))
            world.now_s += 0.05
        from_s = attached_s + readings.lead_s
        passed = readings.count(from_s, from_s + 5)
    assert passed is not None
    assert (taken[0], taken[-1]) == (1, 4)
    assert 500 - 100 * 4 * 0.3 <= passed.lo <= passed.estimate <= passed.hi <= 500 + 100 * 4 * 0.3
    assert passed.estimate == pytest.approx(500, rel=0.01)


def test_a_signal_after_a_window_without_a_lookup_ends_the_bill(monkeypatch: pytest.MonkeyPatch) -> None:
    """For `--serve` "no lookup was counted" is a quiet time, after which it goes on."""

    def trace(account: Any) -> None:
        account.windows.append(window({}))
        raise Interrupted(15)

    World(monkeypatch, 0.001, 1)
    monkeypatch.setattr(bill._Account, "trace", trace)
    with pytest.raises(Interrupted):
        bill.bill(bill.Billing(IPTABLES, Node("x"), {}, 0.01, 60))


@pytest.mark.parametrize(("passed", "expected"), [(1220, 0), (1500, 4)])
def test_open_books_are_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, tmp_path: Path, passed: int, expected: int
) -> None:
    made = make_bill((replace(WINDOWS[0], passed=Bounded(700, 700, 700)),
                      replace(WINDOWS[1], passed=Bounded(passed - 700, passed - 700, passed - 700))))  # fmt: skip
    monkeypatch.setattr("kproxylat.cli.bill.check_root", lambda: None)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setattr(bill, "plan_bill", lambda *_: None)
    monkeypatch.setattr(bill, "bill", lambda _: (made, None))
    status, out, err = call(capsys, "bill", "--format", "json")
    assert (status, json.loads(out)["check"]["counted"]) == (expected, 1220)
    assert ("kproxylat: the books don't close: the rules counted another number" in err) == bool(expected)
