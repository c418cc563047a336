"""γ sparsity: the proximal step of every group, against a step worked by hand, and which channels count as at zero."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import copy_state, make_small_network, networks, randomise_
from torch import Tensor

from yolo_prune.darknet.layers import Conv, Shortcut
from yolo_prune.darknet.network import Network
from yolo_prune.errors import PlanError
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.sparsity.gamma_sparsity import GammaSparsity

TIED = make_small_network(Conv(3, 1), Conv(3, 1), Shortcut(0), Conv(4, 1))


def make_tied(first: list[float], second: list[float], alone: list[float]) -> tuple[Detector, GammaSparsity]:
    """Return a model whose first two convolutions are tied and whose third is not, with these γ."""
    model = randomise_(Detector(TIED))
    for index, values in ((0, first), (1, second), (3, alone)):
        gamma = get_gamma(model, index)
        gamma.copy_(gamma.new_tensor(values))
    return model, GammaSparsity(model, make_channel_graph(TIED))


def get_gamma(model: Detector, index: int) -> Tensor:
    gamma: Tensor = model.state_dict()[f"layers.{index}.bn.weight"]
    return gamma


def test_a_channel_of_its_own_is_soft_thresholded() -> None:
    model, sparsity = make_tied([1, 1, 1], [1, 1, 1], [0.5, -0.5, 0.05, -0.1])
    sparsity.shrink_(0.1)
    assert get_gamma(model, 3).tolist() == pytest.approx([0.4, -0.4, 0, 0])
    assert get_gamma(model, 3)[2] == 0


def test_tied_channels_shrink_by_their_root_mean_square() -> None:
    # rms of (3, 4) is √12.5, of (0.1, 0) √0.005 < 0.2, of (-1, 1) 1
    model, sparsity = make_tied([3, 0.1, -1], [4, 0, 1], [1, 1, 1, 1])
    sparsity.shrink_(0.2)
    factor = 1 - 0.2 / 12.5**0.5
    assert get_gamma(model, 0).tolist() == pytest.approx([3 * factor, 0, -0.8])
    assert get_gamma(model, 1).tolist() == pytest.approx([4 * factor, 0, 0.8])


def test_members_reach_zero_together() -> None:
    model, sparsity = make_tied([0.9, 0.5, 0.01], [0.1, 0.4, 0.02], [1, 1, 1, 1])
    counts = []
    for _ in range(12):
        sparsity.shrink_(0.06)
        zeros = get_gamma(model, 0) == 0
        assert torch.equal(zeros, get_gamma(model, 1) == 0)
        counts.append(int(zeros.sum()))
    assert counts[0] == 1
    assert counts[-1] == 3
    assert counts == sorted(counts)


def test_it_is_the_proximal_step() -> None:
    # prox minimises ½‖x − γ‖² + amount·√m·‖x‖, here over the two members of every tied channel
    model, sparsity = make_tied([0.9, 0.5, -0.3], [0.1, -0.4, 0.8], [1, 1, 1, 1])
    before = torch.stack((get_gamma(model, 0), get_gamma(model, 1))).clone()
    sparsity.shrink_(0.15)
    after = torch.stack((get_gamma(model, 0), get_gamma(model, 1)))
    generator = torch.Generator().manual_seed(0)

    def measure(x: Tensor) -> Tensor:
        return 0.5 * (x - before).square().sum(0) + 0.15 * math.sqrt(2) * x.square().sum(0).sqrt()

    for _ in range(200):
        nearby = after + 0.05 * torch.randn(after.shape, generator=generator, dtype=after.dtype)
        assert (measure(after) <= measure(nearby)).all()


@given(networks(), st.floats(0, 2), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_only_prunable_gammas_move_and_never_past_zero(network: Network, amount: float, seed: int) -> None:
    model, graph = randomise_(Detector(network), seed), make_channel_graph(network)
    before = copy_state(model)
    if not any(conv.batch_normalize for _, conv in network.convs):
        with pytest.raises(PlanError, match="batch_normalize=1"):
            GammaSparsity(model, graph)
        return
    GammaSparsity(model, graph).shrink_(amount)
    lacking = [graph.writes[index] for index, conv in network.convs if not conv.batch_normalize]
    can_move = graph.prunable & ~np.isin(np.arange(graph.size), np.concatenate([[], *lacking]))
    for name, after in model.state_dict().items():
        if not name.endswith("bn.weight"):
            assert torch.equal(after, before[name])
            continue
        prunable = torch.from_numpy(can_move[graph.writes[int(name.split(".")[1])]])
        assert torch.equal(after[~prunable], before[name][~prunable])
        assert (after * before[name] >= 0).all()
        assert (after.abs() <= before[name].abs()).all()
        assert amount < 1e-9 or (after.abs() < before[name].abs())[prunable].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_parameters_themselves_are_changed(dtype: torch.dtype) -> None:
    model, _ = make_tied([1, 1, 1], [1, 1, 1], [1, 1, 1, 1])
    model.to(dtype)
    parameters = dict(model.named_parameters())
    GammaSparsity(model, make_channel_graph(TIED)).shrink_(0.25)
    gamma = parameters["layers.3.bn.weight"]
    assert gamma.tolist() == [0.75] * 4
    assert gamma.dtype == dtype
    assert gamma.requires_grad


def test_channels_below_a_threshold_are_counted_once() -> None:
    _, sparsity = make_tied([0.1, 1, 0], [0.2, 0, 0], [0.05, 1, 2, -0.05])
    assert np.isfinite(sparsity.measure()).sum() == 7
    assert (sparsity.measure() < 0.2).sum() == 4
    sparsity.shrink_(10)
    assert (sparsity.measure() < 1e-9).sum() == 7


def test_channels_without_a_gamma_are_not_counted() -> None:
    network = make_small_network(Conv(3, 1), Conv(5, 1, batch_normalize=False))
    model = randomise_(Detector(network))
    assert (GammaSparsity(model, make_channel_graph(network)).measure() < 100).sum() == 3
