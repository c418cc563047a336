"""The teacher: a trained detector whose outputs a run learns to reproduce."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from yolo_prune.darknet.network import Network
from yolo_prune.errors import ConfigError
from yolo_prune.model.checkpoint import load_usable
from yolo_prune.model.config import DistillConfig
from yolo_prune.model.detector import Detector, Heads
from yolo_prune.model.distillation import measure_attention_gap, measure_distillation
from yolo_prune.model.fold import fold_batchnorm


class FeatureHook:
    """Collects the inputs of a network's head convolutions; pass `visit` to `Detector.forward`."""

    def __init__(self, network: Network) -> None:
        self._head_convs = network.head_convs
        self.maps: list[Tensor] = []

    def visit(self, index: int, inputs: list[Tensor], output: Tensor) -> None:
        """Store the input of a head convolution."""
        if index in self._head_convs:
            self.maps.append(inputs[0])


class Teacher:
    """A detector in evaluation mode that another detector's outputs are compared with."""

    def __init__(self, model: Detector, config: DistillConfig) -> None:
        self.model, self.config = model.eval().requires_grad_(False), config
        self.yolos = tuple(yolo for _, yolo in model.network.heads)

    def measure(self, images: Tensor, heads: Heads, maps: list[Tensor]) -> Tensor:
        """Return the weighted, summed difference of a network's outputs `heads` from the teacher's, a scalar.

        Both are outputs for `images` (B, 3, H, W) in 0 … 1. `maps` are the inputs of the trained network's head
        convolutions; they are compared too if `config.features` is above 0.
        """
        hook = FeatureHook(self.model.network)
        with torch.no_grad():
            outputs = self.model(images, hook.visit)
        difference = self.config.weight * measure_distillation(heads, outputs, self.yolos)
        if self.config.features > 0:
            difference = difference + self.config.features * measure_attention_gap(maps, hook.maps)
        return difference


def load_teacher(path: Path, network: Network, config: DistillConfig, device: torch.device) -> Teacher:
    """Load a teacher for a network.

    Raises:
        CheckpointError: the file is not a checkpoint.
        ConfigError: its heads have other anchors, classes or strides than the network's.
    """
    model = load_usable(path).make_model()
    own, other = (_describe_heads(one) for one in (network, model.network))
    if own != other:
        right = "name a checkpoint that the network was pruned from, or one of the same cfg and input size"
        raise ConfigError(f"{path} has other heads than the network to train", where="teacher", right=right)
    return Teacher(fold_batchnorm(model).to(device).to(memory_format=torch.channels_last), config)


def _describe_heads(network: Network) -> list[tuple[object, ...]]:
    return [
        (yolo.own_anchors, yolo.classes, yolo.scale_x_y, yolo.new_coords, network.height / network.shapes[index].height)
        for index, yolo in network.heads
    ]
