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
    """Counters of the node, read at about the same time.

    :param begins_s: when the reading of ``lookups`` began, and ended, by CLOCK_BOOTTIME, which is bpftrace's clock.
    :param packets: that the machine's links received; ``inserts``: flows that conntrack noted (0 on most kernels).
    :param lookups: packets that met the rules of Services, where these count: the first of each flow.
    """

    begins_s: float
    ends_s: float
    packets: int
    inserts: int
    lookups: int | None


def read_counters(mode: Mode, netns: str | None) -> Counters:
    """Read the node's counters; in mode iptables this lists base chains, of IPv6, too, if the engine serves both."""
    counts = parse_counters(run("grep", "", *_FILES, netns=netns, ok=(0, 2)).splitlines())
    lookups, begins_s = None, clock_gettime(CLOCK_BOOTTIME)
    if mode.form == CHAIN:
        ipv6 = mode.for_family(6)
        programs = [mode.iptables, *([ipv6.iptables] if ipv6.engine == mode.engine and has_table(ipv6, netns) else [])]
        lines = [
            line
            for program in programs
            for chain in ("PREROUTING", "OUTPUT")
            for line in list_chain(program, chain, netns, "-v", limit_s=READ_LIMIT_S)
        ]
        rules = [rule for line in lines if (rule := parse_rule(line)) and rule.jump == "KUBE-SERVICES"]
        lookups = sum(rule.packets or 0 for rule in rules)
    packets, inserts = counts.get("softnet_stat packets", 0), counts.get("nf_conntrack insert", 0)
    return Counters(begins_s, clock_gettime(CLOCK_BOOTTIME), packets, inserts, lookups)


def find_load(before: Counters, after: Counters) -> Load:
    """Return packets and new flows a second between two readings; as many flows as packets if nothing counts them."""
    seconds = after.begins_s - before.begins_s
    packets = (after.packets - before.packets) % (1 << 32)
    flows = after.inserts - before.inserts
    if after.lookups is not None and before.lookups is not None:
        flows = max(after.lookups - before.lookups, 0)
    elif flows <= 0:
        flows = packets
    return Load(packets / seconds, flows / seconds)


def find_read_time(counters: Counters) -> float:
    """Return twice what it took to read these counters: how long another reading may take."""
    return 0 if counters.lookups is None else min(2 * (counters.ends_s - counters.begins_s), LONGEST_READ_S)


class Readings:
    """Readings of the rules' counter beside a window: before it, three times in it, and after it.

    A thread takes them, as to list the rules of a large node takes longer than a window at times.

    :param before: counters some time before. ``length_s``: of the window.
    :ivar lead_s: how long the script is to wait, so that the first reading shows what the window begins with.
    """

    def __init__(self, mode: Mode, netns: str | None, before: Counters, length_s: float) -> None:
        self._read = partial(read_counters, mode, netns)
        read_s = find_read_time(before)
        self.lead_s = LEAD_S + read_s
        self._before = before
        # On a busy machine the last one ends after the window; then the one before it tells more than half.
        parts_s = (LEAD_S, 0.6 * length_s, length_s - read_s)
        self._due_s = [0.0, *(self.lead_s + part_s for part_s in parts_s)]
        if before.lookups is None:
            self._due_s = []
        self._taken: list[Future[Counters]] = []
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
        if self._before.lookups is None:
            return None
        rows = [self._before]
        with interrupts.shielded():
            for reading in (*self._taken, None):
                try:
                    rows.append(reading.result() if reading else self._read())
                except MachineError as error:
                    say(f"warning: a reading of the rules' counter failed: {error}")
        counts = [Reading(row.begins_s, row.ends_s, row.lookups) for row in rows if row.lookups is not None]
        return count_between(counts, from_s, till_s)
