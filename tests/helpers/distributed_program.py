"""What each process of test_distributed.py runs under torchrun: distributed_program.py WHAT OUT [HANDS CFG]."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tiny import SIDE, TINY_CFG, UNUSED_CFG, make_config

from yolo_prune.commands.train import launch_training
from yolo_prune.darknet.cfg import parse_cfg
from yolo_prune.datasets.loader import DetectionDataset, Share, make_loader
from yolo_prune.datasets.spec import load_spec
from yolo_prune.model.detector import Detector
from yolo_prune.training import epoch as epoch_module
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.distributed import Processes, join_processes
from yolo_prune.training.epoch import train_step
from yolo_prune.training.schedule import StepRates
from yolo_prune.training.state import make_training_state


def take_steps(processes: Processes, hands: Path, accumulate: int, what: str) -> dict[str, torch.Tensor]:
    """Take three steps in float64 with batch norms frozen, and return the model's state."""
    torch.manual_seed(0)
    model = Detector(parse_cfg(UNUSED_CFG if what == "unused" else TINY_CFG)).double().eval()
    config = TrainConfig(batch_size=6, accumulate=accumulate, optimizer="sgd", sparsity=0.1, device="cpu")
    schedule = [StepRates(rate, 1e-3) for rate in (1e-2, 2e-2, 1e-2)]
    if what == "zeros":
        config = replace(config, keep_zeros=True, sparsity="auto")
        schedule = [
            replace(rates, shrinkage=0.0, zeroed=share, keeps_zeros=True)
            for rates, share in zip(schedule, (0.2, 0.4, 0.0), strict=True)
        ]
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.data[torch.rand_like(module.weight) < 0.5] = 0
    training = make_training_state(model, config, 3, processes=processes)
    data = DetectionDataset(load_spec(hands).samples("train"), 1, SIDE)
    batches = make_loader(data, 6, shuffle=True, epoch=0, share=Share(processes.rank, processes.count))
    for batch, rates in zip([*batches, *batches], schedule, strict=False):
        train_step(training, batch, config, rates)
    return training.model.state_dict()


def main() -> None:
    """Do what the test wants of this process."""
    what, out, hands, cfg = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    if what in ("steps", "unused", "zeros"):
        for accumulate in (1, 3):
            with join_processes("cpu") as (processes, _):
                state = take_steps(processes, hands, accumulate, what)
                if processes.is_first:
                    torch.save(state, out / f"{accumulate}.pt")
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
    os.chdir(out)
    config = make_config(hands, cfg, name="run", save_minutes=0.0)
    sys.stdout.write(f"{launch_training(config, 'train', 'train')}\n")  # in one piece: two processes write


if __name__ == "__main__":
    main()
