"""Constants measured on images, and pruned models held against the unmasked one, whose borders nothing has touched."""

from __future__ import annotations

from collections.abc import Collection, Iterator

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

from yolo_prune.darknet.layers import Conv, MaxPool, Route, Shortcut, Upsample
from yolo_prune.darknet.network import Network
from yolo_prune.errors import PlanError
from yolo_prune.model.detector import Detector, Heads
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.plans.plan import Plan
from yolo_prune.pruning.surgery.constants import Constants, carry_constants, measure_constants
from yolo_prune.pruning.surgery.rebuild import rebuild

EXACT = 1e-9
MIXED = make_small_network(
    Conv(6, 3, 1, 1),
    Conv(6, 3, 1, 1),
    Shortcut(0),
    MaxPool(2, 2, 0),
    Conv(4, 1, batch_normalize=False, activation="relu"),
    Upsample(),
    Route((5, 2)),  # 4 + 6 channels
    Conv(5, 3, 1, 1),
)


def drop_every_other(network: Network, layers: Collection[int] | None = None) -> Plan:
    """Return a plan without every other channel that can be pruned, of some convolutions or of all."""
    graph = make_channel_graph(network)
    written = np.concatenate([graph.writes[layer] for layer in layers or graph.conv_layers])
    keep = np.ones(graph.size, dtype=bool)
    keep[np.intersect1d(np.flatnonzero(graph.prunable), written)[::2]] = False
    return Plan(keep)


@torch.no_grad()
def shrink_(model: Detector, plan: Plan, scale: float) -> Detector:
    """Multiply γ, or the kernel where nothing is normalised, of every channel that the plan drops, in place; β stays."""
    graph = make_channel_graph(model.network)
    for index in graph.conv_layers:
        module = model.get_conv(index)
        scaled = module.conv.weight if module.bn is None else module.bn.weight
        scaled[torch.from_numpy(~plan.keep[graph.writes[index]])] *= scale
    return model


