"""Convolutions fitted anew after a cut, against cases by hand, lstsq, and the unmasked network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import (
    copy_state,
    is_same_state,
    make_images,
    make_plan_at_random,
    make_small_network,
    measure_largest_gap,
    networks,
    randomise_,
    run,
)
from torch import Tensor
from torch.nn import functional

from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.layers import Conv, MaxPool, Route, Shortcut, Upsample
from yolo_prune.darknet.network import Network
from yolo_prune.errors import PlanError
from yolo_prune.model.detector import Detector, Heads
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.plans.plan import Plan, prune_network
from yolo_prune.pruning.surgery.constants import carry_constants, measure_constants
from yolo_prune.pruning.surgery.rebuild import rebuild
from yolo_prune.pruning.surgery.refit import find_reached, refit
from yolo_prune.pruning.surgery.replay import Replay

MIXED = make_small_network(
    Conv(8, 3, 1, 1),
    MaxPool(2, 2, 1),
    Conv(8, 3, 1, 1),
    Conv(8, 1, activation="mish"),
    Shortcut(2),
    Conv(8, 3, 1, 1, groups=8),
    Conv(6, 1, groups=2),
    MaxPool(2, 2, 1),
    Conv(4, 1, batch_normalize=False),
    Upsample(),
    Route((-1 + 10, 4)),
    Conv(6, 3, 1, 1),
)


def drop(network: Network, layer: int, channels: list[int]) -> Plan:
    """Return the plan that drops these output channels of a convolution."""
    graph = make_channel_graph(network)
    keep = np.ones(graph.size, dtype=bool)
    keep[graph.writes[layer][channels]] = False
    return Plan(keep)


def make_batches(model: Detector, count: int = 3, side: int = 16) -> list[Tensor]:
    return [make_images(model, side=side, batch=4, seed=100 + number) for number in range(count)]


def measure_squares(one: Heads, other: Heads) -> float:
    return sum(float((a - b).square().mean()) for a, b in zip(one, other, strict=True))


@torch.no_grad()
def tie_linearly_(model: Detector) -> None:
    """Make channel 2 of layer 0 be 2 · channel 0 − 3 · channel 1 + 4, before and after a linear activation, in place."""
    layer = model.get_conv(0)
    assert layer.bn is not None
    assert layer.bn.running_mean is not None
    assert layer.bn.running_var is not None
    scale = layer.bn.weight / (layer.bn.running_var + layer.bn.eps).sqrt()
    shift = layer.bn.bias - layer.bn.running_mean * scale
    layer.conv.weight[2] = (2 * scale[0] * layer.conv.weight[0] - 3 * scale[1] * layer.conv.weight[1]) / scale[2]
    layer.bn.bias[2] += 2 * shift[0] - 3 * shift[1] + 4 - shift[2]


@pytest.mark.parametrize("normalised", [True, False])
def test_a_linear_combination_is_taken_over_exactly(normalised: bool) -> None:
    network = make_small_network(Conv(4, 3, 1, 1, activation="linear"), Conv(5, 1, batch_normalize=normalised))
    model = randomise_(Detector(network))
    tie_linearly_(model)
    images = make_images(model, seed=9)
    slim = refit(model, drop(network, 0, [2]), make_batches(model), ridge=1e-13)
    assert measure_largest_gap(run(slim, images), run(model, images)) < 1e-9
    old, new = model.get_conv(1).conv.weight.flatten(1), slim.get_conv(1).conv.weight.flatten(1)
    expected = torch.stack((old[:, 0] + 2 * old[:, 2], old[:, 1] - 3 * old[:, 2], old[:, 3]), 1)
    assert torch.allclose(new, expected, 1e-6, 1e-6)


def test_a_twin_is_taken_over_by_kernels_of_any_size() -> None:
    network = make_small_network(Conv(4, 3, 1, 1, activation="mish"), MaxPool(2, 2, 1), Conv(5, 3, 2, 1), Conv(3, 1))
    model = randomise_(Detector(network))
    for tensor in model.get_conv(0).state_dict().values():
        if tensor.ndim:
            tensor[2] = tensor[1]
    images = make_images(model, seed=9)
    slim = refit(model, drop(network, 0, [2]), make_batches(model, 8), ridge=1e-13)
    assert measure_largest_gap(run(slim, images), run(model, images)) < 1e-7
    old, new = model.get_conv(2).conv.weight, slim.get_conv(2).conv.weight
    assert torch.allclose(new, torch.stack((old[:, 0], old[:, 1] + old[:, 2], old[:, 3]), 1), 1e-5, 1e-5)


@pytest.mark.parametrize("layer", [1, 2])
def test_a_layer_is_what_lstsq_makes_of_what_it_reads(layer: int) -> None:
    """Targets of the original, inputs of what is pruned and fitted so far, padding included."""
    network = make_small_network(Conv(6, 3, 1, 1), Conv(5, 3, 2, 1), Conv(4, 3, 1, 1, batch_normalize=False))
    model, batches = randomise_(Detector(network)), make_batches(randomise_(Detector(network)))
    plan = drop(network, 0, [1, 3])
    slim = refit(model, plan, batches, ridge=1e-12)
    read: list[Tensor] = []
    wanted: list[Tensor] = []

    def see(into: list[Tensor]) -> object:
        def visit(index: int, inputs: list[Tensor], _: Tensor) -> None:
            if index == layer:
                into.append(inputs[0])

        return visit

    for batch in batches:
        with torch.no_grad():
            slim(batch, see(read))
            model(batch, see(wanted))
    kernel = slim.get_conv(layer).conv
    stride = kernel.stride[0]
    with torch.no_grad():
        rows = functional.unfold(torch.cat(read), 3, padding=1, stride=stride).transpose(1, 2).flatten(0, 1)
        targets = model.get_conv(layer).conv(torch.cat(wanted)).permute(0, 2, 3, 1).flatten(0, 2)
        given = slim.get_conv(layer).conv(torch.cat(read)).permute(0, 2, 3, 1).flatten(0, 2)
        solution = torch.linalg.lstsq(torch.cat((rows, rows.new_ones(len(rows), 1)), 1), targets).solution
    assert torch.allclose(kernel.weight.flatten(1), solution[:-1].T, 1e-5, 1e-6)
    norm = slim.get_conv(layer).bn
    if norm is None:
        assert kernel.bias is not None
        assert torch.allclose(kernel.bias, solution[-1], 1e-5, 1e-6)
    else:
        old = model.get_conv(layer).bn
        assert old is not None
        assert old.running_mean is not None
        assert norm.running_mean is not None
        assert torch.allclose(old.running_mean - norm.running_mean, solution[-1], 1e-5, 1e-6)
        given = given + (old.running_mean - norm.running_mean)
    assert torch.allclose(given.mean(0), targets.mean(0))


@given(networks(), st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_any_network_is_fitted_and_repeats(network: Network, seed: int) -> None:
    plan = make_plan_at_random(make_channel_graph(network), seed)
    model = randomise_(Detector(network), seed)
    before, batches = copy_state(model), make_batches(model)
    slim = refit(model, plan, batches)
    assert slim.network == prune_network(network, plan)
    assert all(tensor.isfinite().all() for tensor in slim.state_dict().values())
    assert is_same_state(refit(model, plan, batches), copy_state(slim))
    assert is_same_state(model, before)
    assert all(parameter.requires_grad for parameter in slim.parameters())
    assert not slim.training


@given(networks(), st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_what_no_cut_reaches_stays_to_the_bit(network: Network, seed: int) -> None:
    graph = make_channel_graph(network)
    model = randomise_(Detector(network), seed)
    everything = Plan(np.ones(graph.size, dtype=bool))
    batches = make_batches(model, 1)
    assert is_same_state(refit(model, everything, batches), copy_state(model))
    plan = make_plan_at_random(graph, seed)
    reached, plain = find_reached(network, graph, plan), copy_state(rebuild(model, plan))
    for name, tensor in refit(model, plan, batches).state_dict().items():
        if int(name.split(".")[1]) not in reached:
            assert torch.equal(tensor, plain[name])


def test_what_a_cut_reaches_by_hand() -> None:
    network = make_small_network(Conv(4, 1), Conv(4, 1), Conv(4, 1), Route((0,)), Conv(4, 1))
    graph = make_channel_graph(network)
    assert find_reached(network, graph, drop(network, 1, [0])) == {2}
    assert find_reached(network, graph, drop(network, 4, [0])) == {5, 6}
    assert find_reached(network, graph, drop(network, 0, [0])) == set(range(1, 7))


def test_it_is_nearer_than_constants_through_shortcuts_routes_pooling_and_groups() -> None:
    plan, gaps = make_plan_at_random(make_channel_graph(MIXED), 7), np.zeros(3)
    for seed in range(4):
        model = randomise_(Detector(MIXED), seed)
        batches, unseen = make_batches(model, 8), make_images(model, batch=8, seed=5)
        wanted = run(model, unseen)
        ways = (
            refit(model, plan, batches),
            rebuild(model, plan, measure_constants(model, plan, batches)),
            rebuild(model, plan, carry_constants(model, plan)),
        )
        gaps += [measure_squares(run(slim, unseen), wanted) for slim in ways]
    fitted, mean, leaky = gaps
    assert fitted < 0.7 * min(mean, leaky)


def test_grouped_convolutions_keep_their_weights_and_get_the_mean() -> None:
    model = randomise_(Detector(MIXED))
    plan, batches = drop(MIXED, 0, [0, 3]), make_batches(model)
    slim, plain = refit(model, plan, batches), rebuild(model, plan)
    outputs: dict[str, dict[int, Tensor]] = {"slim": {}, "model": {}}
    for layer in (5, 6):
        assert torch.equal(slim.get_conv(layer).conv.weight, plain.get_conv(layer).conv.weight)
        for name, one in (("slim", slim), ("model", model)):
            norm = one.get_conv(layer).bn
            assert norm is not None
            assert norm.running_mean is not None
            (total,) = (
                one.get_conv(layer).conv(
                    torch.cat(list(Replay(one.requires_grad_(False), batches).iterate_inputs(layer)))
                ),
            )
            outputs[name][layer] = (total - norm.running_mean.view(-1, 1, 1)).mean((0, 2, 3))
        assert torch.allclose(outputs["slim"][layer], outputs["model"][layer], 1e-9, 1e-9)


@given(networks(), st.sampled_from([0, 3_000, 10**9]))
@settings(max_examples=30, deadline=None)
def test_a_replay_gives_what_each_layer_reads_however_little_it_stores(network: Network, stored_bytes: int) -> None:
    model = randomise_(Detector(network))
    batches, seen = make_batches(model, 2), dict[tuple[int, int], Tensor]()
    with torch.no_grad():
        for number, batch in enumerate(batches):
            model(batch, lambda index, inputs, _: seen.setdefault((number, index), inputs[0].clone()))  # noqa: B023
        replay = Replay(model, batches, stored_bytes)
        for layer, _ in network.convs:
            for number, inputs in enumerate(replay.iterate_inputs(layer)):
                assert torch.equal(inputs, seen[number, layer])


def test_yolov3_is_fitted() -> None:
    network = make_network("yolov3", width=0.1)
    model = randomise_(Detector(network), double=False)
    plan = make_plan_at_random(make_channel_graph(network), 2)
    slim = refit(model, plan, [make_images(model, side=64, batch=2)])
    assert all(tensor.isfinite().all() for tensor in slim.state_dict().values())


def test_without_images_it_says_so() -> None:
    model = randomise_(Detector(MIXED))
    with pytest.raises(PlanError, match="fold: there are no images to fit weights on; name a data set"):
        refit(model, drop(MIXED, 0, [0]), [])
