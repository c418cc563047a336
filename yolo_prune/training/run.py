"""A training run from first step to last: epochs, validation, what is kept on disk, and going on after a stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from yolo_prune.config import format_config, parse_config
from yolo_prune.datasets.loader import DetectionDataset, make_loader
from yolo_prune.datasets.spec import DataSpec, measure_fingerprint
from yolo_prune.errors import TrainingError
from yolo_prune.evaluation.evaluate import measure_score_of
from yolo_prune.files import save_text
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint, make_provenance, save_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.model.loss import DetectionLoss
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.sparse import GammaSparsity
from yolo_prune.training.device import make_device
from yolo_prune.training.epoch import EpochResult, Trainee, train_epoch
from yolo_prune.training.optimizer import WeightAverage, make_optimizer
from yolo_prune.training.pictures import save_batch_picture, save_detections_picture
from yolo_prune.training.report import save_results
from yolo_prune.training.settings import TrainConfig
from yolo_prune.training.signals import watch_signals
from yolo_prune.training.start import Start

GAMMA_THRESHOLD = 0.01
"""A channel with a smaller |γ| counts as gone in the report of sparsity."""

Report = Callable[[str], None]


@dataclass
class _Progress:
    """What a run has behind it."""

    epoch: int = 0
    best_map50: float = -1.0
    rows: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Run:
    """A run's fixed parts; `train` walks it from wherever it stands."""

    config: TrainConfig
    spec: DataSpec
    stage: str
    folder: Path
    img_size: int
    provenance: dict[str, Any]


def make_run(config: TrainConfig, spec: DataSpec, start: Start, *, stage: str, folder: Path) -> Run:
    """Fix what a new run is about."""
    provenance = make_provenance(
        stage,
        format_config(config),
        start.parent,
        data={"path": str(spec.source.resolve()), "fingerprint": measure_fingerprint(spec)},
    )
    return Run(config, spec, stage, folder, start.img_size, provenance)