def run_slowly(model: Detector, image: Tensor) -> list[Tensor]:
    """Return what every layer of `MIXED` gives for one image (3, H, W), written out by hand."""
    state, outputs = {name: tensor.detach() for name, tensor in model.state_dict().items()}, list[Tensor]()

    def convolve(index: int, inputs: Tensor) -> Tensor:
        weight = state[f"layers.{index}.conv.weight"]
        raw: Tensor = functional.conv2d(inputs[None], weight, padding=weight.shape[-1] // 2)[0]
        if index in (4, 8):
            biased = raw + state[f"layers.{index}.conv.bias"][:, None, None]
            return torch.where((biased > 0) | (index == 8), biased, 0)
        mean, variance, gamma, beta = (
            state[f"layers.{index}.bn.{name}"][:, None, None]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        normal = gamma * (raw - mean) / (variance + 1e-5).sqrt() + beta
        return torch.where(normal > 0, normal, 0.1 * normal)

    outputs.append(convolve(0, image))
    outputs.append(convolve(1, outputs[0]))
    outputs.append(outputs[0] + outputs[1])
    outputs.append(outputs[2].reshape(6, 8, 2, 8, 2).amax((2, 4)))
    outputs.append(convolve(4, outputs[3]))
    outputs.append(outputs[4].repeat_interleave(2, 1).repeat_interleave(2, 2))
    outputs.append(torch.cat((outputs[5], outputs[2])))
    outputs.append(convolve(7, outputs[6]))
    outputs.append(convolve(8, outputs[7]))
    return [*outputs, outputs[8]]


@pytest.mark.parametrize("seed", range(5))
def test_measured_constants_equal_slow_means(seed: int) -> None:
    model, graph = randomise_(Detector(MIXED), seed), make_channel_graph(MIXED)
    plan, images = make_plan_at_random(graph, seed), make_images(model, batch=3, seed=seed)
    constants = measure_constants(model, plan, torch.split(images, [2, 1]))
    slow = [run_slowly(model, image) for image in images]
    assert measure_largest_gap([torch.stack([outputs[-1] for outputs in slow])], run(model, images)) < EXACT
    assert set(constants) == set(range(len(MIXED.layers)))
    for index in constants:
        for place, channel in enumerate(graph.writes[index]):
            pixels = torch.stack([outputs[index][place] for outputs in slow])
            expected = 0 if plan.keep[channel] else float(pixels.sum() / pixels.numel())
            assert float(constants[index][place]) == pytest.approx(expected, rel=1e-9, abs=EXACT)


def test_measured_constants_by_hand() -> None:
    model = Detector(make_small_network(Conv(2, 1, batch_normalize=False, activation="relu")))
    state = model.state_dict()
    state["layers.0.conv.weight"].copy_(torch.tensor([[1.0, 0, 0], [4, 0, 0]]).view(2, 3, 1, 1))
    state["layers.0.conv.bias"].copy_(torch.tensor([0, -2.0]))
    keep = np.ones(3 + 2 + 6, dtype=bool)
    keep[4] = False  # max(0, 4 · red − 2)
    images = torch.zeros(2, 3, 1, 2)
    images[0, 0, 0, 0], images[1, 0, 0, 0] = 1, 0.75
    assert measure_constants(model, Plan(keep), [images])[0].tolist() == [0, (2 + 0 + 1 + 0) / 4]


@given(networks(), st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_kept_channels_are_zero_and_all_shapes_fit(network: Network, seed: int) -> None:
    graph, model = make_channel_graph(network), randomise_(Detector(network), seed, double=False)
    plan = make_plan_at_random(graph, seed)
    constants = measure_constants(model, plan, [make_images(model, seed=seed)])
    assert [constants[index].shape[0] for index in range(len(network.layers))] == [
        shape.channels for shape in network.shapes
    ]
    for index, values in constants.items():
        assert values.dtype == torch.float32
        assert not values[torch.from_numpy(plan.keep[graph.writes[index]])].any()


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_means_do_not_depend_on_batches(sizes: list[int], seed: int) -> None:
    model, plan = randomise_(Detector(MIXED), seed), drop_every_other(MIXED)
    images = make_images(model, batch=sum(sizes), seed=seed)
    whole = measure_constants(model, plan, [images])
    for batches in (torch.split(images, sizes), iter(torch.split(images.flip(0), sizes))):
        parts = measure_constants(model, plan, batches)
        assert all(torch.allclose(parts[index], whole[index], 1e-12, 1e-12) for index in whole)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_the_model_as_it_was(training: bool) -> None:
    model = randomise_(Detector(MIXED)).train(training)
    before, plan = copy_state(model), drop_every_other(MIXED)
    constants = measure_constants(model, plan, [make_images(model)])
    assert model.training is training
    assert all(module.training is training for module in model.modules())
    assert is_same_state(model, before)
    assert not any(values.requires_grad for values in constants.values())
    evaluated = measure_constants(model.eval(), plan, [make_images(model)])  # never by a batch's own statistics
    assert all(torch.equal(constants[index], evaluated[index]) for index in constants)


def test_images_that_fail_leave_the_model_as_it_was() -> None:
    model = Detector(MIXED).train()

    def fail() -> Iterator[Tensor]:
        yield make_images(model)
        raise OSError

    with pytest.raises(OSError, match=r"^$"):
        measure_constants(model, drop_every_other(MIXED), fail())
    assert model.training


def test_no_images_are_rejected() -> None:
    model = Detector(MIXED).train()
    with pytest.raises(PlanError) as caught:
        measure_constants(model, drop_every_other(MIXED), [])
    assert str(caught.value) == ("fold: there are no images to take the mean of; name a data set, or use leaky")
    assert model.training


@given(networks(gates=False), st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_channels_without_γ_measure_as_what_is_carried(network: Network, seed: int) -> None:
    plan = make_plan_at_random(make_channel_graph(network), seed)
    model = shrink_(randomise_(Detector(network), seed), plan, 0)
    carried = carry_constants(model, plan)
    for index, values in measure_constants(model, plan, [make_images(model, seed=seed)]).items():
        assert torch.allclose(values, carried[index], 1e-9, EXACT)


def make_constants(model: Detector, plan: Plan) -> Iterator[Constants]:
    """Yield the constants of both kinds, `leaky` first."""
    yield carry_constants(model, plan)
    yield measure_constants(model, plan, [make_images(model, seed=7)])


@given(networks(pointwise=True), st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_without_γ_1x1_consumers_give_the_unmasked_model_s_outputs(network: Network, seed: int) -> None:
    plan = make_plan_at_random(make_channel_graph(network), seed)
    model = shrink_(randomise_(Detector(network), seed), plan, 0)
    images = make_images(model, seed=seed)
    for constants in make_constants(model, plan):
        assert measure_largest_gap(run(rebuild(model, plan, constants), images), run(model, images)) < EXACT


@pytest.mark.parametrize("activation", ["leaky", "mish"])
@pytest.mark.parametrize("dropped", [0, 1, 2, 3])
def test_without_γ_3x3_consumers_are_off_only_within_the_padded_border(dropped: int, activation: str) -> None:
    network = make_small_network(*[Conv(6, 3, 1, 1, activation=activation)] * 4)
    plan = drop_every_other(network, [dropped])
    model, width = shrink_(randomise_(Detector(network), 1), plan, 0), 3 - dropped
    images = make_images(model)

    def measure_gaps(constants: Constants | None) -> Tensor:
        (slim,), (unmasked,) = run(rebuild(model, plan, constants), images), run(model, images)
        return (slim - unmasked).abs().amax((0, 1))

    for constants in make_constants(model, plan):
        gaps = measure_gaps(constants)
        assert gaps[width : 16 - width, width : 16 - width].max() < EXACT
        if width:
            assert gaps[0].min() > 1e-5
            assert gaps[:, -1].min() > 1e-5
            assert gaps[width - 1, width - 1 : 17 - width].max() > 1e-5  # the innermost that a border reaches
    assert measure_gaps(None).min() > 1e-5


def test_without_constants_1x1_consumers_are_off_everywhere() -> None:
    network = make_small_network(Conv(6, 3, 1, 1), Conv(6, 1), Shortcut(0), Conv(6, 1))
    plan = drop_every_other(network)
    model = shrink_(randomise_(Detector(network)), plan, 0)
    images = make_images(model)
    (slim,), (unmasked,) = run(rebuild(model, plan), images), run(model, images)
    assert (slim - unmasked).abs().amax((0, 1)).min() > 1e-2


def measure_squares(one: Heads, other: Heads) -> float:
    """Return the mean squared difference of two models' outputs, summed over heads."""
    return sum(float((a - b).square().mean()) for a, b in zip(one, other, strict=True))


@given(st.floats(0.01, 2), st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_no_constant_is_nearer_than_the_mean_where_a_head_reads_it(scale: float, seed: int) -> None:
    network = make_small_network(Conv(6, 3, 1, 1), Conv(6, 3, 1, 1))
    plan = drop_every_other(network, [1])
    model = shrink_(randomise_(Detector(network), seed), plan, scale)
    images = make_images(model, seed=seed)
    unmasked, mean = run(model, images), measure_constants(model, plan, [images])
    best = measure_squares(run(rebuild(model, plan, mean), images), unmasked)
    nudged = {index: values + 0.01 * (values != 0) for index, values in mean.items()}
    for constants in (carry_constants(model, plan), None, nudged):
        assert measure_squares(run(rebuild(model, plan, constants), images), unmasked) > best


@pytest.mark.parametrize("scale", [0.05, 0.2])
@pytest.mark.parametrize("size", [1, 3])
def test_the_mean_is_nearer_than_leaky_and_leaky_than_none(size: int, scale: float) -> None:
    conv = Conv(6, size, 1, size // 2)
    network = make_small_network(Conv(6, 3, 1, 1), conv, conv, Shortcut(0), conv, Route((4, 3)), conv)
    plan, gaps = drop_every_other(network), np.zeros(3)
    for seed in range(10):
        model = shrink_(randomise_(Detector(network), seed), plan, scale)
        seen, unseen = (make_images(model, batch=4, seed=seed + step) for step in (100, 200))
        unmasked = run(model, unseen)
        for place, constants in enumerate((measure_constants(model, plan, [seen]), carry_constants(model, plan), None)):
            gaps[place] += measure_squares(run(rebuild(model, plan, constants), unseen), unmasked)
    mean, leaky, none = gaps
    assert 1.1 * mean < leaky
    assert 2 * leaky < none
