"""The plots of costs and scores: the frontier, and precision over recall."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from yolo_prune.benchmarking.table import CONDITIONS, Row
from yolo_prune.report.data import Report, ScoreCurve
from yolo_prune.report.tables import Table, make_cells
from yolo_prune.report.vega import Plot, Spec, clean, make_axis, make_colour, make_dash, make_spec, make_tooltip

DODGE_PX = 7
"""Points at one place are drawn so far apart."""


@dataclass(frozen=True)
class _Cost:
    """A cost that mAP is plotted against."""

    key: str
    title: str
    name: str
    """The title within a sentence."""
    unit: str
    get: Callable[[Row], float]
    get_interval: Callable[[Row], tuple[float, float]] | None = None


COSTS = (
    _Cost("params", "Parameters", "parameters", "millions", lambda row: row.params / 1e6),
    _Cost("macs", "MACs", "MACs", "millions", lambda row: row.macs / 1e6),
    _Cost(
        "latency",
        "Latency",
        "latency",
        "ms per image",
        lambda row: row.image_ms,
        lambda row: (row.latency_ms.p5 / row.batch_size, row.latency_ms.p95 / row.batch_size),
    ),
)


def make_frontier(report: Report) -> list[Plot]:
    """Plot mAP against parameters, MACs and latency, with intervals; nothing where nothing was scored."""
    rows = [row for row in report.rows if row.scores is not None and math.isfinite(row.scores.map50)]
    if not rows:
        return []
    table = _make_frontier_table(rows)
    return [_make_frontier(cost, rows, report.models, table if cost is COSTS[-1] else None) for cost in COSTS]


def _make_frontier(cost: _Cost, rows: Sequence[Row], models: Sequence[str], table: Table | None) -> Plot:
    layers: list[Spec] = []
    for row, shift in zip(rows, _dodge([cost.get(row) for row in rows]), strict=True):
        layers += _make_point(cost, row, shift, models)
    title = f"{cost.title} in {cost.unit}"
    ends = [row.scores.map50_interval for row in rows if row.scores is not None]
    described = "; ".join(f"{row.name}: {cost.get(row):.4g} {cost.unit}, mAP {_get_map50(row):.3f}" for row in rows)
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    for layer in layers:
        layer["encoding"]["x"] |= {"title": title, "scale": {"zero": True, "nice": True}, "axis": {"tickCount": 4}}
        layer["encoding"]["y"] |= {
            "title": "mAP",
            "scale": {"zero": False, "domain": _widen(low, high), "nice": True},
            "axis": {"tickCount": 5},
        }
    return Plot(
        f"frontier-{cost.key}",
        f"mAP over {cost.name}",
        f"{described}.",
        make_spec(layers, 240),
        table,
        is_described=False,
    )


def _widen(low: float, high: float) -> list[float]:
    """Return ends with some room around them, none beyond 0 … 1."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return [0, 1]
    room = max(0.01, 0.1 * (high - low))
    return [round(max(0.0, low - room), 3), round(min(1.0, high + room), 3)]


def _dodge(values: Sequence[float]) -> list[float]:
    """Return how many pixels to move each point aside, so that those at one place are seen."""
    shifts = []
    for number, value in enumerate(values):
        alike = [other for other, one in enumerate(values) if one == value]
        shifts.append(DODGE_PX * (alike.index(number) - (len(alike) - 1) / 2))
    return shifts


def _get_map50(row: Row) -> float:
    return math.nan if row.scores is None else row.scores.map50


