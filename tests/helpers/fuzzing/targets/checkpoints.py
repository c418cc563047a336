"""Checkpoints: damaged on the disk, and with other things in them; and the state of a stopped run."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from tiny import is_same
from torch import Tensor, nn

from fuzzing.case import Case, Outcome, Target
from fuzzing.command import run_command, run_function
from fuzzing.mutators import DAMAGE, damage_bytes, damage_nested
from fuzzing.seeds import save_tensors
from yolo_prune.commands.lineage import find_parent
from yolo_prune.errors import YoloPruneError
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint

DENSE, PACKED, LAST = "plain.pt", "packed.pt", "last-0.1.0.pt"
FILE = "a.pt"


def _make_damaged(chance: Random, base: Path, name: str) -> Case:
    content = damage_bytes((base / name).read_bytes(), chance, ways=DAMAGE)
    return Case((name,), {FILE: content})


def load_same(case: Case) -> Outcome:
    """Load a damaged checkpoint, which must be refused or have all that the whole one has."""
    whole = load_checkpoint(Path("base", case.words[0]))
    try:
        loaded = load_checkpoint(Path(FILE))
        model = loaded.make_model()
    except YoloPruneError:
        return run_function(lambda: load_checkpoint(Path(FILE)).make_model())
    except Exception:  # noqa: BLE001  # said by run_function
        return run_function(lambda: load_checkpoint(Path(FILE)).make_model())
    parts = [(loaded.network, whole.network), (loaded.names, whole.names), (loaded.provenance, whole.provenance)]
    if any(one != other for one, other in parts) or not _has_same_tensors(loaded, whole):
        return Outcome(1, "", "a damaged file was loaded with other weights")
    return Outcome(0 if is_same(model.state_dict(), whole.make_model().state_dict()) else 1)


def _has_same_tensors(one: Checkpoint, other: Checkpoint) -> bool:
    return is_same(one.state, other.state) and is_same(one.training, other.training)


def _change_tensor(tensor: Tensor, chance: Random) -> Any:
    """Return a tensor of another type, shape, layout or content."""
    ways: tuple[Callable[[], Any], ...] = (
        lambda: tensor.to(
            chance.choice((torch.float16, torch.float64, torch.int32, torch.bool, torch.complex64, torch.uint8))
        ),
        lambda: tensor.flatten(),
        lambda: tensor[None],
        lambda: tensor[..., :0],
        lambda: tensor[..., ::2],
        lambda: tensor.new_zeros(()),
        lambda: tensor.new_zeros(()).expand(1 << 40),
        lambda: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor.movedim(0, -1),
        lambda: torch.full_like(tensor, chance.choice((0, 1))).to(tensor.dtype),
        lambda: tensor.clone().float().fill_(chance.choice((float("nan"), float("inf"), 1e38))),
        lambda: nn.Parameter(tensor.float()),
        lambda: tensor.to_sparse() if tensor.numel() else tensor,
        lambda: tensor.to("meta"),
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.quint8),
        lambda: tensor.numpy(),
        lambda: tensor.tolist() if tensor.numel() < 100 else [1.0],
        lambda: torch.nested.nested_tensor([tensor.float().flatten()]),
        lambda: torch.zeros(3, 3, dtype=torch.float8_e4m3fn),
    )
    try:
        return chance.choice(ways)()
    except (RuntimeError, IndexError, TypeError, NotImplementedError):  # it cannot be done to every tensor
        return tensor.float().flatten()[:1]


@cache
def read_content(path: Path) -> Any:
    """Return what a checkpoint holds."""
    return torch.load(path, weights_only=True)


def damage_content(content: Any, chance: Random) -> Any:
    """Return the content of a checkpoint with other values, or with another tensor."""
    if chance.random() < 0.4:
        copy = damage_nested(content, chance, (torch.zeros(2), (1, 2), {1: 2}, torch.float32, {1}, 1j, b"a"))
    else:
        copy = (
            damage_nested(content, chance)
            if chance.random() < 0.2
            else torch.load(io.BytesIO(save_tensors(content)), weights_only=True)
        )
        places = list(_list_tensors(copy))
        for inside, key in chance.sample(places, min(len(places), chance.choice((1, 1, 2)))):
            inside[key] = _change_tensor(inside[key], chance)
            if chance.random() < 0.1:
                other, name = chance.choice(places)
                other[name] = inside[key]
    return copy


def _list_tensors(value: Any) -> Any:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(pairs):
        if isinstance(part, Tensor):
            yield value, key
        else:
            yield from _list_tensors(part)


def _make_changed(chance: Random, base: Path) -> Case:
    content = damage_content(read_content(base / chance.choice((DENSE, PACKED, LAST, "pruned-0.1.0.pt"))), chance)
    words = chance.choice(
        (
            "",
            "",
            f"cfg show {FILE}",
            f"detect {FILE} base/pictures/plain.png --out out --no-save",
            f"export {FILE} --out out --format darknet",
        )
    )
    return Case(tuple(words.split()), {FILE: _save(content)})


def _save(content: Any) -> bytes:
    try:
        return save_tensors(content)
    except (RuntimeError, TypeError, AttributeError, NotImplementedError):  # what PyTorch does not save
        return save_tensors({})


def read_checkpoint(case: Case) -> Outcome:
    """Run a command, or load the checkpoint and look at its lineage."""
    if case.words:
        return run_command(case)

    def read() -> None:
        loaded = load_checkpoint(Path(FILE))
        loaded.make_model()
        find_parent(loaded)

    return run_function(read)


RESUME = "train --resume --name a --device cpu"
LAST_OF_RUN = "runs/a/last.pt"


def _make_stopped(chance: Random, base: Path) -> Case:
    content = dict(read_content(base / "stopped.pt"))
    if chance.random() < 0.2:
        return _name_stopped(damage_bytes((base / "stopped.pt").read_bytes(), chance))
    for part in chance.sample(("training", "training", "training", "provenance"), 1):
        content[part] = damage_content(content[part], chance)
    return _name_stopped(_save(content))


def _name_stopped(content: bytes) -> Case:
    return Case(tuple(RESUME.split()), {LAST_OF_RUN: content}, ("hands",))


def _damaged(name: str, file: str) -> Target:
    def make(chance: Random, base: Path) -> Case:
        return _make_damaged(chance, base, file)

    return Target(name, make, lambda base: [Case((file,), {FILE: (base / file).read_bytes()})], load_same)


CHECKPOINTS: tuple[Target, ...] = (
    _damaged("checkpoint, damaged", DENSE),
    _damaged("packed checkpoint, damaged", PACKED),
    _damaged("last.pt, damaged", LAST),
    Target(
        "checkpoint, changed",
        _make_changed,
        lambda base: [Case((), {FILE: (base / name).read_bytes()}) for name in (DENSE, PACKED, LAST)],
        read_checkpoint,
    ),
    Target(
        "stopped run",
        _make_stopped,
        lambda base: [_name_stopped((base / "stopped.pt").read_bytes())],
        run_command,
        parts=("runs",),
    ),
)
