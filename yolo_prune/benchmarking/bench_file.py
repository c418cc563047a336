"""bench.json: what a result of `bench` must hold to be read again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, FiniteFloat, NonNegativeInt, PositiveInt

from yolo_prune.benchmarking.table import Row, parse_row
from yolo_prune.errors import ConfigError, OutputError
from yolo_prune.image_size import read_size
from yolo_prune.records import PathText, load_plain_json, parse_record

RIGHT = "delete it and run again"

_Share = Annotated[float, Field(ge=0, le=1)] | None
"""None is nan."""
_Change = Annotated[float, Field(ge=-1, le=1)] | None
_Count = Annotated[int, Field(ge=0, lt=1 << 63)]
_Conditions = PositiveInt | list[PositiveInt]
"""One number, as in results of older versions, or several."""


def _check_size(value: int | str) -> int | str:
    try:
        size = read_size(value)
    except ConfigError as error:
        raise ValueError(error.what) from None
    if min(size) < 1:
        raise ValueError("is no image size")
    return value


@dataclass(frozen=True)
class _Latency:
    p5: Annotated[FiniteFloat, Field(gt=0)]
    p50: Annotated[FiniteFloat, Field(gt=0)]
    p95: Annotated[FiniteFloat, Field(gt=0)]


@dataclass(frozen=True)
class _Class:
    name: str
    instances: _Count
    ap50: _Share
    precision: _Share
    recall: _Share


@dataclass(frozen=True)
class _Row:
    """A `Row`, its scores at the same level; defaults are those of results of older versions."""

    name: str
    checkpoint: PathText
    img_size: Annotated[int | str, AfterValidator(_check_size)]
    params: _Count
    macs: _Count
    flops: _Count
    size_bytes: _Count
    latency_ms: _Latency
    nms_ms: _Latency
    map50: _Share
    map50_interval: tuple[_Share, _Share] | None
    map50_difference: tuple[_Change, _Change, _Change] | None
    coco_ap50: _Share
    coco_ap: _Share
    classes: list[_Class] | None = None
    engine: str = ""
    file_bytes: NonNegativeInt | None = None
    is_stored_sparse: bool = False
    precision: str = ""
    batch_size: Annotated[int, Field(ge=1, lt=1 << 31)] = 1
    threads: NonNegativeInt | None = None
    decode_ms: _Latency | None = None
    memory_bytes: NonNegativeInt | None = None
    bound: str | None = None


@dataclass(frozen=True)
class _Environment:
    """What the conditions are written from; the rest is only shown."""

    device: str
    engine: str
    precision: str
    runs: PositiveInt
    threads: _Conditions
    batch_size: _Conditions
    clock: str | None = None
    nms_on: str = "noise"


@dataclass(frozen=True)
class _Result:
    environment: _Environment
    rows: list[_Row]
    split: str | None = None


def load_rows(path: Path) -> tuple[tuple[Row, ...], dict[str, Any], str | None]:
    """Read rows, environment and split of a result that `bench` wrote.

    Raises:
        OutputError: the file cannot be read, or a key is missing or wrong; names it.
    """
    values = load_plain_json(path, OutputError, RIGHT)
    result = parse_record(_Result, values, path, OutputError, RIGHT)
    if not result.rows:
        raise OutputError("rows is empty", where=path, right=RIGHT)
    classes = [[one.name for one in row.classes or ()] for row in result.rows if row.map50_interval is not None]
    if any(names != classes[0] for names in classes):
        raise OutputError("its rows are scored on different classes", where=path, right=RIGHT)
    known = {one.name for one in fields(_Environment)}
    environment = {key: value for key, value in values["environment"].items() if key in known or _is_shown(value)}
    return tuple(parse_row(asdict(row)) for row in result.rows), environment, result.split


def _is_shown(value: Any) -> bool:
    """Return whether a condition of another version is text, a number, or a list."""
    return isinstance(value, str | int | float | list)
