"""Trace while others send: attach, report every few seconds in the old scripts' form, stop by a signal or in time."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from kproxylat.console import say, show
from kproxylat.errors import Interrupted, KproxylatError
from kproxylat.logs.writer import RunLog, log_header, render_report
from kproxylat.measure.options import ANY_SOURCE
from kproxylat.measure.plan import make_flow
from kproxylat.measure.stage import check_machine
from kproxylat.modes import Mode
from kproxylat.node import lock
from kproxylat.node.node import Node
from kproxylat.results import Probe, Result, Target
from kproxylat.system import interrupts
from kproxylat.trace.bpftrace import trace
from kproxylat.trace.dump import parse_dump
from kproxylat.trace.plan import make_plan
from kproxylat.trace.probes import build_probes, merge_probes, split_maps
from kproxylat.trace.result import assemble
from kproxylat.trace.script import render_script

INTERVAL_S = 5
_HEAD = re.compile(r"(\d\d:\d\d:\d\d) Statistics:$")
_TAIL = "--\n"


def watch(
    mode: Mode,
    target: Target | None,
    duration_s: float | None,
    output_dir: Path,
    template: Path | None,
    settings: dict[str, str],
    probe: str = "auto",
    node: Node | None = None,
) -> Result:
    """Trace the engine's calls, and report to stdout.

    :param mode: of the target's family.
    :param target: whose first packets of a flow to trace (None: all packets on the machine).
    :param duration_s: seconds to trace for (None: until a signal).
    :param probe: "fentry", "kprobe" or "auto".
    :param node: the one whose calls to trace, where its network namespace is named (else all of this machine).
    :return: the result, which is saved, too.
    :raises KproxylatError: it cannot be traced.
    :raises OSError: stdout cannot be written to; what was traced until then is saved.
    """
    with interrupts.deferred():
        check_machine(mode, probe)
    inode = node.inode if node and node.netns else 0
    flow = make_flow(target, ANY_SOURCE[mode.family]) if target else None
    plan = make_plan(mode, flow, probe, INTERVAL_S, netns_inode=inode)
    script = render_script(plan, template, settings)
    started = datetime.now().astimezone()
    with ExitStack() as stack:
        stack.enter_context(lock.lock())
        log = RunLog(output_dir, mode.name, started)
        stack.callback(log.close)
        facts = {"Kube-proxy mode": mode.name, "Worker ClusterIP": target.ip if target else "any"}
        log.write(log_header(mode, facts | {"Backend": mode.backend, "Target": target or "any"}, started))
        report = IntervalReport(mode, bool(target), log.write)
        say("Starting bpftrace, waiting until its probes are attached...")
        try:
            tracer = stack.enter_context(trace(script, report.feed))
            say(f"Tracing {mode.engine}; {f'{duration_s:g} s' if duration_s else 'Ctrl-C ends it'}")
            try:
                tracer.wait(duration_s, report.unread)
            except Interrupted:
                say("Stopping...")
            with interrupts.postponed():
                tracer.stop()
        except KproxylatError as error:
            error.remedy = error.remedy or f"what bpftrace printed is in {log.path}"
            raise
        tracer.stdout.extend(report.flush())
        same = render_script(plan.anonymous, template, settings)
        result = assemble(mode, plan.kind, started, same, tracer)
        about = replace(result.run, duration_s=duration_s, log=str(log.path))
        result = replace(result, run=about, target=target)
        final = render_report(mode, result.lookup if target else merge_probes(result.probes))
        log.write(final)
        unsaved = log.save(result)
    if report.error:
        raise unsaved or report.error
    show(final, flush=True)
    if unsaved:
        raise unsaved
    return result


class IntervalReport:
    """Turns the maps that the script prints every few seconds into the old scripts' lines, on stdout and in the log.

    The maps themselves are neither logged nor kept: a trace of a day would fill memory and disk. Its log grows by about
    90 bytes an interval, 1.5 MB a day.

    :param lookup_only: report the Service lookup alone, not all calls.
    :param write: writes to the log.
    :ivar error: why stdout could not be written to. ``unread``: set when that is so.
    """

    def __init__(self, mode: Mode, lookup_only: bool, write: Callable[[str], object]) -> None:
        self._mode = mode
        self._lookup_only = lookup_only
        self._write = write
        self._time = ""
        self._lines: list[str] = []
        self.error: OSError | None = None
        self.unread = threading.Event()

    def feed(self, line: str) -> bool:
        """Take a line of bpftrace's.

        :return: whether it is none of an interval's, and so one for the result.
        """
        head = _HEAD.match(line)
        if head:
            self.flush()
            self._time = head[1]
        elif not self._time or line.startswith("Lost ") or "WARNING" in line:
            self._write(line)
            return True
        elif line == _TAIL:
            text = f"\n{self._time} Statistics:\n{self._describe()}"
            self._print(text)
            self._write(f"{text}\n")
            self._time, self._lines = "", []
        else:
            self._lines.append(line)
        return False

    def _print(self, text: str) -> None:
        """Print, and note where that fails: it is bpftrace's reader that calls, whose end would be bpftrace's."""
        try:
            if not self.error:
                show(text, flush=True)
        except OSError as error:
            self.error = error
            self.unread.set()

    def flush(self) -> list[str]:
        """Log the lines of an interval that has no end, as a template of one's own may print it.

        :return: these lines.
        """
        lines = self._lines
        self._write("".join(lines))
        self._time, self._lines = "", []
        return lines

    def _describe(self) -> str:
        own, _ = split_maps(parse_dump("".join(self._lines)))
        probes = build_probes(own, self._mode, "ns")
        merged: Probe | None = merge_probes(probe for probe in probes if probe.lookup or not self._lookup_only)
        if merged is None or merged.min is None or merged.mean is None or merged.max is None:
            return "  No packets traced yet. Is traffic running, and is this the mode that kube-proxy has?"
        low, mean, high = (round(value / 1000) for value in (merged.min, merged.mean, merged.max))
        return f"  [{self._mode.name}] Count: {merged.count}, Min: {low} us, Avg: {mean} us, Max: {high} us"
