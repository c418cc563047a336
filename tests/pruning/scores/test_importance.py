from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import copy_state, is_same_state, make_images, make_small_network, networks, randomise_

from yolo_prune.arrays import Float64Array
from yolo_prune.darknet.layers import Conv, Shortcut
from yolo_prune.darknet.network import Network
from yolo_prune.errors import ConfigError, PlanError
from yolo_prune.model.detector import Detector
from yolo_prune.model.loss import DetectionLoss
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.config import CRITERIA, Normalization, ScoreConfig
from yolo_prune.pruning.plans.plan import rank_within_groups
from yolo_prune.pruning.scores.importance import Example, normalize_groups, reduce_members, score_channels

TIED = make_small_network(Conv(2, 1), Conv(2, 1), Shortcut(0), Conv(3, 1, batch_normalize=False))
"""Ids: image 0-2, the tied pair 3-4, the plain convolution 5-7, the head from 8 on."""
TARGETS = torch.tensor([[0, 0, 0.5, 0.4, 0.3, 0.6], [1, 0, 0.2, 0.7, 0.4, 0.2]], dtype=torch.float64)


def make_tied() -> Detector:
    """Return the tied network with round numbers in every kernel and γ."""
    model = randomise_(Detector(TIED))
    state = model.state_dict()
    state["layers.0.bn.weight"].copy_(torch.tensor([0.5, -1.0]))
    state["layers.1.bn.weight"].copy_(torch.tensor([-0.1, 3.0]))
    state["layers.0.conv.weight"].copy_(torch.tensor([[1.0, -2.0, 2.0], [0.0, 3.0, -4.0]]).view(2, 3, 1, 1))
    state["layers.1.conv.weight"].copy_(torch.tensor([[6.0, 8.0], [0.0, 1.0]]).view(2, 2, 1, 1))
    state["layers.3.conv.weight"].copy_(torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0]]).view(3, 2, 1, 1))
    return model


def score(model: Detector, criterion: str, examples: list[Example] | None = None, **choices: str) -> Float64Array:
    graph = make_channel_graph(model.network)
    return score_channels(model, graph, ScoreConfig(criterion, **choices), examples or [])  # type: ignore[arg-type]  # texts all


def combine(members: Sequence[float], how: str) -> float:
    return max(members) if how == "max" else sum(members) / (len(members) if how == "mean" else 1)


def make_examples(model: Detector, count: int = 2) -> list[Example]:
    return [(make_images(model, seed=seed), TARGETS) for seed in range(count)]


@pytest.mark.parametrize(
    ("criterion", "pair", "plain"),
    [
        ("bn-gamma", [(0.5, 0.1), (1, 3)], [0, 5, 3]),  # nothing is normalised in the plain one: its filter's norm
        ("l1", [(5, 14), (7, 1)], [0, 7, 3]),
        ("l2", [(3, 10), (5, 1)], [0, 5, 3]),
        ("fpgm", [(62**0.5, 85**0.5)] * 2, [8, 5 + 4, 3 + 4]),
    ],
)
@pytest.mark.parametrize("reduce", ["mean", "max", "sum"])
def test_scores_by_hand(criterion: str, pair: list[tuple[float, float]], plain: list[float], reduce: str) -> None:
    importance = score(make_tied(), criterion, group_reduce=reduce)
    assert importance[:3].tolist() == [np.inf] * 3
    assert importance[3:5].tolist() == pytest.approx([combine(members, reduce) for members in pair])
    assert importance[5:8].tolist() == pytest.approx(plain)


@pytest.mark.parametrize("targets", [TARGETS, TARGETS[:0]])
def test_taylor_is_the_loss_s_slope_along_a_channel_s_gate(targets: torch.Tensor) -> None:
    layers = (Conv(5, 3, 1, 1), Conv(4, 1, batch_normalize=False), Conv(3, 3, 2, 1))
    model = randomise_(Detector(make_small_network(*layers)))
    graph, examples = make_channel_graph(model.network), [(make_images(model, seed=seed), targets) for seed in range(3)]
    importance = score(model, "taylor", examples)
    for layer in graph.conv_layers:
        slopes = [measure_slope(model, layer, example) for example in examples]
        assert importance[graph.writes[layer]] == pytest.approx(
            torch.stack(slopes).square().mean(0).sqrt().numpy(), rel=1e-9
        )
        if not len(targets):  # the loss holds nothing constant then that depends on the gate
            slowly = [measure_slope_slowly(model, layer, example) for example in examples]
            assert np.array(slowly) == pytest.approx(torch.stack(slopes).numpy(), rel=1e-5, abs=1e-9)


def open_gate(model: Detector, layer: int, gate: torch.Tensor, example: Example) -> torch.Tensor:
    """Return the loss with each channel of a convolution, or its γ and β, multiplied by its gate."""
    module = model.get_conv(layer)
    names = ("conv.weight", "conv.bias") if module.bn is None else ("bn.weight", "bn.bias")
    state = dict(model.named_parameters())
    gated = {
        name: state[name] * gate.view(-1, *[1] * (state[name].ndim - 1))
        for name in (f"layers.{layer}.{n}" for n in names)
    }
    heads = torch.func.functional_call(model.eval(), gated, (example[0],))
    return DetectionLoss(model.network).measure(heads, example[1], 16, 16).total


