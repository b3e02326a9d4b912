"""Windows in which live traffic is traced: as long, and as far apart, as a budget of CPU time allows. Pure.

An attached probe costs every call of the engine, those of established flows too, so that only its time bounds its cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from kproxylat.errors import MachineError

SECOND = 0.05
"""Most CPU time of any second, as a part of one CPU."""
PLANNED = 0.8 * SECOND
"""What windows are planned for; the rest is for traffic that grows meanwhile."""
SHORTEST_S = 0.25
"""The shortest window: bpftrace reads its clock and its signals a few times a second."""
TAIL_S = 0.25
"""How long the probes are attached before and after the window that the script counts, if counters are read at once."""
USEFUL_S = 1.0
"""Fewer windows, then fewer flows are taken before windows get shorter than this."""
START_S = 2.0
"""What bpftrace may take to start, within the spacing."""
MOST_WINDOWS = 5
MOST_SHIFT = 10
_INSTRUCTION_S = 0.5e-9
"""Taken for an instruction until a window has measured it; usual processors take a third to a whole nanosecond."""


class Load(NamedTuple):
    """A node's traffic: packets a second, and flows a second that begin."""

    packets: float
    flows: float


@dataclass(frozen=True)
class Costs:
    """CPU seconds that attached probes take.

    :param packet: for each packet: its calls of the engine, which the script turns away.
    :param flow: for each flow that begins and is recorded, in addition.
    :param read_s: how long the probes are attached in addition for counters that take time to read.
    """

    packet: float = 5 * 750 * _INSTRUCTION_S
    """A packet that is forwarded passes five tables; bench/README.md has the cost of a call that is turned away."""
    flow: float = 4000 * _INSTRUCTION_S
    """bench/README.md: a recorded call, and the keys of its destination."""
    read_s: float = 0

    def share(self, load: Load, shift: int = 0) -> float:
        """Return the part of one CPU that attached probes take, if they record one flow in ``2**shift``."""
        return load.packets * self.packet + load.flows * self.flow / (1 << shift)

    def scaled(self, factor: float) -> Costs:
        """Return the costs after a window that took ``factor`` times what was expected."""
        return Costs(self.packet * factor, self.flow * factor, self.read_s)


@dataclass(frozen=True)
class Windows:
    """How to trace.

    :param count: windows of ``length_s`` each, ``spacing_s`` from start to start.
    :param shift: one flow in ``2**shift`` is recorded.
    :param share: part of one CPU that the probes are expected to take while attached: ``tail_s`` longer than a window.
    """

    count: int
    length_s: float
    spacing_s: float
    shift: int
    share: float
    tail_s: float = TAIL_S

    @property
    def mean(self) -> float:
        """The part of one CPU that the probes take on average."""
        return self.share * (self.length_s + self.tail_s) / self.spacing_s

    @property
    def peak(self) -> float:
        """The most that they take of any second."""
        return self.share * min(self.length_s + self.tail_s, 1)


def plan_windows(load: Load, costs: Costs, budget: float, period_s: float, most: int = MOST_WINDOWS) -> Windows:
    """Plan the windows of a period: several, of a second or more, and without sampling, as far as the budget allows.

    :param budget: the part of one CPU that the probes may take on average. ``most``: windows.
    :raises MachineError: even the shortest window would take too much.
    """
    # Sampling does not help against the cost of packets that are turned away.
    recorded, turned_away = load.flows * costs.flow, load.packets * costs.packet
    highest = next((shift for shift in range(MOST_SHIFT) if recorded / (1 << shift) <= turned_away / 4), MOST_SHIFT)
    plans = [
        _fit(costs.share(load, shift), shift, count, budget, period_s, TAIL_S + costs.read_s)
        for shift in range(highest + 1)
        for count in range(most, 0, -1)
    ]
    longest = max(plans, key=lambda plan: plan.length_s)
    plan = next((plan for plan in plans if plan.length_s >= min(USEFUL_S, longest.length_s)), longest)
    if plan.length_s < SHORTEST_S:
        shortest_ms = (SHORTEST_S + plan.tail_s) * plan.share * 1000
        raise MachineError(
            f"probes would take {plan.share:.1%} of one CPU while attached: {load.packets:,.0f} packets/s at "
            f"{costs.packet * 1e9:,.0f} ns, {load.flows:,.0f} new flows/s at {costs.flow * 1e9:,.0f} ns; the shortest "
            f"window takes {shortest_ms:,.1f} ms, allowed are {min(PLANNED, budget * period_s) * 1000:,.1f} ms",
            f"no second is planned to have more than {PLANNED:.0%} of one CPU; below that, a larger --budget or a "
            "longer --for helps; else: kproxylat capture, then whatif",
        )
    return plan


def _fit(share: float, shift: int, count: int, budget: float, period_s: float, tail_s: float) -> Windows:
    """Return the longest windows of this number and sampling; their length may be too short, or negative."""
    spacing_s = period_s / count
    attached_s = max(spacing_s - START_S, spacing_s / 2)
    if share > 0:
        attached_s = min(attached_s, budget * spacing_s / share)
    if share > PLANNED:
        attached_s = min(attached_s, PLANNED / share)
    return Windows(count, attached_s - tail_s, spacing_s, shift, share, tail_s)
