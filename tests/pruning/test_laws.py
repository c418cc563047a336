"""The laws of pruning over every shipped cfg, several ratios and every criterion, on the networks' true widths."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import copy_state, is_same_state, measure_difference, measure_largest_gap, randomise_
from paths import ROOT
from torch import Tensor

from yolo_prune.arrays import Float64Array
from yolo_prune.darknet.cfg import format_cfg, load_cfg, parse_cfg
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.model.detector import Detector
from yolo_prune.model.weights import load_weights, save_weights
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.config import CRITERIA, PlanConfig, ScoreConfig
from yolo_prune.pruning.plans.plan import Plan, check_plan, make_cost_budgets, make_plan, prune_network
from yolo_prune.pruning.scores.importance import Example, score_channels
from yolo_prune.pruning.surgery.rebuild import compare, mask, rebuild

CFGS = sorted((ROOT / "configs").glob("*.cfg"))
RATIOS = (0.1, 0.5, 0.8, 0.95)
SIDE = 32
EXACT = 1e-9


@lru_cache(maxsize=1)
def make_model(path: Path) -> Detector:
    """Return a shipped network at its full width, float32, every number random; not to be changed.

    Its running statistics are those of its own activations: else each layer's output would be fainter than the one before,
    and what is wrong in the middle of a deep network would hardly show at its end.
    """
    model = randomise_(Detector(load_cfg(path)), 1, double=False)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.rand(4, 3, 2 * SIDE, 2 * SIDE, generator=torch.Generator().manual_seed(2)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


@lru_cache(maxsize=len(CRITERIA))
def score(path: Path, criterion: Any) -> Float64Array:
    model = make_model(path)
    return score_channels(model, make_channel_graph(model.network), ScoreConfig(criterion), make_examples())


def make_examples() -> Iterator[Example]:
    generator = torch.Generator().manual_seed(3)
    yield (
        torch.rand(2, 3, SIDE, SIDE, generator=generator),
        torch.tensor([[0, 0, 0.5, 0.4, 0.3, 0.6], [1, 0, 0.2, 0.7, 0.2, 0.2]]),
    )


@pytest.mark.parametrize("path", CFGS, ids=lambda path: path.stem)
def test_laws_of_a_shipped_cfg(path: Path, tmp_path: Path) -> None:
    model = make_model(path)
    network, graph, before = model.network, make_channel_graph(model.network), copy_state(model)
    assert parse_cfg(format_cfg(network)) == network
    everything = Plan(np.ones(graph.size, dtype=bool))
    assert is_same_state(rebuild(model, everything), before)
    dropped: dict[tuple[str, float], Plan] = {}
    exact = copy.deepcopy(model).double()  # once, not for every comparison
    for criterion in CRITERIA:
        importance = score(path, criterion)
        for ratio in RATIOS:
            plan = dropped[criterion, ratio] = make_plan(graph, importance, PlanConfig(ratio, min_channels=1))
            check_plan(graph, plan)
            assert (~plan.keep).sum() == round(ratio * graph.prunable.sum())
            slim = rebuild(exact, plan)
            assert slim.network == prune_network(network, plan, graph)
            assert measure_cost(slim.network).params == sum(parameter.numel() for parameter in slim.parameters())
            assert measure_difference(mask(exact, plan), slim, SIDE) < EXACT, (criterion, ratio)
        for less, more in itertools.pairwise(RATIOS):
            assert not (dropped[criterion, more].keep & ~dropped[criterion, less].keep).any()
    check_round_trip(rebuild(model, dropped["l2", 0.8]), tmp_path)
    assert is_same_state(model, before)
    assert len({plan.keep.tobytes() for (_, ratio), plan in dropped.items() if ratio == 0.5}) == len(CRITERIA)


def test_the_goal_on_the_case_study_s_network() -> None:
    """95 % fewer parameters and 90 % fewer MACs, made, rebuilt and verified, on heads that do react to the image."""
    path = next(path for path in CFGS if path.stem == "yolov3-hand")
    model = make_model(path)
    graph, full = make_channel_graph(model.network), measure_cost(model.network)
    config = PlanConfig(target_params=0.05, target_macs=0.1)
    plan = make_plan(graph, score(path, "l2"), config, make_cost_budgets(config, model.network, graph, full))
    slim = rebuild(model, plan)
    cost = measure_cost(slim.network)
    assert cost.params <= 0.05 * full.params
    assert cost.macs <= 0.1 * full.macs
    difference, response = compare(mask(model, plan), slim, SIDE)
    assert difference < EXACT
    assert response > 1e6 * EXACT


def check_round_trip(slim: Detector, folder: Path) -> None:
    """Expect the same outputs of a network that went through cfg text and a .weights file, and the same bytes of it again."""
    weights = save_weights(slim, folder / "one.weights")
    twin = Detector(parse_cfg(format_cfg(slim.network))).eval()
    load_weights(twin, weights)
    assert save_weights(twin, folder / "two.weights").read_bytes() == weights.read_bytes()
    images: Tensor = next(make_examples())[0]
    with torch.no_grad():
        assert measure_largest_gap(slim.eval()(images), twin(images)) == 0


@pytest.mark.parametrize("part", ["reads", "writes"])
@pytest.mark.parametrize("path", CFGS, ids=lambda path: path.stem)
def test_a_rebuild_with_one_index_shifted_breaks_the_law(path: Path, part: str) -> None:
    """The law can fail: one convolution that reads, or writes, its neighbour's channels is seen in the heads."""
    model = make_model(path)
    graph = make_channel_graph(model.network)
    plan = make_plan(graph, score(path, "random"), PlanConfig(0.5))
    slim = rebuild(model, plan)
    middle = [index for index, _ in model.network.convs if index not in model.network.head_convs][
        len(graph.conv_layers) // 2
    ]
    name = f"layers.{middle}.conv.weight" if part == "reads" else f"layers.{middle}.bn.weight"
    tensor = slim.state_dict()[name]
    tensor.copy_(tensor.roll(1, 1 if part == "reads" else 0))
    assert measure_difference(mask(model, plan), slim, SIDE) > 1e3 * EXACT
