"""Check a data set for issues before training on it.

images ─► each decoded once ──┬─► issues of single images, duplicates within and between splits ─┐
labels ─► read line by line ──┴─► issues of lines, boxes and files ─────────────────────────────┴─► issues
                              └─► counts and box statistics per split
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from yolo_prune.datasets.check.duplicates import find_duplicates
from yolo_prune.datasets.check.issues import KINDS, SMALL_IMAGE_PX, Issue
from yolo_prune.datasets.check.label_issues import find_label_issues
from yolo_prune.datasets.check.scan import Content, ScannedImage, read_images
from yolo_prune.datasets.check.statistics import Figures, Statistics, collect_figures, join_figures, measure_statistics
from yolo_prune.datasets.config import CheckConfig
from yolo_prune.datasets.spec import DataSpec


@dataclass(frozen=True)
class Check:
    """The contents of a data set and its issues."""

    images: tuple[ScannedImage, ...]
    """Every image once, sorted by split and path."""
    figures: Mapping[str, Figures]
    """The measurements of each split."""
    statistics: Mapping[str, Statistics]
    """The statistics of each split, and of `all` together."""
    issues: tuple[Issue, ...]
    """Errors first, in the order of `KINDS`."""


def check_dataset(spec: DataSpec, config: CheckConfig, progress: Callable[[int, int], None] | None = None) -> Check:
    """Read every image and label of a data set and find the issues that `KINDS` lists.

    Args:
        progress: called with the numbers of read images and of all.
    """
    images = read_images(spec, config.workers, progress)
    figures = collect_figures(images, list(spec.splits), config.img_size)
    statistics = {split: measure_statistics(part, len(spec.names)) for split, part in figures.items()}
    issues = [
        *_find_image_issues(images),
        *find_duplicates(images, config.near),
        *find_label_issues(images, spec.names, config.img_size),
        *_find_empty_classes(spec, statistics),
        *(Issue("odd_files", str(spec.source), note.removeprefix(f"{spec.source}: ")) for note in spec.notes),
    ]
    order = list(KINDS)
    issues.sort(key=lambda issue: order.index(issue.kind))
    everything = measure_statistics(join_figures(figures), len(spec.names))
    return Check(tuple(images), figures, {**statistics, "all": everything}, tuple(issues))


def _find_image_issues(images: Sequence[ScannedImage]) -> Iterator[Issue]:
    for image in images:
        where, content = str(image.sample.image), image.content
        if not isinstance(content, Content):
            yield content
            continue
        if content.damage:
            right = "restore the file, or leave the image out"
            yield Issue("damaged_image", where, f"is damaged ({content.damage})", right)
        if content.orientation != 1:
            details = {"orientation": content.orientation}
            yield Issue("turned_image", where, f"has EXIF orientation {content.orientation}", details=details)
        if min(content.width_px, content.height_px) < SMALL_IMAGE_PX:
            yield Issue("small_image", where, f"is {content.width_px} × {content.height_px} px")


def _find_empty_classes(spec: DataSpec, statistics: Mapping[str, Statistics]) -> Iterator[Issue]:
    for split in ("train", "val"):
        if split in statistics and not statistics[split].objects:
            yield Issue(
                "no_objects",
                f"{spec.source}: {split}",
                "no image has an object",
                "put label files beside the images, or in labels/",
            )
    for number, name in enumerate(spec.names):
        empty = [split for split, part in statistics.items() if not part.objects_per_class[number]]
        if empty:
            what = f"class {number} ({name}) has no object in {' or '.join(empty)}"
            yield Issue("empty_class", f"{spec.source}: names", what, details={"splits": empty})
