"""The layers of a Darknet network as plain data, and the shapes of their outputs.

    Network ── layers ──► Conv  MaxPool  AvgPool  Upsample  Reorg  Dropout  Route  Shortcut  Gate  Yolo
                          │      │        │        │         │      │        │      │         │     └ a detection head
                          │      │        │        │         │      │        │      │         └ multiplies `source` by the layer before it
                          │      │        │        │         │      │        │      └ adds `source` to the layer before it
                          │      │        │        │         │      │        └ concatenates `sources`
                          └──────┴────────┴────────┴─────────┴──────┴ read the layer before them, as Yolo does

Layer numbers are absolute, count every section but [net] from 0, and always refer to earlier layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from yolo_prune.errors import CfgError

Anchors: TypeAlias = tuple[tuple[float, float], ...]

ACTIVATIONS = (
    *("linear", "leaky", "relu", "relu6", "mish", "swish", "logistic", "hard_mish", "hard_swish"),
    *("hard_sigmoid", "elu", "selu", "gelu", "tanh", "hardtan", "ramp", "loggy"),
)
SIGMOIDS = ("logistic", "hard_sigmoid")
"""Activations that give ½ for 0; all others give 0."""
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
class Reorg:
    """Every block of `stride` × `stride` pixels as one pixel with the channels of all, row by row. Source: [reorg3d].

    With `is_mixed`, rows and channels are mixed as in the first Darknet. Source: [reorg], reorg_cpu in blas.c.
    """

    stride: int = 2
    is_mixed: bool = False
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


Layer: TypeAlias = Conv | MaxPool | AvgPool | Upsample | Reorg | Dropout | Route | Shortcut | Gate | Yolo


def get_sources(layer: Layer, index: int) -> tuple[int, ...]:
    """Return the numbers of the layers that layer `index` reads; -1 is the image."""
    match layer:
        case Route(sources=sources):
            return sources
        case Shortcut(source=source) | Gate(source=source):
            return (index - 1, source)
        case _:
            return (index - 1,)


def infer_layers(layers: Sequence[Layer], image: Shape, known: Sequence[Shape] = ()) -> tuple[Shape, ...]:
    """Return the output shapes of layers for an image, as `infer_shapes` does; those of the first may be `known`."""
    shapes = list(known)
    for index, layer in enumerate(layers[len(known) :], len(known)):
        where = f"layer {index}"
        first = 0 if isinstance(layer, Route | Shortcut | Gate) else -1
        for source in get_sources(layer, index):
            if not first <= source < index:
                right = f"name one of 0 … {index - 1}" if index else "put a convolution before it"
                raise CfgError(f"reads layer {source}, which is not before it", where=where, right=right)
        before = shapes[-1] if shapes else image
        shape = _infer_shape(layer, before, shapes, where)
        if min(shape) < 1:
            raise CfgError(
                f"nothing is left of an image of {image.width}x{image.height} px",
                where=where,
                right="use a larger input",
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
        case Reorg():
            return _infer_reorg(layer, before, where)
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


def _infer_reorg(layer: Reorg, before: Shape, where: str) -> Shape:
    channels, height, width = before
    pixels = layer.stride**2
    if height % layer.stride or width % layer.stride or (layer.is_mixed and channels % pixels):
        raise CfgError(
            f"stride={layer.stride} does not divide {format_shape(before)}",
            where=where,
            right="use an input size that the network's stride divides",
        )
    return Shape(channels * pixels, height // layer.stride, width // layer.stride)


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
