"""Windows of live traffic: trace, watch what the probes take, detach, add up. Nothing is sent or changed."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from time import monotonic
from typing import Any

from kproxylat.analysis.bill import IPV6, NO_SERVICE, OTHER, Bill, Count, Usage, Window, add_up, fold
from kproxylat.analysis.readings import Reading, compare_counter
from kproxylat.analysis.windows import SECOND, SHORTEST_S, USEFUL_S, Costs, Windows, plan_windows
from kproxylat.console import say
from kproxylat.errors import Interrupted, MachineError
from kproxylat.lab.capture import capture
from kproxylat.lab.ruleset_services import make_up_name
from kproxylat.measure.live_load import Readings, find_load, find_read_time, read_counters
from kproxylat.measure.options import ANY_SOURCE
from kproxylat.measure.plan import make_flow
from kproxylat.measure.stage import check_machine
from kproxylat.modes import CHAIN, Mode, find_mode
from kproxylat.node import lock
from kproxylat.node.node import Node
from kproxylat.results import Histogram, Map, Target
from kproxylat.system import bpf_stats, interrupts, kernel
from kproxylat.system.bpf_stats import Used, read_used
from kproxylat.trace.bpftrace import Tracer, trace
from kproxylat.trace.dump import parse_dump
from kproxylat.trace.engine import find_version
from kproxylat.trace.plan import Live, make_plan
from kproxylat.trace.probes import name_target
from kproxylat.trace.script import render_script

LOOK_S = 1.0
"""How long the traffic is looked at before anything is attached."""
STEP_S = 0.05
WATCH_S = 60.0
DETACH_S = 10
"""How long bpftrace may keep its probes attached after SIGINT; then it is killed, and its window is lost."""
_SPECIAL = {0: NO_SERVICE, 1: IPV6}


class Meter:
    """What the probes took so far, and whether that is too much.

    :param budget_s: CPU seconds for the whole period.
    :ivar used_s: CPU seconds of all windows before; ``peak``: of the worst second.
    :ivar costs: of a call, as the last window had them.
    """

    def __init__(self, budget_s: float) -> None:
        self.budget_s = budget_s
        self.used_s = self.peak = 0.0
        self.calls = 0
        self.costs = Costs()
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

    :param names: ``IP:PORT/PROTOCOL`` of each Service -> its name, "" if the rules do not hold it.
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
    names = {}
    for row in rules.services:
        has_name = row.port_name != make_up_name(row.protocol, row.ip, row.port)
        names[str(Target(row.ip, row.port, row.protocol))] = row.port_name if has_name else ""
    return Billing(rules.mode, node, names, budget, period_s, probe)


def bill(billing: Billing, watch: Callable[[Bill], None] | None = None) -> tuple[Bill, Interrupted | None]:
    """Count the lookups of live traffic in windows, and add them up.

    :param watch: called with the bill so far after each window; then there are windows in every :data:`WATCH_S`.
    :return: the bill, and the signal that cut it short.
    :raises MachineError: the machine cannot trace, the budget allows no window, or nothing was counted.
    """
    with interrupts.deferred(), ExitStack() as stack:
        check_machine(billing.mode, billing.probe)
        stack.enter_context(lock.lock())
        account = _Account(billing, stack.enter_context(bpf_stats.counting()), watch)
        ended: Interrupted | None = None
        try:
            account.trace()
        except Interrupted as error:
            ended = error
    if not sum(window.total.lookups for window in account.windows):
        if ended:
            raise ended
        raise NothingCountedError(
            "no lookup was counted" + "".join(f"; {warning}" for warning in account.warnings),
            "is there traffic of new flows, and is this the mode that kube-proxy has? a longer --for sees more",
        )
    return account.build(), ended


class _Account:
    """A bill under way.

    :param measured: whether the kernel measures the probes. ``watch``: as in :func:`bill`.
    :ivar warnings: why there are no more windows.
    """

    def __init__(self, billing: Billing, measured: bool, watch: Callable[[Bill], None] | None) -> None:
        self._billing, self._measured, self._watch = billing, measured, watch
        self._started, self._began_s = datetime.now().astimezone().isoformat(timespec="seconds"), monotonic()
        self._children_s = _read_children_s()
        self._meter = Meter(billing.budget * billing.period_s)
        self.windows: list[Window] = []
        self.warnings: list[str] = []

    def build(self) -> Bill:
        """Add up the windows so far."""
        billing, mode, windows, meter = self._billing, self._billing.mode, self.windows, self._meter
        rows, rate, day = add_up(windows, billing.names)
        warnings = dict.fromkeys(self.warnings)
        if not meter.calls:
            warnings["the kernel did not measure the probes (BPF statistics): their share is expected, by bench/"] = (
                None
            )
        if sum(window.parts for window in windows) == 1:
            warnings["one window: how the traffic varies is not in the bounds"] = None
        if any(row.key == OTHER for row in rows):
            warnings["a map was full: some destinations are in the row 'other'"] = None
        period_s, starts_s = monotonic() - self._began_s, _read_children_s() - self._children_s
        usage = Usage(meter.calls > 0, billing.budget, meter.used_s / period_s, meter.peak, meter.calls, starts_s)
        has_counter = mode.form == CHAIN
        counter = "the rules that jump to KUBE-SERVICES" if has_counter else "none that counts lookups in this mode"
        return Bill(
            self._started, mode.name, mode.backend, kernel.release(), find_version()[0], period_s,
            sum(window.parts for window in windows),
            sum(window.seconds for window in windows),
            sum(window.seconds / (1 << window.shift) for window in windows) / period_s,
            sum(window.total.lookups for window in windows), rate, day,
            sum(row.cpu_ms_per_s for row in rows if row.key == NO_SERVICE) * 86.4,
            rows, usage, compare_counter(windows, counter), warnings=tuple(warnings),
        )  # fmt: skip

    def trace(self) -> None:
        """Trace the whole period; if a person watches, in parts of :data:`WATCH_S`, each with a budget of its own.

        :raises MachineError: the budget allows no window, or bpftrace failed.
        :raises Interrupted: a signal came; the probes are detached.
        """
        whole_s = self._billing.period_s
        part_s = min(WATCH_S, whole_s) if self._watch else whole_s
        for part in range(math.ceil(whole_s / part_s)):
            length_s = min(part_s, whole_s - part * part_s)
            self._meter.budget_s = self._meter.used_s + self._billing.budget * length_s
            try:
                self._trace_part(length_s)
            except MachineError as error:
                # What fails at once would fail for ever; later, a busy time passes.
                if not self.windows:
                    raise
                self.warnings.append(f"no further window: {error}")
            if (part + 1) * part_s < whole_s:
                interrupts.wait(threading.Event(), self._began_s + (part + 1) * part_s - monotonic())

    def _trace_part(self, period_s: float) -> None:
        """Trace the windows of a part, and note why there are no more, where its time or the budget would allow it."""
        netns, ends_s, meter = self._billing.node.netns, monotonic() + period_s, self._meter
        first = read_counters(self._billing.mode, netns)
        interrupts.wait(threading.Event(), LOOK_S)
        last = read_counters(self._billing.mode, netns)
        load = find_load(first, last)
        meter.costs = replace(meter.costs, read_s=find_read_time(last.lookups))
        plan = plan_windows(load, meter.costs, self._billing.budget, period_s)
        while True:
            begin_s = monotonic()
            # What is expected of the first window rests on other machines.
            length_s = plan.length_s if self.windows else min(plan.length_s, USEFUL_S)
            window, problem = _trace_window(self._billing, length_s, plan, meter, self._measured, last.lookups)
            if window:
                self.windows = fold([*self.windows, window])
                if meter.calls and plan.share:
                    meter.costs = meter.costs.scaled(
                        window.used_s / (plan.share * (window.seconds + meter.costs.read_s))
                    )
                if self._watch:
                    self._watch(self.build())
                interrupts.check()
            if problem:
                self.warnings.append(f"detached before its time: {problem}")
                return
            if plan.count > 1:
                interrupts.wait(threading.Event(), max(plan.spacing_s - (monotonic() - begin_s), 0))
            left_s = ends_s - monotonic()
            if plan.count == 1 or left_s < SHORTEST_S + plan.tail_s:
                return
            budget = max(meter.budget_s - meter.used_s, 0) / left_s
            plan = plan_windows(load, meter.costs, budget, left_s, plan.count - 1)


def _read_children_s() -> float:
    """Return the CPU seconds of the programs that were run, and have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _trace_window(
    billing: Billing, length_s: float, plan: Windows, meter: Meter, measured: bool, before: Reading | None
) -> tuple[Window | None, str]:
    """Attach, watch, and read what was counted.

    :param before: the rules' counter, some time before.
    :return: the window, None if it counted nothing; and why it ended early, "" if it did not.
    :raises MachineError: bpftrace failed, or did not end and was killed.
    :raises Interrupted: a signal came; the probes are detached.
    """
    mode = billing.mode
    readings = Readings(mode, billing.node.netns, before, length_s)
    limit_s = length_s + plan.tail_s
    live = Live.of(mode, max(round(length_s * 1000), 1), readings.lead_s, plan.shift)
    flow = make_flow(None, ANY_SOURCE[mode.family])
    script = render_script(make_plan(mode, flow, billing.probe, netns_inode=billing.node.inode, live=live))
    problem, used = "", Used()
    say(f"Window of {length_s:.2f} s, one flow in {1 << plan.shift}: starting bpftrace...")
    with ExitStack() as stack:
        stack.enter_context(readings)
        tracer = stack.enter_context(trace(script, lambda _: True))
        attached_s = monotonic()
        readings.look(0)
        fds = stack.enter_context(bpf_stats.programs_of(tracer.pid)) if measured else []
        try:
            while tracer.alive and not problem:
                tracer.wait(STEP_S)
                passed_s = monotonic() - attached_s
                readings.look(passed_s)
                used = read_used(fds) if fds else Used(plan.share * min(passed_s, limit_s))
                problem = meter.check(used.seconds, monotonic())
                if not problem and passed_s > limit_s + 10:
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
    window = parse_window(tracer, plan.shift)
    if not window:
        return None, problem
    passed = readings.count(window.begins_s, window.ends_s)
    return replace(window, used_s=used.seconds, passed=passed), problem


