"""`export`: write a checkpoint in the formats of other tools, and verify those that run by themselves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from filecmp import cmp
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolo_prune.commands.data import find_data_of
from yolo_prune.commands.exported_score import ScoreDifference, Scorer
from yolo_prune.commands.pruning.calibration import pick_samples
from yolo_prune.console import report, warn
from yolo_prune.darknet.cfg import save_cfg
from yolo_prune.datasets.loader import DetectionDataset
from yolo_prune.datasets.spec import DataSpec
from yolo_prune.engines.exported.metadata import Metadata
from yolo_prune.engines.exported.model import load_exported
from yolo_prune.errors import CheckpointError, ConfigError, OutputError
from yolo_prune.export.card import CardFacts, quote_data, write_card
from yolo_prune.export.config import ExportConfig
from yolo_prune.export.formats import FORMATS, find_format
from yolo_prune.export.places import Places
from yolo_prune.export.verify import IMAGES, Parity, check_parity, describe_parity, measure_parity
from yolo_prune.export.writers import describe, write_model
from yolo_prune.files import check_replaceable, make_scratch_folder, measure_sha256
from yolo_prune.model.checkpoint import Checkpoint, load_usable
from yolo_prune.model.decode import normalise
from yolo_prune.model.fold import fold_batchnorm
from yolo_prune.model.state_dicts import save_foreign_weights
from yolo_prune.model.weights import save_weights


@dataclass(frozen=True)
class ExportResult:
    """The file of each format, and for those that run how near their outputs are and what they score."""

    files: dict[str, Path] = field(default_factory=dict)
    cfg: Path | None = None
    card: Path | None = None
    parity: dict[str, Parity] = field(default_factory=dict)
    scores: dict[str, ScoreDifference] = field(default_factory=dict)

    @property
    def stdout(self) -> str:
        """The path of each file, a line each."""
        return "\n".join(map(str, self.files.values()))

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON output."""
        extra = {"cfg": self.cfg, "card": self.card, "weights": self.files.get("darknet")}
        return {
            **{name: str(path) for name, path in extra.items() if path is not None},
            "files": {name: str(path) for name, path in self.files.items()},
            "parity": {name: parity.as_dict() for name, parity in self.parity.items()},
            "scores": {name: asdict(score) for name, score in self.scores.items()},
        }


def export(source: Path, config: ExportConfig) -> ExportResult:
    """Write a checkpoint in one or several formats.

    Readers of .weights files add different ε to the variances: 1e-5 here and in AlexeyAB's Darknet, 1e-6 in others and
    in OpenCV. With `fold`, batch norm is folded into the convolutions, so the outputs are the same in every reader.

    Raises:
        CheckpointError, ConfigError: the checkpoint cannot be read, cannot have the size, or a package is missing.
        OutputError: a file cannot be written, or its outputs are not the checkpoint's; what was there before stays.
        OutputError: a file is there already that was not exported from this checkpoint; nothing is written.
    """
    exporter = _Exporter(source, load_usable(source).with_img_size(config.img_size), config)
    exporter.check_places()
    result = ExportResult()
    cfg = None
    for name in config.formats:
        path = exporter.places.name(FORMATS[name].suffix)
        if FORMATS[name].holds_network:
            exporter.write_network(name, path, result)
        else:
            cfg = exporter.write_weights(name, path)
        result.files[name] = path
    return replace(result, cfg=cfg, card=exporter.write_card(result) if config.card else None)


