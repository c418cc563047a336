"""`sensitivity`: the cost of pruning each group alone, measured on validation images. A stopped run can be resumed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite, nan
from pathlib import Path
from typing import Any

import torch

from yolo_prune.commands.config import SensitivityConfig
from yolo_prune.commands.data import load_data_of
from yolo_prune.commands.plan import score
from yolo_prune.commands.pruning.calibration import BATCH, iterate_examples, pick_samples
from yolo_prune.commands.results import Summary
from yolo_prune.config import format_config, parse_config
from yolo_prune.console import get_columns, report
from yolo_prune.datasets.loader import DetectionDataset
from yolo_prune.datasets.spec import DataSpec, measure_fingerprint
from yolo_prune.errors import PlanError
from yolo_prune.evaluation.evaluate import measure_score_of
from yolo_prune.files import load_json, measure_sha256, save_json
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.model.device import make_device
from yolo_prune.model.loss import DetectionLoss
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.plans.plan import name_group
from yolo_prune.pruning.plans.plan_file import measure_network_sha256
from yolo_prune.pruning.plots import draw_sensitivity, name_layers
from yolo_prune.pruning.scores.importance import check_finite
from yolo_prune.pruning.scores.sensitivity import GroupCurve, Sensitivity, load_sensitivity, plan_group
from yolo_prune.pruning.surgery.constants import carry_constants
from yolo_prune.pruning.surgery.rebuild import rebuild
from yolo_prune.text_tables import fit_table, pluralize
from yolo_prune.training.signals import watch_signals

TABLE, PLOT = "sensitivity.json", "sensitivity.png"


@dataclass(frozen=True)
class SensitivityResult:
    """The table, and the paths of the table and its heat map."""

    path: Path
    plot: Path
    table: Sensitivity
    source: Path
    """The checkpoint that was measured."""

    @property
    def summary(self) -> Summary:
        """Where the heat map is, and the command that uses the table."""
        following = ("prune", str(self.source), "--from-sensitivity", str(self.path))
        return Summary(f"{pluralize(len(self.table.groups), 'group')} measured; {self.plot} shows them", following)

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON output."""
        return {"sensitivity": str(self.path), "plot": str(self.plot), **self.table.as_dict()}

    @property
    def stdout(self) -> str:
        """The table's path."""
        return str(self.path)

    def format(self) -> str:
        """Return the losses in AP50, or the gains in loss, as text: one line per group."""
        table = self.table
        cells: list[tuple[str, ...]] = [("layers", "channels", *(f"{ratio:.0%}" for ratio in table.ratios))]
        for curve in table.groups:
            damages = (f"{damage:.4f}" for damage in table.measure_damages(curve))
            cells.append((name_layers(curve.layers), str(curve.channels), *damages))
        what = "AP50 lost" if table.metric == "map50" else "loss gained"
        head = f"{what} when that share of one group alone is dropped; whole: {table.base:.4f}"
        return f"{head}\n{fit_table(cells, get_columns(sys.stderr), range(1, len(cells[0])))}"


def start_sensitivity(source: Path, config: SensitivityConfig, folder: Path) -> SensitivityResult:
    """Measure every group at every ratio; write sensitivity.json, after each group, and sensitivity.png to `folder`.

    Raises:
        CheckpointError, PlanError, ConfigError, DatasetError: an input is invalid.
        Interrupted: SIGINT or SIGTERM came; results so far are on disk, and `resume_sensitivity` continues.
    """
    checkpoint = load_checkpoint(source)
    spec = load_data_of(config.data, checkpoint.provenance)
    recipe = {
        "checkpoint": str(source.resolve()),
        "sha256": measure_sha256(source),
        "data_fingerprint": measure_fingerprint(spec),
        "settings": format_config(replace(config, data=spec.source.resolve())),
    }
    return _measure(checkpoint, config, spec, recipe, None, folder)


