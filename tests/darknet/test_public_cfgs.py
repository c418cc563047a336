"""Cfgs as users have them: keys, sections and habits of public Darknet files are read, and compute what Darknet does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from darknet_reference import ACTIVATE
from networks import make_small_network, randomise_, run
from torch import Tensor

from yolo_prune.darknet.cfg import DEPTHWISE, NEUTRAL, SAME_ACTIVATIONS, TRAINING_KEYS, format_cfg, load_cfg, parse_cfg
from yolo_prune.darknet.layers import (
    ACTIVATIONS,
    SIGMOIDS,
    AvgPool,
    Conv,
    Dropout,
    Gate,
    MaxPool,
    Reorg,
    Shortcut,
    Yolo,
)
from yolo_prune.darknet.network import Network
from yolo_prune.errors import CfgError
from yolo_prune.model.decode import decode_heads
from yolo_prune.model.detector import Detector, activate, run_layer

CONV = "[convolutional]\nbatch_normalize=1\nfilters=4\nsize=3\nstride=1\npad=1\nactivation=leaky\n"
HEAD = "[convolutional]\nfilters=6\nactivation=linear\n[yolo]\nmask=0\nanchors=10,14\nclasses=1\nnum=1\n"


def read(*sections: str, net: str = "") -> Network:
    return parse_cfg(f"[net]\nwidth=32\nheight=32\nchannels=3\n{net}{''.join(sections)}{HEAD}")


@pytest.mark.parametrize("key", TRAINING_KEYS)
def test_keys_of_training_are_kept_as_text(key: str) -> None:
    network = read(f"{CONV}{key}=1\n", f"[maxpool]\nsize=2\nstride=2\n{key}=2\n", f"[shortcut]\nfrom=-1\n{key}=3\n")
    assert [layer.options for layer in network.layers[:3]] == [((key, "1"),), ((key, "2"),), ((key, "3"),)]
    assert parse_cfg(format_cfg(network)) == network
    assert f"{key}=2" in format_cfg(network)


def test_keys_that_change_nothing_are_dropped() -> None:
    keys = "".join(f"{key}={value}\n" for key, value in NEUTRAL.items())
    assert read(CONV + keys) == read(CONV)


def test_the_first_of_two_values_counts_and_this_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.cfg"
    path.write_text(f"[net]\nbatch=1\nwidth=32\nheight=32\nbatch=16\n{CONV}filters=9\n{HEAD}")
    network = load_cfg(path)
    assert dict(network.options)["batch"] == "1"
    assert network.layers[0] == read(CONV).layers[0]
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"warning: {path}:5: batch is set twice in [net]; as in Darknet, the first value counts: 1",
        f"warning: {path}:13: filters is set twice in [convolutional]; as in Darknet, the first value counts: 4",
    ]


@pytest.mark.parametrize(
    "data", ["# d\xe9tection\n".encode("latin-1"), "\ufeff".encode(), "# 检测\n".encode("gbk"), b"\r\n"]
)
def test_other_encodings_are_read(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.cfg").write_bytes(data + f"[net]\nwidth=32\nheight=32\n{CONV}{HEAD}".encode())
    assert load_cfg(tmp_path / "a.cfg") == read(CONV)


def test_a_number_of_anchors_that_is_wrong_means_nothing() -> None:
    assert read(CONV).heads[0][1] == parse_cfg(
        f"[net]\nwidth=32\nheight=32\n{CONV}{HEAD}".replace("num=1", "num=9")
    ).heads[0][1]  # fmt: skip


def test_a_dropout_changes_nothing() -> None:
    network = read(CONV, "[dropout]\nprobability=.2\n")
    assert network.layers[1] == Dropout((("probability", ".2"),))
    model, plain = (randomise_(Detector(one)) for one in (network, read(CONV)))
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(run(model, images)[0], run(plain, images)[0])
    torch.manual_seed(0)
    assert torch.equal(model.train()(images)[0], plain.train()(images)[0])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_darknet_s(name: str) -> None:
    values = np.linspace(-8, 8, 161)
    found = activate(torch.from_numpy(values.copy()), name).numpy()
    np.testing.assert_allclose(found, ACTIVATE[name](values), rtol=1e-12, atol=1e-12)
    assert (name in SIGMOIDS) == (ACTIVATE[name](np.array(0.0)) != 0)  # a removed channel must have given nothing


@pytest.mark.parametrize(("alias", "name"), SAME_ACTIVATIONS.items())
def test_an_activation_by_another_name_is_the_same(alias: str, name: str) -> None:
    assert read(CONV.replace("leaky", alias)) == read(CONV.replace("leaky", name))


@pytest.mark.parametrize(("before", "source"), [(6, 4), (4, 6), (4, 4)])
def test_a_shortcut_adds_the_channels_that_both_have(before: int, source: int) -> None:
    one, other = torch.rand(2, before, 3, 3), torch.rand(2, source, 3, 3)
    expected = one.clone()
    for channel in range(min(before, source)):  # shortcut_cpu in Darknet's blas.c
        expected[:, channel] += other[:, channel]
    found = run_layer(Shortcut(0), torch.nn.Identity(), [one, other])
    assert torch.equal(found, expected)
    network = make_small_network(Conv(source, 1), Conv(before, 1), Shortcut(0))
    assert network.shapes[2].channels == before


@pytest.mark.parametrize("factors", ["channels", "pixels", "values"])
def test_a_gate_multiplies(factors: str) -> None:
    source = torch.rand(2, 4, 3, 5)
    shape = {"channels": (2, 4, 1, 1), "pixels": (2, 1, 3, 5), "values": (2, 4, 3, 5)}[factors]
    gate = torch.rand(shape)
    found = run_layer(Gate(0, factors, "relu"), torch.nn.Identity(), [gate, source])  # type: ignore[arg-type]  # a literal
    for image, channel, row, column in np.ndindex(2, 4, 3, 5):
        place = (image, channel % shape[1], row % shape[2], column % shape[3])
        assert found[image, channel, row, column] == source[image, channel, row, column] * gate[place]


def test_gates_are_written_as_they_were_read() -> None:
    squeeze = "[avgpool]\n[convolutional]\nfilters=4\nactivation=logistic\n[scale_channels]\nfrom=-3\nscale_wh=0\n"
    attention = "[convolutional]\nfilters=1\nactivation=logistic\n[scale_channels]\nfrom=-2\nscale_wh=1\n"
    spatial = "[convolutional]\nfilters=4\nactivation=logistic\n[sam]\nfrom=-2\n"
    network = read(CONV, squeeze, attention, spatial)
    assert isinstance(network.layers[1], AvgPool)
    gates = [layer for layer in network.layers if isinstance(layer, Gate)]
    assert [(gate.source, gate.factors) for gate in gates] == [(0, "channels"), (3, "pixels"), (5, "values")]
    assert parse_cfg(format_cfg(network)) == network


def test_reorg_is_written_as_it_was_read() -> None:
    network = read(CONV, "[reorg3d]\nstride=2\n", "[reorg]\nstride=2\nreverse=0\nflatten=0\n")
    assert network.layers[1:3] == (Reorg(2), Reorg(2, is_mixed=True))
    assert [tuple(shape) for shape in network.shapes[:3]] == [(4, 32, 32), (16, 16, 16), (64, 8, 8)]
    assert parse_cfg(format_cfg(network)) == network


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (("[reorg]\nstride=2\n",), r"<cfg>:5: layer 0 \[reorg\] stride=2 does not divide 3x32x32"),
        ((CONV, "[reorg3d]\nstride=3\n"), r"<cfg>:12: layer 1 \[reorg3d\] stride=3 does not divide 4x32x32"),
        ((CONV, "[reorg3d]\nstride=2\nreverse=1\n"), r"<cfg>:14: \[reorg3d\] does not know the key reverse"),
    ],
)
def test_a_reorg_that_does_not_fit_is_named(sections: tuple[str, ...], message: str) -> None:
    with pytest.raises(CfgError, match=message):
        read(*sections)


@pytest.mark.parametrize("name", DEPTHWISE)
def test_a_depthwise_section_has_a_filter_for_each_channel_it_reads(name: str) -> None:
    section = f"[{name}]\nbatch_normalize=1\nsize=3\nstride=2\npad=1\nactivation=relu\n"
    network = read(CONV, "[route]\nlayers=-1,-1\n", section)
    assert network.layers[2] == Conv(8, 3, 2, 1, groups=8, activation="relu")
    assert read(section).layers[0] == Conv(3, 3, 2, 1, groups=3, activation="relu")
    assert parse_cfg(format_cfg(network)) == network
    with pytest.raises(CfgError, match=r"<cfg>:12: layer 1 \[route\] reads layer 7, which is not before it"):
        read(CONV, "[route]\nlayers=7\n", section)


@pytest.mark.parametrize("name", ["region", "local", "crnn", "sam3"])
def test_other_sections_are_named(name: str) -> None:
    with pytest.raises(CfgError, match=rf"<cfg>:12: unknown section \[{name}\]"):
        read(CONV, f"[{name}]\n")


def test_the_mean_is_over_all_pixels() -> None:
    network = make_small_network(Conv(4, 1), AvgPool())
    values = torch.rand(2, 4, 5, 7)
    found = Detector(network).layers[1](values)
    assert found.shape == (2, 4, 1, 1)
    torch.testing.assert_close(found[1, 2, 0, 0], values[1, 2].mean())


def decode_in_darknet(outputs: Tensor, head: Yolo, side: int) -> list[list[float]]:
    """Return centre and size of every box in pixels from a head convolution's outputs (A·(5+C), H, W), by get_yolo_box.

    Darknet's forward_yolo_layer leaves the outputs of a convolution with new_coords as they are: they are σ already.
    """
    boxes = []
    _, rows, columns = outputs.shape
    for anchor, (wide, high) in enumerate(head.own_anchors):
        for row, column in np.ndindex(rows, columns):
            x, y, w, h = outputs[anchor * (5 + head.classes) :, row, column][:4].tolist()
            x, y = (value * head.scale_x_y - 0.5 * (head.scale_x_y - 1) for value in (x, y))
            boxes.append([(column + x) * side / columns, (row + y) * side / rows, w * w * 4 * wide, h * h * 4 * high])
    return boxes


def test_new_coordinates_are_darknet_s() -> None:
    text = HEAD.replace("linear", "logistic") + "new_coords=1\nscale_x_y=2.0\n"
    network = parse_cfg(f"[net]\nwidth=32\nheight=32\n{CONV}[maxpool]\nsize=8\nstride=8\n{text}")
    assert isinstance(network.layers[1], MaxPool)
    head = network.heads[0][1]
    assert head.new_coords
    model = randomise_(Detector(network))
    images = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    raw = run(model, images)
    boxes, scores = decode_heads(raw, (head,), 32)
    outputs = raw[0][0].sigmoid()  # the convolution's own activation
    expected = np.array(decode_in_darknet(outputs, head, 32))
    found = boxes[0].numpy()
    np.testing.assert_allclose((found[:, :2] + found[:, 2:]) / 2, expected[:, :2])
    np.testing.assert_allclose(found[:, 2:] - found[:, :2], expected[:, 2:])
    np.testing.assert_allclose(scores[0, :, 0].numpy(), (outputs[4] * outputs[5]).flatten().numpy())


def test_a_sigmoid_that_is_taken_twice_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.cfg"
    path.write_text(f"[net]\nwidth=32\nheight=32\n{CONV}{HEAD.replace('linear', 'logistic')}")
    load_cfg(path)
    said = capsys.readouterr().err
    assert said.startswith(
        f"warning: {path}:13: the convolution before [yolo] is logistic, so that a sigmoid is taken twice"
    )
    path.write_text(path.read_text() + "new_coords=1\n")
    load_cfg(path)
    assert capsys.readouterr().err == ""


def test_grey_is_what_opencv_makes_of_colours() -> None:
    import cv2

    network = parse_cfg(f"[net]\nwidth=32\nheight=32\nchannels=1\n{CONV}{HEAD}")
    model = randomise_(Detector(network), double=False)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    grey = torch.from_numpy(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[None, None] / 255
    assert float((model.take_images(images) - grey).abs().max()) < 1 / 255
    assert torch.equal(run(model, images)[0], run(model, model.take_images(images))[0])
