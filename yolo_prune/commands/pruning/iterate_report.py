"""The steps of `iterate`, as lines and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolo_prune.files import open_atomically

TICKS = (100, 70, 50, 30, 20, 10, 7, 5, 3, 2, 1, 0.5, 0.2, 0.1)


def format_steps(steps: Sequence[dict[str, Any]], heading: bool = True) -> str:
    """Return one line per step: what is pruned, what is left, AP50 and the time it took."""
    lines = [
        f"{'step':>8}  {'pruned':>6}  {'params':>12}  {'MACs':>14}  {'AP50':>6}  {'epochs':>6}  {'seconds':>7}"
    ] * heading
    for step in steps:
        score = "–" if step["map50"] is None else f"{step['map50']:.4f}"
        lines.append(
            f"{step['name']:>8}  {step['ratio']:>6.1%}  {step['params']:>12,}  {step['macs']:>14,}  {score:>6}  "
            f"{step['epochs']:>6}  {step['seconds']:>7.1f}"
        )
    return "\n".join(lines)


def draw_frontier(path: Path, steps: Sequence[dict[str, Any]], max_drop: float) -> Path:
    """Plot AP50 on the validation split against the share of parameters left, from the original network to the last."""
    from matplotlib.figure import Figure

    first, *others = [step for step in steps if step["map50"] is not None]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    pruned = [step for step in others if step["name"] != "settle"]
    shares = [100 * step["params"] / first["params"] for step in (first, *pruned)]
    axes.plot(shares, [step["map50"] for step in (first, *pruned)], marker=".", label="after each step")
    for step in others:
        if step["name"] == "settle":
            place = 100 * step["params"] / first["params"], step["map50"]
            axes.plot(*place, "*", color="tab:red", markersize=12, label="settled")
    axes.axhline(first["map50"], color="tab:gray", linewidth=1, label="original")
    axes.axhline(first["map50"] - max_drop, color="tab:gray", linewidth=1, linestyle=":", label="max_drop below it")
    axes.set(title="AP50 on validation against parameters", xlabel="parameters left, %", ylabel="AP50", xscale="log")
    axes.set_xticks([], minor=True)
    axes.set_xticks(shown := [tick for tick in TICKS if tick >= min(shares) / 1.5], [f"{tick:g}" for tick in shown])
    axes.invert_xaxis()
    axes.legend(loc="lower left")
    with open_atomically(path) as file:
        figure.savefig(file, format="png", dpi=100)
    return path
