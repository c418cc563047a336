from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import make_plan_at_random, make_small_network, networks
from paths import ROOT
from tiny import TINY_CFG

from yolo_prune.arrays import Float64Array
from yolo_prune.darknet.architectures import ARCHITECTURES, make_network
from yolo_prune.darknet.cfg import load_cfg, parse_cfg
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.layers import Conv
from yolo_prune.darknet.network import Network
from yolo_prune.errors import ConfigError, PlanError
from yolo_prune.pruning.channels import ChannelGraph, make_channel_graph
from yolo_prune.pruning.config import PlanConfig
from yolo_prune.pruning.plans.plan import (
    Plan,
    check_plan,
    choose_multiple,
    make_cost_budgets,
    make_plan,
    prune_network,
    rank_with_floor,
    rank_within_groups,
)

GRAPH = make_channel_graph(make_network("yolov3", width=0.1))
RATIOS = st.floats(0, 0.99)
FLAT = make_small_network(Conv(4, 3, 1, 1), Conv(6, 1))
"""Ids: image 0-2, first convolution 3-6, second 7-12, head from 13 on."""


def make_importance(graph: ChannelGraph, seed: int, levels: int | None = None) -> Float64Array:
    """Return random scores; with `levels` they take so few values that there are ties."""
    random = np.random.default_rng(seed)
    return random.random(graph.size) if levels is None else random.integers(0, levels, graph.size).astype(np.float64)


def score_flat(*scores: float) -> Float64Array:
    return np.array([9.0] * 3 + list(scores) + [0.0] * 6)


def find_dropped(importance: Float64Array, config: PlanConfig) -> list[int]:
    return list(np.flatnonzero(~make_plan(make_channel_graph(FLAT), importance, config).keep))


def test_the_least_important_are_pruned_by_hand() -> None:
    importance = score_flat(0.5, 0.1, 0.9, 0.8, 0.3, 0.2, 0.7, 0.6, 0.05, 0.4)
    assert find_dropped(importance, PlanConfig(0.0)) == []
    assert find_dropped(importance, PlanConfig(0.4)) == [4, 7, 8, 11]
    # a floor of 2 holds 5 and 6 of the first convolution, 9 and 10 of the second
    assert find_dropped(importance, PlanConfig(0.6)) == [3, 4, 7, 8, 11, 12]
    # all others are dropped before the floor is touched
    assert find_dropped(score_flat(0, 0, 0, 0, 1, 2, 3, 4, 5, 6), PlanConfig(0.6)) == [3 + 2, 3 + 3, 7, 8, 9, 10]


def test_ties_fall_by_number_and_never_drop_more_than_asked() -> None:
    assert find_dropped(score_flat(*[1] * 10), PlanConfig(0.3)) == [5, 6, 9]
    assert find_dropped(score_flat(*[1] * 10), PlanConfig(0.3, min_channels=1)) == [4, 5, 6]


