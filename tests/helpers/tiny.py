"""The smallest network, settings and command line that a whole run can be tried on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor

from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.training import epoch as epoch_module
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.epoch import train_step

SIDE = 64
TINY_CFG = """\
[net]
width=64
height=64
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[convolutional]
batch_normalize=1
filters=4
size=1
stride=1
activation=leaky

[convolutional]
batch_normalize=1
filters=8
size=3
stride=1
pad=1
activation=leaky

[shortcut]
from=-3
activation=linear

[convolutional]
batch_normalize=1
filters=16
size=3
stride=2
pad=1
activation=leaky

[convolutional]
filters=12
size=1
stride=1
activation=linear

[yolo]
mask=0,1
anchors=14,14, 30,30
classes=1
num=2
"""
UNUSED_CFG = TINY_CFG.replace(
    "[convolutional]\nfilters=12",
    """\
[convolutional]
batch_normalize=1
filters=6
size=1
stride=1
activation=leaky

[route]
layers=-2

[convolutional]
filters=12""",
)
"""The same with a convolution, layer 6, that no head depends on."""
HOSTILE = ("<script>window.hacked = 1</script>", "</script><img src=x onerror=window.hacked=1>\"'&{{ 7*7 }}")
"""Names of classes that would be code on a page, if they were not escaped."""
PRUNABLE = 36
"""Its channels that a plan may drop: 8 + 8 (tied by the shortcut) + 4 + 16."""

INCIDENTAL = {"images_per_s", "git_revision"}
"""What two runs alike may differ in: someone may commit between them."""

DRAW_RESULTS = "yolo_prune.training.report._draw_results"
"""What a test puts aside where results.png would take longer than the training."""


@dataclass(frozen=True)
class Outcome:
    """A command's exit code and output."""

    code: int
    out: str
    err: str


class Cli(Protocol):
    """Run `yoloprune` in this process."""

    def __call__(self, *words: object, stdin: str | bytes = "") -> Outcome: ...


def read_json(outcome: Outcome) -> Any:
    """Return the one JSON object on stdout."""
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("\n") == 1
    return json.loads(outcome.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


class Killed(BaseException):
    """Ends a run as SIGKILL would: no handler catches it."""


@contextmanager
def before_step(number: int, act: Callable[[], object]) -> Iterator[None]:
    """Do something just before the run's step `number`, counted from 1 since now."""
    steps = 0

    def step(*arguments: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == number:
            act()
        return train_step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_module, "train_step", step)
        yield


def make_config(data: Path, cfg: Path, **changes: Any) -> TrainConfig:
    """Return settings of a run of three epochs of three steps, its average long enough to differ from the model."""
    values: dict[str, Any] = {"data": data, "cfg": cfg, "epochs": 3, "batch_size": 4, "device": "cpu"}
    return TrainConfig(**{**values, "ema_fraction": 0.5, **changes})


def is_same(one: Any, other: Any) -> bool:
    """Return whether two nests of mappings, sequences and tensors are alike, bit by bit, but for `INCIDENTAL` keys."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping):
        keys = one.keys() - INCIDENTAL
        return keys == other.keys() - INCIDENTAL and all(is_same(one[key], other[key]) for key in keys)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    return bool(one == other)


def is_same_run(one: Path, other: Path) -> bool:
    """Return whether two run folders hold the same last.pt and best.pt."""
    pairs = [(load_checkpoint(one / name), load_checkpoint(other / name)) for name in ("last.pt", "best.pt")]
    return all(
        left.network == right.network
        and is_same(left.state, right.state)
        and is_same(left.training, right.training)
        and is_same(left.provenance, right.provenance)
        for left, right in pairs
    )
