"""Windows of live traffic: what is read from counters and from bpftrace, and when probes are detached."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxylat.analysis.bill import IPV6, NO_SERVICE
from kproxylat.analysis.windows import SECOND, Load
from kproxylat.errors import MachineError
from kproxylat.measure import bill
from kproxylat.measure.bill import Counters, Meter, find_load, parse_window, plan_bill, read_counters
from kproxylat.modes import find_mode
from kproxylat.node.node import Node

IPTABLES, NFTABLES = find_mode("iptables", "nft"), find_mode("nftables", "nft")
PRINTED = """\
@cost[0]: count 2, average 30000, total 60000
@cost[1]: count 1, average 900, total 900
@cost[759160843520462848]: count 3, average 2000, total 6000

@from: 1000000000
@lookups: count 7, average 9557, total 66901

@on: 2
@shape[0]:
[16K, 32K)             1 |@@@@@@@@@@@@@@@@@@@@@@@@@@                          |
[32K, 64K)             1 |@@@@@@@@@@@@@@@@@@@@@@@@@@                          |

@shape[759160843520462848]:
[1K, 2K)               3 |@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@|

@till: 1500000000
"""


def traced(text: str) -> Any:
    """Return a tracer that printed a text."""
    return cast("Any", SimpleNamespace(stdout=text.splitlines(keepends=True)))


def test_a_window_is_read() -> None:
    window = parse_window(traced(PRINTED), 3)
    assert window is not None
    assert (window.seconds, window.shift) == (0.5, 3)
    assert (window.total.lookups, window.total.ns) == (7, 66901)
    [service] = [key for key in window.counts if key not in (NO_SERVICE, IPV6)]
    assert service.endswith(("/tcp", "/udp", "/?"))
    assert {key: count.lookups for key, count in window.counts.items()} == {NO_SERVICE: 2, IPV6: 1, service: 3}
    assert sum(row.count for row in window.counts[NO_SERVICE].histogram.buckets) == 2
    assert window.counts[IPV6].histogram.buckets == ()


@pytest.mark.parametrize("missing", ["@from", "@till"])
def test_a_window_that_did_not_count_is_none(missing: str) -> None:
    assert parse_window(traced(PRINTED.replace(missing, "@gone")), 0) is None


def test_a_window_without_traffic_counts_nothing() -> None:
    window = parse_window(traced("@from: 1000000000\n@on: 2\n@till: 2000000000\n"), 0)
    assert window is not None
    assert (window.total.lookups, window.counts) == (0, {})


def test_the_rules_of_services_tell_the_load() -> None:
    before, after = Counters(10, 1000, 0, 50), Counters(12, 3000, 0, 150)
    assert find_load(before, after) == Load(1000, 50)


def test_conntrack_tells_the_load_where_it_counts_inserts() -> None:
    assert find_load(Counters(10, 1000, 5, None), Counters(12, 3000, 45, None)) == Load(1000, 20)


def test_every_packet_may_begin_a_flow_where_nothing_counts_flows() -> None:
    assert find_load(Counters(10, 2**32 - 1000, 0, None), Counters(12, 1000, 0, None)) == Load(1000, 1000)


def test_the_counter_of_the_jump_to_services_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "grep": "/proc/net/softnet_stat:0000000a 00000000\n/proc/net/softnet_stat:00000005 00000000\n",
        "PREROUTING": '-P PREROUTING ACCEPT -c 1 1\n-A PREROUTING -m comment --comment "-j KUBE-SERVICES" -c 9 9 -j X\n'
        '-A PREROUTING -m comment --comment "kubernetes service portals" -c 300 15000 -j KUBE-SERVICES\n',
        "OUTPUT": "-A OUTPUT -m comment --comment portals -c 20 1000 -j KUBE-SERVICES\n",
    }
    monkeypatch.setattr(bill, "run", lambda *argv, **_: answers["grep" if argv[0] == "grep" else argv[-1]])
    counters = read_counters(IPTABLES, None)
    assert (counters.packets, counters.lookups) == (15, 320)
    assert read_counters(NFTABLES, None).lookups is None


@given(st.lists(st.tuples(st.floats(0.01, 0.3), st.floats(0, 0.1)), min_size=1, max_size=50), st.floats(0.001, 1))
def test_probes_are_detached_as_soon_as_they_take_too_much(steps: list[tuple[float, float]], budget_s: float) -> None:
    meter, now_s, used_s, seen = Meter(budget_s), 0.0, 0.0, [(0.0, 0.0)]
    for step_s, took_s in steps:
        now_s, used_s = now_s + step_s, used_s + took_s
        seen.append((now_s, used_s))
        problem = meter.check(used_s, now_s)
        since = max((used for time_s, used in seen if time_s <= now_s - 1), default=0)
        if used_s > budget_s or used_s - since > SECOND:
            assert problem
            return
    assert not problem


def test_a_meter_counts_windows_together() -> None:
    meter = Meter(0.1)
    assert meter.check(0.04, 5.0) == ""
    meter.used_s = 0.04
    assert "in a second" in meter.check(0.02, 5.5), "two windows within a second"
    assert meter.check(0.03, 9.0) == ""
    assert "more than the period's 100.0 ms" in meter.check(0.07, 12.0)


def test_rules_that_cannot_be_read_leave_names_out_only_if_the_mode_is_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise MachineError("the rules cannot be replayed: why")

    monkeypatch.setattr(bill, "capture", refuse)
    with pytest.raises(MachineError, match="cannot be replayed"):
        plan_bill("iptables", None, Node(), 0.01, 60, "auto")
    plan = plan_bill("iptables", "legacy", Node(), 0.01, 60, "auto")
    assert (plan.mode.backend, plan.names) == ("legacy", {})
    assert "names are unknown" in capsys.readouterr().err
