"""A run on another node's ruleset in the lab: which of its Services to measure, and with which generator."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from kproxylat.errors import UsageError
from kproxylat.lab.ruleset import Ruleset
from kproxylat.measure.options import Lab, Options, add_warnings
from kproxylat.modes import MODES
from kproxylat.traffic.generators import find_generator


def plan_replay(
    base: Options, ruleset: Ruleset, target: str | None, every: bool, generator: str = "", protocol: str = ""
) -> Options:
    """Plan a run on a ruleset.

    :param base: the options that do not depend on the ruleset.
    :param target: ``IP:PORT`` of one of its Services. ``every``: measure all of them in turn.
    :param generator: "" takes pktgen for one Service's UDP port, and sockets for all else.
    :param protocol: "" takes the Service's.
    :raises UsageError: ``target`` and ``every`` are both passed, or both missing; the ruleset has no such Service; the
        generator cannot send to several Services.
    """
    protocol = protocol or ("tcp" if base.sending.connects else "")
    if (target is None) != every:
        raise UsageError("--ruleset takes either --target IP:PORT or --every-service", f"{ruleset.source} has "
                         f"{len(ruleset.targets)} Services with an endpoint")  # fmt: skip
    matches = tuple(service for service in ruleset.targets if protocol in ("", service.protocol))
    first = matches[0] if matches and every else ruleset.find(target or "", protocol)
    needs_sockets = every or first.protocol != "udp" or base.sending.origin == "node"
    usual = "sockets" if needs_sockets or base.sending.connects or not base.tracing.traces else "pktgen"
    if every and generator not in ("", "sockets"):
        raise UsageError(f"{generator} sends to one Service only", "--every-service takes --generator sockets")
    plan = replace(
        base,
        mode=ruleset.mode,
        target=first,
        targets=matches if every else (),
        where=Lab(len(ruleset.services), "as captured", ruleset=ruleset, release=ruleset.release),
        sending=replace(base.sending, generator=find_generator(generator or usual)),
    )
    full = () if plan.sending.source else ruleset.pod.full
    elsewhere = [
        f"no part of {pods} is free of ClusterIPs and endpoints: packets come from {plan.sources}" for pods in full
    ]
    return add_warnings(plan, *ruleset.notes, *elsewhere)


def plan_backends(
    base: Options,
    ruleset: Ruleset,
    backends: Iterable[str],
    target: str | None,
    every: bool,
    generator: str = "",
    protocol: str = "",
) -> list[Options]:
    """Plan the same run on several backends of the ruleset's mode.

    :param backends: their names (none: all of the mode's).
    :raises UsageError: as :func:`plan_replay`, or the mode has no such backend.
    """
    names = set(backends)
    rows = [row for row in MODES if row.name == ruleset.mode.name and (not names or row.backend in names)]
    if names - {row.backend for row in rows}:
        raise UsageError(f"mode {ruleset.mode.name} has no backend {min(names)!r}", "leave --backend out")
    return [plan_replay(base, replace(ruleset, mode=row), target, every, generator, protocol) for row in rows]
