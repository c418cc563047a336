"""The line of every epoch fits its terminal, and says more where there is room."""

from __future__ import annotations

from typing import Any

import pytest

from yolo_prune.training.epoch_line import format_epoch

ROW: dict[str, Any] = {
    "epoch": 12, "loss": 5.3312, "box": 3.2821, "objectness": 2.0334, "classes": 0.5125, "images_per_s": 117.3,
    "val_map50": 0.72041, "channels_below": 0, "channels": 800,
}  # fmt: skip
LEFT = {"params": 490_000, "macs": 78_500_000}
SPARSE = {"channels_below": 416, "pruned_params": 490_000, "pruned_macs": 78_500_000, "pruned_map50": 0.7123}


def test_with_room_all_is_told() -> None:
    assert format_epoch({**ROW, "teacher": 1.2}, 30, None) == (
        "epoch 12/30: loss 5.331 (box 3.28, obj 2.03, cls 0.51, teacher 1.20), val AP50 0.7204, 117 images/s"
    )
    assert format_epoch({**ROW, **SPARSE}, 30, None).endswith(
        ", 117 images/s; 416 of 800 channels (52%) near zero; pruned now val AP50 0.7123, 490.0K params, 78.5M MACs"
    )


def test_without_a_validation_no_score_is_told() -> None:
    assert "AP50" not in format_epoch({**ROW, "val_map50": None, **SPARSE, "pruned_map50": None}, 30, None)


@pytest.mark.parametrize("more", [{}, {"teacher": 1.2}, LEFT, SPARSE, {**SPARSE, "teacher": 1.2}])
@pytest.mark.parametrize("epochs", [9, 300])
def test_the_line_fits_80_columns_and_tells_loss_and_score(more: dict[str, Any], epochs: int) -> None:
    row = {**ROW, **more, "epoch": epochs}
    line = format_epoch(row, epochs, 80)
    assert len(line) <= 80
    assert line.startswith(f"epoch {epochs}/{epochs}: loss 5.331")
    assert "AP50 0.7204" in line
    if "macs" in str(more):
        assert "78.5M MACs" in line
    assert len(format_epoch(row, epochs, 120)) <= 120
