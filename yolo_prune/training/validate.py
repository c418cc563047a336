"""Validate during training: the averaged weights and, with γ sparsity, the network that pruning would leave now."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from yolo_prune.arrays import Float64Array
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.layers import Network
from yolo_prune.datasets.loader import DetectionDataset
from yolo_prune.evaluation.evaluate import predict_with, score_found
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.config import PlanConfig
from yolo_prune.pruning.constants import carry_constants
from yolo_prune.pruning.plan import make_threshold_plan
from yolo_prune.pruning.surgery import rebuild
from yolo_prune.training.distributed import Processes, broadcast


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
) -> float:
    """Return a model's AP50 on a data set, in all processes; each process runs the model on its share of the images."""
    indices = range(processes.rank, len(data), processes.count)
    found = predict_with(model, data, indices, device=device, batch_size=batch_size, rectangular=rectangular)
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


def measure_slimness(slim: Detector, img_size: int, map50: float | None) -> Slimness:
    """Return a slim network's parameters and its MACs at an input of `img_size` pixels, together with its AP50."""
    cost = measure_cost(slim.network, img_size)
    return Slimness(cost.params, cost.macs, map50)
