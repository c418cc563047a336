"""What a run is, and what it has behind it: in memory and in last.pt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from yolo_prune.datasets.spec import DataSpec
from yolo_prune.model.checkpoint import Checkpoint, save_checkpoint
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.distributed import Processes
from yolo_prune.training.epoch import EpochStats
from yolo_prune.training.state import TrainingState

Report = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """A run's fixed parts; `train` walks it from wherever it stands."""

    config: TrainConfig
    spec: DataSpec
    stage: str
    folder: Path
    img_size: int
    provenance: dict[str, Any]
    device: torch.device
    processes: Processes = field(default_factory=Processes)


OLD_NAMES = {"tally": "stats"}
"""What parts of a training state were called in files of version 0.1."""


@dataclass
class Progress:
    """What a run has behind it."""

    epoch: int = 0
    """Epochs that are finished."""
    best_map50: float = -1.0
    """The best mean of an epoch's AP50 and those before it; see `epoch_end.JUDGED`."""
    waited: int = 0
    """Validations since the best one."""
    is_done: bool = False
    sparsity: float = 0.0
    """The λ in force, found or given."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One per finished epoch, as in results.csv."""
    gammas: list[list[int]] = field(default_factory=list)
    """How many channels have a γ of what size, one list per validated epoch of a sparse run."""
    stats: EpochStats = field(default_factory=EpochStats)
    """Of the epoch that is not finished."""


def save_last(run: Run, training: TrainingState, progress: Progress) -> None:
    """Write last.pt: all that a resumed run needs to end in the same bits."""
    stored: dict[str, Any] = {one.name: getattr(progress, one.name) for one in fields(progress)}
    stored["stats"] = {**asdict(progress.stats), "losses": progress.stats.losses.cpu()}
    stored |= training.format_state()
    model = training.model
    state = Checkpoint(model.network, model.state_dict(), run.spec.names, run.img_size, run.provenance, stored)
    save_checkpoint(run.folder / "last.pt", state)


def restore(training: TrainingState, last: Checkpoint) -> Progress:
    """Put a training state in the one that `save_last` wrote, in place, and return the run's progress."""
    training.model.load_state_dict(dict(last.state))
    training.restore(last.training)
    stored = {OLD_NAMES.get(name, name): value for name, value in last.training.items()}
    values = {one.name: stored[one.name] for one in fields(Progress)}
    values["rows"], values["gammas"] = list(values["rows"]), list(values["gammas"])
    values["stats"] = EpochStats(**values["stats"])
    return Progress(**values)


def save_best(run: Run, training: TrainingState, metrics: dict[str, Any]) -> None:
    """Write best.pt: the averaged weights, and what they scored."""
    state, provenance = training.average.state, {**run.provenance, "metrics": metrics}
    best = Checkpoint(training.model.network, state, run.spec.names, run.img_size, provenance)
    save_checkpoint(run.folder / "best.pt", best)
