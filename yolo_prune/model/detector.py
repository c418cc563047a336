"""The detector as an `nn.Module` made from a `Network`: one module per Darknet layer, numbered as in the cfg."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from yolo_prune.darknet.layers import (
    AvgPool,
    Conv,
    Dropout,
    Gate,
    Layer,
    MaxPool,
    Reorg,
    Route,
    Shortcut,
    Upsample,
    Yolo,
    get_sources,
)
from yolo_prune.darknet.network import Network
from yolo_prune.model.free_memory import check_weights

GREY_WEIGHTS = (0.299, 0.587, 0.114)
"""Of red, green and blue. Source: ITU-R BT.601, as OpenCV's."""
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
        case _:
            return _ACTIVATIONS[name](values)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu6": functional.relu6,
    "mish": functional.mish,
    "swish": functional.silu,
    "logistic": torch.sigmoid,
    "hard_mish": lambda x: torch.where(x > 0, x, torch.where(x > -2, x * x / 2 + x, 0.0)),
    "hard_swish": functional.hardswish,
    "hard_sigmoid": functional.hardsigmoid,
    "elu": functional.elu,
    "selu": lambda x: torch.where(x >= 0, 1.0507 * x, 1.0507 * 1.6732 * torch.expm1(x)),
    "gelu": lambda x: 0.5 * x * (1 + torch.tanh(0.797885 * x + 0.035677 * x**3)),
    "tanh": torch.tanh,
    "hardtan": functional.hardtanh,
    "ramp": lambda x: functional.relu(x) + 0.1 * x,
    "loggy": lambda x: 2 * torch.sigmoid(x) - 1,
}
"""Source: activations.h in AlexeyAB's Darknet, whose constants these are; hard_swish, hard_sigmoid: Howard et al., "MobileNetV3" (2019)."""


class _Kernel(nn.Conv2d):
    """A convolution that is not initialised on the meta device: that would have no effect but import many modules.

    It becomes a plain `nn.Conv2d`, whose type is what tools look for that count or quantize layers.
    """

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()
        self.__class__ = nn.Conv2d  # type: ignore[assignment]  # the class that it is derived from


class ConvLayer(nn.Module):
    """A convolution with its batch normalisation, if it has one, and its activation."""

    def __init__(self, channels: int, layer: Conv, activation: str | None = None) -> None:
        """Make the module of a layer, with another activation than its own if one is given."""
        super().__init__()
        self.activation = activation or layer.activation
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
            outputs = self._normalise(self.bn, outputs)
        return activate(outputs, self.activation, inplace=True)

    def _normalise(self, norm: nn.BatchNorm2d, outputs: Tensor) -> Tensor:
        if norm.training and outputs.shape[0] * outputs.shape[2] * outputs.shape[3] == 1:
            # one value has no variance: a batch of one image, where a layer has one pixel
            statistics = norm.running_mean, norm.running_var
            return functional.batch_norm(outputs, *statistics, norm.weight, norm.bias, False, 0.0, norm.eps)
        normalised: Tensor = norm(outputs)
        return normalised


class ReorgLayer(nn.Module):
    """Blocks of pixels as channels; see `Reorg`."""

    def __init__(self, layer: Reorg) -> None:
        super().__init__()
        self.stride, self.is_mixed = layer.stride, layer.is_mixed

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C·stride², H/stride, W/stride)."""
        batch, channels, height, width = inputs.shape
        if not self.is_mixed:
            return self._gather(inputs)
        wide = inputs.reshape(batch, channels // self.stride**2, height * self.stride, width * self.stride)
        return self._gather(wide).reshape(batch, -1, height // self.stride, width // self.stride)

    def _gather(self, inputs: Tensor) -> Tensor:
        batch, channels, height, width = inputs.shape
        size = self.stride
        blocks = inputs.reshape(batch, channels, height // size, size, width // size, size)
        return blocks.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // size, width // size)


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
        return functional.max_pool2d(self.pad(inputs, before, after), size, stride)

    def pad(self, inputs: Tensor, before: int, after: int) -> Tensor:
        """Pad height and width with −∞."""
        return functional.pad(inputs, (before, after, before, after), value=-math.inf)


class Detector(nn.Module):
    """A Darknet network in PyTorch.

    `layers[i]` is section i of the cfg; the state dict has keys such as `layers.12.conv.weight`,
    `layers.12.bn.running_mean`.
    """

    def __init__(self, network: Network) -> None:
        """Make the detector of a network, with new weights.

        Raises:
            InsufficientMemoryError: the weights do not fit into memory.
        """
        super().__init__()
        if torch.get_default_device().type != "meta":
            check_weights(network)
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
        outputs: dict[int, Tensor] = {-1: self.take_images(images)}
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

    def take_images(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W) as the network reads them: a network of one channel reads colours as grey.

        Source: load_image_cv in Darknet's image_opencv.cpp, which has OpenCV read grey images.
        """
        if images.shape[1] == 3 and self.network.channels == 1:
            weights = images.new_tensor(GREY_WEIGHTS).view(1, 3, 1, 1)
            return (images * weights).sum(1, keepdim=True)
        return images

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
            return activate(add_first(inputs[0], inputs[1], dim=1), activation)
        case Gate(activation=activation):
            return activate(inputs[1] * inputs[0], activation)
        case _:
            return module(inputs[0])  # type: ignore[no-any-return]  # nn.Module.__call__ is typed Any


def add_first(one: Tensor, other: Tensor, dim: int = 0) -> Tensor:
    """Return the sum of two inputs of a shortcut, whose channels lie along `dim`; of unequal ones the first are added."""
    count, more = one.shape[dim], other.shape[dim]
    if count == more:
        return one + other
    both = min(count, more)

    if more > both:
        other = torch.split(other, [both, more - both], dim)[0]
    if count == both:
        return one + other
    first, rest = torch.split(one, [both, count - both], dim)
    return torch.cat((first + other, rest), dim)


def _make_module(network: Network, index: int, layer: Layer) -> nn.Module:
    match layer:
        case Conv():
            after = network.layers[index + 1] if index + 1 < len(network.layers) else None
            is_new = isinstance(after, Yolo) and after.new_coords  # its sigmoid is the head's, as everywhere else
            return ConvLayer(network.get_input_channels(index), layer, "linear" if is_new else None)
        case MaxPool():
            return MaxPoolLayer(layer)
        case Upsample(stride=stride):
            return nn.Upsample(scale_factor=stride, mode="nearest")
        case Reorg():
            return ReorgLayer(layer)
        case AvgPool():
            return nn.AdaptiveAvgPool2d(1)
        case Dropout() | Route() | Shortcut() | Gate() | Yolo():
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
