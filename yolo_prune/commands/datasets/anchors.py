"""`data anchors`: find anchors that fit a data set's boxes, measure how well, and compare them with a cfg's own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolo_prune.arrays import Float64Array
from yolo_prune.console import Bar, report
from yolo_prune.darknet.anchors import get_anchors, resize
from yolo_prune.darknet.cfg import load_cfg
from yolo_prune.datasets.anchors import AnchorFit, find_anchors, format_anchors, load_sides, measure_fit, round_anchors
from yolo_prune.datasets.config import AnchorsConfig
from yolo_prune.datasets.spec import load_spec
from yolo_prune.image_size import ImageSize, make_size
from yolo_prune.model.config import LossConfig
from yolo_prune.text_tables import format_table, pluralize

COUNT = 9
"""Number of anchors to find without a cfg: as many as YOLOv3 has."""


@dataclass(frozen=True)
class CfgAnchors:
    """The anchors of a cfg's heads, in pixels at the input size used here, and how well they fit the same boxes."""

    path: Path
    anchors: Float64Array
    fit: AnchorFit


@dataclass(frozen=True)
class AnchorsResult:
    """The anchors found for the boxes of a split, and how well they fit them."""

    split: str
    img_size: ImageSize
    exact: Float64Array
    """(K, 2) before rounding, in pixels of an input of `img_size`, sorted by area."""
    anchors: Float64Array
    """(K, 2) in whole pixels; `fit` is measured with these."""
    fit: AnchorFit
    ratio: float
    """The loss's anchor_ratio."""
    cfg: CfgAnchors | None

    def as_dict(self) -> dict[str, Any]:
        """Return the result under the names that JSON output uses."""
        whole = [[round(side) for side in anchor] for anchor in self.anchors.tolist()]
        values = {"anchors": whole, "anchors_exact": self.exact.tolist(), **asdict(self.fit)}
        values |= {"anchor_ratio": self.ratio, "img_size": self.img_size.plain, "split": self.split}
        if self.cfg is None:
            return values
        cfg = {"path": str(self.cfg.path), "anchors": self.cfg.anchors.tolist(), **asdict(self.cfg.fit)}
        return {**values, "cfg": cfg}

    @property
    def stdout(self) -> str:
        """Whole-pixel anchors on the first line, as `cfg make --anchors` takes them, then the figures."""
        counts = f"{pluralize(len(self.anchors), 'anchor')} for {pluralize(self.fit.boxes, 'box', 'boxes')}"
        head = f"{counts} of {self.split} at {self.img_size} px"
        rows: list[tuple[str, ...]] = [(head, "found", *([] if self.cfg is None else [str(self.cfg.path)]))]
        for title, name in (
            ("mean IoU of a box and its best anchor", "mean_iou"),
            ("recall: boxes whose best anchor's IoU is at least 0.5", "recall_50"),
            (f"boxes within the loss's factor of {self.ratio:g} of an anchor", "within_ratio"),
        ):
            value = getattr(self.fit, name)
            other = None if self.cfg is None else getattr(self.cfg.fit, name)
            rows.append((title, f"{value:.4f}", *([] if other is None else [f"{other:.4f} ({value - other:+.4f})"])))
        return f"{format_anchors(self.anchors)}\n{format_table(rows)}"


def find_data_anchors(data: Path, config: AnchorsConfig) -> AnchorsResult:
    """Find anchors for the boxes of a split. Without a count, find as many as the heads of the cfg use, or else nine.

    Raises:
        DatasetError: the data set cannot be read, or has too few different boxes.
        CfgError: the cfg cannot be read, or its input cannot have that size.
    """
    img_size, split, cfg = make_size(config.img_size), config.split, config.cfg
    old = None if cfg is None else np.array(get_anchors(resize(load_cfg(cfg), img_size)))
    spec, ratio = load_spec(data), LossConfig().anchor_ratio
    with Bar("reading boxes") as bar:
        sides = load_sides(spec.samples(split), len(spec.names), img_size, bar.show)
    wanted = config.count or (COUNT if old is None else len(old))
    exact = find_anchors(sides, wanted, config.seed, where=f"{data}: {split}", report=report)
    anchors = round_anchors(exact)
    beside = None if cfg is None or old is None else CfgAnchors(cfg, old, measure_fit(sides, old, ratio))
    return AnchorsResult(split, img_size, exact, anchors, measure_fit(sides, anchors, ratio), ratio, beside)
