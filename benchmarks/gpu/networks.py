"""The networks that are timed: the case study's original, its published pruned one, and ours at a twentieth of the parameters."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.layers import Conv, Layer
from yolo_prune.darknet.network import Network, change_layers
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.config import PlanConfig, ScoreConfig, WeightConfig
from yolo_prune.pruning.plans.plan import make_cost_budgets, make_plan
from yolo_prune.pruning.plans.weight_plan import make_weight_plan
from yolo_prune.pruning.scores.importance import score_channels
from yolo_prune.pruning.surgery.rebuild import rebuild, zero_weights

RESIDUALS = (
    (64, (25,)),
    (128, (25, 39)),
    (256, (27, 39, 45, 49, 38, 46, 49, 51)),
    (512, (38, 34, 42, 56, 47, 38, 45, 30)),
    (1024, (48, 41, 31, 22)),
)
"""Per stage of the published network: the filters that its shortcuts tie, left alone, and those of each block's 1×1."""
HEADS = ((50, 52, 50, 47, 54, 130, 18), (256, 47, 32, 38, 68, 64, 107, 18), (128, 55, 38, 24, 41, 46, 96, 18))
"""Per head: its convolutions, of which the 256 and the 128 before the upsamplings were left alone."""
PARAMS_LEFT, MACS_LEFT = 0.05, 0.10
"""Our plan's targets."""
TINY_LEFT = 0.3
"""The same for the small network of a rehearsal, whose groups keep their least widths."""


def make_published_network() -> Network:
    """Return YOLOv3 with one class and the filters of the published pruned hand detector.

    Source: Lam1360/YOLOv3-model-pruning, config/prune_yolov3-hand.cfg.
    """
    counts = [19]
    for tied, inner in RESIDUALS:
        counts += [tied, *(count for block in inner for count in (block, tied))]
    counts += [count for head in HEADS for count in head]
    network = make_network("yolov3")
    filters = dict(zip((index for index, _ in network.convs), counts, strict=True))

    def slim(index: int, layer: Layer) -> Layer:
        return replace(layer, filters=filters[index]) if isinstance(layer, Conv) else layer

    return change_layers(network, slim)


def make_models(width: float, img_size: int, is_tiny: bool) -> dict[str, Detector]:
    """Return the networks with random weights, by name; the published one only at full width."""
    original = make_detector(make_network("yolov3", width=width, img_size=img_size))
    models = {"original": original}
    if not is_tiny:
        models["published"] = make_detector(make_published_network())
    models["ours"] = prune_to(original, *((TINY_LEFT,) * 2 if is_tiny else (PARAMS_LEFT, MACS_LEFT)))
    models["original 2:4"] = zero_weights(original, make_weight_plan(original, WeightConfig("l1", pattern="2:4")))
    return models


def prune_to(model: Detector, params: float, macs: float) -> Detector:
    """Return the network without its channels of least L2 norm, at most so large a share of parameters and MACs left."""
    graph = make_channel_graph(model.network)
    config = PlanConfig(
        ratio=0.0, target_params=params, target_macs=macs, round_to=8 if model.network.width > 64 else 1
    )
    scores = score_channels(model, graph, ScoreConfig(criterion="l2", normalize="mean"))
    budgets = make_cost_budgets(config, model.network, graph, measure_cost(model.network))
    return rebuild(model, make_plan(graph, scores, config, budgets)).eval()


@torch.no_grad()
def make_detector(network: Network) -> Detector:
    """Return a detector of random weights whose batch norm does something, the same one each time, in eval mode."""
    torch.manual_seed(0)
    model = Detector(network)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.3)
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def draw_images(batch: int, channels: int, side: int, device: torch.device) -> Tensor:
    """Return random images (B, C, side, side) in 0 … 1, channels last, the same ones each time."""
    images = torch.rand(batch, channels, side, side, generator=torch.Generator().manual_seed(0))
    return images.to(device, memory_format=torch.channels_last)
