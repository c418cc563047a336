"""Criterion obs: what channels cost once the others have taken over what they can."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import copy_state, is_same_state, make_images, make_small_network, networks, randomise_
from test_importance import TARGETS

from yolo_prune.arrays import Float64Array
from yolo_prune.darknet.layers import Conv, MaxPool, Route, Shortcut
from yolo_prune.darknet.network import Network
from yolo_prune.errors import PlanError
from yolo_prune.model.detector import Detector
from yolo_prune.model.loss import DetectionLoss
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.scores import obs
from yolo_prune.pruning.scores.obs import measure_statistics, score_by_reconstruction

PLAIN = make_small_network(Conv(5, 3, 1, 1), Conv(4, 3, 1, 1))


def make_examples(model: Detector, count: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(make_images(model, seed=seed), TARGETS) for seed in range(count)]


def score(model: Detector) -> Float64Array:
    return score_by_reconstruction(model, make_channel_graph(model.network), make_examples(model))


def test_statistics_equal_slow_ones() -> None:
    model = randomise_(Detector(PLAIN))
    found = measure_statistics(model, make_channel_graph(PLAIN), make_examples(model))[1]
    loss, rows, slopes = DetectionLoss(PLAIN), [], []
    kernel = model.get_conv(1).conv
    for images, targets in make_examples(model):
        inputs = model.get_conv(0)(images).detach()
        outputs = torch.nn.functional.conv2d(inputs, kernel.weight, padding=1).detach().requires_grad_(True)
        norm = model.get_conv(1).bn
        assert norm is not None
        heads = [model.get_conv(2)(torch.nn.functional.leaky_relu(norm(outputs), 0.1))]
        (gradient,) = torch.autograd.grad(loss.measure(heads, targets, 16, 16).total, outputs)
        rows.append(inputs.permute(0, 2, 3, 1).flatten(0, 2).numpy())
        slopes.append(gradient.permute(0, 2, 3, 1).flatten(0, 2).numpy())
    assert found.covariance == pytest.approx(np.cov(np.concatenate(rows).T, bias=True), rel=1e-9)
    assert found.gradients == pytest.approx(sum(slope.T @ slope for slope in slopes) / 2, rel=1e-9, abs=1e-15)


def make_case(seed: int, channels: int = 6) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return a covariance, gradients' squares and weights (out, in, 3, 3) of a convolution."""
    random = np.random.default_rng(seed)
    root, slopes = random.normal(size=(channels, 2 * channels)), random.normal(size=(4, 9))
    return root @ root.T / channels, slopes @ slopes.T, random.normal(size=(4, channels, 3, 3))


def measure_damage(
    covariance: Float64Array, gradients: Float64Array, weight: Float64Array, removed: list[int]
) -> float:
    """Return the least Σ over the kernel's places of E[δᵀ G δ] that other channels can leave of what these gave."""
    kept = [channel for channel in range(len(covariance)) if channel not in removed]
    predict = np.linalg.solve(covariance[np.ix_(kept, kept)], covariance[np.ix_(kept, removed)])
    left = covariance[np.ix_(removed, removed)] - covariance[np.ix_(removed, kept)] @ predict
    own = weight[:, removed].transpose(2, 3, 0, 1).reshape(-1, len(weight), len(removed))
    return float(sum(np.trace(gradients @ part @ left @ part.T) for part in own))


