"""A Darknet network as plain data: immutable layers, and the shapes of their outputs.

    Network ── layers ──► Conv  MaxPool  Upsample  Route  Shortcut  Yolo
                          │      │        │         │      │         └ reads the layer before it; a detection head
                          │      │        │         │      └ adds `source` to the layer before it
                          │      │        │         └ concatenates `sources`
                          └──────┴────────┴ read the layer before them

Layer numbers are absolute, count every section but [net] from 0, and always refer to earlier layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import NamedTuple, TypeAlias

from yolo_prune.errors import CfgError

Anchors: TypeAlias = tuple[tuple[float, float], ...]

ACTIVATIONS = ("linear", "leaky", "relu", "mish", "swish", "logistic")


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


@dataclass(frozen=True)
class MaxPool:
    """Max pooling; `padding` is the total over both sides, with the smaller half first. Source: [maxpool]."""

    size: int
    stride: int
    padding: int


@dataclass(frozen=True)
class Upsample:
    """Nearest-neighbour upsampling. Source: [upsample]."""

    stride: int = 2


@dataclass(frozen=True)
class Route:
    """The concatenation of `sources`, or of slice `group_id` out of `groups` slices of each. Source: [route]."""

    sources: tuple[int, ...]
    groups: int = 1
    group_id: int = 0


@dataclass(frozen=True)
class Shortcut:
    """The sum of the previous layer and `source`, then an activation. Source: [shortcut]."""

    source: int
    activation: str = "linear"


@dataclass(frozen=True)
class Yolo:
    """A detection head with the anchors that `mask` selects. Source: [yolo].

    `anchors` are (width, height) in pixels of the network's input; `scale_x_y` scales σ(x), σ(y) about the cell's
    centre; `options` keeps all other keys as text.
    """

    mask: tuple[int, ...]
    anchors: Anchors
    classes: int
    scale_x_y: float = 1.0
    options: tuple[tuple[str, str], ...] = ()

    @property
    def own_anchors(self) -> Anchors:
        """The anchors that `mask` selects, in pixels."""
        return tuple(self.anchors[index] for index in self.mask)

    @property
    def channels(self) -> int:
        """The number of output channels of the convolution before the head."""
        return len(self.mask) * (5 + self.classes)


Layer: TypeAlias = Conv | MaxPool | Upsample | Route | Shortcut | Yolo


def get_sources(layer: Layer, index: int) -> tuple[int, ...]:
    """Return the numbers of the layers that layer `index` reads; -1 is the image."""
    match layer:
        case Route(sources=sources):
            return sources
        case Shortcut(source=source):
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
    options: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.heads:
            raise CfgError("the network has no [yolo] section", right="give it at least one detection head")
        for index, _ in self.heads:
            if index == 0 or not isinstance(self.layers[index - 1], Conv):
                raise CfgError(
                    "does not follow a convolution",
                    where=f"layer {index}",
                    right="put the convolution that makes its channels right before it",
                )
        if len({head.classes for _, head in self.heads}) > 1:
            raise CfgError("its [yolo] sections differ in classes", right="give all heads the same number")
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


def resize(network: Network, img_size: int) -> Network:
    """Return the network for square inputs of `img_size` pixels, with scaled anchors.

    Raises:
        CfgError: `img_size` is not a multiple of the network's stride.
    """
    if network.width == network.height == img_size:
        return network
    factor = img_size / network.width
    layers = tuple(
        replace(layer, anchors=tuple((round(w * factor, 2), round(h * factor, 2)) for w, h in layer.anchors))
        if isinstance(layer, Yolo)
        else layer
        for layer in network.layers
    )
    return replace(network, width=img_size, height=img_size, layers=layers)


def infer_shapes(network: Network, height: int, width: int) -> tuple[Shape, ...]:
    """Return every layer's output shape for an image of `height` × `width` pixels.

    Raises:
        CfgError: two layers do not fit together, or the image is too small.
    """
    shapes: list[Shape] = []
    for index, layer in enumerate(network.layers):
        where = f"layer {index}"
        first = 0 if isinstance(layer, Route | Shortcut) else -1
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
        case Upsample():
            return Shape(channels, height * layer.stride, width * layer.stride)
        case Route():
            return _infer_route(layer, [shapes[source] for source in layer.sources], where)
        case Shortcut():
            if shapes[layer.source] != before:
                raise CfgError(
                    f"adds layer {layer.source} of {format_shape(shapes[layer.source])} to {format_shape(before)}",
                    where=where,
                    right="give both the same shape",
                )
            return before
        case Yolo():
            if channels != layer.channels:
                raise CfgError(
                    f"reads {channels} channels, {len(layer.mask)} anchors and {layer.classes} classes need {layer.channels}",
                    where=where,
                    right=f"set filters={layer.channels} in the convolution before it",
                )
            return before


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


def get_anchors(network: Network) -> Anchors:
    """Return the anchors that the heads' masks select, sorted by area; anchors that several heads share come once."""
    return tuple(anchors[index] for anchors, index in _find_slots(network))


def replace_anchors(network: Network, anchors: Anchors) -> Network:
    """Return the network with other anchors in place of those of `get_anchors`, matched in order of area.

    So each head keeps the same range of object sizes, relative to the other heads. Masks do not change, nor do anchors
    that no mask selects.

    Raises:
        CfgError: the number of anchors differs.
    """
    slots = _find_slots(network)
    if len(anchors) != len(slots):
        right = f"give the {len(slots)} that its heads use"
        raise CfgError(f"{len(anchors)} anchors do not fit the network", right=right)
    placed = dict(zip(slots, sorted(anchors, key=prod), strict=True))

    def change(_: int, layer: Layer) -> Layer:
        if not isinstance(layer, Yolo):
            return layer
        new = (placed.get((layer.anchors, index), old) for index, old in enumerate(layer.anchors))
        return replace(layer, anchors=tuple(new))

    return change_layers(network, change)


def _find_slots(network: Network) -> list[tuple[Anchors, int]]:
    """Return the pairs (list of anchors, index) that masks select, sorted by area; heads may share a pair."""
    slots = dict.fromkeys((head.anchors, index) for _, head in network.heads for index in sorted(head.mask))
    return sorted(slots, key=lambda slot: (prod(slot[0][slot[1]]), slot[1]))


LayerChange: TypeAlias = Callable[[int, Layer], Layer]


def change_layers(network: Network, change: LayerChange) -> Network:
    """Return the network with every layer replaced by `change(index, layer)`."""
    return replace(network, layers=tuple(change(index, layer) for index, layer in enumerate(network.layers)))
