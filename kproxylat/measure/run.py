"""One measurement: detect, render, trace, send, stop, parse, reconcile, save."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from kproxylat.console import say
from kproxylat.errors import CommandError, Interrupted, KproxylatError, MachineError
from kproxylat.logs.record import TIMES_MARK
from kproxylat.logs.writer import RunLog, log_header, render_report
from kproxylat.measure.accounting import Snapshot, check_losses, reconcile
from kproxylat.measure.completion import complete, rank
from kproxylat.measure.conntrack import Room, forget_flows, make_room
from kproxylat.measure.first_packet import add_first_packet
from kproxylat.measure.options import Options, add_warnings
from kproxylat.measure.overhead import add_overhead, cross_check
from kproxylat.measure.plan import check_options, plan_bursts, plan_script
from kproxylat.measure.send_time import add_send_time, add_untraced
from kproxylat.measure.stage import begin, build, open_node
from kproxylat.measure.standing_lab import Standing, leave
from kproxylat.modes import Mode
from kproxylat.node import counters
from kproxylat.node.changes import CONNTRACK_MAX, Changes
from kproxylat.node.drops import ENTRIES, read_drops
from kproxylat.node.network import Network, find_broken_links
from kproxylat.node.service_rule import ServiceRule, read_service_rule
from kproxylat.results import Result, Target, Traffic
from kproxylat.system import interrupts
from kproxylat.trace.bpftrace import trace
from kproxylat.trace.plan import Plan
from kproxylat.trace.probes import counts_calls
from kproxylat.trace.result import assemble, describe_run
from kproxylat.trace.script import Script, render_script
from kproxylat.traffic.burst import Burst, Sent
from kproxylat.traffic.sending import send


@dataclass(frozen=True)
class Observation:
    """The counters at four moments of a run.

    :param before: before bpftrace was started; ``after``: after it ended.
    :param attached: just after the probes were attached; ``detached``: just before they were detached. Both are None if
        kproxylat sends the packets, because it sends none outside this time.
    """

    before: Snapshot
    attached: Snapshot | None
    detached: Snapshot | None
    after: Snapshot

    @property
    def within(self) -> tuple[Snapshot, Snapshot] | None:
        """The counters while the probes were certainly attached; None if kproxylat sends the packets."""
        return (self.attached, self.detached) if self.attached and self.detached else None


def measure(
    options: Options, sync_s: float | None = None, read_target: Callable[[], Target] | None = None
) -> tuple[Result, Interrupted | MachineError | None]:
    """Measure what kube-proxy costs the target's packets.

    :param sync_s: the seconds that kube-proxy took before the run, for the record (None: its rules did not change).
    :param read_target: reads the target from the API again after the run (None: the API was not asked).
    :return: the result, which is also saved; and the signal that cut it short, or the reason why it was not saved.
    :raises KproxylatError: the measurement failed. In any case the machine is left as it was.
    """
    check_options(options)
    with interrupts.deferred(), ExitStack() as stack:
        changes, standing = _check_host(options, stack)
        plan, script = _render(options)
        network = _build(options, changes, standing, stack)
        rule = _find_rule(options, network)
        room, bursts = _warm_up(options, network, changes, stack)
        started = datetime.now().astimezone()
        log = _open_log(options, rule, started, stack)
        if plan:
            traced = _trace(options, plan, script, network, room, bursts[1], log, started)
        else:
            traced = _time(options, network, room, bursts[1], log, started)
        result, observation, interrupted = traced
        with interrupts.postponed():
            options = add_warnings(options, *changes.restore("rule"))
            result = complete(result, options, rule, observation.after.rule, interrupted, read_target)
            result = close_books(options.mode, rank(result, options), observation, network, counts_calls(script))
            result = check_source(result, options)
            log.write(render_report(options.mode, result.headline))
        interrupted = interrupted or interrupts.take()
        # After the report, which ends the maps' text.
        if plan and options.tracing.overhead and not interrupted:
            send_again = partial(send, generator=options.sending.generator)
            result, interrupted = add_overhead(result, options.mode, plan, bursts[2:5], send_again, log.write)
        if options.tracing.send_time and not interrupted:
            result, interrupted = add_untraced(result, bursts[-1], log.write)
            result = replace(result, cross_check=cross_check(result))
        result = replace(result, run=replace(result.run, log=str(log.path), sync_s=sync_s, load_s=changes.load_s))
        unsaved = log.save(result)
        if not (interrupted or unsaved) and result.accounting and result.accounting.closed:
            leave(options, network)
    return result, interrupted or unsaved


def _check_host(options: Options, stack: ExitStack) -> tuple[Changes, Standing | None]:
    say("[1/7] Running pre-flight checks...")
    return begin(options, stack)


def _render(options: Options) -> tuple[Plan | None, Script]:
    """Render the script, with what it was rendered from; nothing if the sender takes the time."""
    mode = options.mode
    if not options.tracing.traces:
        say(f"[2/7] Kube-proxy mode: {mode.name}, backend {mode.backend}; nothing is traced, the sender takes the time")
        return None, Script()
    plan = plan_script(options)
    script = render_script(plan, options.tracing.template, options.tracing.settings)
    say(f"[2/7] Kube-proxy mode: {mode.name}, backend {mode.backend}, engine {mode.engine}, by {plan.kind}")
    return plan, script


def _build(options: Options, changes: Changes, standing: Standing | None, stack: ExitStack) -> Network:
    rules = f" and the rules of {options.lab.services} Services" if options.lab else ""
    say(f"[3/7] Preparing the network{rules}...")
    return build(options, changes, standing, stack)


def _find_rule(options: Options, network: Network) -> ServiceRule:
    mode = options.mode
    try:
        rule = read_service_rule(mode, options.target, network.node, options.targets[1:], at_rest=False)
    except CommandError as error:
        fix = "kproxylat mode show says which rules this node has: pass --mode and --backend"
        raise MachineError(f"rules of mode {mode.name} on {mode.backend} cannot be read: {error}", fix) from error
    many = f"{len(options.targets)} Services in turn, first " if options.targets else ""
    say(f"[4/7] Target: {many}{options.target}, {_describe(mode, rule)}")
    return rule


def _warm_up(options: Options, network: Network, changes: Changes, stack: ExitStack) -> tuple[Room, list[Burst]]:
    """Send the warm-up; return conntrack's room for our flows, and all bursts.

    :raises Interrupted: a signal came.
    """
    open_node(options, network, stack)
    may_raise = options.on_node and CONNTRACK_MAX in options.on_node.allow
    room = make_room(options, network, changes.raise_limit if may_raise else None)
    bursts = plan_bursts(options, network)
    say(f"[5/7] Warming up: {bursts[0].count} packets; {room}")
    _, interrupted = send(bursts[0], options.sending.generator) if bursts[0].count else (None, None)
    if interrupted:
        raise interrupted
    return room, bursts


def _open_log(options: Options, rule: ServiceRule, started: datetime, stack: ExitStack) -> RunLog:
    facts = [options.mode.backend, *([f"{options.lab.services}services"] if options.lab else [])]
    log = RunLog(options.record.output_dir, options.mode.name, started, *facts)
    stack.callback(log.close)
    version = None if options.tracing.traces else "not used"
    log.write(log_header(options.mode, _header(options, rule), started, version))
    return log


def _trace(
    options: Options,
    plan: Plan,
    script: Script,
    network: Network,
    room: Room,
    burst: Burst,
    log: RunLog,
    started: datetime,
) -> tuple[Result, Observation, Interrupted | None]:
    """Attach the probes, send, and read what bpftrace prints.

    :return: the result of the trace with its traffic, the counters, and the signal that stopped the sending.
    """
    sends = options.sending.generator.sends

    def look_within() -> Snapshot | None:
        return None if sends else look(options, network, room)

    before, room = _look_before(options, network, room)
    say("[6/7] Starting bpftrace, waiting until its probes are attached...")
    with ExitStack() as end:
        try:
            with trace(script, log.write) as tracer:
                attached = look_within()
                sent, interrupted = _send(options, network, room, burst)
                end.enter_context(interrupts.postponed())
                detached = look_within()
                tracer.stop()
            same = render_script(plan.anonymous, options.tracing.template, options.tracing.settings)
            reasons = plan.reasons if plan.others else None
            result = _add_traffic(assemble(options.mode, plan.kind, started, same, tracer, reasons), options, sent, log)
        except KproxylatError as error:
            error.remedy = error.remedy or f"what bpftrace printed is in {log.path}"
            raise
        observation = Observation(before, attached, detached, look(options, network, room))
    return result, observation, interrupted


def _time(
    options: Options, network: Network, room: Room, burst: Burst, log: RunLog, started: datetime
) -> tuple[Result, Observation, Interrupted | None]:
    """Send, and let the sender take times; nothing is traced.

    :return: as :func:`_trace`.
    """
    before, room = _look_before(options, network, room)
    say(f"[6/7] Timing {'connections' if options.sending.connects else 'system calls'} by the sender's clock...")
    sent, interrupted = _send(options, network, room, burst)
    with interrupts.postponed():
        after = look(options, network, room)
    result = _add_traffic(Result(describe_run(options.mode, "none", started)), options, sent, log)
    return result, Observation(before, None, None, after), interrupted


def _add_traffic(result: Result, options: Options, sent: Sent, log: RunLog) -> Result:
    """Add what was sent, and the times that the sender took."""
    result = replace(result, traffic=_count_traffic(options, sent))
    if sent.times is None:
        return result
    log.write(f"{TIMES_MARK}{json.dumps(sent.times)}\n")
    if options.sending.connects:
        return add_first_packet(result, sent.times, options)
    return add_send_time(result, sent.times)


def _send(options: Options, network: Network, room: Room, burst: Burst) -> tuple[Sent, Interrupted | None]:
    sending = options.sending
    if sending.connects:
        whose = "" if options.lab else " to the Service's own pods"
        say(f"[7/7] Opening {options.packets} connections{whose}, {sending.rate_pps} a second, each closed at once...")
    elif sending.generator.sends:
        say(f"[7/7] Starting packet generation... {options.packets} packets at {sending.rate_pps} pps")
    else:
        say(f"[7/7] Tracing for {sending.duration_s:g} s; the packets come from elsewhere")
    return send(burst, sending.generator, room.forget_s, partial(forget_flows, network, options.sources))


def _look_before(options: Options, network: Network, room: Room) -> tuple[Snapshot, Room]:
    """Read all counters after the warm-up; return them, and conntrack's room as the warm-up's packets show it."""
    before = look(options, network, room)
    if before.counts.get("masqueraded") and not options.masqueraded:
        room = make_room(options, network, masqueraded=True)
        say(f"      the warm-up was masqueraded: {room}")
    return before, room


def look(options: Options, network: Network, room: Room) -> Snapshot:
    """Read all counters. Conntrack's entries are counted only if ours stay, and no others exist."""
    counts = counters.read_counters(network) | read_drops(network)
    if not room.kept:
        counts.pop(ENTRIES, None)
    rule = read_service_rule(options.mode, options.target, network.node, options.targets[1:])
    return Snapshot(rule, counts)


