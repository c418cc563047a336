from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import (
    SIDE,
    copy_state,
    is_same_state,
    make_images,
    make_plan_at_random,
    make_small_network,
    measure_difference,
    measure_largest_gap,
    networks,
    randomise_,
    run,
)

from yolo_prune.darknet.architectures import ARCHITECTURES, make_network
from yolo_prune.darknet.layers import Conv, MaxPool, Route, Shortcut, Upsample
from yolo_prune.darknet.network import Network
from yolo_prune.errors import PlanError
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.plans.plan import Plan
from yolo_prune.pruning.surgery.constants import carry_constants
from yolo_prune.pruning.surgery.rebuild import mask, rebuild

EXACT = 1e-9
WIDTH = 0.125


@torch.no_grad()
def still(model: Detector, plan: Plan) -> Detector:
    """Return the model whose dropped channels give their constant act(β): γ, or the kernel, is 0 and β stays."""
    graph, stilled = make_channel_graph(model.network), copy.deepcopy(model)
    for index in graph.conv_layers:
        module = stilled.get_conv(index)
        scale = module.conv.weight if module.bn is None else module.bn.weight
        scale[torch.from_numpy(~plan.keep[graph.writes[index]])] = 0
    return stilled


def keep_all(network: Network) -> Plan:
    return Plan(np.ones(make_channel_graph(network).size, dtype=bool))


def drop_every_other(network: Network) -> Plan:
    graph = make_channel_graph(network)
    keep = np.ones(graph.size, dtype=bool)
    keep[np.flatnonzero(graph.prunable)[::2]] = False
    return Plan(keep)


@given(networks(), st.integers(0, 999))
@settings(max_examples=80, deadline=None)
def test_rebuilt_equals_masked_for_any_network_and_plan(network: Network, seed: int) -> None:
    model = randomise_(Detector(network), seed)
    plan = make_plan_at_random(make_channel_graph(network), seed)
    images = make_images(model, seed=seed)
    assert measure_largest_gap(run(rebuild(model, plan), images), run(mask(model, plan), images)) < EXACT


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("seed", range(3))
def test_rebuilt_equals_masked_for_plans_at_random(arch: str, seed: int) -> None:
    model = randomise_(Detector(make_network(arch, classes=2, width=WIDTH)), seed)
    plan = make_plan_at_random(make_channel_graph(model.network), seed)
    images = make_images(model, 64)
    assert measure_largest_gap(run(rebuild(model, plan), images), run(mask(model, plan), images)) < EXACT


