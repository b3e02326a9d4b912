"""Windows of live traffic: trace, watch what the probes take, detach, add up. Nothing is sent or changed."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from time import monotonic
from typing import Any

from kproxylat.analysis.bill import IPV6, NO_SERVICE, OTHER, Bill, Count, Usage, Window, add_up, compare_counter
from kproxylat.analysis.windows import SECOND, SHORTEST_S, TAIL_S, USEFUL_S, Costs, Load, Windows, plan_windows
from kproxylat.console import say
from kproxylat.errors import Interrupted, MachineError
from kproxylat.lab.capture import capture
from kproxylat.measure.options import ANY_SOURCE
from kproxylat.measure.plan import make_flow
from kproxylat.measure.stage import check_machine
from kproxylat.modes import CHAIN, Mode, find_mode
from kproxylat.node import lock
from kproxylat.node.drops import parse_counters
from kproxylat.node.iptables_save import parse_rule
from kproxylat.node.live_rules import has_table
from kproxylat.node.node import Node
from kproxylat.results import Bucket, Histogram, Map, Target
from kproxylat.system import bpf_stats, interrupts, kernel
from kproxylat.system.bpf_stats import Used, read_used
from kproxylat.system.processes import run
from kproxylat.trace.bpftrace import Tracer, trace
from kproxylat.trace.dump import parse_dump
from kproxylat.trace.engine import find_version
from kproxylat.trace.plan import Live, make_plan
from kproxylat.trace.probes import name_target
from kproxylat.trace.script import render_script

LOOK_S = 1.0
"""How long the traffic is looked at before anything is attached."""
STEP_S = 0.05
DETACH_S = 10
"""How long bpftrace may keep its probes attached after SIGINT; then it is killed, and its window is lost."""
_FILES = "/proc/net/softnet_stat", "/proc/net/stat/nf_conntrack"
_SPECIAL = {0: NO_SERVICE, 1: IPV6}


@dataclass(frozen=True)
class Counters:
    """Counters of the node at a moment.

    :param packets: that the machine's links received; ``inserts``: flows that conntrack noted (0 on most kernels).
    :param lookups: packets that met the rules of Services, where these count: the first of each flow.
    """

    time_s: float
    packets: int
    inserts: int
    lookups: int | None


def read_counters(mode: Mode, netns: str | None) -> Counters:
    """Read the node's counters; in mode iptables this lists base chains, of IPv6, too, if the engine serves both."""
    counts = parse_counters(run("grep", "", *_FILES, netns=netns, ok=(0, 2)).splitlines())
    lookups = None
    if mode.form == CHAIN:
        ipv6 = mode.for_family(6)
        programs = [mode.iptables, *([ipv6.iptables] if ipv6.engine == mode.engine and has_table(ipv6, netns) else [])]
        lines = [
            line
            for program in programs
            for chain in ("PREROUTING", "OUTPUT")
            for line in run(program, "-t", "nat", "-v", "-S", chain, netns=netns).split("\n")
        ]
        rules = [rule for line in lines if (rule := parse_rule(line)) and rule.jump == "KUBE-SERVICES"]
        lookups = sum(rule.packets or 0 for rule in rules)
    packets, inserts = counts.get("softnet_stat packets", 0), counts.get("nf_conntrack insert", 0)
    return Counters(monotonic(), packets, inserts, lookups)


def find_load(before: Counters, after: Counters) -> Load:
    """Return packets and new flows a second between two readings; as many flows as packets if nothing counts them."""
    seconds = after.time_s - before.time_s
    packets = (after.packets - before.packets) % (1 << 32)
    flows = after.inserts - before.inserts
    if after.lookups is not None and before.lookups is not None:
        flows = max(after.lookups - before.lookups, 0)
    elif flows <= 0:
        flows = packets
    return Load(packets / seconds, flows / seconds)


class Meter:
    """What the probes took so far, and whether that is too much.

    :param budget_s: CPU seconds for the whole period.
    :ivar used_s: CPU seconds of all windows before; ``peak``: of the worst second.
    """

    def __init__(self, budget_s: float) -> None:
        self.budget_s = budget_s
        self.used_s = self.peak = 0.0
        self.calls = 0
        self._seen = deque([(float("-inf"), 0.0)])

    def check(self, used_s: float, now_s: float) -> str:
        """Return why the probes must be detached now; "" if they need not.

        They must if they would take too much by the next look, should they take as much as since the last one.

        :param used_s: by the window's probes so far; ``now_s``: the time.
        """
        total, (last_s, before) = self.used_s + used_s, self._seen[-1]
        ahead = total - before if last_s > now_s - 1 else 0
        self._seen.append((now_s, total))
        while self._seen[1][0] <= now_s - 1:
            self._seen.popleft()
        in_second = total - self._seen[0][1]
        self.peak = max(self.peak, in_second)
        if in_second + ahead > SECOND:
            return f"the probes took {in_second:.1%} of one CPU in a second, and soon more than {SECOND:.0%}"
        if total + ahead > self.budget_s:
            took_ms, budget_ms = total * 1000, self.budget_s * 1000
            return f"the probes took {took_ms:,.1f} ms of CPU, and soon more than the period's {budget_ms:,.1f} ms"
        return ""