class _Exporter:
    """Writes a checkpoint by the settings, and compares what it writes."""

    def __init__(self, source: Path, checkpoint: Checkpoint, config: ExportConfig) -> None:
        self.source, self.checkpoint, self.config = source, checkpoint, config
        self.model = checkpoint.make_model().eval()
        self.stem = source.with_suffix("") if config.out is None else _cut_suffix(config.out)
        if self.stem.name in ("", ".."):
            raise OutputError("is no name for a file", where=self.stem, right="name a file")
        self.places = Places(self.stem, config.formats, config.card, self.sha256)
        self.spec = find_data_of(config.data, checkpoint.provenance)
        self.facts: dict[str, Metadata] = {}
        self.comparisons: dict[str, str] = {}

    def check_places(self) -> None:
        """Check that no file would be replaced but what was exported from this checkpoint, or is the same.

        Raises:
            OutputError: names it.
        """
        fresh: dict[Path, Path] = {}
        with ExitStack() as stack:
            for name in self.config.formats:
                path = self.places.name(FORMATS[name].suffix)
                if FORMATS[name].holds_network or not (path.is_file() or self.places.name(".cfg").is_file()):
                    continue
                folder = stack.enter_context(make_scratch_folder(path))
                self.write_weights(name, folder / path.name)
                fresh |= {path.with_name(made.name): made for made in folder.iterdir()}

            def is_own(path: Path) -> bool:
                return (
                    path.exists() and cmp(path, fresh[path], shallow=False)
                    if path in fresh
                    else self.places.is_own(path)
                )

            paths = self.places.list()
            check_replaceable(paths, force=self.config.force, is_own=is_own, inputs=[self.source])

    def write_weights(self, name: str, path: Path) -> Path:
        """Write a file of weights alone, and the cfg beside it, and return the path of the cfg."""
        chosen = fold_batchnorm(self.model) if self.config.fold else self.model
        cfg = save_cfg(chosen.network, path.with_name(f"{self.stem.name}.cfg"))
        (save_weights if name == "darknet" else save_foreign_weights)(chosen, path)
        return cfg

    def write_network(self, name: str, path: Path, result: ExportResult) -> None:
        """Write a file that runs by itself, first to a folder beside its place, and verify it there."""
        config = self.config
        precision = config.precision or FORMATS[name].precisions[0]
        facts = describe(
            self.checkpoint,
            self.sha256,
            precision=precision,
            layout=config.layout,
            dynamic=config.dynamic,
            nms=config.detection if config.nms else None,
        )
        calibration = self._list_calibration() if precision == "int8" else []
        try:
            with make_scratch_folder(path) as folder:
                made = folder / path.name
                with naming(made, path):
                    write_model(self.checkpoint, facts, made, calibration=calibration)
                    self._verify(name, made, facts, path, result)
                for part in sorted(folder.iterdir()):
                    _replace(part, path.with_name(part.name))
        except OSError as error:
            raise OutputError(
                f"cannot be written ({error.strerror})", where=path, right="choose another --out"
            ) from error
        self.facts[name] = facts

    def _verify(self, name: str, made: Path, facts: Metadata, path: Path, result: ExportResult) -> None:
        if not FORMATS[name].is_run_here:
            warn(f"{path}: converted, not run: it runs on Apple's systems alone")
            return
        if not (self.config.verify or self.config.verify_map):
            return
        exported = load_exported(made)
        if self.config.verify:
            parity = measure_parity(self.model, exported.make_engine(), self._list_images(), exported.metadata)
            check_parity(parity, facts, path)
            self.comparisons[name] = describe_parity(parity, facts)
            report(f"{path}: {self.comparisons[name]}")
            result.parity[name] = parity
        if self.config.verify_map:
            score = self._scorer.compare(exported)
            report(f"{path}: {score.describe()}")
            result.scores[name] = score

    def write_card(self, result: ExportResult) -> Path:
        """Write the model card of the files that were written, and return its path."""
        scores = {
            name: f"{score.describe_with_interval()} of {quote_data(self._scorer.spec.source)}"
            for name, score in result.scores.items()
        }
        facts = CardFacts(self.checkpoint, self.sha256, result.files, self.facts, self.comparisons, scores)
        return write_card(self.stem, facts)

    @cached_property
    def sha256(self) -> str:
        """That of the checkpoint's file."""
        return measure_sha256(self.source)

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self.checkpoint, self._need_data("--verify-map"))

    def _need_data(self, purpose: str) -> DataSpec:
        if self.spec is None:
            what = "needs a data set, and the one that the checkpoint was trained on is not there"
            raise ConfigError(what, where=purpose, right="name one with --data")
        return self.spec

    def _list_calibration(self) -> Sequence[Tensor]:
        data = pick_samples(
            self._need_data("--precision int8"), "train", self.config.calibration_images, self.checkpoint.img_size
        )
        return list(_iterate(data))

    def _list_images(self) -> Iterator[Tensor]:
        """Yield images (1, 3, H, W) of the validation split, or noise where there is no data set."""
        size = self.checkpoint.img_size
        if self.spec is None:
            warn(
                "the data set that the checkpoint was trained on is not there: outputs are compared on noise; --data names one"
            )
            noise = torch.rand(IMAGES, 3, size.height, size.width, generator=torch.Generator().manual_seed(0))
            return iter(torch.split(noise, 1))
        split = "val" if self.spec.splits.get("val") else "train"
        return _iterate(pick_samples(self.spec, split, IMAGES, size))


@contextmanager
def naming(made: Path, path: Path) -> Iterator[None]:
    """Name the final place of a file in errors about the one that is made for it."""
    try:
        yield
    except (OutputError, CheckpointError) as error:
        if error.where != str(made):
            raise
        raise OutputError(error.what, where=path, right=error.right) from error


def _iterate(data: DetectionDataset) -> Iterator[Tensor]:
    for index in range(len(data)):
        image, _ = data.make_item(index)
        yield normalise(torch.from_numpy(image).permute(2, 0, 1)[None])


def _cut_suffix(path: Path) -> Path:
    format = find_format(path.name)
    return path if format is None else path.with_name(path.name.removesuffix(FORMATS[format].suffix))


def _replace(made: Path, path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)  # a Core ML package
    made.replace(path)
