"""A preview of a run: what it would measure and change. It reads nothing but the options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kproxylat.measure.conntrack import name_timeout
from kproxylat.measure.options import Options, Tracing
from kproxylat.measure.plan import plan_bursts
from kproxylat.modes import Mode
from kproxylat.node import network as net
from kproxylat.node.node import Node
from kproxylat.results import Target

SCHEMA = "kproxylat-preview/1"
Preview = dict[str, Any]
"""Fact -> value, as JSON has it."""


def preview(options: Options) -> Preview:
    """Describe a run before it is made."""
    sending, sends, ruleset = options.sending, options.sending.generator.sends, options.ruleset
    bursts = plan_bursts(options, net.Network(None, None, None))
    return {
        "mode": options.mode.name,
        "backend": options.mode.backend,
        "place": "lab" if options.lab else str(options.node.netns or options.node.name or "this machine"),
        "ruleset": ruleset.source if ruleset else None,
        "services": options.where.services,
        "position": options.where.position,
        "worker_ports": options.lab.worker_ports if options.lab and not ruleset else None,
        "kube_proxy": (options.lab and options.lab.release) or None,
        "endpoints": options.lab.endpoints if options.lab and not ruleset else None,
        "affinity": bool(options.lab and options.lab.affinity),
        "node_port": bool(options.lab and options.lab.node_port),
        "targets": [str(target) for target in options.targets or (options.target,)],
        "origin": sending.origin,
        "generator": sending.generator.name,
        "sources": str(options.sources),
        "link": options.link if sends else None,
        "masqueraded": options.masqueraded,
        "masqueraded_because": f"the rules masquerade {options.masquerade}" if options.masquerade else None,
        "duration_s": sending.duration_s,
        "rate_pps": sending.rate_pps if sends else None,
        "packets": options.packets if sends else None,
        "warmup": sending.warmup if sends else None,
        "overhead_packets": 3 * options.overhead_packets,
        "flows": sum(burst.flows for burst in bursts) if sends else None,
        "source_addresses": sum(burst.addresses for burst in bursts) if sends else None,
        **describe_tracing(options.tracing),
        "settings": _list_settings(options),
        "changes": list(_list_changes(options)),
        "output_dir": str(options.record.output_dir),
        "left_out": list(_list_left_out(options)),
        "warnings": list(options.record.warnings),
    }


def preview_trace(
    mode: Mode, target: Target | None, duration_s: float | None, tracing: Tracing, output_dir: Path, node: Node
) -> Preview:
    """Describe what trace would do."""
    return {
        "mode": mode.name,
        "backend": mode.backend,
        "family": mode.family,
        "place": str(node.netns or node.name or "this machine"),
        "targets": [str(target)] if target else [],
        "duration_s": duration_s,
        **describe_tracing(tracing),
        "settings": {},
        "changes": [_name_modules(mode, ()), f"log and result in {output_dir}"],
        "output_dir": str(output_dir),
    }


def describe_tracing(tracing: Tracing) -> Preview:
    """Describe how the packets would be traced."""
    return {
        "probe": tracing.probe,
        "envelope": tracing.envelope,
        "others": tracing.others,
        "template": str(tracing.template) if tracing.template else None,
        "variables": dict(tracing.settings),
    }


def _list_settings(options: Options) -> dict[str, str]:
    """Return the sysctls that the run sets -> value, or when it sets them."""
    if options.on_node:
        return dict.fromkeys(options.on_node.allow, "if needed, until the run ends")
    settings = dict(setting.split("=") for setting in net.FORWARDING[options.family])
    return settings | {name_timeout(options): "as long as the run, or 1 if conntrack is too small"}


def _list_changes(options: Options) -> Iterator[str]:
    """Name what the run makes or changes; all but log and result are removed or restored at its end."""
    sends, lab = options.sending.generator.sends, options.lab
    yield _name_modules(options.mode, options.sending.generator.modules)
    if lab:
        yield f"network namespaces {net.CLIENT}, {net.NODE} and {net.BACKEND}" + (", which stay" if lab.keep else "")
        own = f"{lab.services} dummy Services and the worker"
        yield f"in {net.NODE} the rules of {options.ruleset.source if options.ruleset else own}"
    elif sends:
        yield f"network namespace {net.CLIENT}, link {net.POD_LINK}, and a route to {options.sources}"
        yield f"conntrack's entries of {options.sources} are deleted"
    if options.on_node and options.on_node.position and options.mode.form.ordered:
        yield f"the rule of {options.target} is moved: {options.on_node.position}"
    yield f"log and result in {options.record.output_dir}"


def _name_modules(mode: Mode, more: Sequence[str]) -> str:
    return f"kernel modules, if they are not loaded: {', '.join((*mode.modules, *more))}"


def _list_left_out(options: Options) -> Iterator[Mapping[str, str]]:
    """Name the Services of the ruleset that are not measured, with the reason."""
    ruleset = options.ruleset
    reasons: Mapping[Target, str] = ruleset.left_out if ruleset else {}
    for service in ruleset.services if ruleset else ():
        target = Target(service.ip, service.port, service.protocol)
        if target in (options.targets or (options.target,)):
            continue
        if target in reasons:
            reason = reasons[target]
        elif not service.endpoints:
            reason = "it has no endpoint"
        elif service.protocol not in ("tcp", "udp"):
            reason = f"no generator sends {service.protocol}"
        elif options.targets:
            reason = "it is not among the Services that were asked for"
        else:
            continue
        yield {"target": str(target), "name": service.port_name, "reason": reason}
