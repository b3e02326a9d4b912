"""Packet accounting (the books): every packet sent is compared with what independent counters counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from kproxylat.modes import Mode
from kproxylat.node.drops import CLIENT_LINK, DROPS, NO_LOSS, OVERLOAD
from kproxylat.node.service_rule import ServiceRule
from kproxylat.results import Accounting, Quality, Result, Traffic
from kproxylat.traffic.generators import RATE_TOLERANCE


def check_rate(traffic: Traffic, clock: str | None) -> tuple[str, ...]:
    """Return warnings if packets were not sent or the rate was missed, with a rate that can be reached.

    :param clock: "ns" or "instructions"; on the latter the rate does not matter.
    """
    warnings = []
    if traffic.sent is not None and traffic.asked is not None and traffic.sent < traffic.asked:
        warnings.append(f"{traffic.sent} of {traffic.asked} packets were sent")
    pps, rate_pps = traffic.pps, traffic.rate_pps if clock != "instructions" else None
    if pps is not None and rate_pps and abs(pps / rate_pps - 1) > RATE_TOLERANCE:
        slower = f"; try {_round_down(pps)} pps" if pps < rate_pps else ""
        warnings.append(f"asked for {rate_pps} pps, reached {pps:.0f}{slower}")
    return tuple(warnings)


def check_losses(traffic: Traffic, books: Accounting) -> tuple[str, ...]:
    """Return a warning if packets were lost to load, with a rate at which they should not be.

    Without a count of the packets that passed it returns none: the drops may be other traffic's.
    """
    lost = {name: count for name, count in (books.drops or {}).items() if name in OVERLOAD and count}
    passed = [count for count in (books.lookups, books.delivered) if count is not None]
    if not lost or not passed or not traffic.sent or not traffic.pps or min(passed) >= traffic.sent:
        return ()
    slower = _round_down(traffic.pps * min(passed) / traffic.sent)
    drops = ", ".join(f"{name} {count}" for name, count in lost.items())
    return (f"packets were lost ({drops}) at {traffic.pps:.0f} pps; try {slower} pps",)


def _round_down(pps: float) -> int:
    """Take a tenth off a rate that was reached, as a margin, and round it down to two digits."""
    slower = int(pps * 0.9)
    unit: int = 10 ** max(len(str(slower)) - 2, 0)
    return max(slower // unit * unit, 1)


@dataclass(frozen=True)
class Snapshot:
    """The counters at one moment: the target's rule, and the packets counted in namespaces and by the kernel."""

    rule: ServiceRule
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Expectation:
    """The count that a counter should have, and the bounds of the count that it has.

    :param expected: None: unknown, because the number of packets sent is unknown.
    :param low: counted while the probes were certainly attached; equal to ``high`` if all packets are kproxylat's.
    :param high: counted in all.
    """

    name: str
    expected: int | None
    low: int
    high: int

    @property
    def holds(self) -> bool:
        """Whether the expected count lies within the bounds."""
        return self.expected is not None and self.low <= self.expected <= self.high

    @property
    def nearest(self) -> int:
        """The count within the bounds that is nearest to the expected one."""
        return min(max(self.expected or 0, self.low), self.high)


def _tally(before: Snapshot, after: Snapshot) -> dict[str, int]:
    """Return the counts between two moments by counter, without counters that are not available."""
    tally = {name: count - before.counts.get(name, 0) for name, count in after.counts.items()}
    if before.rule.packets is not None and after.rule.packets is not None:
        tally["rule hits"] = after.rule.packets - before.rule.packets
    if "untranslated" in tally:
        tally["untranslated or rejected"] = tally["untranslated"] + tally.get("rejected", 0)
    return tally


def _attribute_masqueraded(tally: dict[str, int], total: int | None) -> dict[str, int]:
    """Count masqueraded packets as delivered; but as other senders' if all of the run's own arrived unmasqueraded."""
    if "masqueraded" not in tally:
        return tally
    if total is not None and tally["delivered"] >= total:
        return tally | {"others": tally["others"] + tally["masqueraded"], "masqueraded": 0}
    return tally | {"delivered": tally["delivered"] + tally["masqueraded"]}


