"""What is on the page, as plain data: measured or read elsewhere, and drawn by the other modules of this package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yolo_prune.benchmarking.table import Row


@dataclass(frozen=True)
class Stage:
    """How one checkpoint was made."""

    name: str
    """Its row in the table."""
    kind: str
    """train, sparse, prune, finetune, iterate or import; `exported` for an exported file, empty if unknown."""
    path: str
    sha256: str
    version: str
    """Of this package, with the git revision if that is known; empty if unknown."""
    data: str
    """The data set that it was made on, empty if unknown."""
    settings: str
    """As YAML; empty if unknown."""
    command: str
    """What makes it again; empty if that cannot be said."""
    epochs: tuple[Mapping[str, float | None], ...] = ()
    """The rows of results.csv."""
    gammas: tuple[tuple[int, ...], ...] = ()
    """With γ sparsity, a histogram of |γ| per epoch; see `training.report.count_gammas`."""


@dataclass(frozen=True)
class LayerWidth:
    """The output channels of a convolution."""

    layer: int
    before: int | None
    """None without a network to compare with."""
    after: int
    """0 for a layer of a residual block that was removed."""
    group: str
    """The letter of its shortcut group, or empty."""


@dataclass(frozen=True)
class ShortcutGroup:
    """Convolutions that must keep the same channels, because shortcuts add their outputs."""

    letter: str
    layers: tuple[int, ...]


@dataclass(frozen=True)
class LayerTime:
    """Milliseconds of one layer for one image, timed alone; None for one that a network has not."""

    layer: int
    kind: str
    before_ms: float | None
    after_ms: float | None


@dataclass(frozen=True)
class CurvePoint:
    """A threshold: detections with at least this confidence count."""

    recall: float
    precision: float
    confidence: float


@dataclass(frozen=True)
class ScoreCurve:
    """Precision over recall of one model."""

    name: str
    points: tuple[CurvePoint, ...]
    """By rising recall."""
    best: CurvePoint
    """Where F1 is highest."""
    f1: float
    """At that point."""


@dataclass(frozen=True)
class Box:
    """A rectangle on an image, its sides in shares of the image's."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    """before, after, truth, miss or false."""
    label: str = ""


@dataclass(frozen=True)
class Preview:
    """An image with boxes."""

    name: str
    """The image's file name."""
    jpeg: bytes = field(repr=False)
    width: int
    height: int
    boxes: tuple[Box, ...]
    description: str
    """What is on it, for those who cannot see it."""


@dataclass(frozen=True)
class ErrorCount:
    """What one model misses and what it finds where nothing is, at the confidence where its F1 is highest."""

    name: str
    confidence: float
    objects: int
    misses: int
    false_alarms: int


@dataclass(frozen=True)
class Report:
    """Everything on the page. What is empty is left out, and `reasons` says why."""

    title: str
    date: str
    version: str
    rows: tuple[Row, ...]
    environment: Mapping[str, Any]
    split: str | None
    images: int
    """Images of the split; 0 if nothing was scored."""
    objects: int
    """Objects in them."""
    stages: tuple[Stage, ...]
    widths: tuple[LayerWidth, ...] = ()
    groups: tuple[ShortcutGroup, ...] = ()
    times: tuple[LayerTime, ...] = ()
    times_engine: str = ""
    """What the layers were timed in."""
    curves: tuple[ScoreCurve, ...] = ()
    comparisons: tuple[Preview, ...] = ()
    """Detections of the first and of the last model."""
    errors: tuple[ErrorCount, ...] = ()
    mistakes: tuple[Preview, ...] = ()
    """Misses and false alarms of the last model."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """A sentence for each part that is left out, by its name: widths, times, gammas, epochs, curves, comparisons, mistakes."""

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models, each once, in the table's order."""
        return tuple(dict.fromkeys(row.name for row in self.rows))
