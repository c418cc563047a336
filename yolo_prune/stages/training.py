"""`train` and `finetune`: a new run in a folder of its own, or an old one taken up again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from yolo_prune.darknet.cost import measure_cost
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.pruning.balance import balance_gammas_
from yolo_prune.stages.data import load_data, load_data_of, report
from yolo_prune.training.run import make_run, resume_run, train
from yolo_prune.training.settings import TrainConfig
from yolo_prune.training.start import make_start


def start_training(config: TrainConfig, folder: Path, stage: str = "train") -> Path:
    """Train in `folder` from whatever the settings name, and return the best checkpoint.

    Started from a checkpoint, a run without a data set of its own goes on with the checkpoint's.
    """
    if config.data is None and config.weights is not None and config.weights.suffix == ".pt":
        spec = load_data_of(None, load_checkpoint(config.weights).provenance, "--data")
    else:
        spec = load_data(config.data)
    config = replace(config, data=spec.source)
    start = make_start(config, len(spec.names), report, spec.samples("train"))
    if config.sparsity > 0:
        report(f"balanced the γ of {balance_gammas_(start.model)} groups")
    cost = measure_cost(start.model.network, start.img_size)
    report(
        f"{stage}: {cost.params:,} params, {cost.macs / 1e9:.3f} G MACs at {start.img_size} px; "
        f"{len(spec.samples('train'))} pictures, {config.epochs} epochs, into {folder}"
    )
    return train(make_run(config, spec, start, stage=stage, folder=folder), start.model, report=report)


def resume_training(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """Take up the run that stopped in `folder`, and return its best checkpoint; `changes` are settings to change."""
    run, checkpoint = resume_run(folder, lambda config: load_data(config.data), changes or {})
    report(f"resuming {folder} after epoch {checkpoint.training['epoch']} of {run.config.epochs}")
    model = checkpoint.make_model()
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
    return train(run, model.requires_grad_(True), checkpoint, report)
