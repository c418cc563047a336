from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import networks
from tiny import TINY_CFG, UNUSED_CFG

from yolo_prune.darknet.anchors import resize
from yolo_prune.darknet.architectures import ARCHITECTURES, make_network
from yolo_prune.darknet.cfg import format_cfg, load_cfg, parse_cfg, save_cfg
from yolo_prune.darknet.layers import Conv, MaxPool, Route, Shortcut, Upsample, Yolo
from yolo_prune.darknet.network import Network
from yolo_prune.errors import CfgError

HEAD = """[convolutional]
filters=6
activation=linear
[yolo]
mask=0
anchors=10,14
classes=1
"""
WRITTEN_BY_HAND = """
# a comment
[net]
batch=64          ; kept as text
width=64
height = 32

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[maxpool]
size=2
stride=1

[route]
layers=-2
groups=2
group_id=1

[upsample]
[maxpool]
stride=2

[convolutional]
filters=4
activation=relu

[shortcut]
from=-4
activation=linear

[route]
layers = -1, 2

[convolutional]
filters=14
size=1
stride=1
pad=1
activation=linear

[yolo]
mask = 1,2
anchors = 10,14,  23.5,27,  37,58
classes=2
num=3
jitter=.3
"""


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("width", "classes", "img_size"), [(1.0, 1, 416), (0.25, 80, 416), (0.06, 3, 320)])
def test_formatting_then_parsing_is_the_identity(arch: str, width: float, classes: int, img_size: int) -> None:
    network = make_network(arch, classes, width, img_size)
    assert parse_cfg(format_cfg(network)) == network


@given(networks())
@settings(max_examples=60, deadline=None)
def test_formatting_then_parsing_is_the_identity_for_any_network(network: Network) -> None:
    assert parse_cfg(format_cfg(network)) == network


def test_reads_what_a_person_wrote() -> None:
    anchors = ((10.0, 14.0), (23.5, 27.0), (37.0, 58.0))
    assert parse_cfg(WRITTEN_BY_HAND) == Network(
        64,
        32,
        3,
        (
            Conv(8, 3, 2, 1),
            MaxPool(2, 1, 1),
            Route((0,), 2, 1),
            Upsample(2),
            MaxPool(2, 2, 1),
            Conv(4, 1, batch_normalize=False, activation="relu"),
            Shortcut(2),
            Route((6, 2)),
            Conv(14, 1, batch_normalize=False, activation="linear"),
            Yolo((1, 2), anchors, 2, options=(("jitter", ".3"),)),
        ),
        (("batch", "64"),),
    )


def test_a_file_on_disk_comes_back(tmp_path: Path) -> None:
    network = make_network("yolov3-tiny", width=0.25)
    assert load_cfg(save_cfg(network, tmp_path / "deep" / "tiny.cfg")) == network


def test_an_unwritten_mask_is_all_anchors() -> None:
    network = parse_cfg("[net]\n" + HEAD.replace("mask=0\n", ""))
    assert network.heads[0][1].mask == (0,)


