"""What happens after every epoch: validation, a row of results, and checkpoints."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolo_prune.arrays import Float64Array
from yolo_prune.console import get_columns
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.network import Network
from yolo_prune.datasets.loader import DetectionDataset
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.evaluation.evaluate import predict_with, score_found
from yolo_prune.evaluation.models import make_predictor_of
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.config import PlanConfig
from yolo_prune.pruning.plans.plan import make_threshold_plan
from yolo_prune.pruning.sparsity.gamma_sparsity import GAMMA_THRESHOLD, GammaSparsity
from yolo_prune.pruning.surgery.constants import carry_constants
from yolo_prune.pruning.surgery.rebuild import rebuild
from yolo_prune.text_tables import pluralize
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.distributed import Processes, broadcast
from yolo_prune.training.epoch import PARTS, EpochStats
from yolo_prune.training.epoch_line import format_epoch
from yolo_prune.training.report import count_gammas, draw_gammas, save_results
from yolo_prune.training.resume import Progress, Report, Run, save_best, save_last
from yolo_prune.training.schedule import StepRates
from yolo_prune.training.state import TrainingState

JUDGED = 3
"""The best epoch has the highest AP50 averaged over so many validations, of which its own is the last. A single
validation may score high by chance while the learning rate is still high."""


def finish_epoch(
    run: Run, training: TrainingState, progress: Progress, rates: StepRates, val: DetectionDataset, report: Report
) -> None:
    """Validate, report and save after the epoch in `progress.stats`; `rates` are those of its last step.

    After the last epoch last.pt is not written: that ends the run, when everything else is done.
    """
    config, number = run.config, progress.epoch + 1
    is_last = number == config.epochs
    is_validated = config.val_interval > 0 and (is_last or number % config.val_interval == 0)
    averaged = make_averaged(training.model.network, training.average.state, run.processes)
    map50 = _score(run, averaged, val) if is_validated else None
    gammas = _measure_gammas(averaged, training)
    row: dict[str, Any] = {"epoch": number, **_format_stats(config, progress.stats)}
    row |= {"learning_rate": rates.learning_rate, "images_per_s": progress.stats.images_per_s, "val_map50": map50}
    row |= {"channels_below": int((gammas < GAMMA_THRESHOLD).sum()), "channels": int(np.isfinite(gammas).sum())}
    if config.remove:
        left = measure_slimness(averaged, map50)
        row |= {"params": left.params, "macs": left.macs}
    elif config.is_sparse:
        slim = make_slim(averaged, gammas, GAMMA_THRESHOLD)
        left = measure_slimness(slim, _score(run, slim, val) if is_validated else None)
        row |= {"pruned_params": left.params, "pruned_macs": left.macs, "pruned_map50": left.map50}
    if config.is_sparse:
        progress.gammas = [*progress.gammas, count_gammas(gammas)]
    progress.epoch, progress.rows, progress.stats = number, [*progress.rows, row], EpochStats()
    is_best = _judge(config, progress, map50, is_last)
    if run.processes.is_first:
        report(format_epoch(row, config.epochs, get_columns(sys.stderr)))
        if is_best or config.val_interval == 0 or not (run.folder / "best.pt").exists():
            save_best(run, training, {"epoch": number, "val_map50": map50})
        if not progress.is_done:
            save_last(run, training, progress)
        save_results(run.folder, progress.rows, draw=is_validated)
        if config.is_sparse and is_validated:
            draw_gammas(run.folder / "gammas.png", progress.gammas, GAMMA_THRESHOLD)
        if progress.is_done and not is_last:
            reason = (
                f"no better AP50 in {pluralize(progress.waited, 'validation')}"
                if progress.waited
                else f"AP50 {config.goal} is reached"
            )
            report(f"{reason}: done after epoch {number}")


def _judge(config: TrainConfig, progress: Progress, map50: float | None, is_last: bool) -> bool:
    """Record a validation in the progress, and return whether to save the epoch as best.pt."""
    progress.is_done = is_last
    if map50 is None:
        return False
    scores = [row["val_map50"] for row in progress.rows if row["val_map50"] is not None][-JUDGED:]
    score = sum(scores) / len(scores)
    if math.isnan(score):  # there is no object to find: the newest weights are as good as any
        return True
    is_best = is_last if config.is_sparse else score >= progress.best_map50
    progress.waited = 0 if score > progress.best_map50 else progress.waited + 1
    progress.is_done |= 0 < config.patience <= progress.waited or (config.goal is not None and map50 >= config.goal)
    if is_best:
        progress.best_map50 = score
    return is_best


def _score(run: Run, model: Detector, val: DetectionDataset) -> float:
    return measure_map50(
        model.to(run.device),
        val,
        run.processes,
        device=run.device,
        batch_size=run.config.batch_size,
        rectangular=run.config.rectangular,
        detection=run.config.detection,
    )


def _measure_gammas(averaged: Detector, training: TrainingState) -> Float64Array:
    if training.sparsity is None:
        return np.full(0, np.inf)
    return GammaSparsity(averaged, make_channel_graph(averaged.network)).measure()


def _format_stats(config: TrainConfig, stats: EpochStats) -> dict[str, float]:
    means = stats.means
    return {name: means[name] for name in PARTS if name != "teacher" or config.teacher is not None}


@dataclass(frozen=True)
class Slimness:
    """The size and AP50 of a network after its zeroed, or nearly zeroed, channels are removed."""

    params: int
    macs: int
    map50: float | None
    """None if the network was not validated."""


def make_averaged(network: Network, state: dict[str, Tensor], processes: Processes) -> Detector:
    """Return a detector in evaluation mode that shares the averaged weights; all processes get those of the first."""
    broadcast(list(state.values()), processes)
    with torch.device("meta"):
        model = Detector(network)
    model.load_state_dict(state, assign=True)
    return model.eval()


def measure_map50(
    model: Detector,
    data: DetectionDataset,
    processes: Processes,
    *,
    device: torch.device,
    batch_size: int,
    rectangular: bool = False,
    detection: DetectConfig | None = None,
) -> float:
    """Return a model's AP50 on a data set, in all processes; each process runs the model on its share of the images."""
    indices = range(processes.rank, len(data), processes.count)
    predictor = make_predictor_of(model, device=device, config=detection)
    found = predict_with(predictor, data, indices, batch_size=batch_size, rectangular=rectangular)
    parts = processes.gather(found)
    score = (
        score_found({index: one for part in parts for index, one in part.items()}, data) if processes.is_first else None
    )
    return processes.share(None if score is None else score.map50)  # type: ignore[return-value]  # the first has one


def make_slim(model: Detector, gammas: Float64Array, threshold: float) -> Detector:
    """Return the model without the channels whose γ (N,) is below the threshold, their constant outputs folded in."""
    graph = make_channel_graph(model.network)
    plan = make_threshold_plan(graph, gammas, threshold, PlanConfig())
    return rebuild(model, plan, carry_constants(model, plan)).eval()


def measure_slimness(slim: Detector, map50: float | None) -> Slimness:
    """Return a slim network's parameters and MACs, together with its AP50."""
    cost = measure_cost(slim.network)
    return Slimness(cost.params, cost.macs, map50)
