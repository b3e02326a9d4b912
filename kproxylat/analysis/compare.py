"""The comparison of results, logs or sweeps A and B, with the differences that chance alone would make."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import combinations
from random import Random

from kproxylat.analysis.comparable import REASONS, find_differences, find_flaws
from kproxylat.analysis.comparison import SCHEMA as COMPARISON
from kproxylat.analysis.comparison import Comparison, Side, from_json, state
from kproxylat.analysis.contrast import ALARMS, Contrast, contrast
from kproxylat.analysis.crossings import agrees, find_crossing
from kproxylat.analysis.points import draw_lines, draw_medians
from kproxylat.analysis.series import Key, Series, build_series, find_key, group_results, name_key, sort_groups
from kproxylat.analysis.stats import bounds, crossing
from kproxylat.console import leave_out
from kproxylat.errors import KproxylatError, LogError, UsageError
from kproxylat.logs.files import open_log, read_whole
from kproxylat.logs.reader import LogReader
from kproxylat.modes import is_ordered
from kproxylat.results import Bounded, Probe, Result, name_unit, target_text
from kproxylat.results_json import list_from_json

Cells = dict[int | None, list[Result]]
_FACTS = ("processor", "mode", "backend", "position", "chain_length", "path", "services", "duration_s", "kproxylat",
          "cut_short")  # fmt: skip


class CompareError(KproxylatError):
    """Results that must not be compared."""


def read_results(name: str) -> list[Result]:
    """Read a result, a sweep's document, or any log that ``parse`` reads; ``-`` is stdin.

    :raises LogError: the file cannot be read, or holds no run.
    """
    with open_log(name) as stream:
        if stream.peek(1)[:1] != b"{":  # type: ignore[attr-defined]
            return list(LogReader(name).read(stream))
        try:
            results = list_from_json(read_whole(name, stream), lambda reason: leave_out(f"{name}: {reason}"))
        except (ValueError, OSError, EOFError) as error:
            raise LogError(f"{name}: {error}", "name a result, a log, or a sweep's .json") from None
    if not results:
        raise LogError(f"{name}: holds no result")
    return results


def read_comparisons(name: str) -> tuple[Comparison, ...]:
    """Read a document of comparisons; return nothing for any other file.

    :raises LogError: the file cannot be read.
    """
    with open_log(name) as stream:
        try:
            text = read_whole(name, stream) if name != "-" and stream.peek(1)[:1] == b"{" else b""  # type: ignore[attr-defined]
            return from_json(text) if COMPARISON.encode() in text[:200] else ()
        except (ValueError, OSError, EOFError) as error:
            raise LogError(f"{name}: {error}", "make it again: kproxylat compare --format json") from None


def find_allowed(words: str, force: bool) -> set[str]:
    """Read the reasons that the user overrules, such as ``kernel,script``; with ``force`` return all.

    :raises UsageError: unknown reason.
    """
    names = set(filter(None, words.split(",")))
    if names - set(REASONS):
        raise UsageError(f"--allow {min(names - set(REASONS))}: no such reason", f"there are: {', '.join(REASONS)}")
    return set(REASONS) if force else names


def compare(a: str, b: str | None, allowed: Collection[str] = (), seed: int = 0) -> tuple[Comparison, ...]:
    """Compare two files, series by series; or the series of one with each other, where they share a protocol.

    :param allowed: reasons to overrule, as :data:`kproxylat.analysis.comparable.REASONS` names them.
    :param seed: for the bootstrap.
    :raises CompareError: the numbers must not be compared, or have nothing in common.
    :raises LogError: a file cannot be read.
    """
    one = _group(a)
    if b is None:
        every = list(combinations(one.items(), 2))
        combined = [pair for pair in every if pair[0][0][2] == pair[1][0][2]] or every
        if not combined:
            raise UsageError(f"{a} holds only {name_key(next(iter(one)))}", "name a second file to compare it with")
        return tuple(_compare_pair((a, *x), (a, *y), allowed, seed, ()) for x, y in combined)
    other = _group(b)
    if len(one) == len(other) == 1:
        return (_compare_pair((a, *next(iter(one.items()))), (b, *next(iter(other.items()))), allowed, seed, ()),)
    common = [key for key in one if key in other]
    if not common:
        names = [", ".join(map(name_key, side)) for side in (one, other)]
        raise CompareError(f"nothing is in both: A has {names[0]}, B has {names[1]}", "name one that both have")
    only = [f"{name_key(key)} only in {name}" for name, side, rest in (("A", one, other), ("B", other, one))
            for key in side if key not in rest]  # fmt: skip
    pairs = [_compare_pair((a, key, one[key]), (b, key, other[key]), allowed, seed, tuple(only)) for key in common]
    lost = tuple(name_key(key) for key in one if key not in other)
    return (replace(pairs[0], missing=lost + pairs[0].missing), *pairs[1:])


def _group(name: str) -> dict[Key, Cells]:
    """Read a file's results by series, and by number of Services; skip those without a call."""
    groups: dict[Key, Cells] = {}
    for result in sorted(read_results(name), key=lambda result: result.run.services or 0):
        if result.main_probe:
            groups.setdefault(find_key(result), {}).setdefault(result.run.services, []).append(result)
    if not groups:
        raise LogError(f"{name}: no call was measured in it")
    return sort_groups(groups)


