"""The load of a node: packets and new flows a second, from counters that the kernel keeps anyway."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

from kproxylat.analysis.windows import Load
from kproxylat.modes import CHAIN, Mode
from kproxylat.node.drops import parse_counters
from kproxylat.node.iptables_save import parse_rule
from kproxylat.node.live_rules import has_table
from kproxylat.system.processes import run

_FILES = "/proc/net/softnet_stat", "/proc/net/stat/nf_conntrack"


@dataclass(frozen=True)
class Counters:
    """Counters of the node at about the same time.

    :param time_s: the middle of the reading; ``within_s``: how much earlier or later a counter may have been read.
    :param packets: that the machine's links received; ``inserts``: flows that conntrack noted (0 on most kernels).
    :param lookups: packets that met the rules of Services, where these count: the first of each flow.
    """

    time_s: float
    packets: int
    inserts: int
    lookups: int | None
    within_s: float = 0


def read_counters(mode: Mode, netns: str | None) -> Counters:
    """Read the node's counters; in mode iptables this lists base chains, of IPv6, too, if the engine serves both."""
    counts = parse_counters(run("grep", "", *_FILES, netns=netns, ok=(0, 2)).splitlines())
    lookups, begins_s = None, monotonic()
    if mode.form == CHAIN:
        ipv6 = mode.for_family(6)
        programs = [mode.iptables, *([ipv6.iptables] if ipv6.engine == mode.engine and has_table(ipv6, netns) else [])]
        lines = [
            line
            for program in programs
            for chain in ("PREROUTING", "OUTPUT")
            for line in run(program, "-t", "nat", "-v", "-S", chain, netns=netns).split("\n")
        ]
        rules = [rule for line in lines if (rule := parse_rule(line)) and rule.jump == "KUBE-SERVICES"]
        lookups = sum(rule.packets or 0 for rule in rules)
    half_s = (monotonic() - begins_s) / 2
    packets, inserts = counts.get("softnet_stat packets", 0), counts.get("nf_conntrack insert", 0)
    return Counters(begins_s + half_s, packets, inserts, lookups, half_s)


def find_load(before: Counters, after: Counters) -> Load:
    """Return packets and new flows a second between two readings; as many flows as packets if nothing counts them."""
    seconds = after.time_s - before.time_s
    packets = (after.packets - before.packets) % (1 << 32)
    flows = after.inserts - before.inserts
    if after.lookups is not None and before.lookups is not None:
        flows = max(after.lookups - before.lookups, 0)
    elif flows <= 0:
        flows = packets
    return Load(packets / seconds, flows / seconds)
