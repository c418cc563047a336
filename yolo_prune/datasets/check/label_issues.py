"""Find issues of a data set's labels, and label files and images that do not match."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from yolo_prune.datasets.check.coinciding import find_coinciding
from yolo_prune.datasets.check.issues import COVERING_SHARE, EXTREME_ASPECT, SMALL_BOX_PX, Issue
from yolo_prune.datasets.check.scan import Content, ScannedImage
from yolo_prune.datasets.images import make_letterbox
from yolo_prune.datasets.labels import LabelLines, scan_labels
from yolo_prune.datasets.spec import SUFFIXES
from yolo_prune.errors import DatasetError
from yolo_prune.image_size import AnySize
from yolo_prune.limits import MOST_CLASSES


def find_label_issues(images: Sequence[ScannedImage], names: Sequence[str], img_size: AnySize) -> list[Issue]:
    """Find bad lines, files and boxes. A label file that serves several images is checked once.

    Args:
        img_size: the size of the network's input, at which small boxes are judged.
    """
    users: dict[Path, list[ScannedImage]] = {}
    for image in images:
        users.setdefault(image.sample.label, []).append(image)
    return [
        *(issue for label, sharing in users.items() for issue in _check_file(label, sharing, names, img_size)),
        *_find_shared_ignored(images, users),
        *(Issue("labels_without_image", str(path), what) for path, what in sorted(_find_orphans(images))),
    ]


def _check_file(
    label: Path, sharing: Sequence[ScannedImage], names: Sequence[str], img_size: AnySize
) -> Iterator[Issue]:
    labels, sample = sharing[0].labels, sharing[0].sample
    if len(sharing) > 1 and not labels.is_missing:
        images = tuple(str(image.sample.image) for image in sharing)
        right = "give each image a name of its own"
        yield Issue("shared_labels", str(label), f"serves {' and '.join(images)}", right, images)
    yield from labels.issues
    if labels.is_missing:
        for image in sharing:
            yield Issue("no_labels", str(image.sample.image), f"has no label file {label}")
    for path, lines in ((sample.label, labels.counted), (sample.ignored, labels.ignored)):
        if said := lines.repairs.describe():
            yield Issue("repaired_labels", str(path), said.removeprefix("labels: "))
    yield from _find_repeats(sample.label, labels.counted)
    yield from _find_repeats(sample.ignored, labels.ignored)
    yield from _find_coinciding(sharing[0], names)
    if isinstance(content := sharing[0].content, Content):
        yield from _find_suspicious_boxes(sample.label, labels.counted, content, img_size)


def _find_repeats(path: Path, lines: LabelLines) -> Iterator[Issue]:
    first: dict[tuple[float, ...], int] = {}
    for number, row in zip(lines.numbers.tolist(), map(tuple, lines.rows.tolist()), strict=True):
        if first.setdefault(row, number) != number:
            yield Issue("repeated_label", f"{path}:{number}", f"says the same as line {first[row]}")


def _find_coinciding(image: ScannedImage, names: Sequence[str]) -> Iterator[Issue]:
    places: dict[tuple[float, ...], str] = {}
    for path, lines in (
        (image.sample.label, image.labels.counted),
        (image.sample.ignored, image.labels.ignored),
    ):
        for number, row in zip(lines.numbers.tolist(), lines.rows.tolist(), strict=True):
            places.setdefault((*row, float(path == image.sample.ignored)), f"{path}:{number}")
    rows = np.array(list(places)).reshape(-1, 6)
    where = list(places.values())
    for one, two, iou in find_coinciding(rows):
        what = f"nearly coincides with the {names[int(rows[one, 0])]} of {where[one]} (IoU {iou:.2f})"
        yield Issue("coinciding_boxes", where[two], what, others=(where[one],), details={"iou": round(iou, 4)})


def _find_suspicious_boxes(path: Path, lines: LabelLines, content: Content, img_size: AnySize) -> Iterator[Issue]:
    box = make_letterbox(content.width_px, content.height_px, img_size)
    seen = set()
    for number, row in zip(lines.numbers.tolist(), map(tuple, lines.rows.tolist()), strict=True):
        if row in seen:
            continue
        seen.add(row)
        where, (width, height) = f"{path}:{number}", (row[3] * content.width_px, row[4] * content.height_px)
        seen_width, seen_height = width * box.scale_x, height * box.scale_y
        if min(seen_width, seen_height) < SMALL_BOX_PX:
            yield Issue("small_box", where, f"is {seen_width:.1f} × {seen_height:.1f} px at {img_size} px")
        if max(width, height) > EXTREME_ASPECT * min(width, height):
            longer, ratio = ("wide", width / height) if width > height else ("high", height / width)
            other = "high" if longer == "wide" else "wide"
            yield Issue("extreme_box", where, f"is {ratio:.1f} times as {longer} as {other}")
        if row[3] * row[4] > COVERING_SHARE:
            yield Issue("covering_box", where, f"covers {row[3] * row[4]:.1%} of the image")


def _find_shared_ignored(scanned: Sequence[ScannedImage], users: dict[Path, list[ScannedImage]]) -> Iterator[Issue]:
    """Find label files that are another image's file of ignored boxes: those of a.ignore.jpg beside a.jpg."""
    for image in scanned:
        for other in users.get(image.sample.ignored, ()):
            images = (str(image.sample.image), str(other.sample.image))
            what = f"serves {images[1]}, and {images[0]} for ignored boxes"
            yield Issue("shared_labels", str(other.sample.label), what, "rename one of these images", others=images)


def _find_orphans(scanned: Sequence[ScannedImage]) -> Iterator[tuple[Path, str]]:
    folders = {(image.sample.label.parent, image.sample.image.parent) for image in scanned}
    places = {place for labels, images in folders for place in _walk(labels, images)}
    stems: dict[Path, set[str]] = {}
    for labels, images in sorted(places):
        stems.setdefault(labels, set()).update(_list_stems(images))
    for labels, known in stems.items():
        for path in sorted(labels.glob("[!.]*.txt")):
            if not known & {path.stem, path.stem.removesuffix(".ignore")} and _holds_labels(path):
                yield path, "there is no image of this name"


def _walk(labels: Path, images: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a folder of labels with that of its images, and those within; beside images, yield only the folder itself.

    A folder that holds both may be the data set's root, and the folders within it something else.
    """
    yield labels, images
    if labels != images:
        for place, _, _ in os.walk(labels, followlinks=True):
            yield Path(place), images / Path(place).relative_to(labels)


def _list_stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*") if path.name.lower().endswith(SUFFIXES)}


def _holds_labels(path: Path) -> bool:
    """Return whether a file holds labels, not a list of images, class names or notes."""
    try:
        lines = scan_labels(path, MOST_CLASSES)
    except DatasetError:
        return False
    return len(lines.rows) > 0 or not lines.errors