def _make_point(cost: _Cost, row: Row, shift: float, models: Sequence[str]) -> list[Spec]:
    assert row.scores is not None
    low, high = row.scores.map50_interval
    spread = None if cost.get_interval is None else cost.get_interval(row)
    datum = clean(
        {
            "name": row.name,
            "x": cost.get(row),
            "y": row.scores.map50,
            "low": low,
            "high": high,
            "cost": f"{cost.get(row):.4g} {cost.unit}"
            + ("" if spread is None else " ({:.4g} – {:.4g})".format(*spread)),
            "score": f"{row.scores.map50:.4f} [{low:.3f}, {high:.3f}]",
            "how": ", ".join(f"{name} {get(row)}" for name, get in CONDITIONS.items()),
        }
        | ({} if spread is None else {"from": spread[0], "to": spread[1]})
    )
    data = {"values": [datum]}
    x, y = {"field": "x", "type": "quantitative"}, {"field": "y", "type": "quantitative"}
    colour = make_colour(models)
    hover = make_tooltip(("name", "model"), ("score", "mAP"), ("cost", cost.title), ("how", "measured with"))
    bar = {"type": "rule", "strokeWidth": 2, "opacity": 0.55, "xOffset": shift}
    upright = {"x": dict(x), "y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}, "color": colour}
    layers: list[Spec] = [{"data": data, "mark": bar, "encoding": upright}]
    if spread is not None:
        lying = {"x": {"field": "from", "type": "quantitative"}, "x2": {"field": "to"}, "y": dict(y), "color": colour}
        layers.append({"data": data, "mark": bar, "encoding": lying})
    point = {"type": "point", "filled": True, "size": 110, "opacity": 1, "xOffset": shift}
    encoding = {"x": dict(x), "y": dict(y), "color": colour, "tooltip": hover}
    layers.append({"data": data, "mark": point, "encoding": encoding})
    return layers


def _make_frontier_table(rows: Sequence[Row]) -> Table:
    lines = []
    for row in rows:
        assert row.scores is not None
        low, high = row.scores.map50_interval
        times = row.latency_ms.divide(row.batch_size)
        lines.append(
            (
                row.name,
                *(get(row) for get in CONDITIONS.values()),
                f"{row.params / 1e6:.4g} M",
                f"{row.macs / 1e6:.4g} M",
                f"{times.p50:.2f} ms ({times.p5:.2f} – {times.p95:.2f})",
                f"{row.scores.map50:.4f} [{low:.4f}, {high:.4f}]",
            )
        )
    headings = ("model", *CONDITIONS, "parameters", "MACs", "latency per image", "mAP")
    return Table("mAP and costs, with intervals", headings, make_cells(lines))


READ_AT = tuple(number / 10 for number in range(11))
"""The recalls that the table of the curves lists."""


def make_precision_recall(curves: Sequence[ScoreCurve]) -> Plot:
    """Plot precision over recall of all models, with the point of the best F1."""
    names = [curve.name for curve in curves]
    values = [
        clean(
            {
                "name": curve.name,
                "recall": point.recall,
                "precision": point.precision,
                **_describe(curve, point.confidence),
            }
        )
        for curve in curves
        for point in curve.points
    ]
    best = [
        clean(
            {
                "name": curve.name,
                "recall": curve.best.recall,
                "precision": curve.best.precision,
                **_describe(curve, curve.best.confidence),
                "f1": f"{curve.f1:.4f}",
            }
        )
        for curve in curves
    ]
    scale = {"domain": [0, 1]}
    x = make_axis("recall", "Recall", scale=scale, axis={"tickCount": 5})
    y = make_axis("precision", "Precision", scale=scale, axis={"tickCount": 5})
    fields = (("name", "model"), ("recall", "recall"), ("precision", "precision"), ("at", "confidence"))
    lines: Spec = {
        "data": {"values": values},
        "mark": {"type": "line", "strokeWidth": 2},
        "encoding": {
            "x": x,
            "y": y,
            "color": make_colour(names),
            "strokeDash": make_dash(names),
            "order": {"field": "recall", "type": "quantitative"},
        },
    }
    points: Spec = {
        "data": {"values": best},
        "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
        "encoding": {"x": x, "y": y, "color": make_colour(names), "tooltip": make_tooltip(*fields, ("f1", "F1"))},
    }
    hover: Spec = {
        "data": {"values": values},
        "mark": {"type": "point", "size": 160, "opacity": 0, "filled": True},
        "encoding": {"x": x, "y": y, "tooltip": make_tooltip(*fields)},
    }
    described = "; ".join(
        f"{curve.name}: best F1 {curve.f1:.3f} with precision {curve.best.precision:.3f} and recall {curve.best.recall:.3f}"
        for curve in curves
    )
    return Plot(
        "precision-recall",
        "Precision over recall",
        f"{described}.",
        make_spec([lines, hover, points], 340),
        _make_curve_table(curves),
    )


def _describe(curve: ScoreCurve, confidence: float) -> dict[str, str]:
    return {"at": f"{confidence:.3f}"}


def _make_curve_table(curves: Sequence[ScoreCurve]) -> Table:
    lines = [(f"{recall:.1f}", *(_format_precision(curve, recall) for curve in curves)) for recall in READ_AT]
    return Table(
        "Precision at the recall in the first column", ("recall", *(curve.name for curve in curves)), make_cells(lines)
    )


def _format_precision(curve: ScoreCurve, recall: float) -> str:
    reached = next((point for point in curve.points if point.recall >= recall), None)
    return "not reached" if reached is None else f"{reached.precision:.3f}"
