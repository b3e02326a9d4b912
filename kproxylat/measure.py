"""One measurement: detect, render, trace, send, stop, parse, reconcile, save."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime

from kproxylat import kernel, lab, net
from kproxylat.books import assemble, check_rate, reconcile
from kproxylat.bpftrace import check_function, find_version, trace
from kproxylat.detect import ServiceRule, read_service_rule
from kproxylat.errors import Interrupted, MachineError
from kproxylat.model import Result, Target, Traffic
from kproxylat.modes import Mode
from kproxylat.plan import Options, check_options, load_modules, make_flow, make_plan, make_room, plan_bursts
from kproxylat.proc import find, run
from kproxylat.render import render_script
from kproxylat.runlog import RunLog, log_header, render_report
from kproxylat.screen import say, waiting
from kproxylat.traffic import GENERATORS, Burst, Sent


def measure(options: Options) -> tuple[Result, Interrupted | None]:
    """Measure what kube-proxy costs the target's packets.

    :return: the result, which is saved, too; and the signal that cut it short, if one did.
    :raises KproxylatError: it could not be measured. Whatever happens, nothing is left behind.
    """
    mode, target = options.mode, options.target
    check_options(options)
    with ExitStack() as stack:
        say("[1/7] Running pre-flight checks...")
        check_machine(mode, *(() if options.lab else ("conntrack",)))
        stack.enter_context(net.lock())
        for name in net.remove_leftovers():
            say(f"      removed {name}, left by an interrupted run")
        script = render_script(make_plan(mode, make_flow(target, options.sources)), options.template, options.settings)
        say(f"[2/7] Kube-proxy mode: {mode.name}, backend {mode.backend}, engine {mode.engine}")
        rules = f" and the rules of {options.lab.services} Services" if options.lab else ""
        say(f"[3/7] Preparing the network{rules}...")
        if kernel.load_module("pktgen"):
            stack.callback(kernel.unload_module, "pktgen")
        made = stack.enter_context(net.network(options.sources, options.lab is not None, lab.ENDPOINT_IP))
        if options.lab:
            services = lab.place_services(options.lab.services, options.lab.position, options.lab.worker_ports)
            lab.load_ruleset(mode, lab.render_ruleset(mode, services), net.NODE)
        net.place_counters(made, options.sources, lab.ENDPOINT_IP, target.ip)
        rule = read_service_rule(mode, target, made.node)
        say(f"[4/7] Target: {target}, {_describe(rule)}")
        if made.node is None:
            stack.callback(run, "conntrack", "-D", "-s", str(options.sources), ok=(0, 1))
        room, needed = make_room(options, made)
        say(f"[5/7] Warming up: {options.warmup} packets; conntrack has room for {room} flows, {needed} needed")
        warmup, burst = plan_bursts(options, made.client)
        _, interrupted = send(warmup, options) if options.warmup else (None, None)
        if interrupted:
            raise interrupted
        started = datetime.now().astimezone()
        log = RunLog(options.output_dir, mode.name, started)
        stack.callback(log.close)
        log.write(log_header(mode, _header(options, rule), started))
        before, counted = read_service_rule(mode, target, made.node), net.read_counters(made)
        say("[6/7] Starting bpftrace, waiting until its probes are attached...")
        with trace(script, log.write) as tracer:
            say(f"[7/7] Starting packet generation... {options.packets} packets at {options.rate_pps} pps")
            sent, interrupted = send(burst, options)
            tracer.stop()
        after = read_service_rule(mode, target, made.node)
        counts = {name: packets - counted[name] for name, packets in net.read_counters(made).items()}
        result = _complete(assemble(mode, started, script, tracer), options, rule, sent, interrupted)
        result = replace(result, accounting=reconcile(result, before, after, counts))
        log.write(render_report(mode, result.lookup))
        result = replace(result, run=replace(result.run, log=str(log.path)))
        log.save(result)
    return result, interrupted


def check_machine(mode: Mode, *programs: str) -> None:
    """Make sure that this machine can trace this mode, and load the modules it takes.

    :param programs: needed beside the mode's own.
    :raises MachineError: root, a program, a module or the engine's function is missing.
    """
    kernel.check_root()
    for program in ("bpftrace", "ip", "nft", "nsenter", "sysctl", *mode.tools, *programs):
        find(program)
    find_version()
    load_modules(mode)
    check_function(mode, kernel.btf_module(mode.module))


def send(burst: Burst, options: Options) -> tuple[Sent, Interrupted | None]:
    """Send a burst and wait for its end; a signal stops it.

    :return: what was sent, and the signal, if one came.
    :raises MachineError: the generator fails, or is not done in twice the time it should take.
    """
    generator = GENERATORS[options.generator]
    limit_s = 2 * burst.count / burst.rate_pps + 60
    sender = None
    try:
        sender = generator.start(burst)
        with waiting(f"{burst.count} packets", burst.count / burst.rate_pps):
            done = sender.wait(limit_s)
        if not done:
            generator.stop(burst)
            raise MachineError(f"{options.generator} was not done after {limit_s:.0f} s", "try a lower rate")
        if sender.status != 0:
            raise MachineError(f"{options.generator} failed (status {sender.status})")
    except Interrupted as interrupt:
        generator.stop(burst)
        if not sender:
            return Sent(0, 0, 0.0), interrupt
        sender.wait(10)
        return generator.read(burst), interrupt
    finally:
        if sender:
            sender.end()
    return generator.read(burst), None


def _complete(
    result: Result, options: Options, rule: ServiceRule, sent: Sent, interrupted: Interrupted | None
) -> Result:
    """Add what the trace does not know: the options, the target's rule, the traffic."""
    asked, rate_pps = options.packets, options.rate_pps
    traffic = Traffic(
        options.generator, asked, sent.count, sent.errors, sent.pps, rate_pps, flows=sent.count, warmup=options.warmup
    )
    about = replace(
        result.run,
        duration_s=options.duration_s,
        arguments=options.arguments,
        services=options.lab.services if options.lab else None,
        position=rule.position,
        chain_length=rule.chain_length,
        path=rule.path,
        masqueraded=options.lab is None and options.source is None,
        cut_short=interrupted is not None,
    )
    quality = replace(result.quality, warnings=result.quality.warnings + check_rate(traffic))
    return replace(result, run=about, target=Target(*options.target), traffic=traffic, quality=quality)


def _describe(rule: ServiceRule) -> str:
    if rule.found:
        return f"rule {rule.position} of {rule.chain_length}" if rule.position else "in map service-ips"
    return "miss path: no rule matches, so the packets walk all rules and are not translated"


def _header(options: Options, rule: ServiceRule) -> dict[str, object]:
    """Return what the log's header says of the run: the old lines, and ours after them."""
    return {
        "Kube-proxy mode": options.mode.name,
        "Worker ClusterIP": options.target.ip,
        "Duration": f"{options.duration_s:g}s",
        "Packet rate": f"{options.rate_pps} pps",
        "Warmup packets": options.warmup,
        "Rule position": options.lab.position if options.lab else "unknown",
        "Worker position": f"{rule.position or 'N/A'} / {rule.chain_length or 'N/A'}",
        "Backend": options.mode.backend,
        "Target": options.target,
    }
