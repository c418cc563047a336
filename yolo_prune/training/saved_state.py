"""What the `training` of a last.pt holds, and of a network that `iterate` pruned: checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, FiniteFloat, NonNegativeFloat, NonNegativeInt, with_config
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from typing_extensions import NotRequired, TypedDict

from yolo_prune.errors import CheckpointError
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.sparsity.zeroing import Removal, parse_removal
from yolo_prune.records import TENSORS, PathText, check_record, shorten
from yolo_prune.training.epoch import PARTS

OLD_NAMES = {"tally": "stats"}
"""Names in files of version 0.1, with their present names."""
RIGHT = "take it from a copy, or start a new run"
ALWAYS = ("epoch", "loss", "learning_rate", "channels_below", "channels")
"""What every row has a number for."""
NEEDED = {"lr", "weight_decay", "betas", "eps", "momentum", "dampening", "nesterov"}
"""Settings that every version of PyTorch keeps, where an optimizer has them."""
ADAM_KINDS = ("step", "exp_avg", "exp_avg_sq")


def _check_losses(losses: Tensor) -> Tensor:
    if losses.shape != (len(PARTS),) or losses.dtype != torch.float32:
        raise ValueError(f"is no list of {len(PARTS)} losses")
    return losses


def _check_flags(flags: Tensor) -> Tensor:
    if flags.ndim != 1 or flags.dtype != torch.bool:
        raise ValueError("is no list of booleans")
    return flags


Values = dict[str, int | float | None]


def _check_rows(rows: list[Values]) -> list[Values]:
    for number, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            raise ValueError(f"[{number}] has other keys than [0]")
        if "val_map50" not in row or any(row.get(name) is None for name in ALWAYS):
            raise ValueError(f"[{number}] lacks one of val_map50, {', '.join(ALWAYS)}")
    return rows


Flags = Annotated[Tensor, AfterValidator(_check_flags)]
Moments = dict[str, dict[str, Tensor]]


@with_config(TENSORS)
class Stats(TypedDict):
    """`EpochStats`."""

    losses: Annotated[Tensor, AfterValidator(_check_losses)]
    steps: NonNegativeInt
    images: NonNegativeInt
    seconds: NonNegativeFloat


@with_config(TENSORS)
class SavedRemoval(TypedDict):
    """`Removal.format_state`."""

    cfg: str
    kept: Flags
    target: Flags | None
    difference: NonNegativeFloat


@with_config(TENSORS)
class SavedOptimizer(TypedDict):
    """The state dict of an optimizer."""

    state: dict[int, dict[str, Any]]
    param_groups: list[dict[str, Any]]


@with_config(TENSORS)
class SavedState(TypedDict):
    """The progress of a run, and what a resumed run needs."""

    epoch: NonNegativeInt
    best_map50: FiniteFloat
    waited: NonNegativeInt
    is_done: bool
    sparsity: NonNegativeFloat
    rows: Annotated[list[Values], AfterValidator(_check_rows)]
    gammas: list[list[NonNegativeInt]]
    stats: Stats
    optimizer: SavedOptimizer
    average: dict[str, Tensor]
    average_updates: NonNegativeInt
    scaler: dict[str, int | FiniteFloat]
    removal: NotRequired[SavedRemoval | None]


class RunData(TypedDict):
    """The data set of a run."""

    path: PathText
    fingerprint: str


class RunProvenance(TypedDict):
    """What a run needs of the provenance in its last.pt."""

    stage: str
    recipe: dict[str, Any]
    data: RunData


@with_config(TENSORS)
class SavedMoments(TypedDict, total=False):
    """The moments for a network that `iterate` pruned."""

    moments: Moments


def read_saved_state(training: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the training state in a last.pt, under its present names, after it is checked.

    Raises:
        CheckpointError: a key is missing or wrong; names it.
    """
    stored = {OLD_NAMES.get(name, name): value for name, value in training.items()}
    place = f"{path}: training"
    check_record(SavedState, stored, place, CheckpointError, RIGHT)
    if stored["epoch"] != len(stored["rows"]):
        raise CheckpointError(f"has {len(stored['rows'])} rows of {stored['epoch']} epochs", where=place, right=RIGHT)
    return stored


def load_saved_state(last: Path) -> dict[str, Any]:
    """Load the training state in a last.pt, as `read_saved_state`.

    Raises:
        CheckpointError: the file cannot be read, or a key is missing or wrong; names it.
    """
    return read_saved_state(load_checkpoint(last).training, last)