@given(networks(), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_keeping_all_is_the_identity(network: Network, seed: int) -> None:
    model, plan = randomise_(Detector(network), seed, double=False), keep_all(network)
    before = copy_state(model)
    for twin in (rebuild(model, plan), mask(model, plan), rebuild(model, plan, carry_constants(model, plan))):
        assert twin.network == network
        assert is_same_state(twin, before)


@given(networks(), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_given_model_is_left_as_it_was(network: Network, seed: int) -> None:
    model = randomise_(Detector(network), seed)
    before, plan = copy_state(model), make_plan_at_random(make_channel_graph(network), seed)
    masked, constants = mask(model, plan), carry_constants(model, plan)
    slim = rebuild(model, plan, constants)
    measure_difference(masked, slim, SIDE)
    slim.train()(make_images(slim))
    for parameter in slim.parameters():
        parameter.data.zero_()
    assert is_same_state(model, before)
    assert next(iter(model.state_dict().values())).dtype == torch.float64


@pytest.mark.parametrize("part", ["conv.weight rows", "conv.weight columns", "bn.weight", "bn.bias", "bn.running_mean"])
@pytest.mark.parametrize("index", [1, 3, 4])
def test_one_shifted_index_is_caught(index: int, part: str) -> None:
    network = make_small_network(Conv(6, 3, 1, 1), Conv(6, 1), Shortcut(0), Conv(5, 3, 1, 1), Conv(7, 1))
    model, plan = randomise_(Detector(network), 2), make_plan_at_random(make_channel_graph(network), 3)
    masked, slim = mask(model, plan), rebuild(model, plan)
    assert measure_difference(masked, slim, SIDE) < EXACT
    name, _, axis = part.partition(" ")
    tensor = slim.state_dict()[f"layers.{index}.{name}"]
    shape = tensor.shape[1 if axis == "columns" else 0]
    assert shape > 1
    tensor.copy_(tensor.roll(1, 1 if axis == "columns" else 0))
    assert measure_difference(masked, slim, SIDE) > 1e-3


@given(networks(), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_the_difference_is_that_of_the_outputs(network: Network, seed: int) -> None:
    one, other = (randomise_(Detector(network), seed + step) for step in range(2))
    images = make_images(one, batch=1, seed=seed)
    expected = measure_largest_gap(run(one, images), run(other, images))
    assert measure_difference(one, other, SIDE, seed) == pytest.approx(expected, rel=1e-9, abs=EXACT)
    assert measure_difference(one.float(), one, SIDE, seed) == 0


@pytest.mark.parametrize("head", [0, 1])
def test_a_head_that_outputs_nan_is_a_difference(head: int) -> None:
    model = randomise_(Detector(make_network("yolov3-tiny", width=0.05)))
    broken = copy.deepcopy(model)
    index = sorted(model.network.head_convs)[head]
    broken.state_dict()[f"layers.{index}.conv.bias"][0] = float("nan")
    assert not measure_difference(model, broken, 64) <= EXACT


def test_settings_that_no_tensor_holds_are_kept() -> None:
    model = Detector(make_small_network(Conv(4, 3, 1, 1))).train()
    module = model.get_conv(0)
    assert module.bn is not None
    module.bn.eps, module.bn.momentum = 0.5, 0.25
    plan = make_plan_at_random(make_channel_graph(model.network), 0)
    for twin in (mask(model, plan), rebuild(model, plan)):
        first = twin.get_conv(0)
        assert first.bn is not None
        assert (first.bn.eps, first.bn.momentum, twin.training) == (0.5, 0.25, True)


def test_kept_channels_are_those_of_the_plan() -> None:
    model = randomise_(Detector(make_small_network(Conv(4, 3, 1, 1), Conv(3, 1))))
    keep = np.ones(16, dtype=bool)
    keep[[3, 5, 8]] = False  # channels 0 and 2 of the first convolution, 1 of the second
    before, after = model.state_dict(), rebuild(model, Plan(keep)).state_dict()
    assert torch.equal(after["layers.0.conv.weight"], before["layers.0.conv.weight"][[1, 3]])
    assert torch.equal(after["layers.1.conv.weight"], before["layers.1.conv.weight"][[0, 2]][:, [1, 3]])
    assert torch.equal(after["layers.1.bn.running_var"], before["layers.1.bn.running_var"][[0, 2]])
    assert torch.equal(after["layers.2.conv.weight"], before["layers.2.conv.weight"][:, [0, 2]])


def test_a_slimmer_model_can_be_trained() -> None:
    model = randomise_(Detector(make_network("yolov3-tiny", width=WIDTH)), double=False).train()
    slim = rebuild(model, make_plan_at_random(make_channel_graph(model.network), 1))
    sum(raw.square().sum() for raw in slim(make_images(slim, 64))).backward()
    assert all(parameter.grad is not None for parameter in slim.parameters())


@given(networks(pointwise=True), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_constants_are_absorbed_exactly_by_1x1_consumers(network: Network, seed: int) -> None:
    model = randomise_(Detector(network), seed)
    plan = make_plan_at_random(make_channel_graph(network), seed)
    slim, images = rebuild(model, plan, carry_constants(model, plan)), make_images(model, seed=seed)
    assert measure_largest_gap(run(slim, images), run(still(model, plan), images)) < EXACT


def test_constants_flow_through_every_layer_exactly() -> None:
    network = make_small_network(
        Conv(6, 3, 1, 1),
        Conv(6, 1),
        Shortcut(0, "leaky"),
        MaxPool(5, 1, 4),
        MaxPool(2, 2, 1),
        Conv(6, 1, groups=6),
        Upsample(),
        Route((6, 2)),
        Conv(8, 1),
        Route((8,), 2, 1),
    )
    model, plan = randomise_(Detector(network), 4), drop_every_other(network)
    slim, images = rebuild(model, plan, carry_constants(model, plan)), make_images(model)
    stilled = run(still(model, plan), images)
    assert measure_largest_gap(run(slim, images), stilled) < EXACT
    assert measure_largest_gap(run(rebuild(model, plan), images), stilled) > 0.01  # they do matter


@pytest.mark.parametrize("depth", [1, 2])
def test_3x3_consumers_are_off_only_within_the_padded_border(depth: int) -> None:
    network = make_small_network(Conv(6, 3, 1, 1), *[Conv(6, 3, 1, 1)] * depth)
    model, plan = randomise_(Detector(network), 1), drop_every_other(network)
    images = make_images(model)
    (carried,), (stilled,) = (
        run(rebuild(model, plan, carry_constants(model, plan)), images),
        run(still(model, plan), images),
    )
    gap = (carried - stilled).abs().amax((0, 1))
    inside = gap[depth:-depth, depth:-depth]
    assert inside.max() < EXACT
    assert gap[0].min() > 1e-6
    assert gap[:, -1].min() > 1e-6


def test_constants_by_hand() -> None:
    network = make_small_network(Conv(2, 1, activation="relu"), Conv(2, 1), Shortcut(0), Upsample())
    model = randomise_(Detector(network))
    state = model.state_dict()
    state["layers.0.bn.bias"].copy_(torch.tensor([0.5, -2.0]))
    state["layers.1.bn.bias"].copy_(torch.tensor([9.0, -3.0]))
    keep = np.ones(5 + 6, dtype=bool)
    keep[4] = False  # the second channel of the tied pair
    constants = carry_constants(model, Plan(keep))
    assert constants[0].tolist() == [0, 0]
    assert constants[1].tolist() == pytest.approx([0, -0.3])
    assert constants[3].tolist() == pytest.approx([0, -0.3])


@pytest.mark.parametrize("cut", [mask, rebuild])
def test_a_plan_for_another_network_is_rejected(cut: object) -> None:
    model = Detector(make_small_network(Conv(4, 1)))
    with pytest.raises(PlanError, match="for 5 channels, the network has 13"):
        cut(model, Plan(np.ones(5, dtype=bool)))  # type: ignore[operator]  # either of two functions
