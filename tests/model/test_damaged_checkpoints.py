"""Damaged .pt files: none loads with other weights, and every refusal is one line of this package."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import BUDGET, corrupt, nest, refuse
from fuzzing.mutators import DAMAGE, Way
from networks import make_small_network, randomise_
from paths import FILES
from tiny import is_same

from yolo_prune.commands.lineage import find_parent
from yolo_prune.darknet.layers import Conv
from yolo_prune.errors import CheckpointError, WeightsError
from yolo_prune.model.checkpoint import Checkpoint, check_weights, load_checkpoint, save_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.model.state_dicts import load_state_dict


def make_checkpoint(seed: int = 0, zeros: float = 0.0) -> Checkpoint:
    model = randomise_(Detector(make_small_network(Conv(16, 3, 1, 1), Conv(24, 3))), seed, double=False)
    with torch.no_grad():
        kernel = model.get_conv(1).conv.weight
        kernel[torch.rand(kernel.shape) < zeros] = 0
    return Checkpoint(model.network, model.state_dict(), ("hand",), {"stage": "train", "metrics": {"ap50": 0.5}})


def write_plain(path: Path) -> None:
    save_checkpoint(path, make_checkpoint())


def write_packed(path: Path) -> None:
    save_checkpoint(path, make_checkpoint(zeros=0.9))


def write_last(path: Path) -> None:
    path.write_bytes((FILES / "last-0.1.0.pt").read_bytes())


@pytest.mark.filterwarnings("ignore")  # torch warns of what it finds in damaged files
@pytest.mark.parametrize("write", [write_plain, write_packed, write_last])
@pytest.mark.parametrize("way", DAMAGE)
def test_no_damaged_file_loads_with_other_weights(tmp_path: Path, write: Callable[[Path], None], way: Way) -> None:
    path = tmp_path / "a.pt"
    write(path)
    whole, expected, chance = path.read_bytes(), load_checkpoint(path), random.Random(way.__name__)
    kept = {name: tensor.clone() for name, tensor in expected.state.items()}  # what is mapped will be written over
    expected = replace(expected, state=kept, training={})
    found = 0
    for number in range(BUDGET // len(DAMAGE)):
        content = bytearray(whole)
        way(content, chance)
        damaged = tmp_path / f"{number}.pt"
        damaged.write_bytes(content)
        if content == whole:
            continue
        if line := refuse(load_checkpoint, damaged):
            assert line.startswith(str(damaged))
            found += 1
        else:  # padding, or a date: it says nothing
            loaded = load_checkpoint(damaged)
            assert loaded.network == expected.network
            assert (loaded.names, loaded.provenance) == (expected.names, expected.provenance)
            assert is_same(loaded.state, expected.state)
        damaged.unlink()
    assert found > 0


def test_a_flipped_weight_is_named(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "a.pt", make_checkpoint())
    with zipfile.ZipFile(path) as file:
        member = max(file.infolist(), key=lambda one: one.file_size if "/data/" in one.filename else 0)
    content = bytearray(path.read_bytes())
    place = content.index(member.filename.encode()) + 200
    content[place] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["format"] == "yolo_prune checkpoint"  # PyTorch sees nothing
    with pytest.raises(CheckpointError, match=rf"a\.pt: is damaged: {member.filename} is not what was written .*copy"):
        load_checkpoint(path)
    with pytest.raises(WeightsError, match=r"a\.pt: is damaged: "):
        load_state_dict(path)


def read_content(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def hold_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def repeat(depth: int) -> list[Any]:
    """Return a list of few bytes that has 10 ** depth parts if each is counted."""
    value: list[Any] = [0]
    for _ in range(depth):
        value = [value] * 10
    return value


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"x": nest(100)}, "is nested too deep, or holds itself"),
        ({"x": nest(150)}, "is nested too deep, or holds itself"),
        ({"x": hold_itself()}, "is nested too deep, or holds itself"),
        ({"x": repeat(30)}, "is nested too deep, or holds itself"),
        ({"x": bytearray(3)}, "asks for __builtin__.bytearray"),
        ({"x": torch.zeros(1).expand(1 << 50)}, "x claims more elements than the file has"),
        ({"x": torch.zeros(3, device="meta")}, "asks for torch._utils._rebuild_meta_tensor_no_storage"),
        ({"x": torch.zeros(9)[::2]}, "x has gaps between its elements"),
        ({"x": torch.eye(3).to_sparse()}, "asks for torch._utils._rebuild_sparse_tensor"),
    ],
)
def test_memory_and_time_are_bounded_by_the_file(tmp_path: Path, part: dict[str, Any], said: str) -> None:
    path = save_checkpoint(tmp_path / "a.pt", make_checkpoint())
    torch.save(read_content(path) | {"training": part}, path)
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(path)


def test_tensors_that_share_memory_are_rejected(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "a.pt", make_checkpoint())
    content = read_content(path)
    content["state"]["layers.0.bn.bias"] = content["state"]["layers.0.bn.weight"]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"layers\.0\.bn\.\w+ and state\.layers\.0\.bn\.\w+ are the same numbers"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("layers.0.bn.num_batches_tracked", torch.int32),
        ("layers.0.bn.num_batches_tracked", torch.float32),
        ("layers.0.bn.weight", torch.int64),
        ("layers.0.bn.weight", torch.float16),
        ("layers.1.conv.weight", torch.complex64),
    ],
)
def test_other_types_of_numbers_are_rejected(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    path = save_checkpoint(tmp_path / "a.pt", make_checkpoint())
    content = read_content(path)
    content["state"][name] = content["state"][name].to(dtype)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"{name} holds {dtype}"):
        load_checkpoint(path)


def test_a_checkpoint_in_half_precision_loads(tmp_path: Path) -> None:
    whole = make_checkpoint()
    state = {name: one.half() if one.is_floating_point() else one for name, one in whole.state.items()}
    path = save_checkpoint(tmp_path / "a.pt", replace(whole, state=state))
    assert is_same(load_checkpoint(path).state, state)


def test_a_zip_that_would_unpack_to_more_than_its_size_is_rejected(tmp_path: Path) -> None:
    path, packed = save_checkpoint(tmp_path / "a.pt", make_checkpoint()), tmp_path / "b.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
        for name in source.namelist():
            made.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match="it is damaged or no checkpoint"):
        load_checkpoint(packed)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_checkpoint_that_diverged_can_be_read_but_not_used(tmp_path: Path, value: float) -> None:
    whole = make_checkpoint()
    state = {name: tensor.clone() for name, tensor in whole.state.items()}
    state["layers.1.conv.weight"][3, 2, 1, 0] = value
    path = save_checkpoint(tmp_path / "a.pt", replace(whole, state=state))
    loaded = load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"a\.pt: layers\.1\.conv\.weight holds NaN or infinity; train again"):
        check_weights(loaded, path)
    check_weights(load_checkpoint(save_checkpoint(path, whole)), path)


@pytest.mark.parametrize("part", [None, "provenance"])
def test_single_corruptions_of_a_checkpoint_are_errors_of_this_package(tmp_path: Path, part: str | None) -> None:
    path = tmp_path / "a.pt"
    whole = read_content(FILES / "pruned-0.1.0.pt")
    whole["provenance"]["recipe"] = {"ratio": 0.5}  # any setting is checked where settings are read
    whole["provenance"]["metrics"] = {}

    def read(value: Any) -> None:
        torch.save(value if part is None else {**whole, part: value}, path)
        loaded = load_checkpoint(path)
        loaded.make_model()
        find_parent(loaded)

    tried, refused = corrupt(whole if part is None else whole[part], read, [torch.zeros(2), (1, 2), {1: 2}])
    assert refused > tried / 3
