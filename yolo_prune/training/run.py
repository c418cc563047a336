"""A training run from first step to last, and going on after a stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import yaml

from yolo_prune.config import format_config, parse_config
from yolo_prune.datasets.loader import DetectionDataset, Loader, Share, count_batches, make_loader
from yolo_prune.datasets.spec import DataSpec, measure_fingerprint
from yolo_prune.errors import TrainingError
from yolo_prune.files import remove_scraps, save_text
from yolo_prune.model.checkpoint import KEEPS_ZEROS, Checkpoint, load_checkpoint, make_provenance
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.config import AUTO
from yolo_prune.pruning.silencer import Removal, parse_removal
from yolo_prune.threads import count_cores
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.distributed import Ranks
from yolo_prune.training.epoch import Tally, check_sanity, train_epoch
from yolo_prune.training.epoch_end import finish_epoch
from yolo_prune.training.initial_model import Start
from yolo_prune.training.optimizer import Moments
from yolo_prune.training.previews import save_batch_image, save_detections_image
from yolo_prune.training.progress_bar import ProgressBar
from yolo_prune.training.removal import remove_silent_
from yolo_prune.training.resume import Progress, Report, Run, restore, save_last
from yolo_prune.training.schedule import Pace, find_sparsity, measure_pace
from yolo_prune.training.signals import StopSignal, leave, watch_signals
from yolo_prune.training.state import Trainee, make_trainee
from yolo_prune.training.teacher import load_teacher
from yolo_prune.training.tensorboard import Board, open_board

MOST_WORKERS = 16
WORTH_CUTTING = 0.1
"""Silent channels are cut out within an epoch once they are more than this share of the prunable ones."""

Datasets: TypeAlias = tuple[DetectionDataset, DetectionDataset]
"""The images to train and to validate on."""


def make_run(
    config: TrainConfig,
    spec: DataSpec,
    start: Start,
    *,
    stage: str,
    folder: Path,
    device: torch.device,
    ranks: Ranks,
) -> Run:
    """Fix what a new run is about."""
    config = replace(config, keep_zeros=start.keeps_zeros)
    facts: dict[str, Any] = {KEEPS_ZEROS: True} if start.keeps_zeros else {}
    facts["data"] = {"path": str(spec.source.resolve()), "fingerprint": measure_fingerprint(spec)}
    provenance = make_provenance(stage, format_config(config), start.parent, **facts)
    return Run(config, spec, stage, folder, start.img_size, provenance, device, ranks)


def load_last(folder: Path, changes: dict[str, Any]) -> tuple[TrainConfig, Checkpoint]:
    """Return the settings of the run that `folder` holds, with `changes` to those that may change, and the state it stopped in.

    Raises:
        TrainingError: there is no last.pt, or the run is finished.
        CheckpointError: last.pt cannot be read.
        ConfigError: a change is no setting, or out of range.
    """
    last = folder / "last.pt"
    if not last.is_file():
        raise TrainingError(
            "there is nothing to resume", where=last, right="name a run folder that train or finetune left"
        )
    checkpoint = load_checkpoint(last)
    config = parse_config(TrainConfig(), {**checkpoint.provenance["recipe"], **changes}, last)
    if checkpoint.training.get("is_done", True):
        raise TrainingError(
            f"the run's {checkpoint.training.get('epoch', config.epochs)} epochs are done",
            where=last,
            right="start a new run from best.pt with --weights",
        )
    return config, checkpoint


def make_run_of(
    config: TrainConfig, spec: DataSpec, last: Checkpoint, *, folder: Path, device: torch.device, ranks: Ranks
) -> Run:
    """Return the run that stopped, with what `load_last` gave.

    Raises:
        TrainingError: the data set is another than the run's.
    """
    if measure_fingerprint(spec) != last.provenance["data"]["fingerprint"]:
        raise TrainingError(
            "the data set has changed since the run began", where=spec.source, right="restore it, or start a new run"
        )
    return Run(config, spec, last.provenance["stage"], folder, last.img_size, last.provenance, device, ranks)


@dataclass(frozen=True)
class _Walk:
    """A run under way."""

    run: Run
    trainee: Trainee
    progress: Progress
    data: DetectionDataset
    val: DetectionDataset
    steps_per_epoch: int
    stop: StopSignal

    def measure_pace(self, step: int) -> Pace:
        """Return the pace of the present epoch's step 0, 1, …"""
        config, progress = self.run.config, self.progress
        first, steps = progress.epoch * self.steps_per_epoch, config.epochs * self.steps_per_epoch
        return measure_pace(config, progress.sparsity, first + step, steps)


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
    """Train `model` in place, or go on from `last`, and return the path of the run's best checkpoint.

    Nothing is written before the data set is read. last.pt holds after every epoch, and every `save_minutes` within one, all
    that is needed to end in the same bits; best.pt the averaged weights of the best epoch so far by validation AP50 (a mean of three), or
    with sparsity of the last epoch, because earlier ones are less sparse.

    Args:
        moments: what an optimizer already knew of the model's parameters.
        images: those to train and to validate on, where they have been read already; they are `load_images` of the run.
        removal: towards what channels `sparsity: auto` goes, where that is fixed before; of `last` it is in there.

    Raises:
        TrainingError: the loss is no longer a number.
        Interrupted: SIGINT or SIGTERM came; last.pt is resumable.
        TimeUp: `max_minutes` are over; the same.
    """
    config, ranks = run.config, run.ranks
    with watch_signals(config.max_minutes) as stop:
        data, val = datasets or load_datasets(run)
        data.augment, data.seed = config.augment, config.seed  # those who read the images may have had others
        steps_per_epoch = count_batches(len(data), config.batch_size, _get_share(ranks))
        steps = steps_per_epoch * config.epochs
        trainee = _make_trainee(run, model, data, steps, moments, removal if last is None else _get_removal(last))
        progress = _begin(run, trainee, steps, report) if last is None else restore(trainee, last)
        _save_settings(run)
        walk = _Walk(run, trainee, progress, data, val, steps_per_epoch, stop)
        images = min(len(data), steps_per_epoch * config.batch_size)
        with (
            ProgressBar(progress, config.epochs, images, ranks.is_first) as bar,
            open_board(run.folder, config.tensorboard and ranks.is_first, progress.epoch) as board,
        ):
            while not progress.is_done:
                _walk_epoch(walk, bar, board, report)
            ranks.share(None)  # all wait here until the first one's best.pt is there
            best = run.folder / "best.pt"
            if ranks.is_first:
                model = load_checkpoint(best).make_model().to(run.device).eval()
                image = save_detections_image(run.folder, model, val, run.spec.names, run.device)
                board.add_image("val_detections", image, progress.epoch)
    return best


