"""Checkpoint files: cfg text, tensors, class names, image size and provenance.

To load a checkpoint, its cfg is parsed, a `Detector` is made, and the tensors are loaded into it. A checkpoint never
holds pickled code and is always read with `weights_only=True`, after all its bytes are checked (`checkpoint_file.py`).
Tensors with many zeros are stored packed (`sparse_storage.py`). A file with packed tensors has format version 2. All
others have version 1, which older versions of the package read too.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from yolo_prune.darknet.anchors import set_img_size
from yolo_prune.darknet.cfg import format_cfg, parse_cfg
from yolo_prune.darknet.network import Network
from yolo_prune.errors import CfgError, CheckpointError, ConfigError
from yolo_prune.files import measure_sha256, open_atomically
from yolo_prune.image_size import AnySize, ImageSize, parse_size, read_size
from yolo_prune.model.checkpoint_file import COPY, OURS, check_storages, load_plain, says_format
from yolo_prune.model.detector import Detector
from yolo_prune.model.sparse_storage import is_worth_packing, pack, unpack
from yolo_prune.records import PathText, check_record, shorten
from yolo_prune.version import __version__

FORMAT = "yolo_prune checkpoint"
FORMAT_VERSION, PACKED_VERSION = 1, 2

KEEPS_ZEROS = "keeps_zeros"
"""The provenance key behind `Checkpoint.keeps_zeros`."""

AVERAGE = "average"
"""The key of the averaged weights in the `training` of a last.pt; see `Checkpoint.weights`."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Parent(TypedDict):
    """The checkpoint that another was made from."""

    path: PathText
    sha256: str


class DataOf(TypedDict):
    """The data set that a checkpoint was trained on."""

    path: PathText
    fingerprint: NotRequired[str]


class Provenance(TypedDict, total=False):
    """What `make_provenance` returns, and the facts that commands add."""

    stage: str
    version: str
    git_revision: str | None
    recipe: dict[str, Any]
    parent: Parent | None
    data: DataOf | None
    metrics: dict[str, Any]
    keeps_zeros: bool


class Content(TypedDict):
    """What the file of a checkpoint holds."""

    format: str
    format_version: int
    cfg: str
    state: dict[str, Any]
    names: list[str]
    img_size: int | str
    provenance: Provenance
    training: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A detector on disk. `training` holds what a run needs to resume; it is empty in a finished checkpoint.

    A run's last.pt has two sets of weights: `state` after the last step, and the averaged weights, which the run
    validates and saves in best.pt. To use the network, take the averaged weights (`weights`, `make_model`). To resume
    the run, or to use the optimizer's moments, take `state` (`make_last_step_model`).
    """

    network: Network
    state: Mapping[str, Tensor]
    names: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def img_size(self) -> ImageSize:
        """The size of the network's input."""
        return self.network.img_size

    def with_img_size(self, img_size: AnySize | str | None) -> Checkpoint:
        """Return the checkpoint with another size of input, which may be a text, `640x384`; None keeps the size.

        Raises:
            ConfigError: a side is not a multiple of 32.
            CfgError: the network cannot have that size.
        """
        return self if img_size is None else replace(self, network=set_img_size(self.network, parse_size(img_size)))

    def with_names(self, names: tuple[str, ...]) -> Checkpoint:
        """Return the checkpoint with other names for its classes."""
        return replace(self, names=names)

    @property
    def keeps_zeros(self) -> bool:
        """Whether weights were pruned to zero, and must stay zero when training continues."""
        return bool(self.provenance.get(KEEPS_ZEROS, False))

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The weights for use: the averaged weights if the file is a last.pt, else `state`."""
        averaged: Mapping[str, Tensor] = self.training.get(AVERAGE, self.state)
        return averaged

    def make_model(self) -> Detector:
        """Rebuild the detector with `weights`, for use; it shares their memory.

        Raises:
            CheckpointError: cfg and tensors disagree; names the tensor.
        """
        return self._make_model(self.weights)

    def make_last_step_model(self) -> Detector:
        """Rebuild the detector with `state`, to continue training; it shares their memory.

        Raises:
            CheckpointError: as `make_model`.
        """
        return self._make_model(self.state)

    def _make_model(self, state: Mapping[str, Tensor]) -> Detector:
        with torch.device("meta"):
            model = Detector(self.network)
        _check_state(model.state_dict(), state)
        model.load_state_dict(dict(state), assign=True)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return model


def make_provenance(stage: str, recipe: Mapping[str, Any], parent: Path | None = None, **facts: Any) -> dict[str, Any]:
    """Return a checkpoint's origin: stage, version, git revision, recipe, parent's path and SHA-256, other facts."""
    lineage = None if parent is None else {"path": str(parent.resolve()), "sha256": measure_sha256(parent)}
    return {
        "stage": stage,
        "version": __version__,
        "git_revision": _read_git_revision(),
        "recipe": dict(recipe),
        "parent": lineage,
        **facts,
    }


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint atomically and return `path`.

    Raises:
        OutputError: the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu() for name, tensor in checkpoint.state.items()}
    state = {name: pack(tensor) if is_worth_packing(tensor) else tensor for name, tensor in tensors.items()}
    is_packed = any(isinstance(stored, dict) for stored in state.values())
    content = {
        "format": FORMAT,
        "format_version": PACKED_VERSION if is_packed else FORMAT_VERSION,
        "cfg": format_cfg(checkpoint.network),
        "state": state,
        "names": list(checkpoint.names),
        "img_size": checkpoint.img_size.plain,
        "provenance": checkpoint.provenance,
        "training": checkpoint.training,
    }
    with open_atomically(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's writer hides the disk's error behind its own
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
    return path


def is_checkpoint(path: Path) -> bool:
    """Return whether a file says that it is a checkpoint of this package, whole or not."""
    return says_format(path, FORMAT)


def load_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint, after all its bytes are checked; its tensors are memory-mapped.

    Raises:
        CheckpointError: the file does not exist, is damaged, is not a checkpoint, contains code, has an unknown format
            version, or its parts do not fit each other; names the part.
    """
    content = load_plain(path)
    _check_content(content, path)
    try:
        network = parse_cfg(content["cfg"], f"{path}[cfg]")
        network = set_img_size(network, read_size(content["img_size"]))  # an old file's cfg may state another
    except (ValueError, ConfigError) as error:
        what = f"holds a wrong img_size, {shorten(content['img_size'])}"
        raise CheckpointError(what, where=path, right=COPY) from error
    except CfgError as error:
        raise CheckpointError(f"holds a cfg that cannot be read ({error})", where=path) from error
    if len(content["names"]) != network.classes:
        what = f"names has {len(content['names'])} names, its cfg {network.classes} classes"
        raise CheckpointError(what, where=path, right="make it again")
    with torch.device("meta"):
        expected = Detector(network).state_dict()
    state = _unpack_state(expected, content["state"], path)
    checkpoint = Checkpoint(network, state, tuple(content["names"]), content["provenance"], content["training"])
    for one in (checkpoint.state, checkpoint.weights):
        _check_state(expected, one, path)
    return checkpoint


