"""The detector as an `nn.Module` made from a `Network`: one module per Darknet layer, numbered as in the cfg."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from yolo_prune.darknet.layers import Conv, Layer, MaxPool, Network, Route, Shortcut, Upsample, Yolo, get_sources

BN_EPS = 1e-5
BN_MOMENTUM = 0.03
OBJECTNESS_PRIOR = 0.01
"""The objectness that a new detector predicts in every cell. Source: Lin et al. 2017, §3.3."""

Heads: TypeAlias = list[Tensor]
Visit: TypeAlias = Callable[[int, list[Tensor], Tensor], None]


def activate(values: Tensor, name: str, inplace: bool = False) -> Tensor:
    """Apply a Darknet activation by its cfg name."""
    match name:
        case "linear":
            return values
        case "leaky":
            return functional.leaky_relu(values, 0.1, inplace)
        case "relu":
            return functional.relu(values, inplace)
        case "mish":
            return functional.mish(values)
        case "swish":
            return functional.silu(values)
        case "logistic":
            return torch.sigmoid(values)
        case _:
            raise AssertionError(f"the cfg parser let {name} through")


class _Kernel(nn.Conv2d):
    """A convolution that is not initialised on the meta device: that would have no effect but import many modules."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class ConvLayer(nn.Module):
    """A convolution with its batch normalisation, if it has one, and its activation."""

    def __init__(self, channels: int, layer: Conv) -> None:
        super().__init__()
        self.activation = layer.activation
        self.conv = _Kernel(
            channels,
            layer.filters,
            layer.size,
            layer.stride,
            layer.padding,
            groups=layer.groups,
            bias=not layer.batch_normalize,
        )
        self.bn = nn.BatchNorm2d(layer.filters, BN_EPS, BN_MOMENTUM) if layer.batch_normalize else None

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, filters, H', W')."""
        outputs: Tensor = self.conv(inputs)
        if self.bn is not None:
            outputs = self.bn(outputs)
        return activate(outputs, self.activation, inplace=True)


class MaxPoolLayer(nn.Module):
    """Darknet's max pooling: `padding` is the sum of both sides, the smaller half first; padded values are −∞."""

    def __init__(self, layer: MaxPool) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H', W')."""
        size, stride, padding = self.layer.size, self.layer.stride, self.layer.padding
        before, after = padding // 2, padding - padding // 2
        if before == after and 2 * before <= size:
            return functional.max_pool2d(inputs, size, stride, before)
        height, width = inputs.shape[-2:]
        if not before and all(side >= size and side % stride == 0 and stride >= size for side in (height, width)):
            return functional.max_pool2d(inputs, size, stride)  # the padding would lie outside every window
        return functional.max_pool2d(
            functional.pad(inputs, (before, after, before, after), value=-math.inf), size, stride
        )


class Detector(nn.Module):
    """A Darknet network in PyTorch.

    `layers[i]` is section i of the cfg; the state dict has keys such as `layers.12.conv.weight`,
    `layers.12.bn.running_mean`.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.layers = nn.ModuleList(_make_module(network, index, layer) for index, layer in enumerate(network.layers))
        self._last_reads = _find_last_reads(network)
        for index in network.head_convs:
            _initialise_head(self.layers[index], network.classes)

    def forward(self, images: Tensor, visit: Visit | None = None) -> Heads:
        """Map images (B, 3, H, W) in 0 … 1 to one raw map (B, A·(5+C), H/s, W/s) per head, in the cfg's order.

        The channels of one anchor are x, y, w, h, objectness, then the classes, all before any sigmoid or exp. `visit`
        is called after every layer with its number, inputs and output.
        """
        outputs: dict[int, Tensor] = {-1: images}
        heads: Heads = []
        for index, layer in enumerate(self.network.layers):
            inputs = [outputs[source] for source in get_sources(layer, index)]
            outputs[index] = run_layer(layer, self.layers[index], inputs)
            if visit is not None:
                visit(index, inputs, outputs[index])
            if isinstance(layer, Yolo):
                heads.append(outputs[index])
            for source in self._last_reads.get(index, ()):
                del outputs[source]
        return heads

    def get_conv(self, index: int) -> ConvLayer:
        """Return the module of a convolution by its layer number."""
        module = self.layers[index]
        assert isinstance(module, ConvLayer)
        return module


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode inside the context, and restore its mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def run_layer(layer: Layer, module: nn.Module, inputs: list[Tensor]) -> Tensor:
    """Compute one Darknet layer from the outputs of its sources."""
    match layer:
        case Route(groups=groups, group_id=group_id):
            slices = [source.chunk(groups, 1)[group_id] for source in inputs] if groups > 1 else inputs
            return torch.cat(slices, 1) if len(slices) > 1 else slices[0]
        case Shortcut(activation=activation):
            return activate(inputs[0] + inputs[1], activation)
        case _:
            return module(inputs[0])  # type: ignore[no-any-return]  # nn.Module.__call__ is typed Any


def _make_module(network: Network, index: int, layer: Layer) -> nn.Module:
    match layer:
        case Conv():
            return ConvLayer(network.get_input_channels(index), layer)
        case MaxPool():
            return MaxPoolLayer(layer)
        case Upsample(stride=stride):
            return nn.Upsample(scale_factor=stride, mode="nearest")
        case Route() | Shortcut() | Yolo():
            return nn.Identity()


def _find_last_reads(network: Network) -> dict[int, tuple[int, ...]]:
    """Return for each layer the outputs that no later layer reads."""
    last = {index: index for index in range(-1, len(network.layers))}
    for index, layer in enumerate(network.layers):
        last |= dict.fromkeys(get_sources(layer, index), index)
    reads: dict[int, tuple[int, ...]] = {}
    for source, index in last.items():
        if index >= 0:
            reads[index] = (*reads.get(index, ()), source)
    return reads


def _initialise_head(module: nn.Module, classes: int) -> None:
    assert isinstance(module, ConvLayer)
    if module.conv.bias is not None and not module.conv.bias.is_meta:
        with torch.no_grad():
            bias = module.conv.bias.view(-1, 5 + classes)
            bias.zero_()
            bias[:, 4] = math.log(OBJECTNESS_PRIOR / (1 - OBJECTNESS_PRIOR))
            nn.init.normal_(module.conv.weight, std=0.01)
