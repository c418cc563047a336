"""Exported files as models: which formats can be run, and with what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from yolo_prune.bounded import exists, open_plain
from yolo_prune.engines.exported.executorch import ExecutorchEngine, read_executorch_metadata
from yolo_prune.engines.exported.litert import LitertEngine, read_litert_metadata
from yolo_prune.engines.exported.metadata import Metadata
from yolo_prune.engines.exported.ncnn import PARAM, NcnnEngine, read_ncnn_metadata
from yolo_prune.engines.exported.onnx_runtime import OnnxRuntimeEngine, read_onnx_metadata
from yolo_prune.engines.exported.open_vino import OpenVinoEngine, read_openvino_metadata
from yolo_prune.engines.exported.pt2 import Pt2Engine, read_pt2_metadata
from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.image_size import AnySize, ImageSize, parse_size


@dataclass(frozen=True)
class Runtime:
    """What runs files of one format."""

    name: str
    """The engine's name in tables and options."""
    make_engine: Callable[[Path], nn.Module]
    read_metadata: Callable[[Path], Metadata]


RUNTIMES = {
    ".onnx": Runtime("onnxruntime", OnnxRuntimeEngine, read_onnx_metadata),
    ".xml": Runtime("openvino", OpenVinoEngine, read_openvino_metadata),
    PARAM: Runtime("ncnn", NcnnEngine, read_ncnn_metadata),
    ".tflite": Runtime("litert", LitertEngine, read_litert_metadata),
    ".pte": Runtime("executorch", ExecutorchEngine, read_executorch_metadata),
    ".pt2": Runtime("pt2", Pt2Engine, read_pt2_metadata),
}
"""By the suffix of their files."""
ELSEWHERE = (".mlpackage",)
"""Suffixes of files that run on other systems alone."""


@dataclass(frozen=True)
class ExportedModel:
    """An exported file."""

    path: Path
    metadata: Metadata

    @property
    def names(self) -> tuple[str, ...]:
        """The classes' names."""
        return self.metadata.names

    @property
    def img_size(self) -> ImageSize:
        """The size of the input."""
        return self.metadata.img_size

    @property
    def provenance(self) -> dict[str, Any]:
        """What a checkpoint says of its origin; an exported file says nothing that commands use."""
        return {}

    def with_img_size(self, img_size: AnySize | str | None) -> ExportedModel:
        """Return the model with another size of input; None keeps the size.

        Raises:
            ConfigError: the file has a size of its own, and it is another one.
        """
        if img_size is None or (size := parse_size(img_size)) == self.img_size:
            return self
        if self.metadata.dynamic != "size":
            what = f"{self.path} takes images of {self.img_size} px alone"
            raise ConfigError(what, where="img_size", right="export it with that size, or with --dynamic size")
        return replace(self, metadata=replace(self.metadata, img_size=size))

    def with_names(self, names: tuple[str, ...]) -> ExportedModel:
        """Return the model with other names for its classes."""
        return replace(self, metadata=replace(self.metadata, names=names))

    @property
    def runtime(self) -> str:
        """The name of the engine that runs it."""
        return find_runtime(self.path).name

    def make_engine(self) -> nn.Module:
        """Load the file: a callable from images (B, 3, H, W) in 0 … 1 to boxes_xyxy (B, N, 4) and scores (B, N, C).

        Raises:
            CheckpointError: the file cannot be read.
        """
        return find_runtime(self.path).make_engine(self.path)


def is_exported(path: Path) -> bool:
    """Return whether a file is an exported one, by the end of its name."""
    return path.name.endswith((*RUNTIMES, *ELSEWHERE))


def find_runtime(path: Path) -> Runtime:
    """Return what runs a file, by the end of its name.

    Raises:
        CheckpointError: it runs on another system alone.
    """
    for suffix, runtime in RUNTIMES.items():
        if path.name.endswith(suffix):
            return runtime
    what = f"{path.suffix} files run on Apple's systems alone"
    raise CheckpointError(what, where=path, right="use another format, or the checkpoint")


def load_exported(path: Path) -> ExportedModel:
    """Read the metadata of an exported file.

    Raises:
        ConfigError: the package that runs it is not installed.
        CheckpointError: there is no such file, or it cannot be read.
    """
    right = "name a file that yoloprune export wrote"
    if not exists(path):
        raise CheckpointError("there is no such file", where=path, right=right)
    runtime = find_runtime(path)
    try:
        with open_plain(path):  # a pipe would be waited for
            pass
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror})", where=path, right=right) from error
    return ExportedModel(path, runtime.read_metadata(path))