def parse_window(tracer: Tracer, shift: int) -> Window | None:
    """Read what the script printed; None if it was detached before it counted a lookup.

    When a window was detached, only its last lookup tells. Of n lookups at random moments, the last one comes after
    n/(n + 1) of the time, on average.
    """
    maps = parse_dump("".join(tracer.stdout))
    times = {name: _read(maps, name).get((), 0) for name in ("from", "till", "on")}
    total = _read(maps, "lookups").get((), {"count": 0, "total": 0})
    shapes = _read(maps, "shape")
    if not times["from"] or not times["till"]:
        return None
    counts = {
        _SPECIAL.get(key[0]) or name_target(key[0] % (1 << 64)): Count(
            value["count"], value["total"], Histogram.of(shapes[key]) if key in shapes else Histogram()
        )
        for key, value in _read(maps, "cost").items()
    }
    begins_s, ends_s, lookups = times["from"] / 1e9, times["till"] / 1e9, total["count"]
    seconds = (ends_s - begins_s) * ((lookups + 1) / lookups if times["on"] == 1 and lookups else 1)
    return Window(begins_s, ends_s, seconds, shift, Count(lookups, total["total"]), counts)


def _read(maps: Mapping[str, Map], name: str) -> dict[tuple[int, ...], Any]:
    return {entry.key: entry.value for entry in maps[name].entries} if name in maps else {}
