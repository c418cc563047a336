"""Small random networks, plans for them and numbers to fill them with: what the laws are tried on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from yolo_prune.darknet.layers import (
    AvgPool,
    Conv,
    Dropout,
    Gate,
    Layer,
    MaxPool,
    Reorg,
    Route,
    Shape,
    Shortcut,
    Upsample,
    Yolo,
)
from yolo_prune.darknet.network import Network
from yolo_prune.model.detector import ConvLayer, Detector, Heads
from yolo_prune.pruning.channels import ChannelGraph
from yolo_prune.pruning.plans.plan import Plan
from yolo_prune.pruning.surgery.rebuild import compare

SIDE = 16
ACTIVATIONS = (
    "leaky",
    "linear",
    "relu",
    "mish",
    "swish",
    "logistic",
    "relu6",
    "hard_mish",
    "hard_swish",
    "tanh",
    "hard_sigmoid",
)
BLOCKS = (
    "conv",
    "depthwise",
    "grouped",
    "maxpool",
    "upsample",
    "reorg",
    "dropout",
    "route",
    "slice",
    "shortcut",
    "squeeze",
    "sam",
)
POOLS = (MaxPool(2, 2, 1), MaxPool(2, 2, 0), MaxPool(2, 1, 1), MaxPool(3, 1, 2), MaxPool(5, 1, 4), MaxPool(3, 2, 2))


class _Draft:
    """A network under construction: its layers, and their shapes by rules of its own."""

    def __init__(self, draw: st.DrawFn, pointwise: bool, has_gates: bool) -> None:
        self.draw = draw
        self.sizes = (1,) if pointwise else (1, 3)
        self.has_gates = has_gates  # what a gate makes of a constant depends on the image
        self.layers: list[Layer] = []
        self.shapes: list[Shape] = []

    def add(self, layer: Layer) -> None:
        before = self.shapes[-1] if self.shapes else Shape(3, SIDE, SIDE)
        match layer:
            case Conv(filters=filters, stride=stride):
                shape = Shape(filters, -(-before.height // stride), -(-before.width // stride))
            case MaxPool(size=size, stride=stride, padding=padding):
                shape = before._replace(
                    height=(before.height + padding - size) // stride + 1,
                    width=(before.width + padding - size) // stride + 1,
                )
            case Upsample(stride=stride):
                shape = before._replace(height=before.height * stride, width=before.width * stride)
            case Reorg(stride=stride):
                shape = Shape(before.channels * stride**2, before.height // stride, before.width // stride)
            case AvgPool():
                shape = before._replace(height=1, width=1)
            case Gate(source=source):
                shape = self.shapes[source]
            case Route(sources=sources, groups=groups):
                shape = before._replace(channels=sum(self.shapes[source].channels // groups for source in sources))
                shape = shape._replace(height=self.shapes[sources[0]].height, width=self.shapes[sources[0]].width)
            case _:
                shape = before
        self.layers.append(layer)
        self.shapes.append(shape)

    def add_conv(self, filters: int, size: int, groups: int = 1, stride: int = 1) -> None:
        activation = self.draw(st.sampled_from(ACTIVATIONS))
        normalised = self.draw(st.sampled_from((True, True, True, False)))
        self.add(Conv(filters, size, stride, size // 2, groups, normalised, activation))

    def add_block(self, kind: str) -> None:
        draw, last = self.draw, self.shapes[-1]
        size = draw(st.sampled_from(self.sizes))
        same_side = [index for index, shape in enumerate(self.shapes) if shape[1:] == last[1:]]
        match kind:
            case "depthwise":
                self.add_conv(last.channels * draw(st.integers(1, 2)), size, groups=last.channels)
            case "grouped" if last.channels % 2 == 0:
                self.add_conv(draw(st.sampled_from((2, 4, 6))), size, groups=2)
            case "maxpool" if last.height >= 4:
                self.add(draw(st.sampled_from(POOLS)))
            case "upsample" if last.height <= SIDE // 2:
                self.add(Upsample())
            case "reorg" if last.height >= 4 and last.height % 2 == last.width % 2 == 0:
                self.add(Reorg(2, last.channels % 4 == 0 and draw(st.booleans())))
            case "route":
                self.add(Route(tuple(draw(st.lists(st.sampled_from(same_side), min_size=1, max_size=3)))))
            case "slice" if even := [index for index in same_side if self.shapes[index].channels % 2 == 0]:
                sources = tuple(draw(st.lists(st.sampled_from(even), min_size=1, max_size=2)))
                self.add(Route(sources, 2, draw(st.integers(0, 1))))
            case "shortcut":
                source = draw(st.sampled_from(same_side))
                if self.shapes[source] != last and draw(st.booleans()):
                    self.add_conv(self.shapes[source].channels, size)
                self.add(Shortcut(source, draw(st.sampled_from(ACTIVATIONS))))
            case "dropout":
                self.add(Dropout((("probability", ".2"),)))
            case "squeeze" if self.has_gates:
                source = len(self.layers) - 1
                self.add(AvgPool())
                self.add_conv(draw(st.integers(1, 4)), 1)
                self.add(
                    Conv(last.channels, 1, activation=draw(st.sampled_from(("logistic", "hard_sigmoid", "leaky"))))
                )
                self.add(Gate(source, "channels", draw(st.sampled_from(ACTIVATIONS))))
            case "sam" if self.has_gates:
                source = len(self.layers) - 1
                factors: Literal["values", "pixels"] = draw(st.sampled_from(("values", "pixels")))
                self.add(Conv(last.channels if factors == "values" else 1, 1, activation="logistic"))
                self.add(Gate(source, factors))
            case _:
                stride = 2 if size == 3 and last.height >= 8 and draw(st.booleans()) else 1
                self.add_conv(draw(st.integers(1, 8)), size, stride=stride)

    def add_head(self, head: Yolo) -> None:
        activation = "logistic" if head.new_coords else "linear"
        self.add(Conv(head.channels, 1, batch_normalize=False, activation=activation))
        self.add(head)


@st.composite
def networks(draw: st.DrawFn, pointwise: bool = False, gates: bool = True) -> Network:
    """Draw a small network of any of Darknet's layers; `pointwise` makes every convolution but the first 1×1."""
    draft = _Draft(draw, pointwise, gates and not pointwise)
    draft.add_conv(draw(st.integers(2, 8)), 3)
    for kind in draw(st.lists(st.sampled_from(BLOCKS), max_size=7)):
        draft.add_block(kind)
    side = st.floats(1, 400).map(lambda value: round(value, 2))
    anchors = tuple(draw(st.lists(st.tuples(side, side), min_size=2, max_size=3)))
    classes = draw(st.integers(1, 2))
    for number in range(draw(st.integers(1, 2))):
        if number:
            draft.add(Route((draw(st.integers(0, len(draft.layers) - 3)),)))
        mask = tuple(draw(st.lists(st.integers(0, len(anchors) - 1), min_size=1, max_size=2, unique=True)))
        draft.add_head(Yolo(mask, anchors, classes, draw(st.sampled_from((1.0, 1.05))), (), draw(st.booleans())))
    network = Network(SIDE, SIDE, 3, tuple(draft.layers), draw(st.sampled_from(((), (("batch", "64"),)))))
    assert list(network.shapes) == draft.shapes
    return network


