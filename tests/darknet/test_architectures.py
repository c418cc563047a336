from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_prune.darknet.architectures import ARCHITECTURES, make_network
from yolo_prune.darknet.config import Arch
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.layers import Conv, Route, Shortcut, Upsample
from yolo_prune.errors import CfgError
from yolo_prune.pruning.channels import make_channel_graph


def test_one_class_yolov3_is_the_case_study_s() -> None:
    network = make_network("yolov3", classes=1)
    assert len(network.layers) == 107
    assert len(network.convs) == 75
    assert sum(conv.filters for _, conv in network.convs) == 26_358
    assert [index for index, _ in network.heads] == [82, 94, 106]
    assert sum(isinstance(layer, Shortcut) for layer in network.layers) == 23
    assert network.stride == 32


def test_one_class_yolov3_has_the_case_study_s_channel_graph() -> None:
    graph = make_channel_graph(make_network("yolov3", classes=1))
    assert graph.size == 15_801
    assert len(graph.groups) == 53
    assert sum(not group.frozen for group in graph.groups) == 49
    tied = [group for group in graph.groups if group.is_tied]
    assert [len(group.ids) for group in tied] == [64, 128, 256, 512, 1024]
    assert sum(len(group.writers) for group in tied) == 28


def test_yolov4_is_laid_out_as_published() -> None:
    network = make_network("yolov4", img_size=608)
    assert len(network.layers) == 162
    assert len(network.convs) == 110
    assert sum(isinstance(layer, Shortcut) for layer in network.layers) == 23
    assert {index for index, conv in network.convs if conv.activation == "mish"} == {
        index for index, _ in network.convs if index <= 104
    }
    assert {conv.activation for index, conv in network.convs if index > 104} == {"leaky", "linear"}
    heads = [(index, head.mask, head.scale_x_y, network.shapes[index].width) for index, head in network.heads]
    assert heads == [(139, (0, 1, 2), 1.2, 76), (150, (3, 4, 5), 1.1, 38), (161, (6, 7, 8), 1.05, 19)]
    routes = {index: layer.sources for index, layer in enumerate(network.layers) if isinstance(layer, Route)}
    stages = {3: (1,), 9: (8, 2), 13: (11,), 22: (21, 12), 26: (24,), 53: (52, 25), 57: (55,), 84: (83, 56), 88: (86,)}
    pyramid = {103: (102, 87), 109: (107,), 111: (107,), 113: (112, 110, 108, 107)}
    neck = {119: (85,), 121: (120, 118), 129: (54,), 131: (130, 128), 140: (136,), 142: (141, 126), 151: (147,)}
    assert routes == {**stages, **pyramid, **neck, 153: (152, 116)}


def test_yolov4_tiny_is_laid_out_as_published() -> None:
    network = make_network("yolov4-tiny")
    assert len(network.layers) == 38
    assert len(network.convs) == 21
    assert not any(isinstance(layer, Shortcut) for layer in network.layers)
    assert {conv.activation for _, conv in network.convs} == {"leaky", "linear"}
    heads = [(index, head.mask, head.scale_x_y, network.shapes[index].width) for index, head in network.heads]
    assert heads == [(30, (3, 4, 5), 1.05, 13), (37, (1, 2, 3), 1.05, 26)]
    routes = {index: layer for index, layer in enumerate(network.layers) if isinstance(layer, Route)}
    for first in (2, 10, 18):
        assert routes.pop(first + 1) == Route((first,), groups=2, group_id=1)
        assert routes.pop(first + 4) == Route((first + 3, first + 2))
        assert routes.pop(first + 6) == Route((first, first + 5))
    assert routes == {31: Route((27,)), 34: Route((33, 23))}
    assert network.layers[33] == Upsample()


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("yolov4", {"iou_thresh": "0.213", "max_delta": "5"}),
        ("yolov4-tiny", {"random": "0", "resize": "1.5"}),
    ],
)
def test_yolov4_heads_keep_the_published_options(arch: str, options: dict[str, str]) -> None:
    shared = {"ignore_thresh": "0.7", "truth_thresh": "1", "jitter": "0.3", "cls_normalizer": "1.0"}
    shared |= {"iou_normalizer": "0.07", "iou_loss": "ciou", "nms_kind": "greedynms", "beta_nms": "0.6"}
    *first, last = (dict(head.options) for _, head in make_network(arch).heads)
    assert all(head == shared | options for head in first)
    assert last == shared | {"random": "1"} | options


