"""`data vgg-hand`: the Visual Geometry Group's hands, from their archive to a data.yaml."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from yolo_prune.console import report, report_progress
from yolo_prune.datasets.config import VggHandConfig
from yolo_prune.datasets.vgg_hand.annotations import (
    PUBLISHED_IMAGES,
    PUBLISHED_INSTANCES,
    Found,
    choose_place,
    make_labels,
    save_data,
)
from yolo_prune.datasets.vgg_hand.archive import unpack
from yolo_prune.datasets.vgg_hand.download import DownloadConfig, check_sha256, check_url, download
from yolo_prune.errors import DatasetError, Interrupted
from yolo_prune.files import make_folder_atomically

ARCHIVE = "hand_dataset.tar.gz"


@dataclass(frozen=True)
class VggHandResult:
    """The data set that was made, and what it holds."""

    data: Path
    """Its data.yaml."""
    archive: Path
    """What it was made from."""
    sha256: str
    """The archive's hash."""
    trainval: bool
    """Whether its train holds the official val too."""
    found: Found
    """What the archive held."""

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON output; images and hands are counted by official split."""
        return {
            "data": str(self.data),
            "archive": str(self.archive),
            "sha256": self.sha256,
            "trainval": self.trainval,
            "images": self.found.images,
            "instances": {**self.found.instances, "total": self.found.total},
            "published": {"images": PUBLISHED_IMAGES, "instances": PUBLISHED_INSTANCES},
            "as_published": self.found.is_as_published,
            "without_hands": list(self.found.without_hands),
            "outside": list(self.found.outside),
        }

    def format(self) -> str:
        """Return the path of the data.yaml."""
        return str(self.data)


def make_vgg_hand(out: Path, config: VggHandConfig, patience: DownloadConfig | None = None) -> VggHandResult:
    """Download the archive to `out`'s parent folder, unless it is there, and make the data set `out` of it, whole or not at all.

    Raises:
        OutputError: `out` holds something, which is found out before anything is downloaded, or the disk refuses.
        ConfigError: the address is none.
        DatasetError: the download fails, the archive is not what it should be, or its counts are not the published ones.
        Interrupted: SIGINT or SIGTERM came; the next call goes on with the download.
    """
    with _stop_in_order(), make_folder_atomically(out) as scratch:
        archive, sha256 = _find_archive(out.with_name(ARCHIVE), config, patience)
        _unpack(archive, scratch, is_ours=config.archive is None)
        found = make_labels(scratch, archive, report_progress("reading annotations"))
        _check_counts(archive, found, config)
        shutil.rmtree(scratch / "annotations")
        save_data(scratch, config.trainval)
    return VggHandResult(out / "data.yaml", archive, sha256, config.trainval, found)


def _find_archive(place: Path, config: VggHandConfig, patience: DownloadConfig | None) -> tuple[Path, str]:
    check_url(config.url)
    archive = config.archive or place
    if config.archive is not None:
        sha256 = check_sha256(archive, config.sha256)
    elif archive.exists():
        report(f"{archive} is there already; remove it to download it again")
        sha256 = check_sha256(archive, config.sha256)
    else:
        report(f"downloading {config.url} to {archive}")
        with _ByteProgress("downloading") as progress:
            sha256 = download(config.url, archive, config.sha256, patience, report, progress)
    report(f"{archive}: the SHA-256 is {sha256}" + ("" if config.sha256 else f"; --sha256 {sha256} makes sure of it"))
    return archive, sha256


def _unpack(archive: Path, folder: Path, is_ours: bool) -> None:
    """Unpack the archive; a bad one that was downloaded loses its name, so that the next call downloads it anew."""
    try:
        with _ByteProgress("unpacking") as progress:
            unpack(archive, folder, choose_place, progress=progress)
    except DatasetError as error:
        if not is_ours:
            raise
        bad = archive.replace(archive.with_name(f"{archive.name}.bad"))
        right = f"run again to download it anew, or look at {bad}"
        raise DatasetError(error.what, where=error.where, right=right) from error


def _check_counts(archive: Path, found: Found, config: VggHandConfig) -> None:
    for line in found.outside:
        report(line)
    if not found.is_as_published and not config.any_counts:
        right = "get the whole archive, or go on all the same with --any-counts"
        raise DatasetError(found.format(), where=archive, right=right)
    report(f"{'' if found.is_as_published else 'warning: '}{archive}: {found.format()}")


@contextmanager
def _stop_in_order() -> Iterator[None]:
    """Let SIGTERM clean up as SIGINT does, and say which of them came."""
    signals = [signal.SIGINT]

    def stop(signum: int, frame: FrameType | None) -> None:
        signals.append(signal.Signals(signum))
        raise KeyboardInterrupt  # which, unlike Interrupted, no reader of broken files takes for its own

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(signals[-1]) from error
    finally:
        signal.signal(signal.SIGTERM, previous)


class _ByteProgress:
    """Draws a bar of bytes on a terminal's stderr."""

    def __init__(self, title: str) -> None:
        self._bar = tqdm(desc=title, unit="B", unit_scale=True, leave=False, disable=None)

    def __enter__(self) -> _ByteProgress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def __call__(self, done: int, total: int | None) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)
