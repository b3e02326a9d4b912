"""A ruleset from elsewhere in the lab's node: which of its Services to measure, and with what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from kproxylat.errors import UsageError
from kproxylat.lab.ruleset import Ruleset
from kproxylat.measure.options import Lab, Options
from kproxylat.modes import MODES


def plan_replay(
    base: Options, ruleset: Ruleset, target: str | None, every: bool, generator: str, protocol: str
) -> Options:
    """Plan a run on a ruleset.

    :param base: what does not depend on it.
    :param target: ``IP:PORT`` of one of its Services. ``every``: all of them in turn.
    :param generator: "" takes pktgen for one Service's UDP port, and sockets for all else. ``protocol``: "" takes what
        the Service has.
    :raises UsageError: neither target nor every, or both; no such Service; a generator that cannot.
    """
    if (target is None) != every:
        raise UsageError("--ruleset takes either --target IP:PORT or --every-service", f"{ruleset.source} has "
                         f"{len(ruleset.targets)} Services with an endpoint")  # fmt: skip
    found = tuple(each for each in ruleset.targets if protocol in ("", each.protocol))
    first = found[0] if found and every else ruleset.find(target or "", protocol)
    usual = "pktgen" if not every and first.protocol == "udp" and base.mode.origin == "pod" else "sockets"
    if every and generator not in ("", "sockets"):
        raise UsageError(f"{generator} sends to one Service only", "--every-service takes --generator sockets")
    return replace(
        base,
        mode=ruleset.mode.from_node() if base.mode.origin == "node" else ruleset.mode,
        target=first,
        targets=found if every else (),
        lab=Lab(len(ruleset.services), "as captured", ruleset=ruleset),
        services=len(ruleset.services),
        generator=generator or usual,
        warnings=base.warnings + ruleset.notes,
    )


def plan_backends(
    base: Options, ruleset: Ruleset, backends: Iterable[str], target: str | None, every: bool
) -> list[Options]:
    """Plan the same on each backend of the ruleset's mode.

    :param backends: those that are wanted (none: all of the mode's).
    :raises UsageError: as :func:`plan_replay`, or the mode has no such backend.
    """
    wanted = set(backends)
    rows = [row for row in MODES if row.name == ruleset.mode.name and (not wanted or row.backend in wanted)]
    if wanted - {row.backend for row in rows}:
        raise UsageError(f"mode {ruleset.mode.name} has no backend {min(wanted)!r}", "leave --backend out")
    return [plan_replay(replace(base, mode=row), replace(ruleset, mode=row), target, every, "", "") for row in rows]