def load_usable(path: Path) -> Checkpoint:
    """Load a checkpoint to use its weights, which must be finite.

    Raises:
        CheckpointError: as `load_checkpoint` and `check_weights`.
    """
    checkpoint = load_checkpoint(path)
    check_weights(checkpoint, path)
    return checkpoint


def check_weights(checkpoint: Checkpoint, path: Path) -> None:
    """Check that the weights that a command uses are finite. Those of a run that diverged are not.

    Raises:
        CheckpointError: one is NaN or infinite; names the tensor.
    """
    for name, tensor in checkpoint.weights.items():
        if tensor.is_floating_point() and not torch.stack(tensor.aminmax()).isfinite().all():  # it needs no copy
            raise CheckpointError(
                f"{name} holds NaN or infinity", where=path, right="train again from a sound checkpoint"
            )


def _check_content(content: Any, path: Path) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError("is not a yolo_prune checkpoint", where=path, right=OURS)
    version = content.get("format_version")
    if type(version) is not int or version not in (FORMAT_VERSION, PACKED_VERSION):
        right = f"this version reads formats {FORMAT_VERSION} and {PACKED_VERSION}"
        raise CheckpointError(f"has format version {shorten(version)}", where=path, right=right)
    right = "make it again with train, prune or finetune"
    check_record(Content, content, path, CheckpointError, right)
    try:
        json.dumps(content["provenance"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"provenance is not plain ({error})", where=path, right=right) from error
    check_storages(content, path)


def is_stored_packed(checkpoint: Checkpoint) -> bool:
    """Return whether saving the checkpoint packs any tensor."""
    return any(is_worth_packing(tensor) for tensor in checkpoint.state.values())


def _unpack_state(expected: Mapping[str, Tensor], state: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a stored state with its packed tensors unpacked, if they belong to the cfg."""
    unpacked = dict(state)
    for name in expected.keys() & state.keys():
        if isinstance(state[name], dict):
            try:
                unpacked[name] = unpack(state[name], expected[name].shape)
            except ValueError as error:
                raise CheckpointError(
                    f"{name}, which is stored packed, has {error}", where=path, right="make it again"
                ) from error
    return unpacked


def _check_state(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path | None = None) -> None:
    right = "make it again"
    if not isinstance(found, dict) or set(expected) != set(found):
        odd = sorted(map(str, set(expected).symmetric_difference(found if isinstance(found, dict) else ())))
        what = shorten(odd[0]).strip("'") if odd else "everything"
        raise CheckpointError(f"its cfg and tensors disagree about {what}", where=path, right=right)
    used = next((found[name].dtype for name in expected if isinstance(found[name], Tensor)), None)
    for name, tensor in expected.items():
        if not isinstance(found[name], Tensor):
            raise CheckpointError(f"{name} is no tensor", where=path, right=right)
        if tensor.shape != found[name].shape:
            what = f"its cfg wants {name} of shape {tuple(tensor.shape)}, its tensor has {tuple(found[name].shape)}"
            raise CheckpointError(what, where=path, right=right)
        allowed = FLOATS if tensor.is_floating_point() else (tensor.dtype,)
        if (kind := found[name].dtype) not in allowed or (tensor.is_floating_point() and kind != used):
            raise CheckpointError(f"{name} holds {kind}", where=path, right=right)


def _read_git_revision() -> str | None:
    """Return the git revision of the checkout that this package runs from; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