@dataclass(frozen=True)
class Billing:
    """What to count.

    :param names: ``IP:PORT/PROTOCOL`` of each Service -> its name.
    :param budget: part of one CPU. ``period_s``: how long to count.
    """

    mode: Mode
    node: Node
    names: dict[str, str]
    budget: float = 0.01
    period_s: float = 60
    probe: str = "auto"


class NothingCountedError(MachineError):
    """No window saw a lookup."""


def plan_bill(mode: str | None, backend: str | None, node: Node, budget: float, period_s: float, probe: str) -> Billing:
    """Read the node's rules, which tell mode, backend and the Services' names.

    :raises MachineError: as :func:`kproxylat.lab.capture.capture`; without names where mode and backend were passed.
    """
    try:
        _, rules = capture(mode, backend, False, node.netns)
    except MachineError as error:
        if mode is None or backend is None:
            raise
        say(f"warning: the Services' names are unknown: {error}")
        return Billing(find_mode(mode, backend), node, {}, budget, period_s, probe)
    services = rules.services
    names = {str(Target(row.ip, row.port, row.protocol)): row.port_name for row in services}
    return Billing(rules.mode, node, names, budget, period_s, probe)


def bill(billing: Billing) -> tuple[Bill, Interrupted | None]:
    """Count the lookups of live traffic in windows, and add them up.

    :return: the bill, and the signal that cut it short.
    :raises MachineError: the machine cannot trace, the budget allows no window, or nothing was counted.
    """
    mode = billing.mode
    started, began_s = datetime.now().astimezone().isoformat(timespec="seconds"), monotonic()
    meter = Meter(billing.budget * billing.period_s)
    windows: list[Window] = []
    warnings: list[str] = []
    ended: Interrupted | None = None
    with interrupts.deferred(), ExitStack() as stack:
        check_machine(mode, billing.probe)
        stack.enter_context(lock.lock())
        measured = stack.enter_context(bpf_stats.counting())
        before = os.times()
        try:
            warnings += _trace_period(billing, meter, windows, measured)
        except Interrupted as error:
            ended = error
        after = os.times()
    if ended and not windows:
        raise ended
    if not sum(window.total.lookups for window in windows):
        raise NothingCountedError(
            "no lookup was counted" + "".join(f"; {warning}" for warning in warnings),
            "is there traffic of new flows, and is this the mode that kube-proxy has? a longer --for sees more",
        )
    rows, rate, day = add_up(windows, billing.names)
    if not meter.calls:
        warnings.append("the kernel did not measure the probes (BPF statistics): what they took is expected, by bench/")
    period_s = monotonic() - began_s
    starts_s = after.children_user + after.children_system - before.children_user - before.children_system
    counter = "the rules that jump to KUBE-SERVICES" if mode.form == CHAIN else "none that counts lookups in this mode"
    usage = Usage(meter.calls > 0, billing.budget, meter.used_s / period_s, meter.peak, meter.calls, starts_s)
    if any(row.key == OTHER for row in rows):
        warnings.append("a map was full: some destinations are in the row 'other'")
    done = Bill(
        started, mode.name, mode.backend, kernel.release(), find_version()[0], period_s, len(windows),
        sum(window.seconds for window in windows),
        sum(window.seconds / (1 << window.shift) for window in windows) / period_s,
        sum(window.total.lookups for window in windows), rate, day,
        sum(row.cpu_ms_per_s for row in rows if row.key == NO_SERVICE) * 86.4,
        rows, usage, compare_counter(windows, counter), warnings=tuple(warnings),
    )  # fmt: skip
    return done, ended


