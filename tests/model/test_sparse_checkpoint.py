"""Tensors with zeros on disk: the same bits come back, they take less space, and damage raises an error of this package."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import is_same_state, make_small_network, randomise_
from torch import Tensor

from yolo_prune.darknet.layers import Conv
from yolo_prune.errors import CheckpointError
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.model.sparse_storage import is_worth_packing, pack, unpack

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)  # fmt: skip
KERNEL = "layers.1.conv.weight"
WEIGHTS = 24 * 16 * 9


def make_tensor(shape: tuple[int, ...], density: float, dtype: torch.dtype, seed: int) -> Tensor:
    """Return a tensor of any bits, NaNs and infinities among them, where a share of the elements is not +0."""
    random = np.random.default_rng(seed)
    count = math.prod(shape)
    bits = random.integers(0, 256, (count, dtype.itemsize), dtype=np.uint8) * (random.random((count, 1)) < density)
    if dtype == torch.bool:
        return torch.from_numpy(bits > 127).view(shape)
    return (
        torch.frombuffer(bytearray(bits.astype(np.uint8).tobytes()), dtype=dtype).view(shape)
        if count
        else torch.empty(shape, dtype=dtype)
    )


def get_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@given(
    st.lists(st.integers(0, 7), max_size=4).map(tuple),
    st.sampled_from((0.0, 0.02, 0.5, 1.0)),
    st.sampled_from(DTYPES),
    st.integers(0, 1 << 30),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_any_tensor_comes_back_bit_by_bit(
    shape: tuple[int, ...], density: float, dtype: torch.dtype, seed: int, channels_last: bool
) -> None:
    tensor = make_tensor(shape, density, dtype, seed)
    if channels_last and len(shape) == 4:
        tensor = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last).copy_(tensor)
    packed = pack(tensor)
    back = unpack(packed, shape)
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert get_bytes(back) == get_bytes(tensor)
    if tensor.numel():
        assert back.stride() == tensor.stride()
    nonzero = np.frombuffer(get_bytes(tensor), dtype=np.uint8).reshape(-1, dtype.itemsize).any(1)
    assert len(packed["values"]) == nonzero.sum()
    assert packed["mask"].tolist() == np.packbits(nonzero).tolist()


def test_only_plus_zero_is_a_zero() -> None:
    tensor = torch.tensor([0.0, -0.0, math.nan, -math.inf, 5e-324, 1.0], dtype=torch.float64)
    packed = pack(tensor)
    assert packed["mask"].tolist() == [0b01111100]
    assert get_bytes(unpack(packed, (6,))) == get_bytes(tensor)


def test_what_saves_nothing_is_left_as_it_is() -> None:
    assert not is_worth_packing(torch.zeros(256, 1, 1, 1))  # 1024 bytes, which the file's own bookkeeping would eat
    assert is_worth_packing(torch.zeros(300, 1, 1, 1))
    assert not is_worth_packing(torch.zeros(100_000))  # no kernel
    assert not is_worth_packing(torch.ones(1000, 100, 1, 1))
    assert not is_worth_packing(torch.empty(0, 1, 1, 1))
    assert not is_worth_packing(torch.full((1000, 100, 1, 1), -0.0))
    assert not is_worth_packing(torch.zeros(1000, 1, 1, 1, dtype=torch.complex128))
    thin = torch.ones(1000, 100, 1, 1)
    thin[:34] = 0  # 13,600 bytes saved, 12,500 of bits, 1,024 of bookkeeping
    assert is_worth_packing(thin)
    thin[0] = 1
    assert not is_worth_packing(thin)


def make_checkpoint(share: float = 0.9) -> Checkpoint:
    """Return a checkpoint of which this share of one kernel is zero."""
    network = make_small_network(Conv(16, 1), Conv(24, 3, 1, 1))
    model = randomise_(Detector(network), double=False)
    kernel = model.state_dict()[KERNEL].flatten()
    kernel[: round(share * WEIGHTS)] = 0
    kernel[0] = -0.0
    return Checkpoint(network, model.state_dict(), ("hand",), {"stage": "prune"})


def read_content(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def test_a_checkpoint_is_stored_sparse_and_loads_to_the_same_bits(tmp_path: Path) -> None:
    saved = make_checkpoint()
    path = save_checkpoint(tmp_path / "a.pt", saved)
    back = load_checkpoint(path)
    assert {name: get_bytes(tensor) for name, tensor in back.state.items()} == {
        name: get_bytes(tensor) for name, tensor in saved.state.items()
    }
    assert is_same_state(back.make_model(), dict(saved.state))
    content = read_content(path)
    assert content["format_version"] == 2
    assert [name for name, stored in content["state"].items() if isinstance(stored, dict)] == [KERNEL]
    dense = save_checkpoint(tmp_path / "b.pt", make_checkpoint(0))
    saving = WEIGHTS * 4 - (WEIGHTS // 8 + len(content["state"][KERNEL]["values"]) * 4)
    assert dense.stat().st_size - path.stat().st_size == pytest.approx(saving, abs=1024)


def test_a_dense_file_is_one_that_older_versions_read(tmp_path: Path) -> None:
    content = read_content(save_checkpoint(tmp_path / "a.pt", make_checkpoint(0)))
    assert content["format_version"] == 1
    assert all(isinstance(stored, Tensor) for stored in content["state"].values())


def test_a_loaded_model_can_be_trained_without_touching_the_file(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "a.pt", make_checkpoint())
    before = path.read_bytes()
    model = load_checkpoint(path).make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert path.read_bytes() == before


def test_the_same_checkpoint_twice_is_the_same_file(tmp_path: Path) -> None:
    one, other = (save_checkpoint(tmp_path / name / "a.pt", make_checkpoint()) for name in "xy")
    assert one.read_bytes() == other.read_bytes()


Packed = dict[str, Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("values"), "no list of values"),
        (lambda p: p.update(values=p["values"][:-1].clone()), f"346 values for 347 places of {WEIGHTS}"),
        (lambda p: p.update(values=torch.cat((p["values"], p["values"]))), "694 values for 347 places"),
        (lambda p: p.update(values=p["values"].view(1, -1)), "no list of values"),
        (lambda p: p.update(values=p["values"].tolist()), "no list of values"),
        (lambda p: p.update(values=p["values"].to(torch.complex128)), "no list of values"),
        (lambda p: p.update(mask=None), f"no bitmask of {WEIGHTS} elements"),
        (lambda p: p.update(mask=p["mask"][:-1].clone()), "no bitmask"),
        (lambda p: p.update(mask=torch.cat((p["mask"], p["mask"]))), "no bitmask"),
        (lambda p: p.update(mask=p["mask"].float()), "no bitmask"),
        (lambda p: p["mask"].zero_(), "347 values for 0 places"),
        (lambda p: p["mask"].fill_(255), f"347 values for {WEIGHTS} places"),
        (lambda p: p.update(shape=[24, 16, 9]), "shape [24, 16, 9] where its cfg wants [24, 16, 3, 3]"),
        (lambda p: p.update(shape=[1 << 40]), "shape [1099511627776] where"),
        (lambda p: p.update(shape=None), "shape None where"),
        (lambda p: p.update(channels_last=1), "no order of its elements"),
        (lambda p: p.clear(), "shape None where"),
    ],
)
def test_a_damaged_part_is_named(tmp_path: Path, change: Callable[[Packed], object], message: str) -> None:
    path = save_checkpoint(tmp_path / "a.pt", make_checkpoint())
    content = read_content(path)
    change(content["state"][KERNEL])
    torch.save(content, path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert caught.value.where == str(path)
    assert str(caught.value).startswith(f"{path}: {KERNEL}, which is stored packed, has ")
    assert message in str(caught.value)


def test_bits_beyond_the_last_element_are_damage() -> None:
    packed = pack(torch.ones(3))
    packed["mask"] += 1
    packed["values"] = torch.ones(4)
    with pytest.raises(ValueError, match="4 values for 4 places of 3"):
        unpack(packed, (3,))


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.bool])
def test_values_that_are_no_weights_are_rejected(tmp_path: Path, dtype: torch.dtype) -> None:
    path = save_checkpoint(tmp_path / "a.pt", make_checkpoint())
    content = read_content(path)
    content["state"][KERNEL]["values"] = torch.ones(347, dtype=dtype)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"{KERNEL} holds {dtype}; make it again"):
        load_checkpoint(path)


def test_a_packed_tensor_that_the_cfg_does_not_know_is_rejected(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "a.pt", make_checkpoint())
    content = read_content(path)
    content["state"]["layers.7.conv.weight"] = content["state"].pop(KERNEL)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"its cfg and tensors disagree about layers\.1\.conv\.weight"):
        load_checkpoint(path)


@pytest.mark.filterwarnings("ignore")  # torch warns of the odd pickles that flipped bytes make
@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 255)), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_flipped_bytes_give_a_checkpoint_or_an_error_of_this_package(flips: list[tuple[int, int]]) -> None:
    with TemporaryDirectory() as folder:
        path = save_checkpoint(Path(folder) / "a.pt", make_checkpoint())
        content = bytearray(path.read_bytes())
        for place, value in flips:
            content[place % len(content)] = value
        path.write_bytes(content)
        with suppress(CheckpointError):
            load_checkpoint(path).make_model()
