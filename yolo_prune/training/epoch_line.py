"""What is told after every epoch, in one line that fits the terminal."""

from __future__ import annotations

from typing import Any

from yolo_prune.text_tables import format_count

WORDS = {"box": "box", "objectness": "obj", "classes": "cls", "teacher": "teacher"}
"""The parts of the loss, as the line names them."""
DETAILS = (("parts", "rate"), ("rate",), ("parts",), ())
"""What a line has beside loss and AP50, from the longest one to the shortest."""


def format_epoch(row: dict[str, Any], epochs: int, columns: int | None) -> str:
    """Return an epoch's row of results.csv as a line of at most so many columns, if that can be; None is no limit.

    Losses are means over the epoch's steps. What is left after pruning is told while channels are removed, or while γ sparsity
    brings them to zero.
    """
    texts = [_join(row, epochs, details, is_long) for is_long in (True, False) for details in DETAILS]
    return next((text for text in texts if columns is None or len(text) <= columns), texts[-1])


def _join(row: dict[str, Any], epochs: int, details: tuple[str, ...], is_long: bool) -> str:
    line = f"epoch {row['epoch']}/{epochs}: loss {row['loss']:.3f}"
    if "parts" in details:
        parts = (f"{word} {row[name]:.2f}" for name, word in WORDS.items() if name in row)
        line += f" ({', '.join(parts)})"
    if row["val_map50"] is not None:
        line += f", val AP50 {row['val_map50']:.4f}"
    if "rate" in details:
        line += f", {row['images_per_s']:.0f} images/s"
    if "params" in row:
        return f"{line}; {format_count(row['params'])} params, {format_count(row['macs'])} MACs left"
    return f"{line}; {_describe_slim(row, is_long)}" if "pruned_macs" in row else line


def _describe_slim(row: dict[str, Any], is_long: bool) -> str:
    """Say what is left if the channels near zero are pruned now."""
    score = row["pruned_map50"]
    if not is_long:
        what = "pruned now" if score is None else f"pruned now {score:.4f}"
        return f"{what}, {format_count(row['pruned_macs'])} MACs"
    share = row["channels_below"] / max(1, row["channels"])
    scored = "" if score is None else f"val AP50 {score:.4f}, "
    sizes = f"{format_count(row['pruned_params'])} params, {format_count(row['pruned_macs'])} MACs"
    return f"{row['channels_below']} of {row['channels']} channels ({share:.0%}) near zero; pruned now {scored}{sizes}"
