from __future__ import annotations

import os
import re
import struct
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import (
    copy_state,
    is_same_state,
    make_images,
    make_plan_at_random,
    make_small_network,
    networks,
    randomise_,
    run,
)

from yolo_prune.darknet.architectures import ARCHITECTURES, make_network
from yolo_prune.darknet.cfg import load_cfg, save_cfg
from yolo_prune.darknet.layers import Conv
from yolo_prune.darknet.network import Network
from yolo_prune.errors import OutputError, WeightsError
from yolo_prune.model.detector import ConvLayer, Detector
from yolo_prune.model.weights import WeightsHeader, load_weights, save_weights
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.surgery.rebuild import rebuild

WIDE = struct.pack("<iiiq", 0, 2, 5, 2**40)
NARROW = struct.pack("<iiii", 0, 1, 0, 77)
SMALL = make_small_network(Conv(4, 3, 1, 1), Conv(2, 1))
EDGES = list(accumulate((4 * (27 + 4), 2 * (4 + 4), 6 * (2 + 1))))


def write(path: Path, header: bytes, count: int, seed: int = 0) -> bytes:
    values = np.random.default_rng(seed).uniform(0.1, 1, count).astype("<f4")
    content = header + values.tobytes()
    path.write_bytes(content)
    return content


def make_model(network: Network, seed: int = 0) -> Detector:
    return randomise_(Detector(network), seed, double=False)


def test_a_file_laid_out_by_hand(tmp_path: Path) -> None:
    values = np.arange(EDGES[-1], dtype="<f4")
    (tmp_path / "a.weights").write_bytes(WIDE + values.tobytes())
    model = Detector(SMALL)
    report = load_weights(model, tmp_path / "a.weights")
    assert report.header == WeightsHeader(0, 2, 5, 2**40)
    first, head = model.layers[0], model.layers[2]
    assert isinstance(first, ConvLayer)
    assert isinstance(head, ConvLayer)
    assert first.bn is not None
    assert first.bn.bias.tolist() == [0, 1, 2, 3]
    assert first.bn.weight.tolist() == [4, 5, 6, 7]
    assert first.bn.running_mean is not None
    assert first.bn.running_mean.tolist() == [8, 9, 10, 11]
    assert first.bn.running_var is not None
    assert first.bn.running_var.tolist() == [12, 13, 14, 15]
    assert first.conv.weight[0, 0].tolist() == [[16, 17, 18], [19, 20, 21], [22, 23, 24]]
    assert first.conv.weight[3, 2, 2, 2] == 16 + 4 * 27 - 1
    assert head.conv.bias is not None
    assert head.conv.bias.tolist() == list(range(EDGES[1], EDGES[1] + 6))
    assert report.format() == "took 3 of 3 convolutions"


@pytest.mark.parametrize(
    "header", [WIDE, NARROW, struct.pack("<iiiq", 1, 0, 0, 3), struct.pack("<iiii", 1000, 0, 0, 3)]
)
def test_reading_then_writing_is_the_identity_on_bytes(tmp_path: Path, header: bytes) -> None:
    content = write(tmp_path / "a.weights", header, EDGES[-1])
    model = Detector(SMALL)
    report = load_weights(model, tmp_path / "a.weights")
    assert save_weights(model, tmp_path / "b.weights", report.header).read_bytes() == content


