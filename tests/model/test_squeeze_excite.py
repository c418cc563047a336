"""[se] sections give the outputs of the PyTorch implementations that have them, from their state dicts and .weights files."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from networks import make_images, randomise_norms_, run
from tiny import Cli
from torch import Tensor, nn
from torch.nn import functional

from yolo_prune.darknet.cfg import format_cfg, load_cfg, parse_cfg
from yolo_prune.darknet.layers import AvgPool, Conv, Gate, Layer, Route, Shortcut
from yolo_prune.errors import CfgError, WeightsError
from yolo_prune.model.detector import Detector
from yolo_prune.model.state_dicts import load_foreign_weights
from yolo_prune.model.weights import load_weights, save_weights


def conv(filters: int, size: int = 1, activation: str = "relu6", stride: int = 1) -> str:
    return (
        f"[convolutional]\nbatch_normalize=1\nfilters={filters}\nsize={size}\nstride={stride}\npad=1\n"
        f"activation={activation}\n"
    )


def depthwise(filters: int, stride: int = 1) -> str:
    return conv(filters, 3, "h_swish", stride).replace("convolutional", "depthwise")


HEAD = "[convolutional]\nsize=1\nstride=1\npad=1\nfilters=12\nactivation=linear\n[yolo]\nmask=0,1\nanchors=14,14, 30,30\nclasses=1\nnum=2\n"
MOBILE = (
    "[net]\nwidth=64\nheight=64\n"
    + conv(8, 3, "h_swish", 2)
    + conv(16)
    + depthwise(16)
    + "[se]\nfilters=16\n"
    + conv(8, activation="linear")
    + "[shortcut]\nfrom=-5\nactivation=linear\n"
    + conv(24, activation="h_swish")
    + depthwise(24, 2)
    + "[se]\nreduction=8\nactivation=hard_sigmoid\n"
    + "[route]\nlayers=-1, 7\n"
    + HEAD
)
"""Two inverted residuals of MobileNetV3; a shortcut and a route go past [se]."""
SHORT = "[net]\nwidth=64\nheight=64\n{}" + HEAD


class SqueezeExcite(nn.Module):
    """Squeeze and excite as PyTorch projects write it: two linear layers without bias."""

    def __init__(self, channels: int, reduction: int, last: nn.Module) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // reduction, bias=False),
            nn.ReLU(),
            nn.Linear(channels // reduction, channels, bias=False),
            last,
        )

    def forward(self, values: Tensor) -> Tensor:
        factors: Tensor = self.fc(values.mean((2, 3)))
        return values * factors[:, :, None, None]


class Peer(nn.Module):
    """The network of `MOBILE` as those projects build it: a module for each section."""

    def __init__(self, se_name: str = "se") -> None:
        super().__init__()

        def convolve(inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
            kernel = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
            name = "Conv2d" if groups == 1 else "DepthWise2d"
            parts = nn.Sequential()
            parts.add_module(name, kernel)
            parts.add_module("BatchNorm2d", nn.BatchNorm2d(outputs))
            return parts

        def squeeze(channels: int, reduction: int) -> nn.Sequential:
            parts = nn.Sequential()
            parts.add_module(se_name, SqueezeExcite(channels, reduction, nn.Hardsigmoid()))
            return parts

        head = nn.Sequential()
        head.add_module("Conv2d", nn.Conv2d(48, 12, 1))
        self.module_list = nn.ModuleList(
            [
                convolve(3, 8, 3, 2), convolve(8, 16), convolve(16, 16, 3, groups=16), squeeze(16, 4), convolve(16, 8),
                nn.Sequential(), convolve(8, 24), convolve(24, 24, 3, 2, 24), squeeze(24, 8), nn.Sequential(), head,
            ]
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        stem, wide, deep, gated, narrow, _, wider, deeper, gated_too, _, head = self.module_list
        first = functional.hardswish(stem(images))
        inner = functional.hardswish(deep(functional.relu6(wide(first))))
        joined = first + narrow(gated(inner))
        second = functional.hardswish(deeper(functional.hardswish(wider(joined))))
        outputs: Tensor = head(torch.cat((gated_too(second), second), 1))
        return outputs

    def list_tensors(self) -> list[Tensor]:
        """Return the tensors in the order of their .weights file: a batch norm or bias before its kernel."""
        tensors: list[Tensor] = []
        for section in self.module_list:
            for part in section.children():
                if isinstance(part, SqueezeExcite):
                    tensors += part.parameters()
                elif isinstance(part, nn.BatchNorm2d):
                    assert part.running_mean is not None
                    assert part.running_var is not None
                    tensors[-1:] = [part.bias, part.weight, part.running_mean, part.running_var, tensors[-1]]
                elif isinstance(part, nn.Conv2d):
                    tensors += [part.weight] if part.bias is None else [part.bias, part.weight]
        return tensors


@pytest.fixture
def peer() -> Peer:
    return make_peer()


def make_peer(se_name: str = "se") -> Peer:
    torch.manual_seed(0)
    peer = Peer(se_name)
    randomise_norms_(peer)
    return peer.eval()


def check_same(peer: Peer, model: Detector) -> None:
    images = make_images(model, 64)
    with torch.no_grad():
        torch.testing.assert_close(run(model, images)[0], peer(images))


@pytest.mark.parametrize("se_name", ["se", "se_module"])
def test_a_peer_s_state_dict_gives_its_outputs(tmp_path: Path, se_name: str) -> None:
    peer = make_peer(se_name)
    torch.save({"model": peer.state_dict()}, tmp_path / "best.pt")
    model = Detector(parse_cfg(MOBILE))
    assert load_foreign_weights(model, tmp_path / "best.pt") == "took 11 convolutions by their numbers"
    check_same(peer, model)


def save_as_peer(peer: Peer, path: Path) -> Path:
    values = b"".join(tensor.detach().numpy().tobytes() for tensor in peer.list_tensors())
    path.write_bytes(struct.pack("<iiiq", 0, 2, 5, 7) + values)
    return path


def test_a_peer_s_weights_file_gives_its_outputs(tmp_path: Path, peer: Peer) -> None:
    model = Detector(parse_cfg(MOBILE))
    report = load_weights(model, save_as_peer(peer, tmp_path / "peer.weights"))
    assert report.format() == "took 11 of 11 convolutions, those of squeeze and excite without biases"
    assert report.header.seen == 7
    check_same(peer, model)
    other = Detector(parse_cfg(MOBILE))
    assert not load_weights(other, save_weights(model, tmp_path / "own.weights")).lacks_biases
    check_same(peer, other)


def test_biases_that_were_there_do_not_stay(tmp_path: Path, peer: Peer) -> None:
    model = Detector(parse_cfg(MOBILE))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.3)
    load_weights(model, save_as_peer(peer, tmp_path / "peer.weights"))
    check_same(peer, model)


def test_other_classes_leave_out_the_heads_alone(tmp_path: Path, peer: Peer) -> None:
    model = Detector(parse_cfg(MOBILE.replace("classes=1", "classes=3").replace("filters=12", "filters=16")))
    report = load_weights(model, save_as_peer(peer, tmp_path / "peer.weights"))
    assert (report.convs_loaded, report.foreign_classes, report.lacks_biases) == (10, 1, True)


@pytest.mark.parametrize("extra", [-4, 4])
def test_a_file_that_fits_neither_way_is_measured_by_the_usual_one(tmp_path: Path, peer: Peer, extra: int) -> None:
    path = save_as_peer(peer, tmp_path / "peer.weights")
    data = path.read_bytes()
    path.write_bytes(data[:extra] if extra < 0 else data + bytes(extra))
    model = Detector(parse_cfg(MOBILE))
    count = sum(tensor.numel() for tensor in model.parameters()) + sum(
        tensor.numel() for name, tensor in model.named_buffers() if "running" in name
    )
    with pytest.raises(WeightsError, match=f"the network expects {count:,}"):
        load_weights(model, path)


def test_sections_are_numbered_as_in_the_file() -> None:
    network = parse_cfg(MOBILE)
    layers = network.layers
    assert layers[3:7] == (AvgPool(), Conv(4, 1, batch_normalize=False, activation="relu"),
                           Conv(16, 1, batch_normalize=False, activation="hard_sigmoid"), Gate(2, "channels"))  # fmt: skip
    assert layers[8] == Shortcut(0)
    assert layers[12] == Conv(3, 1, batch_normalize=False, activation="relu")
    assert layers[14:16] == (Gate(10, "channels"), Route((14, 10)))
    assert parse_cfg(format_cfg(network)) == network


def read(section: str, before: str | None = None) -> tuple[Layer, ...]:
    return parse_cfg(SHORT.format((conv(8) if before is None else before) + section)).layers


@pytest.mark.parametrize(
    ("section", "squeezed", "activation"),
    [
        ("[se]\nfilters=8\n", 2, "hard_sigmoid"),
        ("[se]\nfilters=8\nreduction=8\n", 1, "hard_sigmoid"),
        ("[se]\nreduction=4\n", 2, "logistic"),
        ("[se]\nreduction=3\nactivation=h_sigmoid\n", 2, "hard_sigmoid"),
        ("[se]\nfilters=8\nactivation=logistic\n", 2, "logistic"),
    ],
)
def test_what_a_section_says(section: str, squeezed: int, activation: str) -> None:
    _, _, first, second, *_ = read(section)
    assert first == Conv(squeezed, 1, batch_normalize=False, activation="relu")
    assert second == Conv(8, 1, batch_normalize=False, activation=activation)


def test_keys_of_training_stay() -> None:
    assert read("[se]\nfilters=8\nstopbackward=1\n")[4] == Gate(0, "channels", options=(("stopbackward", "1"),))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("[se]\n", r"<cfg>:11: \[se\] lacks the key reduction; add reduction=…"),
        ("[se]\nfilters=4\n", r"<cfg>:12: \[se\] has filters=4, and reads 8 channels; write 8"),
        ("[se]\nreduction=16\n", r"<cfg>:12: reduction=16 leaves nothing of 8 channels; use at most 8"),
        ("[se]\nreduction=0\n", r"<cfg>:12: reduction=0 is not at least 1"),
        ("[se]\nreduction=4\nactivation=hard\n", r"<cfg>:13: activation=hard is not one of linear"),
        ("[se]\nreduction=4\nratio=2\n", r"<cfg>:13: \[se\] does not know the key ratio; known keys are filters"),
        ("[se]\nreduction=4\nfrom=0\n", r"<cfg>:13: \[se\] does not know the key from"),
        ("[se]\nreduction=4\nscale_wh=1\n", r"<cfg>:13: \[se\] does not know the key scale_wh"),
        (
            "[se]\nreduction=4\n[route]\nlayers=7\n",
            r"<cfg>:13: layer 5 \[route\] reads layer 7, which is not before it",
        ),
        ("[se]\nreduction=4\n[route]\nlayers=a\n", r"<cfg>:14: layers=a is not a whole number"),
    ],
)
def test_what_is_wrong_is_named(section: str, message: str) -> None:
    with pytest.raises(CfgError, match=message):
        read(section)


def test_an_image_cannot_be_gated() -> None:
    with pytest.raises(CfgError, match=r"<cfg>:4: \[se\] reads the image; put a convolution before it"):
        read("[se]\nreduction=1\n", "")


def test_a_guess_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.cfg").write_text(SHORT.format(conv(8) + "[se]\nreduction=4\n[se]\nreduction=2\n"))
    load_cfg(tmp_path / "a.cfg")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith(
        "a.cfg:11: [se] is read with activation=logistic; write activation=hard_sigmoid below it if it was trained with that"
    )
    (tmp_path / "b.cfg").write_text(MOBILE)
    load_cfg(tmp_path / "b.cfg")
    assert not capfd.readouterr().err


def test_import_takes_both_files(cli: Cli, tmp_path: Path, peer: Peer) -> None:
    (tmp_path / "mobile.cfg").write_text(MOBILE)
    weights = save_as_peer(peer, tmp_path / "peer.weights")
    torch.save(peer.state_dict(), tmp_path / "peer.pt")
    for source in (weights, tmp_path / "peer.pt"):
        outcome = cli(
            "import", tmp_path / "mobile.cfg", "--weights", source, "--names", "hand", "--out", f"{source.name}.pt"
        )
        assert outcome.code == 0, outcome.err
