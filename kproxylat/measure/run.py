"""One measurement: detect, render, trace, send, stop, parse, reconcile, save."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from functools import partial

from kproxylat.console import say
from kproxylat.errors import Interrupted, KproxylatError, MachineError
from kproxylat.logs.writer import RunLog, log_header, render_report
from kproxylat.measure.accounting import Snapshot, check_losses, check_rate, reconcile
from kproxylat.measure.conntrack import Room, forget_flows, make_room
from kproxylat.measure.options import Options
from kproxylat.measure.overhead import add_overhead
from kproxylat.measure.plan import check_options, plan_bursts, plan_script
from kproxylat.measure.ranking import rank_services
from kproxylat.measure.stage import begin, build, open_node
from kproxylat.measure.standing_lab import leave
from kproxylat.modes import Mode
from kproxylat.node import counters, network
from kproxylat.node.changes import CONNTRACK_MAX
from kproxylat.node.drops import ENTRIES, read_drops
from kproxylat.node.service_rule import ServiceRule, read_service_rule
from kproxylat.results import Quality, Result, ServiceCost, Target, Traffic
from kproxylat.system import interrupts
from kproxylat.trace.bpftrace import trace
from kproxylat.trace.probes import counts_calls
from kproxylat.trace.result import assemble
from kproxylat.trace.script import render_script
from kproxylat.traffic.burst import Sent
from kproxylat.traffic.generators import GENERATORS
from kproxylat.traffic.sending import send


def measure(options: Options, sync_s: float | None = None) -> tuple[Result, Interrupted | MachineError | None]:
    """Measure what kube-proxy costs the target's packets.

    :param sync_s: how long kube-proxy took before, for the record (None: nothing was changed).
    :return: the result, which is saved, too; and the signal that cut it short, or why it could not be saved.
    :raises KproxylatError: it could not be measured. Whatever happens, nothing is left behind.
    """
    check_options(options)
    mode, sends = options.mode, GENERATORS[options.generator].sends
    with interrupts.deferred(), ExitStack() as stack:
        say("[1/7] Running pre-flight checks...")
        changes, standing = begin(options, stack)
        plan = plan_script(options)
        script = render_script(plan, options.template, options.settings)
        say(f"[2/7] Kube-proxy mode: {mode.name}, backend {mode.backend}, engine {mode.engine}, by {plan.kind}")
        rules = f" and the rules of {options.lab.services} Services" if options.lab else ""
        say(f"[3/7] Preparing the network{rules}...")
        made = build(options, changes, standing, stack)
        rule = read_service_rule(mode, options.target, made.node, options.targets[1:], at_rest=False)
        many = f"{len(options.targets)} Services in turn, first " if options.targets else ""
        say(f"[4/7] Target: {many}{options.target}, {_describe(mode, rule)}")
        open_node(options, made, changes, stack)
        room = make_room(options, made, changes.raise_limit if CONNTRACK_MAX in options.allow else None)
        forget = partial(forget_flows, made, options.sources)
        warmup, burst, *further = plan_bursts(options, made)
        say(f"[5/7] Warming up: {warmup.count} packets; {room}")
        _, interrupted = send(warmup, options.generator) if warmup.count else (None, None)
        if interrupted:
            raise interrupted
        started = datetime.now().astimezone()
        log = RunLog(options.output_dir, mode.name, started)
        stack.callback(log.close)
        log.write(log_header(mode, _header(options, rule), started))
        outer, inner = [look(options, made, room)], []
        say("[6/7] Starting bpftrace, waiting until its probes are attached...")
        try:
            with trace(script, log.write) as tracer:
                inner += [] if sends else [look(options, made, room)]
                if sends:
                    say(f"[7/7] Starting packet generation... {options.packets} packets at {options.rate_pps} pps")
                else:
                    say(f"[7/7] Tracing for {options.duration_s:g} s; the packets come from elsewhere")
                sent, interrupted = send(burst, options.generator, room.forget_s, forget)
                inner += [] if sends else [look(options, made, room)]
                tracer.stop()
            same = render_script(plan.anonymous, options.template, options.settings)
            traced = assemble(mode, plan.kind, started, same, tracer, plan.reasons if plan.others else None)
        except KproxylatError as error:
            error.remedy = error.remedy or f"what bpftrace printed is in {log.path}"
            raise
        outer.append(look(options, made, room))
        options = replace(options, warnings=options.warnings + changes.restore("rule"))
        result = _rank(_complete(traced, options, (rule, outer[1].rule), sent, interrupted), options)
        result = close_books(mode, result, outer, inner, made, counts_calls(script))
        log.write(render_report(mode, result.lookup))
        # After the report, which ends the maps' text.
        if further and not interrupted:
            send_again = partial(send, name=options.generator)
            result, interrupted = add_overhead(result, mode, plan, further, send_again, log.write)
        result = replace(result, run=replace(result.run, log=str(log.path), sync_s=sync_s))
        unsaved = log.save(result)
        if not (interrupted or unsaved) and result.accounting and result.accounting.closed:
            leave(options, made)
    return result, interrupted or unsaved


def look(options: Options, made: network.Network, room: Room) -> Snapshot:
    """Read all counters. Conntrack's entries are counted only where ours stay and there are no others."""
    counts = counters.read_counters(made) | read_drops(made)
    if not room.kept:
        counts.pop(ENTRIES, None)
    rule = read_service_rule(options.mode, options.target, made.node, options.targets[1:])
    return Snapshot(rule, counts)


