"""Make networks of the YOLOv3 and YOLOv4 families from their block structure, at any width and class count.

Source: J. Redmon, A. Farhadi, "YOLOv3: An Incremental Improvement" (2018), table 1 and §2.3;
Z. Huang et al., "DC-SPP-YOLO" (2020) for the pooling pyramid;
A. Bochkovskiy et al., "YOLOv4: Optimal Speed and Accuracy of Object Detection" (2020), §3.4;
C.-Y. Wang et al., "Scaled-YOLOv4" (2021), §4.2, for YOLOv4-tiny.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import TypeAlias

from yolo_prune.darknet.anchors import resize
from yolo_prune.darknet.layers import Conv, Layer, MaxPool, Route, Shortcut, Upsample, Yolo
from yolo_prune.darknet.network import Network
from yolo_prune.errors import CfgError, ConfigError
from yolo_prune.image_size import AnySize, ImageSize, parse_size

Anchors: TypeAlias = tuple[tuple[float, float], ...]
Options: TypeAlias = tuple[tuple[str, str], ...]

YOLOV3_ANCHORS: Anchors = (
    (10.0, 13.0),
    (16.0, 30.0),
    (33.0, 23.0),
    (30.0, 61.0),
    (62.0, 45.0),
    (59.0, 119.0),
    (116.0, 90.0),
    (156.0, 198.0),
    (373.0, 326.0),
)
TINY_ANCHORS: Anchors = ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0), (81.0, 82.0), (135.0, 169.0), (344.0, 319.0))
YOLOV4_ANCHORS: Anchors = (
    (12.0, 16.0),
    (19.0, 36.0),
    (40.0, 28.0),
    (36.0, 75.0),
    (76.0, 55.0),
    (72.0, 146.0),
    (142.0, 110.0),
    (192.0, 243.0),
    (459.0, 401.0),
)

_RANDOM: Options = (("random", "1"),)
_OPTIONS: Options = (("ignore_thresh", "0.7"), ("truth_thresh", "1"), ("jitter", "0.3"))
_CIOU_OPTIONS: Options = (
    *_OPTIONS,
    ("cls_normalizer", "1.0"),
    ("iou_normalizer", "0.07"),
    ("iou_loss", "ciou"),
    ("nms_kind", "greedynms"),
    ("beta_nms", "0.6"),
)
_YOLOV4_OPTIONS: Options = (*_CIOU_OPTIONS, ("iou_thresh", "0.213"), ("max_delta", "5"))
_YOLOV4_TINY_OPTIONS: Options = (*_CIOU_OPTIONS, ("random", "0"), ("resize", "1.5"))


class _Builder:
    """A growing list of layers, with one method per block; `activation` is that of the next convolutions."""

    def __init__(self, anchors: Anchors, classes: int, width: float) -> None:
        self.layers: list[Layer] = []
        self.activation = "leaky"
        self._anchors = anchors
        self._classes = classes
        self._width = width

    @property
    def last(self) -> int:
        return len(self.layers) - 1

    def conv(self, filters: int, size: int, stride: int = 1, parts: int = 1) -> None:
        """Append a convolution; at any width, the number of its filters is a multiple of `parts`."""
        scaled = parts * max(1, round(filters / parts * self._width))
        self.layers.append(Conv(scaled, size, stride, padding=size // 2, activation=self.activation))

    def residual(self, filters: int, inner: int) -> None:
        self.conv(inner, 1)
        self.conv(filters, 3)
        self.layers.append(Shortcut(self.last - 2))

    def pool(self, size: int, stride: int) -> None:
        self.layers.append(MaxPool(size, stride, padding=size - 1))

    def route(self, *sources: int) -> None:
        self.layers.append(Route(sources))

    def take_second_half(self) -> None:
        self.layers.append(Route((self.last,), groups=2, group_id=1))

    def upsample(self, filters: int) -> None:
        self.conv(filters, 1)
        self.layers.append(Upsample())

    def head(self, mask: tuple[int, ...], options: Options, scale_x_y: float = 1.0) -> None:
        head = Yolo(mask, self._anchors, self._classes, scale_x_y, options)
        self.layers.append(Conv(head.channels, 1, batch_normalize=False, activation="linear"))
        self.layers.append(head)


def _build_yolov3(net: _Builder, spp: bool = False) -> None:
    net.conv(32, 3)
    stages: list[int] = []
    for filters, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        net.conv(filters, 3, stride=2)
        for _ in range(blocks):
            net.residual(filters, filters // 2)
        stages.append(net.last)
    for filters, lateral, mask in ((512, None, (6, 7, 8)), (256, stages[3], (3, 4, 5)), (128, stages[2], (0, 1, 2))):
        if lateral is not None:
            net.route(net.last - 3)
            net.upsample(filters)
            net.route(net.last, lateral)
        _five_convs(net, filters, spp and lateral is None)
        net.conv(2 * filters, 3)
        net.head(mask, _OPTIONS + _RANDOM)


def _five_convs(net: _Builder, filters: int, spp: bool = False) -> None:
    net.conv(filters, 1)
    net.conv(2 * filters, 3)
    net.conv(filters, 1)
    if spp:
        _pyramid(net, filters)
    net.conv(2 * filters, 3)
    net.conv(filters, 1)


def _pyramid(net: _Builder, filters: int) -> None:
    base = net.last
    net.pool(5, 1)
    net.route(base)
    net.pool(9, 1)
    net.route(base)
    net.pool(13, 1)
    net.route(net.last, net.last - 2, net.last - 4, base)
    net.conv(filters, 1)


def _build_yolov3_tiny(net: _Builder) -> None:
    for filters in (16, 32, 64, 128, 256):
        net.conv(filters, 3)
        net.pool(2, 2)
    lateral = net.last - 1
    net.conv(512, 3)
    net.pool(2, 1)
    net.conv(1024, 3)
    _tiny_heads(net, lateral, (0, 1, 2), _OPTIONS + _RANDOM)


def _tiny_heads(net: _Builder, lateral: int, mask: tuple[int, ...], options: Options, scale_x_y: float = 1.0) -> None:
    net.conv(256, 1)
    branch = net.last
    net.conv(512, 3)
    net.head((3, 4, 5), options, scale_x_y)
    net.route(branch)
    net.upsample(128)
    net.route(net.last, lateral)
    net.conv(256, 3)
    net.head(mask, options, scale_x_y)


def _build_yolov4(net: _Builder) -> None:
    net.activation = "mish"
    net.conv(32, 3)
    stages: list[int] = []
    for filters, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        _csp_stage(net, filters, blocks)
        stages.append(net.last)
    net.activation = "leaky"
    _five_convs(net, 512, spp=True)
    coarse = net.last
    _merge_up(net, 256, stages[3])
    middle = net.last
    _merge_up(net, 128, stages[2])
    for filters, lateral, mask, scale_x_y, options in (
        (128, None, (0, 1, 2), 1.2, _YOLOV4_OPTIONS),
        (256, middle, (3, 4, 5), 1.1, _YOLOV4_OPTIONS),
        (512, coarse, (6, 7, 8), 1.05, _YOLOV4_OPTIONS + _RANDOM),
    ):
        if lateral is not None:
            net.route(net.last - 3)
            net.conv(filters, 3, stride=2)
            net.route(net.last, lateral)
            _five_convs(net, filters)
        net.conv(2 * filters, 3)
        net.head(mask, options, scale_x_y)


def _csp_stage(net: _Builder, filters: int, blocks: int) -> None:
    inner = filters // 2
    path = filters if blocks == 1 else inner  # as published: both paths of the first stage have all filters
    net.conv(filters, 3, stride=2)
    entry = net.last
    net.conv(path, 1)
    bypass = net.last
    net.route(entry)
    net.conv(path, 1)
    for _ in range(blocks):
        net.residual(path, inner)
    net.conv(path, 1)
    net.route(net.last, bypass)
    net.conv(filters, 1)


def _merge_up(net: _Builder, filters: int, lateral: int) -> None:
    net.upsample(filters)
    coarse = net.last
    net.route(lateral)
    net.conv(filters, 1)
    net.route(net.last, coarse)
    _five_convs(net, filters)


def _build_yolov4_tiny(net: _Builder) -> None:
    net.conv(32, 3, stride=2)
    net.conv(64, 3, stride=2)
    for filters in (64, 128, 256):
        _tiny_csp_block(net, filters)
        net.pool(2, 2)
    lateral = net.last - 2
    net.conv(512, 3)
    _tiny_heads(net, lateral, (1, 2, 3), _YOLOV4_TINY_OPTIONS, 1.05)


def _tiny_csp_block(net: _Builder, filters: int) -> None:
    net.conv(filters, 3, parts=2)
    whole = net.last
    net.take_second_half()
    net.conv(filters // 2, 3)
    net.conv(filters // 2, 3)
    net.route(net.last, net.last - 1)
    net.conv(filters, 1)
    net.route(whole, net.last)


@dataclass(frozen=True)
class _Architecture:
    """How to build an architecture, and its COCO anchors in pixels of an `img_size` input."""

    build: Callable[[_Builder], None]
    anchors: Anchors
    img_size: int = 416


_ARCHITECTURES = {
    "yolov3": _Architecture(_build_yolov3, YOLOV3_ANCHORS),
    "yolov3-spp": _Architecture(partial(_build_yolov3, spp=True), YOLOV3_ANCHORS),
    "yolov3-tiny": _Architecture(_build_yolov3_tiny, TINY_ANCHORS),
    "yolov4": _Architecture(_build_yolov4, YOLOV4_ANCHORS, 608),
    "yolov4-tiny": _Architecture(_build_yolov4_tiny, TINY_ANCHORS),
}
ARCHITECTURES = tuple(_ARCHITECTURES)
"""The names that `make_network` accepts: the choices of `darknet.config.Arch`."""


def make_network(
    arch: str = "yolov3",
    classes: int = 1,
    width: float = 1.0,
    img_size: AnySize = 416,
    anchors: Anchors | None = None,
) -> Network:
    """Make a network of the YOLOv3 and YOLOv4 families; `width` scales the filters of all convolutions but the heads'.

    `img_size` is the size of the input, or the side of a square; `anchors` are (width, height) in its pixels, in any order; by default the COCO ones are scaled.

    Raises:
        CfgError: an unknown architecture, a width or class count out of range, a size that is not a multiple of 32, or
            a number of anchors that the architecture does not have.
    """
    if arch not in _ARCHITECTURES:
        raise CfgError(f"unknown architecture {arch}", where="--arch", right=f"use one of {', '.join(ARCHITECTURES)}")
    if not 0 < width <= 8:
        raise CfgError(f"{width:g} is out of range", where="--width", right="use a number above 0 and up to 8")
    if classes < 1:
        raise CfgError(f"{classes} is out of range", where="--classes", right="use at least 1")
    size = _parse_size(img_size)
    architecture = _ARCHITECTURES[arch]
    if anchors is not None and (len(anchors) != len(architecture.anchors) or min(map(min, anchors)) <= 0):
        right = f"give {len(architecture.anchors)} pairs of positive width,height"
        raise CfgError(f"{len(anchors)} anchors do not fit {arch}", where="--anchors", right=right)
    net = _Builder(architecture.anchors if anchors is None else tuple(sorted(anchors, key=prod)), classes, width)
    architecture.build(net)
    network = Network(architecture.img_size, architecture.img_size, 3, tuple(net.layers))
    return resize(network, size) if anchors is None else replace(network, width=size.width, height=size.height)


def _parse_size(img_size: AnySize) -> ImageSize:
    try:
        return parse_size(img_size)
    except ConfigError as error:
        raise CfgError(error.what, where="--img-size", right=error.right) from None