@given(networks(), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_writing_then_reading_is_the_identity_for_any_network(network: Network, seed: int) -> None:
    model, other = make_model(network, seed), make_model(network, seed + 1)
    with TemporaryDirectory() as folder:
        path = save_weights(model, Path(folder) / "a.weights")
        report = load_weights(other, path)
        assert save_weights(other, Path(folder) / "b.weights", report.header).read_bytes() == path.read_bytes()
    assert report.convs_loaded == report.convs_total == len(network.convs)
    assert is_same_state(other, copy_state(model))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_pruned_model_as_cfg_and_weights_gives_the_same_outputs(tmp_path: Path, arch: str) -> None:
    model = make_model(make_network(arch, width=0.1))
    slim = rebuild(model, make_plan_at_random(make_channel_graph(model.network), 3)).eval()
    save_cfg(slim.network, tmp_path / "slim.cfg")
    save_weights(slim, tmp_path / "slim.weights")
    back = Detector(load_cfg(tmp_path / "slim.cfg"))
    load_weights(back, tmp_path / "slim.weights")
    images = make_images(slim, 64)
    for one, other in zip(run(slim, images), run(back, images), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("convs", [1, 2])
def test_a_prefix_fills_the_first_layers_only(tmp_path: Path, convs: int) -> None:
    write(tmp_path / "a.conv.1", WIDE, EDGES[convs - 1])
    model = Detector(SMALL)
    before = copy_state(model)
    report = load_weights(model, tmp_path / "a.conv.1")
    assert (report.convs_loaded, report.convs_total, report.foreign_classes) == (convs, 3, None)
    assert "prefix" in report.format()
    for index in range(3):
        assert torch.equal(
            model.state_dict()[f"layers.{index}.conv.weight"], before[f"layers.{index}.conv.weight"]
        ) == (index >= convs)


@pytest.mark.parametrize(
    ("arch", "convs"), [("yolov3-tiny", 13), ("yolov3", 75), ("yolov3-spp", 76), ("yolov4", 110), ("yolov4-tiny", 21)]
)
def test_heads_of_another_class_count_stay_as_they_were(tmp_path: Path, arch: str, convs: int) -> None:
    coco, own = make_model(make_network(arch, 80, width=0.1), 1), make_model(make_network(arch, 1, width=0.1), 2)
    before = copy_state(own)
    report = load_weights(own, save_weights(coco, tmp_path / "coco.weights"))
    heads = len(own.network.heads)
    assert (report.convs_loaded, report.convs_total, report.foreign_classes) == (convs - heads, convs, 80)
    assert "everything but the heads, which were made for 80 classes" in report.format()
    taken = coco.state_dict()
    for name, tensor in own.state_dict().items():
        is_head = int(name.split(".")[1]) in own.network.head_convs
        assert torch.equal(tensor, before[name] if is_head else taken[name]), name


@given(st.integers(0, 20 + 4 * EDGES[-1] + 8))
@settings(max_examples=120, deadline=None)
def test_a_file_cut_anywhere_is_a_prefix_or_rejected(size: int) -> None:
    model = Detector(SMALL)
    before = copy_state(model)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.conv.9"
        content = write(path, WIDE, EDGES[-1] + 2)
        path.write_bytes(content[:size])
        if size in [20 + 4 * edge for edge in EDGES]:
            assert load_weights(model, path).convs_loaded == 1 + [20 + 4 * edge for edge in EDGES].index(size)
            return
        with pytest.raises(WeightsError) as caught:
            load_weights(model, path)
    assert str(path) in str(caught.value)
    assert f"{EDGES[-1]:,}" in str(caught.value)
    assert (f"{(size - 20) // 4:,} values" if size > 20 and size % 4 == 0 else f"{size:,} bytes") in str(caught.value)
    assert is_same_state(model, before)


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    model = Detector(SMALL)
    with pytest.raises(WeightsError, match="No such file"):
        load_weights(model, tmp_path / "none.weights")
    with pytest.raises(WeightsError, match="Is a directory"):
        load_weights(model, tmp_path)
    (tmp_path / "file").write_text("here")
    with pytest.raises(OutputError, match="cannot be written"):
        save_weights(model, tmp_path / "file" / "a.weights")


def find_real_weights() -> Path:
    hands = os.environ.get("YOLO_PRUNE_HANDS")
    path = None if hands is None else Path(hands).resolve().parent / "weights" / "yolov3-tiny.weights"
    if path is None or not path.exists():
        pytest.skip("YOLO_PRUNE_HANDS names no folder with ../weights/yolov3-tiny.weights beside it")
    return path


def test_real_coco_weights_pass_through_unchanged(tmp_path: Path) -> None:
    path = find_real_weights()
    model = Detector(make_network("yolov3-tiny", classes=80))
    report = load_weights(model, path)
    assert (report.convs_loaded, report.foreign_classes) == (13, None)
    assert save_weights(model, tmp_path / "a.weights", report.header).read_bytes() == path.read_bytes()


def test_real_coco_weights_start_a_net_of_one_class() -> None:
    report = load_weights(Detector(make_network("yolov3-tiny", classes=1)), find_real_weights())
    assert (report.convs_loaded, report.convs_total, report.foreign_classes) == (11, 13, 80)


@pytest.mark.parametrize(("version", "said"), [((0, 0, 0), 16), ((0, 1, 0), 16), ((0, 2, 5), 20), ((2, 0, 0), 20)])
@pytest.mark.parametrize("length", [16, 20])
def test_the_number_of_values_decides_how_long_the_header_is(
    tmp_path: Path, version: tuple[int, int, int], said: int, length: int
) -> None:
    model, other = make_model(SMALL, 1), make_model(SMALL, 2)
    values = save_weights(model, tmp_path / "own.weights").read_bytes()[20:]
    path = tmp_path / "a.weights"
    path.write_bytes(struct.pack("<iii", *version) + struct.pack("<q" if length == 20 else "<i", 7) + values)
    if length < said:  # that is a file that was cut short
        with pytest.raises(WeightsError, match=f"holds {EDGES[-1] - 1:,} values, the network expects {EDGES[-1]:,}"):
            load_weights(other, path)
        return
    report = load_weights(other, path)
    assert is_same_state(other, copy_state(model))
    assert save_weights(other, tmp_path / "b.weights", report.header).read_bytes() == path.read_bytes()
    line = f"after a header of {length} bytes, though version {version[0]}.{version[1]} has {said}"
    assert (line in report.format()) == (length != said)


def test_values_that_are_too_many_are_counted(tmp_path: Path) -> None:
    path = save_weights(make_model(SMALL), tmp_path / "a.weights")
    path.write_bytes(path.read_bytes() + bytes(4))
    with pytest.raises(WeightsError, match=r": 1 too many; use a file made for this cfg"):
        load_weights(Detector(SMALL), path)


def test_a_prefix_must_be_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "a.weights", WIDE, EDGES[0])
    model = Detector(SMALL)
    with pytest.raises(
        WeightsError, match=r"first 1 convolutions alone, say so with --prefix, or name the file NAME\.conv\.1"
    ):
        load_weights(model, tmp_path / "a.weights")
    assert load_weights(model, tmp_path / "a.weights", is_prefix=True).convs_loaded == 1


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("layers.0.bn.running_var", -0.5, "layer 0 would get a variance of -0.5"),
        ("layers.0.bn.running_var", float("nan"), "layer 0 would get a variance of nan"),
        ("layers.1.bn.weight", float("inf"), "layer 1 would get a γ of inf"),
        ("layers.1.conv.weight", 1e30, "layer 1 would get a kernel of 1e+30"),
        ("layers.2.conv.bias", -1e9, "layer 2 would get a bias of -1e+09"),
    ],
)
def test_values_that_no_trained_network_has_are_not_taken(tmp_path: Path, name: str, value: float, said: str) -> None:
    model = make_model(SMALL)
    model.state_dict()[name].view(-1)[-1] = value
    path, other = save_weights(model, tmp_path / "a.weights"), make_model(SMALL, 5)
    before = copy_state(other)
    with pytest.raises(WeightsError, match=rf"a\.weights: {re.escape(said)}, which no trained network has"):
        load_weights(other, path)
    assert is_same_state(other, before)
