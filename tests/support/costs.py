"""Results of a run of all Services of a ruleset."""

from __future__ import annotations

from kproxylat.lab.ruleset import read_ruleset
from kproxylat.measure.ranking import rank_services
from kproxylat.modes import Mode
from kproxylat.results import Accounting, Probe, Result, Run
from tests.support.rules import CAPTURED

RULES = read_ruleset(CAPTURED / "iptables-legacy/n100/iptables-legacy-save.txt.gz")
COST = {"legacy": (2000, 26), "nft": (3000, 84), "nftables": (2678, 0), "ipvs": (4000, 0)}


def measured(mode: Mode, packets: int = 20) -> Result:
    """What a run of all Services would be, where each Service adds an integer."""
    base, each = COST[mode.name if mode.name != "iptables" else mode.backend]
    values = {
        str(target): {str(base + each * number): packets}
        for number, target in enumerate(RULES.targets)
    }  # fmt: skip
    every: dict[str, int] = {}
    for found in values.values():
        for value, count in found.items():
            every[value] = every.get(value, 0) + count
    lookup = Probe(mode.engine, "nat", None, "PREROUTING", True, packets * len(values), None, None, None, None, None,
                   "instructions", values=every, targets=values)  # fmt: skip
    run = Run(mode=mode.name, backend=mode.backend, clock="instructions", emulated=True, kernel="6.1", services=105,
              bpftrace="v0.17.0", probe_kind="fentry", script_sha256=mode.engine, kproxylat="0")  # fmt: skip
    books = Accounting(lookup.count, lookup.count, None, lookup.count, 0, 0, True)
    return Result(run, probes=(lookup,), accounting=books, services=rank_services(lookup, RULES.services))