def test_yolov4_ties_what_its_shortcuts_add() -> None:
    network = make_network("yolov4")
    graph = make_channel_graph(network)
    tied = [group for group in graph.groups if group.is_tied]
    assert [len(group.ids) for group in tied] == [64, 64, 128, 256, 512]
    assert [len(group.writers) for group in tied] == [2, 3, 9, 9, 5]
    assert sum(not group.frozen for group in graph.groups) == len(network.convs) - 3 - 23
    doubled = sum(len(group.ids) * (len(group.writers) - 1) for group in tied)
    assert graph.size == 3 + sum(conv.filters for _, conv in network.convs) - doubled


def test_yolov4_tiny_unites_the_halves_that_it_slices() -> None:
    network = make_network("yolov4-tiny")
    graph = make_channel_graph(network)
    assert not any(group.is_tied for group in graph.groups)
    assert sum(not group.frozen for group in graph.groups) == len(network.convs) - 2
    for sliced, filters in ((2, 64), (10, 128), (18, 256)):
        lower, upper = graph.writes[sliced].reshape(2, filters // 2)
        assert np.array_equal(lower, upper)
        assert np.array_equal(graph.reads[sliced + 2], upper)
    assert graph.size == 3 + sum(conv.filters for _, conv in network.convs) - 32 - 64 - 128


@pytest.mark.parametrize(
    ("arch", "file_bytes"),
    [
        ("yolov3", 248_007_048),
        ("yolov3-tiny", 35_434_956),
        ("yolov3-spp", 252_209_544),
        ("yolov4", 257_717_640),
        ("yolov4-tiny", 24_251_276),
    ],
)
def test_coco_networks_fill_the_published_weights_files(arch: str, file_bytes: int) -> None:
    assert measure_cost(make_network(arch, classes=80)).size_bytes + 20 == file_bytes


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_width_scales_every_convolution_but_the_heads(arch: str) -> None:
    full, half = make_network(arch, classes=3), make_network(arch, classes=3, width=0.5)
    for (index, wide), (_, slim) in zip(full.convs, half.convs, strict=True):
        assert slim.filters == (wide.filters if index in full.head_convs else wide.filters // 2)
    assert min(conv.filters for _, conv in make_network(arch, width=1e-6).convs) == 1


@given(st.sampled_from(ARCHITECTURES), st.floats(1e-6, 8))
@settings(max_examples=60, deadline=None)
def test_every_width_gives_a_network_of_the_same_form(arch: str, width: float) -> None:
    network, full = make_network(arch, width=width), make_network(arch)
    assert [type(layer) for layer in network.layers] == [type(layer) for layer in full.layers]
    for (_, scaled), (_, conv) in zip(network.convs, full.convs, strict=True):
        assert scaled.filters == conv.filters or abs(scaled.filters - conv.filters * width) <= 2


def test_anchors_follow_the_image_s_size() -> None:
    assert make_network("yolov3", img_size=416).heads[0][1].own_anchors == ((116, 90), (156, 198), (373, 326))
    assert make_network("yolov3", img_size=832).heads[0][1].own_anchors == ((232, 180), (312, 396), (746, 652))
    assert make_network("yolov4", img_size=608).heads[0][1].own_anchors == ((12, 16), (19, 36), (40, 28))
    assert make_network("yolov4", img_size=416).heads[0][1].own_anchors == ((8.21, 10.95), (13, 24.63), (27.37, 19.16))


def test_anchors_of_one_s_own_stay_as_they_are() -> None:
    own = tuple((4.0 * side, 5.0 * side) for side in range(1, 10))
    network = make_network("yolov4", img_size=320, anchors=own[::-1])
    assert (network.width, network.height) == (320, 320)
    assert network.heads[0][1].anchors == own


def test_head_convolutions_are_plain() -> None:
    network = make_network("yolov3-tiny", classes=4)
    for index in network.head_convs:
        assert network.layers[index] == Conv(27, 1, batch_normalize=False, activation="linear")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"arch": "yolov5"}, "--arch: unknown architecture yolov5; use one of yolov3, yolov3-spp, yolov3-tiny, yolov4"),
        ({"width": 0.0}, "--width: 0 is out of range"),
        ({"width": float("nan")}, "--width: nan is out of range"),
        ({"classes": 0}, "--classes: 0 is out of range"),
        ({"img_size": 400}, "--img-size: 400 is no multiple of 32; use 384"),
        ({"img_size": 0}, "--img-size: 0 is no multiple of 32; use 32"),
    ],
)
def test_what_cannot_be_made_is_named_by_its_flag(settings: dict[str, object], said: str) -> None:
    with pytest.raises(CfgError) as caught:
        make_network(**settings)  # type: ignore[arg-type]  # the table holds what a flag could hold
    assert str(caught.value).startswith(said)


def test_the_setting_offers_every_architecture() -> None:
    assert get_args(Arch) == ARCHITECTURES
