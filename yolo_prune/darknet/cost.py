"""The costs of a network: learnable parameters, multiply–accumulates, bytes of weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from yolo_prune.darknet.layers import Conv, Layer, Shape
from yolo_prune.darknet.network import Network, infer_shapes
from yolo_prune.image_size import AnySize, ImageSize, make_size

BYTES_PER_WEIGHT = 4
"""Weights are counted as fp32, in whatever type a checkpoint stores them."""


@dataclass(frozen=True)
class LayerCost:
    """One layer's kind, output shape and costs; `size_bytes` includes batch-norm statistics."""

    index: int
    kind: str
    shape: Shape
    params: int
    macs: int
    size_bytes: int


@dataclass(frozen=True)
class Cost:
    """A network's costs at one input size; MACs are those of the convolutions only, as in the case study."""

    img_size: ImageSize
    layers: tuple[LayerCost, ...]

    @property
    def params(self) -> int:
        """Learnable parameters."""
        return sum(layer.params for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply–accumulates of the convolutions for one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def flops(self) -> int:
        """Floating-point operations: two for each multiply–accumulate."""
        return 2 * self.macs

    @property
    def size_bytes(self) -> int:
        """Bytes of the fp32 weights with BN statistics: the size of Darknet's .weights without its header."""
        return sum(layer.size_bytes for layer in self.layers)

    def as_dict(self) -> dict[str, Any]:
        """Return the totals under the names that JSON output uses."""
        return {"params": self.params, "macs": self.macs, "flops": self.flops, "size_bytes": self.size_bytes}

    def layers_as_dicts(self) -> list[dict[str, Any]]:
        """Return one dictionary per layer for JSON output."""
        return [{**asdict(layer), "shape": list(layer.shape)} for layer in self.layers]


def measure_cost(network: Network, img_size: AnySize | None = None) -> Cost:
    """Measure the costs of a network for inputs of a size, by default the network's own.

    Raises:
        CfgError: the network cannot have that input size.
    """
    size = network.img_size if img_size is None else make_size(img_size)
    shapes = infer_shapes(network, size.height, size.width)
    inputs = (Shape(network.channels, size.height, size.width), *shapes)
    layers = tuple(
        _measure_layer(index, layer, inputs[index].channels, shape)
        for index, (layer, shape) in enumerate(zip(network.layers, shapes, strict=True))
    )
    return Cost(size, layers)


def _measure_layer(index: int, layer: Layer, channels_in: int, shape: Shape) -> LayerCost:
    kind = type(layer).__name__.lower()
    if not isinstance(layer, Conv):
        return LayerCost(index, kind, shape, 0, 0, 0)
    weights = layer.filters * (channels_in // layer.groups) * layer.size**2
    affine, stored = (2, 4) if layer.batch_normalize else (1, 1)
    macs = weights * prod(shape[1:])
    return LayerCost(
        index,
        kind,
        shape,
        weights + affine * layer.filters,
        macs,
        BYTES_PER_WEIGHT * (weights + stored * layer.filters),
    )


def format_cost(cost: Cost) -> str:
    """Return one line per layer, and the totals."""
    lines = [f"{'layer':>5}  {'kind':<9}{'output':>15}{'params':>13}{'MACs':>12}"]
    for layer in cost.layers:
        shape = "x".join(map(str, layer.shape))
        figures = f"{layer.params:>13,}{layer.macs / 1e6:>11,.2f}M" if layer.params else ""
        lines.append(f"{layer.index:>5}  {layer.kind:<9}{shape:>15}{figures}")
    lines.append(
        f"{cost.params:,} params, {cost.macs / 1e9:.2f} G MACs at {cost.img_size} px, {cost.size_bytes / 1e6:.1f} MB"
    )
    return "\n".join(lines)
