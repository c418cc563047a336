"""Max pools in exported files: the same numbers without −∞, and no work for padding that no window reaches."""

from __future__ import annotations

import pytest
import torch

from yolo_prune.darknet.layers import MaxPool
from yolo_prune.export.pools import ReplicatePool
from yolo_prune.model.detector import MaxPoolLayer


@pytest.mark.parametrize(
    ("layer", "side", "is_padded"),
    [
        (MaxPool(2, 2, 1), 8, False),
        (MaxPool(2, 2, 1), 7, True),
        (MaxPool(2, 1, 1), 8, True),
        (MaxPool(4, 1, 3), 8, True),
        (MaxPool(3, 4, 1), 8, False),
    ],
)
def test_only_padding_within_reach_is_made(layer: MaxPool, side: int, is_padded: bool) -> None:
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    pool = ReplicatePool(layer)
    assert torch.equal(pool(images), MaxPoolLayer(layer)(images))
    program = torch.export.export(pool, (images,))
    assert any("cat" in str(node.target) for node in program.graph.nodes) is is_padded
