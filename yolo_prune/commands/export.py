"""`export`: write a checkpoint in the formats of other tools, and verify those that run by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from yolo_prune.commands.data import find_data_of
from yolo_prune.commands.pruning.calibration import pick_samples
from yolo_prune.console import report
from yolo_prune.darknet.cfg import save_cfg
from yolo_prune.engines.exported.model import load_exported
from yolo_prune.errors import OutputError
from yolo_prune.export.config import FORMATS, RUN, ExportConfig
from yolo_prune.export.verify import IMAGES, Parity, check_parity, measure_parity
from yolo_prune.export.writers import describe, write_model
from yolo_prune.files import measure_sha256
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint
from yolo_prune.model.decode import normalise
from yolo_prune.model.detector import Detector
from yolo_prune.model.fold import fold_batchnorm
from yolo_prune.model.state_dicts import save_foreign_weights
from yolo_prune.model.weights import save_weights


@dataclass(frozen=True)
class ExportResult:
    """The file of each format, the cfg where one was written, and how near the outputs are."""

    files: dict[str, Path]
    cfg: Path | None
    parity: dict[str, Parity]

    @property
    def stdout(self) -> str:
        """The path of each file, a line each."""
        return "\n".join(map(str, self.files.values()))

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON output."""
        cfg = {} if self.cfg is None else {"cfg": str(self.cfg)}
        weights = {"weights": str(self.files["darknet"])} if "darknet" in self.files else {}
        files = {name: str(path) for name, path in self.files.items()}
        return {**cfg, **weights, "files": files, "parity": {name: one.as_dict() for name, one in self.parity.items()}}


def export(source: Path, config: ExportConfig) -> ExportResult:
    """Write a checkpoint in one or several formats.

    Readers of .weights files add different ε to the variances: 1e-5 here and in AlexeyAB's Darknet, 1e-6 in others and
    in OpenCV. With `fold`, batch norm is folded into the convolutions, so the outputs are the same in every reader.

    Raises:
        CheckpointError, ConfigError: the checkpoint cannot be read, cannot have the size, or a package is missing.
        OutputError: a file cannot be written, or its outputs are not the checkpoint's; what was there before stays.
    """
    checkpoint = load_checkpoint(source).with_img_size(config.img_size)
    model = checkpoint.make_model().eval()
    stem = source.with_suffix("") if config.out is None else _cut_suffix(config.out)
    files: dict[str, Path] = {}
    parity: dict[str, Parity] = {}
    cfg = None
    for name in config.formats:
        path = stem.with_name(f"{stem.name}{FORMATS[name]}")
        if name in RUN:
            found = _write(source, checkpoint, model, name, config, path)
            files[name] = path
            parity |= {} if found is None else {name: found}
        else:
            chosen = fold_batchnorm(model) if config.fold else model
            cfg = save_cfg(chosen.network, stem.with_name(f"{stem.name}.cfg"))
            files[name] = (save_weights if name == "darknet" else save_foreign_weights)(chosen, path)
    return ExportResult(files, cfg, parity)


def _cut_suffix(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in FORMATS.values() else path


def _write(
    source: Path, checkpoint: Checkpoint, model: Detector, name: str, config: ExportConfig, path: Path
) -> Parity | None:
    """Write a file that runs by itself, first to a folder beside its place, and verify it there."""
    precision = config.precision or ("fp16" if name == "openvino" else "fp32")
    metadata = describe(
        checkpoint, measure_sha256(source), precision=precision, layout=config.layout, dynamic=config.dynamic
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as folder:
            made = write_model(checkpoint, metadata, Path(folder, path.name))
            parity = _verify(model, made, checkpoint, config, path) if config.verify else None
            for part in sorted(Path(folder).iterdir()):
                part.replace(path.with_name(part.name))
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror})", where=path, right="choose another --out") from error
    return parity


def _verify(model: Detector, made: Path, checkpoint: Checkpoint, config: ExportConfig, path: Path) -> Parity:
    exported = load_exported(made)
    engine = exported.make_engine()
    parity = measure_parity(model, engine, _list_images(checkpoint, config))
    check_parity(parity, exported.metadata.precision, path)
    report(
        f"{path}: outputs equal the checkpoint's on {parity.images} images to {parity.score:.1e} in scores and "
        f"{parity.box:.1e} of a box's side ({parity.compared_boxes} boxes)"
    )
    return parity


def _list_images(checkpoint: Checkpoint, config: ExportConfig) -> Iterator[Tensor]:
    """Yield images (1, 3, H, W) of the validation split, or noise where there is no data set."""
    size = checkpoint.img_size
    spec = find_data_of(config.data, checkpoint.provenance)
    if spec is None:
        report(
            "the data set that the checkpoint was trained on is not there: outputs are compared on noise; --data names one"
        )
        noise = torch.rand(IMAGES, 3, size.height, size.width, generator=torch.Generator().manual_seed(0))
        yield from torch.split(noise, 1)
        return
    data = pick_samples(spec, "val" if spec.splits.get("val") else "train", IMAGES, size)
    for index in range(len(data)):
        image, _ = data.make_item(index)
        yield normalise(torch.from_numpy(image).permute(2, 0, 1)[None])
