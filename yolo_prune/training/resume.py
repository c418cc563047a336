"""A run and its progress, in memory and in last.pt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from yolo_prune.datasets.spec import DataSpec
from yolo_prune.image_size import ImageSize
from yolo_prune.model.checkpoint import Checkpoint, save_checkpoint
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.distributed import Processes
from yolo_prune.training.epoch import EpochStats
from yolo_prune.training.saved_state import check_optimizer, check_scaler, read_saved_state
from yolo_prune.training.state import TrainingState

Report = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """The parts of a run that do not change while it trains."""

    config: TrainConfig
    spec: DataSpec
    stage: str
    folder: Path
    img_size: ImageSize
    provenance: dict[str, Any]
    device: torch.device
    processes: Processes = field(default_factory=Processes)


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0
    """Number of finished epochs."""
    best_map50: float = -1.0
    """AP50 of the best epoch, a mean over several validations; see `epoch_end.JUDGED`."""
    waited: int = 0
    """Validations since the best one."""
    is_done: bool = False
    sparsity: float = 0.0
    """The λ in use, given or found by `auto`."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One per finished epoch, as in results.csv."""
    gammas: list[list[int]] = field(default_factory=list)
    """With γ sparsity, a histogram of |γ| per finished epoch; see `report.count_gammas`."""
    stats: EpochStats = field(default_factory=EpochStats)
    """Stats of the unfinished epoch."""


def save_last(run: Run, training: TrainingState, progress: Progress) -> None:
    """Write last.pt: all that a resumed run needs to end with exactly the same weights."""
    stored: dict[str, Any] = {one.name: getattr(progress, one.name) for one in fields(progress)}
    stored["stats"] = {**asdict(progress.stats), "losses": progress.stats.losses.cpu()}
    stored |= training.format_state()
    model = training.model
    state = Checkpoint(model.network, model.state_dict(), run.spec.names, run.provenance, stored)
    save_checkpoint(run.folder / "last.pt", state)


def restore(training: TrainingState, last: Checkpoint, folder: Path) -> Progress:
    """Load what `save_last` wrote in a folder into a training state, in place, and return the run's progress.

    Raises:
        CheckpointError: the file lacks a part, or one does not fit the training state; names it.
    """
    path = folder / "last.pt"
    stored = read_saved_state(last.training, path)
    check_optimizer(training.optimizer, stored["optimizer"], path)
    check_scaler(training.scaler, stored["scaler"], path)
    training.model.load_state_dict(dict(last.state))
    training.restore(stored)
    values = {one.name: stored[one.name] for one in fields(Progress)}
    values["rows"], values["gammas"] = list(values["rows"]), list(values["gammas"])
    values["stats"] = EpochStats(**values["stats"])
    return Progress(**values)


def save_best(run: Run, training: TrainingState, metrics: dict[str, Any]) -> None:
    """Write best.pt: the averaged weights and their metrics."""
    state, provenance = training.average.state, {**run.provenance, "metrics": metrics}
    best = Checkpoint(training.model.network, state, run.spec.names, provenance)
    save_checkpoint(run.folder / "best.pt", best)
