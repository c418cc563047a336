"""`import` and `export`: convert Darknet's cfg and .weights to a checkpoint, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from yolo_prune.commands.results import PathResult
from yolo_prune.commands.run_folders import RUNS, remember_latest
from yolo_prune.console import report
from yolo_prune.darknet.cfg import load_cfg, save_cfg
from yolo_prune.darknet.config import ExportConfig, ImportConfig
from yolo_prune.errors import ConfigError
from yolo_prune.files import measure_sha256
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint, make_provenance, save_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.model.fold import fold_batchnorm
from yolo_prune.model.state_dicts import fill_weights, save_foreign_weights
from yolo_prune.model.weights import save_weights
from yolo_prune.shipped_configs import find_cfg


@dataclass(frozen=True)
class ExportResult:
    """The two files of a Darknet network."""

    cfg: Path
    weights: Path

    @property
    def stdout(self) -> str:
        """The path of the .weights."""
        return str(self.weights)

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON output."""
        return {"cfg": str(self.cfg), "weights": str(self.weights)}


def import_darknet(cfg: Path, config: ImportConfig) -> PathResult:
    """Write the checkpoint of a Darknet network, which later commands take by default.

    Weights that the file does not hold (it may be missing, or hold only the first layers) are random; this is reported.
    Without names, class names are the class numbers.

    Raises:
        CfgError, WeightsError: a file is invalid.
        ConfigError: the number of names differs from the number of classes.
    """
    weights = config.weights
    cfg = find_cfg(cfg)
    network = load_cfg(cfg)
    names = tuple(map(str, range(network.classes))) if config.names is None else _read_names(config.names)
    if len(names) != network.classes:
        raise ConfigError(
            f"{len(names)} names for {network.classes} classes", where="names", right="name every class of the cfg"
        )
    torch.manual_seed(config.seed)
    model = Detector(network)
    if weights is None:
        report(f"{cfg}: no weights were given, all weights are random")
    else:
        report(f"{weights}: {fill_weights(model, weights, config.prefix)}")
    recipe = {"cfg": str(cfg), "weights": None if weights is None else str(weights)}
    sums = {key: measure_sha256(Path(path)) for key, path in recipe.items() if path is not None}
    provenance = make_provenance("import", recipe, sha256=sums)
    checkpoint = Checkpoint(network, model.state_dict(), names, provenance)
    path = save_checkpoint(config.out or RUNS / "import" / f"{cfg.stem}.pt", checkpoint)
    remember_latest("train", path)
    return PathResult(path)


def _read_names(given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the given names, or the lines of a file if there is one of the only name."""
    if len(given) > 1 or not (path := Path(given[0])).is_file():
        return given
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot be read", where=path, right="name a text file with a class per line") from error
    return tuple(line.strip() for line in lines if line.strip())


def export_darknet(source: Path, config: ExportConfig) -> ExportResult:
    """Write a checkpoint as Darknet cfg and .weights, or with format pytorch-yolov3 as cfg and state dict.

    Readers of .weights files add different ε to the variances: 1e-5 here and in AlexeyAB's Darknet, 1e-6 in others and
    in OpenCV. With `fold`, batch norm is folded into the convolutions, so the outputs are the same in every reader.

    Raises:
        CheckpointError, OutputError: the checkpoint cannot be read, or a file cannot be written.
    """
    stem = config.out or source.with_suffix("")
    checkpoint = load_checkpoint(source).with_img_size(config.img_size)
    model = checkpoint.make_model().eval()
    model = fold_batchnorm(model) if config.fold else model
    save, suffix = (save_weights, ".weights") if config.format == "darknet" else (save_foreign_weights, ".pth")
    cfg = save_cfg(model.network, stem.with_name(f"{stem.name}.cfg"))
    return ExportResult(cfg, save(model, stem.with_name(f"{stem.name}{suffix}")))
