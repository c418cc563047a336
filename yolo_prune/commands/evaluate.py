"""`evaluate`: the scores of checkpoints, and of other tools' detections, on one split of a data set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from yolo_prune.benchmarking.class_table import LONGEST, format_classes, shorten
from yolo_prune.commands.bench import load_for_scoring, name_rows
from yolo_prune.commands.data import load_data_of
from yolo_prune.commands.measure_config import EvaluateConfig
from yolo_prune.commands.reporting.evidence import describe_weights
from yolo_prune.console import report
from yolo_prune.datasets.spec import DataSpec, Sample, load_list, load_spec
from yolo_prune.errors import ConfigError
from yolo_prune.evaluation.average_precision import RECALLS
from yolo_prune.evaluation.bootstrap import paired_difference
from yolo_prune.evaluation.classes.confusion import ConfusionMatrix, measure_confusion
from yolo_prune.evaluation.classes.plots import draw_class_curves, draw_confusion
from yolo_prune.evaluation.classes.scores import ClassScore, measure_class_scores
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.evaluation.curve_plots import draw_curves
from yolo_prune.evaluation.curves import measure_class_curves
from yolo_prune.evaluation.detections import Detections
from yolo_prune.evaluation.evaluate import Evaluation, load_truths, make_dataset, predict, score_detections
from yolo_prune.evaluation.matching import GroundTruth, Matches
from yolo_prune.evaluation.models import Model
from yolo_prune.evaluation.results import ImageIds, format_results, load_image_ids, load_results, name_images
from yolo_prune.evaluation.worst import ImageLoss, draw_beside_truth, find_worst
from yolo_prune.files import save_json
from yolo_prune.model.device import make_device
from yolo_prune.own_files import check_own
from yolo_prune.text_tables import format_table, pluralize, wrap


@dataclass(frozen=True)
class Scored:
    """A checkpoint or a file of detections, and its score."""

    name: str
    source: Path
    evaluation: Evaluation
    difference: tuple[float, float, float] | None
    """The difference of its mAP from the first one's, and the ends of the paired interval; None for the first."""
    classes: tuple[ClassScore, ...]
    """One per class."""
    confusion: ConfusionMatrix
    worst: Mapping[str, ImageLoss]
    """Images with the most loss by their id, the worst first."""

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
            "classes": [one.as_dict() for one in self.classes],
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
            "confusion": self.confusion.as_dict(),
            "worst": [{"image": image, **loss.as_dict()} for image, loss in self.worst.items()],
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
    all_classes: bool = False
    """Whether `format` shows every class of many."""

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
        """Return all scores as text, with tables of recall by object size, of the classes and of the worst images."""
        score = self.models[0].evaluation.score
        parts = [f"{self.scored_on}: {pluralize(score.images, 'image')}, {pluralize(score.instances, 'object')}"]
        parts += [model.format() for model in self.models]
        parts.append(_format_sizes(self.models))
        note = "mAP: AP at IoU 0.5, all points; in brackets 95 % bootstrap intervals over images"
        parts.append(wrap(note if len(self.models) == 1 else f"{note}\n(those of differences are paired)"))
        classes = format_classes({one.name: one.classes for one in self.models}, all_classes=self.all_classes)
        tables = [_format_worst(one, len(self.models) == 1) for one in self.models if one.worst]
        return "\n\n".join(["\n".join(parts), *([classes] if classes else []), *tables])


def evaluate_models(checkpoints: Sequence[Path], results: Sequence[Path], config: EvaluateConfig) -> EvaluateResult:
    """Score checkpoints and COCO results files, any number of both, on the same images; checkpoints come first.

    Raises:
        CheckpointError, DatasetError, ConfigError: an input is invalid.
        OutputError: detections or plots cannot be written, or would replace a file of somebody else.
    """
    _check(checkpoints, config)
    _check_outputs([*checkpoints, *results], config)
    loaded = {path: load_for_scoring(path, config) for path in checkpoints}
    spec = _load_data(config, list(loaded.values()))
    samples = spec.samples(config.split) if config.subset is None else load_list(spec, config.subset)
    ids = _load_ids(config, spec, samples) if results or config.save_detections is not None else None
    read = {path: load_results(path, ids) for path in results if ids is not None}
    device, detection = make_device(config.device), DetectConfig(agnostic_nms=config.agnostic_nms)
    truths = load_truths(samples, len(spec.names))
    names = name_rows([*checkpoints, *results])
    scored: list[Scored] = []
    for name, path in names.items():
        if path in loaded:
            report(f"scoring {name}: {pluralize(len(samples), 'image')}{describe_weights(loaded[path])}")
            dataset = make_dataset(samples, spec.names, loaded[path].img_size)
            found = predict(loaded[path], dataset, spec.names, device=device, config=detection)
            _save(found, ids, spec.names, config.save_detections)
        else:
            found = read[path]
        first = scored[0].evaluation.matches if scored else None
        scored.append(_score(name, path, found, truths, spec, samples, config.worst, first))
        if config.plots is not None:
            folder = config.plots if len(names) == 1 else config.plots / _name_folder(name)
            _draw(folder, scored[-1], found, truths, samples, spec.names)
    evaluations = {one.name: one.evaluation for one in scored}
    for plot in (config.curves, config.plots and config.plots / "curves.png"):
        if plot is not None:
            report(f"curves in {draw_curves(plot, evaluations)}")
    return EvaluateResult(str(config.subset or config.split), tuple(scored), config.all_classes)


