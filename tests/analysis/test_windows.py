"""Windows of live tracing keep the budget, whatever the load; or they are refused with the numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxylat.analysis.windows import MOST_SHIFT, PLANNED, SECOND, SHORTEST_S, TAIL_S, Costs, Load, plan_windows
from kproxylat.errors import MachineError

RATES = st.floats(0, 1e8)
LOADS = st.builds(Load, RATES, RATES)
COSTS = st.builds(Costs, st.floats(0, 1e-4), st.floats(0, 1e-4))
BUDGETS = st.floats(0.0001, 0.05)
PERIODS = st.floats(2, 86400)


@given(load=LOADS, costs=COSTS, budget=BUDGETS, period_s=PERIODS)
def test_windows_keep_the_budget(load: Load, costs: Costs, budget: float, period_s: float) -> None:
    try:
        plan = plan_windows(load, costs, budget, period_s)
    except MachineError:
        least = costs.share(load, MOST_SHIFT) * (SHORTEST_S + TAIL_S)
        quarter = load.packets * costs.packet * 1.25 * (SHORTEST_S + TAIL_S)
        assert max(least, quarter) > min(PLANNED, budget * period_s) * (1 - 1e-9), "refused without need"
        return
    assert plan.share == costs.share(load, plan.shift)
    assert plan.length_s >= SHORTEST_S
    assert plan.mean <= budget * (1 + 1e-9)
    assert plan.peak <= PLANNED * (1 + 1e-9) < SECOND
    assert plan.length_s + TAIL_S <= plan.spacing_s
    assert math.isclose(plan.count * plan.spacing_s, period_s)


@given(load=LOADS, costs=COSTS, budget=BUDGETS, period_s=PERIODS, factor=st.floats(1, 10))
def test_busier_nodes_are_traced_less(load: Load, costs: Costs, budget: float, period_s: float, factor: float) -> None:
    busier = Load(load.packets * factor, load.flows * factor)
    try:
        more = plan_windows(busier, costs, budget, period_s)
    except MachineError:
        return
    less = plan_windows(load, costs, budget, period_s)
    assert less.shift <= more.shift
    assert less.count * less.length_s / 2**less.shift >= more.count * more.length_s / 2**more.shift * (1 - 1e-9)


def test_quiet_node_is_traced_most_of_the_time() -> None:
    plan = plan_windows(Load(100, 10), Costs(), 0.01, 60)
    assert (plan.count, plan.shift) == (5, 0)
    assert plan.length_s == pytest.approx(12 - 2 - TAIL_S)


def test_million_packets_are_refused_with_the_numbers() -> None:
    with pytest.raises(MachineError, match=r"188.0% of one CPU.* 1,000,000 packets/s at 1,875 ns.* 40.0 ms") as error:
        plan_windows(Load(1e6, 1000), Costs(flow=5e-6), 0.01, 60)
    assert "4% of one CPU" in error.value.remedy


def test_many_flows_are_sampled_before_windows_become_short() -> None:
    plan = plan_windows(Load(1e5, 1e5), Costs(1e-7, 2e-6), 0.01, 60)
    assert plan.shift > 0
    assert plan.peak <= PLANNED
