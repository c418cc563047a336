"""What every exported file carries: how to feed it, what its outputs are, and which checkpoint it was made from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic import FiniteFloat, NonNegativeInt

from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.image_size import ImageSize, parse_size
from yolo_prune.records import parse_record

KEY = "yolo_prune"
"""The name under which a file holds the metadata."""
NMS_LEFT = "NMS is left to do: per class, at IoU 0.5."
NMS_DONE = "float32 (batch, M, 6), rows x1 y1 x2 y2 in pixels of the input, score, class; the best first; rows of score 0 are empty."
INPUT = (
    "images: float32 (batch, 3, height, width), RGB, 0 to 1. Resize the image to just fit in, by area to shrink and "
    "linearly to enlarge, rounding its sides, and put it in the middle of grey 114/255 (half of the padding, rounded down, left and above)."
)
OUTPUTS = {
    "yoloprune": (
        "boxes: float32 (batch, N, 4), x1 y1 x2 y2 in pixels of the input; scores: float32 (batch, N, classes), 0 to 1, "
        f"objectness times class probability. {NMS_LEFT}"
    ),
    "ultralytics": (
        f"output0: float32 (batch, 4 + classes, N), rows cx cy w h in pixels of the input, then a score for each class. {NMS_LEFT}"
    ),
}
"""What each layout of the outputs means."""


@dataclass(frozen=True)
class Metadata:
    """The facts about an exported network."""

    names: tuple[str, ...]
    img_size: ImageSize
    layout: str
    """A key of `OUTPUTS`."""
    precision: str
    """fp32, fp16 (weights) or int8 (weights and activations)."""
    dynamic: str
    """What may change: none, the number of images (batch), or also height and width (size)."""
    params: int
    macs: int
    size_bytes: int
    """Bytes of the weights in fp32, with BN statistics."""
    anchors: tuple[tuple[tuple[float, float], ...], ...]
    """Width and height in pixels of the anchors of each head."""
    checkpoint_sha256: str
    stage: str
    """The command that made the checkpoint."""
    data_fingerprint: str | None
    version: str
    nms: dict[str, float] | None = None
    """The settings of detection, if NMS is inside."""

    @property
    def outputs(self) -> str:
        """What the outputs are, in words."""
        if self.nms is None:
            return OUTPUTS[self.layout]
        return f"{'detections' if self.layout == 'yoloprune' else 'output0'}: {NMS_DONE}"

    def format(self) -> str:
        """Return the metadata as JSON text, together with what input and outputs are."""
        values = {**asdict(self), "img_size": self.img_size.plain}
        return json.dumps({**values, "input": INPUT, "outputs": self.outputs})


@dataclass(frozen=True)
class _Stored:
    """What `Metadata.format` writes, but for what input and outputs are in words."""

    names: Annotated[list[str], MinLen(1)]
    img_size: int | str
    layout: Literal["yoloprune", "ultralytics"]
    precision: str
    dynamic: Literal["none", "batch", "size"]
    params: NonNegativeInt
    macs: NonNegativeInt
    size_bytes: NonNegativeInt
    anchors: list[list[tuple[FiniteFloat, FiniteFloat]]]
    checkpoint_sha256: str
    stage: str
    data_fingerprint: str | None
    version: str
    nms: dict[str, bool | int | FiniteFloat] | None = None


def parse_metadata(text: str | None, path: Path) -> Metadata:
    """Parse what `Metadata.format` wrote.

    Raises:
        CheckpointError: there is none, or it is damaged; names the file.
    """
    if text is None:
        right = "export it with yoloprune export"
        raise CheckpointError("does not say what its inputs and outputs are", where=path, right=right)
    where, right = f"{path}: metadata", "export it again"
    try:
        stored = parse_record(_Stored, json.loads(text), where, CheckpointError, right)
        facts = {"names": tuple(stored.names), "img_size": parse_size(stored.img_size)}
        return Metadata(**{**vars(stored), **facts, "anchors": tuple(map(tuple, stored.anchors))})
    except (ValueError, RecursionError, ConfigError) as error:
        raise CheckpointError(f"is damaged ({error})", where=where, right=right) from error
