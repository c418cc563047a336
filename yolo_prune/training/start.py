"""Where a run starts from: a fresh network, Darknet weights, or a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cfg import load_cfg
from yolo_prune.darknet.layers import Network, infer_shapes, resize
from yolo_prune.errors import ConfigError
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.model.weights import load_weights
from yolo_prune.training.settings import TrainConfig

DEFAULT_WIDTH = 0.25
DEFAULT_IMG_SIZE = 192
"""Without a cfg or a checkpoint: the YOLOv3 that a CPU trains in minutes."""


@dataclass(frozen=True)
class Start:
    """A model to train, the side of its input in pixels, and the checkpoint it comes from, if any."""

    model: Detector
    img_size: int
    parent: Path | None


def make_start(config: TrainConfig, classes: int, report: Callable[[str], None]) -> Start:
    """Make the model that a run begins with.

    A checkpoint keeps its own network. A cfg, or the default quarter-width YOLOv3, gives a fresh one with its anchors
    scaled to `img_size`, filled from Darknet weights where they are named.

    Raises:
        ConfigError: a cfg beside a checkpoint, or another number of classes than the data set's.
        CfgError, WeightsError, CheckpointError: a file is not what it should be.
    """
    torch.manual_seed(config.seed)
    if config.weights is not None and config.weights.suffix == ".pt":
        if config.cfg is not None:
            raise ConfigError(
                "a checkpoint brings its own network",
                where="cfg",
                right=f"leave it out, or start from other weights than {config.weights}",
            )
        checkpoint = load_checkpoint(config.weights)
        _check_classes(checkpoint.network, classes, config.weights)
        img_size = config.img_size or checkpoint.img_size
        infer_shapes(checkpoint.network, img_size, img_size)
        model = checkpoint.make_model()
        model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
        return Start(model.requires_grad_(True), img_size, config.weights)
    network = (
        make_network("yolov3", classes, DEFAULT_WIDTH, DEFAULT_IMG_SIZE) if config.cfg is None else load_cfg(config.cfg)
    )
    _check_classes(network, classes, config.cfg)
    network = resize(network, config.img_size or network.width)
    model = Detector(network)
    if config.weights is not None:
        report(f"{config.weights}: {load_weights(model, config.weights).format()}")
    return Start(model, network.width, None)


def _check_classes(network: Network, classes: int, where: Path | None) -> None:
    if network.classes != classes:
        right = "use a network and a data set with the same classes"
        raise ConfigError(f"has {network.classes} classes, the data set {classes}", where=where, right=right)