def read_removal(last: Checkpoint, path: Path) -> Removal | None:
    """Return which channels a run has removed so far; None for a run that removes none.

    Raises:
        CheckpointError: it does not fit the network in last.pt.
        CfgError: the network that the run began with cannot be read.
    """
    state = last.training.get("removal")
    if state is None:
        return None
    removal = parse_removal(state)
    sizes = {len(removal.kept), len(removal.kept if removal.target is None else removal.target)}
    if sizes != {make_channel_graph(removal.original).size} or (
        int(removal.kept.sum()) != make_channel_graph(last.network).size
    ):
        raise CheckpointError("removal does not fit the network", where=f"{path}: training", right=RIGHT)
    return removal


def check_run_provenance(provenance: Mapping[str, Any], path: Path) -> None:
    """Check that a last.pt says what its run is.

    Raises:
        CheckpointError: a key is missing or wrong; names it.
    """
    check_record(RunProvenance, provenance, f"{path}: provenance", CheckpointError, RIGHT)


def read_moments(training: Mapping[str, Any], path: Path) -> Moments:
    """Return the moments that `iterate` left beside a pruned network; {} without any.

    Raises:
        CheckpointError: they are no tensors by kind and parameter.
    """
    check_record(SavedMoments, training, f"{path}: training", CheckpointError, RIGHT)
    moments: Moments = training.get("moments", {})
    return moments


def check_moments(moments: Mapping[str, Mapping[str, Tensor]], model: nn.Module, path: Path) -> None:
    """Check that moments by kind and name fit the parameters of a model; single numbers always do.

    Raises:
        CheckpointError: a parameter does not exist, or has another shape.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for kind, tensors in moments.items():
        for name, tensor in tensors.items():
            if name not in shapes or (tensor.ndim and tensor.shape != shapes[name]) or not tensor.is_floating_point():
                what = f"moments.{kind}.{name} does not fit the network"
                raise CheckpointError(what, where=f"{path}: training", right=RIGHT)


def check_numbers(states: Mapping[int, Any], count: int, path: Path) -> None:
    """Check that the numbers of an optimizer's states are those of parameters.

    Raises:
        CheckpointError: one is not.
    """
    if odd := [number for number in states if not 0 <= number < count]:
        what = f"optimizer.state[{odd[0]}] does not fit the network"
        raise CheckpointError(what, where=f"{path}: training", right=RIGHT)


def check_optimizer(optimizer: Optimizer, stored: SavedOptimizer, path: Path) -> None:
    """Check that a stored state fits an optimizer: the same settings, and moments of its parameters' shapes.

    Raises:
        CheckpointError: it does not; names the key.
    """
    place = f"{path}: training"
    own = optimizer.state_dict()["param_groups"]
    groups = stored["param_groups"]
    if len(own) != len(groups):
        raise CheckpointError("optimizer.param_groups does not fit the network", where=place, right=RIGHT)
    for number, (group, found) in enumerate(zip(own, groups, strict=True)):
        for key in (group.keys() - {"params"}) & (
            NEEDED | found.keys()
        ):  # another version of PyTorch may keep other settings
            if key not in found or not _is_like(found[key], group[key]):
                raise CheckpointError(f"optimizer.param_groups[{number}].{key} is wrong", where=place, right=RIGHT)
        if found.get("params") != group["params"]:
            raise CheckpointError(
                f"optimizer.param_groups[{number}].params does not fit the network", where=place, right=RIGHT
            )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kinds = ADAM_KINDS if isinstance(optimizer, AdamW) else ()
    check_numbers(stored["state"], len(parameters), path)
    for index, kept in stored["state"].items():
        for kind in dict.fromkeys((*kept, *(kinds if kept else ()))):  # none are kept before the first step
            shape = () if kind == "step" else parameters[index].shape
            value = kept.get(kind)
            is_unused = value is None and kind == "momentum_buffer"  # SGD without momentum
            if not is_unused and not (isinstance(value, Tensor) and value.is_floating_point() and value.shape == shape):
                what = f"optimizer.state[{index}].{shorten(kind)} does not fit the network"
                raise CheckpointError(what, where=place, right=RIGHT)


def check_scaler(scaler: torch.amp.GradScaler, stored: Mapping[str, Any], path: Path) -> None:
    """Check that a stored state has what an enabled loss scaler needs.

    Raises:
        CheckpointError: it lacks a key; names it.
    """
    if lacks := sorted(scaler.state_dict().keys() - stored.keys()):  # none is needed if it is not enabled
        raise CheckpointError(f"lacks scaler.{lacks[0]}", where=f"{path}: training", right=RIGHT)


def _is_like(found: Any, own: Any) -> bool:
    """Return whether a setting of an optimizer may be another's: any numbers, but the same ways to compute."""
    if isinstance(own, bool) or own is None:
        return found is own
    if isinstance(own, tuple | list):
        return isinstance(found, tuple | list) and len(found) == len(own) and all(map(_is_like, found, own))
    return type(found) in (int, float) and isfinite(found)
