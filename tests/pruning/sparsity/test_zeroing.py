"""Rounding while channels are zeroed one after another, by scores that change at every step, and are removed in between."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import make_small_network, networks, randomise_

from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.layers import Conv
from yolo_prune.darknet.network import Network
from yolo_prune.errors import PlanError
from yolo_prune.model.detector import ConvLayer, Detector
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.config import PlanConfig
from yolo_prune.pruning.plans.plan import Plan
from yolo_prune.pruning.sparsity.zeroing import GradualZeroing, Removal, begin_removal
from yolo_prune.pruning.surgery.rebuild import rebuild

SIDE = 64
STEPS = 12


def zero_some_(model: Detector, share: float, random: np.random.Generator) -> Detector:
    """Set a share of the γ and β to zero in place, as sparsity training does."""
    with torch.no_grad():
        for module in model.layers:
            if isinstance(module, ConvLayer) and module.bn is not None:
                zeroed = torch.from_numpy(random.random(module.bn.num_features) < share)
                module.bn.weight[zeroed] = 0
                module.bn.bias[zeroed] = 0
    return model


def remove(model: Detector, config: PlanConfig, random: np.random.Generator) -> tuple[Detector, Removal]:
    """Remove channels in steps, with new random scores for each and cuts at random."""
    zeroing = GradualZeroing(model, begin_removal(model.network), config)
    for step in range(1, STEPS + 1):
        worth = torch.from_numpy(random.random(make_channel_graph(model.network).size))
        zeroing.zero_channels_(step / STEPS, worth)
        if step == STEPS or random.random() < 0.4:
            plan = zeroing.find_zeroed()
            model = rebuild(model, plan).eval()
            zeroing = GradualZeroing(model, zeroing.removal.after(plan, 0.0), config)
    return model, zeroing.removal


def find_unrounded(removal: Removal, multiple: int) -> list[tuple[int, int]]:
    """Return the groups, as channels before and after, that have neither a multiple nor all of their channels."""
    counts = [
        (len(group.ids), int(removal.kept[group.ids].sum())) for group in make_channel_graph(removal.original).groups
    ]
    return [(before, after) for before, after in counts if after % multiple and after != before]


@given(
    st.integers(0, 999), st.sampled_from([2, 4, 8, 16]), st.floats(0, 0.8), st.sampled_from([None, 0.3, 0.6]),
    st.sampled_from([0.0, 0.2, 0.6]), st.integers(1, 9),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_multiples_or_all_are_left_and_targets_met(
    seed: int, multiple: int, ratio: float, macs: float | None, zeros: float, min_channels: int
) -> None:
    random = np.random.default_rng(seed)
    network = make_network("yolov3-tiny", width=0.25, img_size=SIDE)
    model = zero_some_(randomise_(Detector(network), seed, double=False), zeros, random)
    config = PlanConfig(ratio, min_channels=min_channels, round_to=multiple, target_macs=macs)
    try:
        GradualZeroing(model, begin_removal(network), config).make_plan()
    except PlanError:
        return
    slim, removal = remove(model, config, random)
    assert find_unrounded(removal, multiple) == []
    assert macs is None or measure_cost(slim.network).macs <= macs * measure_cost(network).macs
    for group in make_channel_graph(network).groups:
        assert removal.kept[group.ids].sum() >= min(min_channels, len(group.ids))


@given(networks(), st.integers(0, 99), st.sampled_from([2, 3, 4]), st.floats(0, 0.8))
@settings(max_examples=25, deadline=None)
def test_any_network_is_left_with_multiples_or_all(network: Network, seed: int, multiple: int, ratio: float) -> None:
    random = np.random.default_rng(seed)
    model = zero_some_(randomise_(Detector(network), seed, double=False), 0.2, random)
    config = PlanConfig(ratio, round_to=multiple)
    try:
        GradualZeroing(model, begin_removal(network), config).make_plan()
    except PlanError:
        return
    assert find_unrounded(remove(model, config, random)[1], multiple) == []


@pytest.mark.parametrize(
    ("round_to", "zeroed", "left"),
    [
        (1, (3, 5), (7, 13)),
        (4, (3, 5), (8, 16)),
        (4, (4, 6), (8, 12)),
        (4, (7, 14), (4, 4)),
        (8, (7, 14), (8, 8)),
        (8, (1, 1), (10, 18)),  # the next multiple would be more than there are
    ],
)
def test_zeroed_channels_stay_where_a_multiple_needs_them(
    round_to: int, zeroed: tuple[int, int], left: tuple[int, int]
) -> None:
    """By hand, of groups of 10 and 18 channels."""
    network = make_small_network(Conv(10, 1), Conv(18, 1))
    model = randomise_(Detector(network), double=False)
    for layer, count in enumerate(zeroed):
        module = model.get_conv(layer)
        assert module.bn is not None
        with torch.no_grad():
            module.bn.weight[-count:] = 0
            module.bn.bias[-count:] = 0
    config = PlanConfig(0.0, round_to=round_to)
    plan: Plan = GradualZeroing(model, begin_removal(network), config).find_zeroed()
    graph = make_channel_graph(network)
    assert tuple(int(plan.keep[graph.writes[layer]].sum()) for layer in (0, 1)) == left
