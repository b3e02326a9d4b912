"""What changed from A to B: results, logs or sweeps side by side, with what chance alone would do."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import combinations
from random import Random

from kproxylat.analysis.comparable import REASONS, find_differences, find_flaws
from kproxylat.analysis.comparison import Comparison, Side, from_json, state
from kproxylat.analysis.contrast import ALARMS, Contrast, contrast
from kproxylat.analysis.series import (
    Series,
    agrees,
    build_series,
    draw_lines,
    draw_medians,
    find_crossing,
    group_results,
)
from kproxylat.analysis.stats import Interval, bounds, crossing
from kproxylat.errors import KproxylatError, LogError, UsageError
from kproxylat.logs.files import open_log
from kproxylat.logs.reader import LogReader
from kproxylat.modes import is_ordered
from kproxylat.results import Probe, Result, target_text
from kproxylat.results_json import list_from_json

Key = tuple[str, str]
Cells = dict[int | None, list[Result]]


class CompareError(KproxylatError):
    """Results that must not be compared."""


def read_results(name: str) -> list[Result]:
    """Read a result, a sweep's document, or any log that ``parse`` reads; ``-`` is stdin.

    :raises LogError: it cannot be read, or holds no run.
    """
    with open_log(name) as stream:
        if stream.peek(1)[:1] != b"{":  # type: ignore[attr-defined]
            return list(LogReader(name).read(stream))
        try:
            found = list_from_json(stream.read())
        except (ValueError, OSError, EOFError) as error:
            raise LogError(f"{name}: {error}", "name a result, a log, or a sweep's .json") from None
    if not found:
        raise LogError(f"{name}: holds no result")
    return found


def read_comparisons(name: str) -> tuple[Comparison, ...]:
    """Read a document of comparisons; nothing, where it is none.

    :raises LogError: it cannot be read.
    """
    with open_log(name) as stream:
        text = stream.read() if stream.peek(1)[:1] == b"{" and name != "-" else b""  # type: ignore[attr-defined]
    try:
        return from_json(text)
    except ValueError:
        return ()


def find_allowed(words: str, force: bool) -> set[str]:
    """Read the reasons that are to be overruled, such as ``kernel,script``; with ``force`` they are all.

    :raises UsageError: there is no such reason.
    """
    names = set(filter(None, words.split(",")))
    if names - set(REASONS):
        raise UsageError(f"--allow {min(names - set(REASONS))}: no such reason", f"there are: {', '.join(REASONS)}")
    return set(REASONS) if force else names


def compare(a: str, b: str | None, allowed: Collection[str] = (), seed: int = 0) -> tuple[Comparison, ...]:
    """Compare two files, series by series; or the series of one with each other.

    :param allowed: reasons to overrule, as :data:`kproxylat.analysis.comparable.REASONS` names them.
    :param seed: of what bootstrap draws.
    :raises CompareError: the numbers must not be compared, or have nothing in common.
    :raises LogError: a file cannot be read.
    """
    one = _group(a)
    if b is None:
        pairs = list(combinations(one.items(), 2))
        if not pairs:
            raise UsageError(f"{a} holds only {_say_key(next(iter(one)))}", "name a second file to compare it with")
        return tuple(_compare_pair((a, *x), (a, *y), allowed, seed, ()) for x, y in pairs)
    other = _group(b)
    if len(one) == len(other) == 1:
        return (_compare_pair((a, *next(iter(one.items()))), (b, *next(iter(other.items()))), allowed, seed, ()),)
    common = [key for key in one if key in other]
    if not common:
        names = [", ".join(map(_say_key, side)) for side in (one, other)]
        raise CompareError(f"nothing is in both: A has {names[0]}, B has {names[1]}", "name one that both have")
    only = [f"{_say_key(key)} only in {name}" for name, side, rest in (("A", one, other), ("B", other, one))
            for key in side if key not in rest]  # fmt: skip
    found = [_compare_pair((a, key, one[key]), (b, key, other[key]), allowed, seed, tuple(only)) for key in common]
    lost = tuple(_say_key(key) for key in one if key not in other)
    return (replace(found[0], missing=lost + found[0].missing), *found[1:])


def _group(name: str) -> dict[Key, Cells]:
    """Read a file's results by mode and backend, and by number of Services; those without a call are of no use."""
    groups: dict[Key, Cells] = {}
    for result in sorted(read_results(name), key=lambda each: each.run.services or 0):
        if result.main_probe:
            key = result.run.mode or "unknown", result.run.backend or "unknown"
            groups.setdefault(key, {}).setdefault(result.run.services, []).append(result)
    if not groups:
        raise LogError(f"{name}: no call was measured in it")
    return groups


