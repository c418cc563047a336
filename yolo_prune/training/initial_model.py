"""The model that a run starts from: a new network, Darknet weights, or a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from yolo_prune.console import warn
from yolo_prune.darknet.anchors import get_anchors, replace_anchors, resize
from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cfg import load_cfg
from yolo_prune.darknet.network import Network, change_classes
from yolo_prune.datasets.anchors import find_anchors, format_anchors, load_sides, measure_fit, round_anchors
from yolo_prune.datasets.spec import Sample
from yolo_prune.errors import ConfigError, WeightsError
from yolo_prune.model.checkpoint import is_checkpoint, load_usable
from yolo_prune.model.config import LossConfig
from yolo_prune.model.detector import Detector
from yolo_prune.model.state_dicts import SUFFIXES, fill_weights
from yolo_prune.text_tables import pluralize
from yolo_prune.training.config import TrainConfig

DEFAULT_WIDTH = 0.25
DEFAULT_IMG_SIZE = 192
"""Width and input size of the network without a cfg or a checkpoint: a YOLOv3 that a CPU trains in minutes."""
CHECKED_IMAGES = 2000
"""Number of training images whose boxes are compared with a cfg's anchors; reading them takes half a second."""
LEAST_WITHIN_RATIO = 0.9
"""A run warns if the cfg's anchors fit a smaller share of the boxes within `LossConfig.anchor_ratio`."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Start:
    """A model to train, and the checkpoint that it was loaded from, if any."""

    model: Detector
    parent: Path | None
    keeps_zeros: bool
    """Whether weights that are zero stay zero."""


def check_files(config: TrainConfig) -> None:
    """Check what a run starts from, before its data set is drawn or read.

    Raises:
        ConfigError: a cfg is given with a checkpoint.
        CfgError, WeightsError, CheckpointError: a file is missing, or invalid.
    """
    weights = config.weights
    is_own = weights is not None and is_checkpoint(weights)
    _check_one_network(config, is_own)
    if weights is not None and (is_own or (config.cfg is None and weights.suffix in SUFFIXES)):
        load_usable(weights).with_img_size(config.img_size)
    elif weights is not None and not weights.is_file():
        raise WeightsError(
            "there is no such file", where=weights, right="name Darknet weights, a state dict or a checkpoint"
        )
    if config.cfg is not None:
        network = load_cfg(config.cfg)
        resize(network, config.img_size or network.img_size)
    if config.teacher is not None:
        load_usable(config.teacher)


def _check_one_network(config: TrainConfig, is_own: bool) -> None:
    if is_own and config.cfg is not None:
        raise ConfigError(
            "a checkpoint brings its own network",
            where="cfg",
            right=f"leave it out, or start from other weights than {config.weights}",
        )


def make_start(config: TrainConfig, classes: int, report: Report, samples: Sequence[Sample] = ()) -> Start:
    """Make the model that a run starts from.

    A checkpoint keeps its own network, but for new heads where the data set has another number of classes. A cfg, or the
    default quarter-width YOLOv3, gives a new network. Its anchors are scaled to `img_size`, or with `auto_anchors` found in
    the training images `samples`. If Darknet weights are given, the new network is filled from them.

    Raises:
        ConfigError: a cfg is given with a checkpoint, or the cfg's number of classes is not the data set's.
        DatasetError: a label or an image cannot be read, or there are too few boxes for `auto_anchors`.
        CfgError, WeightsError, CheckpointError: a file is invalid.
    """
    torch.manual_seed(config.seed)
    is_own = config.weights is not None and is_checkpoint(config.weights)
    _check_one_network(config, is_own)
    if config.weights is not None and (is_own or (config.cfg is None and config.weights.suffix in SUFFIXES)):
        checkpoint = load_usable(config.weights)
        model = checkpoint.with_img_size(config.img_size).make_model()
        if model.network.classes != classes:
            model = _renew_heads(model, classes)
            report(f"{config.weights}: {_explain_heads(checkpoint.network.classes, model.network)}")
        model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
        keeps_zeros = checkpoint.keeps_zeros if config.keep_zeros is None else config.keep_zeros
        return Start(model.requires_grad_(True), config.weights, keeps_zeros)
    network = (
        make_network("yolov3", classes, DEFAULT_WIDTH, DEFAULT_IMG_SIZE) if config.cfg is None else load_cfg(config.cfg)
    )
    _check_classes(network, classes, config.cfg)
    network = resize(network, config.img_size or network.img_size)
    if config.auto_anchors:
        network = _fit_anchors(network, config, classes, report, samples)
    else:
        _check_anchors(network, config, classes, samples)
    model = Detector(network)
    if config.weights is not None:
        report(f"{config.weights}: {fill_weights(model, config.weights, config.prefix)}")
    return Start(model, None, bool(config.keep_zeros))


def _explain_heads(before: int, network: Network) -> str:
    numbers = ", ".join(str(index) for index, _ in network.heads)
    heads = f"the heads, layers {numbers}, are new" if len(network.heads) > 1 else f"the head, layer {numbers}, is new"
    return f"trained on {pluralize(before, 'class', 'classes')}, the data set has {network.classes}: {heads}"


def _renew_heads(model: Detector, classes: int) -> Detector:
    """Return the model with heads for so many classes, their convolutions new, and all other layers its own."""
    network = change_classes(model.network, classes)
    made = Detector(network)
    new = tuple(f"layers.{index}." for index in network.head_convs)
    made.load_state_dict(
        {**made.state_dict(), **{name: value for name, value in model.state_dict().items() if not name.startswith(new)}}
    )
    return made


def _fit_anchors(
    network: Network, config: TrainConfig, classes: int, report: Report, samples: Sequence[Sample]
) -> Network:
    old, ratio = np.array(get_anchors(network)), config.loss.anchor_ratio
    sides = load_sides(samples, classes, network.img_size)
    exact = find_anchors(sides, len(old), config.seed, where=f"{config.data}: train", report=report)
    new = round_anchors(exact)
    before, now = (measure_fit(sides, anchors, ratio) for anchors in (old, new))
    report(
        f"anchors of {now.boxes:,} training boxes at {network.img_size} px: {format_anchors(new)}; recall {now.recall_50:.3f} "
        f"at IoU 0.5 instead of {before.recall_50:.3f}, mean IoU {now.mean_iou:.3f} instead of {before.mean_iou:.3f}"
    )
    return replace_anchors(network, tuple((width, height) for width, height in new.tolist()))


def _check_anchors(network: Network, config: TrainConfig, classes: int, samples: Sequence[Sample]) -> None:
    ratio = max(
        config.loss.anchor_ratio, LossConfig().anchor_ratio
    )  # with a stricter one the best anchor is still positive
    count = min(len(samples), CHECKED_IMAGES)
    sides = load_sides([samples[number * len(samples) // count] for number in range(count)], classes, network.img_size)
    if len(sides):
        fit = measure_fit(sides, np.array(get_anchors(network)), ratio)
        if fit.within_ratio < LEAST_WITHIN_RATIO:
            warn(
                f"the network's anchors suit few boxes: {fit.within_ratio:.0%} of the training boxes are within a factor of "
                f"{ratio:g} of one, recall at IoU 0.5 is {fit.recall_50:.3f}; --auto-anchors finds better ones"
            )


def _check_classes(network: Network, classes: int, where: Path | None) -> None:
    if network.classes != classes:
        right = "use a network and a data set with the same classes"
        raise ConfigError(f"has {network.classes} classes, the data set {classes}", where=where, right=right)
