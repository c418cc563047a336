"""`data vgg-hand`: make a data set from the Visual Geometry Group's hand archive."""

from __future__ import annotations

import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_prune.commands.results import Summary
from yolo_prune.console import Bar, report, warn
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
from yolo_prune.errors import DatasetError, Interrupted, Terminated
from yolo_prune.files import make_folder_atomically
from yolo_prune.text_tables import pluralize

ARCHIVE = "hand_dataset.tar.gz"


@dataclass(frozen=True)
class VggHandResult:
    """The data set that was made, and its contents."""

    data: Path
    """The path of its data.yaml."""
    archive: Path
    """The archive that it was made from."""
    sha256: str
    """The archive's SHA-256."""
    trainval: bool
    """Whether train includes the official val."""
    found: Found
    """The contents of the archive."""

    @property
    def summary(self) -> Summary:
        """What was found, and the command that may follow."""
        images = pluralize(sum(self.found.images.values()), "image")
        return Summary(f"{images}, {pluralize(self.found.total, 'hand')}", ("train", "--data", str(self.data)))

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON output; images and hands are counted per official split."""
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

    @property
    def stdout(self) -> str:
        """The path of the data.yaml."""
        return str(self.data)


def make_vgg_hand(out: Path, config: VggHandConfig, patience: DownloadConfig | None = None) -> VggHandResult:
    """Download the archive to the parent folder of `out`, unless it exists, and make the data set `out` from it.

    After an error, `out` is not written.

    Raises:
        OutputError: `out` is not empty (checked before the download), or a file cannot be written.
        ConfigError: the address is not a valid URL.
        DatasetError: the download fails, the archive is invalid, or its counts differ from the published ones.
        Interrupted: SIGINT or SIGTERM came; the next call continues the download.
    """
    try:
        return _make(out, config, patience)
    except (KeyboardInterrupt, Terminated) as stop:  # readers of broken files would catch Interrupted
        raise Interrupted(signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT) from stop


def _make(out: Path, config: VggHandConfig, patience: DownloadConfig | None) -> VggHandResult:
    with make_folder_atomically(out) as scratch:
        archive, sha256 = _find_archive(out.with_name(ARCHIVE), config, patience)
        _unpack(archive, scratch, is_ours=config.archive is None)
        with Bar("reading annotations") as bar:
            found = make_labels(scratch, archive, bar.show)
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
        with Bar("downloading", unit="bytes") as bar:
            sha256 = download(config.url, archive, config.sha256, patience, report, bar.show)
    report(f"{archive}: the SHA-256 is {sha256}" + ("" if config.sha256 else f"; --sha256 {sha256} makes sure of it"))
    return archive, sha256


def _unpack(archive: Path, folder: Path, is_ours: bool) -> None:
    """Unpack the archive. Rename an invalid archive that was downloaded, so that the next call downloads it again."""
    try:
        with Bar("unpacking", unit="bytes") as bar:
            unpack(archive, folder, choose_place, progress=bar.show)
    except DatasetError as error:
        if not is_ours:
            raise
        bad = archive.replace(archive.with_name(f"{archive.name}.bad"))
        right = f"run again to download it anew, or look at {bad}"
        raise DatasetError(error.what, where=error.where, right=right) from error


def _check_counts(archive: Path, found: Found, config: VggHandConfig) -> None:
    for line in found.outside:
        warn(line)
    if not found.is_as_published and not config.any_counts:
        right = "get the whole archive, or continue with --any-counts"
        raise DatasetError(found.format(), where=archive, right=right)
    say = report if found.is_as_published else warn
    say(f"{archive}: {found.format()}")
