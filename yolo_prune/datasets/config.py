"""Settings of augmentation and of the synthetic hands; importing them costs nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from re import fullmatch

from yolo_prune.errors import ConfigError


@dataclass(frozen=True)
class AugmentConfig:
    """How training pictures are varied."""

    mosaic: float = 0.5
    """Probability that a picture is joined with three others."""
    flip: float = 0.5
    """Probability that left and right change places."""
    hue: float = 0.015
    """Largest turn of the hue, as a share of the colour circle."""
    saturation: float = 0.6
    """Largest change of the saturation, as a share of it."""
    value: float = 0.4
    """Largest change of the brightness, as a share of it."""
    scale: float = 0.5
    """Largest change of the size, as a share of it."""
    translate: float = 0.1
    """Largest shift along each axis, as a share of the network's side."""
    degrees: float = 0.0
    """Largest rotation to either side."""

    def __post_init__(self) -> None:
        for name in ("mosaic", "flip", "hue", "saturation", "value", "translate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"{getattr(self, name)} is out of range", where=name, right="use a number from 0 to 1"
                )
        if not 0 <= self.scale < 1:
            raise ConfigError(f"{self.scale} is out of range", where="scale", right="use a number from 0 to below 1")
        if not 0 <= self.degrees <= 180:
            raise ConfigError(f"{self.degrees} is out of range", where="degrees", right="use a number from 0 to 180")

    def without_mosaic(self) -> AugmentConfig:
        """Return the same settings with mosaic switched off."""
        return replace(self, mosaic=0.0)


@dataclass(frozen=True)
class SyntheticConfig:
    """How many pictures of drawn hands to make, and what they show."""

    train: int = 1600
    """Pictures to train on; with 200 + 400 more, made in half a minute on two cores."""
    val: int = 200
    """Pictures to choose by."""
    test: int = 400
    """Pictures to report on; about 600 hands, so that AP50 is known to about ±0.02."""
    size_px: int = 256
    """The pictures' longer side; enough to train at 160-224 px, where a small CPU does, with room for augmentation."""
    max_hands: int = 4
    """The most hands in one picture; a seventh of the pictures shows none."""
    seed: int = 0
    """Another seed draws other pictures."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn.

        Raises:
            ConfigError: a value is out of range.
        """
        lowest = {"train": 1, "val": 1, "test": 1, "size_px": 64, "max_hands": 0, "seed": 0}
        for name, low in lowest.items():
            if (value := getattr(self, name)) < low:
                raise ConfigError(f"{value} is too small", where=name, right=f"give {low} or more")


@dataclass(frozen=True)
class VggHandConfig:
    """Where the Visual Geometry Group's hand archive is, and what to make of it."""

    url: str = "http://www.robots.ox.ac.uk/~vgg/data/hands/downloads/hand_dataset.tar.gz"
    """What is downloaded, unless there is an archive."""
    archive: Path | None = None
    """An archive that is there already; nothing is downloaded then."""
    sha256: str | None = None
    """The hash that the archive must have, as 64 hexadecimal digits."""
    trainval: bool = False
    """Train on the official train and val together, 4,807 pictures, as the case study does."""
    any_counts: bool = False
    """Go on where the counts are not the published ones."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ConfigError: an archive and an address are both given, or the hash is none.
        """
        if self.archive is not None and self.url != type(self).url:
            raise ConfigError(f"{self.archive} is given as well", where="url", right="give either --url or --archive")
        if self.sha256 is not None and not fullmatch("[0-9a-fA-F]{64}", self.sha256):
            raise ConfigError(f"{self.sha256} is no SHA-256", where="sha256", right="give 64 hexadecimal digits")


@dataclass(frozen=True)
class CheckConfig:
    """How a data set is checked."""

    img_size: int = 416
    """Side in pixels of the square that the network will be given: box sizes are reported as they are there."""
    near: int = 12
    """Most of the 64 bits of two perceptual hashes that may differ in pictures that look alike.

    Measured against copies of 1,235 real and 1,100 drawn pictures: mirrored, re-encoded at JPEG quality 60, scaled to 70 %
    or brightened by 10 % they differ by at most 8 bits, cropped by 3 % all but 2 of them by at most 12. Of 6 million pairs
    of real pictures from different scenes 377 come as near by chance; the second look, at thumbnails
    (`lookalikes.LEAST_CORRELATION`), lets none of them pass.
    """
    workers: int | None = None
    """Threads that decode pictures; None takes one for each usable core."""

    def __post_init__(self) -> None:
        """Refuse what cannot be used.

        Raises:
            ConfigError: a value is out of range.
        """
        if self.img_size < 1:
            raise ConfigError(f"{self.img_size} is out of range", where="img_size", right="use a multiple of 32")
        if not 0 <= self.near <= 64:
            raise ConfigError(
                f"{self.near} is out of range", where="near", right="use 0 to 64 bits; 0 finds equal hashes alone"
            )
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"{self.workers} is out of range", where="workers", right="use 1 or more")