def _trace_period(billing: Billing, meter: Meter, windows: list[Window], measured: bool) -> list[str]:
    """Trace the windows of a period.

    :param windows: receives them.
    :return: why there are no more, where the period or the budget would allow it.
    :raises MachineError: the budget allows no window, or bpftrace failed.
    :raises Interrupted: a signal came; the probes are detached.
    """
    netns, ends_s = billing.node.netns, monotonic() + billing.period_s
    first = read_counters(billing.mode, netns)
    interrupts.wait(threading.Event(), LOOK_S)
    load, costs = find_load(first, read_counters(billing.mode, netns)), Costs()
    plan = plan_windows(load, costs, billing.budget, billing.period_s)
    while True:
        begin_s = monotonic()
        # What is expected of the first window rests on other machines.
        length_s = plan.length_s if windows else min(plan.length_s, USEFUL_S)
        try:
            window, problem = _trace_window(billing, length_s, plan, meter, measured)
        except MachineError as error:
            if not windows:
                raise
            return [f"no further window: {error}"]
        if window:
            windows.append(window)
            if meter.calls and plan.share:
                costs = costs.scaled(window.used_s / (plan.share * window.seconds))
        if problem:
            return [f"detached before its time: {problem}"]
        if plan.count > 1:
            interrupts.wait(threading.Event(), max(plan.spacing_s - (monotonic() - begin_s), 0))
        left_s = ends_s - monotonic()
        if plan.count == 1 or left_s < SHORTEST_S + TAIL_S:
            return []
        try:
            budget = max(meter.budget_s - meter.used_s, 0) / left_s
            plan = plan_windows(load, costs, budget, left_s, plan.count - 1)
        except MachineError as error:
            return [f"no further window: {error}"]


def _trace_window(
    billing: Billing, length_s: float, plan: Windows, meter: Meter, measured: bool
) -> tuple[Window | None, str]:
    """Attach, watch, and read what was counted.

    :return: the window, None if it counted nothing; and why it ended early, "" if it did not.
    :raises MachineError: bpftrace failed, or did not end and was killed.
    :raises Interrupted: a signal came; the probes are detached.
    """
    mode = billing.mode
    live = Live.of(mode, max(round(length_s * 1000), 1), plan.shift)
    flow = make_flow(None, ANY_SOURCE[mode.family])
    script = render_script(make_plan(mode, flow, billing.probe, netns_inode=billing.node.inode, live=live))
    problem, used = "", Used()
    say(f"Window of {length_s:.2f} s, one flow in {1 << plan.shift}: starting bpftrace...")
    with ExitStack() as stack:
        # Listing rules may take longer than the window: the probes are watched meanwhile.
        lister = stack.enter_context(ThreadPoolExecutor(1))
        tracer = stack.enter_context(trace(script, lambda _: True))
        attached_s = monotonic()
        fds = stack.enter_context(bpf_stats.programs_of(tracer.pid)) if measured else []
        readings = [lister.submit(read_counters, mode, billing.node.netns)]
        try:
            while tracer.alive and not problem:
                tracer.wait(STEP_S)
                passed_s = monotonic() - attached_s
                if passed_s >= length_s and len(readings) == 1:
                    readings.append(lister.submit(read_counters, mode, billing.node.netns))
                used = read_used(fds) if fds else Used(plan.share * min(passed_s, length_s + TAIL_S))
                problem = meter.check(used.seconds, monotonic())
                if not problem and passed_s > length_s + 10:
                    problem = "bpftrace did not end its window"
            if tracer.alive:
                tracer.stop(detach_s=DETACH_S)
            tracer.check_end()
        finally:
            used = read_used(fds) if fds else used
            # What they took since the last look belongs to the worst second, too.
            meter.check(used.seconds, monotonic())
            meter.used_s += used.seconds
            meter.calls += used.calls
    before = readings[0].result()
    after = readings[1].result() if len(readings) > 1 else read_counters(mode, billing.node.netns)
    window = parse_window(tracer, plan.shift)
    if not window:
        return None, problem
    window = replace(window, used_s=used.seconds)
    if after.lookups is not None and before.lookups is not None and after.lookups >= before.lookups:
        window = replace(window, passed=after.lookups - before.lookups, passed_s=after.time_s - before.time_s)
    return window, problem


def parse_window(tracer: Tracer, shift: int) -> Window | None:
    """Read what the script printed; None if it was detached before it counted."""
    maps = parse_dump("".join(tracer.stdout))
    times = {name: _read(maps, name).get((), 0) for name in ("from", "till")}
    total = _read(maps, "lookups").get((), {"count": 0, "total": 0})
    shapes = _read(maps, "shape")
    if not times["from"] or not times["till"]:
        return None
    counts = {
        _SPECIAL.get(key[0]) or name_target(key[0] % (1 << 64)): Count(
            value["count"], value["total"], _read_histogram(shapes.get(key))
        )
        for key, value in _read(maps, "cost").items()
    }
    seconds = (times["till"] - times["from"]) / 1e9
    return Window(seconds, shift, Count(total["count"], total["total"]), counts)


def _read(maps: Mapping[str, Map], name: str) -> dict[tuple[int, ...], Any]:
    return {entry.key: entry.value for entry in maps[name].entries} if name in maps else {}


def _read_histogram(value: Any) -> Histogram:
    return Histogram(tuple(Bucket(**row) for row in value["buckets"] if row["count"])) if value else Histogram()
