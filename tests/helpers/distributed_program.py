"""What each process of test_distributed.py runs under torchrun: distributed_program.py WHAT OUT HANDS CFG [WEIGHTS]."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tiny import SIDE, TINY_CFG, UNUSED_CFG, make_config

from yolo_prune.commands.train import launch_training
from yolo_prune.darknet.cfg import parse_cfg
from yolo_prune.datasets.loader import DetectionDataset, Share, make_loader
from yolo_prune.datasets.spec import load_spec
from yolo_prune.model.config import DistillConfig
from yolo_prune.model.detector import Detector
from yolo_prune.training import epoch as epoch_module
from yolo_prune.training import run as run_module
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.distributed import Processes, join_processes
from yolo_prune.training.epoch import train_step
from yolo_prune.training.epoch_end import finish_epoch
from yolo_prune.training.resume import Run
from yolo_prune.training.schedule import StepRates
from yolo_prune.training.state import TrainingState, make_training_state
from yolo_prune.training.teacher import Teacher

KINDS = ("whole", "unused", "zeros", "auto", "teacher", "all")
"""What a step is made of: a branch that no head depends on; kept zeros; `sparsity: auto`; a teacher; the last three."""
PASSES = (1, 3)


def take_steps(processes: Processes, hands: Path, accumulate: int, kind: str) -> dict[str, torch.Tensor]:
    """Take three steps in float64 with batch norms frozen, and return the model's state."""
    torch.manual_seed(0)
    network = parse_cfg(UNUSED_CFG if kind == "unused" else TINY_CFG)
    model, other = (Detector(network).double().eval() for _ in range(2))
    config = TrainConfig(batch_size=6, accumulate=accumulate, optimizer="sgd", sparsity=0.1, device="cpu")
    schedule = [StepRates(rate, 1e-3) for rate in (1e-2, 2e-2, 1e-2)]
    if kind in ("auto", "all"):
        config = replace(config, sparsity="auto", optimizer="adamw" if kind == "auto" else "sgd")
        schedule = [
            replace(rates, shrinkage=0.0, zeroed=share, keeps_zeros=True)
            for rates, share in zip(schedule, (0.2, 0.4, 0.0), strict=True)
        ]
    if kind in ("zeros", "all"):
        config = replace(config, keep_zeros=True)
        zero_half_(model)
    teacher = Teacher(other, DistillConfig(features=0.5)) if kind in ("teacher", "all") else None
    training = make_training_state(model, config, 3, processes=processes, teacher=teacher)
    data = DetectionDataset(load_spec(hands).samples("train"), 1, SIDE)
    batches = make_loader(data, 6, shuffle=True, epoch=0, share=Share(processes.rank, processes.count))
    for batch, rates in zip([*batches, *batches], schedule, strict=False):
        train_step(training, batch, config, rates)
    return training.model.state_dict()


@torch.no_grad()
def zero_half_(model: Detector) -> None:
    """Set about half of all convolution weights to zero, in place."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight[torch.rand_like(module.weight) < 0.5] = 0


def save_steps(out: Path, hands: Path) -> None:
    """Take the steps of every kind, and save the states of all processes."""
    with join_processes("cpu") as (processes, _):
        for kind, accumulate in product(KINDS, PASSES):
            states = processes.gather(take_steps(processes, hands, accumulate, kind))
            if processes.is_first:
                torch.save(states, out / f"{kind}-{accumulate}.pt")


def save_run(out: Path, hands: Path, weights: Path) -> None:
    """Train with kept zeros, `sparsity: auto` and a teacher, and save the parameters of all processes after each epoch."""

    def finish(run: Run, training: TrainingState, *rest: Any) -> None:
        states = run.processes.gather({name: one.detach() for name, one in training.model.named_parameters()})
        if run.processes.is_first:
            torch.save(states, out / f"epoch-{rest[0].epoch}.pt")
        finish_epoch(run, training, *rest)

    run_module.finish_epoch = finish  # type: ignore[assignment, attr-defined]  # the same, but for the copies
    config = replace(make_config(hands, weights), cfg=None, weights=weights, teacher=weights, name="run")
    launch_training(replace(config, sparsity="auto", remove=True), "finetune", "finetune")


def main() -> None:
    """Do what the test wants of this process."""
    what, out, hands, cfg = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    if what == "steps":
        save_steps(out, hands)
        work_in(out / "whole")
        train(hands, cfg)
        work_in(out / "all")
        save_run(out, hands, Path(sys.argv[5]))
        return
    if what == "killed" and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        steps = 0

        def step(*arguments: object) -> torch.Tensor:
            nonlocal steps
            steps += 1
            if steps == 5:  # of nine
                os.kill(os.getpid(), signal.SIGKILL)
            return train_step(*arguments)  # type: ignore[arg-type]  # handed through

        epoch_module.train_step = step  # type: ignore[assignment]  # the same, and at its fifth step the end
    work_in(out)
    train(hands, cfg)


def work_in(folder: Path) -> None:
    """Go to a folder, which may be new."""
    folder.mkdir(exist_ok=True)
    os.chdir(folder)


def train(hands: Path, cfg: Path) -> None:
    """Train, and print the path of the best checkpoint."""
    config = make_config(hands, cfg, name="run", save_minutes=0.0)
    sys.stdout.write(f"{launch_training(config, 'train', 'train')}\n")  # in one piece: two processes write


if __name__ == "__main__":
    main()