@given(st.integers(0, 99), RATIOS, st.none() | st.integers(1, 4), st.integers(1, 5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_plan_keeps_its_promises(
    seed: int, ratio: float, levels: int | None, min_channels: int, shortcuts: bool
) -> None:
    importance, config = make_importance(GRAPH, seed, levels), PlanConfig(ratio, shortcuts, min_channels)
    candidates = sum(len(group.ids) for group in GRAPH.groups if not group.frozen and (shortcuts or not group.is_tied))
    try:
        plan = make_plan(GRAPH, importance, config)
    except PlanError as error:
        told = re.search(r"at most ([\d.]+)", str(error))
        assert told is not None
        assert float(told[1]) < ratio
        make_plan(GRAPH, importance, PlanConfig(float(told[1]), shortcuts, min_channels))
        return
    check_plan(GRAPH, plan)
    assert plan.keep[GRAPH.frozen].all()
    assert (~plan.keep).sum() == round(ratio * candidates)
    for group in GRAPH.groups:
        kept = plan.keep[group.ids]
        assert kept.sum() >= min(min_channels, len(group.ids))
        if group.is_tied and not shortcuts:
            assert kept.all()
        if not kept.all():
            assert importance[group.ids[~kept]].max() <= np.sort(importance[group.ids])[-min_channels:].min()


@given(st.integers(0, 99), RATIOS, RATIOS, st.none() | st.integers(1, 3), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_larger_ratio_drops_a_superset(
    seed: int, one: float, other: float, levels: int | None, shortcuts: bool
) -> None:
    importance = make_importance(GRAPH, seed, levels)
    small, large = (
        make_plan(GRAPH, importance, PlanConfig(ratio * 0.8, shortcuts, min_channels=1))
        for ratio in sorted((one, other))
    )
    assert not (large.keep & ~small.keep).any()


def list_widths(size: int, config: PlanConfig) -> list[int]:
    """Return the widths that rounding allows a group: multiples, at least one and no fewer than its floor, or all of it."""
    least = min(config.min_channels, size)
    return sorted({width for width in range(config.multiple, size + 1, config.multiple) if width >= least} | {size})


@given(
    st.integers(0, 99), st.floats(0, 0.8), st.none() | st.integers(1, 4), st.integers(1, 9), st.integers(2, 20),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_rounding_keeps_the_nearest_multiple_or_the_whole_group(
    seed: int, ratio: float, levels: int | None, min_channels: int, multiple: int, shortcuts: bool
) -> None:
    importance = make_importance(GRAPH, seed, levels)
    plain, config = (PlanConfig(ratio, shortcuts, min_channels, round_to) for round_to in (1, multiple))
    try:
        before = make_plan(GRAPH, importance, plain)
    except PlanError:
        with pytest.raises(PlanError, match="use at most"):
            make_plan(GRAPH, importance, config)
        return
    after = make_plan(GRAPH, importance, config)
    check_plan(GRAPH, after)
    wanted = up = 0
    for group in GRAPH.groups:
        size, kept, width = len(group.ids), int(before.keep[group.ids].sum()), int(after.keep[group.ids].sum())
        if group.frozen or (group.is_tied and not shortcuts):
            assert width == size
            continue
        widths = list_widths(size, config)
        assert width == min(widths, key=lambda candidate: (abs(candidate - kept), -candidate))  # a tie keeps more
        wanted += kept
        up += min(candidate for candidate in widths if candidate >= kept)
        stays = after.keep[group.ids]
        if not stays.all():
            assert importance[group.ids[~stays]].max() <= np.sort(importance[group.ids])[-width:].min()
    spared = sum(len(group.ids) for group in GRAPH.groups if group.frozen or (group.is_tied and not shortcuts))
    assert abs(int(after.keep.sum()) - spared - wanted) <= up - wanted  # never farther than rounding up would be


@given(
    st.integers(0, 99), RATIOS, RATIOS, st.none() | st.integers(1, 3), st.integers(1, 9), st.integers(2, 20),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_larger_ratio_drops_a_superset_when_rounded_too(
    seed: int, one: float, other: float, levels: int | None, min_channels: int, multiple: int, shortcuts: bool
) -> None:
    importance = make_importance(GRAPH, seed, levels)
    small, large = (
        make_plan(GRAPH, importance, PlanConfig(ratio * 0.5, shortcuts, min_channels, multiple))
        for ratio in sorted((one, other))
    )
    assert not (large.keep & ~small.keep).any()


@given(networks(), st.integers(0, 99), st.floats(0, 0.9), st.integers(1, 5), st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_any_network_s_groups_keep_multiples_or_all(
    network: Network, seed: int, ratio: float, min_channels: int, multiple: int
) -> None:
    graph = make_channel_graph(network)
    importance, config = make_importance(graph, seed), PlanConfig(ratio, min_channels=min_channels, round_to=multiple)
    try:
        plan = make_plan(graph, importance, config)
    except PlanError:
        return
    assert plan.keep[graph.frozen].all()
    for group in graph.groups:
        kept = int(plan.keep[group.ids].sum())
        assert kept == len(group.ids) or kept in list_widths(len(group.ids), config)
    prune_network(network, plan, graph)


def test_rounding_by_hand() -> None:
    """Groups of 4 and 6 channels: what stays of them is a pair, two pairs, or all."""
    importance = score_flat(0.5, 0.1, 0.9, 0.8, 0.3, 0.2, 0.7, 0.6, 0.05, 0.4)
    assert find_dropped(importance, PlanConfig(0.1, round_to=2)) == []  # 5 of 6 stay: as near to 6 as to 4
    assert find_dropped(importance, PlanConfig(0.4, round_to=3)) == [3 + 1, 3 + 4, 3 + 5, 3 + 8]  # 3 and 3
    assert find_dropped(importance, PlanConfig(0.6, round_to=8)) == []  # no group has eight
    assert find_dropped(importance, PlanConfig(0.6, min_channels=1, round_to=4)) == [8, 11]  # all of 4, 4 of 6
    assert (
        find_dropped(importance, PlanConfig(0.2, min_channels=4, round_to=3)) == []
    )  # 4 of 6 are nearer to 3, too few
    # of equal ones those dropped last are kept again, so that a larger ratio never spares what a smaller one drops
    assert find_dropped(score_flat(*[1] * 10), PlanConfig(0.2, min_channels=1, round_to=2)) == [4, 5]
    assert find_dropped(score_flat(*[1] * 10), PlanConfig(0.3, min_channels=1, round_to=2)) == [4, 5]


@given(networks(), st.integers(0, 99), st.floats(0, 0.9))
@settings(max_examples=30, deadline=None)
def test_any_network_can_be_pruned_to_what_it_allows(network: Network, seed: int, ratio: float) -> None:
    graph = make_channel_graph(network)
    importance, config = make_importance(graph, seed), PlanConfig(ratio, min_channels=1)
    free = sum(len(group.ids) - 1 for group in graph.groups if not group.frozen)
    if round(ratio * graph.prunable.sum()) > free:
        with pytest.raises(PlanError, match="use at most"):
            make_plan(graph, importance, config)
        return
    plan = make_plan(graph, importance, config)
    slim = prune_network(network, plan, graph)
    assert [conv.filters for _, conv in slim.convs] == [plan.keep[graph.writes[i]].sum() for i, _ in network.convs]
    assert plan.measure_ratio(graph) == pytest.approx((~plan.keep).sum() / max(1, graph.prunable.sum()))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_slimmer_network_s_graph_is_the_kept_part(arch: str) -> None:
    network = make_network(arch, width=0.25)
    graph = make_channel_graph(network)
    plan = make_plan_at_random(graph, 5)
    slim = make_channel_graph(prune_network(network, plan))
    renamed = np.cumsum(plan.keep) - 1
    for before, after in zip(graph.writes, slim.writes, strict=True):
        assert renamed[before[plan.keep[before]]].tolist() == after.tolist()


def test_an_infinite_score_saves_no_frozen_channel_s_place() -> None:
    importance = np.full(GRAPH.size, np.inf)
    assert make_plan(GRAPH, importance, PlanConfig(0.5)).keep[GRAPH.frozen].all()


def test_a_nan_score_is_named_by_its_layer() -> None:
    importance = score_flat(*range(10))
    importance[8] = np.nan
    with pytest.raises(PlanError, match=r"layer 1: the importance of a channel is NaN"):
        make_plan(make_channel_graph(FLAT), importance, PlanConfig(0.1))


def test_a_ratio_that_cannot_be_met_says_what_can() -> None:
    with pytest.raises(PlanError) as caught:
        make_plan(make_channel_graph(FLAT), score_flat(*range(10)), PlanConfig(0.7))
    assert str(caught.value) == (
        "ratio: 0.7 of 10 channels cannot be removed: 2 stay in every group; use at most 0.6, or a smaller min_channels"
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ratio": 1.0}, "ratio: 1 is out of range"),
        ({"ratio": -0.1}, "ratio: -0.1 is out of range"),
        ({"ratio": float("nan")}, "ratio: nan is out of range"),
        ({"min_channels": 0}, "min_channels: 0 is out of range"),
        ({"round_to": 0}, "round_to: 0 is out of range"),
    ],
)
def test_settings_out_of_range_are_named(values: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PlanConfig(**values)  # type: ignore[arg-type]  # the table holds what a flag could hold


@pytest.mark.parametrize(
    ("dropped", "said"),
    [
        ([0], "a detection head or the image"),
        ([13], "a detection head or the image"),
        ([3, 4, 5, 6], "layer 0: .*no channel"),
    ],
)
def test_a_plan_that_does_not_fit_is_rejected(dropped: list[int], said: str) -> None:
    keep = np.ones(19, dtype=bool)
    keep[dropped] = False
    with pytest.raises(PlanError, match=said):
        prune_network(FLAT, Plan(keep))
    with pytest.raises(PlanError, match="for 20 channels, the network has 19"):
        prune_network(FLAT, Plan(np.ones(20, dtype=bool)))


def test_a_floor_by_hand() -> None:
    # six of ten are dropped, so that a group that lost as many as all would keep 0.4 of its own: 1.6 of 4, 2.4 of 6
    importance, config = score_flat(*[0.1] * 4, *[1, 2, 3, 4, 5, 6]), PlanConfig(0.6, min_channels=1)
    graph = make_channel_graph(FLAT)

    def find(floor: float) -> list[int]:
        return find_dropped(rank_with_floor(graph, importance, config, floor), config)

    assert find(0) == [4, 5, 6, 7, 8, 9]  # all but one of the first convolution, which min_channels holds
    assert find(0.5) == [4, 5, 6, 7, 8, 9]  # at least 0.8
    assert find(0.7) == [4, 5, 7, 8, 9, 10]  # at least 1.12, which is two
    assert find(1) == [4, 5, 7, 8, 9, 10]


@given(st.integers(0, 99), st.floats(0, 0.95), st.floats(0, 0.95), st.integers(1, 4), st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_group_keeps_less_than_the_floor(
    seed: int, ratio: float, floor: float, min_channels: int, shortcuts: bool
) -> None:
    config = PlanConfig(ratio, shortcuts, min_channels)
    random = np.random.default_rng(seed)
    importance = random.random(GRAPH.size)
    for group in GRAPH.groups:
        importance[group.ids] *= 10 ** random.uniform(-4, 0)  # layers of other scales: the order alone would empty some
    prunable = [group for group in GRAPH.groups if not group.frozen and (shortcuts or not group.is_tied)]
    total = sum(len(group.ids) for group in prunable)
    if round(ratio * total) > total - sum(min(min_channels, len(group.ids)) for group in prunable):
        return
    plan = make_plan(GRAPH, rank_with_floor(GRAPH, importance, config, floor), config)
    dropped = int((~plan.keep).sum())
    assert dropped == round(ratio * total)
    is_late = (total - dropped) * (1 - floor) <= (min_channels + 1) * len(
        prunable
    )  # whole channels and `min_channels` rule there
    for group in prunable:
        kept, size = plan.keep[group.ids], len(group.ids)
        assert kept.sum() >= min(min_channels, size)
        if dropped and not is_late:
            assert kept.sum() >= floor * (1 - dropped / total) * size - 1e-6
        if not kept.all():  # within a group importance rules
            assert importance[group.ids[~kept]].max() <= np.sort(importance[group.ids])[-min_channels:].min()
            assert (importance[group.ids[kept]] >= importance[group.ids[~kept]].max()).all()


@given(st.integers(0, 99), RATIOS, RATIOS, st.none() | st.integers(1, 3), st.floats(0, 1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_with_a_floor_too_a_larger_ratio_drops_a_superset(
    seed: int, one: float, other: float, levels: int | None, floor: float, shortcuts: bool
) -> None:
    importance = make_importance(GRAPH, seed, levels)
    configs = [PlanConfig(ratio * 0.8, shortcuts, min_channels=1) for ratio in sorted((one, other))]
    small, large = (make_plan(GRAPH, rank_with_floor(GRAPH, importance, one, floor), one) for one in configs)
    assert not (large.keep & ~small.keep).any()


@given(st.integers(0, 99), RATIOS, st.none() | st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_floors_of_none_and_all_are_the_other_scopes(seed: int, ratio: float, levels: int | None) -> None:
    importance, config = make_importance(GRAPH, seed, levels), PlanConfig(0.9 * ratio, min_channels=1)
    plain, least = (
        make_plan(GRAPH, order, config) for order in (importance, rank_with_floor(GRAPH, importance, config, 0))
    )
    assert np.array_equal(plain.keep, least.keep)
    most, alike = (
        make_plan(GRAPH, order, config)
        for order in (rank_with_floor(GRAPH, importance, config, 1), rank_within_groups(GRAPH, importance))
    )
    for group in GRAPH.groups:
        assert abs(int(most.keep[group.ids].sum()) - int(alike.keep[group.ids].sum())) <= 1 + 0.05 * len(group.ids)


@given(st.integers(0, 99), st.floats(0.02, 1), st.floats(0.02, 1), st.floats(0, 1), st.sampled_from([1, 4]))
@settings(max_examples=20, deadline=None)
def test_with_a_floor_budgets_are_met_or_the_nearest_is_reported(
    seed: int, params: float, macs: float, floor: float, round_to: int
) -> None:
    network = make_network("yolov3", width=0.1)
    importance, full = make_importance(GRAPH, seed), measure_cost(network)
    config = PlanConfig(target_params=params, target_macs=macs, round_to=round_to)
    order = rank_with_floor(GRAPH, importance, config, floor)

    def plan(config: PlanConfig) -> Plan:
        return make_plan(GRAPH, order, config, make_cost_budgets(config, network, GRAPH, full))

    try:
        made = plan(config)
    except PlanError as error:
        told = re.search(r"use at least ([\d.]+)", str(error))
        assert told is not None
        where = error.where
        assert where in ("target_params", "target_macs")
        nearest = float(told[1])
        told_of = PlanConfig(round_to=round_to)
        plan(
            replace(told_of, target_params=nearest)
            if where == "target_params"
            else replace(told_of, target_macs=nearest)
        )
        return
    cost = measure_cost(prune_network(network, made, GRAPH), 64)
    assert cost.params <= params * full.params
    assert cost.macs <= macs * full.macs


@pytest.mark.parametrize(
    ("name", "multiple"),
    [("yolov3-hand", 16), ("yolov3-tiny-hand", 16), ("demo-hand", 8), ("yolov3-hand-quarter", 4)],
)
def test_the_default_multiple_keeps_the_ratio(name: str, multiple: int) -> None:
    network = load_cfg(ROOT / f"configs/{name}.cfg")
    graph = make_channel_graph(network)
    assert choose_multiple(graph) == multiple
    for seed, ratio in itertools.product(range(5), (0.5, 0.8)):
        plan = make_plan(graph, make_importance(graph, seed), PlanConfig(ratio, round_to=multiple))
        assert plan.measure_ratio(graph) == pytest.approx(ratio, abs=0.03)


def test_narrow_networks_take_any_width() -> None:
    assert choose_multiple(make_channel_graph(parse_cfg(TINY_CFG))) == 1
