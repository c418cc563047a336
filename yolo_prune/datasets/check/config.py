"""Settings of the data set checker; importing them costs nothing."""

from __future__ import annotations

from dataclasses import dataclass

from yolo_prune.errors import ConfigError


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
