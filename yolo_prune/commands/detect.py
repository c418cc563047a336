"""`detect`: detect objects in images; write annotated copies of the images, and COCO results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from yolo_prune.commands.measure_config import DetectRunConfig
from yolo_prune.commands.run_folders import make_run_folder
from yolo_prune.datasets.images import read_image
from yolo_prune.datasets.spec import find_images
from yolo_prune.engines.exported.model import load_exported
from yolo_prune.errors import DatasetError
from yolo_prune.evaluation.detections import Detections
from yolo_prune.evaluation.models import Model, load_model, make_predictor
from yolo_prune.evaluation.predictor import Predictor
from yolo_prune.evaluation.previews import draw_detections, save_image
from yolo_prune.evaluation.results import format_results
from yolo_prune.export.writers import ENGINE_SUFFIXES, describe, write_model
from yolo_prune.files import save_json
from yolo_prune.model.checkpoint import Checkpoint
from yolo_prune.model.device import make_device

CUDA_BATCH = 16


@dataclass(frozen=True)
class DetectResult:
    """The results file, the annotated images, and the detections in COCO's format."""

    results: Path
    images: tuple[Path, ...]
    detections: list[dict[str, Any]]
    unread: tuple[DatasetError, ...] = ()
    """The error of each image in a folder that could not be read."""

    def raise_on_issues(self) -> None:
        """Raise if an image in a folder could not be read.

        Raises:
            DatasetError: names the first, and says how many there are.
        """
        if self.unread:
            first, count = self.unread[0], len(self.unread)
            more = "" if count == 1 else f", as {count - 1} more"
            raise DatasetError(f"{first.what}{more}; the others are done", where=first.where, right=first.right)

    @property
    def stdout(self) -> str:
        """The path of the COCO results."""
        return str(self.results)

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON output."""
        return {"results": str(self.results), "images": list(map(str, self.images)), "detections": self.detections}


def detect(source: Path, images: Sequence[Path], config: DetectRunConfig) -> DetectResult:
    """Detect objects in images, or in all images of folders. A COCO result's image_id is the image's path.

    An image in a folder that cannot be read is left out, and reported by `raise_on_issues` of the result.

    Raises:
        CheckpointError, DatasetError, ConfigError: an input is invalid; all images are read before any is written.
    """
    out = config.out or make_run_folder("detect", "detect")
    model: Model = load_model(source).with_img_size(config.img_size)
    device = make_device(config.device)
    batch_size = config.batch_size or (CUDA_BATCH if device.type == "cuda" else 1)
    with TemporaryDirectory() as folder:
        if isinstance(model, Checkpoint) and config.engine in ENGINE_SUFFIXES:
            path = Path(folder, f"model{ENGINE_SUFFIXES[config.engine]}")
            model = load_exported(write_model(model, describe(model, ""), path))
        predictor = make_predictor(model, config, device, config.engine)
    paths, found, unread = _detect_all(predictor, images, batch_size)
    names = _name_images(paths, out)
    for path, name, detections in zip(paths, names, found, strict=True):
        save_image(name, draw_detections(read_image(path), detections, model.names, min_score=config.confidence))
    results = format_results([str(path) for path in paths], found, names=model.names)
    return DetectResult(save_json(out / "detections.json", results), tuple(names), results, unread)


def _detect_all(
    predictor: Predictor, images: Sequence[Path], batch_size: int
) -> tuple[list[Path], list[Detections], tuple[DatasetError, ...]]:
    """Return the images that can be read, what was found in them, and the errors of those in folders that cannot."""
    named = set(images)
    paths: list[Path] = []
    found: list[Detections] = []
    unread: list[DatasetError] = []
    listed = list(_list_images(images))
    for path, result in zip(listed, predictor.detect_each(listed, batch_size), strict=True):
        if not isinstance(result, DatasetError):
            paths.append(path)
            found.append(result)
        elif path in named:
            raise result
        else:
            unread.append(result)
    if unread and not paths:
        raise unread[0]
    return paths, found, tuple(unread)


def _list_images(images: Sequence[Path]) -> Iterator[Path]:
    for path in images:
        if path.is_dir():
            if not (inside := find_images(path)):
                raise DatasetError("holds no image", where=path, right="name images, or a folder of them")
            yield from inside
        else:
            yield path


def _name_images(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Return an unused name in `folder` for each image: its own name, with a number appended if two are equal."""
    names: list[Path] = []
    for path in paths:
        name, number = folder / f"{path.stem}.png", 2
        while name in names:
            name, number = folder / f"{path.stem}-{number}.png", number + 1
        names.append(name)
    return names