def test_another_size_scales_the_anchors() -> None:
    network = resize(make_network("yolov3-tiny"), 96)
    assert (network.width, network.height) == (96, 96)
    assert network.heads[0][1].anchors[:2] == ((2.31, 3.23), (5.31, 6.23))
    assert resize(network, 96) is network


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("", "1", "[net]"),
        ("[convolutional]\n", "1", "[net]"),
        ("filters=3\n", "1", "neither [section] nor key=value"),
        ("[net]\nwidth\n", "2", "neither [section] nor key=value"),
        ("[net\n", "1", "not closed"),
        ("[net]\n[crnn]\n" + HEAD, "2", "unknown section [crnn]; known sections are convolutional"),
        ("[net]\n[convolutionl]\n" + HEAD, "2", "did you mean [convolutional]?"),
        ("[net]\n[convolutional]\nfilter=3\nfilters=6\n" + HEAD, "3", "filter; did you mean filters?"),
        ("[net]\n[upsample]\nzzz=3\n" + HEAD, "3", "zzz; known keys are stride"),
        ("[net]\nwidth=wide\n" + HEAD, "2", "width=wide is not a whole number"),
        ("[net]\n[convolutional]\nfilters=0\n" + HEAD, "3", "filters=0 is not at least 1"),
        ("[net]\n[convolutional]\nfilters=6\npadding=-1\n" + HEAD, "4", "not at least 0"),
        ("[net]\n[convolutional]\nfilters=6\nactivation=lekay\n" + HEAD, "4", "not one of linear, leaky"),
        ("[net]\n[convolutional]\nsize=3\n" + HEAD, "2", "lacks the key filters"),
        ("[net]\n[convolutional]\nfilters=4\n[route]\nlayers=1\n" + HEAD, "4", "reads layer 1, which is not before it"),
        ("[net]\n[convolutional]\nfilters=4\n[route]\nlayers=-9\n" + HEAD, "4", "not before it; name one of 0 … 0"),
        ("[net]\n[route]\nlayers=-1\n" + HEAD, "2", "put a convolution before it"),
        ("[net]\n[shortcut]\nfrom=-1\n" + HEAD, "2", "put a convolution before it"),
        ("[net]\n[convolutional]\nfilters=4\n[route]\n" + HEAD, "4", "lacks the key layers"),
        ("[net]\n[convolutional]\nfilters=4\n[route]\nlayers=0\ngroups=3\n" + HEAD, "4", "group 0 of 3"),
        ("[net]\n[convolutional]\nfilters=4\n[route]\nlayers=0\ngroups=2\ngroup_id=2\n" + HEAD, "4", "group 2 of 2"),
        (
            "[net]\n[convolutional]\nfilters=4\n[convolutional]\nfilters=5\nstride=2\n[shortcut]\nfrom=0\n" + HEAD,
            "7",
            "adds layer 0 of 4x416x416 to 5x208x208; give both the same height and width",
        ),
        ("[net]\n[convolutional]\nfilters=4\n[maxpool]\nstride=2\n[route]\nlayers=0,1\n" + HEAD, "6", "concatenates"),
        ("[net]\n[convolutional]\nfilters=4\ngroups=3\n[convolutional]\nfilters=4\ngroups=3\n" + HEAD, "2", "groups=3"),
        ("[net]\n[maxpool]\nsize=2\npadding=3\n" + HEAD, "2", "see no pixel; use at most 2"),
        ("[net]\n" + HEAD.replace("filters=6", "filters=7"), "5", "set filters=6 in the convolution before it"),
        ("[net]\n" + HEAD.replace("[yolo]", "[upsample]\n[yolo]"), "6", "does not follow a convolution"),
        ("[net]\n[yolo]\nmask=0\nanchors=1,1\n", "2", "does not follow a convolution"),
        ("[net]\n" + HEAD.replace("=10,14", "=10,14,3"), "7", "anchors holds 3 numbers"),
        ("[net]\n" + HEAD.replace("=10,14", "=10,nan"), "7", "not finite"),
        ("[net]\n" + HEAD.replace("=10,14", "=10,big"), "7", "not a number"),
        (
            "[net]\n" + HEAD.replace("=10,14", "=10,-14"),
            "7",
            "anchors holds -14, which is not positive; give pairs of positive width, height",
        ),
        ("[net]\n" + HEAD.replace("mask=0", "mask=1"), "6", "past the 1 anchors"),
        (
            "[net]\n" + HEAD + "new_coords=1\n",
            "5",
            "has new_coords=1, but the convolution before it has activation=linear",
        ),
        (
            "[net]\n" + HEAD + HEAD.replace("classes=1", "classes=2").replace("=6", "=7"),
            "12",
            "layer 3 [yolo] has 2 classes, and layer 1 (line 5) has 1; give all [yolo] sections the same number",
        ),
        ("[net]\n[convolutional]\nfilters=4\n[shortcut]\nfrom=-1,-2\n" + HEAD, "5", "reads 2 layers; name one layer"),
        ("[net]\n[convolutional]\nfilters=4\ndilation=2\n" + HEAD, "4", "does not know the key dilation"),
        ("[net]\n[convolutional]\nfilters=4\n[avgpool]\n[scale_channels]\nfrom=-3\n" + HEAD, "5", "before it"),
        (
            "[net]\n[convolutional]\nfilters=4\n[avgpool]\n[convolutional]\nfilters=3\n[scale_channels]\nfrom=0\n"
            + HEAD,
            "7",
            "multiplies layer 0 of 4x416x416 by 3x1x1; give the layer before it 4x1x1",
        ),
        ("[net]\n[convolutional]\nfilters=4\n", "", "no [yolo] section"),
        ("[net]\nwidth=2\nheight=2\n[convolutional]\nfilters=4\nsize=5\n" + HEAD, "4", "nothing is left"),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, where: str, said: str) -> None:
    with pytest.raises(CfgError) as caught:
        parse_cfg(text, "a.cfg")
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"a.cfg:{where}: " if where else "a.cfg: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(b"\x89PNG\xff\xfe\x00")
    for path, said in ((tmp_path / "none.cfg", "No such file"), (image, "is not text"), (tmp_path, "directory")):
        with pytest.raises(CfgError, match=said) as caught:
            load_cfg(path)
        assert str(path) in str(caught.value)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_text_gives_a_network_or_a_cfg_error(data: st.DataObject) -> None:
    lines = WRITTEN_BY_HAND.splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        number = data.draw(st.integers(0, len(lines) - 1))
        value = data.draw(
            st.sampled_from(("-1", "0", "1e9", "nan", "inf", "", "99", "1,2", "-5,-1", "[", "é", "1" * 5000))
        )
        line = lines[number].partition("=")[0]
        lines[number : number + 1] = data.draw(st.sampled_from(([], [f"{line}={value}"], [line, line], [value])))
    try:
        network = parse_cfg("\n".join(lines))
    except CfgError:
        return
    assert parse_cfg(format_cfg(network)) == network


def test_layers_that_some_head_depends_on() -> None:
    assert parse_cfg(UNUSED_CFG).reached == {0, 1, 2, 3, 4, 5, 7, 8, 9}
    network = parse_cfg(TINY_CFG)
    assert network.reached == set(range(len(network.layers)))
