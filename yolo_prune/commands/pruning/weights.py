"""`prune --granularity weight`: zero single weights; the checkpoint keeps its shape and stores zeros as bits."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from yolo_prune.commands.config import PruneConfig
from yolo_prune.commands.data import load_data_of
from yolo_prune.commands.pruning.calibration import iterate_images, pick_samples
from yolo_prune.commands.results import Summary
from yolo_prune.config import format_config
from yolo_prune.darknet.cfg import save_cfg
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.errors import PlanError
from yolo_prune.model.checkpoint import KEEPS_ZEROS, Checkpoint, load_checkpoint, make_provenance, save_checkpoint
from yolo_prune.model.detector import ConvLayer, Detector
from yolo_prune.model.device import make_device
from yolo_prune.model.sparse_storage import pack, unpack
from yolo_prune.pruning.plans.weight_plan import WeightPlan, count_by_layer, count_nonzeros, make_weight_plan
from yolo_prune.pruning.surgery.rebuild import compare, zero_weights
from yolo_prune.pruning.surgery.recalibrate import recalibrate_
from yolo_prune.pruning.surgery.verify import VERIFY_IMG_SIZE
from yolo_prune.text_tables import format_count


@dataclass(frozen=True)
class WeightPruneResult:
    """The result of `prune`, and the largest difference from the network whose weights were multiplied by the mask."""

    checkpoint: Path
    cfg: Path
    layers: tuple[tuple[int, int, int], ...]
    """For each convolution: its layer, its number of weights, and its number of weights that are not zero."""
    before: dict[str, int]
    """Costs under the names that JSON output uses. `params` and `macs` count zeros, `nonzero_params` and
    `nonzero_macs` do not;
    `file_bytes` is the size of the checkpoint on disk."""
    after: dict[str, int]
    prune_ratio: float
    max_abs_difference: float
    recalibrated_on: int

    def as_dict(self) -> dict[str, Any]:
        """Return the result under the names that JSON output uses."""
        return {
            "checkpoint": str(self.checkpoint),
            "cfg": str(self.cfg),
            **self.after,
            "prune_ratio": self.prune_ratio,
            "before": self.before,
            "after": self.after,
            "max_abs_difference": self.max_abs_difference,
            "recalibrated_on": self.recalibrated_on,
        }

    @property
    def stdout(self) -> str:
        """The checkpoint's path."""
        return str(self.checkpoint)

    @property
    def summary(self) -> Summary:
        """How many weights are not zero, and the command that may follow."""
        left, present = self.after["nonzero_params"], self.after["params"]
        line = f"{format_count(left)} of {format_count(present)} params are not zero ({left / present:.1%})"
        return Summary(line, ("finetune", str(self.checkpoint)))

    def format(self) -> str:
        """Return a table of the convolutions' weights, the totals, and the largest difference of the outputs."""
        lines = [f"{'layer':>5}  {'weights':>11}  {'not zero':>11}  {'share':>7}"]
        lines += [f"{i:>5}  {weights:>11,}  {left:>11,}  {left / weights:>7.1%}" for i, weights, left in self.layers]
        before, after = self.before, self.after
        lines += [
            f"  all  {after['params']:>11,}  {after['nonzero_params']:>11,}  {after['nonzero_params'] / after['params']:>7.1%}",
            f"zeroed {self.prune_ratio:.1%} of the prunable weights; MACs {after['macs'] / 1e6:,.2f}M, "
            f"with weights that are not zero {after['nonzero_macs'] / 1e6:,.2f}M",
            f"on disk {before['file_bytes'] / 1e6:.2f} → {after['file_bytes'] / 1e6:.2f} MB, the weights alone stored dense "
            f"{after['size_bytes'] / 1e6:.2f} MB",
            f"zeroed equals masked: largest difference {self.max_abs_difference:.2e} (float64)",
        ]
        return "\n".join(lines)


def prune_weights(source: Path, config: PruneConfig, folder: Path) -> WeightPruneResult:
    """Zero single weights of a checkpoint and write pruned.pt and pruned.cfg to `folder`.

    Raises:
        CheckpointError, PlanError, ConfigError, DatasetError: an input is invalid.
        PlanError: the outputs of the zeroed and the masked network differ; nothing is written.
    """
    checkpoint = load_checkpoint(source)
    spec = load_data_of(config.data, checkpoint.provenance, "--recalibrate 0") if config.recalibrate else None
    model = checkpoint.make_model().eval()
    plan = make_weight_plan(model, config.weights)
    before, pruned = _measure(model), zero_weights(model, plan)
    difference = _verify(model, plan, pruned, source)
    seen = 0
    if spec is not None:
        device = make_device(config.device)
        data = pick_samples(spec, "train", config.recalibrate, checkpoint.img_size)
        seen = recalibrate_(pruned, iterate_images(data, device), device)
    after = _measure(pruned)
    metrics = {"prune_ratio": plan.ratio, "before": before, "after": after, "max_abs_difference": difference}
    details = {"metrics": metrics, "data": checkpoint.provenance.get("data"), KEEPS_ZEROS: True}
    provenance = make_provenance("prune", format_config(config), source, **details)
    made = Checkpoint(pruned.network, pruned.state_dict(), checkpoint.names, provenance)
    cfg = save_cfg(pruned.network, folder / "pruned.cfg")
    path = save_checkpoint(folder / "pruned.pt", made)  # the last file: with it the run has ended
    return WeightPruneResult(
        checkpoint=path,
        cfg=cfg,
        layers=count_by_layer(pruned),
        before={**before, "file_bytes": source.stat().st_size},
        after={**after, "file_bytes": path.stat().st_size},
        prune_ratio=plan.ratio,
        max_abs_difference=difference,
        recalibrated_on=seen,
    )


def _measure(model: Detector) -> dict[str, int]:
    """Return the costs of a model, with zeros counted and without."""
    left = count_nonzeros(model)
    cost = measure_cost(model.network).as_dict()
    return {**cost, "nonzero_params": left.params, "nonzero_macs": left.macs}


@torch.no_grad()
def _verify(model: Detector, plan: WeightPlan, pruned: Detector, source: Path) -> float:
    """Return the largest difference between the zeroed network, packed and unpacked, and the masked one; must be 0."""
    masked = copy.deepcopy(model)
    for index, module in enumerate(masked.layers):
        if index in plan.keep:
            assert isinstance(module, ConvLayer)
            module.conv.weight.mul_(plan.keep[index])
    stored = {name: unpack(pack(tensor), tensor.shape) for name, tensor in pruned.state_dict().items()}
    loaded = copy.deepcopy(model)
    loaded.load_state_dict(stored)
    difference = compare(masked, loaded, VERIFY_IMG_SIZE).difference
    if difference != 0:
        raise PlanError(
            f"the zeroed network differs from the masked one by {difference:.3g}",
            where=source,
            right="report this, it is a defect",
        )
    return difference
