"""What came out: the result put together, its quality judged, its books closed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256

from kproxylat import __version__, kernel
from kproxylat.bpftrace import Tracer, count_lost, find_version
from kproxylat.detect import ServiceRule
from kproxylat.dump import parse_dump
from kproxylat.model import Accounting, Map, Probe, Quality, Result, Run, Traffic
from kproxylat.modes import Mode
from kproxylat.probes import OWN_MAPS, build_path, build_probes
from kproxylat.traffic import RATE_TOLERANCE


def assemble(mode: Mode, started: datetime, script: str, tracer: Tracer) -> Result:
    """Parse what bpftrace printed and put the result together, as far as the trace alone goes."""
    clock, emulated = kernel.detect_clock()
    maps = parse_dump("".join(tracer.stdout))
    probes = build_probes(maps, mode, clock)
    about = Run(
        started=started.isoformat(timespec="seconds"),
        kproxylat=__version__,
        mode=mode.name,
        backend=mode.backend,
        clock=clock,
        emulated=emulated,
        kernel=kernel.release(),
        bpftrace=find_version()[0],
        probe_kind="fentry",
        script_sha256=sha256(script.encode()).hexdigest(),
        mitigations=kernel.detect_mitigations(),
    )
    others = {name: each for name, each in maps.items() if name not in OWN_MAPS}
    return Result(about, None, probes, build_path(probes, clock), quality=judge(maps, probes, tracer), maps=others)


def judge(maps: Mapping[str, Map], probes: tuple[Probe, ...], tracer: Tracer) -> Quality:
    """Look for whatever may have spoiled the numbers."""
    said = "".join(tracer.stdout) + "".join(tracer.stderr)
    full = tuple(f"@{name}" for name, each in maps.items() if len(each.entries) >= tracer.map_limit)
    # A call whose exit was never seen leaves its time of entry behind.
    missed = len(maps["start"].entries) if "start" in maps else 0
    warnings = [line.strip() for line in said.splitlines() if "WARNING" in line and "RLIMIT" not in line][:20]
    if full:
        warnings.append(f"full maps ({tracer.map_limit} keys): {', '.join(full)}; events are missing")
    if probes and not any(probe.lookup for probe in probes):
        warnings.append("no call was a Service lookup: are these the rules of the mode that was named?")
    return Quality(count_lost(said), missed, full, tuple(warnings))


def check_rate(traffic: Traffic) -> tuple[str, ...]:
    """Return a warning if the rate was not kept."""
    if traffic.pps is not None and abs(traffic.pps / traffic.rate_pps - 1) > RATE_TOLERANCE:
        return (f"asked for {traffic.rate_pps} pps, reached {traffic.pps:.0f}",)
    return ()


def reconcile(result: Result, before: ServiceRule, after: ServiceRule, counts: Mapping[str, int]) -> Accounting:
    """Hold the counters against each other: pktgen's, the probes', the rules' and the namespaces'.

    On the hit path every packet sent is looked up, hits the target's rule and is delivered; on the miss path it is
    looked up, and leaves untranslated or is rejected.

    :param before: the target's rule before the packets, ``after``: after them.
    :param counts: packets counted in our namespaces, by name.
    :return: a count that cannot be had is None and is not held against the others.
    """
    sent = result.traffic.sent if result.traffic else None
    lookups = result.lookup.count if result.lookup else 0
    hits = None if before.packets is None or after.packets is None else after.packets - before.packets
    delivered, untranslated, rejected = (counts.get(name) for name in ("delivered", "untranslated", "rejected"))
    astray = None if untranslated is None else untranslated + (rejected or 0)
    is_hit = before.path == "hit"
    expected = [
        ("lookups", lookups, sent),
        ("rule hits", hits, sent if is_hit else 0),
        ("delivered", delivered, sent if is_hit else 0),
        ("untranslated or rejected", astray, 0 if is_hit else sent),
    ]
    wrong = [f"{name} {count} instead of {wanted}" for name, count, wanted in expected if count not in (None, wanted)]
    if (before.position, before.chain_length) != (after.position, after.chain_length):
        wrong.append("kube-proxy's rules changed during the run")
    closed = not wrong and sent is not None
    difference = "; ".join(wrong) or None
    return Accounting(sent, lookups, hits, delivered, untranslated, rejected, closed, difference)
