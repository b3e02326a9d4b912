"""A bill of live traffic, from two windows."""

from __future__ import annotations

from kproxylat.analysis.bill import IPV6, NO_SERVICE, Bill, Count, Usage, Window, add_up
from kproxylat.analysis.readings import compare_counter
from kproxylat.results import Bounded, Bucket, Histogram

NAMES = {"10.96.0.10:53/udp": "kube-system/kube-dns:dns", "10.96.0.9:80/tcp": "default/web:http"}


def count(lookups: int, ns: int) -> Count:
    """Return lookups that took about the same time."""
    mean = ns // max(lookups, 1)
    low = 1 << (mean.bit_length() - 1) if mean else 0
    return Count(lookups, ns, Histogram((Bucket(low, low * 2, lookups),)) if lookups else Histogram())


def window(counts: dict[str, Count], seconds: float = 1, shift: int = 0, rest: int = 0) -> Window:
    """Return a window with all of these lookups, and others that found the map full."""
    total = Count(sum(each.lookups for each in counts.values()) + rest, sum(each.ns for each in counts.values()) + rest)
    passed = Bounded(total.lookups << shift, (total.lookups << shift) - 5, (total.lookups << shift) + 5)
    return Window(0, seconds, seconds, shift, total, counts, 0.001, passed)


WINDOWS = (
    window({"10.96.0.10:53/udp": count(600, 1_200_000), "10.96.0.9:80/tcp": count(100, 250_000)}, 2),
    window({"10.96.0.10:53/udp": count(290, 600_000), NO_SERVICE: count(210, 1_900_000), IPV6: count(1, 900),
            "10.0.0.1:30080/tcp": count(9, 20_000)}, 2, rest=10),
)  # fmt: skip


def make_bill(windows: tuple[Window, ...] = WINDOWS) -> Bill:
    """Return the bill of these windows."""
    rows, rate, day = add_up(windows, NAMES)
    usage = Usage(True, 0.01, 0.002, 0.01, 20_000, 1.2)
    check = compare_counter(windows, "the rules that jump to KUBE-SERVICES")
    return Bill(
        "2026-11-28T12:00:00+00:00", "iptables", "nft", "6.1.0", "v0.17.0", 60.0, len(windows),
        sum(each.seconds for each in windows), 0.07, sum(each.total.lookups for each in windows), rate, day,
        sum(row.cpu_ms_per_s for row in rows if row.key == NO_SERVICE) * 86.4, rows, usage, check,
    )  # fmt: skip
