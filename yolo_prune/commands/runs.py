"""Commands in folders below runs/: start a run under a new name, or resume a stopped one, and record what it made.

The command after it takes the newest checkpoint by default (`run_folders`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from yolo_prune.commands.config import PruneConfig, SensitivityConfig
from yolo_prune.commands.iterate import IterateResult, resume_iterate, start_iterate
from yolo_prune.commands.lineage import adapt_finetune, adapt_prune, find_training
from yolo_prune.commands.plan import format_layers
from yolo_prune.commands.prune import PlanResult, PruneResult, make_plan_files, prune
from yolo_prune.commands.pruning.gradual import load_journal
from yolo_prune.commands.pruning.iterate_config import IterateConfig
from yolo_prune.commands.pruning.weights import WeightPruneResult
from yolo_prune.commands.results import Summary
from yolo_prune.commands.resuming import naming_resume
from yolo_prune.commands.run_folders import RUNS, hold_run_folder, remember_latest, take_run_folder
from yolo_prune.commands.sensitivity import SensitivityResult, resume_sensitivity, start_sensitivity
from yolo_prune.commands.train import launch_training, resume_training
from yolo_prune.config import parse_config
from yolo_prune.console import is_first_process, report
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.training.config import TrainConfig

Changes = dict[str, Any]
"""Settings that may change when a run is resumed."""


@dataclass(frozen=True)
class TrainResult:
    """The best checkpoint of a training."""

    checkpoint: Path

    @cached_property
    def _made_by(self) -> dict[str, Any]:
        return load_checkpoint(self.checkpoint).provenance

    @property
    def summary(self) -> Summary:
        """The best epoch and its score, and the command that may follow."""
        made_by = self._made_by
        metrics, folder = made_by["metrics"], self.checkpoint.parent
        score = metrics["val_map50"]
        scored = "" if score is None else f", val AP50 {score:.4f}"
        line = f"best epoch {metrics['epoch']} of {made_by['recipe']['epochs']}{scored}; plots are in {folder}"
        if made_by["stage"] == "finetune":
            return Summary(line, ("bench", str(self.checkpoint), "--lineage"))
        return Summary(line, ("prune", str(self.checkpoint), "--ratio", "0.8"))

    @property
    def stdout(self) -> str:
        """The checkpoint's path."""
        return str(self.checkpoint)

    def as_dict(self) -> dict[str, Any]:
        """Return the path, and what the checkpoint scored on validation images."""
        return {"checkpoint": str(self.checkpoint), **self._made_by["metrics"]}


def run_train(config: TrainConfig, stage: str = "train") -> TrainResult:
    """Train in a new run. `stage` is train or finetune.

    Raises:
        YoloPruneError: a setting, the data set or the network is not what it should be, or training failed.
        Interrupted, TimeUp: the run was stopped; `resume_train` goes on.
    """
    return _record_training(stage, launch_training(config, stage, stage))


def resume_train(name: str, changes: Changes, stage: str = "train") -> TrainResult:
    """Go on with a stopped training.

    Raises:
        YoloPruneError: there is nothing to resume, or as for `run_train`.
    """
    with hold_run_folder(RUNS / name), naming_resume(stage, "--resume", "--name", name):
        return _record_training(stage, resume_training(RUNS / name, changes))


def make_finetune_defaults(source: Path) -> TrainConfig:
    """Return what `finetune` does with a checkpoint unless told otherwise.

    Raises:
        CheckpointError: the file cannot be read.
    """
    return adapt_finetune(find_training(source))


def make_prune_defaults(source: Path) -> PruneConfig:
    """Return what `prune` does with a checkpoint unless told otherwise.

    Raises:
        CheckpointError: the file cannot be read.
    """
    return adapt_prune(find_training(source))


def run_prune(source: Path, config: PruneConfig) -> PruneResult | WeightPruneResult:
    """Prune a checkpoint in a new run.

    Raises:
        CheckpointError, PlanError, ConfigError, DatasetError: an input is invalid, or a budget cannot be met.
        Interrupted, TimeUp: the run was stopped; `resume_prune` goes on.
    """
    with (
        take_run_folder(config.name, "prune") as folder,
        naming_resume("prune", "--resume", "--name", folder.name),
    ):
        return _record("prune", prune(source, config, folder))


def resume_prune(name: str, changes: Changes) -> PruneResult | WeightPruneResult:
    """Go on with a stopped run of `prune`.

    Raises:
        ConfigError: there is nothing to resume, or the checkpoint that the run started from has changed.
    """
    with hold_run_folder(RUNS / name), naming_resume("prune", "--resume", "--name", name):
        source, config = load_journal(RUNS / name)
        return _record("prune", prune(source, parse_config(config, changes, "resume"), RUNS / name))


def run_plan(source: Path, config: PruneConfig) -> PlanResult:
    """Write what `prune` would remove from a checkpoint.

    Raises:
        CheckpointError, PlanError, ConfigError, DatasetError: an input is invalid, or a budget cannot be met.
    """
    with take_run_folder(config.name, "plan") as folder:
        made = make_plan_files(source, config, folder)
    report(format_layers(made.planned))
    return made


def run_sensitivity(source: Path, config: SensitivityConfig) -> SensitivityResult:
    """Measure in a new run what pruning each group costs.

    Raises:
        CheckpointError, PlanError, ConfigError, DatasetError: an input is invalid.
        Interrupted: the run was stopped; `resume_sensitivity_run` goes on.
    """
    with (
        take_run_folder(config.name, "sensitivity") as folder,
        naming_resume("sensitivity", "--resume", "--name", folder.name),
    ):
        return _tell(start_sensitivity(source, config, folder))


def resume_sensitivity_run(name: str, changes: Changes) -> SensitivityResult:
    """Go on with a stopped measurement.

    Raises:
        PlanError: there is nothing to resume, or its checkpoint or data set has changed.
    """
    with hold_run_folder(RUNS / name), naming_resume("sensitivity", "--resume", "--name", name):
        return _tell(resume_sensitivity(RUNS / name, changes.get("device")))


def run_iterate(source: Path, config: IterateConfig) -> IterateResult:
    """Prune and finetune in steps, in a new run.

    Raises:
        CheckpointError, ConfigError, DatasetError, PlanError: an input is invalid, or the target is out of reach.
        Interrupted, TimeUp: the run was stopped; `resume_iterate_run` goes on.
    """
    with (
        take_run_folder(config.name, "iterate") as folder,
        naming_resume("iterate", "--resume", "--name", folder.name),
    ):
        return _record("finetune", start_iterate(source, config, folder))


def resume_iterate_run(name: str, changes: Changes) -> IterateResult:
    """Go on with a stopped run of `iterate`.

    Raises:
        ConfigError: there is nothing to resume, or the checkpoint that the run started from has changed.
    """
    with hold_run_folder(RUNS / name), naming_resume("iterate", "--resume", "--name", name):
        return _record("finetune", resume_iterate(RUNS / name, changes))


class _Told(Protocol):
    def format(self) -> str: ...


class _Made(_Told, Protocol):
    @property
    def checkpoint(self) -> Path: ...


T = TypeVar("T", bound=_Told)
M = TypeVar("M", bound=_Made)


def _tell(result: T) -> T:
    report(result.format())
    return result


def _record(stage: str, result: M) -> M:
    remember_latest(stage, result.checkpoint)
    return _tell(result)


def _record_training(stage: str, path: Path) -> TrainResult:
    if is_first_process():
        remember_latest(stage, path)
    return TrainResult(path)
