"""Gather what is on the page, and write it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yolo_prune.benchmarking.table import Row
from yolo_prune.commands.reporting.evidence import Evidence
from yolo_prune.commands.reporting.networks import choose_engine, list_widths, match_layers, time_layers
from yolo_prune.commands.reporting.previews import count_errors, make_previews, pick_comparisons, pick_mistakes
from yolo_prune.commands.reporting.stages import describe_stage
from yolo_prune.console import report as tell
from yolo_prune.evaluation.evaluate import Evaluation
from yolo_prune.evaluation.models import Model, load_model
from yolo_prune.files import save_text
from yolo_prune.model.checkpoint import Checkpoint
from yolo_prune.report.data import CurvePoint, Report, ScoreCurve, Stage
from yolo_prune.report.page import render
from yolo_prune.version import __version__

IMAGES = 6
"""Images of each kind, unless told otherwise."""
POINTS = 200
"""The most points of a curve that are drawn."""


@dataclass(frozen=True)
class Measured:
    """What bench has measured."""

    rows: Sequence[Row]
    environment: Mapping[str, Any]
    split: str | None
    evidence: Evidence | None
    """None if nothing was scored."""


def save_report(path: Path, measured: Measured, device: torch.device, images: int = IMAGES, title: str = "") -> Path:
    """Write the page for what bench has measured, and return its path. The layers of the networks are timed for it.

    Raises:
        CheckpointError, DatasetError, OutputError: a file cannot be read or written.
    """
    tell(f"making {path}")
    return save_text(path, render(gather_report(measured, device, images, title)))


def gather_report(measured: Measured, device: torch.device, images: int = IMAGES, title: str = "") -> Report:
    """Return what is on the page."""
    places = {row.name: (Path(row.checkpoint), row.img_size) for row in measured.rows}
    models: dict[str, Model] = {name: load_model(path).with_img_size(size) for name, (path, size) in places.items()}
    stages = [describe_stage(name, places[name][0], model) for name, model in models.items()]
    reasons = _explain_trainings(stages)
    parts: dict[str, Any] = {
        **_gather_layers(list(models.values()), measured.rows[-1], device, reasons),
        **_gather_scores(measured.evidence, images, reasons),
    }
    return Report(
        title=title or _make_title(stages),
        date=datetime.date.today().isoformat(),
        version=__version__,
        rows=tuple(measured.rows),
        environment=measured.environment,
        split=measured.split,
        stages=tuple(stages),
        reasons=reasons,
        **parts,
    )


def _make_title(stages: Sequence[Stage]) -> str:
    return "Pruning report" if len(stages) > 1 else f"Report on {stages[0].name}"


def _explain_trainings(stages: Sequence[Stage]) -> dict[str, str]:
    reasons = {}
    if without := [stage.name for stage in stages if not stage.epochs]:
        reasons["epochs"] = f"There is no results.csv of a training beside the file of {_join(without)}."
    if not any(stage.gammas for stage in stages):
        reasons["gammas"] = (
            "None of these trainings recorded γ: they trained without γ sparsity, or their last.pt is gone."
        )
    return reasons


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _gather_layers(models: Sequence[Model], row: Row, device: torch.device, reasons: dict[str, str]) -> dict[str, Any]:
    """Return widths, groups and times of the layers; what cannot be is explained in `reasons`, in place."""
    checkpoints = [model for model in models if isinstance(model, Checkpoint)]
    last, first = models[-1], models[0] if len(models) > 1 else None
    if not isinstance(last, Checkpoint):
        reason = f"{row.name} is an exported file, which does not say what its layers are."
        reasons |= {"widths": reason, "times": reason}
        return {}
    original = first.network if isinstance(first, Checkpoint) else None
    places = None if original is None else match_layers(original, last.network, checkpoints)
    if first is not None and places is None:
        what = "is an exported file" if original is None else "has other layers"
        reason = f"Only {row.name} is shown: the first model {what}, so that no layer can be compared."
        reasons |= {"widths": reason, "times": reason}
    widths, groups = list_widths(original, last.network, places)
    engine = choose_engine(row.engine)
    tell(f"timing layers in {engine}")
    times = time_layers(original, last.network, places, engine, row.threads, device)
    return {"widths": widths, "groups": groups, "times": times, "times_engine": engine}


def _gather_scores(evidence: Evidence | None, images: int, reasons: dict[str, str]) -> dict[str, Any]:
    """Return curves, scores of classes, and images; what cannot be is explained in `reasons`, in place."""
    if evidence is None:
        reason = "Nothing was scored, so there is nothing to show here."
        reasons |= dict.fromkeys(("curves", "comparisons", "mistakes"), reason)
        return {"images": 0, "objects": 0}
    first = next(iter(evidence.evaluations.values()))
    comparisons, mistakes = pick_comparisons(evidence, images), pick_mistakes(evidence, images)
    if not first.score.instances:
        reasons["curves"] = (
            "No image of the split has a labelled object, so there is no precision or recall to measure."
        )
    if not images:
        reasons |= dict.fromkeys(("comparisons", "mistakes"), "No images were asked for.")
    elif not mistakes:
        reasons["mistakes"] = "The last model makes no mistake on this split at this confidence."
    compared, mistaken = make_previews(evidence, comparisons, mistakes)
    return {
        "images": len(evidence.samples),
        "objects": first.score.instances,
        "curves": _list_curves(evidence),
        "comparisons": compared,
        "errors": count_errors(evidence),
        "mistakes": mistaken,
    }


def _list_curves(evidence: Evidence) -> tuple[ScoreCurve, ...]:
    return tuple(
        _make_curve(name, evaluation) for name, evaluation in evidence.evaluations.items() if evaluation.score.instances
    )


def _make_curve(name: str, evaluation: Evaluation) -> ScoreCurve:
    curve, score = evaluation.curve, evaluation.score
    recalls = np.linspace(0, float(curve.recall[-1]), POINTS) if len(curve.confidence) else np.zeros(0)
    chosen = np.unique([*np.searchsorted(curve.recall, recalls), *np.flatnonzero(curve.confidence == score.confidence)])
    points = tuple(
        CurvePoint(float(curve.recall[place]), float(curve.precision[place]), float(curve.confidence[place]))
        for place in chosen.astype(int).tolist()
    )
    return ScoreCurve(name, points, CurvePoint(score.recall, score.precision, score.confidence), score.f1)