def resume_sensitivity(folder: Path, device: str | None = None) -> SensitivityResult:
    """Continue the stopped measurement in `folder`, on another device if one is given. Return a finished one as it is.

    Raises:
        PlanError: there is no measurement, or its checkpoint or data set has changed.
        CheckpointError, ConfigError, DatasetError, Interrupted: as for `start_sensitivity`.
    """
    path = folder / TABLE
    if not path.is_file():
        raise PlanError("there is nothing to resume", where=path, right="name a run that yoloprune sensitivity left")
    table, recipe = load_sensitivity(path), load_json(path, PlanError, "").get("recipe")
    parts = {"checkpoint": str, "sha256": str, "data_fingerprint": str, "settings": dict}
    if not isinstance(recipe, dict) or not all(isinstance(recipe.get(key), kind) for key, kind in parts.items()):
        raise PlanError("does not say how it was measured", where=path, right="measure it again")
    config = parse_config(SensitivityConfig(), recipe["settings"], path)
    config = config if device is None else replace(config, device=device)
    source = Path(recipe["checkpoint"])
    checkpoint = load_checkpoint(source)
    spec = load_data_of(config.data, checkpoint.provenance)
    for what, now, then in (
        (source, measure_sha256(source), recipe["sha256"]),
        (spec.source, measure_fingerprint(spec), recipe["data_fingerprint"]),
    ):
        if now != then:
            raise PlanError("has changed since the measurement began", where=what, right="restore it, or start anew")
    return _measure(checkpoint, config, spec, recipe, table, folder)


def _measure(
    checkpoint: Checkpoint,
    config: SensitivityConfig,
    spec: DataSpec,
    recipe: dict[str, Any],
    table: Sensitivity | None,
    folder: Path,
) -> SensitivityResult:
    device = make_device(config.device)
    model = checkpoint.with_img_size(config.img_size).make_model().eval()
    check_finite(model)
    graph = make_channel_graph(model.network)
    groups = [group for group in graph.groups if not group.frozen]
    path = folder / TABLE
    if not groups:
        raise PlanError(
            "has no channels that can be pruned", where=recipe["checkpoint"], right="name another checkpoint"
        )
    if table is not None and {group.writers for group in groups} <= {curve.layers for curve in table.groups}:
        report(f"{path}: all {pluralize(len(groups), 'group')} are measured")
        return SensitivityResult(path, draw_sensitivity(folder / PLOT, table), table, Path(recipe["checkpoint"]))
    importance = score(model, graph, config, spec, device)
    data = pick_samples(spec, "val", config.images, model.network.img_size)
    judge = _make_judge(config.metric, data, device)
    # Rounding depends on the memory layout: use the same one whether or not the whole network was just measured.
    model.to(device).to(memory_format=torch.channels_last)
    with watch_signals() as stop:
        if table is None:
            network, base = measure_network_sha256(checkpoint.network), judge(model)
            if not isfinite(base):
                right = "measure a trained checkpoint on validation images with objects"
                raise PlanError(f"the whole network's {config.metric} is {base:g}", where=spec.source, right=right)
            table = Sensitivity(network, config.metric, config.criterion, config.group_reduce, config.ratios, base, ())
            _save(path, table, recipe)
        measured = {curve.layers for curve in table.groups}
        for number, group in enumerate(groups, 1):
            if group.writers in measured:
                continue
            scores = []
            for ratio in config.ratios:
                stop.check()
                plan = plan_group(graph, importance, group, ratio)
                found = judge(rebuild(model, plan, carry_constants(model, plan)))
                scores.append(found if isfinite(found) else nan)  # JSON has no infinity
            table = replace(table, groups=(*table.groups, GroupCurve(group.writers, len(group.ids), tuple(scores))))
            _save(path, table, recipe)
            report(f"group {number} of {len(groups)}, {name_group(group)}: {', '.join(f'{one:.4f}' for one in scores)}")
    return SensitivityResult(path, draw_sensitivity(folder / PLOT, table), table, Path(recipe["checkpoint"]))


def _make_judge(metric: str, data: DetectionDataset, device: torch.device) -> Callable[[Detector], float]:
    """Return a function that measures a model in evaluation mode on the data set, and leaves it on the device."""

    def measure_map50(model: Detector) -> float:
        placed = model.to(device).to(memory_format=torch.channels_last)
        return measure_score_of(placed, data, device=device, batch_size=BATCH).map50

    @torch.inference_mode()
    def measure_loss(model: Detector) -> float:
        placed = model.to(device).to(memory_format=torch.channels_last)
        loss, total = DetectionLoss(model.network).to(device), 0.0
        for images, targets in iterate_examples(data, device):
            total += float(loss.measure(placed(images), targets, *images.shape[-2:]).total) * len(images)
        return total / len(data)

    return measure_map50 if metric == "map50" else measure_loss


def _save(path: Path, table: Sensitivity, recipe: dict[str, Any]) -> None:
    save_json(path, {**table.as_dict(), "recipe": recipe})
