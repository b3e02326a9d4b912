"""Which results may be compared, and the reasons why not. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from kproxylat.analysis.stats import Distribution
from kproxylat.errors import LogError
from kproxylat.results import Probe, Result, name_unit
from kproxylat.trace.percentiles import estimate_percentiles

REASONS = ("clock", "probe", "sender", "kernel", "bpftrace", "mitigations", "script", "books", "events")
"""Names of the reasons not to compare."""


def distribution(probe: Probe) -> Distribution | None:
    """Return the distribution of a probe's calls: exact, else from its histogram; None if it has neither."""
    if probe.values:
        return Distribution.of_values(probe.counts)
    rows = [
        (
            bucket.lo if bucket.lo is not None else probe.min if probe.min is not None else float("-inf"),
            bucket.hi - 1 if bucket.hi is not None else probe.max if probe.max is not None else float("inf"),
            bucket.count,
        )
        for bucket in probe.histogram.buckets
    ]

    def estimate(p: float) -> float | None:
        name = f"{p * 100:g}"
        estimates = estimate_percentiles([probe.histogram], [p * 100], probe.min, probe.max) | dict(probe.percentiles)
        return estimates[name].estimate

    return Distribution(rows, estimate) if rows else None


def merge_counts(probes: Iterable[Probe]) -> Counter[int]:
    """Add up how often each distinct value occurred in several probes."""
    return sum((probe.counts for probe in probes), Counter())


def refuse_mixed_time(results: Iterable[Result]) -> Iterator[Result]:
    """Yield results for one axis or column.

    :raises LogError: some times are real, and some are emulated, which do not belong together.
    """
    kinds = set[bool]()
    for result in results:
        if result.main_probe and result.main_probe.unit != "instructions":
            kinds.add(bool(result.run.emulated))
        if len(kinds) > 1:
            raise LogError("emulated ns and real ns have no common axis or column", "take them one by one")
        yield result


def find_differences(a: Result, b: Result) -> dict[str, str]:
    """Return why the numbers of two results must not be compared: a name for the reason -> what differs."""
    units = [result.run.clock or (result.probes[0].unit if result.probes else "unknown") for result in (a, b)]
    facts: dict[str, tuple[str | None, str | None]] = {
        "clock": (name_unit(units[0], a.run.emulated), name_unit(units[1], b.run.emulated)),
        "probe": (_describe_probe(a), _describe_probe(b)),
        "kernel": (a.run.kernel, b.run.kernel),
        "bpftrace": (a.run.bpftrace, b.run.bpftrace),
    }
    differences = {name: f"{x or 'unknown'} and {y or 'unknown'}" for name, (x, y) in facts.items() if x != y}
    senders = [_describe_sender(result) for result in (a, b)]
    if any(len({*words} - {None}) > 1 for words in zip(*senders, strict=True)):
        differences["sender"] = " and ".join(", ".join(filter(None, words)) for words in senders)
    old, new = a.run.mitigations or {}, b.run.mitigations or {}
    changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    if changed:
        name, more = changed[0], f", and {len(changed) - 1} more" if changed[1:] else ""
        differences["mitigations"] = f"{name}: {old.get(name) or 'unknown'} and {new.get(name) or 'unknown'}{more}"
    # Two modes have two functions and two scripts, which do the same if one kproxylat rendered its own template.
    if (a.run.mode, a.run.backend) == (b.run.mode, b.run.backend):
        scripts = [(result.run.script_sha256 or "unknown")[:12] for result in (a, b)]
    else:
        own = ["--template" in " ".join(result.run.arguments) for result in (a, b)]
        scripts = ["a template of the user's" if is_own else f"kproxylat {result.run.kproxylat}"
                   for result, is_own in zip((a, b), own, strict=True)]  # fmt: skip
        scripts[1] += " again" if all(own) else ""
        extras = [_describe_extras(result) for result in (a, b)]
        if scripts[0] == scripts[1] and extras[0] != extras[1]:
            scripts = [extra or "neither" for extra in extras]
    if scripts[0] != scripts[1]:
        differences["script"] = " and ".join(scripts)
    return differences


def _describe_probe(result: Result) -> str | None:
    """Return the kind of the probes, and what the sender timed where nothing was traced."""
    headline, kind = result.headline, result.run.probe_kind
    return f"{kind}, {headline.measured}" if headline and headline.measured != "lookup" else kind


def find_flaws(result: Result) -> dict[str, str]:
    """Return why a result's numbers are unreliable: a name for the reason -> the problem."""
    books, quality, flaws = result.accounting, result.quality, {}
    if books and books.closed is False:
        flaws["books"] = books.difference or "not closed"
    if quality.lost_events or quality.full_maps or quality.missed_probes:
        full = f"; full maps: {', '.join(quality.full_maps)}" if quality.full_maps else ""
        missed = f"; {quality.missed_probes} calls of probes missed" if quality.missed_probes else ""
        flaws["events"] = f"{quality.lost_events or 0} events lost{missed}{full}"
    return flaws


def _describe_sender(result: Result) -> tuple[str | None, str | None]:
    """Return the origin of the packets, and whether kube-proxy masqueraded them; None for an unknown fact."""
    hook = result.lookup.hook if result.lookup else None
    origin = result.run.origin or ("node" if hook == "OUTPUT" else "pod" if hook in ("PREROUTING", "INPUT") else None)
    masqueraded = {True: "masqueraded", False: "not masqueraded", None: None}[result.run.masqueraded]
    return {"pod": "a pod's packets", "node": "the node's packets"}.get(origin or "", origin), masqueraded


def counts_before(result: Result) -> bool:
    """Whether ``run.services`` is the number of a ruleset's Services before the one that is looked up."""
    return bool(result.services or {*result.run.arguments} & {"whatif", "--every-service"})


def _describe_extras(result: Result) -> str:
    """Name the optional work of the script in each call; every mode's script has these options."""
    hooks = any(probe.envelope for probe in result.probes) or "--envelope" in result.run.arguments
    extras = {"the whole hook traced, too": hooks, "values by target": counts_before(result)}
    return ", ".join(name for name, done in extras.items() if done)
