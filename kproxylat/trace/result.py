"""The part of a result that the trace alone gives: its probes, maps and quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from hashlib import sha256

from kproxylat import __version__
from kproxylat.modes import Mode
from kproxylat.results import Accounting, Map, Probe, Quality, Result, Run
from kproxylat.system import kernel
from kproxylat.trace.bpftrace import Tracer, count_lost
from kproxylat.trace.dump import parse_dump
from kproxylat.trace.engine import find_version
from kproxylat.trace.percentiles import add_to_maps
from kproxylat.trace.probes import build_path, build_probes, split_maps


def assemble(
    mode: Mode, kind: str, started: datetime, script: str, tracer: Tracer, reasons: Mapping[int, str] | None = None
) -> Result:
    """Parse what bpftrace printed and build a result from it.

    :param script: the script of :attr:`kproxylat.trace.plan.Plan.anonymous`: equal if two results can be compared.
    :param reasons: number -> name of the reasons for which the kernel frees packets; None unless the script counts
        other traffic.
    """
    clock, _ = kernel.detect_clock()
    maps = parse_dump("".join(tracer.stdout))
    own, users_maps = split_maps(maps)
    probes = build_probes(own, mode, clock)
    return Result(
        replace(
            describe_run(mode, kind, started),
            bpftrace=find_version()[0],
            script_sha256=sha256(script.encode()).hexdigest(),
        ),
        None,
        probes,
        build_path(probes, clock),
        accounting=None if reasons is None else count_rest(maps, reasons),
        quality=judge(maps, kind, probes, tracer),
        maps=add_to_maps(users_maps),
    )


def describe_run(mode: Mode, kind: str, started: datetime) -> Run:
    """Return what is known of any run: when, where, and in which mode.

    :param kind: the kind of the probes, "fentry" or "kprobe"; "none" if nothing is traced.
    """
    clock, emulated = kernel.detect_clock()
    return Run(
        started=started.isoformat(timespec="seconds"),
        kproxylat=__version__,
        mode=mode.name,
        backend=mode.backend,
        origin=mode.origin,
        clock=clock,
        emulated=emulated,
        kernel=kernel.release(),
        probe_kind=kind,
        mitigations=kernel.detect_mitigations(),
        processor=kernel.describe_processor() or None,
    )


def count_rest(maps: Mapping[str, Map], reasons: Mapping[int, str]) -> Accounting:
    """Return an accounting of the other traffic that the trace has counted; it is not closed."""
    entries = maps["reasons"].entries if "reasons" in maps else ()
    freed = {reasons.get(entry.key[0], str(entry.key[0])): int(entry.value) for entry in entries} if reasons else None
    calls = _read_count(maps, "others") or 0
    return Accounting(None, None, None, None, None, None, closed=False, other_calls=calls, freed=freed)


def judge(maps: Mapping[str, Map], kind: str, probes: tuple[Probe, ...], tracer: Tracer) -> Quality:
    """Judge the quality of a trace: lost events, missed calls, full maps, and warnings.

    :param maps: all maps that the script printed.
    :param kind: the kind of its probes, "fentry" or "kprobe".
    """
    output = "".join(tracer.stdout) + "".join(tracer.stderr)
    full = tuple(f"@{name}" for name, content in maps.items() if len(content.entries) >= tracer.map_limit)
    # A call whose exit was never seen leaves its time of entry behind.
    missed = sum(len(maps[name].entries) for name in ("start", "begun") if name in maps)
    missed += _read_count(maps, "missed") or 0
    warnings = [line.strip() for line in output.splitlines() if "WARNING" in line and "RLIMIT" not in line][:20]
    if tracer.forgotten:
        warnings.append(
            f"bpftrace printed too much to be kept: {tracer.forgotten} lines, the first, are in the log alone"
        )
    if tracer.unlogged:
        warnings.append(f"bpftrace printed too much to be logged: {tracer.unlogged} lines, the last, are not logged")
    if full:
        warnings.append(f"full maps ({tracer.map_limit} keys): {', '.join(full)}; events are missing")
    if probes and not any(probe.lookup for probe in probes):
        warnings.append("no call was a Service lookup: are these the rules of the mode that was named?")
    warnings += check_envelopes(probes)
    missed += tracer.skipped or 0
    known = missed if missed or kind == "kprobe" or tracer.skipped is not None else None
    return Quality(count_lost(output), known, _read_count(maps, "strays"), full, tuple(warnings))


def _read_count(maps: Mapping[str, Map], name: str) -> int | None:
    """Return the count of a map without keys; None if it was not printed, or a user's map has other contents."""
    entries = maps[name].entries if name in maps else ()
    value = entries[0].value if len(entries) == 1 and entries[0].key == () else None
    return value if isinstance(value, int) else None


def check_envelopes(probes: Sequence[Probe]) -> tuple[str, ...]:
    """Return a warning if the lookup and the whole hook around it were not traced equally often."""
    return tuple(
        f"the whole hook {whole.hook} was traced {whole.count} times, the lookup {lookup.count}"
        for lookup in probes
        for whole in probes
        if lookup.lookup and whole.envelope and whole.hook == lookup.hook and whole.count != lookup.count
    )