def reconcile(
    mode: Mode,
    result: Result,
    before: Snapshot,
    after: Snapshot,
    inner: tuple[Snapshot, Snapshot] | None = None,
    broken: Iterable[str] = (),
    counts_calls: bool = True,
) -> Accounting:
    """Compare the counters: the generator's, the probes', the rules' and the namespaces'.

    On the hit path every packet sent is looked up, hits the target's rule and is delivered; on the miss path it is
    looked up, and leaves untranslated or is rejected.

    :param before: the counters before the probes were attached; ``after``: after they were detached.
    :param inner: if others send: the counters just after the probes were attached, and just before they were detached.
        The number of packets sent is unknown then; the lookups must lie between the counts of ``inner`` and in all.
    :param broken: links of the lab that are down or gone.
    :param counts_calls: whether the script counts the engine's calls, as kproxylat's template does.
    :return: the accounting; a counter that is not available is None and is not compared. If there
        is none, ``closed`` is None.
    """
    sent = result.traffic.sent if result.traffic else None
    lookups = result.lookup.count if result.lookup else 0 if counts_calls else None
    tally, is_hit = _tally(before, after), before.rule.path == "hit"
    if CLIENT_LINK in tally and result.traffic and result.traffic.generator == "pktgen":
        # Pktgen sends again what the link did not take, and counts it as an error.
        tally[CLIENT_LINK] = max(tally[CLIENT_LINK] - (result.traffic.errors or 0), 0)
    controls = _take_off_controls(tally, result)
    total = lookups if inner else sent
    least = _attribute_masqueraded(_tally(*inner) if inner else tally, total)
    tally = _attribute_masqueraded(tally, total)
    expected = {
        "lookups": total if is_hit or mode.misses_looked_up else 0,
        "rule hits": (total or 0) + _count_own(result) if is_hit else 0,
        "delivered": total if is_hit else 0,
        **({"strayed": 0} if controls else {}),
        "untranslated or rejected": 0 if is_hit else total,
    }
    counted = tally if lookups is None else tally | {"lookups": lookups}
    rows = [
        Expectation(name, count, least.get(name, counted[name]), counted[name])
        for name, count in expected.items()
        if name in counted
    ]
    wrong = [f"{row.name} {row.high} instead of {row.expected}" for row in rows if not row.holds]
    if wrong and total is not None:
        causes = _explain(result, least | {row.name: row.nearest for row in rows}, total, is_hit)
        causes += [f"link {link} is down or gone" for link in broken]
        wrong[-1] += f" ({', '.join(causes) or 'unexplained'})"
    if (before.rule.position, before.rule.chain_length) != (after.rule.position, after.rule.chain_length):
        wrong.append("kube-proxy's rules changed during the run")
    if inner and not lookups:
        wrong.append("no packet of the target was seen")
    if not wrong:
        # Others' calls that are under way when the probes are detached are missed, and no loss.
        wrong = _list_losses(replace(result.quality, missed_probes=None) if inner else result.quality)
    return Accounting(
        sent,
        lookups,
        tally.get("rule hits"),
        tally.get("delivered"),
        tally.get("untranslated"),
        tally.get("rejected"),
        closed=(not wrong and total is not None) if rows or wrong else None,
        difference="; ".join(wrong) or None,
        entries=tally.get("entries"),
        strayed=tally.get("strayed"),
        others=tally.get("others"),
        drops={name: tally[name] for name in DROPS if name in tally} or None,
        other_calls=result.accounting.other_calls if result.accounting else None,
        freed=result.accounting.freed if result.accounting else None,
        delivered_masqueraded=tally.get("masqueraded"),
    )


def _take_off_controls(tally: dict[str, int], result: Result) -> bool:
    """Take the control packets off what the backend counted; return whether there were some.

    Those to the endpoint itself are delivered, those to no Service arrive as strayed ones.
    """
    sent = result.send_time.sent if result.send_time else {}
    for name, kind in (("delivered", "endpoint"), ("strayed", "no_service")):
        if name in tally:
            tally[name] -= sent.get(kind, 0)
    return len(sent) > 1


def _count_own(result: Result) -> int:
    """Count the node's own packets to the target: they hit the same rule as a pod's, from OUTPUT."""
    lookup = result.lookup
    if not lookup or not lookup.table or lookup.hook == "OUTPUT":
        return 0
    return sum(probe.count for probe in result.probes if (probe.table, probe.hook) == (lookup.table, "OUTPUT"))


def _list_losses(quality: Quality) -> list[str]:
    """Name what the probes missed or could not keep: the lookups may be whole, and other hooks' calls not."""
    reasons = [f"map {name} was full" for name in quality.full_maps]
    reasons += [f"{quality.missed_probes} calls missed, or without an exit"] if quality.missed_probes else []
    return reasons + ([f"{quality.lost_events} lost events"] if quality.lost_events else [])


def _explain(result: Result, counted: Mapping[str, int], total: int, is_hit: bool) -> list[str]:
    """Name the counters that explain why counts differ, and the number of packets that none explains."""
    quality, lookups = result.quality, counted.get("lookups")
    end = counted.get("delivered" if is_hit else "untranslated or rejected")
    hits = counted.get("rule hits", 0) - _count_own(result) if is_hit else 0
    causes, unexplained = [], 0
    lost = total - (max(lookups or 0, hits) if end is None else end)
    if lost > 0:
        drops = {name: counted[name] for name in DROPS if counted.get(name, 0) > 0}
        strayed = counted.get("strayed", 0)
        explained = sum(count for name, count in drops.items() if name not in NO_LOSS) + strayed
        explained += counted.get("untranslated or rejected" if is_hit else "delivered", 0)
        causes += [f"{name} {count}" for name, count in drops.items()]
        causes += [f"{strayed} strayed to another address or port"] if strayed else []
        unexplained += max(lost - explained, 0)
    untraced = 0 if lookups is None else min(max(hits, end or 0), total) - lookups
    if untraced > 0:
        reasons = _list_losses(quality)
        causes += reasons
        unexplained += 0 if reasons else untraced
    beyond = max(hits, end or 0, lookups or 0) - total
    if beyond > 0:
        others = counted.get("others", 0)
        causes += [f"{others} of other senders"] if others else []
        unexplained += max(beyond - others, 0)
    return causes + ([f"{unexplained} unexplained"] if unexplained else [])
