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
from yolo_prune.training.distributed import Ranks
from yolo_prune.training.epoch import Tally
from yolo_prune.training.state import Trainee

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
    ranks: Ranks = field(default_factory=Ranks)


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
    tally: Tally = field(default_factory=Tally)
    """Of the epoch that is not finished."""


def save_last(run: Run, trainee: Trainee, progress: Progress) -> None:
    """Write last.pt: all that a resumed run needs to end in the same bits."""
    training = {one.name: getattr(progress, one.name) for one in fields(progress) if one.name != "tally"}
    training["tally"] = {**asdict(progress.tally), "losses": progress.tally.losses.cpu()}
    training |= trainee.format_state()
    model = trainee.model
    state = Checkpoint(model.network, model.state_dict(), run.spec.names, run.img_size, run.provenance, training)
    save_checkpoint(run.folder / "last.pt", state)


def restore(trainee: Trainee, last: Checkpoint) -> Progress:
    """Put a trainee in the state that `save_last` wrote, in place, and return the run's progress."""
    trainee.model.load_state_dict(dict(last.state))
    trainee.restore(last.training)
    values = {one.name: last.training[one.name] for one in fields(Progress)}
    return Progress(
        **{**values, "rows": list(values["rows"]), "gammas": list(values["gammas"]), "tally": Tally(**values["tally"])}
    )


def save_best(run: Run, trainee: Trainee, metrics: dict[str, Any]) -> None:
    """Write best.pt: the averaged weights, and what they scored."""
    state, provenance = trainee.average.state, {**run.provenance, "metrics": metrics}
    best = Checkpoint(trainee.model.network, state, run.spec.names, run.img_size, provenance)
    save_checkpoint(run.folder / "best.pt", best)
