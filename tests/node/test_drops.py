"""The kernel's counters of lost packets, by reason."""

from __future__ import annotations

import pytest

from kproxylat.node import drops
from kproxylat.node.drops import DROPS, NO_LOSS, OVERLOAD, parse_counters, read_drops
from kproxylat.node.network import Network

# As Linux 6.1 prints them, most fields left out.
NODE = """\
/proc/net/dev:Inter-|   Receive                                                |  Transmit
/proc/net/dev: face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
/proc/net/dev:    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
/proc/net/dev:kpl-be:      42       1    0    9    0     0          0         0   120000    2000    0   17    0     0       0          0
/proc/net/netstat:TcpExt: SyncookiesSent IPReversePathFilter TCPTimeouts
/proc/net/netstat:TcpExt: 5 300 7
/proc/net/netstat:IpExt: InNoRoutes InTruncatedPkts
/proc/net/netstat:IpExt: 11 0
/proc/net/snmp:Ip: Forwarding InAddrErrors InDiscards OutDiscards
/proc/net/snmp:Ip: 1 2 3 4
/proc/net/softnet_stat:0000a1b2 00000003 00000001 00000000
/proc/net/softnet_stat:0000a1b2 0000000a 00000000 00000000
/proc/net/stat/nf_conntrack:entries  clashres found insert insert_failed drop early_drop
/proc/net/stat/nf_conntrack:0000012c  00000000 00000000 00000000 00000002 00000010 00000001
/proc/net/stat/nf_conntrack:0000012c  00000000 00000000 00000000 00000003 00000001 00000000
/proc/sys/net/netfilter/nf_conntrack_count:300
"""  # noqa: E501
CLIENT = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
  pod0:       0       0    0    0    0     0          0         0   120000    2000    0   50    0     0       0          0
"""  # noqa: E501


def test_every_reason_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def grep(*argv: str, netns: str | None, ok: tuple[int, ...] = (0,)) -> str:
        assert argv[:2] == ("grep", "")
        assert ok in ((0, 2), (0,))
        return {"node": NODE, "client": CLIENT}[netns or ""]

    monkeypatch.setattr(drops, "run", grep)
    assert read_drops(Network("client", "node", "backend")) == {
        "link pod0": 50,
        "link kpl-be": 17,
        "backlog": 13,
        "conntrack drop": 17,
        "conntrack early_drop": 1,
        "conntrack insert_failed": 5,
        "rp_filter": 300,
        "no route": 11,
        "IP InAddrErrors": 2,
        "IP InDiscards": 3,
        "IP OutDiscards": 4,
        "entries": 300,
    }


def test_missing_counters_are_left_out() -> None:
    lines = [line for line in NODE.splitlines() if "conntrack" not in line]
    assert not [name for name in parse_counters(lines) if "conntrack" in name]


def test_the_sets_of_reasons_hold_known_reasons() -> None:
    assert set(DROPS) >= OVERLOAD | NO_LOSS
