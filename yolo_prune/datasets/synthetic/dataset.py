"""Make a data set of drawn hands. Labels are exact, and every image depends only on seed, split and index.

out/data.yaml  synthetic.yaml  images/{train,val,test}/000000.jpg  labels/{train,val,test}/000000.txt
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import numpy.typing as npt
import yaml

from yolo_prune.bounded import read_text
from yolo_prune.datasets.config import SyntheticConfig
from yolo_prune.datasets.data_file import SPLITS
from yolo_prune.datasets.labels import format_labels
from yolo_prune.datasets.spec import save_spec
from yolo_prune.datasets.synthetic.scenes import make_scene
from yolo_prune.errors import OutputError
from yolo_prune.files import make_folder_atomically
from yolo_prune.limits import MOST_YAML_BYTES
from yolo_prune.threads import count_cores
from yolo_prune.yaml_text import parse_plain_yaml

CONFIG_FILE = "synthetic.yaml"

_EDITION = 2
"""Raise this when the drawing changes, so that older images are not mistaken for new ones."""
_JPEG_QUALITY = 92


def make_image(
    rng: np.random.Generator, config: SyntheticConfig
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Draw one image (H, W, 3) RGB and its hands' boxes_xyxy (N, 4) in pixels, tight around the visible part."""
    scene = make_scene(rng, config.size_px, config.max_hands)
    return scene.image, scene.boxes_xyxy


def make_dataset(
    out: Path,
    config: SyntheticConfig,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> Path:
    """Write the data set to the folder `out`, atomically, and return the path of its `data.yaml`.

    Return at once if `out` already holds the data set of this config. `progress` is called with the numbers of finished
    images and of all; `workers` processes draw (None: one per usable core; 1: only this process).

    Raises:
        OutputError: `out` holds something else, or cannot be written.
    """
    record = {"edition": _EDITION, **asdict(config)}
    if _holds(out, record):
        return out / "data.yaml"
    tasks = [(split, index) for split in SPLITS for index in range(getattr(config, split))]
    with make_folder_atomically(out) as scratch:
        for split in SPLITS:
            (scratch / "images" / split).mkdir(parents=True)
            (scratch / "labels" / split).mkdir(parents=True)
        for done, _ in enumerate(_write_all(scratch, config, tasks, workers or count_cores()), start=1):
            if progress:
                progress(done, len(tasks))
        save_spec(scratch, SPLITS, ("hand",))
        (scratch / CONFIG_FILE).write_text(yaml.safe_dump(record, sort_keys=False))
    return out / "data.yaml"


def _holds(out: Path, record: dict[str, int]) -> bool:
    """Return whether `out` holds this data set (True) or nothing (False).

    Raises:
        OutputError: it holds anything else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    where_config = out / CONFIG_FILE
    if not where_config.is_file():
        raise OutputError("is not a folder of synthetic hands", where=out, right="name a new or empty folder")
    try:
        found = parse_plain_yaml(read_text(where_config, MOST_YAML_BYTES))
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise OutputError("is no record of a data set", where=where_config, right="name a new or empty folder")
    if found == record:
        return True
    keys = [key for key in record if found.get(key) != record[key]] or sorted(set(found) - set(record))
    differences = ", ".join(f"{key} {found.get(key)} instead of {record.get(key)}" for key in keys)
    raise OutputError(f"holds another data set: {differences}", where=out, right="name another folder or remove it")


def _write_all(folder: Path, config: SyntheticConfig, tasks: list[tuple[str, int]], workers: int) -> Iterable[None]:
    """Write every image, in this process or in `workers` others; yield after each."""
    if workers == 1:
        for split, index in tasks:
            _write_image(folder, config, split, index)
            yield
        return
    context = get_context("spawn")  # forking a process with threads of torch or OpenCV may deadlock
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker)
    try:
        splits, indices = zip(*tasks, strict=True)
        count = len(tasks)
        with _without_interrupts():  # Ctrl-C reaches every process; the main one stops the workers
            done = pool.map(_write_image, [folder] * count, [config] * count, splits, indices, chunksize=8)
        yield from done
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold SIGINT back; processes that are started inside never see it, not even while they import."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, by SIGKILL even: nobody else would stop it."""
    parent = parent_process()
    assert parent is not None  # a worker has one
    parent.join()
    os._exit(1)


def _write_image(folder: Path, config: SyntheticConfig, split: str, index: int) -> None:
    rng = np.random.default_rng((config.seed, SPLITS.index(split), index))
    image, boxes_xyxy = make_image(rng, config)
    bgr = np.ascontiguousarray(image[..., ::-1])
    _, packed = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    height, width = image.shape[:2]
    (folder / "images" / split / f"{index:06}.jpg").write_bytes(packed.tobytes())
    (folder / "labels" / split / f"{index:06}.txt").write_text(
        format_labels(np.zeros(len(boxes_xyxy), np.int64), boxes_xyxy, width, height)
    )
