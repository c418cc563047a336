from __future__ import annotations

import pytest

from yolo_prune.darknet.architectures import ARCHITECTURES, make_network
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.layers import Conv, Shortcut
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


@pytest.mark.parametrize(
    ("arch", "file_bytes"),
    [("yolov3", 248_007_048), ("yolov3-tiny", 35_434_956), ("yolov3-spp", 252_209_544)],
)
def test_coco_networks_fill_the_published_weights_files(arch: str, file_bytes: int) -> None:
    assert measure_cost(make_network(arch, classes=80)).size_bytes + 20 == file_bytes


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_width_scales_every_convolution_but_the_heads(arch: str) -> None:
    full, half = make_network(arch, classes=3), make_network(arch, classes=3, width=0.5)
    for (index, wide), (_, slim) in zip(full.convs, half.convs, strict=True):
        assert slim.filters == (wide.filters if index in full.head_convs else wide.filters // 2)
    assert min(conv.filters for _, conv in make_network(arch, width=1e-6).convs) == 1


def test_anchors_follow_the_picture_s_size() -> None:
    assert make_network("yolov3", img_size=416).heads[0][1].own_anchors == ((116, 90), (156, 198), (373, 326))
    assert make_network("yolov3", img_size=832).heads[0][1].own_anchors == ((232, 180), (312, 396), (746, 652))


def test_head_convolutions_are_plain() -> None:
    network = make_network("yolov3-tiny", classes=4)
    for index in network.head_convs:
        assert network.layers[index] == Conv(27, 1, batch_normalize=False, activation="linear")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"arch": "yolov4"}, "--arch: unknown architecture yolov4; use one of yolov3, yolov3-spp, yolov3-tiny"),
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
