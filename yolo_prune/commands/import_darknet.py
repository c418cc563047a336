"""`import`: make a checkpoint of a Darknet cfg and of weights that fit it."""

from __future__ import annotations

from pathlib import Path

import torch

from yolo_prune.bounded import exists, is_folder, read_text
from yolo_prune.commands.results import PathResult
from yolo_prune.commands.run_folders import RUNS, remember_latest
from yolo_prune.console import report
from yolo_prune.darknet.cfg import load_cfg
from yolo_prune.darknet.config import ImportConfig
from yolo_prune.datasets.data_file import check_names
from yolo_prune.errors import ConfigError, YoloPruneError
from yolo_prune.files import check_replaceable, measure_sha256
from yolo_prune.limits import MOST_NAMES_BYTES
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint, make_provenance, save_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.model.state_dicts import fill_weights
from yolo_prune.shipped_configs import find_cfg


def import_darknet(cfg: Path, config: ImportConfig) -> PathResult:
    """Write the checkpoint of a Darknet network, which later commands take by default.

    Weights that the file does not hold (it may be missing, or hold only the first layers) are random; this is reported.
    Without names, class names are the class numbers.

    Raises:
        CfgError, WeightsError: a file is invalid.
        ConfigError: the number of names differs from the number of classes, or the file to write is no .pt.
        OutputError: the file to write is there already, and was not made from the same cfg and weights.
    """
    weights = config.weights
    cfg = find_cfg(cfg)
    out = config.out or RUNS / "import" / f"{cfg.stem}.pt"
    if out.name and out.suffix != ".pt":
        raise ConfigError(f"{out} is no name of a checkpoint", where="out", right=f"use {out.with_suffix('.pt')}")
    network = load_cfg(cfg)
    names = tuple(map(str, range(network.classes))) if config.names is None else _read_names(config.names)
    if len(names) != network.classes:
        raise ConfigError(
            f"{len(names)} names for {network.classes} classes", where="names", right="name every class of the cfg"
        )
    recipe = {"cfg": str(cfg), "weights": None if weights is None else str(weights)}
    sums = {
        key: measure_sha256(Path(path)) for key, path in recipe.items() if path is not None and Path(path).is_file()
    }
    inputs = [path for path in (cfg, weights) if path is not None]
    check_replaceable([out], force=config.force, is_own=lambda path: _is_made_of(path, sums), inputs=inputs)
    torch.manual_seed(config.seed)
    model = Detector(network)
    if weights is None:
        report(f"{cfg}: no weights were given, all weights are random")
    else:
        report(f"{weights}: {fill_weights(model, weights, config.prefix)}")
    provenance = make_provenance("import", recipe, sha256=sums)
    checkpoint = Checkpoint(network, model.state_dict(), names, provenance)
    path = save_checkpoint(out, checkpoint)
    remember_latest("train", path)
    return PathResult(path)


def _is_made_of(path: Path, sums: dict[str, str]) -> bool:
    """Return whether a file is a checkpoint that `import` made from files with these SHA-256."""
    try:
        made_by = load_checkpoint(path).provenance
    except YoloPruneError:
        return False
    return made_by.get("stage") == "import" and made_by.get("sha256") == sums


def _read_names(given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the given names, or the lines of a file if there is one of the only name."""
    if len(given) > 1 or not exists(path := Path(given[0])) or is_folder(path):
        return given
    try:
        lines = read_text(path, MOST_NAMES_BYTES, "utf-8-sig", takes_pipes=True).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) else ""
        right = "name a text file with a class per line"
        raise ConfigError(f"cannot be read{reason}", where=path, right=right) from error
    names = tuple(line.strip() for line in lines if line.strip())
    check_names(names, path)
    return names
