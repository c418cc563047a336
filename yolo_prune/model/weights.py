"""Load and save Darknet .weights files.

A file is a header (three int32: major, minor, revision; then the images seen, int64 from version 0.2 on, else int32)
and float32 values: for each convolution in the cfg's order β, γ, mean, variance (or the bias), then the kernel
(out, in, height, width). Source: load_convolutional_weights and save_convolutional_weights in Darknet's parser.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from yolo_prune.arrays import Float32Array
from yolo_prune.darknet.layers import Conv, Network
from yolo_prune.errors import WeightsError
from yolo_prune.files import open_atomically
from yolo_prune.model.detector import ConvLayer, Detector


@dataclass(frozen=True)
class WeightsHeader:
    """The header of a .weights file; `seen` counts training images."""

    major: int = 0
    minor: int = 2
    revision: int = 0
    seen: int = 0

    @property
    def is_wide(self) -> bool:
        """Whether `seen` takes eight bytes."""
        return self.major * 10 + self.minor >= 2 and self.major < 1000 and self.minor < 1000


@dataclass(frozen=True)
class LoadReport:
    """What was loaded from a .weights file.

    `foreign_classes` is the file's class count if the heads were skipped because it differs from the network's, else
    None.
    """

    header: WeightsHeader
    convs_loaded: int
    convs_total: int
    foreign_classes: int | None

    def format(self) -> str:
        """Return the report as one line."""
        line = f"took {self.convs_loaded} of {self.convs_total} convolutions"
        if self.foreign_classes is not None:
            return f"{line}: everything but the heads, which were made for {self.foreign_classes} classes"
        if self.convs_loaded < self.convs_total:
            return f"{line}: the file is a prefix, the rest starts from random numbers"
        return line


def load_weights(model: Detector, path: Path) -> LoadReport:
    """Fill `model` in place from a Darknet .weights file, which may be a prefix of a whole one.

    If the file's heads were made for another number of classes (COCO's, say), all layers but the heads are filled.

    Raises:
        WeightsError: the file cannot be read, or does not end at the end of a layer.
    """
    network = model.network
    counts = [_count(network, index, layer.filters) for index, layer in network.convs]
    edges = list(accumulate(counts))
    header, values = _read(path, edges[-1])
    if len(values) in edges:
        loaded, foreign = edges.index(len(values)) + 1, None
    elif (foreign := _find_foreign_classes(network, len(values), edges[-1])) is not None:
        loaded = len(counts) - len(network.heads)
    else:
        below = max((edge for edge in edges if edge < len(values)), default=0)
        raise WeightsError(
            f"holds {len(values):,} values, the network expects {edges[-1]:,}",
            where=path,
            right=f"use a file made for this cfg, or a prefix that ends on a layer's edge (the nearest below is {below:,})",
        )
    position = 0
    for number, (index, layer) in enumerate(network.convs):
        filters = layer.filters
        is_foreign = foreign is not None and index in network.head_convs
        if is_foreign:
            filters = _foreign_filters(network, index, foreign or 0)
        elif foreign is None and number >= loaded:
            break
        count = _count(network, index, filters)
        if not is_foreign:
            _fill(model.get_conv(index), values[position : position + count])
        position += count
    return LoadReport(header, loaded, len(counts), foreign)


def save_weights(model: Detector, path: Path, header: WeightsHeader | None = None) -> Path:
    """Write `model` as a Darknet .weights file and return `path`.

    Raises:
        OutputError: the file cannot be written.
    """
    header = header or WeightsHeader()
    with open_atomically(path) as file:
        file.write(struct.pack("<iii", header.major, header.minor, header.revision))
        file.write(struct.pack("<q" if header.is_wide else "<i", header.seen))
        for index, _ in model.network.convs:
            for tensor in _stored(model.get_conv(index)):
                file.write(tensor.detach().cpu().to(torch.float32).contiguous().numpy().astype("<f4").tobytes())
    return path


def _read(path: Path, expected: int) -> tuple[WeightsHeader, Float32Array]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"cannot be read ({error.strerror})", where=path, right="name a Darknet .weights file"
        ) from error
    if len(data) >= 16:
        header = WeightsHeader(*struct.unpack("<iii", data[:12]))
        start = 20 if header.is_wide else 16
        if len(data) > start and (len(data) - start) % 4 == 0:
            (seen,) = struct.unpack("<q" if header.is_wide else "<i", data[12:start])
            return WeightsHeader(header.major, header.minor, header.revision, seen), np.frombuffer(
                data, "<f4", offset=start
            )
    raise WeightsError(
        f"its {len(data):,} bytes are not a header and float32 values, the network expects {expected:,} of them",
        where=path,
        right="fetch the file again, it is truncated or no .weights file",
    )


def _count(network: Network, index: int, filters: int) -> int:
    layer = network.layers[index]
    assert isinstance(layer, Conv)
    fan_in = network.get_input_channels(index) // layer.groups * layer.size**2
    return filters * (fan_in + (4 if layer.batch_normalize else 1))


def _foreign_filters(network: Network, index: int, classes: int) -> int:
    head = dict(network.heads)[index + 1]
    return len(head.mask) * (5 + classes)


def _find_foreign_classes(network: Network, found: int, expected: int) -> int | None:
    """Return the class count with which the network would be as large as the file; heads grow linearly with it."""
    heads = sorted(network.head_convs)

    def total(classes: int) -> int:
        return sum(_count(network, index, _foreign_filters(network, index, classes)) for index in heads)

    slope = total(1) - total(0)
    classes, remainder = divmod(found - expected + total(network.classes) - total(0), slope)
    return classes if remainder == 0 and classes >= 1 else None


def _stored(module: ConvLayer) -> Iterator[Tensor]:
    """Yield a convolution's tensors in the file's order."""
    bn = module.bn
    if bn is not None:
        assert bn.running_mean is not None
        assert bn.running_var is not None
        yield from (bn.bias, bn.weight, bn.running_mean, bn.running_var)
    elif module.conv.bias is not None:
        yield module.conv.bias
    yield module.conv.weight


@torch.no_grad()
def _fill(module: ConvLayer, values: Float32Array) -> None:
    position = 0
    for tensor in _stored(module):
        part = values[position : position + tensor.numel()]
        tensor.copy_(torch.from_numpy(part.copy()).view(tensor.shape))
        position += tensor.numel()
