"""The second table of bench: how times spread, what they consist of, and what bounds them; and rows as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from yolo_prune.benchmarking.table import Row, add_conditions

HEADINGS = ("model", "p5", "p50", "p95", "images/s", "decoding", "NMS", "memory", "bound by")


def format_details(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the cells, with the headings first; milliseconds per call, NMS and throughput per image."""
    return add_conditions([HEADINGS, *(_format_row(row) for row in rows)], rows, always=("engine",))


def _format_row(row: Row) -> tuple[str, ...]:
    times = row.latency_ms
    return (
        *(row.name, f"{times.p5:.2f}ms", f"{times.p50:.2f}ms", f"{times.p95:.2f}ms"),
        f"{row.images_per_s:.0f}" if row.images_per_s >= 10 else f"{row.images_per_s:.1f}",
        "inside" if row.decode_ms is None else f"{row.decode_ms.p50:.2f}ms",
        f"{row.nms_ms.p50:.2f}ms",
        "–" if row.memory_bytes is None else f"{row.memory_bytes / 1e6:.1f}MB",
        row.bound or "–",
    )


def format_csv(rows: Sequence[Row]) -> str:
    """Return the rows as CSV, a column for each number; intervals are two columns, and what was not measured is empty."""
    lines = [dict(_flatten(row.as_dict())) for row in rows]
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().rstrip("\n")


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key == "classes":
            value = {one["name"]: {part: one[part] for part in one if part != "name"} for one in value or ()}
        if isinstance(value, dict):
            flat.extend(_flatten(value, f"{name}_"))
        elif isinstance(value, tuple | list):
            ends = ("low", "high") if len(value) == 2 else ("value", "low", "high")
            flat.extend((f"{name}_{end}", item) for end, item in zip(ends, value, strict=True))
        else:
            flat.append((name, value))
    return flat
