"""Load and save Darknet .weights files.

A file is a header (three int32: major, minor, revision; then the images seen, int64 from version 0.2 on, else int32)
and float32 values: for each convolution in the cfg's order β, γ, mean, variance (or the bias), then the kernel
(out, in, height, width). Source: load_convolutional_weights and save_convolutional_weights in Darknet's parser.c.

Several PyTorch projects write five int32 with version 0.0, so there the number of values decides how long the header is. Nothing else in a file says which network it was made for: values that no trained network has show that it was
another one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from yolo_prune.arrays import Float32Array
from yolo_prune.bounded import open_plain
from yolo_prune.darknet.file_names import names_prefix
from yolo_prune.darknet.layers import Conv
from yolo_prune.darknet.network import Network
from yolo_prune.darknet.squeeze import find_squeezes
from yolo_prune.errors import WeightsError
from yolo_prune.files import open_atomically
from yolo_prune.limits import MOST_CLASSES
from yolo_prune.model.detector import ConvLayer, Detector

NARROW_BYTES, WIDE_BYTES = 16, 20
"""The length of a header with an int32 and with an int64 for the images seen."""
LARGEST_VALUE = 1e5
"""No weight, bias, mean or γ of a trained network is so large."""
LARGEST_VARIANCE = 1e9


@dataclass(frozen=True)
class WeightsHeader:
    """The header of a .weights file; `seen` counts training images."""

    major: int = 0
    minor: int = 2
    revision: int = 0
    seen: int = 0
    length: int | None = None
    """The length in bytes, if it is not the one that the version says."""

    @property
    def bytes_of_version(self) -> int:
        """The length that the version says: `seen` takes eight bytes, or four."""
        is_wide = self.major * 10 + self.minor >= 2 and self.major < 1000 and self.minor < 1000
        return WIDE_BYTES if is_wide else NARROW_BYTES

    @property
    def is_wide(self) -> bool:
        """Whether `seen` takes eight bytes."""
        return (self.length or self.bytes_of_version) == WIDE_BYTES


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
    lacks_biases: bool = False
    """Whether the convolutions of squeeze and excite have none in the file."""

    def format(self) -> str:
        """Return the report as one line."""
        line = f"took {self.convs_loaded} of {self.convs_total} convolutions"
        if self.header.length is not None:
            version, usual = f"{self.header.major}.{self.header.minor}", self.header.bytes_of_version
            line += f" after a header of {self.header.length} bytes, though version {version} has {usual}"
        if self.lacks_biases:
            line += ", those of squeeze and excite without biases"
        if self.foreign_classes is not None:
            return f"{line}: everything but the heads, which were made for {self.foreign_classes} classes"
        if self.convs_loaded < self.convs_total:
            return f"{line}: the file is a prefix, the rest starts from random numbers"
        return line


def load_weights(model: Detector, path: Path, is_prefix: bool = False) -> LoadReport:
    """Fill `model` in place from a Darknet .weights file; the model is left as it was after an error.

    If the file's heads were made for another number of classes (COCO's, say), all layers but the heads are filled.

    Args:
        is_prefix: the file may hold the first layers alone. So may one whose name says so, such as `tiny.conv.15`.

    Raises:
        WeightsError: the file cannot be read, does not fit the network, or holds values that show that it is another
            network's (names the layer).
    """
    network = model.network
    may_end = is_prefix or names_prefix(path)
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(WIDE_BYTES)
        header, count, loaded, foreign, bare = _fit(network, path, size, head, may_end)
        file.seek(header.length or header.bytes_of_version)
        values = np.fromfile(file, "<f4", count)
    if len(values) < count:
        raise WeightsError("became shorter while it was read", where=path, right="try again")
    parts: list[tuple[int, Float32Array]] = []
    position = 0
    for number, (index, layer) in enumerate(network.convs):
        is_foreign = foreign is not None and index in network.head_convs
        if not is_foreign and foreign is None and number >= loaded:
            break
        filters = _foreign_filters(network, index, foreign or 0) if is_foreign else layer.filters
        count = _count(network, index, filters, bare)
        if not is_foreign:
            parts.append((index, values[position : position + count]))
        position += count
    for index, part in parts:
        check_values(_split(model.get_conv(index), part, index in bare), index, path)
    for index, part in parts:
        _fill(model.get_conv(index), part, index in bare)
    return LoadReport(header, loaded, len(network.convs), foreign, bool(bare))


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


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        with open_plain(path) as file:
            yield file
    except OSError as error:
        raise WeightsError(
            f"cannot be read ({error.strerror})", where=path, right="name a Darknet .weights file"
        ) from error


class _Fit(NamedTuple):
    """How a file fits a network."""

    header: WeightsHeader
    values: int
    loaded: int
    """How many convolutions they fill."""
    foreign: int | None
    """The classes of its heads, if they are not as many as the network's."""
    bare: frozenset[int]
    """The numbers of the layers of squeeze and excite, if they have no bias in the file."""


