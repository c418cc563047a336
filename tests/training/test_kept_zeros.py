"""Training leaves weights at zero that were pruned away: to the bit, killed and resumed, and in a step by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import copy_state, is_same_state, randomise_
from tiny import SIDE, TINY_CFG, Killed, before_step, is_same_run, make_config
from torch import Tensor

from yolo_prune.commands.train import resume_training, start_training
from yolo_prune.config import parse_config
from yolo_prune.darknet.cfg import parse_cfg
from yolo_prune.datasets.batches import Batch
from yolo_prune.datasets.loader import DetectionDataset, make_loader
from yolo_prune.datasets.spec import load_spec
from yolo_prune.errors import ConfigError
from yolo_prune.model.checkpoint import KEEPS_ZEROS, load_checkpoint, save_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.config import WeightConfig
from yolo_prune.pruning.plans.weight_plan import (
    make_weight_plan,
)
from yolo_prune.pruning.surgery.rebuild import zero_weights
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.epoch import train_step
from yolo_prune.training.schedule import StepRates
from yolo_prune.training.state import TrainingState, make_training_state

TINY = parse_cfg(TINY_CFG)


def make_tiny(seed: int = 0) -> Detector:
    return randomise_(Detector(TINY), seed)


def get_kernels(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name.endswith("conv.weight")}


@pytest.fixture
def pruned(trained: Path, tmp_path: Path) -> Path:
    """Return a checkpoint of which 0.8 of the weights are pruned away."""
    loaded = load_checkpoint(trained)
    model = loaded.make_model()
    state = zero_weights(model, make_weight_plan(model, WeightConfig("l1", 0.8))).state_dict()
    return save_checkpoint(
        tmp_path / "pruned.pt", replace(loaded, state=state, provenance={**loaded.provenance, KEEPS_ZEROS: True})
    )


def make_finetune(hands: Path, pruned: Path, **changes: Any) -> TrainConfig:
    return replace(make_config(hands, pruned, **changes), cfg=None, weights=pruned)


def check_zeros(pruned: Path, folder: Path) -> None:
    """Assert that zeros of the kernels stayed +0 in every tensor that a run left, and that nothing else did."""
    last, best = load_checkpoint(folder / "last.pt"), load_checkpoint(folder / "best.pt")
    for name, before in get_kernels(load_checkpoint(pruned).state).items():
        for after in (last.state[name], best.state[name], last.training["average"][name]):
            assert torch.equal(after.contiguous().view(torch.int32) == 0, before == 0), name
            if (before != 0).any():
                assert not torch.equal(after, before), name
    assert best.keeps_zeros
    assert best.provenance["recipe"]["keep_zeros"] is True


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate": 2, "optimizer": "sgd"},
        {"precision": "fp16"},
        {"sparsity": 0.1, "ema_fraction": 0.0},
    ],
    ids=str,
)
def test_zeros_stay_to_the_bit(hands: Path, pruned: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    start_training(make_finetune(hands, pruned, **changes), tmp_path / "run")
    check_zeros(pruned, tmp_path / "run")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("step", [2, 4, 8])
def test_a_killed_run_keeps_its_zeros_and_ends_in_the_same_bits(
    hands: Path, pruned: Path, tmp_path: Path, step: int
) -> None:
    config = make_finetune(hands, pruned, save_minutes=0)

    def kill() -> None:
        raise Killed

    with before_step(step, kill), pytest.raises(Killed):
        start_training(config, tmp_path / "run")
    resume_training(tmp_path / "run")
    check_zeros(pruned, tmp_path / "run")
    start_training(config, tmp_path / "whole")
    assert is_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.usefixtures("undrawn")
def test_zeros_are_trained_where_that_is_wished(hands: Path, pruned: Path, tmp_path: Path) -> None:
    best = start_training(make_finetune(hands, pruned, epochs=1, keep_zeros=False), tmp_path / "run")
    assert not load_checkpoint(best).keeps_zeros
    assert all(kernel.all() for kernel in get_kernels(load_checkpoint(best).state).values())


@pytest.mark.usefixtures("undrawn")
def test_zeros_that_nobody_pruned_are_trained_unless_told_otherwise(hands: Path, pruned: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(pruned)
    path = save_checkpoint(tmp_path / "plain.pt", replace(loaded, provenance={"stage": "train"}))
    best = start_training(make_finetune(hands, path, epochs=1), tmp_path / "run")
    assert all(kernel.all() for kernel in get_kernels(load_checkpoint(best).state).values())
    start_training(make_finetune(hands, path, epochs=1, keep_zeros=True), tmp_path / "kept")
    check_zeros(path, tmp_path / "kept")


@pytest.fixture
def batch(hands: Path) -> Batch:
    data = DetectionDataset(load_spec(hands).samples("train"), 1, SIDE)
    return next(iter(make_loader(data, 6, shuffle=False, epoch=0)))


def take_step(batch: Batch, **changes: Any) -> tuple[TrainingState, dict[str, Tensor]]:
    """Return what trained a weight-pruned network in float64 for one plain step, and its state before."""
    config = TrainConfig(batch_size=6, device="cpu", optimizer="sgd", momentum=0.0, weight_decay=0.0, **changes)
    model = make_tiny(3)
    model = zero_weights(model, make_weight_plan(model, WeightConfig("l1", 0.7))).requires_grad_(True)
    before = copy_state(model)
    training = make_training_state(model, config, 10)
    training.learn()
    train_step(training, batch, config, StepRates(0.01))
    return training, before


def test_a_step_is_the_masked_gradient_s(batch: Batch) -> None:
    (free, before), (held, _) = (take_step(batch, keep_zeros=kept, clip_norm=0) for kept in (False, True))
    expected, found = free.model.state_dict(), held.model.state_dict()
    for name, tensor in expected.items():
        is_zero = before[name] == 0 if name.endswith("conv.weight") else torch.zeros_like(tensor, dtype=torch.bool)
        assert torch.equal(found[name], tensor.masked_fill(is_zero, 0)), name
    assert not is_same_state(held.model, dict(expected))


def test_the_gradient_s_norm_counts_only_what_is_trained(batch: Batch) -> None:
    limit = 1e-3
    held, before = take_step(batch, keep_zeros=True, clip_norm=limit)
    moved = [parameter.detach() - before[name] for name, parameter in held.model.named_parameters()]
    length = math.sqrt(sum(float(part.square().sum()) for part in moved))
    assert length == pytest.approx(0.01 * limit, rel=1e-3)


def test_keep_zeros_is_a_choice_of_three() -> None:
    assert TrainConfig().keep_zeros is None
    with pytest.raises(ConfigError, match="keep_zeros: 'yes' is of the wrong type"):
        parse_config(TrainConfig(), {"keep_zeros": "yes"}, "test")
