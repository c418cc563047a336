"""What all plots share: Vega-Lite as plain data, the colours of the page's style sheet, and a table for each plot.

Colours are CSS variables, so that a plot follows the page from light to dark and into print without being drawn anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from yolo_prune.report.tables import Table

Spec: TypeAlias = dict[str, Any]
"""A Vega-Lite specification. Text of users is data in it, never a part of an expression or the name of a field."""

BEFORE, AFTER = "var(--before)", "var(--accent)"
BETWEEN = tuple(f"var(--between-{number})" for number in (1, 2, 3))
DASHES: tuple[tuple[int, ...], ...] = ((1, 0), (6, 3), (2, 2), (8, 2, 2, 2))
DIGITS = 5

CONFIG: Spec = {
    "background": "transparent",
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--muted)",
        "titleColor": "var(--muted)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "gridColor": "var(--line)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
    },
}
"""The look of all plots."""


@dataclass(frozen=True)
class Plot:
    """A plot and what stands in for it where it cannot be seen: a description and a table."""

    key: str
    """Its name in the page, unique."""
    title: str
    description: str
    spec: Spec
    table: Table | None
    """None where another plot of the same data has it."""
    min_width_px: int = 0
    """A narrower page scrolls the plot, not itself."""
    is_described: bool = True
    """Whether the description is shown, too; else it is there for screen readers alone."""


@cache
def load_bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as JavaScript that needs nothing else."""
    import vl_convert  # 88 MB, which no command but those that make a page should load

    return vl_convert.javascript_bundle()  # type: ignore[call-arg]  # the stub lacks the default that the function has


def make_spec(layers: Sequence[Spec], height: int, **more: Any) -> Spec:
    """Return a layered plot as wide as its place on the page."""
    return {"width": "container", "height": height, "layer": list(layers), **more}


def make_axis(field: str, title: str, kind: str = "quantitative", **more: Any) -> Spec:
    """Return the encoding of a field along an axis."""
    return {"field": field, "type": kind, "title": title, **more}


def make_tooltip(*fields: tuple[str, str]) -> list[Spec]:
    """Return what is shown of a mark under the pointer: fields of ready text, and their titles."""
    return [{"field": field, "type": "nominal", "title": title} for field, title in fields]


def pick_colours(count: int) -> list[str]:
    """Return a colour for each of several models: grey for the first, the accent for the last."""
    if count == 1:
        return [AFTER]
    return [BEFORE, *(BETWEEN[number % len(BETWEEN)] for number in range(count - 2)), AFTER]


def make_colour(names: Sequence[str]) -> Spec:
    """Return the encoding of a model's name as its colour; the legend is part of the page."""
    scale = {"domain": list(names), "range": pick_colours(len(names))}
    return {"field": "name", "type": "nominal", "scale": scale, "legend": None}


def make_dash(names: Sequence[str]) -> Spec:
    """Return the encoding of a model's name as the dashes of its line: none for the last."""
    places = range(len(names) - 1, -1, -1)
    scale = {"domain": list(names), "range": [list(DASHES[place % len(DASHES)]) for place in places]}
    return {"field": "name", "type": "nominal", "scale": scale, "legend": None}


def clean(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a datum that JSON can hold: rounded, and null for what is no finite number."""
    return {key: _clean(value) for key, value in values.items()}


def _clean(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value
