"""What Torch-Pruning keeps of the same networks, at local scope."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from networks import measure_largest_gap, randomise_
from torch_pruning_peer import prune_with_torch_pruning

from yolo_prune.darknet.architectures import ARCHITECTURES, make_network
from yolo_prune.model.detector import ConvLayer, Detector
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.config import PlanConfig, ScoreConfig
from yolo_prune.pruning.plans.plan import Plan, make_plan, rank_within_groups
from yolo_prune.pruning.scores.importance import score_channels
from yolo_prune.pruning.surgery.rebuild import rebuild


def make_local_plan(model: Detector, criterion: Any, ratio: float) -> Plan:
    graph = make_channel_graph(model.network)
    importance = score_channels(model, graph, ScoreConfig(criterion))
    return make_plan(graph, rank_within_groups(graph, importance), PlanConfig(ratio, min_channels=1))


def count_filters(model: Detector) -> list[int]:
    return [conv.filters for _, conv in model.network.convs]


UNSLICED = sorted(set(ARCHITECTURES) - {"yolov4-tiny"})
"""Torch-Pruning drops other shares of the two halves that yolov4-tiny's routes slice, which no cfg can say."""


@pytest.mark.parametrize("criterion", ["l1", "l2", "bn-gamma"])
@pytest.mark.parametrize("arch", UNSLICED)
def test_half_of_every_layer_is_the_same_half_in_number(arch: str, criterion: str) -> None:
    model = randomise_(Detector(make_network(arch, width=0.25)), double=False)
    ours = rebuild(model, make_local_plan(model, criterion, 0.5))
    assert count_filters(prune_with_torch_pruning(model, 0.5, criterion)) == count_filters(ours)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.8])
@pytest.mark.parametrize("arch", ["yolov3", "yolov3-tiny"])
def test_at_other_ratios_counts_differ_by_rounding_alone(arch: str, ratio: float) -> None:
    """Torch-Pruning keeps ⌊(1 − ratio)·n⌋ of every layer; ours drops round(ratio·N) in all, spread evenly over the groups.

    Where that floor is 0 Torch-Pruning leaves the layer whole, so the networks are wide enough.
    """
    model = randomise_(Detector(make_network(arch, width=0.5)), double=False)
    ours = count_filters(rebuild(model, make_local_plan(model, "l2", ratio)))
    theirs = count_filters(prune_with_torch_pruning(model, ratio))
    assert all(0 <= one - other <= 1 for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("arch", ["yolov3", "yolov3-tiny", "yolov3-spp"])
def test_by_gamma_the_same_channels_stay_and_give_equal_outputs(arch: str) -> None:
    model = randomise_(Detector(make_network(arch, width=0.25)))
    plan = make_local_plan(model, "bn-gamma", 0.5)
    ours, theirs = rebuild(model, plan), prune_with_torch_pruning(model.float(), 0.5, "bn-gamma")
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        if isinstance(one, ConvLayer) and one.bn is not None:
            assert isinstance(other, ConvLayer)
            assert other.bn is not None
            assert np.array_equal(one.bn.weight.detach().float().numpy(), other.bn.weight.detach().numpy())
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert measure_largest_gap(ours.float().eval()(images), theirs.eval()(images)) == 0
