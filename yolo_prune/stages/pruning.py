"""`prune`: from a checkpoint to a slimmer one, verified."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_prune.config import format_config
from yolo_prune.darknet.cfg import save_cfg
from yolo_prune.darknet.cost import Cost, measure_cost
from yolo_prune.darknet.layers import Conv, Network
from yolo_prune.datasets.loader import DetectionDataset, make_loader
from yolo_prune.errors import PlanError
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint, make_provenance, save_checkpoint
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.importance import score_bn_gamma
from yolo_prune.pruning.plan import make_plan
from yolo_prune.pruning.surgery import carry_constants, mask, measure_difference, rebuild
from yolo_prune.stages.data import load_data_of
from yolo_prune.stages.settings import PruneConfig
from yolo_prune.training.device import make_device
from yolo_prune.training.recalibrate import recalibrate_

VERIFY_IMG_SIZE = 64
MAX_DIFFERENCE = 1e-9
"""How far rebuilt and masked may be apart, in float64."""
RECALIBRATION_BATCH = 32


@dataclass(frozen=True)
class PruneResult:
    """What `prune` made: two files, the costs before and after, and how far rebuilt and masked were apart."""

    checkpoint: Path
    cfg: Path
    before: Cost
    after: Cost
    networks: tuple[Network, Network]
    prune_ratio: float
    max_abs_difference: float
    recalibrated_on: int

    def as_dict(self) -> dict[str, Any]:
        """Return the result under the names that JSON output uses."""
        return {
            "checkpoint": str(self.checkpoint),
            "cfg": str(self.cfg),
            **self.after.as_dict(),
            "prune_ratio": self.prune_ratio,
            "max_abs_difference": self.max_abs_difference,
            "recalibrated_on": self.recalibrated_on,
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
        }


def prune(source: Path, config: PruneConfig, folder: Path) -> PruneResult:
    """Cut the least important channels out of a checkpoint and write pruned.pt and pruned.cfg to `folder`.

    Raises:
        CheckpointError, PlanError, ConfigError, DatasetError: an input is not what it should be.
        PlanError: rebuilt and masked disagree; nothing is written.
    """
    device = make_device(config.device)
    checkpoint = load_checkpoint(source)
    spec = None if config.recalibrate == 0 else load_data_of(config.data, checkpoint.provenance, "--recalibrate 0")
    model = checkpoint.make_model().eval()
    graph = make_channel_graph(model.network)
    plan = make_plan(graph, score_bn_gamma(model, graph), config)
    slim = rebuild(model, plan)
    difference = measure_difference(mask(model, plan), slim, VERIFY_IMG_SIZE)
    if not difference <= MAX_DIFFERENCE:
        raise PlanError(
            f"the rebuilt network differs from the masked one by {difference:.3g}",
            where=source,
            right="report this, it is a defect",
        )
    if config.fold:
        slim = rebuild(model, plan, carry_constants(model, plan))
    seen = 0
    if spec is not None:
        samples = spec.samples("train")
        data = DetectionDataset(
            samples[:: max(1, len(samples) // config.recalibrate)][: config.recalibrate],
            len(spec.names),
            checkpoint.img_size,
        )
        seen = recalibrate_(slim, make_loader(data, RECALIBRATION_BATCH, shuffle=False, epoch=0), device)
    before, after = measure_cost(model.network, checkpoint.img_size), measure_cost(slim.network, checkpoint.img_size)
    ratio = plan.measure_ratio(graph)
    metrics = {"prune_ratio": ratio, "params": after.params, "macs": after.macs, "max_abs_difference": difference}
    facts = {"metrics": metrics, "data": checkpoint.provenance.get("data")}
    provenance = make_provenance("prune", format_config(config), source, **facts)
    pruned = Checkpoint(slim.network, slim.state_dict(), checkpoint.names, checkpoint.img_size, provenance)
    save_cfg(slim.network, folder / "pruned.cfg")
    path = save_checkpoint(folder / "pruned.pt", pruned)
    return PruneResult(
        path, folder / "pruned.cfg", before, after, (model.network, slim.network), ratio, difference, seen
    )


def format_layers(result: PruneResult) -> str:
    """Return a table of the convolutions before → after, and the totals."""
    lines = [f"{'layer':>5}  {'filters':>13}  {'params':>23}  {'MACs':>25}"]
    rows = zip(*(network.layers for network in result.networks), result.before.layers, result.after.layers, strict=True)
    for index, (old, new, old_cost, new_cost) in enumerate(rows):
        if isinstance(old, Conv) and isinstance(new, Conv):
            lines.append(
                f"{index:>5}  {old.filters:>5} → {new.filters:>5}  {old_cost.params:>10,} → {new_cost.params:>10,}  "
                f"{old_cost.macs / 1e6:>9,.2f}M → {new_cost.macs / 1e6:>9,.2f}M"
            )
    before, after = result.before, result.after
    lines.append(
        f"  all  {result.prune_ratio:>12.1%}-  {before.params:>10,} → {after.params:>10,}  "
        f"{before.macs / 1e6:>9,.2f}M → {after.macs / 1e6:>9,.2f}M"
    )
    lines.append(
        f"params {after.params / before.params - 1:+.1%}, MACs {after.macs / before.macs - 1:+.1%}, size {after.size_bytes / 1e6:.2f} MB; "
        f"rebuilt equals masked: largest difference {result.max_abs_difference:.2e} (float64)"
    )
    return "\n".join(lines)