def close_books(mode: Mode, result: Result, observation: Observation, network: Network, counts_calls: bool) -> Result:
    """Add the accounting to a result."""
    account = partial(reconcile, mode, result, observation.before, observation.after, observation.within)
    books, broken = account((), counts_calls), list[str]()
    if books.closed is False:
        broken = find_broken_links(network)
        books = account(broken, counts_calls)
    # A lower rate does not mend a link.
    warnings = check_losses(result.traffic, books) if result.traffic and not broken else ()
    return replace(result, accounting=books).warn(*warnings)


def check_source(result: Result, options: Options) -> Result:
    """Add whether packets were seen masqueraded in the lab, and a warning that names the rule that did it."""
    books = result.accounting
    if not options.lab or not books:
        return result
    run = replace(result.run, masqueraded=bool(books.delivered_masqueraded) if books.delivered else None)
    if not books.delivered_masqueraded or options.lab.node_port:
        return replace(result, run=run)
    cause = f"the rules masquerade {options.masquerade}" if options.masquerade else "by a rule that is not recognized"
    warning = f"{books.delivered_masqueraded} of {books.delivered} packets were masqueraded: {cause}"
    return replace(result, run=run).warn(warning)


def _count_traffic(options: Options, sent: Sent) -> Traffic:
    sending = options.sending
    if not sending.generator.sends:
        return Traffic(sending.generator.name, None, None, None, None, None, None, None)
    return Traffic(
        sending.generator.name, options.packets, sent.count, sent.errors, sent.pps, sending.rate_pps,
        flows=sent.count, warmup=sending.warmup,
    )  # fmt: skip


def _describe(mode: Mode, rule: ServiceRule) -> str:
    if rule.found:
        return f"rule {rule.position} of {rule.chain_length}" if rule.position else mode.form.place
    if not mode.misses_looked_up:
        return "miss path: no virtual server matches, so the packets are rejected before the lookup"
    return "miss path: no rule matches, so the packets walk all rules and are not translated"


def _header(options: Options, rule: ServiceRule) -> dict[str, object]:
    """Return the facts in the log's header: the old scripts' lines, then ours."""
    sending = options.sending
    rate = {"Packet rate": f"{sending.rate_pps} pps", "Warmup packets": sending.warmup}
    return {
        "Kube-proxy mode": options.mode.name,
        "Worker ClusterIP": options.target.ip,
        "Duration": f"{sending.duration_s:g}s",
        **(rate if sending.generator.sends else {}),
        "Rule position": options.where.position or "unknown",
        "Worker position": f"{rule.position or 'N/A'} / {rule.chain_length or 'N/A'}",
        "Backend": options.mode.backend,
        "Target": options.target,
    }
