"""The largest networks that are read.

Each limit is several times what the largest published network of the family has. Larger numbers are slips, or files that
someone made to exhaust memory: they are an error where they are read, before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence

from yolo_prune.darknet.layers import Conv, Layer, MaxPool, Reorg, Shape, Upsample
from yolo_prune.errors import CfgError

MOST_LAYERS = 5_000
"""yolov4-p7 has 531."""
MOST_CHANNELS = 131_072
"""Of one layer's output: yolo9000's head has 28,269."""
MOST_WINDOW = 1_024
"""Pixels along a side, and the stride, of a convolution or a pool; and the factor of an upsampling."""
MOST_SIDE_PX = 32_768
"""Of any layer's output."""
MOST_VALUES = 2**31
"""Of any layer's output for one image: 8.6 GB."""
MOST_PARAMS = 2**33
"""Of the whole network: 34 GB; yolov4-p7 has 287 million."""

_RIGHT = "correct it: no network of this family is so large"


def check_count(layers: Sequence[object]) -> None:
    """Check the number of layers, or of the sections that they are made of.

    Raises:
        CfgError: there are too many.
    """
    if len(layers) > MOST_LAYERS:
        raise CfgError(f"the network has {len(layers):,} layers, more than {MOST_LAYERS:,}", right=_RIGHT)


def check_layers(layers: Sequence[Layer], shapes: Sequence[Shape], channels: int) -> None:
    """Check the sizes of every layer; `shapes` are their outputs, `channels` those of the input.

    Raises:
        CfgError: a layer, its output or the whole network is too large; `where` is then "layer N".
    """
    params = 0
    for index, (layer, shape) in enumerate(zip(layers, shapes, strict=True)):
        windows = [getattr(layer, name, 1) for name in ("size", "stride")]
        if isinstance(layer, Conv | MaxPool | Upsample | Reorg) and max(windows) > MOST_WINDOW:
            _refuse(index, f"has a window or stride of {max(windows):,}", MOST_WINDOW)
        if shape.channels > MOST_CHANNELS:
            _refuse(index, f"has {shape.channels:,} output channels", MOST_CHANNELS)
        if max(shape.height, shape.width) > MOST_SIDE_PX:
            _refuse(index, f"has an output of {shape.width:,}×{shape.height:,}", MOST_SIDE_PX)
        if shape.channels * shape.height * shape.width > MOST_VALUES:
            _refuse(index, f"has {shape.channels * shape.height * shape.width:,} values", MOST_VALUES)
        if isinstance(layer, Conv):
            inputs = shapes[index - 1].channels if index else channels
            params += layer.filters * (inputs // layer.groups) * layer.size**2
        if params > MOST_PARAMS:
            _refuse(index, f"brings the network to {params:,} params", MOST_PARAMS)


def _refuse(index: int, what: str, most: int) -> None:
    raise CfgError(f"{what}, more than {most:,}", where=f"layer {index}", right=_RIGHT)
