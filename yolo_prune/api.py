"""The Python API: each command as a function, and checkpoints as predictors.

    import yolo_prune as yp

    base = yp.train(data="hands/data.yaml", cfg="yolov3-tiny-hand", epochs=10)
    slim = yp.finetune(yp.prune(base, ratio=0.8))
    detections = slim("photo.jpg")

Settings are those of the commands (docs/settings.md), by keyword or as a config object. What a function makes is below
runs/, as with the commands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from yolo_prune.commands.run_folders import find_in_folder
from yolo_prune.darknet.network import Network
from yolo_prune.datasets.class_names import find_classes
from yolo_prune.datasets.live import open_video
from yolo_prune.datasets.sources import make_video
from yolo_prune.datasets.video import Frame
from yolo_prune.engines.exported.model import ExportedModel
from yolo_prune.errors import CheckpointError
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.evaluation.detections import Detections
from yolo_prune.evaluation.models import load_model, make_predictor
from yolo_prune.evaluation.predictor import Predictor
from yolo_prune.image_size import AnySize
from yolo_prune.model.device import make_device
from yolo_prune.overlay import overlay_call
from yolo_prune.scraps import make_temporary_folder
from yolo_prune.training.config import TrainConfig

if TYPE_CHECKING:
    from yolo_prune.commands.bench import BenchResult
    from yolo_prune.commands.config import PruneConfig
    from yolo_prune.commands.evaluate import EvaluateResult
    from yolo_prune.commands.measure_config import BenchConfig, EvaluateConfig


class LoadedDetector(Predictor):
    """A predictor from a checkpoint or an exported file, which it remembers."""

    def __init__(
        self,
        path: Path,
        config: DetectConfig,
        device: str,
        img_size: AnySize | str | None,
        classes: Sequence[str | int] = (),
    ) -> None:
        model = load_model(path).with_img_size(img_size)
        self.path = path
        """The file."""
        self.provenance = model.provenance
        """How a checkpoint was made, and what it scored then."""
        self._network = None if isinstance(model, ExportedModel) else model.network
        only = find_classes([str(one) for one in classes], model.names)
        made = make_predictor(model, config, make_device(device), "folded")
        super().__init__(made.engine, model.img_size, model.names, config, made.device, only)

    def stream(self, source: Path | str | int, *, stride: int = 1) -> Iterator[tuple[Frame, Detections]]:
        """Yield the frames of a video file, a camera or a stream with what is found in each, boxes in pixels.

        Of a camera or a stream it is always the newest frame; those that come meanwhile are dropped.

        Args:
            source: a path, the number of a camera, or a URL.
            stride: step between the frames that are taken.

        Raises:
            DatasetError: it is no video, holds no frame, or breaks off.
        """
        with make_temporary_folder() as scratch, closing(open_video(make_video(source, scratch), stride)) as video:
            for frame in video.frames():
                yield frame, self(frame.pixels)

    @property
    def network(self) -> Network:
        """The network of a checkpoint as data.

        Raises:
            CheckpointError: the file is an exported one.
        """
        if self._network is None:
            right = "load the checkpoint that it was exported from"
            raise CheckpointError("holds no network as data", where=self.path, right=right)
        return self._network


Source: TypeAlias = LoadedDetector | Path | str
"""A checkpoint, loaded or as a path."""


def load(
    path: Path | str,
    *,
    confidence: float = 0.25,
    nms_iou: float = 0.5,
    agnostic_nms: bool = False,
    device: str = "auto",
    img_size: AnySize | str | None = None,
    classes: Sequence[str | int] = (),
) -> LoadedDetector:
    """Load a checkpoint, or an exported file, as a function from images to detections.

    Args:
        path: a .pt file of `train`, `prune`, `finetune`, `iterate` or `import`, a file of `export` that runs by itself, or
            the folder of a run.
        confidence: least score of a detection.
        nms_iou: of two boxes of one class that overlap by more, the lower-scored is dropped.
        agnostic_nms: let boxes of all classes suppress each other.
        device: auto, cpu, cuda or cuda:N.
        img_size: size of the input: the side of a square in pixels, or "640x384"; the checkpoint's own by default.
        classes: only these, by name or number; all by default.

    Raises:
        CheckpointError: it is no checkpoint.
        ConfigError: a setting is out of range, or the device is not there.
    """
    config = DetectConfig(confidence=confidence, nms_iou=nms_iou, agnostic_nms=agnostic_nms)
    return LoadedDetector(find_in_folder(Path(path)), config, device, img_size, classes)


def train(config: TrainConfig | None = None, **settings: Any) -> LoadedDetector:
    """Train a detector, as `yoloprune train`, and return its best checkpoint.

    Raises:
        YoloPruneError: a setting, the data set or the network is not what it should be, or training failed.
    """
    from yolo_prune.commands.runs import run_train

    return load(run_train(overlay_call(config or TrainConfig(), settings)).checkpoint)


def prune(source: Source, config: PruneConfig | None = None, **settings: Any) -> LoadedDetector:
    """Prune a checkpoint, as `yoloprune prune`, and return the new one; `source` stays as it is.

    By default it trains while it prunes, on the data set of the checkpoint; `one_shot=True` prunes at once.

    Raises:
        YoloPruneError: a setting is not what it should be, or a target is out of reach.
    """
    from yolo_prune.commands.runs import make_prune_defaults, run_prune

    path = _get_path(source)
    return load(run_prune(path, overlay_call(config or make_prune_defaults(path), settings)).checkpoint)


def finetune(source: Source, config: TrainConfig | None = None, **settings: Any) -> LoadedDetector:
    """Train a pruned checkpoint further, as `yoloprune finetune`, and return the best one.

    Raises:
        YoloPruneError: a setting or the data set is not what it should be, or training failed.
    """
    from yolo_prune.commands.runs import make_finetune_defaults, run_train

    path = _get_path(source)
    chosen = overlay_call(config or make_finetune_defaults(path), {"weights": path, **settings})
    return load(run_train(chosen, "finetune").checkpoint)


def evaluate(
    sources: Source | Sequence[Source], config: EvaluateConfig | None = None, **settings: Any
) -> EvaluateResult:
    """Score checkpoints, as `yoloprune evaluate`; several are compared with the first.

    Raises:
        YoloPruneError: a setting or the data set is not what it should be.
    """
    from yolo_prune.commands.evaluate import evaluate_models
    from yolo_prune.commands.measure_config import EvaluateConfig

    return evaluate_models(_get_paths(sources), (), overlay_call(config or EvaluateConfig(), settings))


def bench(sources: Source | Sequence[Source], config: BenchConfig | None = None, **settings: Any) -> BenchResult:
    """Measure parameters, size, MACs, latency and mAP of checkpoints, as `yoloprune bench`.

    Raises:
        YoloPruneError: a setting or the data set is not what it should be, or the engine cannot be built.
    """
    from yolo_prune.commands.bench import bench as run
    from yolo_prune.commands.bench import name_rows
    from yolo_prune.commands.measure_config import BenchConfig

    return run(name_rows(_get_paths(sources)), overlay_call(config or BenchConfig(), settings))


def _get_path(source: Source) -> Path:
    return source.path if isinstance(source, LoadedDetector) else find_in_folder(Path(source))


def _get_paths(sources: Source | Sequence[Source]) -> list[Path]:
    if isinstance(sources, LoadedDetector | Path | str):
        return [_get_path(sources)]
    return [_get_path(source) for source in sources]
