"""One step of `iterate --granularity weight`: more weights of the network as it was finetuned become zero."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from yolo_prune.commands.iterate_config import IterateConfig
from yolo_prune.commands.iterate_step import Cut, Limits, load_moments
from yolo_prune.config import format_config
from yolo_prune.errors import PlanError
from yolo_prune.model.checkpoint import KEEPS_ZEROS, Checkpoint, load_checkpoint, make_provenance, save_checkpoint
from yolo_prune.model.detector import ConvLayer, Detector
from yolo_prune.pruning.config import WeightConfig
from yolo_prune.pruning.surgery import zero_weights
from yolo_prune.pruning.weight_plan import count_nonzeros, find_prunable_layers, make_weight_plan


def cut_weights(previous: Path, out: Path, config: IterateConfig, limits: Limits) -> Cut:
    """Zero weights of a checkpoint up to the limits, and write it to `out` with the moments of all.

    Of a last.pt it is the last step's weights, to which the moments belong.

    Raises:
        PlanError: a weight is NaN or infinite, or the target is out of reach.
    """
    checkpoint = load_checkpoint(previous)
    model = checkpoint.make_last_step_model().eval()
    wanted = WeightConfig(config.criterion, limits.ratio, config.scope, spare=config.spare)
    needed = _find_needed_ratio(model, wanted, config, limits)
    meets_target = needed is not None and needed <= limits.ratio
    plan = make_weight_plan(model, replace(wanted, ratio=needed) if meets_target and needed is not None else wanted)
    pruned = zero_weights(model, plan)
    nonzeros = count_nonzeros(pruned, checkpoint.img_size)
    made = Cut(plan.ratio, nonzeros.params, nonzeros.macs, meets_target)
    facts = {"data": checkpoint.provenance.get("data"), "metrics": asdict(made), KEEPS_ZEROS: True}
    provenance = make_provenance("iterate", format_config(config), previous, **facts)
    training = {"moments": {kind: dict(tensors) for kind, tensors in load_moments(checkpoint).items()}}
    left = Checkpoint(pruned.network, pruned.state_dict(), checkpoint.names, checkpoint.img_size, provenance, training)
    save_checkpoint(out, left)
    return made


def _find_needed_ratio(model: Detector, wanted: WeightConfig, config: IterateConfig, limits: Limits) -> float | None:
    """Return the share of the prunable weights that must be zero for `target_params`, if there is one."""
    if config.target_params is None:
        return None
    prunable = 0
    for layer in find_prunable_layers(model.network, wanted):
        module = model.layers[layer]
        assert isinstance(module, ConvLayer)
        prunable += module.conv.weight.numel()
    needed = (1 - config.target_params) * limits.cost.params / prunable
    if needed >= 1:
        nearest = 1 - prunable / limits.cost.params
        right = f"use more than {nearest:.4f}, the share of what is not pruned"
        raise PlanError(f"{config.target_params:g} is out of reach", where="target_params", right=right)
    return needed