def close_books(
    mode: Mode, result: Result, outer: list[Snapshot], inner: list[Snapshot], made: network.Network, counts_calls: bool
) -> Result:
    """Add the books to a result: counters before and after the tracing, and, where others send, within."""
    within = (inner[0], inner[1]) if inner else None
    books, broken = reconcile(mode, result, outer[0], outer[1], within, (), counts_calls), list[str]()
    if not books.closed:
        broken = network.find_broken_links(made)
        books = reconcile(mode, result, outer[0], outer[1], within, broken, counts_calls)
    # A lower rate does not mend a link.
    warnings = check_losses(result.traffic, books) if result.traffic and not broken else ()
    quality = replace(result.quality, warnings=result.quality.warnings + warnings)
    return replace(result, accounting=books, quality=quality)


def _complete(
    result: Result,
    options: Options,
    rules: tuple[ServiceRule, ServiceRule],
    sent: Sent,
    interrupted: Interrupted | None,
) -> Result:
    """Add what the trace does not know: the options, the target's rule before and after, the traffic."""
    rule, after = rules
    traffic = Traffic(options.generator, None, None, None, None, None, None, None)
    if GENERATORS[options.generator].sends:
        asked, count, rate_pps = options.packets, sent.count, options.rate_pps
        traffic = Traffic(
            options.generator, asked, count, sent.errors, sent.pps, rate_pps, flows=count, warmup=options.warmup
        )
    about = replace(
        result.run,
        duration_s=options.duration_s,
        arguments=options.arguments,
        services=options.lab.services if options.lab else options.services,
        position=rule.position,
        chain_length=rule.chain_length,
        position_after=after.position,
        chain_length_after=after.chain_length,
        path=rule.path,
        masqueraded=options.masqueraded,
        cut_short=interrupted is not None,
    )
    late = () if interrupted else check_rate(traffic, result.run.clock)
    warnings = options.warnings + result.quality.warnings + late + _check_target(options)
    quality = replace(result.quality, warnings=warnings)
    return replace(result, run=about, target=options.found or Target(*options.target), traffic=traffic, quality=quality)


def _rank(result: Result, options: Options) -> Result:
    """Say what each Service cost, where packets were sent to many."""
    if not (options.lab and options.lab.ruleset and result.lookup and result.lookup.targets):
        return result
    ranked = rank_services(result.lookup, options.lab.ruleset.services)
    return replace(result, services=ranked, quality=_check_shares(result, ranked, len(options.targets)))


def _check_shares(result: Result, ranked: Sequence[ServiceCost], targets: int) -> Quality:
    """Add a warning where a Service was not looked up as often as packets were sent to it."""
    sent = (result.traffic and result.traffic.sent) or 0
    uneven = targets - sum(each.calls * targets == sent for each in ranked)
    warning = f"{uneven} of {targets} Services were not looked up {sent / targets:g} times"
    return replace(result.quality, warnings=result.quality.warnings + ((warning,) if uneven else ()))


def _check_target(options: Options) -> tuple[str, ...]:
    """Look the target up again, and return a warning if it is another."""
    if not options.look_up or not options.found:
        return ()
    try:
        now = options.look_up()
    except MachineError as error:
        return (f"the target could not be looked up after the run: {error}",)
    if now == options.found:
        return ()
    then = f"{options.found.ip}, endpoints {', '.join(options.found.endpoints)}"
    return (f"the target changed during the run: {then}; now {now.ip}, endpoints {', '.join(now.endpoints)}",)


def _describe(mode: Mode, rule: ServiceRule) -> str:
    if rule.found:
        return f"rule {rule.position} of {rule.chain_length}" if rule.position else mode.form.place
    if not mode.misses_looked_up:
        return "miss path: no virtual server matches, so the packets are rejected before the lookup"
    return "miss path: no rule matches, so the packets walk all rules and are not translated"


def _header(options: Options, rule: ServiceRule) -> dict[str, object]:
    """Return what the log's header says of the run: the old lines, and ours after them."""
    return {
        "Kube-proxy mode": options.mode.name,
        "Worker ClusterIP": options.target.ip,
        "Duration": f"{options.duration_s:g}s",
        **(
            {"Packet rate": f"{options.rate_pps} pps", "Warmup packets": options.warmup}
            if GENERATORS[options.generator].sends
            else {}
        ),
        "Rule position": options.lab.position if options.lab else options.position or "unknown",
        "Worker position": f"{rule.position or 'N/A'} / {rule.chain_length or 'N/A'}",
        "Backend": options.mode.backend,
        "Target": options.target,
    }