def _fit(network: Network, path: Path, size: int, head: bytes, may_end: bool) -> _Fit:
    """Return how a file of a size and first bytes fits, with biases in squeeze and excite or else without.

    Raises:
        WeightsError: in no way, or with either header.
    """
    squeezes = find_squeezes(network.layers)
    try:
        return _fit_layout(network, path, size, head, may_end, frozenset())
    except WeightsError:
        if not squeezes:
            raise
        with suppress(WeightsError):  # the one of the usual layout is told
            return _fit_layout(network, path, size, head, may_end, squeezes)
        raise


def _fit_layout(network: Network, path: Path, size: int, head: bytes, may_end: bool, bare: frozenset[int]) -> _Fit:
    """Return how a file fits whose layers `bare` have no bias: the whole network, or with other heads, or a prefix.

    Raises:
        WeightsError: as `_fit`.
    """
    counts = [_count(network, index, layer.filters, bare) for index, layer in network.convs]
    edges = list(accumulate(counts))
    if size <= NARROW_BYTES or size % 4 or size <= WeightsHeader(*struct.unpack("<iii", head[:12])).bytes_of_version:
        raise WeightsError(
            f"its {size:,} bytes are not a header and float32 values, the network expects {edges[-1]:,} of them",
            where=path,
            right="fetch the file again, it is truncated or no .weights file",
        )
    said = WeightsHeader(*struct.unpack("<iii", head[:12]))
    lengths = (WIDE_BYTES,) if said.is_wide else (NARROW_BYTES, WIDE_BYTES)
    found = {length: (size - length) // 4 for length in lengths if size > length}
    fits: list[tuple[int, int, int | None]] = [
        (length, len(counts), None) for length, count in found.items() if count == edges[-1]
    ]
    if not fits:
        foreign = {length: _find_foreign_classes(network, count, edges[-1]) for length, count in found.items()}
        own = len(counts) - len(network.heads)
        fits = [(length, own, classes) for length, classes in foreign.items() if classes is not None]
    if not fits and may_end:
        fits = [(length, edges.index(count) + 1, None) for length, count in found.items() if count in edges]
    if len(fits) > 1 and fits[0][0] != said.bytes_of_version:
        raise WeightsError("fits with either length of header", where=path, right="write it anew with Darknet")
    if not fits:
        raise _explain_misfit(path, found.get(lengths[0], 0), edges, may_end)
    length, loaded, classes = fits[0]
    (seen,) = struct.unpack("<q" if length == WIDE_BYTES else "<i", head[12:length])
    header = replace(said, seen=seen, length=None if length == said.bytes_of_version else length)
    return _Fit(header, found[length], loaded, classes, bare)


def _explain_misfit(path: Path, count: int, edges: list[int], may_end: bool) -> WeightsError:
    surplus = count - edges[-1]
    what = f"holds {count:,} values, the network expects {edges[-1]:,}"
    if surplus > 0:
        return WeightsError(f"{what}: {surplus:,} too many", where=path, right="use a file made for this cfg")
    right = "use a file made for this cfg"
    if count in edges:
        number = edges.index(count) + 1
        right = f"if these are its first {number} convolutions alone, say so with --prefix, or name the file NAME.conv.{number}"
    elif may_end:
        below = max((edge for edge in edges if edge < count), default=0)
        right = f"use a prefix that ends on a layer's edge (the nearest below is {below:,})"
    return WeightsError(what, where=path, right=right)


def _split(module: ConvLayer, values: Float32Array, is_bare: bool) -> dict[str, Float32Array]:
    """Return the values of a layer by the names of its tensors."""
    filters = module.conv.out_channels
    names = ("β", "γ", "mean", "variance") if module.bn is not None else ("bias",) * (not is_bare)
    parts = {name: values[number * filters : (number + 1) * filters] for number, name in enumerate(names)}
    return {**parts, "kernel": values[len(names) * filters :]}


def check_values(parts: Mapping[str, Float32Array], index: int, path: Path) -> None:
    """Raise if values are none that a trained layer has; `parts` are named β, γ, mean, variance, bias or kernel.

    Raises:
        WeightsError: names the layer, the tensor and the value.
    """
    for name, part in parts.items():
        bad = ~np.isfinite(part) | (np.abs(part) > (LARGEST_VARIANCE if name == "variance" else LARGEST_VALUE))
        if name == "variance":
            bad |= part < 0
        if bad.any():
            what = f"layer {index} would get a {name} of {float(part[bad][0]):.4g}, which no trained network has"
            right = "use a file made for this cfg"
            raise WeightsError(f"{what}: the file is another network's, or damaged", where=path, right=right)


def _count(network: Network, index: int, filters: int, bare: Set[int] = frozenset()) -> int:
    layer = network.layers[index]
    assert isinstance(layer, Conv)
    fan_in = network.get_input_channels(index) // layer.groups * layer.size**2
    return filters * (fan_in + (4 if layer.batch_normalize else index not in bare))


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
    return classes if remainder == 0 and 1 <= classes <= MOST_CLASSES else None


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
def _fill(module: ConvLayer, values: Float32Array, is_bare: bool) -> None:
    position = 0
    for tensor in _stored(module):
        if is_bare and tensor is module.conv.bias:
            tensor.zero_()
            continue
        part = values[position : position + tensor.numel()]
        tensor.copy_(torch.from_numpy(part.copy()).view(tensor.shape))
        position += tensor.numel()
