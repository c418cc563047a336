from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from networks import make_images, make_small_network, networks
from torch import nn

from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cost import format_cost, measure_cost
from yolo_prune.darknet.layers import Conv, MaxPool
from yolo_prune.darknet.network import Network
from yolo_prune.errors import CfgError
from yolo_prune.model.detector import Detector
from yolo_prune.model.weights import save_weights


def test_the_case_study_s_numbers() -> None:
    cost = measure_cost(make_network("yolov3", classes=1), 416)
    assert cost.params == 61_523_734
    assert cost.macs == 32_644_937_728
    assert cost.flops == 2 * cost.macs
    assert cost.size_bytes == 246_305_368
    assert format_cost(cost).endswith("61,523,734 params, 32.64 G MACs at 416 px, 246.3 MB")


def test_a_network_counted_by_hand() -> None:
    network = make_small_network(Conv(4, 3, 2, 1), MaxPool(2, 2, 1), Conv(8, 3, 1, 1, groups=4), side=8)
    cost = measure_cost(network)
    first, pool, depthwise, head, yolo = cost.layers
    assert (first.shape, first.params, first.macs, first.size_bytes) == ((4, 4, 4), 116, 1728, 4 * (108 + 16))
    assert (pool.shape, pool.params, pool.macs) == ((4, 2, 2), 0, 0)
    assert (depthwise.params, depthwise.macs, depthwise.size_bytes) == (8 * 9 + 16, 72 * 4, 4 * (72 + 32))
    assert (head.params, head.macs, head.size_bytes) == (6 * 8 + 6, 48 * 4, 4 * 54)
    assert (yolo.kind, yolo.params, yolo.macs) == ("yolo", 0, 0)
    assert cost.as_dict() == {"params": 258, "macs": 2208, "flops": 4416, "size_bytes": 1128}
    assert cost.layers_as_dicts()[0]["shape"] == [4, 4, 4]


@given(networks())
@settings(max_examples=20, deadline=None)
def test_equals_what_the_model_holds_and_does(network: Network) -> None:
    model, cost = Detector(network).eval(), measure_cost(network)
    macs: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda conv, _, output: macs.append(conv.weight.numel() * output.shape[2] * output.shape[3])
            )
    with torch.no_grad():
        model(make_images(model, batch=1))
    assert cost.params == sum(parameter.numel() for parameter in model.parameters())
    assert cost.macs == sum(macs)
    with TemporaryDirectory() as folder:
        assert cost.size_bytes + 20 == save_weights(model, Path(folder) / "a.weights").stat().st_size


def test_macs_grow_with_the_image_and_params_do_not() -> None:
    network = make_network("yolov3-tiny")
    small, large = measure_cost(network, 416), measure_cost(network, 832)
    assert large.params == small.params
    assert large.macs == 4 * small.macs
    assert measure_cost(network) == small


def test_a_size_that_does_not_fit_is_rejected() -> None:
    with pytest.raises(CfgError, match="concatenates"):
        measure_cost(make_network("yolov3"), 400)
