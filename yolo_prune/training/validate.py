"""Validation while training: the averaged weights, and with sparsity what a prune now would leave of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.layers import Network
from yolo_prune.datasets.loader import DetectionDataset
from yolo_prune.evaluation.evaluate import predict_with, score_found
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.config import PlanConfig
from yolo_prune.pruning.constants import carry_constants
from yolo_prune.pruning.plan import FloatArray, make_threshold_plan
from yolo_prune.pruning.surgery import rebuild
from yolo_prune.training.distributed import Processes, broadcast


@dataclass(frozen=True)
class Slimness:
    """What would be left if every channel near zero were pruned now."""

    params: int
    macs: int
    map50: float | None
    """None where nothing was scored."""


def make_averaged(network: Network, state: dict[str, Tensor], processes: Processes) -> Detector:
    """Return a detector in evaluation mode that shares the averaged weights; every process gets the first one's."""
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
) -> float:
    """Score a model on a data set, every process on its share of the images, and return AP50 to all of them."""
    indices = range(processes.rank, len(data), processes.count)
    found = predict_with(model, data, indices, device=device, batch_size=batch_size, rectangular=rectangular)
    parts = processes.gather(found)
    score = (
        score_found({index: one for part in parts for index, one in part.items()}, data) if processes.is_first else None
    )
    return processes.share(None if score is None else score.map50)  # type: ignore[return-value]  # the first one's is a number


def make_slim(model: Detector, gammas: FloatArray, threshold: float) -> Detector:
    """Return what a prune of all channels with a γ (N,) below the threshold would leave, constants taken up."""
    graph = make_channel_graph(model.network)
    plan = make_threshold_plan(graph, gammas, threshold, PlanConfig())
    return rebuild(model, plan, carry_constants(model, plan)).eval()


def measure_slimness(slim: Detector, img_size: int, map50: float | None) -> Slimness:
    """Return the cost of a slim network at an input of `img_size` pixels, with its score."""
    cost = measure_cost(slim.network, img_size)
    return Slimness(cost.params, cost.macs, map50)
