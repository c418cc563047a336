"""Make YOLOv3 detectors small and fast: train, prune channels, finetune, bench.

    import yolo_prune as yp

    detector = yp.load("runs/finetune/best.pt")
    detections = detector("photo.jpg")

`import yolo_prune` imports nothing heavy; each name is imported when it is first used. docs/python.md has an example of each.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolo_prune.api import LoadedDetector, bench, evaluate, finetune, load, prune, train
    from yolo_prune.commands.config import PruneConfig
    from yolo_prune.commands.measure_config import BenchConfig, EvaluateConfig
    from yolo_prune.commands.pruning.iterate_config import IterateConfig
    from yolo_prune.darknet.cfg import load_cfg
    from yolo_prune.darknet.network import Network
    from yolo_prune.datasets.video import Frame
    from yolo_prune.errors import YoloPruneError
    from yolo_prune.evaluation.config import DetectConfig
    from yolo_prune.evaluation.detections import Detections
    from yolo_prune.evaluation.predictor import Predictor
    from yolo_prune.pruning.channels import ChannelGraph, make_channel_graph
    from yolo_prune.training.config import TrainConfig

from yolo_prune.image_size import MOST_PIXELS
from yolo_prune.version import __version__

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MOST_PIXELS))  # OpenCV 4 reads it when it is imported

__all__ = [
    "BenchConfig",
    "ChannelGraph",
    "DetectConfig",
    "Detections",
    "EvaluateConfig",
    "Frame",
    "IterateConfig",
    "LoadedDetector",
    "Network",
    "Predictor",
    "PruneConfig",
    "TrainConfig",
    "YoloPruneError",
    "__version__",
    "bench",
    "evaluate",
    "finetune",
    "load",
    "load_cfg",
    "make_channel_graph",
    "prune",
    "train",
]

_HOMES = {
    "yolo_prune.api": ("LoadedDetector", "bench", "evaluate", "finetune", "load", "prune", "train"),
    "yolo_prune.commands.config": ("PruneConfig",),
    "yolo_prune.commands.measure_config": ("BenchConfig", "EvaluateConfig"),
    "yolo_prune.commands.pruning.iterate_config": ("IterateConfig",),
    "yolo_prune.darknet.cfg": ("load_cfg",),
    "yolo_prune.darknet.network": ("Network",),
    "yolo_prune.datasets.video": ("Frame",),
    "yolo_prune.errors": ("YoloPruneError",),
    "yolo_prune.evaluation.config": ("DetectConfig",),
    "yolo_prune.evaluation.detections": ("Detections",),
    "yolo_prune.evaluation.predictor": ("Predictor",),
    "yolo_prune.pruning.channels": ("ChannelGraph", "make_channel_graph"),
    "yolo_prune.training.config": ("TrainConfig",),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'yolo_prune' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