def _compare_pair(
    one: tuple[str, Key, Cells],
    other: tuple[str, Key, Cells],
    allowed: Collection[str],
    seed: int,
    only: tuple[str, ...],
) -> Comparison:
    (file_a, key_a, cells_a), (file_b, key_b, cells_b) = one, other
    names = ("A", "B") if key_a == key_b else (name_key(key_a), name_key(key_b))
    if len(cells_a) == len(cells_b) == 1:
        sizes = [(next(iter(cells_a)), next(iter(cells_b)))]
    else:
        sizes = [(size, size) for size in cells_a if size in cells_b]
    alone = [[f"{size or 0:,} Services" for size in side if size not in {pair[at] for pair in sizes}]
             for at, side in enumerate((cells_a, cells_b))]  # fmt: skip
    if not sizes:
        raise CompareError(f"no number of Services is in both {file_a} and {file_b}", "sweep over the same numbers")
    a = [result for size, _ in sizes for result in cells_a[size]]
    b = [result for _, size in sizes for result in cells_b[size]]
    overruled = _check_comparable(a, b, allowed)
    same = key_a[:2] == key_b[:2]
    rng = Random(seed)  # noqa: S311
    hashed = any(key[0] != "unknown" and not is_ordered(key[0]) for key in (key_a, key_b))
    lookups = []
    for x, y in sizes:
        probes = [[probe for result in cell if (probe := result.main_probe)] for cell in (cells_a[x], cells_b[y])]
        measured = probes[0][0].measured
        name = measured if x is None or x != y else f"{x:,} Services"
        parts = [result.blocks for result in (*cells_a[x], *cells_b[y])]
        lookups.append(contrast(name, probes[0], probes[1], rng, (x, y), len(sizes), hashed, parts=parts))
    # The other engine calls, which do not decide, one by one.
    old, new = (_group_calls(side) if len(sizes) == 1 and same else {} for side in (a, b))
    calls = tuple(contrast(name, old[name], new[name], rng, hashed=hashed) for name in old if name in new)
    series, where = cross(a, b, seed) if len(sizes) > 1 else ((), None)
    mixed = bool(a[0].run.emulated) != bool(b[0].run.emulated)
    units = dict.fromkeys(
        name_unit(probe.unit, mixed and result.run.emulated) for result in (a[0], b[0]) if (probe := result.main_probe)
    )
    known = [lookup.differs for lookup in lookups]
    before, after = _join_facts(a), _join_facts(b)
    comparison = Comparison(
        Side(names[0], file_a, *key_a[:2], len(a), key_a[2]),
        Side(names[1], file_b, *key_b[:2], len(b), key_b[2]),
        unit=" against ".join(units),
        emulated=bool(a[0].run.emulated) and not mixed,
        changed={name: (fact, after[name]) for name, fact in before.items() if fact != after[name]},
        overruled=overruled,
        unknown=_find_unknown(a, b),
        lookups=tuple(lookups),
        calls=calls,
        series=series,
        crossing=where,
        alarms=ALARMS,
        differs=True if any(known) else None if None in known else False,
        worse_pct=find_worse(lookups),
        only=(*only, *(f"{size} only in {name}" for name, side in zip("AB", alone, strict=True) for size in side)),
        missing=tuple(f"{name_key(key_a)} at {size}" for size in alone[0]),
        measured=measured,
    )
    return replace(comparison, statement=state(comparison))