def _walk_epoch(walk: _Walk, bar: ProgressBar, board: Board, report: Report) -> None:
    run, progress, data = walk.run, walk.progress, walk.data
    if progress.epoch >= round((1 - run.config.close_mosaic_fraction) * run.config.epochs):
        data.augment = run.config.augment.without_mosaic()
    if progress.epoch == 0 and run.ranks.is_first:
        board.add_image("train_batch", save_batch_image(run.folder, data), 0)
    train_epoch(
        walk.trainee,
        _make_batches(walk),
        run.config,
        walk.measure_pace,
        progress.tally,
        before_step=_make_watch(walk),
        after_look=bar.show,
    )
    if run.config.remove:
        remove_silent_(walk.trainee, run.config, run.img_size)
    pace = walk.measure_pace(walk.steps_per_epoch - 1)
    finish_epoch(run, walk.trainee, progress, pace, walk.val, report)
    bar.show(progress.tally)
    board.add_row(progress.rows[-1])
    (code,) = run.ranks.find_largest([walk.stop.code])
    if code and not progress.is_done:  # after the last epoch there is nothing left to resume
        leave(int(code))


def _make_watch(walk: _Walk) -> Callable[[Tally], None]:
    """Return what happens between two steps: silent channels are cut out, and the run is saved when it is asked to stop or has not been for long."""
    run, saved = walk.run, time.monotonic()

    def watch(tally: Tally) -> None:
        nonlocal saved
        is_due = tally.steps > 0 and time.monotonic() - saved >= 60 * run.config.save_minutes
        code, is_due_somewhere = run.ranks.find_largest([walk.stop.code, is_due])
        if code or is_due_somewhere:
            check_sanity(walk.trainee, tally)
            if run.ranks.is_first:
                save_last(run, walk.trainee, walk.progress)
            saved = time.monotonic()
        if code:
            leave(int(code))
        if run.config.remove:
            remove_silent_(walk.trainee, run.config, run.img_size, WORTH_CUTTING)

    return watch


