"""The bill of live traffic, on a real kernel: shares of known unequal rates, the accounting, the budget, no remains."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import ROOT
from tests.vm.conftest import Guest

pytestmark = pytest.mark.long
RATE, SERVICES, NOWHERE = {"fentry": 60, "kprobe": 20}, 20, "10.244.77.1:53"
"""Flows a second: by kprobe, an emulated machine takes 5 % of its CPU for 60."""
WEIGHTS = {f"10.97.0.{number}:80": number for number in range(1, SERVICES + 1)} | {
    "10.96.100.50:50051": 40,
    NOWHERE: 50,
}
MODES = [
    ("iptables", "nft", "fentry"),
    ("iptables", "legacy", "fentry"),
    ("nftables", "nft", "fentry"),
    ("ipvs", "ipvs", "fentry"),
    ("iptables", "nft", "kprobe"),
    ("ipvs", "ipvs", "kprobe"),
]
SAMPLED = """
import sys
from dataclasses import replace
from kproxylat.cli.app import main
from kproxylat.measure import bill
plan = bill.plan_windows
bill.plan_windows = lambda *words: replace(plan(*words), shift=2)
main(sys.argv[1:])
"""


@pytest.fixture
def lab(timing: Guest, request: pytest.FixtureRequest) -> Iterator[tuple[Guest, tuple[str, ...]]]:
    """Yield a guest with a lab that stands, in which a pod opens connections; and the words of a bill for it."""
    mode, backend, probe = request.param
    words = ("--mode", mode, "--backend", backend, "--probe", probe)
    done = timing.kproxylat("run", "--lab", "--keep", *words, "--services", str(SERVICES), "1", "20")
    assert done.status == 0, done.err
    if (mode, probe) == ("ipvs", "fentry"):
        # An endpoint on the node itself: ipvs accepts such packets, as those to no Service.
        server = f"10.97.0.{SERVICES}:80"
        for change in (f"-D -t {server}", f"-A -t {server} -s rr", f"-a -t {server} -r 10.97.0.1:8080 -m"):
            changed = timing.program("ip", "netns", "exec", "kproxylat-node", "ipvsadm", *change.split())
            assert changed.status == 0, changed.err
    targets = [f"{weight}={target}" for target, weight in WEIGHTS.items()]
    command = [sys.executable, str(ROOT / "tests/vm/senders.py"), "900", str(RATE[probe]), *targets]
    started = timing.program(
        "bash", "-c", f"ip netns exec kproxylat-client {' '.join(command)} >/dev/null 2>&1 & echo $!"
    )
    # bpftrace takes a minute to start with kprobes.
    period = {"fentry": "60s", "kprobe": "300s"}[probe]
    yield timing, ("bill", "--for", period, "--budget", "5", "--netns", "kproxylat-node", *words)
    timing.program("kill", started.out.strip())
    timing.kproxylat("cleanup")
    assert timing.state() == ["lo"]


def check(bill: dict[str, Any]) -> None:
    """Check a bill against the known rates, the rules' counter and the budget."""
    assert sum(row["lookups_per_s"] for row in bill["rows"]) == pytest.approx(bill["lookups_per_s"]["estimate"])
    assert sum(row["share"]["estimate"] for row in bill["rows"]) == pytest.approx(1)
    shares = {row["key"].partition("/")[0]: row["share"] for row in bill["rows"]}
    # In mode ipvs, packets to no Service do not come to the lookup's hook.
    weights = {target: weight for target, weight in WEIGHTS.items() if bill["mode"] != "ipvs" or target != NOWHERE}
    if NOWHERE in weights:
        shares[NOWHERE] = shares.pop("no Service")
    assert set(shares) <= set(weights), "no row that was not sent to"
    known = {target: weight / sum(weights.values()) for target, weight in weights.items()}
    assert bill["lookups"] >= 30
    # A destination of which 10 lookups are expected has none in one window of 20,000.
    assert {target for target, share in known.items() if share * bill["lookups"] >= 10} <= set(shares)
    outside = [target for target, share in shares.items() if not share["lo"] <= known[target] <= share["hi"]]
    assert len(outside) <= 3, "of 22 bounds of 95 %, one is expected to fail"
    names = {row["key"].partition("/")[0]: row["name"] for row in bill["rows"]}
    if bill["mode"] == "ipvs":
        assert set(names.values()) == {""}, "virtual servers have no names; the API has them"
    else:
        assert names["10.96.100.50:50051"] == "default/worker:grpc"
        assert names["no Service"] == ""
        for number in range(1, SERVICES + 1):
            assert names.get(f"10.97.0.{number}:80") in (None, f"default/dummy-service-{number - 1}:http")
    if bill["mode"] == "iptables":
        assert bill["check"]["counter"] == "the rules that jump to KUBE-SERVICES"
        assert bill["check"]["closed"] is True, bill["check"]
    else:
        assert bill["check"]["closed"] is None
    usage = bill["usage"]
    assert usage["measured"]
    assert 0 < usage["mean"] <= usage["budget"]
    assert 0 < usage["peak"] <= 0.05


@pytest.mark.parametrize("lab", MODES, ids=" ".join, indirect=True)
def test_shares_of_live_traffic(lab: tuple[Guest, tuple[str, ...]]) -> None:
    guest, words = lab
    done = guest.kproxylat(*words, "--format", "json")
    assert done.status == 0, done.err
    check(done.json)


@pytest.mark.parametrize("lab", MODES[:1], ids=" ".join, indirect=True)
def test_sampled_lookups_add_up_to_those_of_the_rules_counter(lab: tuple[Guest, tuple[str, ...]]) -> None:
    guest, words = lab
    done = guest.program(sys.executable, "-c", SAMPLED, *words, "--format", "json")
    assert done.status == 0, done.err
    assert "one flow in 4" in done.err
    check(json.loads(done.out))


@pytest.mark.parametrize("lab", MODES[:1], ids=" ".join, indirect=True)
def test_probes_that_take_too_much_are_detached(lab: tuple[Guest, tuple[str, ...]]) -> None:
    """The budget is less than any lookup takes here, and the plan does not know it: its costs are another machine's."""
    guest, words = lab
    done = guest.kproxylat(*words, "--budget", "0.02", "--for", "120s", "--format", "json")
    assert "detached before its time" in done.out + done.err or "no further window" in done.out + done.err
    assert "Traceback" not in done.err
    if done.status == 0:
        assert done.json["usage"]["peak"] <= 0.05


def test_nothing_is_counted_without_rules(timing: Guest) -> None:
    done = timing.kproxylat("bill", "--for", "2s")
    assert (done.status, "no matching rules" in done.err) == (1, True)