def measure_slope(model: Detector, layer: int, example: Example) -> torch.Tensor:
    gate = torch.ones(model.network.shapes[layer].channels, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(open_gate(model, layer, gate, example), gate)[0]


def measure_slope_slowly(model: Detector, layer: int, example: Example, step: float = 1e-5) -> list[float]:
    slopes = []
    for nudge in torch.eye(model.network.shapes[layer].channels, dtype=torch.float64) * step:
        up, down = (open_gate(model, layer, 1 + sign * nudge, example) for sign in (1, -1))
        slopes.append(float((up - down).detach()) / (2 * step))
    return slopes


def test_taylor_averages_over_batches_and_needs_one() -> None:
    model = make_tied()
    one, two = make_examples(model)
    both, first, second = (score(model, "taylor", examples)[5:] for examples in ([one, two], [one], [two]))
    assert both == pytest.approx(np.sqrt((first**2 + second**2) / 2))
    with pytest.raises(PlanError, match="criterion: taylor has no images"):
        score(model, "taylor")


@given(networks(), st.sampled_from(CRITERIA), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_scoring_changes_nothing_and_repeats(network: Network, criterion: str, seed: int) -> None:
    model = randomise_(Detector(network), seed).train()
    before = copy_state(model)
    examples = make_examples(model)
    importance = score(model, criterion, examples)
    assert importance.shape == (make_channel_graph(network).size,)
    assert np.array_equal(importance, score(model, criterion, examples))
    assert is_same_state(model, before)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_random_follows_from_its_seed() -> None:
    model, graph = make_tied(), make_channel_graph(TIED)
    one, same, other = (score_channels(model, graph, ScoreConfig("random", seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@given(
    networks(), st.integers(0, 99), st.sampled_from(("mean", "max", "sum")), st.sampled_from(get_args(Normalization))
)
@settings(max_examples=40, deadline=None)
def test_reduction_and_normalisation_equal_a_slow_one(network: Network, seed: int, reduce: str, by: str) -> None:
    graph, random = make_channel_graph(network), np.random.default_rng(seed)
    by_layer = {layer: random.random(len(graph.writes[layer])) for layer in graph.conv_layers}
    scores = normalize_groups(graph, reduce_members(graph, by_layer, reduce), by)
    members: dict[int, list[float]] = {}
    for layer, values in by_layer.items():
        for name, value in zip(graph.writes[layer].tolist(), values.tolist(), strict=True):
            members.setdefault(name, []).append(value)
    for group in graph.groups:
        slow = [combine(members[name], reduce) if name in members else np.inf for name in group.ids.tolist()]
        unit = {"none": 1.0, "mean": sum(slow) / len(slow), "max": max(slow)}[by]
        assert scores[group.ids].tolist() == pytest.approx(
            [value / (unit if np.isfinite(unit) else 1) for value in slow]
        )


def test_a_group_of_zeros_is_left_alone() -> None:
    graph = make_channel_graph(TIED)
    assert normalize_groups(graph, np.zeros(graph.size), "mean").tolist() == [0.0] * graph.size


@given(networks(), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_ranks_within_groups_spread_evenly_and_keep_the_order(network: Network, seed: int) -> None:
    graph = make_channel_graph(network)
    importance = np.random.default_rng(seed).random(graph.size)
    shares = rank_within_groups(graph, importance)
    for group in graph.groups:
        count = len(group.ids)
        assert sorted(shares[group.ids]) == pytest.approx([(rank + 0.5) / count for rank in range(count)])
        assert np.array_equal(np.argsort(shares[group.ids]), np.argsort(importance[group.ids]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ("layers.1.bn.weight", "layer 1: γ holds NaN or infinity; train again"),
        ("layers.3.conv.weight", "layer 3: conv.weight holds NaN"),
        ("layers.0.bn.running_var", "layer 0: bn.running_var holds NaN"),
    ],
)
def test_what_is_not_finite_is_named_by_its_layer(value: float, tensor: str, said: str) -> None:
    model = make_tied()
    model.state_dict()[tensor].view(-1)[1] = value
    for criterion in ("bn-gamma", "l1", "taylor"):
        with pytest.raises(PlanError, match=said):
            score(model, criterion, make_examples(model))


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"criterion": "l3"}, "criterion: unknown criterion l3; use bn-gamma, l1"),
        ({"group_reduce": "min"}, "group_reduce: unknown group reduce min; use mean, max or sum"),
        ({"normalize": "l2"}, "normalize: unknown normalize l2; use none, mean or max"),
        ({"scope": "net"}, "scope: unknown scope net; use global, layer or floor"),
        ({"score_batches": 0}, "score_batches: 0 is out of range"),
        ({"seed": -1}, "seed: -1 is out of range"),
    ],
)
def test_settings_out_of_range_are_named(choices: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ScoreConfig(**choices)  # type: ignore[arg-type]  # the table holds what a flag could hold
    assert str(caught.value).startswith(said)
