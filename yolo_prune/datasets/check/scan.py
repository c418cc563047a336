"""What the checker reads of a data set: every image decoded once and kept in little, every label file line by line."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from yolo_prune.datasets.check.issues import Issue, make_issue
from yolo_prune.datasets.check.perceptual_hash import Look, measure_look
from yolo_prune.datasets.images import read_header, read_image
from yolo_prune.datasets.labels import LabelLines, scan_labels
from yolo_prune.datasets.spec import DataSpec, Sample
from yolo_prune.errors import DatasetError
from yolo_prune.threads import count_cores

_NO_LINES = LabelLines(np.zeros(0, np.int64), np.zeros((0, 5)), ())


@dataclass(frozen=True)
class Content:
    """What is kept of a decoded image."""

    width_px: int
    """Width as it is shown, turned as its EXIF data say."""
    height_px: int
    """Height as it is shown."""
    orientation: int
    """EXIF's 1 … 8: 1 is stored as shown."""
    digest: bytes
    """SHA-256 of the size and the decoded pixels."""
    look: Look
    """What near-duplicates are found by."""


@dataclass(frozen=True)
class Labels:
    """What an image's two label files say."""

    counted: LabelLines
    """Objects."""
    ignored: LabelLines
    """Crowds and other boxes that count neither way."""
    is_missing: bool
    """Whether there is no label file, not even an empty one."""
    issues: tuple[Issue, ...]
    """Files that cannot be read, and bad lines."""

    @property
    def objects(self) -> NDArray[np.float64]:
        """(N, 6) rows `class cx cy w h ignore` as training reads them: repeated lines count once."""
        parts = [_drop_repeats(self.counted), _drop_repeats(self.ignored)]
        return np.column_stack((np.concatenate(parts), np.repeat((0.0, 1.0), list(map(len, parts)))))


@dataclass(frozen=True)
class ScannedImage:
    """An image of the data set, in however many splits it is listed."""

    sample: Sample
    """Where it and its labels are."""
    splits: tuple[str, ...]
    """The splits that list it, in their order."""
    content: Content | Issue
    """What it shows, or why it cannot be read."""
    labels: Labels
    """What its label files say."""


def read_images(
    spec: DataSpec, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> list[ScannedImage]:
    """Read all images and labels of a data set; what cannot be read is kept as an issue.

    Args:
        workers: threads that decode; None takes one for each usable core.
        progress: called with the number of images read and of all.
    """
    splits: dict[Sample, list[str]] = {}
    for split, samples in spec.splits.items():
        for sample in samples:
            splits.setdefault(sample, []).append(split)
    contents = list(_read_contents([sample.image for sample in splits], workers or count_cores(), progress))
    return [
        ScannedImage(sample, tuple(splits[sample]), content, read_labels(sample, len(spec.names)))
        for sample, content in zip(splits, contents, strict=True)
    ]


def read_content(path: Path) -> Content | Issue:
    """Decode an image, or say why that cannot be done."""
    is_whole = _try_pillow(path)
    if is_whole is False:
        right = "restore the file, or leave the image out"
        return Issue("cut_image", str(path), "is cut off or damaged", right)
    try:
        image = read_image(path)
        orientation = read_header(path).orientation if is_whole else 1
    except DatasetError as error:
        return make_issue("unreadable_image", error)
    height, width = image.shape[:2]
    digest = hashlib.sha256(f"{width} {height} ".encode() + image.tobytes()).digest()
    return Content(width, height, orientation, digest, measure_look(image))


def read_labels(sample: Sample, classes: int) -> Labels:
    """Read an image's label files, line by line past all bad ones."""
    issues: list[Issue] = []
    lines = {}
    for path in (sample.label, sample.ignored):
        lines[path] = _NO_LINES
        try:
            lines[path] = scan_labels(path, classes)
        except DatasetError as error:
            issues.append(make_issue("unreadable_labels", error))
        issues += [make_issue("bad_label", error) for error in lines[path].errors]
    return Labels(lines[sample.label], lines[sample.ignored], not sample.label.exists(), tuple(issues))


def _drop_repeats(lines: LabelLines) -> NDArray[np.float64]:
    return np.array(list(dict.fromkeys(map(tuple, lines.rows.tolist())))).reshape(-1, 5)


def _read_contents(
    paths: Sequence[Path], workers: int, progress: Callable[[int, int], None] | None
) -> Iterator[Content | Issue]:
    with _quiet():
        pool = ThreadPoolExecutor(workers)  # OpenCV, Pillow and hashlib work outside Python's lock
        try:
            for done, content in enumerate(pool.map(read_content, paths), 1):
                yield content
                if progress:
                    progress(done, len(paths))
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what OpenCV and Pillow say of odd files off stderr: it is among the issues, or does no harm."""
    level = cv2.utils.logging.getLogLevel()
    # Around all threads, since catch_warnings inside one of them changes the filters of all.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            yield
        finally:
            cv2.utils.logging.setLogLevel(level)


def _try_pillow(path: Path) -> bool | None:
    """Say whether Pillow can read all of an image, None where it does not know the format or cannot open the file.

    OpenCV alone does not do: in some versions it takes a JPEG whose end is missing for a whole one.
    """
    try:
        with Image.open(path) as image:
            if image.format != "WEBP":  # of which only a whole one can be opened
                image.draft("L", (1, 1))  # a JPEG is still read to its end, but decoded at an eighth of its size
                image.load()
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return None
    except OSError as error:
        return False if error.errno is None else None  # with a number the system speaks, without one Pillow
    except Exception:  # noqa: BLE001  # Pillow lets through whatever a broken file makes its parsers raise
        return False
    return True