def make_head(classes: int = 1, mask: Sequence[int] = (0,)) -> tuple[Conv, Yolo]:
    """Return a head's convolution and the head, for anchors of 4×4 and 8×6 pixels."""
    head = Yolo(tuple(mask), ((4.0, 4.0), (8.0, 6.0)), classes)
    return Conv(head.channels, 1, batch_normalize=False, activation="linear"), head


def make_small_network(*layers: Layer, side: int = SIDE, classes: int = 1) -> Network:
    """Return a network of these layers and one head on top."""
    return Network(side, side, 3, (*layers, *make_head(classes)))


@torch.no_grad()
def randomise_(model: Detector, seed: int = 0, double: bool = True) -> Detector:
    """Give every weight, γ, β, mean and variance a random number in place; the model comes back in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    model.to(torch.float64 if double else torch.float32)
    for module in model.layers:
        if not isinstance(module, ConvLayer):
            continue
        module.conv.weight.normal_(0, module.conv.weight[0].numel() ** -0.5, generator=generator)
        if module.conv.bias is not None:
            module.conv.bias.normal_(0, 0.5, generator=generator)
        if module.bn is not None:
            module.bn.weight.uniform_(0.3, 1.2, generator=generator)
            module.bn.bias.normal_(0, 0.3, generator=generator)
            assert module.bn.running_mean is not None
            assert module.bn.running_var is not None
            module.bn.running_mean.normal_(0, 0.3, generator=generator)
            module.bn.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


@torch.no_grad()
def randomise_norms_(module: nn.Module) -> None:
    """Give the batch norms of any module random γ, β, means and variances in place."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 1.5)


def make_plan_at_random(graph: ChannelGraph, seed: int) -> Plan:
    """Return a plan that keeps what it must and tosses a coin, of a random bias, for every other channel."""
    random = np.random.default_rng(seed)
    keep = random.random(graph.size) < random.uniform(0.05, 0.95)
    keep[graph.frozen] = True
    for layer in graph.conv_layers:
        if not keep[graph.writes[layer]].any():
            keep[random.choice(graph.writes[layer])] = True
    return Plan(keep)


def make_images(model: Detector, side: int = SIDE, batch: int = 2, seed: int = 0) -> Tensor:
    """Return random images (batch, C, side, side) in 0 … 1 of the model's own type."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    return torch.rand(batch, model.network.channels, side, side, generator=generator, dtype=dtype)


@torch.no_grad()
def run(model: Detector, images: Tensor) -> Heads:
    """Return the raw head maps of a model in eval mode."""
    return model.eval()(images)  # type: ignore[no-any-return]  # nn.Module.__call__ is typed Any


def measure_largest_gap(one: Heads, other: Heads) -> float:
    """Return the largest absolute difference between two models' outputs."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def copy_state(model: Detector) -> dict[str, Tensor]:
    """Return a deep copy of a model's tensors."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def is_same_state(model: Detector, state: dict[str, Tensor]) -> bool:
    """Return whether a model's tensors are those of `state`, bit by bit."""
    now = model.state_dict()
    return now.keys() == state.keys() and all(torch.equal(now[name], tensor) for name, tensor in state.items())


def measure_difference(one: Detector, other: Detector, img_size: int, seed: int = 0) -> float:
    """Return the largest difference of two models' outputs on random images, in float64."""
    return compare(one, other, img_size, seed).difference
