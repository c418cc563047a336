"""Make the YOLOv3 family from its block structure, at any width and class count.

Source: J. Redmon, A. Farhadi, "YOLOv3: An Incremental Improvement" (2018), table 1 and §2.3;
Z. Huang et al., "DC-SPP-YOLO" (2020) for the pooling pyramid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import TypeAlias

from yolo_prune.darknet.layers import Conv, Layer, MaxPool, Network, Route, Shortcut, Upsample, Yolo, resize
from yolo_prune.errors import CfgError

Anchors: TypeAlias = tuple[tuple[float, float], ...]

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


class _Builder:
    """A list of layers that grows, with one verb per block."""

    def __init__(self, anchors: Anchors, classes: int, width: float) -> None:
        self.layers: list[Layer] = []
        self._anchors = anchors
        self._classes = classes
        self._width = width

    @property
    def last(self) -> int:
        return len(self.layers) - 1

    def conv(self, filters: int, size: int, stride: int = 1) -> None:
        self.layers.append(Conv(max(1, round(filters * self._width)), size, stride, padding=size // 2))

    def residual(self, filters: int) -> None:
        self.conv(filters // 2, 1)
        self.conv(filters, 3)
        self.layers.append(Shortcut(self.last - 2))

    def pool(self, size: int, stride: int) -> None:
        self.layers.append(MaxPool(size, stride, padding=size - 1))

    def route(self, *sources: int) -> None:
        self.layers.append(Route(sources))

    def head(self, mask: tuple[int, ...]) -> None:
        head = Yolo(
            mask,
            self._anchors,
            self._classes,
            options=(("ignore_thresh", "0.7"), ("truth_thresh", "1"), ("jitter", "0.3"), ("random", "1")),
        )
        self.layers.append(Conv(head.channels, 1, batch_normalize=False, activation="linear"))
        self.layers.append(head)

    def upsample_onto(self, lateral: int, branch: int, filters: int) -> None:
        self.route(branch)
        self.conv(filters, 1)
        self.layers.append(Upsample())
        self.route(self.last, lateral)


def _build_yolov3(net: _Builder, spp: bool = False) -> None:
    net.conv(32, 3)
    stages: list[int] = []
    for filters, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        net.conv(filters, 3, stride=2)
        for _ in range(blocks):
            net.residual(filters)
        stages.append(net.last)
    for filters, lateral, mask in ((512, None, (6, 7, 8)), (256, stages[3], (3, 4, 5)), (128, stages[2], (0, 1, 2))):
        if lateral is not None:
            net.upsample_onto(lateral, net.last - 3, filters)
        for step in range(3):
            net.conv(filters, 1)
            if spp and lateral is None and step == 1:
                _pyramid(net, filters)
            net.conv(2 * filters, 3)
        net.head(mask)


def _pyramid(net: _Builder, filters: int) -> None:
    base = net.last
    net.pool(5, 1)
    net.route(base)
    net.pool(9, 1)
    net.route(base)
    net.pool(13, 1)
    net.route(net.last, net.last - 2, net.last - 4, base)
    net.conv(filters, 1)


def _build_tiny(net: _Builder) -> None:
    for filters in (16, 32, 64, 128, 256):
        net.conv(filters, 3)
        net.pool(2, 2)
    lateral = net.last - 1
    net.conv(512, 3)
    net.pool(2, 1)
    net.conv(1024, 3)
    net.conv(256, 1)
    branch = net.last
    net.conv(512, 3)
    net.head((3, 4, 5))
    net.upsample_onto(lateral, branch, 128)
    net.conv(256, 3)
    net.head((0, 1, 2))


_ARCHITECTURES: dict[str, tuple[Callable[[_Builder], None], Anchors]] = {
    "yolov3": (_build_yolov3, YOLOV3_ANCHORS),
    "yolov3-spp": (lambda net: _build_yolov3(net, spp=True), YOLOV3_ANCHORS),
    "yolov3-tiny": (_build_tiny, TINY_ANCHORS),
}
ARCHITECTURES = tuple(_ARCHITECTURES)
"""The names that `make_network` knows."""


def make_network(
    arch: str = "yolov3",
    classes: int = 1,
    width: float = 1.0,
    img_size: int = 416,
    anchors: Anchors | None = None,
) -> Network:
    """Make a network of the YOLOv3 family; `width` scales every convolution's filters but the heads'.

    `anchors` are (width, height) in pixels of an `img_size` input, in any order; without them the COCO ones are scaled.

    Raises:
        CfgError: an unknown architecture, a width or class count out of range, a size that is no multiple of 32, or
            another number of anchors than the architecture has.
    """
    if arch not in _ARCHITECTURES:
        raise CfgError(f"unknown architecture {arch}", where="--arch", right=f"use one of {', '.join(ARCHITECTURES)}")
    if not 0 < width <= 8:
        raise CfgError(f"{width:g} is out of range", where="--width", right="use a number above 0 and up to 8")
    if classes < 1:
        raise CfgError(f"{classes} is out of range", where="--classes", right="use at least 1")
    if img_size < 32 or img_size % 32:
        raise CfgError(
            f"{img_size} is no multiple of 32", where="--img-size", right=f"use {max(32, round(img_size / 32) * 32)}"
        )
    build, coco_anchors = _ARCHITECTURES[arch]
    if anchors is not None and (len(anchors) != len(coco_anchors) or min(map(min, anchors)) <= 0):
        right = f"give {len(coco_anchors)} pairs of positive width,height"
        raise CfgError(f"{len(anchors)} anchors do not fit {arch}", where="--anchors", right=right)
    net = _Builder(coco_anchors if anchors is None else tuple(sorted(anchors, key=prod)), classes, width)
    build(net)
    network = Network(416, 416, 3, tuple(net.layers))
    return resize(network, img_size) if anchors is None else replace(network, width=img_size, height=img_size)
