"""A Darknet network as plain data: immutable layers, and the size of the image that they read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from yolo_prune.darknet.layers import Conv, Layer, Options, Shape, Yolo, get_sources, infer_layers
from yolo_prune.darknet.limits import check_count, check_layers
from yolo_prune.errors import CfgError
from yolo_prune.image_size import ImageSize


@dataclass(frozen=True)
class Network:
    """A whole network. The image is (channels, height, width) in pixels; `options` keeps [net]'s other keys.

    Raises:
        CfgError: the layers do not fit together, or are larger than `limits` allows; `where` is then "layer N".
    """

    width: int
    height: int
    channels: int
    layers: tuple[Layer, ...]
    options: Options = ()

    def __post_init__(self) -> None:
        check_count(self.layers)
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
        check_layers(self.layers, self.shapes, self.channels)

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
    def img_size(self) -> ImageSize:
        """The size of the network's input."""
        return ImageSize(self.width, self.height)

    @property
    def stride(self) -> int:
        """The input's height and width must be multiples of this number of pixels."""
        return max(self.width // self.shapes[index].width for index, _ in self.heads)


def infer_shapes(network: Network, height: int, width: int) -> tuple[Shape, ...]:
    """Return every layer's output shape for an image of `height` × `width` pixels.

    Raises:
        CfgError: two layers do not fit together, or the image is too small.
    """
    return infer_layers(network.layers, Shape(network.channels, height, width))


LayerChange: TypeAlias = Callable[[int, Layer], Layer]


def change_layers(network: Network, change: LayerChange) -> Network:
    """Return the network with every layer replaced by `change(index, layer)`."""
    return replace(network, layers=tuple(change(index, layer) for index, layer in enumerate(network.layers)))


def change_classes(network: Network, classes: int) -> Network:
    """Return the network with heads for so many classes."""
    heads = {index: replace(head, classes=classes) for index, head in network.heads}

    def change(index: int, layer: Layer) -> Layer:
        if index in heads:
            return heads[index]
        return (
            replace(layer, filters=heads[index + 1].channels)
            if isinstance(layer, Conv) and index + 1 in heads
            else layer
        )

    return change_layers(network, change)