@given(st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_a_reader_s_costs_add_up_to_the_damage(seed: int) -> None:
    covariance, gradients, weight = make_case(seed)
    seen = obs.Statistics(covariance, gradients)
    every = np.arange(6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(obs, "RIDGE", 0.0)
        patch.setattr(obs, "CONSTANT", 0.0)
        reader = obs._make_reader(seen, weight, every, every, 6)
        assert reader.measure_costs() == pytest.approx(
            [measure_damage(covariance, gradients, weight, [channel]) for channel in range(6)]
        )
        total, removed, left = 0.0, list[int](), list(range(6))
        for place in (3, 0, 2):
            total += float(reader.measure_costs()[place])
            reader.remove(np.arange(len(left)) == place)
            removed.append(left.pop(place))
            assert total == pytest.approx(measure_damage(covariance, gradients, weight, removed), rel=1e-6)
        several = obs._make_reader(seen, weight, every, every, 6)
        several.remove(np.isin(np.arange(6), removed))
        assert several.precision == pytest.approx(reader.precision)
        assert several.weight == pytest.approx(reader.weight)


def test_of_twins_one_costs_little_and_the_other_then_costs_what_both_are_worth() -> None:
    model = randomise_(Detector(make_small_network(Conv(6, 3, 1, 1, activation="linear"), Conv(4, 1))))
    for tensor in model.get_conv(0).state_dict().values():
        if tensor.ndim:
            tensor[4] = tensor[1]
    scores = score(model)[3:9]
    order = np.argsort(scores).tolist()
    assert order[0] in (1, 4)
    assert scores[order[0]] < 0.1 * np.delete(scores, order[0]).min()


@pytest.mark.parametrize("part", ["bn.weight", "conv.weight"])
def test_what_never_varies_or_nobody_reads_costs_nothing(part: str) -> None:
    model = randomise_(Detector(PLAIN))
    if part == "bn.weight":
        model.get_conv(0).state_dict()[part][2] = 0  # γ: only act(β) is left, which a bias absorbs
    else:
        model.get_conv(1).state_dict()[part][:, 2] = 0
    scores = score(model)[3:8]
    assert scores[2] < 1e-6 * np.delete(scores, 2).min()


def test_a_channel_costs_in_every_layer_that_reads_it() -> None:
    layers = (Conv(4, 3, 1, 1), Conv(4, 1), Shortcut(0), Conv(5, 3, 1, 1), Route((2, 3, 2)), Conv(4, 1))
    model = randomise_(Detector(make_small_network(*layers)))
    graph = make_channel_graph(model.network)
    (group,) = (group for group in graph.groups if group.is_tied)
    readers = list(obs._find_readers(model, graph, measure_statistics(model, graph, make_examples(model)), group))
    assert len(readers) == 4  # layers 1 and 3, and 5 twice
    costs = np.sum([reader.measure_costs() for reader in readers], axis=0)
    assert score(model)[group.ids].min() == pytest.approx(costs.min())


def test_a_grouped_convolution_reads_each_group_s_part() -> None:
    model = randomise_(Detector(make_small_network(Conv(4, 1), Conv(6, 3, 1, 1, groups=2), Conv(3, 1))))
    wide = obs._widen(model.get_conv(1).conv)
    inputs = make_images(model)[:, :1].repeat(1, 4, 1, 1) * torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1)
    expected = model.get_conv(1).conv(inputs)
    assert torch.allclose(torch.nn.functional.conv2d(inputs, torch.from_numpy(wide), padding=1), expected)
    assert np.isfinite(score(model)[3:5]).all()


@given(networks(), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_scores_are_no_less_than_nothing_and_no_two_of_a_group_alike(network: Network, seed: int) -> None:
    model = randomise_(Detector(network), seed).train()
    before = copy_state(model)
    graph, scores = make_channel_graph(network), score(model)
    assert is_same_state(model, before)
    assert model.training
    assert np.array_equal(scores, score(model))
    for group in graph.groups:
        own = scores[group.ids]
        assert np.isinf(own).all() if group.frozen else np.isfinite(own).all()
        assert group.frozen or ((own >= 0).all() and len(set(own.tolist())) == len(own))


def test_many_channels_are_removed_in_steps_and_nearly_as_one_by_one() -> None:
    network = make_small_network(Conv(160, 3, 1, 1), MaxPool(2, 2, 1), Conv(8, 3, 1, 1))
    model = randomise_(Detector(network))
    fast = score(model)[3:163]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(obs, "STEPS", 1000)
        slow = score(model)[3:163]
    assert len(set(np.argsort(fast)[:80]) & set(np.argsort(slow)[:80])) > 70


def test_it_needs_images() -> None:
    model = randomise_(Detector(PLAIN))
    with pytest.raises(PlanError, match="criterion: obs has no images"):
        score_by_reconstruction(model, make_channel_graph(PLAIN), [])
