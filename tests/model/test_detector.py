from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from darknet_reference import ACTIVATE
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import make_images, make_small_network, networks, randomise_, run
from numpy.typing import NDArray

from yolo_prune.darknet.architectures import ARCHITECTURES, make_network
from yolo_prune.darknet.layers import AvgPool, Conv, Dropout, Gate, MaxPool, Reorg, Route, Shortcut, Upsample, Yolo
from yolo_prune.darknet.network import Network
from yolo_prune.model.detector import ConvLayer, Detector, MaxPoolLayer

Array = NDArray[np.float64]


def convolve(inputs: Array, module: ConvLayer, layer: Conv) -> Array:
    """Convolve (C, H, W), one output channel and one kernel position after the other."""
    weight = module.conv.weight.detach().numpy()
    padded = np.pad(inputs, ((0, 0), (layer.padding,) * 2, (layer.padding,) * 2))
    height, width = ((side - layer.size) // layer.stride + 1 for side in padded.shape[1:])
    outputs = np.zeros((layer.filters, height, width))
    fan_in = len(inputs) // layer.groups
    for out in range(layer.filters):
        first = out // (layer.filters // layer.groups) * fan_in
        for channel, y, x in np.ndindex(fan_in, layer.size, layer.size):
            rows = slice(y, y + layer.stride * (height - 1) + 1, layer.stride)
            columns = slice(x, x + layer.stride * (width - 1) + 1, layer.stride)
            outputs[out] += weight[out, channel, y, x] * padded[first + channel, rows, columns]
    if module.bn is None:
        assert module.conv.bias is not None
        outputs += module.conv.bias.detach().numpy()[:, None, None]
    else:
        parts = (module.bn.weight, module.bn.bias, module.bn.running_mean, module.bn.running_var)
        gamma, beta, mean, variance = (part.detach().numpy()[:, None, None] for part in parts if part is not None)
        outputs = gamma * (outputs - mean) / np.sqrt(variance + 1e-5) + beta
    return np.asarray(ACTIVATE[layer.activation](outputs))


def pool(inputs: Array, layer: MaxPool) -> Array:
    """Pool (C, H, W) as Darknet's loops do: windows begin `padding // 2` before the image and see only pixels."""
    channels, *sides = inputs.shape
    height, width = ((side + layer.padding - layer.size) // layer.stride + 1 for side in sides)
    outputs = np.full((channels, height, width), -np.inf)
    for row, column, y, x in np.ndindex(height, width, layer.size, layer.size):
        place = row * layer.stride + y - layer.padding // 2, column * layer.stride + x - layer.padding // 2
        if all(0 <= index < side for index, side in zip(place, sides, strict=True)):
            outputs[:, row, column] = np.maximum(outputs[:, row, column], inputs[:, place[0], place[1]])
    return outputs


def reorganise(inputs: Array, layer: Reorg) -> Array:
    """Gather (C, H, W) value by value, by the flat index that reorg_cpu in Darknet's blas.c computes.

    [reorg] gives it the sides of the input, [reorg3d] those of the output.
    """
    stride = layer.stride
    channels, height, width = inputs.shape
    shape = (channels * stride**2, height // stride, width // stride)
    planes, rows, columns = (channels, height, width) if layer.is_mixed else shape
    narrow = planes // stride**2
    flat, outputs = inputs.reshape(-1), np.zeros(inputs.size)
    for k, j, i in np.ndindex(planes, rows, columns):
        offset = k // narrow
        column, row = i * stride + offset % stride, j * stride + offset // stride
        source = column + columns * stride * (row + rows * stride * (k % narrow))
        outputs[i + columns * (j + rows * k)] = flat[source]
    return outputs.reshape(shape)


def compute_heads(model: Detector, image: Array) -> list[Array]:
    """Run a network on one image (C, H, W) in plain numpy and return its raw head maps."""
    outputs: list[Array] = []
    for index, layer in enumerate(model.network.layers):
        before = outputs[-1] if outputs else image
        module = model.layers[index]
        match layer:
            case Conv():
                assert isinstance(module, ConvLayer)
                result = convolve(before, module, layer)
            case MaxPool():
                result = pool(before, layer)
            case Upsample(stride=stride):
                result = before.repeat(stride, 1).repeat(stride, 2)
            case Reorg():
                result = reorganise(before, layer)
            case Route(sources=sources, groups=groups, group_id=group):
                result = np.concatenate([np.split(outputs[source], groups)[group] for source in sources])
            case Shortcut(source=source, activation=activation):
                result = before.copy()
                for channel in range(min(len(before), len(outputs[source]))):
                    result[channel] += outputs[source][channel]
                result = np.asarray(ACTIVATE[activation](result))
            case Gate(source=source, activation=activation):
                result = np.asarray(ACTIVATE[activation](outputs[source] * before))
            case AvgPool():
                result = before.mean((1, 2), keepdims=True)
            case Dropout() | Yolo():
                result = before
        outputs.append(result)
    heads = []
    for index, head in model.network.heads:  # with new_coords, heads are given before the convolution's sigmoid
        heads.append(np.log(outputs[index] / (1 - outputs[index])) if head.new_coords else outputs[index])
    return heads


@given(networks(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_equals_darknet_s_arithmetic_in_plain_numpy(network: Network, seed: int) -> None:
    model = randomise_(Detector(network), seed)
    images = make_images(model, seed=seed)
    heads = run(model, images)
    for image in range(len(images)):
        for raw, expected in zip(heads, compute_heads(model, images[image].numpy()), strict=True):
            np.testing.assert_allclose(raw[image].numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("side", [13, 16])
@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [(2, 2, 1), (2, 1, 1), (5, 1, 4), (9, 1, 8), (13, 1, 12), (2, 2, 0), (3, 2, 2), (3, 3, 1), (3, 1, 4), (4, 2, 3)],
)
def test_pooling_pads_as_darknet_does(side: int, size: int, stride: int, padding: int) -> None:
    layer = MaxPool(size, stride, padding)
    inputs = np.random.default_rng(0).normal(-5, 1, (2, side, side + 2))
    pooled = MaxPoolLayer(layer)(torch.from_numpy(inputs)[None])[0]
    np.testing.assert_array_equal(pooled.numpy(), pool(inputs, layer))


def test_pooling_of_size_2_and_stride_1_looks_right_and_down() -> None:
    rows = torch.tensor([[[[1.0, 2, 3], [4, 9, 5], [6, 7, 8]]]])
    assert MaxPoolLayer(MaxPool(2, 1, 1))(rows).tolist() == [[[[9, 9, 5], [9, 9, 8], [7, 8, 8]]]]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("side", [64, 96])
def test_heads_have_the_shapes_that_the_network_infers(arch: str, side: int) -> None:
    network = make_network(arch, classes=2, width=0.05, img_size=side)
    model = Detector(network)
    heads = run(model, make_images(model, side))
    assert [tuple(raw.shape) for raw in heads] == [(2, *network.shapes[index]) for index, _ in network.heads]
    assert heads[0].shape[1] == 3 * 7


def test_images_of_a_batch_do_not_see_each_other() -> None:
    model = randomise_(Detector(make_network("yolov3-tiny", width=0.1)), 1)
    images = make_images(model, 64, batch=3)
    for raw, alone in zip(run(model, images), run(model, images[1:2]), strict=True):
        torch.testing.assert_close(raw[1:2], alone, rtol=1e-12, atol=1e-12)


def test_tensors_are_named_by_the_cfg_s_sections() -> None:
    names = Detector(make_small_network(Conv(4, 3), MaxPool(2, 2, 1), Conv(4, 1))).state_dict()
    assert {name.rsplit(".", 1)[0] for name in names} == {
        "layers.0.conv",
        "layers.0.bn",
        "layers.2.conv",
        "layers.2.bn",
        "layers.3.conv",
    }


def test_a_fresh_detector_predicts_few_objects() -> None:
    model = Detector(make_network("yolov3-tiny", classes=3, width=0.1)).eval()
    for raw in run(model, make_images(model, 64)):
        belief = raw.view(2, 3, 8, *raw.shape[2:])[:, :, 4].sigmoid()
        assert math.isclose(float(belief.mean()), 0.01, rel_tol=0.5)


def test_every_parameter_gets_a_gradient() -> None:
    model = Detector(make_network("yolov3-spp", width=0.05)).train()
    sum(raw.square().sum() for raw in model(make_images(model, 64))).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_one_image_trains_where_a_layer_has_one_pixel() -> None:
    network = make_small_network(
        Conv(4, 3, padding=1), AvgPool(), Conv(2, 1), Conv(4, 1, activation="logistic"), Gate(0, "channels")
    )
    model = randomise_(Detector(network)).train()
    images = make_images(model, batch=1)
    sum(head.sum() for head in model(images)).backward()
    gradient = model.get_conv(2).bn
    assert gradient is not None
    assert gradient.weight.grad is not None
    assert bool(gradient.weight.grad.isfinite().all())
