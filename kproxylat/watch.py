"""Trace while others send: attach, report every few seconds in the old scripts' form, stop by a signal or in time."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from ipaddress import IPv4Network
from pathlib import Path

from kproxylat import net
from kproxylat.books import assemble
from kproxylat.bpftrace import trace
from kproxylat.dump import parse_dump
from kproxylat.errors import Interrupted
from kproxylat.measure import check_machine
from kproxylat.model import Destination, Probe, Result, Target
from kproxylat.modes import Mode
from kproxylat.plan import make_flow, make_plan
from kproxylat.probes import build_probes, merge_probes
from kproxylat.render import render_script
from kproxylat.runlog import RunLog, log_header, render_report
from kproxylat.screen import say

INTERVAL_S = 5
ANY_SOURCE = IPv4Network("0.0.0.0/0")
_HEAD = re.compile(r"(\d\d:\d\d:\d\d) Statistics:$")
_TAIL = "--\n"


def watch(
    mode: Mode,
    target: Destination | None,
    duration_s: float | None,
    output_dir: Path,
    template: Path | None,
    settings: dict[str, str],
) -> Result:
    """Trace the engine's calls, and report to stdout.

    :param target: whose first packets of a flow to trace (None: all packets on the machine).
    :param duration_s: seconds to trace for (None: until a signal).
    :return: the result, which is saved, too.
    :raises KproxylatError: it cannot be traced.
    """
    check_machine(mode)
    script = render_script(
        make_plan(mode, make_flow(target, ANY_SOURCE) if target else None, INTERVAL_S), template, settings
    )
    started = datetime.now().astimezone()
    with ExitStack() as stack:
        stack.enter_context(net.lock())
        log = RunLog(output_dir, mode.name, started)
        stack.callback(log.close)
        facts = {"Kube-proxy mode": mode.name, "Worker ClusterIP": target.ip if target else "any"}
        log.write(log_header(mode, facts | {"Backend": mode.backend, "Target": target or "any"}, started))
        report = IntervalReport(mode, bool(target))

        def take(line: str) -> None:
            log.write(line)
            report.feed(line)

        say("Starting bpftrace, waiting until its probes are attached...")
        tracer = stack.enter_context(trace(script, take))
        say(f"Tracing {mode.engine}; {f'{duration_s:g} s' if duration_s else 'Ctrl-C ends it'}")
        try:
            tracer.wait(duration_s)
        except Interrupted:
            say("Stopping...")
        tracer.stop()
        result = assemble(mode, started, script, tracer)
        about = replace(result.run, duration_s=duration_s, log=str(log.path))
        result = replace(result, run=about, target=Target(*target) if target else None)
        final = render_report(mode, result.lookup if target else merge_probes(result.probes))
        print(final, flush=True)
        log.write(final)
        log.save(result)
    return result


class IntervalReport:
    """Turns the maps that the script prints every few seconds into the old scripts' lines, on stdout.

    :param lookup_only: report the Service lookup alone, not all calls.
    """

    def __init__(self, mode: Mode, lookup_only: bool) -> None:
        self._mode = mode
        self._lookup_only = lookup_only
        self._time = ""
        self._lines: list[str] = []

    def feed(self, line: str) -> None:
        """Take a line of bpftrace's."""
        head = _HEAD.match(line)
        if head:
            self._time, self._lines = head[1], []
        elif self._time and line == _TAIL:
            print(f"\n{self._time} Statistics:\n{self._describe()}", flush=True)
            self._time = ""
        elif self._time:
            self._lines.append(line)

    def _describe(self) -> str:
        probes = build_probes(parse_dump("".join(self._lines)), self._mode, "ns")
        merged: Probe | None = merge_probes(probe for probe in probes if probe.lookup or not self._lookup_only)
        if merged is None or merged.min is None or merged.mean is None or merged.max is None:
            return "  No packets traced yet. Is traffic running, and is this the mode that kube-proxy has?"
        low, mean, high = (round(value / 1000) for value in (merged.min, merged.mean, merged.max))
        return f"  [{self._mode.name}] Count: {merged.count}, Min: {low} us, Avg: {mean} us, Max: {high} us"
