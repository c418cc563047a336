"""`detect`: detect objects in images, videos, cameras and streams; write annotated copies, and JSON of what was found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_prune.commands.detect_outputs import Emit, Issues, Outputs
from yolo_prune.commands.detect_videos import VideoRun
from yolo_prune.commands.measure_config import DetectRunConfig
from yolo_prune.commands.run_folders import take_run_folder
from yolo_prune.datasets.class_names import find_classes
from yolo_prune.datasets.images import read_image
from yolo_prune.datasets.sources import ImageFile, Source, find_source, list_words
from yolo_prune.engines.exported.model import load_exported
from yolo_prune.errors import DatasetError
from yolo_prune.evaluation.detections import Detections
from yolo_prune.evaluation.models import Model, load_model, make_predictor
from yolo_prune.evaluation.predictor import Predictor
from yolo_prune.evaluation.previews import save_image
from yolo_prune.evaluation.results import format_results
from yolo_prune.export.writers import ENGINE_SUFFIXES, describe, write_model
from yolo_prune.files import save_json
from yolo_prune.model.checkpoint import Checkpoint
from yolo_prune.model.device import make_device
from yolo_prune.scraps import make_temporary_folder
from yolo_prune.training.signals import leave

CUDA_BATCH = 16


@dataclass(frozen=True)
class DetectResult:
    """What was written, and the detections in images in COCO's format."""

    results: Path | None
    """COCO results of the images, if there were any."""
    images: tuple[Path, ...]
    """Annotated images."""
    detections: list[dict[str, Any]]
    """COCO results of the images."""
    frames: Path | None = None
    """JSON lines of the frames of videos, if there were any."""
    videos: tuple[Path, ...] = ()
    """Annotated videos."""
    issues: Issues | None = None
    """What could not be read."""
    stop_code: int = 0
    """The exit code of what stopped a video early: a signal, or the time; 0 if nothing did."""
    is_streamed: bool = False
    """Whether all was printed while it was found."""

    def raise_on_issues(self) -> None:
        """Raise if a source could not be read, or a signal or the time ended a video.

        Raises:
            DatasetError: names what is wrong, or in how many of several sources something is.
            Interrupted: a signal came, or the time was up.
        """
        if self.stop_code:
            leave(self.stop_code, "what was made until then is whole")
        if self.issues is not None:
            self.issues.raise_some()

    @property
    def stdout(self) -> str:
        """The paths of the COCO results and of the annotated videos, or of the JSON lines if no video was written."""
        if self.is_streamed:
            return ""
        of_frames = self.videos or (() if self.frames is None else (self.frames,))
        return "\n".join(str(path) for path in (self.results, *of_frames) if path is not None)

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON output."""
        return {
            "results": None if self.results is None else str(self.results),
            "images": list(map(str, self.images)),
            "detections": self.detections,
            "frames": None if self.frames is None else str(self.frames),
            "videos": list(map(str, self.videos)),
        }


def detect(
    checkpoint: Path, sources: Sequence[str | Path], config: DetectRunConfig, emit: Emit | None = None
) -> DetectResult:
    """Detect objects in images, videos, cameras and streams; `datasets/sources.py` says how they are named.

    Images come first, then videos one after the other, then all live sources at once. A COCO result's image_id is the
    image's path. A source that cannot be read is left out, and reported by `raise_on_issues` of the result.

    Args:
        emit: takes a line of JSON of each image and frame as soon as it is done.

    Raises:
        CheckpointError, ConfigError: the model or a setting is invalid.
        DatasetError: nothing could be read.
        OutputError: a file cannot be written.
    """
    with take_run_folder("detect", "detect") if config.out is None else nullcontext(config.out) as out:
        return _detect(checkpoint, sources, config, emit, out)


def _detect(
    checkpoint: Path, sources: Sequence[str | Path], config: DetectRunConfig, emit: Emit | None, out: Path
) -> DetectResult:
    model: Model = load_model(checkpoint).with_img_size(config.img_size)
    only = find_classes(config.classes, model.names)
    device = make_device(config.device)
    batch_size = config.batch_size or (CUDA_BATCH if device.type == "cuda" else 1)
    with make_temporary_folder() as folder:
        if isinstance(model, Checkpoint) and config.engine in ENGINE_SUFFIXES:
            path = folder / f"model{ENGINE_SUFFIXES[config.engine]}"
            model = load_exported(write_model(model, describe(model, ""), path))
        predictor = make_predictor(model, config, device, config.engine, only)
        words = list_words([str(source) for source in sources], folder)
        issues = Issues(len(words))
        found = _find_sources(words, folder, issues)
        with closing(Outputs(out, config, model.names, found, emit)) as outputs:
            images, detections = _detect_images(predictor, found, batch_size, outputs, issues)
            drawn = _draw_images(images, detections, outputs)
            results = format_results([image.name for image in images], detections, names=model.names)
            saved = save_json(out / "detections.json", results) if images else None
            stop_code = VideoRun(predictor, batch_size, outputs, issues).detect_all(found)
    if saved is None and outputs.frames is None:
        issues.raise_all()
    is_streamed = emit is not None
    return DetectResult(saved, drawn, results, outputs.frames, outputs.videos, issues, stop_code, is_streamed)


def _find_sources(words: Sequence[str | Source], scratch: Path, issues: Issues) -> list[Source]:
    found = []
    for word in words:
        try:
            found.append(word if isinstance(word, Source) else find_source(word, scratch))
        except DatasetError as error:
            issues.add(str(word), error)
    return found


def _detect_images(
    predictor: Predictor, sources: Sequence[Source], batch_size: int, outputs: Outputs, issues: Issues
) -> tuple[list[ImageFile], list[Detections]]:
    """Return the images that can be read, and what was found in them. Of a source that cannot, one error is stored."""
    listed = [(source.word, image) for source in sources for image in source.images]
    images: list[ImageFile] = []
    all_found: list[Detections] = []
    unread: dict[str, list[DatasetError]] = defaultdict(list)
    paths = (image.path for _, image in listed)
    for (word, image), found in zip(listed, predictor.detect_each(paths, batch_size), strict=True):
        if isinstance(found, DatasetError):
            unread[word].append(DatasetError(found.what, where=image.name, right=found.right))
        else:
            images.append(image)
            all_found.append(found)
            outputs.emit(image.name, found)
    for word, (first, *others) in unread.items():
        more = f", as {len(others)} more" if others else ""
        issues.add(word, DatasetError(f"{first.what}{more}", where=first.where, right=first.right))
    return images, all_found


def _draw_images(images: Sequence[ImageFile], all_found: Sequence[Detections], outputs: Outputs) -> tuple[Path, ...]:
    """Write and show annotated copies, as far as that is wanted; return those that were written."""
    written = []
    for image, found in zip(images, all_found, strict=True):
        if outputs.is_left or not outputs.draws:
            break
        drawn = outputs.draw(read_image(image.path), found)
        if outputs.config.save:
            written.append(save_image(outputs.make_path(image.stem, ".png"), drawn))
        outputs.show(drawn, wait_ms=0)
    return tuple(written)
