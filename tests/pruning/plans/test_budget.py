"""The shortest prefix that meets a budget, and plans that meet budgets in params, MACs and time."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import make_small_network, networks

from yolo_prune.arrays import Float64Array
from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.layers import Conv, Shortcut
from yolo_prune.darknet.network import Network
from yolo_prune.errors import ConfigError, PlanError
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.config import PlanConfig
from yolo_prune.pruning.plans.budget import Budget, find_shortest
from yolo_prune.pruning.plans.plan import Plan, check_plan, make_cost_budgets, make_plan, prune_network

SHARES = st.floats(0.005, 1)
NETWORK = make_network("yolov3", width=0.1)
FLOORS = {"min_channels": 2}


def make_budget(limit: float, costs: list[float], steps: int | None = None) -> Budget[int]:
    return Budget(
        "target", limit, lambda count: costs[count], lambda cost: f"{cost:g}", lambda cost: f"{cost:g}", steps
    )


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(0, 30), st.data())
def test_the_search_finds_what_trying_all_finds(drops: list[int], limit: int, data: st.DataObject) -> None:
    costs = [float(sum(drops[number:])) for number in range(len(drops) + 1)]
    least = data.draw(st.integers(0, len(drops)))
    tried = [count for count in range(least, len(drops) + 1) if costs[count] <= limit]
    assert find_shortest(make_budget(limit, costs), int, least, len(drops), FLOORS) == tried[0]
    steps = data.draw(st.integers(1, 10))
    coarse = find_shortest(make_budget(limit, costs, steps), int, least, len(drops), FLOORS)
    assert costs[coarse] <= limit
    assert coarse >= tried[0]


def test_a_noisy_measurement_is_taken_again_and_the_next_step_tried() -> None:
    costs, calls = [10.0, 9.0, 7.0, 5.0, 3.0], []

    def measure(count: int) -> float:
        calls.append(count)
        return 5.5 if calls == [0, 4, 2] else costs[count]  # one lucky run

    budget = Budget("target", 6.0, measure, str, str, steps=4)
    assert find_shortest(budget, int, 0, 4, FLOORS) == 3
    assert calls == [0, 4, 2, 1, 2, 3]


def test_what_no_prefix_can_reach_is_reported_with_the_nearest() -> None:
    with pytest.raises(PlanError) as caught:
        find_shortest(make_budget(2, [9, 8, 7.5]), int, 0, 2, FLOORS)
    assert str(caught.value) == (
        "target: 2 cannot be reached: min_channels=2 leaves 7.5; use 7.5, or a smaller min_channels"
    )
    with pytest.raises(PlanError) as caught:
        find_shortest(make_budget(2, [9, 8, 7.5]), int, 0, 2, {**FLOORS, "round_to": 8})
    assert str(caught.value) == (
        "target: 2 cannot be reached: min_channels=2 with round_to=8 leaves 7.5; "
        "use 7.5, or a smaller min_channels or round_to"
    )


def plan_for(network: Network, importance: Float64Array, config: PlanConfig) -> tuple[Plan, Network]:
    graph, cost = make_channel_graph(network), measure_cost(network)
    plan = make_plan(graph, importance, config, make_cost_budgets(config, network, graph, cost))
    check_plan(graph, plan)
    return plan, prune_network(network, plan, graph)


@given(
    st.integers(0, 99),
    SHARES | st.none(),
    SHARES | st.none(),
    st.floats(0, 0.5) | st.none(),
    st.sampled_from([1, 4, 8]),
)
@settings(max_examples=40, deadline=None)
def test_every_budget_is_met_and_no_channel_too_many_is_pruned(
    seed: int, params: float | None, macs: float | None, ratio: float | None, round_to: int
) -> None:
    graph, full = make_channel_graph(NETWORK), measure_cost(NETWORK)
    importance = np.random.default_rng(seed).random(graph.size)
    config = PlanConfig(ratio, min_channels=1, round_to=round_to, target_params=params, target_macs=macs)
    try:
        plan, slim = plan_for(NETWORK, importance, config)
    except PlanError as error:
        told = re.search(r"(target_\w+): .* use at least ([\d.e-]+)", str(error))
        assert told is not None
        nearest = PlanConfig(min_channels=1, round_to=round_to, **{told[1]: float(told[2])})  # type: ignore[arg-type]  # a share
        plan_for(NETWORK, importance, nearest)
        return
    cost, dropped = measure_cost(slim), int((~plan.keep).sum())
    wanted = round(config.least_ratio * graph.prunable.sum())
    assert params is None or cost.params <= params * full.params
    assert macs is None or cost.macs <= macs * full.macs
    if round_to == 1:
        assert dropped >= wanted
        if dropped > wanted:
            order = np.flatnonzero(graph.prunable)[np.argsort(importance[graph.prunable], kind="stable")]
            last = max(np.flatnonzero(~plan.keep[order]))
            plan.keep[order[last]] = True
            one_more = measure_cost(prune_network(NETWORK, plan, graph))
            assert (params is not None and one_more.params > params * full.params) or (
                macs is not None and one_more.macs > macs * full.macs
            )


@given(networks(), st.integers(0, 99), SHARES)
@settings(max_examples=30, deadline=None)
def test_any_network_meets_what_it_can(network: Network, seed: int, share: float) -> None:
    graph = make_channel_graph(network)
    importance = np.random.default_rng(seed).random(graph.size)
    try:
        _, slim = plan_for(network, importance, PlanConfig(min_channels=1, target_params=share))
    except PlanError as error:
        if "cannot be reached" in str(error):
            return
        raise
    assert measure_cost(slim).params <= share * measure_cost(network).params


def test_spared_layers_and_what_is_tied_to_them_stay_whole() -> None:
    network = make_small_network(Conv(8, 1), Conv(8, 1), Shortcut(0), Conv(8, 1), Conv(8, 1))
    graph = make_channel_graph(network)
    plan = make_plan(graph, np.arange(graph.size, dtype=float), PlanConfig(0.5, spare=(1, 4)))
    assert [int(plan.keep[graph.writes[layer]].sum()) for layer in (0, 1, 3, 4)] == [8, 8, 4, 8]


def test_a_spared_layer_that_is_no_convolution_is_named() -> None:
    graph = make_channel_graph(make_small_network(Conv(2, 1), Conv(2, 1), Shortcut(0)))
    with pytest.raises(PlanError, match="spare: layer 2 is no convolution; name convolutions"):
        make_plan(graph, np.zeros(graph.size), PlanConfig(0.1, spare=(2,)))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"target_params": 1.5}, "target_params: 1.5 is out of range; use a number above 0, up to 1"),
        ({"target_macs": 0.0}, "target_macs: 0 is out of range"),
        ({"target_macs": float("nan")}, "target_macs: nan is out of range"),
        ({"target_latency_ms": 0.0}, "target_latency_ms: 0 is out of range"),
        ({"target_speedup": 0.5}, "target_speedup: 0.5 is out of range; use a number from 1"),
    ],
)
def test_targets_out_of_range_are_named(values: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        PlanConfig(**values)  # type: ignore[arg-type]  # the table holds what a flag could hold


def test_only_without_a_target_is_there_a_ratio_of_its_own() -> None:
    assert PlanConfig().least_ratio == 0.8
    assert PlanConfig(target_macs=0.5).least_ratio == 0
    assert PlanConfig(0.3, target_speedup=2).least_ratio == 0.3