def _say_key(key: Key) -> str:
    return "/".join(key)


def _compare_pair(
    one: tuple[str, Key, Cells],
    other: tuple[str, Key, Cells],
    allowed: Collection[str],
    seed: int,
    only: tuple[str, ...],
) -> Comparison:
    (file_a, key_a, cells_a), (file_b, key_b, cells_b) = one, other
    names = ("A", "B") if key_a == key_b else (_say_key(key_a), _say_key(key_b))
    if len(cells_a) == len(cells_b) == 1:
        sizes = [(next(iter(cells_a)), next(iter(cells_b)))]
    else:
        sizes = [(size, size) for size in cells_a if size in cells_b]
    alone = [[f"{size or 0:,} Services" for size in side if size not in {pair[at] for pair in sizes}]
             for at, side in enumerate((cells_a, cells_b))]  # fmt: skip
    if not sizes:
        raise CompareError(f"no number of Services is in both {file_a} and {file_b}", "sweep over the same numbers")
    a = [each for size, _ in sizes for each in cells_a[size]]
    b = [each for _, size in sizes for each in cells_b[size]]
    overruled = _check_comparable(a, b, allowed)
    rng, hashed = Random(seed), key_a == key_b and key_a[0] != "unknown" and not is_ordered(key_a[0])  # noqa: S311
    lookups = []
    for x, y in sizes:
        probes = [[probe for each in cell if (probe := each.main_probe)] for cell in (cells_a[x], cells_b[y])]
        what = "lookup" if x is None or x != y else f"{x:,} Services"
        lookups.append(contrast(what, probes[0], probes[1], rng, (x, y), len(sizes), hashed))
    calls: tuple[Contrast, ...] = ()
    if len(sizes) == 1 and key_a == key_b:
        calls = _contrast_calls(a, b, rng, hashed)
    series, where = _cross(a, b, seed) if len(sizes) > 1 else ((), None)
    units = dict.fromkeys(probe.unit for each in (a[0], b[0]) if (probe := each.main_probe))
    known = [each.differs for each in lookups]
    found = Comparison(
        Side(names[0], file_a, *key_a, len(a)),
        Side(names[1], file_b, *key_b, len(b)),
        unit=" against ".join(units),
        emulated=bool(a[0].run.emulated),
        changed=_find_changed(a, b),
        overruled=overruled,
        unknown=_find_unknown(a, b),
        lookups=tuple(lookups),
        calls=calls,
        series=series,
        crossing=where,
        alarms=ALARMS,
        differs=True if any(known) else None if None in known else False,
        worse_pct=_find_worse(lookups),
        only=(*only, *(f"{each} only in {name}" for name, side in zip("AB", alone, strict=True) for each in side)),
        missing=tuple(f"{_say_key(key_a)} at {each}" for each in alone[0]),
    )
    return replace(found, statement=state(found))


def _check_comparable(a: Sequence[Result], b: Sequence[Result], allowed: Collection[str]) -> dict[str, str]:
    """Find the reasons not to compare; raise them, but for those that are allowed."""
    found: dict[str, str] = {}
    for name, side in (("A", a), ("B", b)):
        for result in side:
            for reason, what in find_flaws(result).items():
                found.setdefault(reason, f"of {name}: {what}")
    for result in (*a[1:], *b):
        for reason, what in find_differences(a[0], result).items():
            found.setdefault(reason, what)
        probes = [each.main_probe for each in (a[0], result)]
        if (a[0].run.mode, a[0].run.backend) == (result.run.mode, result.run.backend):
            words = [f"{'lookups in' if each.lookup else 'calls of'} {each.engine}" for each in probes if each]
            if len(set(words)) > 1:
                found.setdefault("probe", " and ".join(words))
    refused = [f"{reason} ({what})" for reason, what in found.items() if reason not in allowed]
    if refused:
        names = ",".join(reason for reason in found if reason not in allowed)
        raise CompareError(f"must not be compared: {'; '.join(refused)}", f"--allow {names} compares them all the same")
    return found