def _check(checkpoints: Sequence[Path], config: EvaluateConfig) -> None:
    """Raise ConfigError if a setting has no meaning here, before anything is scored."""
    if config.save_detections is not None and len(checkpoints) != 1:
        right = "name one checkpoint, or leave it out"
        raise ConfigError(f"there are {len(checkpoints)} checkpoints", where="--save-detections", right=right)
    if config.agnostic_nms and not checkpoints:
        what = "detections of files are taken as they are, without NMS"
        raise ConfigError(what, where="--agnostic-nms", right="name a checkpoint, or leave it out")
    if config.plots is not None and config.plots.exists() and not config.plots.is_dir():
        raise ConfigError(f"{config.plots} is a file", where="--plots", right="name a folder")


def _check_outputs(inputs: Sequence[Path], config: EvaluateConfig) -> None:
    """Raise OutputError if a file of somebody else would be replaced, before anything is scored."""
    check = partial(check_own, force=config.force, inputs=inputs)
    check([path for path in (config.save_detections,) if path is not None], option="--save-detections")
    check([path for path in (config.curves,) if path is not None], option="--curves")
    if config.plots is not None:
        names = name_rows(inputs)
        folders = [config.plots if len(names) == 1 else config.plots / _name_folder(name) for name in names]
        drawn = [folder / name for folder in folders for name in ("confusion.png", "class_curves.png")]
        worst = [path for folder in folders for path in folder.glob("worst/*.png") if config.worst]
        check([config.plots / "curves.png", *drawn, *worst], option="--plots")


def _name_folder(name: str) -> str:
    return name.strip("/").replace("/", "-")


def _score(
    name: str,
    source: Path,
    found: Sequence[Detections],
    truths: Sequence[GroundTruth],
    spec: DataSpec,
    samples: Sequence[Sample],
    worst: int,
    first: Sequence[Matches] | None,
) -> Scored:
    """Score the detections of all images, and compare them with the matches of the first model."""
    evaluation = score_detections(found, truths)
    matches, score = evaluation.matches, evaluation.score
    images = name_images(samples, spec.root, len(spec.names)).images if worst else ()
    return Scored(
        name=name,
        source=source,
        evaluation=evaluation,
        difference=None if first is None else paired_difference(first, matches),
        classes=measure_class_scores(matches, score, spec.names),
        confusion=measure_confusion(found, truths, matches, spec.names, score.confidence),
        worst={str(images[one.index]): one for one in find_worst(matches, score.confidence, worst)},
    )


def _draw(
    folder: Path,
    scored: Scored,
    found: Sequence[Detections],
    truths: Sequence[GroundTruth],
    samples: Sequence[Sample],
    names: Sequence[str],
) -> None:
    """Draw the confusion matrix, the classes' curves and the worst images of a model into a folder."""
    evaluation, confidence = scored.evaluation, scored.evaluation.score.confidence
    report(f"confusion matrix in {draw_confusion(folder / 'confusion.png', scored.confusion)}")
    curves = measure_class_curves(evaluation.matches, len(names))
    path = folder / "class_curves.png"
    report(f"curves in {draw_class_curves(path, curves, evaluation.curve, evaluation.score.ap50, names)}")
    for rank, one in enumerate(scored.worst.values(), 1):
        source, own = samples[one.index].image, one.index
        path = folder / "worst" / f"{rank:0{len(str(len(scored.worst)))}}-{source.stem}.png"
        draw_beside_truth(path, source, truths[own], found[own], names, confidence)
    if scored.worst:
        report(f"the worst images in {folder / 'worst'}")


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


def _save(found: Sequence[Detections], ids: ImageIds | None, names: Sequence[str], path: Path | None) -> None:
    if path is not None and ids is not None:
        report(f"detections in {save_json(path, format_results(ids.images, found, ids.classes, names))}")


def _format_worst(model: Scored, is_alone: bool) -> str:
    """Return a table of the images with the most loss."""
    cells = [("loss", "objects", "missed", "false alarms", "image")]
    for image, one in model.worst.items():
        cells.append((f"{one.loss:.3f}", str(one.instances), str(one.missed), str(one.false_alarms), image))
    title = "Images with the most loss" + ("" if is_alone else f", {shorten(model.name, LONGEST)}")
    confidence = model.evaluation.score.confidence
    note = "" if math.isnan(confidence) else f"\n\nMissed objects and false alarms at confidence {confidence:.3f}."
    return f"{title}\n{format_table(cells, range(4))}{note}"


def _format_sizes(models: Sequence[Scored]) -> str:
    """Return a table of objects and recall in each bin of size."""
    first = models[0].evaluation.size_recalls
    heads = [f"< {one.high_px:g}" if not one.low_px else f"{one.low_px:g}–{one.high_px:g}" for one in first[:-1]]
    rows: list[tuple[str, ...]] = [("side of the box in px", *heads, f">= {first[-1].low_px:g}")]
    rows.append(("objects", *(str(one.instances) for one in first)))
    for model in models:
        name = "" if len(models) == 1 else f", {model.name}"
        sizes = model.evaluation.size_recalls
        confidence = f"found at {model.evaluation.score.confidence:.3f}{name}"
        rows.append((f"found{name}", *(_format_share(one.recall) for one in sizes)))
        rows.append((confidence, *(_format_share(one.recall_at_confidence) for one in sizes)))
    return f"\n{format_table(rows, range(1, len(rows[0])))}\n"


def _format_share(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.3f}"
