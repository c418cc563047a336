"""Networks of other families go all the way: train, prune, finetune, export as Darknet files, and back with the same outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import run
from tiny import Cli, read_json

from yolo_prune.darknet.cfg import load_cfg
from yolo_prune.darknet.layers import Gate, Shortcut
from yolo_prune.datasets.images import letterbox, read_image
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.decode import normalise


def conv(filters: int, size: int = 1, activation: str = "leaky", **more: int) -> str:
    """Return a convolution with batch norm, of stride 1."""
    keys = {
        "batch_normalize": 1,
        "filters": filters,
        "size": size,
        "stride": 1,
        "pad": 1,
        "activation": activation,
        **more,
    }
    return "[convolutional]\n" + "".join(f"{key}={value}\n" for key, value in keys.items())


def head(activation: str = "linear", more: str = "") -> str:
    """Return a head of two anchors."""
    return f"[convolutional]\nsize=1\nstride=1\nfilters=12\nactivation={activation}\n[yolo]\nmask=0,1\nanchors=14,14, 30,30\nclasses=1\nnum=2\n{more}"


STEM = conv(8, 3, stride=2) + conv(8, 3, stride=2)
CFGS = {
    # YOLOv4-CSP: a split by 1x1 convolutions, mish, a logistic head with new_coords
    "csp": conv(8, 3, "mish", stride=2) + conv(16, 3, "mish", stride=2) + conv(8, 1, "mish") + "[route]\nlayers=-2\n"
    + conv(8, 1, "mish") + conv(8, 3, "mish") + "[shortcut]\nfrom=-2\nactivation=linear\n" + "[route]\nlayers=-1,-5\n"
    + conv(16, 3, "mish", stride=2) + head("logistic", "new_coords=1\nscale_x_y=2.0\n"),
    # yolov3-tiny-prn: partial residual connections
    "prn": STEM + conv(12, 3, stride=2) + conv(8) + "[shortcut]\nactivation=leaky\nfrom=-2\n" + conv(16, 3)
    + "[shortcut]\nactivation=leaky\nfrom=-3\n" + head(),
    # YOLO-Fastest: depthwise convolutions in inverted residuals, dropout
    "fastest": STEM + conv(16, 1, "relu6") + conv(16, 3, "relu6", groups=16) + conv(8, 1, "linear") + "[dropout]\nprobability=.15\n"
    + "[shortcut]\nfrom=-5\nactivation=linear\n" + conv(16, 3, "relu6", stride=2) + head(),
    # EfficientNet: squeeze and excite
    "squeeze": STEM + conv(16, 3, "swish", stride=2) + "[avgpool]\n" + conv(4, 1, "swish") + conv(16, 1, "logistic")
    + "[scale_channels]\nfrom=-4\n" + conv(16, 1, "linear") + head(),
    # MobileNetV3: squeeze and excite in one section, in a residual
    "mobile": STEM + conv(16, 1, "h_swish") + conv(16, 3, "h_swish", groups=16) + "[se]\nfilters=16\n" + conv(8, 1, "linear")
    + "[shortcut]\nfrom=-5\nactivation=linear\n" + conv(16, 3, "h_swish", stride=2) + head(),
    "grey": STEM + conv(16, 3, stride=2) + head(),
    # MobileNet-YOLO: depthwise sections; YOLOv2: a finer map beside a coarser one
    "passthrough": STEM + "[depthwise_convolutional]\nbatch_normalize=1\nsize=3\nstride=1\npad=1\nactivation=relu\n" + conv(8)
    + conv(16, 3, stride=2) + "[route]\nlayers=-2\n[reorg3d]\nstride=2\n[route]\nlayers=-1,-3\n" + conv(16, 3) + head(),
}  # fmt: skip


@pytest.mark.parametrize("name", CFGS)
def test_a_network_goes_all_the_way(cli: Cli, hands: Path, name: str) -> None:
    channels = 1 if name == "grey" else 3
    Path("net.cfg").write_text(f"[net]\nwidth=64\nheight=64\nchannels={channels}\n{CFGS[name]}")
    words = ("--data", hands, "--batch-size", 6, "--device", "cpu", "--epochs")
    trained = cli("train", "--cfg", "net.cfg", *words, 2)
    assert trained.code == 0, trained.err
    pruned = cli("prune", "--ratio", 0.4, "--effort", 2, "--round-to", 1, "--device", "cpu", "--json")
    assert pruned.code == 0, pruned.err
    result = read_json(pruned)
    assert result["params"] < result["before"]["params"]
    assert result["max_abs_difference"] < 1e-9
    tuned = cli("finetune", *words, 1)
    assert tuned.code == 0, tuned.err
    assert cli("export", "--fold", "--out", "slim").out == "slim.weights\n"
    back = cli("import", "slim.cfg", "--weights", "slim.weights", "--names", "hand", "--out", "back.pt")
    assert back.code == 0, back.err
    models = [load_checkpoint(Path(path)).make_model().eval() for path in (tuned.out.strip(), "back.pt")]
    square, _ = letterbox(read_image(hands.parent / "images/val/000000.jpg"), 64)
    images = normalise(torch.from_numpy(square).permute(2, 0, 1)[None])
    for one, other in zip(*(run(model, images) for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    for command in (
        ("evaluate", "back.pt", "--data", hands),
        ("detect", "back.pt", hands.parent / "images/val"),
        ("bench", "back.pt", "--no-score"),
    ):
        outcome = cli(*command, "--device", "cpu")
        assert outcome.code == 0, outcome.err
    layers = load_cfg(Path("slim.cfg")).layers
    assert any(isinstance(layer, Gate) for layer in layers) == (name in ("squeeze", "mobile"))
    assert any(isinstance(layer, Shortcut) for layer in layers) == (name in ("csp", "prn", "fastest", "mobile"))
