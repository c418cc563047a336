"""State dicts of other PyTorch implementations give the same outputs here, and ours there; what is no plain data is not read."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import copy_state, is_same_state, make_images, randomise_, randomise_norms_, run
from tiny import TINY_CFG, Cli
from torch import Tensor, nn

from yolo_prune.darknet.cfg import parse_cfg
from yolo_prune.errors import WeightsError
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.model.state_dicts import load_foreign_weights, load_state_dict, save_foreign_weights

NETWORK = parse_cfg(TINY_CFG)
Names = Callable[[int], tuple[str, str]]
STYLES: dict[str, Names] = {
    "eriklindernoren, Lam1360": lambda index: (f"conv_{index}", f"batch_norm_{index}"),
    "ultralytics, tanluren, coldlarry, SlimYOLOv3": lambda index: ("Conv2d", "BatchNorm2d"),
}
"""What the parts of section N are called in `module_list.N`."""


class Peer(nn.Module):
    """A Darknet network as those projects build it: one nn.Sequential for every section of the cfg."""

    def __init__(self, names: Names) -> None:
        super().__init__()
        self.module_list = nn.ModuleList()
        self.kinds: list[tuple[str, int]] = []
        channels = [3]
        for index, text in enumerate(TINY_CFG.split("[")[2:]):
            kind, _, rest = text.partition("]")
            keys = dict(line.split("=") for line in rest.split("\n") if line)
            section, width = nn.Sequential(), channels[-1]
            if kind == "convolutional":
                width, size = int(keys["filters"]), int(keys["size"])
                normalised = "batch_normalize" in keys
                conv, norm = names(index)
                padding = (size - 1) // 2
                section.add_module(
                    conv, nn.Conv2d(channels[-1], width, size, int(keys["stride"]), padding, bias=not normalised)
                )
                if normalised:
                    section.add_module(norm, nn.BatchNorm2d(width))
                if keys["activation"] == "leaky":
                    section.add_module("activation", nn.LeakyReLU(0.1))
            self.kinds.append((kind, int(keys.get("from", 0))))
            self.module_list.append(section)
            channels.append(width)

    def forward(self, images: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = []
        heads = []
        for (kind, source), module in zip(self.kinds, self.module_list, strict=True):
            if kind == "yolo":
                heads.append(images)
            images = images + outputs[source] if kind == "shortcut" else module(images)
            outputs.append(images)
        return heads


def make_peer(names: Names) -> Peer:
    torch.manual_seed(0)
    peer = Peer(names)
    randomise_norms_(peer)
    return peer.eval()


WRAPPERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": lambda state: state,
    "under model, beside NumPy numbers": lambda state: {
        "epoch": 3, "best_fitness": np.float64(0.5), "optimizer": None, "seen": np.int64(7), "model": state,
    },
    "under state_dict": lambda state: {"arch": "yolov3", "state_dict": state},
    "ema before model": lambda state: {"model": {name: tensor * 0 for name, tensor in state.items()}, "ema": state},
    "of several GPUs": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_peer_s_weights_give_the_peer_s_outputs(tmp_path: Path, style: str, wrapper: str) -> None:
    peer = make_peer(STYLES[style])
    torch.save(WRAPPERS[wrapper](peer.state_dict()), tmp_path / "best.pt")
    model = Detector(NETWORK)
    assert load_foreign_weights(model, tmp_path / "best.pt") == "took 6 convolutions by their numbers"
    images = make_images(model, 64)
    for one, other in zip(run(model, images), peer(images), strict=True):
        torch.testing.assert_close(one, other)


def test_names_of_an_unknown_kind_are_taken_in_order(tmp_path: Path) -> None:
    peer = make_peer(lambda index: ("conv", "bn"))
    state = {name.replace("module_list", "model"): tensor for name, tensor in peer.state_dict().items()}
    torch.save(state, tmp_path / "v9.pt")
    model = Detector(NETWORK)
    assert load_foreign_weights(model, tmp_path / "v9.pt").endswith("in their order, as their names say no number")
    images = make_images(model, 64)
    torch.testing.assert_close(run(model, images)[0], peer(images)[0])


@pytest.mark.parametrize("style", list(STYLES)[:1])
def test_what_is_written_is_read_by_the_peer(tmp_path: Path, style: str) -> None:
    model = randomise_(Detector(NETWORK), double=False)
    save_foreign_weights(model, tmp_path / "ours.pth")
    peer = make_peer(STYLES[style])
    peer.load_state_dict(torch.load(tmp_path / "ours.pth", weights_only=True))
    images = make_images(model, 64)
    torch.testing.assert_close(run(model, images)[0], peer(images)[0])
    twin = Detector(NETWORK)
    load_foreign_weights(twin, tmp_path / "ours.pth")
    assert is_same_state(twin, copy_state(model))


def test_a_pickled_module_is_not_read(tmp_path: Path) -> None:
    torch.save({"model": make_peer(STYLES["eriklindernoren, Lam1360"])}, tmp_path / "whole.pt")
    with pytest.raises(
        WeightsError,
        match=r"whole\.pt: holds an object of test_state_dicts\.Peer, which could run code; .*state_dict\(\)",
    ):
        load_state_dict(tmp_path / "whole.pt")


def hold_itself() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = content
    return content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x80\x02q", "is damaged"),
        (b"\x80\x02X\xff\xff\xff\x7fab", "is damaged"),
        (b"\x80\x02}(X\x01\x00\x00\x00au.", "is damaged"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "is damaged"),
        (b"", "is damaged"),
    ],
)
def test_a_damaged_file_of_an_old_pytorch_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"a\.pth: {said}"):
        load_state_dict(path)


def test_a_text_takes_no_more_memory_than_the_file_has(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(b"\x80\x02X\xff\xff\xff\x7f" + b"a" * 100)  # it says that 2 GB follow
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match="is damaged"):
            load_state_dict(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("is_zip", [True, False])
def test_what_holds_itself_is_named(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / "a.pth"
    torch.save(hold_itself(), path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(WeightsError, match=r"a\.pth: is nested too deep, or holds itself; save model\.state_dict\(\)"):
        load_state_dict(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is damaged, or no file that PyTorch wrote"),
        (b"no zip", "is no file that PyTorch wrote"),
        ({"a": 1}, "holds no state dict, but a"),
        ([1], "holds no state dict, but list"),
    ],
)
def test_what_is_no_state_dict_is_named(tmp_path: Path, content: Any, said: str) -> None:
    path = tmp_path / "a.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=re.escape(f"{path}: {said}")):
        load_state_dict(path)
    with pytest.raises(WeightsError, match="cannot be read"):
        load_state_dict(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("module_list.1.conv_1.weight"), "lacks a convolution as layer 1"),
        (lambda state: state.pop("module_list.1.batch_norm_1.running_var"), "layer 1, module_list.1.conv_1.weight, has no running_var"),
        (lambda state: state.update({"module_list.4.conv_4.weight": torch.zeros(1, 1, 1, 1)}), "holds a convolution as layer 4"),
        (lambda state: state.update({"module_list.0.conv_0.weight": torch.zeros(8, 3, 1, 1)}), "has a kernel of 8x3x1x1, the network one of 8x3x3x3"),
        (lambda state: state["module_list.0.batch_norm_0.running_var"].neg_(), "layer 0 would get a variance of -"),
        (lambda state: state["module_list.6.conv_6.bias"].fill_(float("nan")), "layer 6 would get a bias of nan"),
    ],
)  # fmt: skip
def test_another_network_s_weights_are_not_taken(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    state = make_peer(STYLES["eriklindernoren, Lam1360"]).state_dict()
    change(state)
    torch.save(state, tmp_path / "a.pt")
    model = Detector(NETWORK)
    before = copy_state(model)
    with pytest.raises(WeightsError, match=re.escape(said)):
        load_foreign_weights(model, tmp_path / "a.pt")
    assert is_same_state(model, before)


def test_the_commands_take_and_give_them(cli: Cli, hands: Path) -> None:
    peer = make_peer(STYLES["ultralytics, tanluren, coldlarry, SlimYOLOv3"])
    Path("tiny.cfg").write_text(TINY_CFG)
    torch.save({"model": peer.state_dict(), "best_fitness": np.float64(0.1)}, "best.pt")
    outcome = cli("import", "tiny.cfg", "--weights", "best.pt", "--names", "hand")
    assert outcome.out == "runs/import/tiny.pt\n", outcome.err
    assert "best.pt: took 6 convolutions by their numbers" in outcome.err
    model = load_checkpoint(Path("runs/import/tiny.pt")).make_model().eval()
    images = make_images(model, 64)
    torch.testing.assert_close(run(model, images)[0], peer(images)[0])
    outcome = cli("export", "--format", "pytorch-yolov3", "--out", "back")
    assert outcome.out == "back.pth\n"
    other = make_peer(STYLES["eriklindernoren, Lam1360"])
    other.load_state_dict(torch.load("back.pth", weights_only=True))
    torch.testing.assert_close(other(images)[0], peer(images)[0])
    words = ("train", "--data", hands, "--epochs", 1, "--batch-size", 6, "--device", "cpu", "--weights", "best.pt")
    outcome = cli(*words, "--cfg", "tiny.cfg")
    assert outcome.code == 0, outcome.err
    assert "best.pt: took 6 convolutions by their numbers" in outcome.err
    assert cli(*words).err.endswith("another project's weights go with their cfg: import CFG --weights FILE\n")