def train(run: Run, model: Detector, resume: Checkpoint | None = None, report: Report = print) -> Path:
    """Train `model` in place and return the path of the run's best checkpoint.

    Nothing is written before the data set is read. After every epoch last.pt holds all that `resume` needs to end in the same bits, and best.pt the averaged weights
    of the best epoch so far by validation AP50; with sparsity, of the last epoch, because earlier ones are less sparse.

    Raises:
        TrainingError: the loss is no longer a number.
        Interrupted: SIGINT or SIGTERM came; last.pt is resumable.
    """
    config = run.config
    device = make_device(config.device)
    model = model.to(device).to(memory_format=torch.channels_last)
    data = DetectionDataset(
        run.spec.samples("train"), len(run.spec.names), run.img_size, augment=config.augment, seed=config.seed
    )
    val = DetectionDataset(run.spec.samples("val"), len(run.spec.names), run.img_size)
    steps_per_epoch = -(-len(data) // config.batch_size)
    steps = steps_per_epoch * config.epochs
    trainee = _make_trainee(model, config, steps)
    progress = _Progress(rows=[])
    if resume is not None:
        progress = _restore(trainee, resume)
    else:
        (run.folder / "best.pt").unlink(missing_ok=True)
        save_text(run.folder / "config.yaml", yaml.safe_dump(format_config(config), sort_keys=False))
        _save_last(run.folder / "last.pt", run, trainee, progress)
    with watch_signals() as stop:
        for epoch in range(progress.epoch, config.epochs):
            if epoch >= round((1 - config.close_mosaic_fraction) * config.epochs):
                data.augment = config.augment.without_mosaic()
            batches = make_loader(data, config.batch_size, shuffle=True, epoch=epoch, workers=config.workers)
            if epoch == 0:
                save_batch_picture(run.folder, data)
            result = train_epoch(
                trainee, batches, config, device=device, first_step=epoch * steps_per_epoch, steps=steps, stop=stop
            )
            _finish_epoch(run, trainee, progress, epoch, result, val, device, report)
            if epoch + 1 < config.epochs:  # after the last one there is nothing left to resume
                stop.check()
    best = run.folder / "best.pt"
    save_detections_picture(
        run.folder, load_checkpoint(best).make_model().to(device).eval(), val, run.spec.names, device
    )
    return best


def resume_run(
    folder: Path, spec_of: Callable[[TrainConfig], DataSpec], changes: dict[str, Any]
) -> tuple[Run, Checkpoint]:
    """Return the run that `folder` holds and the state it stopped in; `changes` may move it to another device.

    Raises:
        TrainingError: there is no last.pt, the run is finished, or the data set is another than the run's.
        CheckpointError: last.pt cannot be read.
        ConfigError: a change is no setting, or out of range.
    """
    last = folder / "last.pt"
    if not last.is_file():
        raise TrainingError(
            "there is nothing to resume", where=last, right="name a run folder that train or finetune left"
        )
    checkpoint = load_checkpoint(last)
    recipe = {**checkpoint.provenance["recipe"], **changes}
    config = parse_config(TrainConfig(), recipe, last)
    if checkpoint.training.get("epoch", config.epochs) >= config.epochs:
        raise TrainingError(
            f"the run's {config.epochs} epochs are done",
            where=last,
            right="start a new run from best.pt with --weights",
        )
    spec = spec_of(config)
    expected = checkpoint.provenance["data"]["fingerprint"]
    if measure_fingerprint(spec) != expected:
        raise TrainingError(
            "the data set has changed since the run began", where=spec.source, right="restore it, or start a new run"
        )
    run = Run(config, spec, checkpoint.provenance["stage"], folder, checkpoint.img_size, checkpoint.provenance)
    return run, checkpoint


def _make_trainee(model: Detector, config: TrainConfig, steps: int) -> Trainee:
    has_gammas = any(layer.batch_normalize for _, layer in model.network.convs)
    return Trainee(
        model,
        make_optimizer(model, config),
        WeightAverage(model, config.ema_fraction * steps),
        DetectionLoss(model.network, config.loss).to(next(model.parameters()).device),
        GammaSparsity(model, make_channel_graph(model.network)) if has_gammas or config.sparsity > 0 else None,
    )


def _finish_epoch(
    run: Run,
    trainee: Trainee,
    progress: _Progress,
    epoch: int,
    result: EpochResult,
    val: DetectionDataset,
    device: torch.device,
    report: Report,
) -> None:
    config, is_last = run.config, epoch + 1 == run.config.epochs
    map50: float | None = None
    if is_last or (epoch + 1) % config.val_interval == 0:
        averaged = Checkpoint(trainee.model.network, trainee.average.state, run.spec.names, run.img_size)
        map50 = measure_score_of(averaged.make_model().eval(), val, device=device, batch_size=config.batch_size).map50
    below, channels = (0, 0) if trainee.sparsity is None else trainee.sparsity.count_below(GAMMA_THRESHOLD)
    progress.epoch = epoch + 1
    progress.rows = [
        *(progress.rows or []),
        {"epoch": epoch + 1, **asdict(result), "val_map50": map50, "channels_below": below, "channels": channels},
    ]
    report(_format_epoch(progress.rows[-1], config))
    is_best = map50 is not None and (is_last if config.sparsity > 0 else map50 >= progress.best_map50)
    if is_best or not (run.folder / "best.pt").exists():
        progress.best_map50 = -1.0 if map50 is None else map50
        metrics = {"epoch": epoch + 1, "val_map50": map50}
        best = Checkpoint(
            trainee.model.network,
            trainee.average.state,
            run.spec.names,
            run.img_size,
            {**run.provenance, "metrics": metrics},
        )
        save_checkpoint(run.folder / "best.pt", best)
    _save_last(run.folder / "last.pt", run, trainee, progress)
    save_results(run.folder, progress.rows, draw=map50 is not None)


def _format_epoch(row: dict[str, Any], config: TrainConfig) -> str:
    line = f"epoch {row['epoch']}/{config.epochs}: loss {row['loss']:.3f} (box {row['box']:.3f}, objectness {row['objectness']:.3f}), "
    line += f"{row['images_per_s']:.0f} images/s"
    if row["val_map50"] is not None:
        line += f", val AP50 {row['val_map50']:.4f}"
    if config.sparsity > 0:
        line += f", {row['channels_below']} of {row['channels']} channels below {GAMMA_THRESHOLD}"
    return line


def _save_last(path: Path, run: Run, trainee: Trainee, progress: _Progress) -> None:
    training = {
        "epoch": progress.epoch,
        "best_map50": progress.best_map50,
        "rows": progress.rows,
        "optimizer": trainee.optimizer.state_dict(),
        "average": trainee.average.state,
        "average_updates": trainee.average.updates,
    }
    save_checkpoint(
        path,
        Checkpoint(
            trainee.model.network, trainee.model.state_dict(), run.spec.names, run.img_size, run.provenance, training
        ),
    )


def _restore(trainee: Trainee, checkpoint: Checkpoint) -> _Progress:
    state = checkpoint.training
    trainee.model.load_state_dict(dict(checkpoint.state))
    trainee.optimizer.load_state_dict(state["optimizer"])
    for name, tensor in state["average"].items():
        trainee.average.state[name].copy_(tensor)
    trainee.average.updates = state["average_updates"]
    return _Progress(state["epoch"], state["best_map50"], list(state["rows"]))
