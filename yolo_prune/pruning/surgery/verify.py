"""Verify that a rebuilt network has the outputs of the network whose channels were zeroed."""

from __future__ import annotations

from math import isfinite
from pathlib import Path

from yolo_prune.errors import PlanError
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.surgery.rebuild import Comparison, compare

VERIFY_IMG_SIZE = 64
MAX_DIFFERENCE = 1e-9
"""Largest difference allowed between the outputs of the rebuilt and the masked network, in float64."""
MAX_SHARE = 1e-6
"""Largest difference allowed as a share of the range of the masked network's outputs over an image."""
ROUNDING = 1e-13
"""A difference up to this is always allowed: float64 sums in another order may differ by as much."""


def verify(expected: Detector, found: Detector, source: Path | str) -> float:
    """Return the largest difference between the outputs of a rebuilt network and its masked counterpart, in float64.

    Raises:
        PlanError: the difference is more than rounding errors, or the outputs are NaN or infinite; `source` says where
            the network comes from.
    """
    return verify_response(expected, found, source).difference


def verify_response(expected: Detector, found: Detector, source: Path | str) -> Comparison:
    """Do the same as `verify`, and also return the range of the outputs over an image."""
    compared = compare(expected, found, VERIFY_IMG_SIZE)
    if not isfinite(compared.response):
        right = "start from another checkpoint, or import its weights again"
        raise PlanError(
            "its outputs are NaN or infinite: its weights are not those of a trained network", where=source, right=right
        )
    if not compared.difference <= min(MAX_DIFFERENCE, max(ROUNDING, MAX_SHARE * compared.response)):
        raise PlanError(
            f"the rebuilt network differs from the masked one by {compared.difference:.3g}, whose outputs vary by {compared.response:.3g}",
            where=source,
            right="report this, it is a bug",
        )
    return compared
