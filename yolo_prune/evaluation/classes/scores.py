"""The scores of each class by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from yolo_prune.evaluation.average_precision import Score
from yolo_prune.evaluation.matching import Matches, pool_detections, pool_truths


@dataclass(frozen=True)
class ClassScore:
    """How well objects of one class are found. What cannot be measured is nan."""

    name: str
    instances: int
    """Number of counted ground truths."""
    ap50: float
    """AP at IoU 0.5, all points; nan without ground truth."""
    precision: float
    """At the confidence with the best F1 of all classes together; nan without detections."""
    recall: float
    """At the same confidence; nan without ground truth."""

    def as_dict(self) -> dict[str, Any]:
        """Return the score under the names that JSON output uses."""
        return asdict(self)


def measure_class_scores(matches: Sequence[Matches], score: Score, names: Sequence[str]) -> tuple[ClassScore, ...]:
    """Measure the score of every class, in the order of their numbers, also of those without objects.

    Args:
        matches: one per image.
        score: the score of these matches; its confidence is that of precision and recall.
        names: the classes' names.
    """
    pool, (_, truths) = pool_detections(matches), pool_truths(matches)
    counted = pool.scores >= score.confidence
    instances, seen, found = (
        np.bincount(classes, minlength=len(names)).tolist()
        for classes in (truths, pool.classes[counted], pool.classes[counted & pool.hits])
    )
    return tuple(
        ClassScore(
            name=name,
            instances=instances[own],
            ap50=score.ap50.get(own, math.nan),
            precision=found[own] / seen[own] if seen[own] else math.nan,
            recall=found[own] / instances[own] if instances[own] else math.nan,
        )
        for own, name in enumerate(names)
    )


def parse_class_scores(rows: Sequence[Mapping[str, Any]]) -> tuple[ClassScore, ...]:
    """Make scores from the dictionaries of `as_dict`, read from JSON; raise KeyError or TypeError if they are not such."""
    absent = dict.fromkeys(("ap50", "precision", "recall"), math.nan)
    return tuple(ClassScore(**{**row, **{key: absent[key] for key in absent if row[key] is None}}) for row in rows)
