"""Networks that nobody means are an error where they are read, before anything is allocated."""

from __future__ import annotations

import pytest
from paths import ROOT
from tiny import Cli

from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cfg import load_cfg, parse_cfg
from yolo_prune.errors import CfgError

HEAD = "[net]\nwidth=64\nheight=64\nchannels=3\n"
CONV = "[convolutional]\nbatch_normalize=1\nfilters=8\nsize=3\nstride=1\npad=1\nactivation=leaky\n"
YOLO = "[convolutional]\nfilters=18\nsize=1\nactivation=linear\n[yolo]\nmask=0,1,2\nanchors=1,1,2,2,3,3\nclasses=1\nnum=3\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + CONV + "[maxpool]\nsize=1000000000\nstride=1\n" + YOLO, r":12: layer 1 \[maxpool\] has a window or stride of 1,000,000,000, more"),
        (HEAD + CONV.replace("stride=1", "stride=99999") + YOLO, r":5: layer 0 \[convolutional\] has a window or stride of 99,999"),
        (HEAD + CONV.replace("size=3", "size=100001") + YOLO, r":5: layer 0 \[convolutional\] has a window or stride of 100,001"),
        (HEAD + CONV + "[upsample]\nstride=9999\n" + YOLO, r":12: layer 1 \[upsample\] has a window or stride of 9,999"),
        (HEAD + CONV + "[upsample]\nstride=2\n" * 40 + YOLO, r":28: layer 9 \[upsample\] has 8,589,934,592 values"),
        (HEAD.replace("64", "640000") + CONV + YOLO, r":5: layer 0 \[convolutional\] has an output of 640,000×640,000"),
        (HEAD + CONV.replace("=8", "=1000000000") + YOLO, r":5: layer 0 \[convolutional\] has 1,000,000,000 output channels"),
        (HEAD + CONV.replace("=8", "=100000") * 2 + YOLO, r":12: layer 1 \[convolutional\] brings the network to 90,002,700,000 params"),
        (HEAD + CONV + YOLO.replace("classes=1", "classes=99999").replace("=18", "=300012"), r":12: layer 1 .* has 300,012 output"),
        (HEAD + CONV + f"[route]\nlayers={','.join(['-1'] * 20000)}\n" + YOLO, r":12: layer 1 \[route\] has 160,000 output channels"),
        (HEAD + CONV * 5000 + YOLO, "the network has 5,002 layers, more than 5,000"),
    ],
)  # fmt: skip
def test_sizes_that_no_network_has_are_named(text: str, said: str) -> None:
    with pytest.raises(CfgError, match=said):
        parse_cfg(text)


def test_networks_that_exist_are_far_below_the_limits() -> None:
    for path in (ROOT / "configs").glob("*.cfg"):
        load_cfg(path)
    make_network("yolov4", 9418, 8.0, 1024)  # the widest that cfg make makes


def test_a_line_that_quotes_a_file_is_cut(cli: Cli, workplace: object) -> None:
    with open("digits.cfg", "w") as file:  # noqa: PTH123
        file.write(HEAD + CONV.replace("=8", "=" + "9" * 100_000) + YOLO)
    outcome = cli("cfg", "show", "digits.cfg")
    assert outcome.code == 2
    assert outcome.err.startswith("error: digits.cfg:7: filters=999")
    assert len(outcome.err) < 1_100


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("train", "--batch-size", 10**9),
            "--batch-size: 1000000000 is out of range; use a whole number from 1 to 65536",
        ),
        (("train", "--workers", 5000), "--workers: 5000 is out of range; use a whole number from 0 to 512"),
        (("train", "--img-size", 320000), "--img-size: 320000 is too large; use sides up to 16384"),
        (("bench", "x.pt", "--threads", 5000), "--threads: 5000 is out of range; use whole numbers from 1 to 512"),
        (("bench", "x.pt", "--batch-size", 10**7), "--batch-size: 10000000 is out of range"),
    ],
)
def test_numbers_that_bring_a_machine_down_are_refused(cli: Cli, words: tuple[object, ...], said: str) -> None:
    outcome = cli(*words)
    assert outcome.code == 2
    assert said in outcome.err
