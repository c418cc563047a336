"""Settings of augmentation, of the data set checker and converter, of synthetic hands and of VGG Hand."""

from __future__ import annotations

from dataclasses import replace
from re import fullmatch
from typing import Annotated, Literal

from yolo_prune.config import Setting, settings
from yolo_prune.errors import ConfigError
from yolo_prune.image_size import ImageSize
from yolo_prune.shared_settings import MOST_PROCESSES, Force, ImgSize, PathSetting, Seed, Words
from yolo_prune.shipped_configs import CfgPath


@settings
class AugmentConfig:
    """How training images are augmented."""

    mosaic: Annotated[float, Setting("Probability that an image is joined with three others.", ge=0, le=1)] = 0.5
    flip: Annotated[float, Setting("Probability of a horizontal flip.", ge=0, le=1)] = 0.5
    hue: Annotated[float, Setting("Largest change of the hue, as a share of the colour circle.", ge=0, le=1)] = 0.015
    saturation: Annotated[float, Setting("Largest change of the saturation, as a share of it.", ge=0, le=1)] = 0.6
    value: Annotated[float, Setting("Largest change of the brightness, as a share of it.", ge=0, le=1)] = 0.4
    scale: Annotated[float, Setting("Largest change of the size, as a share of it.", ge=0, lt=1)] = 0.5
    translate: Annotated[
        float, Setting("Largest shift along each axis, as a share of the network's side.", ge=0, le=1)
    ] = 0.1
    degrees: Annotated[float, Setting("Largest rotation to either side.", ge=0, le=180, unit="degrees")] = 0.0

    def without_mosaic(self) -> AugmentConfig:
        """Return the same settings with mosaic switched off."""
        return replace(self, mosaic=0.0)


@settings
class CheckConfig:
    """How a data set is checked."""

    img_size: Annotated[
        ImgSize, Setting("Size of the network's input, at which box sizes are reported.", unit="px")
    ] = ImageSize(416, 416)
    near: Annotated[
        int,
        Setting("Most bits in which the perceptual hashes of near-duplicates differ, of 64.", ge=0, le=64, unit="bits"),
    ] = 12
    # Measured with changed versions of 1,235 real and 1,100 drawn images. Versions that were mirrored, re-encoded at
    # JPEG quality 60, scaled to 70 % or brightened by 10 % differ by at most 8 bits; cropped by 3 %, all but 2 differ by
    # at most 12. Of 6 million pairs of real images from different scenes, 377 are as near by chance; the comparison of thumbnails
    # rejects all of these.
    workers: Annotated[
        int | None, Setting("Threads that decode images.", ge=1, le=MOST_PROCESSES, default="one per core")
    ] = None
    out: Annotated[
        PathSetting | None, Setting("Folder for report.json, contact_sheet.png and boxes.png.", default="runs/check")
    ] = None
    strict: Annotated[bool, Setting("Count warnings as errors.")] = False
    force: Force = False


@settings
class AnchorsConfig:
    """Which boxes anchors are found for, and how many."""

    count: Annotated[
        int | None,
        # No network has more than 256, and finding more would be slow.
        Setting("Anchors to find.", ge=1, le=256, default="as many as the cfg's heads use, or 9"),
    ] = None
    img_size: Annotated[
        ImgSize, Setting("Size of the network's input: the side of a square, or WIDTHxHEIGHT.", unit="px")
    ] = ImageSize(416, 416)
    split: Annotated[str, Setting("Split whose boxes count.")] = "train"
    cfg: Annotated[CfgPath | None, Setting("A Darknet cfg to compare with, a file or a shipped one.")] = None
    seed: Seed = 0


@settings
class ConvertConfig:
    """Settings of `data convert`."""

    to: Annotated[Literal["yolo", "coco", "voc"], Setting("Format to write.")]
    out: Annotated[PathSetting, Setting("Folder to make.")]
    images: Annotated[
        PathSetting | None, Setting("Folder where COCO's or VOC's images are.", default="near the labels")
    ] = None
    names: Annotated[Words | None, Setting("Classes to take, in this order: hand,foot.", default="all")] = None
    link: Annotated[bool, Setting("Link to the images instead of copying them.")] = False
    skip_bad: Annotated[bool, Setting("Leave out images and boxes with faults, which are listed.")] = False

    def __post_init__(self) -> None:
        """Raise ConfigError if the folder of images does not exist, or a class is named twice."""
        if self.images is not None and not self.images.is_dir():
            raise ConfigError(f"there is no folder {self.images}", where="images", right="name a folder of images")
        if self.names is not None and (not all(self.names) or len(set(self.names)) < len(self.names)):
            raise ConfigError(f"{','.join(self.names)!r} is no list of classes", where="names", right="write hand,foot")


@settings
class SyntheticConfig:
    """How many images of drawn hands to make, and what they show."""

    train: Annotated[
        int, Setting("Training images; 1,600 with 200 and 400 more are drawn in half a minute on two cores.", ge=1)
    ] = 1600
    val: Annotated[int, Setting("Validation images.", ge=1)] = 200
    test: Annotated[int, Setting("Test images; 400 hold 600 hands, so that AP50 is known to about ±0.02.", ge=1)] = 400
    size_px: Annotated[int, Setting("Longer side of the images.", ge=64, unit="px", flag="--size")] = 256
    max_hands: Annotated[int, Setting("Most hands in one image; a seventh of the images shows none.", ge=0)] = 4
    seed: Seed = 0


@settings
class VggHandConfig:
    """Where the Visual Geometry Group's hand archive is, and what to make of it."""

    url: Annotated[
        str,
        Setting(
            "What to download, to hand_dataset.tar.gz beside the folder; it stays there, and is not downloaded again. "
            "An interrupted download is continued."
        ),
    ] = "http://www.robots.ox.ac.uk/~vgg/data/hands/downloads/hand_dataset.tar.gz"
    archive: Annotated[
        PathSetting | None, Setting("The archive, if it is there already: nothing is downloaded then.")
    ] = None
    sha256: Annotated[str | None, Setting("The hash that the archive must have, as 64 hexadecimal digits.")] = None
    trainval: Annotated[
        bool, Setting("Train on the official train and val together, as the case study: 4,807 images, 821 to test.")
    ] = False
    any_counts: Annotated[bool, Setting("Continue if the counts differ from the published ones.")] = False

    def __post_init__(self) -> None:
        """Raise if two settings contradict each other.

        Raises:
            ConfigError: both an archive and an address are given, or the hash is not a SHA-256.
        """
        if self.archive is not None and self.url != type(self).url:
            raise ConfigError(f"{self.archive} is given as well", where="url", right="give either url or archive")
        if self.sha256 is not None and not fullmatch("[0-9a-fA-F]{64}", self.sha256):
            raise ConfigError(f"{self.sha256} is no SHA-256", where="sha256", right="give 64 hexadecimal digits")
