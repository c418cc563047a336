"""The plots of layers: channels before and after, and times."""

from __future__ import annotations

from collections.abc import Sequence

from yolo_prune.report.data import LayerTime, LayerWidth, ShortcutGroup
from yolo_prune.report.tables import Table, make_cells
from yolo_prune.report.vega import AFTER, BEFORE, Plot, Spec, clean, make_axis, make_spec, make_tooltip
from yolo_prune.text_tables import pluralize

PER_LAYER_PX = 11
FAINT = 0.25
"""Opacity of the layers that do not belong to the group under the pointer."""
HOVER = "hover"


def make_widths(widths: Sequence[LayerWidth], groups: Sequence[ShortcutGroup]) -> Plot:
    """Plot the channels of every convolution: what is left within what there was, with the letters of shortcut groups."""
    values = [
        clean(
            {
                "layer": one.layer,
                "before": one.after if one.before is None else one.before,
                "after": one.after,
                "group": one.group,
                "unit": one.group or f"layer {one.layer}",
                "left": _describe(one),
                "tied": ", ".join(str(layer) for group in groups if group.letter == one.group for layer in group.layers)
                or "–",
            }
        )
        for one in widths
    ]
    fields = (("layer", "layer"), ("left", "channels"), ("tied", "shares channels with layers"))
    encoding = {"x": _make_layer_axis(), "tooltip": make_tooltip(*fields)}
    lit = {"condition": {"param": HOVER, "value": 1}, "value": FAINT}
    layers: list[Spec] = [
        {
            "params": [
                {
                    "name": HOVER,
                    "select": {"type": "point", "on": "pointerover", "clear": "pointerout", "fields": ["unit"]},
                }
            ],
            "mark": {"type": "bar", "color": "var(--before-soft)"},
            "encoding": {"y": make_axis("before", "Channels"), "opacity": lit, **encoding},
        },
        {
            "mark": {"type": "bar", "color": AFTER},
            "encoding": {"y": make_axis("after", "Channels"), "opacity": lit, **encoding},
        },
        {
            "mark": {"type": "text", "dy": -7, "fontSize": 11, "color": "var(--ink)"},
            "encoding": {"y": make_axis("before", "Channels"), "text": {"field": "group"}, **encoding},
        },
    ]
    all_before, all_after = sum(one.before or 0 for one in widths), sum(one.after for one in widths)
    convs = f"channels of {pluralize(len(widths), 'convolution')}"
    described = f"{all_before:,} {convs} before, {all_after:,} after." if all_before else f"{all_after:,} {convs}."
    lines = [(str(one.layer), _get(one.before), str(one.after), one.group or "–") for one in widths]
    table = Table("Channels of every convolution", ("layer", "before", "after", "shortcut group"), make_cells(lines))
    spec = make_spec(layers, 260, data={"values": values})
    return Plot("widths", "Channels per layer", described, spec, table, 60 + PER_LAYER_PX * len(widths))


def _make_layer_axis() -> Spec:
    axis = {"labelAngle": 0, "labelOverlap": True, "grid": False, "ticks": False}
    return make_axis("layer", "Layer", "ordinal", axis=axis, scale={"paddingInner": 0.15})


def _get(number: int | None) -> str:
    return "–" if number is None else str(number)


def _describe(width: LayerWidth) -> str:
    if not width.before:
        return str(width.after)
    return f"{width.before} → {width.after} ({width.after / width.before - 1:+.0%})"


def make_groups_table(widths: Sequence[LayerWidth], groups: Sequence[ShortcutGroup]) -> Table:
    """Return the shortcut groups with their layers and channels."""
    own = {one.layer: one for one in widths}
    lines = [(group.letter, ", ".join(map(str, group.layers)), _describe(own[group.layers[0]])) for group in groups]
    caption = "Shortcut groups: layers whose outputs are added, and which therefore keep the same channels"
    return Table(caption, ("group", "layers", "channels"), make_cells(lines))


def make_times(times: Sequence[LayerTime]) -> Plot:
    """Plot the time of every layer, before and after where both are known."""
    values = [
        clean({"layer": one.layer, "when": when, "ms": ms, "kind": one.kind, "time": f"{ms:.3f} ms"})
        for one in times
        for when, ms in (("before", one.before_ms), ("after", one.after_ms))
        if ms is not None
    ]
    fields = (("layer", "layer"), ("kind", "kind"), ("when", "network"), ("time", "time"))
    scale = {"domain": ["before", "after"], "range": [BEFORE, AFTER]}
    has_before = any(one.before_ms is not None for one in times)
    bars: Spec = {
        "mark": "bar",
        "encoding": {
            "x": _make_layer_axis(),
            "y": make_axis("ms", "Milliseconds"),
            "color": {"field": "when", "type": "nominal", "scale": scale, "legend": None},
            "tooltip": make_tooltip(*fields),
            **({"xOffset": {"field": "when", "sort": ["before", "after"]}} if has_before else {}),
        },
    }
    before, after = (
        sum(ms or 0 for ms in side) for side in zip(*((one.before_ms, one.after_ms) for one in times), strict=True)
    )
    described = f"All layers together: {f'{before:.2f} ms before, ' if has_before else ''}{after:.2f} ms{' after' if has_before else ''}."
    lines = [(str(one.layer), one.kind, _format(one.before_ms), _format(one.after_ms)) for one in times]
    table = Table("Time of every layer", ("layer", "kind", "before", "after"), make_cells(lines))
    spec = make_spec([bars], 260, data={"values": values})
    return Plot("times", "Time per layer", described, spec, table, 60 + PER_LAYER_PX * len(times))


def _format(ms: float | None) -> str:
    return "–" if ms is None else f"{ms:.3f} ms"
