"""A Darknet network as plain data: immutable layers, and the shapes of their outputs.

    Network ── layers ──► Conv  MaxPool  AvgPool  Upsample  Dropout  Route  Shortcut  Gate  Yolo
                          │      │        │        │         │        │      │         │     └ a detection head
                          │      │        │        │         │        │      │         └ multiplies `source` by the layer before it
                          │      │        │        │         │        │      └ adds `source` to the layer before it
                          │      │        │        │         │        └ concatenates `sources`
                          └──────┴────────┴────────┴─────────┴ read the layer before them, as Yolo does

Layer numbers are absolute, count every section but [net] from 0, and always refer to earlier layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias

from yolo_prune.errors import CfgError

Anchors: TypeAlias = tuple[tuple[float, float], ...]

ACTIVATIONS = (
    *("linear", "leaky", "relu", "relu6", "mish", "swish", "logistic", "hard_mish", "hard_swish"),
    *("elu", "selu", "gelu", "tanh", "hardtan", "ramp", "loggy"),
)
Options: TypeAlias = tuple[tuple[str, str], ...]
"""Keys of a cfg section that say nothing about the outputs, such as `stopbackward`, as text."""


class Shape(NamedTuple):
    """Channels, height and width of a layer's output."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Conv:
    """A convolution, with optional batch normalisation, and an activation. Source: [convolutional]."""

    filters: int
    size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    batch_normalize: bool = True
    activation: str = "leaky"
    options: Options = ()


@dataclass(frozen=True)
class MaxPool:
    """Max pooling; `padding` is the total over both sides, with the smaller half first. Source: [maxpool]."""

    size: int
    stride: int
    padding: int
    options: Options = ()


@dataclass(frozen=True)
class AvgPool:
    """The mean over all pixels, one for each channel. Source: [avgpool]."""

    options: Options = ()


@dataclass(frozen=True)
class Upsample:
    """Nearest-neighbour upsampling. Source: [upsample]."""

    stride: int = 2
    options: Options = ()


@dataclass(frozen=True)
class Dropout:
    """What it reads: nothing is dropped, in training neither. Source: [dropout]."""

    options: Options = ()


@dataclass(frozen=True)
class Route:
    """The concatenation of `sources`, or of slice `group_id` out of `groups` slices of each. Source: [route]."""

    sources: tuple[int, ...]
    groups: int = 1
    group_id: int = 0
    options: Options = ()


@dataclass(frozen=True)
class Shortcut:
    """The sum of the previous layer and `source`, then an activation. Source: [shortcut].

    If one has more channels, only the first channels are added, as many as both have; the output has the channels of
    the previous layer.
    """

    source: int
    activation: str = "linear"
    options: Options = ()


@dataclass(frozen=True)
class Gate:
    """The product of layer `source` and the previous layer, then an activation. Source: [scale_channels], [sam].

    The previous layer has one factor per channel (scale_channels), per pixel (scale_channels with scale_wh=1), or per
    value (sam).
    """

    source: int
    factors: Literal["channels", "pixels", "values"]
    activation: str = "linear"
    options: Options = ()


@dataclass(frozen=True)
class Yolo:
    """A detection head with the anchors that `mask` selects. Source: [yolo].

    `anchors` are (width, height) in pixels of the network's input; `scale_x_y` scales σ(x), σ(y) about the cell's
    centre; `options` keeps all other keys as text. With `new_coords` the convolution before it is logistic, and a width
    is the anchor's times (2σ)² instead of its exponential.
    """

    mask: tuple[int, ...]
    anchors: Anchors
    classes: int
    scale_x_y: float = 1.0
    options: Options = ()
    new_coords: bool = False

    @property
    def own_anchors(self) -> Anchors:
        """The anchors that `mask` selects, in pixels."""
        return tuple(self.anchors[index] for index in self.mask)

    @property
    def channels(self) -> int:
        """The number of output channels of the convolution before the head."""
        return len(self.mask) * (5 + self.classes)