def _contrast_calls(a: Sequence[Result], b: Sequence[Result], rng: Random, hashed: bool) -> tuple[Contrast, ...]:
    """Compare the other engine calls, which do not decide, one by one."""
    found: list[dict[str, list[Probe]]] = []
    for side in (a, b):
        calls: dict[str, list[Probe]] = {}
        for result in side:
            for probe in result.probes:
                if probe is not result.main_probe:
                    chain = probe.chain if probe.chain != probe.hook else None
                    name = " ".join(filter(None, (probe.table or probe.engine, chain, probe.hook)))
                    calls.setdefault(name, []).append(probe)
        found.append(calls)
    return tuple(contrast(name, found[0][name], found[1][name], rng, hashed=hashed)
                 for name in found[0] if name in found[1])  # fmt: skip


def _find_changed(a: Sequence[Result], b: Sequence[Result]) -> dict[str, tuple[str, str]]:
    """Return what else differs: the point of the comparison, or what may explain its outcome."""

    def facts(results: Sequence[Result]) -> dict[str, str]:
        every = [
            {
                **{name: getattr(each.run, name) for name in ("mode", "backend", "position", "chain_length", "path")},
                **{name: getattr(each.run, name) for name in ("services", "duration_s", "kproxylat", "cut_short")},
                "target": target_text(each),
                "rate_pps": each.traffic.rate_pps if each.traffic else None,
            }
            for each in results
        ]
        return {name: ", ".join(dict.fromkeys(str(each[name]) for each in every)) for name in every[0]}

    old, new = facts(a), facts(b)
    return {name: (old[name], new[name]) for name in old if old[name] != new[name]}


def _find_unknown(a: Sequence[Result], b: Sequence[Result]) -> tuple[str, ...]:
    """Return which of the facts that speak against comparing neither side tells."""
    run = a[0].run
    facts = {"clock": run.clock, "probe": run.probe_kind, "kernel": run.kernel, "bpftrace": run.bpftrace}
    facts |= {"mitigations": "known" if run.mitigations else None, "script": run.script_sha256}
    facts["books"] = "known" if all(each.accounting for each in (*a, *b)) else None
    return tuple(name for name, fact in facts.items() if fact is None)


def _cross(a: Sequence[Result], b: Sequence[Result], seed: int) -> tuple[tuple[Series, ...], Interval | None]:
    """Put a line through each side, and find where they meet; None where that is not certain."""
    series = [found for side in (a, b) for found in build_series(side, seed)]
    lines = [(each.per_service.estimate, each.base.estimate) for each in series if each.per_service and each.base]
    if len(lines) != 2:
        return tuple(series), None
    if all(each.unit == "instructions" for each in series):
        return tuple(series), find_crossing(*series)
    where = crossing(*lines)
    if where is None:
        return tuple(series), None
    rng = Random(seed)  # noqa: S311
    drawn = [draw_lines(*draw_medians(next(iter(group_results(side).values())), rng)) for side in (a, b)]
    places = [crossing(x, y) for x, y in zip(*drawn, strict=True)]
    met = [place for place in places if place is not None]
    if len(met) < (1 - ALARMS / 2) * len(places):
        return tuple(series), None
    found = Interval(where, *bounds(met, 1 - ALARMS))
    return tuple(series), found if agrees(series[0], series[1], found) else None


def _find_worse(lookups: Sequence[Contrast]) -> float | None:
    """Return by how many percent B certainly costs more than A, where that is most."""
    if any(each.differs is None for each in lookups):
        return None
    certain = [100 * (each.main.ratio.lo - 1) for each in lookups if each.differs and each.main.ratio]
    return max([0.0, *certain])
