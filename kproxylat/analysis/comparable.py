"""What of results may be held against each other: their values, and the reasons that speak against it. Pure."""

from __future__ import annotations

from kproxylat.analysis.stats import Distribution
from kproxylat.results import Probe, Result

REASONS = ("clock", "probe", "sender", "kernel", "bpftrace", "mitigations", "script", "books", "events")
"""Names of the reasons not to compare."""


def distribution(probe: Probe) -> Distribution | None:
    """Return the distribution of a probe's calls: exact, else that of its histogram; None where it has neither."""
    if probe.values:
        return Distribution.of_values({int(value): count for value, count in probe.values.items()})
    rows = [
        (
            bucket.lo if bucket.lo is not None else probe.min if probe.min is not None else float("-inf"),
            bucket.hi - 1 if bucket.hi is not None else probe.max if probe.max is not None else float("inf"),
            bucket.count,
        )
        for bucket in probe.histogram.buckets
    ]
    return Distribution(rows) if rows else None


def find_differences(a: Result, b: Result) -> dict[str, str]:
    """Return why the numbers of two results must not be compared: a name for the reason -> what differs."""
    clocks = [f"{'emulated ' if each.run.emulated else ''}{each.run.clock or _unit(each)}" for each in (a, b)]
    facts: dict[str, tuple[str | None, str | None]] = {
        "clock": (clocks[0], clocks[1]),
        "probe": (a.run.probe_kind, b.run.probe_kind),
        "kernel": (a.run.kernel, b.run.kernel),
        "bpftrace": (a.run.bpftrace, b.run.bpftrace),
    }
    found = {name: f"{x or 'unknown'} and {y or 'unknown'}" for name, (x, y) in facts.items() if x != y}
    senders = [_describe_sender(each) for each in (a, b)]
    if any(len({*words} - {None}) > 1 for words in zip(*senders, strict=True)):
        found["sender"] = " and ".join(", ".join(filter(None, words)) for words in senders)
    old, new = a.run.mitigations or {}, b.run.mitigations or {}
    others = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    if others:
        name, more = others[0], f", and {len(others) - 1} more" if others[1:] else ""
        found["mitigations"] = f"{name}: {old.get(name) or 'unknown'} and {new.get(name) or 'unknown'}{more}"
    # Two modes call two functions, and a script of each; made by one kproxylat of its own template they do the same.
    if (a.run.mode, a.run.backend) == (b.run.mode, b.run.backend):
        scripts = [(each.run.script_sha256 or "unknown")[:12] for each in (a, b)]
    else:
        own = ["--template" in " ".join(each.run.arguments) for each in (a, b)]
        scripts = ["a template of the user's" if is_own else f"kproxylat {each.run.kproxylat}"
                   for each, is_own in zip((a, b), own, strict=True)]  # fmt: skip
        scripts[1] += " again" if all(own) else ""
        extras = [_describe_extras(each) for each in (a, b)]
        if scripts[0] == scripts[1] and extras[0] != extras[1]:
            scripts = [each or "neither" for each in extras]
    if scripts[0] != scripts[1]:
        found["script"] = " and ".join(scripts)
    return found


def find_flaws(result: Result) -> dict[str, str]:
    """Return why a result's numbers stand for nothing: a name for the reason -> what is wrong."""
    books, quality, found = result.accounting, result.quality, {}
    if books and not books.closed:
        found["books"] = books.difference or "not closed"
    if quality.lost_events or quality.full_maps or quality.missed_probes:
        full = f"; full maps: {', '.join(quality.full_maps)}" if quality.full_maps else ""
        missed = f"; {quality.missed_probes} calls of probes missed" if quality.missed_probes else ""
        found["events"] = f"{quality.lost_events or 0} events lost{missed}{full}"
    return found


def _describe_sender(result: Result) -> tuple[str | None, str | None]:
    """Say whose packets were looked up, and what kube-proxy took them for; None where nobody tells."""
    hook = result.lookup.hook if result.lookup else None
    origin = result.run.origin or ("node" if hook == "OUTPUT" else "pod" if hook in ("PREROUTING", "INPUT") else None)
    masqueraded = {True: "masqueraded", False: "not masqueraded", None: None}[result.run.masqueraded]
    return {"pod": "a pod's packets", "node": "the node's packets"}.get(origin or "", origin), masqueraded


def counts_before(result: Result) -> bool:
    """Whether it is of a ruleset's Services, and ``run.services`` the number of those before the one looked up."""
    return bool(result.services or {*result.run.arguments} & {"whatif", "--every-service"})


def _describe_extras(result: Result) -> str:
    """Say what else the script did in each call, which other modes' scripts do likewise if asked to."""
    hooks = any(each.envelope for each in result.probes) or "--envelope" in result.run.arguments
    extras = {"the whole hook traced, too": hooks, "values by target": counts_before(result)}
    return ", ".join(name for name, done in extras.items() if done)


def _unit(result: Result) -> str:
    return result.probes[0].unit if result.probes else "unknown"
