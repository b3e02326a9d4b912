"""The load of a node: packets and new flows a second, from counters that the kernel keeps anyway; and in a window."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import CLOCK_BOOTTIME, clock_gettime

from kproxylat.analysis.readings import Reading, count_between
from kproxylat.analysis.windows import Load
from kproxylat.console import say
from kproxylat.errors import MachineError
from kproxylat.modes import CHAIN, Mode
from kproxylat.node.drops import parse_counters
from kproxylat.node.iptables_save import parse_rule
from kproxylat.node.live_rules import has_table
from kproxylat.node.service_rule import list_chain
from kproxylat.results import Bounded
from kproxylat.system import interrupts
from kproxylat.system.processes import run

LEAD_S = 0.1
"""How long a script waits, in addition to the time of reading counters, until it counts; within the windows' TAIL_S."""
LONGEST_READ_S = 1.0
READ_LIMIT_S = 30.0
"""How long the program that lists rules may take; then it is killed."""
_FILES = "/proc/net/softnet_stat", "/proc/net/stat/nf_conntrack"


@dataclass(frozen=True)
class Counters:
    """Counters of the node.

    :param at_s: when those of packets and flows were read, by CLOCK_BOOTTIME, which is bpftrace's clock.
    :param packets: that the machine's links received; ``inserts``: flows that conntrack noted (0 on most kernels).
    :param lookups: packets that met the rules of Services, where these count: the first of each flow.
    """

    at_s: float
    packets: int
    inserts: int
    lookups: Reading | None


def read_counters(mode: Mode, netns: str | None) -> Counters:
    """Read the node's counters."""
    at_s = clock_gettime(CLOCK_BOOTTIME)
    counts = parse_counters(run("grep", "", *_FILES, netns=netns, ok=(0, 2)).splitlines())
    packets, inserts = counts.get("softnet_stat packets", 0), counts.get("nf_conntrack insert", 0)
    return Counters(at_s, packets, inserts, read_lookups(mode, netns))


def read_lookups(mode: Mode, netns: str | None) -> Reading | None:
    """Read how many packets met the rules of Services; None in a mode whose rules do not count.

    It lists base chains, of IPv6, too, if the engine serves both.
    """
    if mode.form != CHAIN:
        return None
    begins_s, ipv6 = clock_gettime(CLOCK_BOOTTIME), mode.for_family(6)
    programs = [mode.iptables, *([ipv6.iptables] if ipv6.engine == mode.engine and has_table(ipv6, netns) else [])]
    lines = [
        line
        for program in programs
        for chain in ("PREROUTING", "OUTPUT")
        for line in list_chain(program, chain, netns, "-v", limit_s=READ_LIMIT_S)
    ]
    rules = [rule for line in lines if (rule := parse_rule(line)) and rule.jump == "KUBE-SERVICES"]
    return Reading(begins_s, clock_gettime(CLOCK_BOOTTIME), sum(rule.packets or 0 for rule in rules))


def find_load(before: Counters, after: Counters) -> Load:
    """Return packets and new flows a second between two readings; as many flows as packets if nothing counts them."""
    seconds = after.at_s - before.at_s
    packets_per_s = (after.packets - before.packets) % (1 << 32) / seconds
    flows_per_s = (after.inserts - before.inserts) / seconds
    if after.lookups and before.lookups:
        passed = after.lookups.total - before.lookups.total
        flows_per_s = max(passed, 0) / (after.lookups.begins_s - before.lookups.begins_s)
    elif flows_per_s <= 0:
        flows_per_s = packets_per_s
    return Load(packets_per_s, flows_per_s)


def find_read_time(lookups: Reading | None) -> float:
    """Return twice what it took to read this counter: how long another reading may take."""
    return 0 if lookups is None else min(2 * (lookups.ends_s - lookups.begins_s), LONGEST_READ_S)


class Readings:
    """Readings of the rules' counter beside a window: before it, three times in it, and after it.

    A thread takes them, as to list the rules of a large node takes longer than a window at times.

    :param before: a reading some time before; None: nothing counts. ``length_s``: of the window.
    :ivar lead_s: how long the script is to wait, so that the first reading shows what the window begins with.
    """

    def __init__(self, mode: Mode, netns: str | None, before: Reading | None, length_s: float) -> None:
        self._read = partial(read_lookups, mode, netns)
        read_s = find_read_time(before)
        self.lead_s = LEAD_S + read_s
        self._before = before
        # On a busy machine the last one ends after the window; then the one before it tells more than half.
        parts_s = (LEAD_S, 0.6 * length_s, length_s - read_s)
        self._due_s = [0.0, *(self.lead_s + part_s for part_s in parts_s)]
        if before is None:
            self._due_s = []
        self._taken: list[Future[Reading | None]] = []
        self._lister = ThreadPoolExecutor(1)

    def __enter__(self) -> Readings:
        return self

    def __exit__(self, *_: object) -> None:
        self._lister.shutdown()

    def look(self, attached_s: float) -> None:
        """Begin the reading that is due, so many seconds after the probes were attached."""
        if self._due_s and attached_s >= self._due_s[0] and all(reading.done() for reading in self._taken):
            self._taken.append(self._lister.submit(self._read))
            self._due_s.pop(0)

    def count(self, from_s: float, till_s: float) -> Bounded | None:
        """Return how many lookups the rules counted in a window that has ended; None if unknown.

        Neither a signal nor a reading that fails costs the window.
        """
        if self._before is None:
            return None
        rows: list[Reading | None] = [self._before]
        with interrupts.shielded():
            for reading in (*self._taken, None):
                try:
                    rows.append(reading.result() if reading else self._read())
                except MachineError as error:
                    say(f"warning: a reading of the rules' counter failed: {error}")
        return count_between([row for row in rows if row], from_s, till_s)
