from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from networks import (
    copy_state,
    is_same_state,
    make_images,
    make_small_network,
    measure_largest_gap,
    networks,
    randomise_,
    run,
)
from torch import Tensor

from yolo_prune.darknet.architectures import ARCHITECTURES, make_network
from yolo_prune.darknet.layers import Conv, Shortcut
from yolo_prune.darknet.network import Network
from yolo_prune.model.detector import ConvLayer, Detector
from yolo_prune.pruning.channels import Group, make_channel_graph
from yolo_prune.pruning.sparsity.balance import MEAN_GAMMA, balance_gammas_


def get_gammas(model: Detector, group: Group) -> Tensor:
    """Return all |γ| of a group's members."""
    graph = make_channel_graph(model.network)
    gammas = []
    for layer in group.writers:
        module = model.get_conv(layer)
        assert module.bn is not None
        gammas.append(module.bn.weight.detach()[torch.from_numpy(np.isin(graph.writes[layer], group.ids))].abs())
    return torch.cat(gammas)


def list_groups(network: Network) -> list[Group]:
    return [group for group in make_channel_graph(network).groups if not group.frozen]


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_homogeneous_group_is_balanced_and_outputs_stay(architecture: str) -> None:
    model = randomise_(Detector(make_network(architecture, 1, 0.125, 64)), seed=1)
    images = make_images(model, 64, batch=1)
    before = run(model, images)
    homogeneous = {index for index, conv in model.network.convs if conv.activation != "mish"}
    groups = [group for group in list_groups(model.network) if homogeneous.issuperset(group.writers)]
    assert balance_gammas_(model) == len(groups)
    assert max(abs(float(get_gammas(model, group).mean()) - MEAN_GAMMA) for group in groups) < 1e-12
    assert measure_largest_gap(before, run(model, images)) < 1e-9


@settings(max_examples=40, deadline=None)
@given(networks())
def test_outputs_of_any_network_stay(network: Network) -> None:
    model = randomise_(Detector(network))
    images = make_images(model)
    before = run(model, images)
    balance_gammas_(model)
    largest = max(float(head.abs().max()) for head in before)
    assert measure_largest_gap(before, run(model, images)) <= 1e-9 * max(1, largest)


@torch.no_grad()
def test_layers_of_wildly_different_scale_come_together() -> None:
    network = make_small_network(Conv(4, 3, padding=1), Conv(6, 1), Conv(6, 3, padding=1), Shortcut(1))
    plain = randomise_(Detector(network))
    scaled = copy.deepcopy(plain)
    first, second = scaled.layers[0], scaled.layers[1]
    assert isinstance(first, ConvLayer)
    assert isinstance(second, ConvLayer)
    assert first.bn is not None
    first.bn.weight.mul_(1000)
    first.bn.bias.mul_(1000)
    second.conv.weight.div_(1000)
    assert balance_gammas_(plain) == balance_gammas_(scaled) == 2
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(scaled.state_dict()[name], tensor, rtol=1e-12, atol=1e-12)


def test_balancing_twice_is_balancing_once() -> None:
    model = randomise_(Detector(make_network("yolov3-tiny", 1, 0.125, 64)))
    balance_gammas_(model, 0.25)
    once = copy_state(model)
    balance_gammas_(model, 0.25)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, once[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "layers",
    [
        (Conv(4, 1, activation="mish"),),
        (Conv(4, 1, activation="swish"),),
        (Conv(4, 1, activation="logistic"),),  # frozen as well
        (Conv(4, 1, batch_normalize=False),),
        (Conv(4, 1), Conv(4, 1, activation="mish"), Shortcut(0)),  # one odd member is enough
        (Conv(4, 1), Conv(4, 1), Shortcut(0, "swish")),
    ],
    ids=["mish", "swish", "logistic", "not-normalised", "tied-to-mish", "shortcut-swish"],
)
def test_what_is_not_homogeneous_is_left_alone(layers: tuple[Conv | Shortcut, ...]) -> None:
    model = randomise_(Detector(make_small_network(*layers)))
    before = copy_state(model)
    assert balance_gammas_(model) == 0
    assert is_same_state(model, before)


def test_what_a_head_reads_keeps_its_gamma() -> None:
    network = make_small_network()
    *layers, head = network.layers
    normalised_head = Conv(layers[-1].filters, 1) if isinstance(layers[-1], Conv) else None
    assert normalised_head is not None
    model = randomise_(Detector(Network(16, 16, 3, (Conv(4, 1), normalised_head, head))))
    module = model.get_conv(1)
    assert module.bn is not None
    before = module.bn.weight.detach().clone()
    assert balance_gammas_(model) == 1
    assert torch.equal(module.bn.weight, before)


@torch.no_grad()
def test_a_dead_group_stays_dead() -> None:
    model = randomise_(Detector(make_small_network(Conv(4, 1), Conv(4, 1))))
    module = model.get_conv(0)
    assert module.bn is not None
    module.bn.weight.zero_()
    kernel = module.conv.weight.clone()
    assert balance_gammas_(model) == 1
    assert torch.equal(module.bn.weight, torch.zeros_like(module.bn.weight))
    assert torch.equal(module.conv.weight, kernel)
