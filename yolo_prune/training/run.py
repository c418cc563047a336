"""Run training from the first step to the last, and resume it after a stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from yolo_prune.config import format_config, parse_config
from yolo_prune.console import warn
from yolo_prune.datasets.batches import Loader
from yolo_prune.datasets.loader import DetectionDataset, make_loader
from yolo_prune.datasets.spec import DataSpec, measure_fingerprint
from yolo_prune.errors import TrainingError
from yolo_prune.files import save_text
from yolo_prune.model.checkpoint import KEEPS_ZEROS, Checkpoint, load_checkpoint, make_provenance
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.config import AUTO
from yolo_prune.pruning.sparsity.zeroing import Removal
from yolo_prune.scraps import remove_scraps
from yolo_prune.text_tables import pluralize
from yolo_prune.training.callbacks import ProgressBar, TensorBoardLog, open_log
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.distributed import Processes
from yolo_prune.training.epoch import EpochStats, check_sanity, train_epoch
from yolo_prune.training.epoch_end import finish_epoch
from yolo_prune.training.initial_model import Start
from yolo_prune.training.optimizer import Moments
from yolo_prune.training.removal import remove_zeroed_
from yolo_prune.training.report import save_batch_image, save_detections_image
from yolo_prune.training.resume import Progress, Report, Run, restore, save_last
from yolo_prune.training.run_data import Datasets, count_steps, count_workers, get_share, list_sizes, load_datasets
from yolo_prune.training.saved_state import check_run_provenance, read_removal, read_saved_state
from yolo_prune.training.schedule import (
    StepRates,
    explain_short_run,
    explain_weak_sparsity,
    find_sparsity,
    measure_rates,
)
from yolo_prune.training.signals import StopSignal, leave, watch_signals
from yolo_prune.training.state import TrainingState, make_training_state
from yolo_prune.training.step_memory import StepMemory
from yolo_prune.training.teacher import Teacher, load_teacher

WORTH_CUTTING = 0.1
"""Within an epoch, zeroed channels are removed once they are more than this share of the prunable ones."""


def make_run(
    config: TrainConfig,
    spec: DataSpec,
    start: Start,
    *,
    stage: str,
    folder: Path,
    device: torch.device,
    processes: Processes,
) -> Run:
    """Make a new run."""
    config = replace(config, keep_zeros=start.keeps_zeros)
    facts: dict[str, Any] = {KEEPS_ZEROS: True} if start.keeps_zeros else {}
    facts["data"] = {"path": str(spec.source.resolve()), "fingerprint": measure_fingerprint(spec)}
    provenance = make_provenance(stage, format_config(config), start.parent, **facts)
    return Run(config, spec, stage, folder, start.model.network.img_size, provenance, device, processes)


def load_last(folder: Path, changes: dict[str, Any]) -> tuple[TrainConfig, Checkpoint]:
    """Return the settings of the run in `folder`, with `changes` applied, and its last.pt.

    Raises:
        TrainingError: there is no last.pt, or the run is finished.
        CheckpointError: last.pt cannot be read.
        ConfigError: a change names no setting, or its value is invalid.
    """
    last = folder / "last.pt"
    if not last.is_file():
        raise TrainingError(
            "there is nothing to resume", where=last, right="name a run folder that train or finetune left"
        )
    checkpoint = load_checkpoint(last)
    check_run_provenance(checkpoint.provenance, last)
    config = parse_config(TrainConfig(), {**checkpoint.provenance["recipe"], **changes}, last)
    stored = (
        read_saved_state(checkpoint.training, last) if checkpoint.training else {}
    )  # a finished checkpoint has none
    if stored.get("is_done", True):
        epochs = stored.get("epoch", config.epochs)
        raise TrainingError(
            f"the run's {pluralize(epochs, 'epoch')} {'is' if epochs == 1 else 'are'} done",
            where=last,
            right="start a new run from best.pt with --weights",
        )
    return config, checkpoint


def make_run_of(
    config: TrainConfig, spec: DataSpec, last: Checkpoint, *, folder: Path, device: torch.device, processes: Processes
) -> Run:
    """Make the run to resume from what `load_last` returned.

    Raises:
        TrainingError: the data set is not the one that the run began with.
    """
    if measure_fingerprint(spec) != last.provenance["data"]["fingerprint"]:
        raise TrainingError(
            "the data set has changed since the run began", where=spec.source, right="restore it, or start a new run"
        )
    return Run(config, spec, last.provenance["stage"], folder, last.img_size, last.provenance, device, processes)


@dataclass(frozen=True)
class _ActiveRun:
    """A run in progress."""

    run: Run
    training: TrainingState
    progress: Progress
    data: DetectionDataset
    val: DetectionDataset
    steps_per_epoch: int
    stop: StopSignal

    def measure_rates(self, step: int) -> StepRates:
        """Return the scheduled rates of step 0, 1, … of the present epoch."""
        config, progress = self.run.config, self.progress
        first, steps = progress.epoch * self.steps_per_epoch, config.epochs * self.steps_per_epoch
        return measure_rates(config, progress.sparsity, first + step, steps)


def train(
    run: Run,
    model: Detector,
    last: Checkpoint | None = None,
    report: Report = print,
    *,
    moments: Moments | None = None,
    datasets: Datasets | None = None,
    removal: Removal | None = None,
) -> Path:
    """Train `model` in place, or resume from `last`, and return the path of the run's best checkpoint.

    Nothing is written before the data set is read. last.pt is written after every epoch, and every `save_minutes`
    within one; a run resumed from it ends with exactly the same weights. best.pt holds the averaged weights of the best
    epoch by validation AP50 (a mean of three); with γ sparsity of the last, which has the most channels at zero.

    Args:
        moments: an optimizer's moments for the model's parameters, to start with.
        datasets: what `load_datasets` returns for the run, if it has been loaded already.
        removal: which channels `sparsity: auto` sets to zero, if they are chosen already and not in `last`.

    Raises:
        TrainingError: a loss or a weight became NaN or infinite.
        InsufficientMemoryError: a step needs more memory than there is.
        ConfigError: no batch has an image for every process.
        Interrupted, TimeUp: a signal came, or `max_minutes` are over; the run can be resumed from last.pt.
    """
    config, processes = run.config, run.processes
    with watch_signals(config.max_minutes) as stop:
        teacher, memory = _check_memory(run, model)
        data, val = datasets or load_datasets(run, is_told=last is None, cache_bytes=memory.measure_cache())
        data.augment, data.seed = config.augment, config.seed  # given data sets may have others
        steps = config.epochs * (steps_per_epoch := count_steps(run, data))
        removal = removal if last is None else read_removal(last, run.folder / "last.pt")
        training = _make_training_state(run, model, data, steps, teacher, moments, removal)
        progress = _begin(run, training, steps, report) if last is None else restore(training, last, run.folder)
        _save_settings(run)
        active = _ActiveRun(run, training, progress, data, val, steps_per_epoch, stop)
        images = min(len(data), steps_per_epoch * config.batch_size)
        with (
            ProgressBar(progress, config.epochs, images, processes.is_first) as bar,
            open_log(run.folder, config.tensorboard and processes.is_first, progress.epoch) as log,
            memory.naming_out_of_memory(),
        ):
            while not progress.is_done:
                _iterate_epoch(active, bar, log, report)
            processes.share(None)  # wait until the first process has written best.pt
            if processes.is_first:
                _finish(active, log)
    return run.folder / "best.pt"


def _finish(active: _ActiveRun, log: TensorBoardLog) -> None:
    """Draw detections, then say in last.pt that the run is done: if it is killed before that, it can be resumed."""
    run, progress, val = active.run, active.progress, active.val
    if len(val):
        model = load_checkpoint(run.folder / "best.pt").make_model().to(run.device).eval()
        image = save_detections_image(run.folder, model, val, run.spec.names, run.device, run.config.detection)
        log.add_image("val_detections", image, progress.epoch)
    save_last(run, active.training, progress)


def _iterate_epoch(active: _ActiveRun, bar: ProgressBar, log: TensorBoardLog, report: Report) -> None:
    run, progress, data = active.run, active.progress, active.data
    if progress.epoch >= round((1 - run.config.close_mosaic_fraction) * run.config.epochs):
        data.augment = run.config.augment.without_mosaic()
    if progress.epoch == 0 and run.processes.is_first:
        log.add_image("train_batch", save_batch_image(run.folder, data), 0)
    before_step = _make_step_hook(active)
    train_epoch(
        active.training,
        _make_batches(active, before_step),
        run.config,
        active.measure_rates,
        progress.stats,
        before_step=before_step,
        after_step=bar.move,
        after_look=bar.look,
    )
    if run.config.remove:
        remove_zeroed_(active.training, run.config)
    rates = active.measure_rates(active.steps_per_epoch - 1)
    finish_epoch(run, active.training, progress, rates, active.val, report)
    bar.look(progress.stats)
    log.add_row(progress.rows[-1])
    (code,) = run.processes.find_largest([active.stop.code])
    if code and not progress.is_done:  # after the last epoch there is nothing left to resume
        leave(int(code))


def _make_step_hook(active: _ActiveRun) -> Callable[[EpochStats], None]:
    """Return a function to call between two steps.

    It saves the run if it was asked to stop or was last saved `save_minutes` ago, and removes zeroed channels.
    """
    run, saved = active.run, time.monotonic()

    def between_steps(stats: EpochStats) -> None:
        nonlocal saved
        is_due = stats.steps > 0 and time.monotonic() - saved >= 60 * run.config.save_minutes
        code, is_due_somewhere = run.processes.find_largest([active.stop.code, is_due])
        if code or is_due_somewhere:
            check_sanity(active.training, stats)
            if run.processes.is_first:
                save_last(run, active.training, active.progress)
            saved = time.monotonic()
        if code:
            run.processes.share(None)  # wait until last.pt is written: the first to leave ends the others
            leave(int(code))
        if run.config.remove:
            remove_zeroed_(active.training, run.config, WORTH_CUTTING)

    return between_steps


def _make_batches(active: _ActiveRun, before_step: Callable[[EpochStats], None]) -> Loader:
    run, config, stats = active.run, active.run.config, active.progress.stats

    def stop_while_waiting() -> None:
        if active.stop.code and run.processes.count == 1:
            before_step(stats)  # saves the run
        elif active.stop.code:
            leave(active.stop.code)  # the others do not come to a step where all could save

    return make_loader(
        active.data,
        config.batch_size,
        shuffle=True,
        epoch=active.progress.epoch,
        workers=count_workers(config, run.device),
        sizes=list_sizes(run.img_size, config.multi_scale),
        pin_memory=run.device.type == "cuda",
        start=active.progress.stats.steps,
        share=get_share(run.processes),
        while_waiting=stop_while_waiting,
    )


def _save_settings(run: Run) -> None:
    if run.processes.is_first:
        remove_scraps(run.folder)
        save_text(run.folder / "config.yaml", yaml.safe_dump(format_config(run.config), sort_keys=False))


def _check_memory(run: Run, model: Detector) -> tuple[Teacher | None, StepMemory]:
    """Load the teacher if there is one, and check that a step fits into memory."""
    config, teacher = run.config, None
    if config.teacher is not None:
        teacher = load_teacher(config.teacher, model.network, config.distill, run.device)
    memory = StepMemory(run, model.network, None if teacher is None else teacher.model.network)
    memory.check()
    return teacher, memory


def _make_training_state(
    run: Run,
    model: Detector,
    data: DetectionDataset,
    steps: int,
    teacher: Teacher | None,
    moments: Moments | None,
    removal: Removal | None,
) -> TrainingState:
    config, device = run.config, run.device
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = config.multi_scale == 0  # it times all kernels again for every input size
    counts = np.bincount(np.concatenate([rows[rows[:, 5] == 0, 0] for rows in data.labels]).astype(int))
    return make_training_state(
        model.to(device).to(memory_format=torch.channels_last),
        config,
        steps,
        class_counts=[*counts.tolist(), *[0] * (data.classes - len(counts))],
        teacher=teacher,
        processes=run.processes,
        moments=moments,
        removal=removal,
    )


def _begin(run: Run, training: TrainingState, steps: int, report: Report) -> Progress:
    config, progress = run.config, Progress()
    if config.sparsity == AUTO:
        assert training.sparsity is not None
        progress.sparsity = find_sparsity(config, training.sparsity, steps)
        assert training.zeroing is not None
        zeroed = int((~training.zeroing.make_plan().keep).sum())  # raises now if a target is out of reach
        pull = f"λ = {progress.sparsity:.4g}, " if progress.sparsity else ""
        present = int(make_channel_graph(training.model.network).prunable.sum())
        report(f"sparsity: {pull}{zeroed} of {present} channels to zero in {pluralize(steps, 'step')}")
        if (warning := explain_short_run(config, steps)) is not None:
            warn(warning)
    elif config.is_sparse:
        progress.sparsity = float(config.sparsity)
        assert training.sparsity is not None
        if (warning := explain_weak_sparsity(config, training.sparsity, steps)) is not None:
            warn(warning)
    if training.zeros is not None:
        report(f"{pluralize(training.zeros.count(), 'weight')} at zero, to stay there")
    if run.processes.is_first:
        (run.folder / "best.pt").unlink(missing_ok=True)
        save_last(run, training, progress)
    return progress
