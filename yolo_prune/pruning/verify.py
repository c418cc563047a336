"""Hold a rebuilt network against the one whose channels were silenced."""

from __future__ import annotations

from pathlib import Path

from yolo_prune.errors import PlanError
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.surgery import Comparison, compare

VERIFY_IMG_SIZE = 64
MAX_DIFFERENCE = 1e-9
"""How far rebuilt and masked may be apart, in float64."""
MAX_SHARE = 1e-6
"""The same as a share of how much the masked network's outputs move over an image."""
ROUNDING = 1e-13
"""What float64 sums in another order may differ by, however little the outputs move."""


def verify(expected: Detector, found: Detector, source: Path | str) -> float:
    """Return how far a rebuilt network's outputs are from those of its masked or silenced twin at most, in float64.

    Raises:
        PlanError: further than rounding explains; `source` is where the network comes from.
    """
    return verify_response(expected, found, source).difference


def verify_response(expected: Detector, found: Detector, source: Path | str) -> Comparison:
    """Do the same, and tell how much the outputs move over an image as well."""
    compared = compare(expected, found, VERIFY_IMG_SIZE)
    if not compared.difference <= min(MAX_DIFFERENCE, max(ROUNDING, MAX_SHARE * compared.response)):
        raise PlanError(
            f"the rebuilt network differs from the masked one by {compared.difference:.3g}, whose outputs move by {compared.response:.3g}",
            where=source,
            right="report this, it is a defect",
        )
    return compared