def _check_comparable(a: Sequence[Result], b: Sequence[Result], allowed: Collection[str]) -> dict[str, str]:
    """Return the reasons not to compare that are allowed; raise the others."""
    reasons: dict[str, str] = {}
    for name, side in (("A", a), ("B", b)):
        for result in side:
            for reason, flaw in find_flaws(result).items():
                reasons.setdefault(reason, f"of {name}: {flaw}")
    for result in (*a[1:], *b):
        for reason, difference in find_differences(a[0], result).items():
            reasons.setdefault(reason, difference)
        probes = [probe for probe in (a[0].main_probe, result.main_probe) if probe]
        alike = (a[0].run.mode, a[0].run.backend) == (result.run.mode, result.run.backend)
        words = [f"{'lookups in' if probe.lookup else 'calls of'} {probe.engine}" for probe in probes]
        if len(set(words) if alike else {probe.lookup for probe in probes}) > 1:
            reasons.setdefault("probe", " and ".join(words))
    refused = {reason: difference for reason, difference in reasons.items() if reason not in allowed}
    if refused:
        texts = [f"{reason} ({difference})" for reason, difference in refused.items()]
        fix = f"--allow {','.join(refused)} compares them all the same"
        raise CompareError(f"must not be compared: {'; '.join(texts)}", fix)
    return reasons


def _group_calls(results: Sequence[Result]) -> dict[str, list[Probe]]:
    calls: dict[str, list[Probe]] = {}
    for result in results:
        for probe in result.probes:
            if probe is not result.main_probe:
                chain = probe.chain if probe.chain != probe.hook else None
                name = " ".join(filter(None, (probe.table or probe.engine, chain, probe.hook)))
                calls.setdefault(name, []).append(probe)
    return calls


def _join_facts(results: Sequence[Result]) -> dict[str, str]:
    """Return the conditions of runs: those that differ are the point of a comparison, or a possible explanation."""
    runs = [
        {
            **{name: getattr(result.run, name) for name in _FACTS},
            "target": target_text(result),
            "rate_pps": result.traffic.rate_pps if result.traffic else None,
        }
        for result in results
    ]
    return {name: ", ".join(dict.fromkeys(str(run[name]) for run in runs)) for name in runs[0]}


def _find_unknown(a: Sequence[Result], b: Sequence[Result]) -> tuple[str, ...]:
    """Return the facts that matter for comparing but are unknown on both sides."""
    run = a[0].run
    facts = {"clock": run.clock, "probe": run.probe_kind, "kernel": run.kernel}
    facts["mitigations"] = "known" if run.mitigations else None
    if run.probe_kind != "none":
        facts |= {"bpftrace": run.bpftrace, "script": run.script_sha256}
    facts["books"] = "known" if all(result.accounting for result in (*a, *b)) else None
    return tuple(name for name, fact in facts.items() if fact is None)


def cross(a: Sequence[Result], b: Sequence[Result], seed: int) -> tuple[tuple[Series, ...], Bounded | None]:
    """Fit a line to each side, and find the point where they certainly meet."""
    series = (*build_series(a, seed), *build_series(b, seed))
    lines = [line for one in series if (line := one.line)]
    if len(lines) != 2:
        return series, None
    if all(one.unit == "instructions" for one in series):
        return series, find_crossing(*series)
    where = crossing(*lines)
    if where is None:
        return series, None
    rng = Random(seed)  # noqa: S311
    drawn = [draw_lines(*draw_medians(next(iter(group_results(side).values())), rng)[:2]) for side in (a, b)]
    places = [crossing(x, y) for x, y in zip(*drawn, strict=True)]
    met = [place for place in places if place is not None]
    if len(met) < (1 - ALARMS / 2) * len(places):
        return series, None
    interval = Bounded(where, *bounds(met, 1 - ALARMS))
    return series, interval if agrees(series[0], series[1], interval) else None


def find_worse(lookups: Sequence[Contrast]) -> float | None:
    """Return the percent by which B certainly costs more than A, at its greatest."""
    if any(lookup.differs is None or (lookup.differs and not lookup.main.ratio) for lookup in lookups):
        return None
    certain = [100 * (lookup.main.ratio.lo - 1) for lookup in lookups if lookup.differs and lookup.main.ratio]
    return max([0.0, *certain])
