from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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

from yolo_prune.darknet.architectures import ARCHITECTURES, make_network
from yolo_prune.darknet.layers import Conv
from yolo_prune.darknet.network import Network
from yolo_prune.model.detector import ConvLayer, Detector
from yolo_prune.model.fold import fold_batchnorm


@given(networks(), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_folding_gives_the_same_outputs(network: Network, seed: int) -> None:
    model = randomise_(Detector(network), seed)
    images = make_images(model, seed=seed)
    assert measure_largest_gap(run(fold_batchnorm(model), images), run(model, images)) < 1e-9


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_is_left_of_batch_normalisation(arch: str) -> None:
    model = randomise_(Detector(make_network(arch, width=0.1)))
    before = copy_state(model)
    folded = fold_batchnorm(model)
    assert not any(".bn." in name for name in folded.state_dict())
    assert not any(conv.batch_normalize for _, conv in folded.network.convs)
    assert not folded.training
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert is_same_state(model, before)
    images = make_images(model, 64)
    assert measure_largest_gap(run(folded, images), run(model, images)) < 1e-9


def test_one_convolution_folded_by_hand() -> None:
    model = Detector(make_small_network(Conv(1, 1)))
    module = model.get_conv(0)
    assert module.bn is not None
    with torch.no_grad():
        module.conv.weight.copy_(torch.tensor([1.0, 2, 3]).view(1, 3, 1, 1))
        module.bn.weight.fill_(6)
        module.bn.bias.fill_(5)
        module.bn.running_mean = torch.tensor([4.0])
        module.bn.running_var = torch.tensor([9.0 - 1e-5])
    folded = fold_batchnorm(model).layers[0]
    assert isinstance(folded, ConvLayer)
    assert folded.conv.bias is not None
    assert folded.conv.weight.flatten().tolist() == pytest.approx([2, 4, 6])
    assert folded.conv.bias.tolist() == pytest.approx([5 - 4 * 2])


def test_the_type_stays_and_folding_twice_is_folding_once() -> None:
    model = randomise_(Detector(make_small_network(Conv(4, 3, 1, 1))), double=False)
    once = fold_batchnorm(model)
    assert {tensor.dtype for tensor in once.state_dict().values()} == {torch.float32}
    assert is_same_state(fold_batchnorm(once), copy_state(once))