Layer: TypeAlias = Conv | MaxPool | AvgPool | Upsample | Dropout | Route | Shortcut | Gate | Yolo


def get_sources(layer: Layer, index: int) -> tuple[int, ...]:
    """Return the numbers of the layers that layer `index` reads; -1 is the image."""
    match layer:
        case Route(sources=sources):
            return sources
        case Shortcut(source=source) | Gate(source=source):
            return (index - 1, source)
        case _:
            return (index - 1,)


@dataclass(frozen=True)
class Network:
    """A whole network. The image is (channels, height, width) in pixels; `options` keeps [net]'s other keys.

    Raises:
        CfgError: the layers do not fit together; `where` is then "layer N".
    """

    width: int
    height: int
    channels: int
    layers: tuple[Layer, ...]
    options: Options = ()

    def __post_init__(self) -> None:
        if not self.heads:
            raise CfgError("the network has no [yolo] section", right="give it at least one detection head")
        for index, head in self.heads:
            before = self.layers[index - 1] if index else None
            if not isinstance(before, Conv):
                raise CfgError(
                    "does not follow a convolution",
                    where=f"layer {index}",
                    right="put the convolution that makes its channels right before it",
                )
            if head.new_coords and before.activation != "logistic":
                raise CfgError(
                    f"has new_coords=1, but the convolution before it has activation={before.activation}",
                    where=f"layer {index}",
                    right="set activation=logistic there",
                )
            if head.classes != self.classes:
                first, _ = self.heads[0]
                raise CfgError(
                    f"has {head.classes} classes, and layer {first} has {self.classes}",
                    where=f"layer {index}",
                    right="give all [yolo] sections the same number",
                )
        _ = self.shapes

    @property
    def convs(self) -> tuple[tuple[int, Conv], ...]:
        """The convolutions, with their layer numbers."""
        return tuple((index, layer) for index, layer in enumerate(self.layers) if isinstance(layer, Conv))

    @property
    def heads(self) -> tuple[tuple[int, Yolo], ...]:
        """The detection heads, with their layer numbers."""
        return tuple((index, layer) for index, layer in enumerate(self.layers) if isinstance(layer, Yolo))

    @property
    def head_convs(self) -> frozenset[int]:
        """The numbers of the convolutions whose channels a detection head reads."""
        return frozenset(index - 1 for index, _ in self.heads)

    @cached_property
    def reached(self) -> frozenset[int]:
        """The numbers of the layers that some head depends on."""
        reached = {index for index, _ in self.heads}
        for index, layer in reversed([*enumerate(self.layers)]):
            if index in reached:
                reached.update(get_sources(layer, index))
        return frozenset(reached - {-1})

    @property
    def classes(self) -> int:
        """The number of classes of the heads."""
        return self.heads[0][1].classes

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """The output shape of every layer at the network's own input size."""
        return infer_shapes(self, self.height, self.width)

    def get_input_channels(self, index: int) -> int:
        """Return the number of input channels of layer `index` (of a shortcut: of one of its inputs)."""
        return self.channels if index == 0 else self.shapes[index - 1].channels

    @property
    def stride(self) -> int:
        """The input's height and width must be multiples of this number of pixels."""
        return max(self.width // self.shapes[index].width for index, _ in self.heads)


def infer_shapes(network: Network, height: int, width: int) -> tuple[Shape, ...]:
    """Return every layer's output shape for an image of `height` × `width` pixels.

    Raises:
        CfgError: two layers do not fit together, or the image is too small.
    """
    shapes: list[Shape] = []
    for index, layer in enumerate(network.layers):
        where = f"layer {index}"
        first = 0 if isinstance(layer, Route | Shortcut | Gate) else -1
        for source in get_sources(layer, index):
            if not first <= source < index:
                right = f"name one of 0 … {index - 1}" if index else "put a convolution before it"
                raise CfgError(f"reads layer {source}, which is not before it", where=where, right=right)
        before = shapes[-1] if shapes else Shape(network.channels, height, width)
        shape = _infer_shape(layer, before, shapes, where)
        if min(shape) < 1:
            raise CfgError(
                f"nothing is left of an image of {width}x{height} px", where=where, right="use a larger input"
            )
        shapes.append(shape)
    return tuple(shapes)


def _infer_shape(layer: Layer, before: Shape, shapes: list[Shape], where: str) -> Shape:
    channels, height, width = before
    match layer:
        case Conv():
            if channels % layer.groups or layer.filters % layer.groups:
                raise CfgError(
                    f"groups={layer.groups} does not divide its {channels} input and {layer.filters} output channels",
                    where=where,
                )

            def convolved(side: int) -> int:
                return (side + 2 * layer.padding - layer.size) // layer.stride + 1

            return Shape(layer.filters, convolved(height), convolved(width))
        case MaxPool():
            if layer.padding > 2 * (layer.size - 1):
                raise CfgError(
                    f"padding={layer.padding} makes windows of size {layer.size} that see no pixel",
                    where=where,
                    right=f"use at most {2 * (layer.size - 1)}",
                )

            def pooled(side: int) -> int:
                return (side + layer.padding - layer.size) // layer.stride + 1

            return Shape(channels, pooled(height), pooled(width))
        case AvgPool():
            return Shape(channels, 1, 1)
        case Upsample():
            return Shape(channels, height * layer.stride, width * layer.stride)
        case Dropout():
            return before
        case Route():
            return _infer_route(layer, [shapes[source] for source in layer.sources], where)
        case Shortcut():
            if shapes[layer.source][1:] != before[1:]:
                raise CfgError(
                    f"adds layer {layer.source} of {format_shape(shapes[layer.source])} to {format_shape(before)}",
                    where=where,
                    right="give both the same height and width",
                )
            return before
        case Gate():
            return _infer_gate(layer, before, shapes[layer.source], where)
        case Yolo():
            if channels != layer.channels:
                raise CfgError(
                    f"reads {channels} channels, {len(layer.mask)} anchors and {layer.classes} classes need {layer.channels}",
                    where=where,
                    right=f"set filters={layer.channels} in the convolution before it",
                )
            return before


def _infer_gate(layer: Gate, before: Shape, source: Shape, where: str) -> Shape:
    wanted = {
        "channels": Shape(source.channels, 1, 1),
        "pixels": Shape(1, source.height, source.width),
        "values": source,
    }[layer.factors]
    if before != wanted:
        raise CfgError(
            f"multiplies layer {layer.source} of {format_shape(source)} by {format_shape(before)}",
            where=where,
            right=f"give the layer before it {format_shape(wanted)}",
        )
    return source


def _infer_route(layer: Route, sources: list[Shape], where: str) -> Shape:
    if len({shape[1:] for shape in sources}) > 1:
        sizes = " and ".join(format_shape(shape) for shape in sources)
        raise CfgError(
            f"concatenates {sizes}",
            where=where,
            right="use sources of one height and width, and an input size that the network's stride divides",
        )
    if any(shape.channels % layer.groups for shape in sources) or not 0 <= layer.group_id < layer.groups:
        raise CfgError(f"cannot take group {layer.group_id} of {layer.groups}", where=where)
    return sources[0]._replace(channels=sum(shape.channels // layer.groups for shape in sources))


def format_shape(shape: Shape) -> str:
    """Return a shape as channels x height x width."""
    return "x".join(map(str, shape))


LayerChange: TypeAlias = Callable[[int, Layer], Layer]


def change_layers(network: Network, change: LayerChange) -> Network:
    """Return the network with every layer replaced by `change(index, layer)`."""
    return replace(network, layers=tuple(change(index, layer) for index, layer in enumerate(network.layers)))
