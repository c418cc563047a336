"""`evaluate`: the scores of checkpoints, and of other tools' detections, on one split of a data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_prune.commands.bench import describe_weights, load_for_scoring, name_rows
from yolo_prune.commands.data import load_data_of
from yolo_prune.commands.measure_config import EvaluateConfig
from yolo_prune.console import report
from yolo_prune.datasets.spec import DataSpec, Sample, load_list, load_spec
from yolo_prune.errors import ConfigError
from yolo_prune.evaluation.average_precision import RECALLS
from yolo_prune.evaluation.bootstrap import paired_difference
from yolo_prune.evaluation.curve_plots import draw_curves
from yolo_prune.evaluation.detections import Detections
from yolo_prune.evaluation.evaluate import Evaluation, load_truths, make_dataset, predict, score_detections
from yolo_prune.evaluation.models import Model
from yolo_prune.evaluation.results import ImageIds, format_results, load_image_ids, load_results, name_images
from yolo_prune.files import save_json
from yolo_prune.model.device import make_device


@dataclass(frozen=True)
class Scored:
    """A checkpoint or a file of detections, and its score."""

    name: str
    source: Path
    evaluation: Evaluation
    difference: tuple[float, float, float] | None
    """The difference of its mAP from the first one's, and the ends of the paired interval; None for the first."""

    def as_dict(self) -> dict[str, Any]:
        """Return the score under the names that JSON output uses."""
        score = self.evaluation.score
        precision, confidence = self.evaluation.curve.sample(RECALLS)
        compared = {}
        if self.difference is not None:
            difference, *interval = self.difference
            compared = {"map50_difference": difference, "map50_difference_interval": interval}
        return {
            "name": self.name,
            "checkpoint" if self.source.suffix == ".pt" else "detections": str(self.source),
            "map50": score.map50,
            "map50_interval": list(self.evaluation.map50_interval),
            **compared,
            "ap50": {str(own): ap for own, ap in score.ap50.items()},
            "coco_ap50": self.evaluation.coco_ap50,
            "coco_ap": self.evaluation.coco_ap,
            "precision": score.precision,
            "recall": score.recall,
            "f1": score.f1,
            "confidence": score.confidence,
            "recall_by_size": [
                {
                    "size_px": [one.low_px, None if math.isinf(one.high_px) else one.high_px],
                    "instances": one.instances,
                    "recall": one.recall,
                    "recall_at_confidence": one.recall_at_confidence,
                }
                for one in self.evaluation.size_recalls
            ],
            "curve": {
                "recall": RECALLS.tolist(),
                "precision": precision.tolist(),
                "confidence": confidence.tolist(),
            },
        }

    def format(self) -> str:
        """Return the score as two lines, below a heading with the name."""
        score, (low, high) = self.evaluation.score, self.evaluation.map50_interval
        lines = [
            self.name,
            f"  mAP {score.map50:.4f} [{low:.4f}, {high:.4f}]; COCO AP50 {self.evaluation.coco_ap50:.4f}, AP {self.evaluation.coco_ap:.4f}",
        ]
        if self.difference is not None:
            change, low, high = self.difference
            lines.append(f"  mAP against the first {change:+.4f} [{low:+.4f}, {high:+.4f}]")
        lines.append(
            f"  best F1 {score.f1:.4f} at confidence {score.confidence:.3f}: precision {score.precision:.4f}, recall {score.recall:.4f}"
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class EvaluateResult:
    """The images that were scored, and the scores; the first one is the baseline of the comparisons."""

    scored_on: str
    models: tuple[Scored, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the first score with the number of images and objects, and the other scores as `compared`."""
        first, *others = self.models
        score = first.evaluation.score
        counts = {"scored_on": self.scored_on, "images": score.images, "instances": score.instances}
        return {**counts, **first.as_dict(), "compared": [other.as_dict() for other in others]}

    @property
    def stdout(self) -> str:
        """The scores as text."""
        return self.format()

    def format(self) -> str:
        """Return all scores as text, with a table of recall by object size."""
        score = self.models[0].evaluation.score
        parts = [f"{self.scored_on}: {score.images} images, {score.instances} objects"]
        parts += [model.format() for model in self.models]
        parts.append(_format_sizes(self.models))
        note = "mAP: AP at IoU 0.5, all points; in brackets 95 % bootstrap intervals over images"
        parts.append(note if len(self.models) == 1 else f"{note}, for differences paired")
        return "\n".join(parts)


def evaluate_models(checkpoints: Sequence[Path], results: Sequence[Path], config: EvaluateConfig) -> EvaluateResult:
    """Score checkpoints and COCO results files, any number of both, on the same images; checkpoints come first.

    Raises:
        CheckpointError, DatasetError, ConfigError: an input is invalid.
        OutputError: detections or curves cannot be written.
    """
    if config.save_detections is not None and len(checkpoints) != 1:
        right = "name one checkpoint, or leave it out"
        raise ConfigError(f"there are {len(checkpoints)} checkpoints", where="--save-detections", right=right)
    loaded = {path: load_for_scoring(path, config) for path in checkpoints}
    spec = _load_data(config, list(loaded.values()))
    samples = spec.samples(config.split) if config.subset is None else load_list(spec, config.subset)
    ids = _load_ids(config, spec, samples) if results or config.save_detections is not None else None
    read = {path: load_results(path, ids) for path in results if ids is not None}
    device = make_device(config.device)
    truths = load_truths(samples, len(spec.names))
    scored: list[Scored] = []
    for name, path in name_rows([*checkpoints, *results]).items():
        if path in loaded:
            report(f"scoring {name}: {len(samples)} images{describe_weights(loaded[path])}")
            dataset = make_dataset(samples, spec.names, loaded[path].img_size)
            found = predict(loaded[path], dataset, spec.names, device=device)
            _save(found, ids, config.save_detections)
        else:
            found = read[path]
        evaluation = score_detections(found, truths)
        first = scored[0].evaluation.matches if scored else None
        difference = None if first is None else paired_difference(first, evaluation.matches)
        scored.append(Scored(name, path, evaluation, difference))
    result = EvaluateResult(str(config.subset or config.split), tuple(scored))
    if config.curves is not None:
        report(f"curves in {draw_curves(config.curves, {one.name: one.evaluation for one in scored})}")
    return result


def _load_data(config: EvaluateConfig, checkpoints: Sequence[Model]) -> DataSpec:
    if checkpoints:
        return load_data_of(config.data, checkpoints[0].provenance)
    if config.data is None:
        raise ConfigError("detections do not say what they were made on", where="--data", right="name a data.yaml")
    return load_spec(config.data, needs_val=False)


def _load_ids(config: EvaluateConfig, spec: DataSpec, samples: Sequence[Sample]) -> ImageIds:
    others = [sample for split in spec.splits.values() for sample in split]
    if config.annotations is None:
        return name_images(samples, spec.root, len(spec.names), others)
    return load_image_ids(config.annotations, samples, spec.root, spec.names, others)


def _save(found: Sequence[Detections], ids: ImageIds | None, path: Path | None) -> None:
    if path is not None and ids is not None:
        report(f"detections in {save_json(path, format_results(ids.images, found, ids.classes))}")


def _format_sizes(models: Sequence[Scored]) -> str:
    """Return a table of objects and recall in each bin of size."""
    first = models[0].evaluation.size_recalls
    heads = [f"< {one.high_px:g}" if not one.low_px else f"{one.low_px:g}–{one.high_px:g}" for one in first[:-1]]
    rows = [("objects by size in px", [*heads, f">= {first[-1].low_px:g}"])]
    rows.append(("", [str(one.instances) for one in first]))
    for model in models:
        name = "" if len(models) == 1 else f", {model.name}"
        sizes = model.evaluation.size_recalls
        rows.append((f"found{name}", [_format_share(one.recall) for one in sizes]))
        rows.append(
            (
                f"found at {model.evaluation.score.confidence:.3f}{name}",
                [_format_share(one.recall_at_confidence) for one in sizes],
            )
        )
    width = max(len(title) for title, _ in rows)
    return "\n".join(f"{title:<{width}}" + "".join(f"{cell:>9}" for cell in cells) for title, cells in rows)


def _format_share(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.3f}"
