"""Settings that several config classes share: paths, lists, and what every run has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from yolo_prune.config import LARGEST_SEED, RUN, Setting
from yolo_prune.errors import ConfigError

PathSetting = Annotated[Path, Field(strict=False), AfterValidator(Path.expanduser)]
"""A path, `~` for the home folder."""
Numbers = Annotated[tuple[float, ...], Field(strict=False)]
WholeNumbers = Annotated[tuple[int, ...], Field(strict=False)]
Words = Annotated[tuple[str, ...], Field(strict=False)]


def _check_run_name(name: str) -> str:
    if name == ".." or Path(name).name != name or not name:
        raise ConfigError(f"{name!r} is no folder name", where="name", right="use a plain name without slashes")
    return name


RunName = Annotated[str, AfterValidator(_check_run_name), Setting("The run's folder below runs/.", group=RUN)]
Device = Annotated[str, Setting("auto, cpu, cuda or cuda:N.", group=RUN, resumable=True)]
Seed = Annotated[int, Setting("All random numbers follow from it.", ge=0, le=LARGEST_SEED, group=RUN)]
MAX_MINUTES = Setting(
    "Save and stop with exit code 124 after so long; --resume goes on.",
    ge=0,
    unit="minutes",
    group=RUN,
    resumable=True,
)
MaxMinutes = Annotated[float | None, MAX_MINUTES]


def check_img_size(img_size: int) -> int:
    """Return `img_size`, a side in pixels, if it is a multiple of 32, the stride of the coarsest head.

    Raises:
        ConfigError: it is not; names the nearest valid size.
    """
    if img_size < 32 or img_size % 32:
        right = f"use {max(32, round(img_size / 32) * 32)}"
        raise ConfigError(f"{img_size} is no multiple of 32", where="img_size", right=right)
    return img_size


ImgSize = Annotated[int, AfterValidator(check_img_size)]
"""The side of a network's square input, in pixels."""
