from __future__ import annotations

import io
import pickle
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import copy_state, is_same_state, make_images, make_small_network, randomise_, run

from yolo_prune import __version__
from yolo_prune.darknet.architectures import ARCHITECTURES, make_network
from yolo_prune.darknet.layers import Conv
from yolo_prune.errors import CheckpointError, InsufficientMemoryError, OutputError
from yolo_prune.files import measure_sha256
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint, make_provenance, save_checkpoint
from yolo_prune.model.detector import Detector


def make_checkpoint(seed: int = 0) -> Checkpoint:
    model = randomise_(Detector(make_small_network(Conv(4, 3, 1, 1), Conv(3, 1))), seed, double=False)
    return Checkpoint(model.network, model.state_dict(), ("hand",), {"stage": "train", "metrics": {"ap50": 0.5}})


def read_content(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_is_saved_comes_back_bit_by_bit(tmp_path: Path, arch: str) -> None:
    model = randomise_(Detector(make_network(arch, classes=2, width=0.06)), 1, double=False)
    training = {"step": 7, "momentum": [torch.rand(3), None]}
    saved = Checkpoint(model.network, model.state_dict(), ("left", "right"), {"stage": "train"}, training)
    back = load_checkpoint(save_checkpoint(tmp_path / "runs" / "a.pt", saved))
    assert (back.network, back.names, back.img_size) == (saved.network, saved.names, saved.img_size)
    assert back.provenance == saved.provenance
    assert back.training["step"] == 7
    assert torch.equal(back.training["momentum"][0], training["momentum"][0])  # type: ignore[index]
    again = back.make_model()
    assert is_same_state(again, copy_state(model))
    assert all(parameter.requires_grad for parameter in again.parameters())
    images = make_images(model, 64)
    for one, other in zip(run(model, images), run(again, images), strict=True):
        assert torch.equal(one, other)


def test_a_model_that_came_from_a_file_can_be_trained_without_touching_it(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "a.pt", make_checkpoint())
    before = path.read_bytes()
    model = load_checkpoint(path).make_model().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sum(raw.square().sum() for raw in model(make_images(model))).backward()
    optimizer.step()
    assert not is_same_state(model, dict(load_checkpoint(path).state))
    assert path.read_bytes() == before


def test_provenance_says_where_a_model_comes_from(tmp_path: Path) -> None:
    parent = save_checkpoint(tmp_path / "a.pt", make_checkpoint())
    facts = make_provenance("prune", {"ratio": 0.8}, parent, metrics={"ap50": 0.5})
    assert facts["version"] == __version__
    assert facts["recipe"] == {"ratio": 0.8}
    assert facts["parent"] == {"path": str(parent.resolve()), "sha256": measure_sha256(parent)}
    assert facts["metrics"] == {"ap50": 0.5}
    assert make_provenance("train", {})["parent"] is None


class Trap:
    """A pickle of this makes the file `mark` when it is read by a reader that trusts it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_that_would_run_code_is_rejected_unread(tmp_path: Path, is_zip: bool) -> None:
    path, mark = tmp_path / "trap.pt", tmp_path / "mark"
    content = read_content(save_checkpoint(tmp_path / "a.pt", make_checkpoint())) | {"training": Trap(mark)}
    if is_zip:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert not mark.exists()
    if is_zip:
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert mark.exists()  # the trap was real


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "is not a yolo_prune checkpoint"),
        ({"format_version": 9}, "has format version 9; this version reads formats 1 and 2"),
        ({"cfg": "[net]\n[crnn]\n"}, "holds a cfg that cannot be read"),
        ({"format_version": torch.zeros(3)}, "has format version tensor([0., 0., 0.])"),
        ({"cfg": 3}, "cfg 3 is not a valid string"),
        ({"names": None}, "names None is not a valid list"),
        ({"names": "hand"}, "names 'hand' is not a valid list"),
        ({"names": ["hand", 7]}, "names[1] 7 is not a valid string"),
        ({"img_size": "wide"}, "holds a wrong img_size"),
        ({"training": None}, "training None is not a valid dictionary"),
        ({"training": {"average": None}}, "disagree about"),
        ({"state": None}, "state None is not a valid dictionary"),
        ({"state": {}}, "disagree about layers.0.bn.bias"),
    ],
)
def test_contents_that_are_wrong_are_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = save_checkpoint(tmp_path / "a.pt", make_checkpoint())
    torch.save(read_content(path) | change, path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("key", ["cfg", "state", "names", "img_size", "provenance", "training"])
def test_a_missing_part_is_named(tmp_path: Path, key: str) -> None:
    path = save_checkpoint(tmp_path / "a.pt", make_checkpoint())
    content = read_content(path)
    del content[key]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"a\.pt: lacks {key}; make it again"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("layers.1.conv.weight", torch.zeros(3, 5, 1, 1), r"wants layers.1.conv.weight of shape \(3, 4, 1, 1\)"),
        ("layers.2.conv.bias", torch.zeros(7), r"layers.2.conv.bias of shape \(6,\), its tensor has \(7,\)"),
        ("layers.9.conv.weight", torch.zeros(1), "disagree about layers.9.conv.weight"),
        ("layers.1.bn.weight", "no tensor", "layers.1.bn.weight is no tensor"),
    ],
)
def test_a_tensor_that_does_not_fit_the_cfg_is_named(tmp_path: Path, name: str, tensor: Any, said: str) -> None:
    path = save_checkpoint(tmp_path / "a.pt", make_checkpoint())
    content = read_content(path)
    content["state"][name] = tensor
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(path)


def test_a_hand_made_checkpoint_that_contradicts_itself_makes_no_model() -> None:
    network = make_small_network(Conv(5, 3, 1, 1), Conv(3, 1))
    with pytest.raises(CheckpointError, match=r"layers.0.conv.weight of shape \(5, 3, 3, 3\)"):
        Checkpoint(network, make_checkpoint().state, ("hand",)).make_model()


def test_files_that_are_no_checkpoints_are_rejected(tmp_path: Path) -> None:
    whole = save_checkpoint(tmp_path / "a.pt", make_checkpoint()).read_bytes()
    path = tmp_path / "b.pt"
    for content in (b"", b"hello", b"\x80\x02", whole[:100], whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"b\.pt"):
            load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="is not a yolo_prune checkpoint"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="No such file"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path)


@pytest.mark.filterwarnings("ignore")  # torch warns of the odd pickles that flipped bytes make
@given(st.lists(st.tuples(st.integers(0, 3500), st.integers(0, 255)), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_flipped_bytes_give_a_checkpoint_or_an_error_of_this_package(flips: list[tuple[int, int]]) -> None:
    with TemporaryDirectory() as folder:
        path = save_checkpoint(Path(folder) / "a.pt", make_checkpoint())
        content = bytearray(path.read_bytes())
        for place, value in flips:
            content[place % len(content)] = value
        path.write_bytes(content)
        with suppress(CheckpointError):
            load_checkpoint(path)


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path: Path) -> None:
    model = Detector(make_network("yolov3-tiny", width=0.06))  # larger than a file's buffer
    large = Checkpoint(model.network, model.state_dict(), ("hand",))
    path = save_checkpoint(tmp_path / "a.pt", large)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (10, len(before) // 2, len(before) - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(OutputError, match="cannot be written"):
                save_checkpoint(path, large)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_stopped_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_checkpoint(tmp_path / "a.pt", make_checkpoint())
    before = path.read_bytes()

    def stop(_: object, file: io.BytesIO) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, make_checkpoint(1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)")])
def test_too_little_memory_is_not_called_damage(
    trained: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(InsufficientMemoryError, match=r"best\.pt: out of memory"):
        load_checkpoint(trained)
