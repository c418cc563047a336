"""Settings that several config classes share: paths, lists, and what every run has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema

from yolo_prune.config import LARGEST_SEED, RUN, Setting
from yolo_prune.errors import ConfigError
from yolo_prune.files import can_be_path, expand_home
from yolo_prune.image_size import STRIDE_PX, AnySize, ImageSize, parse_size


def _make_path(path: Path) -> Path:
    if not can_be_path(path):
        raise ValueError("cannot be a path")
    return expand_home(path)


PathSetting = Annotated[Path, Field(strict=False), AfterValidator(_make_path)]
"""A path, `~` for the home folder."""
TableEngine: TypeAlias = Literal["folded", "cudagraph", "onnxruntime", "openvino"]
"""Engines whose layers can be timed one by one."""


def _make_list(value: Any) -> Any:
    return (value,) if isinstance(value, int | float | str) and not isinstance(value, bool) else value


Numbers = Annotated[tuple[float, ...], Field(strict=False)]
WholeNumbers = Annotated[tuple[int, ...], Field(strict=False)]
Words = Annotated[tuple[str, ...], Field(strict=False)]
ONE_OR_SEVERAL = BeforeValidator(_make_list)
"""Beside the type of a list: one value may be given as it is."""


MOST_IMAGES = 65_536
"""In a batch: no machine holds more."""
MOST_PROCESSES = 512
"""That load images, and threads: more than any machine's cores bring it down."""


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


Force = Annotated[
    bool,
    Setting("Replace files that are there, and that the command did not make itself.", group=RUN),
]


_SIZE_SCHEMA = {
    "anyOf": [
        {"type": "integer", "minimum": STRIDE_PX, "multipleOf": STRIDE_PX},
        {"type": "string", "pattern": "^[0-9]+x[0-9]+$"},
    ]
}
if TYPE_CHECKING:
    ImgSize: TypeAlias = AnySize  # what may be given; what is kept is always an ImageSize
else:
    ImgSize = Annotated[
        ImageSize,
        PlainValidator(parse_size),
        PlainSerializer(lambda size: size.plain),
        WithJsonSchema(_SIZE_SCHEMA),
    ]
"""The size of a network's input: the side of a square in pixels, or WIDTHxHEIGHT."""
