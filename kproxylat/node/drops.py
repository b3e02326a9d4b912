"""The kernel's counters of lost packets, by reason.

Most count for the node's network namespace, so that other traffic on a real node counts, too; that of the backlog
counts for the whole machine. The reasons of kfree_skb need a probe: ``run --others``.
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
"""Reason -> the counter: file or section, and field. "link": packets that the sending end of a veth pair could not hand
over, also because the backlog of the other end was full. "conntrack drop": mostly a full table."""
IPV6_DROPS = {
    "rp_filter": "",
    "no route": "Ip6InNoRoutes",
    "IP InAddrErrors": "Ip6InAddrErrors",
    "IP InDiscards": "Ip6InDiscards",
    "IP OutDiscards": "Ip6OutDiscards",
}
"""Reason -> the counter of IPv6, where it differs; "" if it has none."""
NO_LOSS = frozenset({BACKLOG, "conntrack early_drop"})
"""Reasons that do not add to the losses: the drops of a link include the backlog's; early_drop evicts an older flow."""
OVERLOAD = frozenset({CLIENT_LINK, f"link {BACKEND_LINK}", BACKLOG, "conntrack drop", "conntrack insert_failed"})
"""Reasons that a lower rate avoids."""
ENTRIES = "entries"
"""The key of :func:`read_drops` for the number of connections that conntrack holds."""


def read_drops(network: Network) -> dict[str, int]:
    """Return reason -> packets, for the counters of :data:`DROPS` that this kernel has, and :data:`ENTRIES`.

    :raises CommandError: grep(1) cannot read them.
    """
    counters = parse_counters(run("grep", "", *NODE_FILES, netns=network.node, ok=(0, 2)).splitlines())
    if network.client:
        counters |= parse_counters(run("grep", "", "/proc/net/dev", netns=network.client).splitlines())
    rows = DROPS | (IPV6_DROPS if network.family == 6 else {}) | {ENTRIES: "nf_conntrack_count"}
    return {reason: counters[name] for reason, name in rows.items() if name in counters}


def parse_counters(lines: Iterable[str]) -> dict[str, int]:
    """Parse the kernel's counters as ``grep "" FILE...`` prints them, with or without ``FILE:`` before each line.

    Samples (Linux 6.1)::

        /proc/net/dev:  pod0:  1000  10    0    0    0     0          0         0     2000    20    0    3    0 ...
        /proc/net/netstat:TcpExt: SyncookiesSent ... IPReversePathFilter ...
        /proc/net/netstat:TcpExt: 0 ... 300 ...
        /proc/net/snmp6:Ip6InNoRoutes                           	12
        /proc/net/softnet_stat:0000a1b2 00000000 00000003 ...
        /proc/net/stat/nf_conntrack:entries  clashres found new ... insert insert_failed drop early_drop ...
        /proc/net/stat/nf_conntrack:0000012c  00000000 ...
        /proc/sys/net/netfilter/nf_conntrack_count:300

    :return: counter -> value: ``"dev LINK"`` (transmit drops), ``"softnet_stat dropped"``, ``"softnet_stat packets"``
        and ``"nf_conntrack FIELD"`` (sums over the processors), ``"TcpExt FIELD"`` and the like, ``"Ip6FIELD"``,
        ``"nf_conntrack_count"``.
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
            counts["softnet_stat packets"] = counts.get("softnet_stat packets", 0) + int(words[0], 16)
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
