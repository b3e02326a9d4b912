"""Where packets got lost: the kernel's own counters, by reason. Pure but for :func:`read_drops`.

The counters are those of the node's network namespace, so that on a real node other traffic moves them, too; the
backlog's is the whole machine's. The reasons of kfree_skb take a probe of their own: ``run --others``.
"""

from __future__ import annotations

from collections.abc import Iterable

from kproxylat.node.network import BACKEND_LINK, Network
from kproxylat.system.processes import run

NODE_FILES = (
    "/proc/net/dev",
    "/proc/net/netstat",
    "/proc/net/snmp",
    "/proc/net/snmp6",
    "/proc/net/softnet_stat",
    "/proc/net/stat/nf_conntrack",
    "/proc/sys/net/netfilter/nf_conntrack_count",
)
BACKLOG = "backlog"
CLIENT_LINK = "link pod0"
DROPS = {
    CLIENT_LINK: "dev pod0",
    f"link {BACKEND_LINK}": f"dev {BACKEND_LINK}",
    BACKLOG: "softnet_stat dropped",
    "conntrack drop": "nf_conntrack drop",
    "conntrack early_drop": "nf_conntrack early_drop",
    "conntrack insert_failed": "nf_conntrack insert_failed",
    "rp_filter": "TcpExt IPReversePathFilter",
    "no route": "IpExt InNoRoutes",
    "IP InAddrErrors": "Ip InAddrErrors",
    "IP InDiscards": "Ip InDiscards",
    "IP OutDiscards": "Ip OutDiscards",
}
"""Reason -> the counter: file or section, and field. "link": what the sending end of a veth pair could not hand over,
also because the other end's backlog was full. "conntrack drop": mostly a full table."""
IPV6_DROPS = {
    "rp_filter": "",
    "no route": "Ip6InNoRoutes",
    "IP InAddrErrors": "Ip6InAddrErrors",
    "IP InDiscards": "Ip6InDiscards",
    "IP OutDiscards": "Ip6OutDiscards",
}
"""The same reasons, where IPv6 has another counter, or none."""
NO_LOSS = frozenset({BACKLOG, "conntrack early_drop"})
"""Reasons that lose none of our packets, or that a link's drops tell already; early_drop evicts an older flow."""
OVERLOAD = frozenset({CLIENT_LINK, f"link {BACKEND_LINK}", BACKLOG, "conntrack drop", "conntrack insert_failed"})
"""Reasons that a lower rate mends."""
ENTRIES = "entries"


def read_drops(made: Network) -> dict[str, int]:
    """Return the counters of :data:`DROPS` and of our family that this kernel has, and how many flows conntrack holds
    (``ENTRIES``).
    """
    found = parse_counters(run("grep", "", *NODE_FILES, netns=made.node, ok=(0, 2)).splitlines())
    if made.client:
        found |= parse_counters(run("grep", "", "/proc/net/dev", netns=made.client).splitlines())
    rows = DROPS | (IPV6_DROPS if made.family == 6 else {})
    counts = {reason: found[counter] for reason, counter in rows.items() if counter in found}
    return counts | ({ENTRIES: found["nf_conntrack_count"]} if "nf_conntrack_count" in found else {})


def parse_counters(lines: Iterable[str]) -> dict[str, int]:
    """Read what ``grep "" FILE...`` prints of the kernel's counters, with or without ``FILE:`` before each line.

    Samples (Linux 6.1)::

        /proc/net/dev:  pod0:  1000  10    0    0    0     0          0         0     2000    20    0    3    0 ...
        /proc/net/netstat:TcpExt: SyncookiesSent ... IPReversePathFilter ...
        /proc/net/netstat:TcpExt: 0 ... 300 ...
        /proc/net/snmp6:Ip6InNoRoutes                           	12
        /proc/net/softnet_stat:0000a1b2 00000000 00000003 ...
        /proc/net/stat/nf_conntrack:entries  clashres found new ... insert insert_failed drop early_drop ...
        /proc/net/stat/nf_conntrack:0000012c  00000000 ...
        /proc/sys/net/netfilter/nf_conntrack_count:300

    :return: ``"dev LINK"`` its transmit drops, ``"softnet_stat dropped"``, ``"nf_conntrack FIELD"`` (all processors),
        ``"TcpExt FIELD"`` and the like, ``"Ip6FIELD"``, ``"nf_conntrack_count"``.
    """
    counts: dict[str, int] = {}
    names: dict[str, list[str]] = {}
    for line in lines:
        path, _, text = line.partition(":") if line.startswith("/") else ("/proc/net/dev", "", line)
        file, words = path.rpartition("/")[2], text.split()
        if not words:
            continue
        if file == "dev" and len(words) == 17:
            counts[f"dev {words[0].rstrip(':')}"] = int(words[12])
        elif file == "softnet_stat":
            counts["softnet_stat dropped"] = counts.get("softnet_stat dropped", 0) + int(words[1], 16)
        elif file == "nf_conntrack_count":
            counts[file] = int(words[0])
        elif file == "snmp6":
            counts[words[0]] = int(words[1])
        elif file in ("netstat", "snmp", "nf_conntrack"):
            section = words.pop(0).rstrip(":") if file != "nf_conntrack" else file
            base = 16 if file == "nf_conntrack" else 10
            if section not in names:
                names[section] = words
                continue
            for name, value in zip(names[section], words, strict=False):
                counts[f"{section} {name}"] = counts.get(f"{section} {name}", 0) + int(value, base)
    return counts
