"""`train` and `finetune`: start a new run in its own folder, or resume a stopped one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from yolo_prune.commands.data import CHOSEN_BY, explain_no_test, load_data, load_data_of
from yolo_prune.commands.lineage import find_uncut
from yolo_prune.commands.resuming import naming_resume
from yolo_prune.commands.run_folders import find_in_folder, find_run_folder, hold_run_folder, take_run_folder
from yolo_prune.console import report
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.datasets.class_names import number_as
from yolo_prune.datasets.spec import DataSpec
from yolo_prune.launch import count_restarts
from yolo_prune.model.checkpoint import Checkpoint, is_checkpoint, load_checkpoint
from yolo_prune.model.state_dicts import SUFFIXES
from yolo_prune.pruning.sparsity.balance import balance_gammas_
from yolo_prune.pruning.sparsity.zeroing import Removal
from yolo_prune.text_tables import pluralize
from yolo_prune.training.callbacks import import_writer
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.distributed import Processes, join_processes
from yolo_prune.training.initial_model import check_files, make_start
from yolo_prune.training.optimizer import Moments
from yolo_prune.training.resume import Report
from yolo_prune.training.run import load_last, make_run, make_run_of, train
from yolo_prune.training.run_data import Datasets


def launch_training(config: TrainConfig, default_name: str, stage: str) -> Path:
    """Train in a new folder below runs/, in one process or in all processes that torchrun started.

    Processes that torchrun restarted, because one had died, resume the run from its last.pt.
    """
    config = find_checkpoints(config)
    with join_processes(config.device) as (processes, device):
        name = config.name
        if count_restarts():
            folder = processes.share(find_run_folder(name, default_name) if processes.is_first else None)
            if folder is not None and (folder / "last.pt").is_file():
                with hold_run_folder(folder), naming_resume(stage, "--resume", "--name", folder.name):
                    settings, last = load_last(folder, {})
                    return _go_on(settings, last, folder, processes, device)
        check_files(config)
        if config.tensorboard:
            import_writer()
        with take_folder(name, default_name, processes) as folder:
            spec = _load_in_turn(config, processes)
            _report_missing_splits(spec, config, _make_reporter(processes))
            with naming_resume(stage, "--resume", "--name", folder.name):
                return _start(config, spec, folder, stage, processes, device)


@contextmanager
def take_folder(name: str, default: str, processes: Processes) -> Iterator[Path]:
    """Take a folder for a new run in the first process, as `take_run_folder`, and yield it in all.

    Raises:
        ConfigError, OutputError: as for `take_run_folder`.
    """
    if processes.is_first:
        with take_run_folder(name, default) as folder:
            yield processes.share(folder)
    else:
        yield processes.share(Path(name))


def start_training(
    config: TrainConfig,
    folder: Path,
    stage: str = "train",
    *,
    moments: Moments | None = None,
    datasets: Datasets | None = None,
    removal: Removal | None = None,
) -> Path:
    """Train in `folder` from the start that the settings name, and return the best checkpoint.

    A run that starts from a checkpoint, and has no data set in its settings, uses the checkpoint's. For `moments`,
    `datasets` and `removal` see `training.run.train`. From a last.pt the run starts with the averaged weights; with
    `moments` it starts with the weights of the last step, which the moments belong to.
    """
    config = find_checkpoints(config)
    with join_processes(config.device) as (processes, device):
        return _start(
            config, _load_in_turn(config, processes), folder, stage, processes, device, moments, datasets, removal
        )


def resume_training(folder: Path, changes: dict[str, Any] | None = None, *, datasets: Datasets | None = None) -> Path:
    """Resume the stopped run in `folder`, and return its best checkpoint; `changes` are settings to change."""
    config, last = load_last(folder, changes or {})
    with join_processes(config.device) as (processes, device):
        return _go_on(config, last, folder, processes, device, datasets)


def _start(
    config: TrainConfig,
    spec: DataSpec,
    folder: Path,
    stage: str,
    processes: Processes,
    device: torch.device,
    moments: Moments | None = None,
    datasets: Datasets | None = None,
    removal: Removal | None = None,
) -> Path:
    say = _make_reporter(processes)
    own = load_checkpoint(config.weights) if config.weights is not None and is_checkpoint(config.weights) else None
    config = _find_teacher(replace(config, data=spec.source), own, say)
    if own is not None and config.weights is not None:
        spec = _number(spec, own.names, config.weights, stage, say)
    start = make_start(config, len(spec.names), say, spec.samples("train"))
    if moments is not None and own is not None:  # the moments belong to the last step's weights
        start.model.load_state_dict(dict(own.state))
    if config.pulls_gammas:
        say(f"balanced the γ of {pluralize(balance_gammas_(start.model), 'group')}")
    cost = measure_cost(start.model.network)
    say(
        f"{stage}: {cost.params:,} params, {cost.macs / 1e9:.3g} G MACs at {cost.img_size} px; "
        f"{pluralize(len(spec.samples('train')), 'image')}, {pluralize(config.epochs, 'epoch')}, into {folder}"
    )
    run = make_run(config, spec, start, stage=stage, folder=folder, device=device, processes=processes)
    return train(run, start.model, report=say, moments=moments, datasets=datasets, removal=removal)


def find_checkpoints(config: TrainConfig) -> TrainConfig:
    """Return the settings with the checkpoints of run folders in place of these."""
    weights, teacher = (None if path is None else find_in_folder(path) for path in (config.weights, config.teacher))
    return replace(config, weights=weights, teacher=teacher)


def _number(spec: DataSpec, names: Sequence[str], weights: Path, stage: str, say: Report) -> DataSpec:
    """Return the data set with its classes numbered as in a checkpoint; a new training with other classes gets new heads."""
    if stage == "train" and len(names) != len(spec.names):
        return spec
    numbered = number_as(spec, names, weights)
    for note in numbered.notes[len(spec.notes) :]:
        say(note)
    return numbered


def _find_teacher(config: TrainConfig, own: Checkpoint | None, say: Report) -> TrainConfig:
    """Return the settings with the path of the teacher in place of `parent_teacher`."""
    if not config.parent_teacher or config.teacher is not None or config.weights is None:
        return replace(config, parent_teacher=False)
    path, reason = find_uncut(own or load_checkpoint(config.weights))
    say(f"teacher: {path}, which it was cut from" if path is not None else f"no teacher: {reason}")
    return replace(config, parent_teacher=False, teacher=path)


def _go_on(
    config: TrainConfig,
    last: Checkpoint,
    folder: Path,
    processes: Processes,
    device: torch.device,
    datasets: Datasets | None = None,
) -> Path:
    say = _make_reporter(processes)
    spec = number_as(load_data(config.data), last.names, folder / "last.pt")
    run = make_run_of(config, spec, last, folder=folder, device=device, processes=processes)
    say(f"resuming {folder} after epoch {last.training['epoch']} of {config.epochs}")
    model = last.make_last_step_model()
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
    return train(run, model.requires_grad_(True), last, say, datasets=datasets)


def _load_in_turn(config: TrainConfig, processes: Processes) -> DataSpec:
    """Load the data set, in the first process before the others: it may have to be drawn."""
    spec = _load(config) if processes.is_first else None
    processes.share(None)
    return spec or _load(config)


def _load(config: TrainConfig) -> DataSpec:
    is_own = config.weights is not None and config.cfg is None and config.weights.suffix in SUFFIXES
    if config.data is None and config.weights is not None and is_own:
        return load_data_of(None, load_checkpoint(config.weights).provenance)
    return load_data(config.data)


def _report_missing_splits(spec: DataSpec, config: TrainConfig, say: Report) -> None:
    """Report what later commands will lack. Not called by `run` and `iterate`, which start many trainings."""
    if (reason := explain_no_test(spec)) is not None:
        is_chosen = config.val_interval > 0 and not config.is_sparse  # else the last epoch is kept
        say(f"{reason}: bench will score on val" + (f", {CHOSEN_BY}" if is_chosen else ""))


def _make_reporter(processes: Processes) -> Report:
    return report if processes.is_first else lambda line: None