def _make_batches(walk: _Walk) -> Loader:
    run, config = walk.run, walk.run.config
    return make_loader(
        walk.data,
        config.batch_size,
        shuffle=True,
        epoch=walk.progress.epoch,
        workers=count_workers(config, run.device),
        sizes=list_sizes(run.img_size, config.multi_scale),
        pin_memory=run.device.type == "cuda",
        start=walk.progress.tally.steps,
        share=_get_share(run.ranks),
    )


def list_sizes(img_size: int, multi_scale: float) -> list[int]:
    """Return the sides in pixels that steps take: multiples of 32 up to the share away from `img_size`."""
    low, high = (img_size * (1 + sign * multi_scale) for sign in (-1, 1))
    return [side for side in range(32, int(high) + 1, 32) if side >= low]


def count_workers(config: TrainConfig, device: torch.device) -> int:
    """Return how many processes load images; see `TrainConfig.workers`."""
    if config.workers is not None:
        return config.workers
    return min(MOST_WORKERS, count_cores()) if device.type == "cuda" else 0


def _get_share(ranks: Ranks) -> Share:
    return Share(ranks.rank, ranks.count)


def load_datasets(run: Run) -> Datasets:
    """Read the images that a run trains and validates on."""
    config, classes = run.config, len(run.spec.names)
    largest = max(list_sizes(run.img_size, config.multi_scale))
    data = DetectionDataset(run.spec.samples("train"), classes, largest, augment=config.augment, seed=config.seed)
    return data, DetectionDataset(run.spec.samples("val"), classes, run.img_size)


def _save_settings(run: Run) -> None:
    if run.ranks.is_first:
        remove_scraps(run.folder)
        save_text(run.folder / "config.yaml", yaml.safe_dump(format_config(run.config), sort_keys=False))


def _get_removal(last: Checkpoint) -> Removal | None:
    state = last.training.get("removal")
    return None if state is None else parse_removal(state)


def _make_trainee(
    run: Run,
    model: Detector,
    data: DetectionDataset,
    steps: int,
    moments: Moments | None,
    removal: Removal | None,
) -> Trainee:
    config, device = run.config, run.device
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = config.multi_scale == 0  # kernels are tried out once for every size
    counts = np.bincount(np.concatenate([rows[rows[:, 5] == 0, 0] for rows in data.labels]).astype(int))
    teacher = None if config.teacher is None else load_teacher(config.teacher, model.network, config.distill, device)
    return make_trainee(
        model.to(device).to(memory_format=torch.channels_last),
        config,
        steps,
        class_counts=[*counts.tolist(), *[0] * (data.classes - len(counts))],
        teacher=teacher,
        ranks=run.ranks,
        moments=moments,
        removal=removal,
        img_size=run.img_size,
    )


def _begin(run: Run, trainee: Trainee, steps: int, report: Report) -> Progress:
    config, progress = run.config, Progress()
    if config.sparsity == AUTO:
        assert trainee.sparsity is not None
        progress.sparsity = find_sparsity(config, trainee.sparsity, steps)
        assert trainee.silencer is not None
        going = int((~trainee.silencer.make_plan().keep).sum())  # a target that is out of reach shows now
        pull = f"λ = {progress.sparsity:.4g}, " if progress.sparsity else ""
        present = int(make_channel_graph(trainee.model.network).prunable.sum())
        report(f"sparsity: {pull}{going} of {present} channels to zero in {steps} steps")
    elif config.is_sparse:
        progress.sparsity = float(config.sparsity)
    if trainee.zeros is not None:
        report(f"{trainee.zeros.count():,} weights are zero and stay so")
    if run.ranks.is_first:
        (run.folder / "best.pt").unlink(missing_ok=True)
        save_last(run, trainee, progress)
    return progress
