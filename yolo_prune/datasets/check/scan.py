"""Read a data set for the checker: decode every image once and keep its features, read label files line by line."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from yolo_prune.bounded import open_plain
from yolo_prune.datasets.check.issues import Issue, make_issue
from yolo_prune.datasets.check.jpeg_blocks import find_impossible_block, finding_impossible_blocks
from yolo_prune.datasets.check.perceptual_hash import Look, measure_look
from yolo_prune.datasets.images import read_header, read_incomplete, take_turn, taking_turns
from yolo_prune.datasets.labels import LabelLines, scan_labels
from yolo_prune.datasets.spec import DataSpec, Sample
from yolo_prune.errors import DatasetError
from yolo_prune.image_size import MOST_PIXELS
from yolo_prune.limits import MOST_IMAGE_BYTES
from yolo_prune.threads import count_cores

CHUNK = 16
"""At least so many images are read between two reports of progress."""
_NO_LINES = LabelLines(np.zeros(0, np.int64), np.zeros((0, 5)), ())


@dataclass(frozen=True)
class Content:
    """The properties of a decoded image that are kept."""

    width_px: int
    """Width as displayed, after EXIF rotation."""
    height_px: int
    """Height as displayed."""
    orientation: int
    """EXIF orientation, 1 … 8; 1 means stored as displayed."""
    digest: bytes
    """SHA-256 of the size and the decoded pixels."""
    look: Look
    """The features by which near-duplicates are found."""
    damage: str = ""
    """What the decoder says of the file; empty if nothing."""


@dataclass(frozen=True)
class Labels:
    """The contents of an image's two label files."""

    counted: LabelLines
    """Objects."""
    ignored: LabelLines
    """Crowds and other boxes that are ignored in scores."""
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
    """An image of the data set, which may be listed in several splits."""

    sample: Sample
    """Where it and its labels are."""
    splits: tuple[str, ...]
    """The splits that list it, in order."""
    content: Content | Issue
    """Its properties, or why it cannot be read."""
    labels: Labels
    """The contents of its label files."""


def read_images(
    spec: DataSpec, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> list[ScannedImage]:
    """Read all images and labels of a data set; what cannot be read becomes an issue.

    Args:
        workers: number of decoding threads; None means one per usable core.
        progress: called with the numbers of read images and of all.
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
    """Decode an image and return its properties, or an issue if that fails."""
    with taking_turns():
        return _read_content(path)


def _read_content(path: Path) -> Content | Issue:
    is_whole = _try_pillow(path)
    try:
        image, lacks_end = read_incomplete(path)
        orientation = read_header(path).orientation if is_whole else 1
    except DatasetError as error:
        return _make_cut(path) if is_whole is False else make_issue("unreadable_image", error)
    if is_whole is False and not lacks_end:
        return _make_cut(path)
    height, width = image.shape[:2]
    digest = hashlib.sha256(f"{width} {height} ".encode())
    digest.update(np.ascontiguousarray(image).data)
    damage = "lacks its end mark" if lacks_end else find_impossible_block(path)
    return Content(width, height, orientation, digest.digest(), measure_look(image), damage)


def _make_cut(path: Path) -> Issue:
    return Issue("cut_image", str(path), "is cut off or damaged", "restore the file, or leave the image out")


def read_labels(sample: Sample, classes: int) -> Labels:
    """Read an image's label files line by line, and keep reading after bad lines."""
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
    with _quiet(), finding_impossible_blocks():
        pool = ThreadPoolExecutor(workers)  # OpenCV, Pillow and hashlib release Python's lock
        try:
            for first in range(0, len(paths), size := workers * max(4, -(-CHUNK // workers))):
                chunk = paths[first : first + size]
                yield from _read_chunk(chunk, pool)
                if progress:
                    progress(first + len(chunk), len(paths))
        finally:
            pool.shutdown(cancel_futures=True)


def _read_chunk(paths: Sequence[Path], pool: ThreadPoolExecutor) -> list[Content | Issue]:
    """Read some images; if a decoder complains of one, read each by itself to know of which."""
    with capturing_stderr() as said:
        contents = list(pool.map(read_content, paths))
        if said():
            contents = [_add_damage(content, said, path) for content, path in zip(contents, paths, strict=True)]
    return contents


def _add_damage(content: Content | Issue, said: Callable[[], str], path: Path) -> Content | Issue:
    if not isinstance(content, Content) or content.damage:
        return content
    read_content(path)
    return replace(content, damage=said())


@contextmanager
def capturing_stderr() -> Iterator[Callable[[], str]]:
    """Keep what libraries write to file descriptor 2; yield a function that returns the last line of what is new.

    libjpeg tells of damage there and nowhere else.
    """
    with TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)

        def take() -> str:
            size = os.fstat(file.fileno()).st_size
            lines = os.pread(file.fileno(), size, 0).decode(errors="replace").split("\n")
            os.ftruncate(file.fileno(), 0)
            os.lseek(2, 0, os.SEEK_SET)
            return next((line.strip() for line in reversed(lines) if line.strip()), "")

        try:
            yield take
        finally:
            os.dup2(before, 2)
            os.close(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress messages of OpenCV and Pillow on stderr: broken files are reported as issues."""
    level = cv2.utils.logging.getLogLevel()
    # Around all threads: catch_warnings inside one of them changes the filters of all.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            yield
        finally:
            cv2.utils.logging.setLogLevel(level)


def _try_pillow(path: Path) -> bool | None:
    """Return whether Pillow can read all of an image; None if it does not know the format or cannot open the file.

    OpenCV alone is not enough: some versions accept a JPEG whose end is missing.
    """
    try:
        with open_plain(path, MOST_IMAGE_BYTES) as file, Image.open(file) as image:
            if (pixels := image.width * image.height) > MOST_PIXELS:
                return None
            take_turn(pixels)
            if image.format != "WEBP":  # Pillow opens only complete WebP files
                image.draft("L", (1, 1))  # decode a JPEG at an eighth of its size; it is still read to its end
                image.load()
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return None
    except OSError as error:
        return False if error.errno is None else None  # errors of the system have an errno, those of Pillow do not
    except Exception:  # noqa: BLE001  # a broken file may raise anything in Pillow
        return False
    return True
