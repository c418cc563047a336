"""ncnn files, on the CPU."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from yolo_prune.bounded import read_text
from yolo_prune.engines.exported.base import ExportedEngine, check_part
from yolo_prune.engines.exported.layout import list_output_names
from yolo_prune.engines.exported.metadata import Metadata, parse_metadata
from yolo_prune.engines.exported.packages import import_package
from yolo_prune.errors import CheckpointError
from yolo_prune.limits import MOST_JSON_BYTES
from yolo_prune.records import load_record

PARAM, WEIGHTS, FACTS = ".ncnn.param", ".ncnn.bin", ".ncnn.json"
"""Ends of the names of the three files: the layers, the weights, and what they expect and give."""
INPUT = "in0"


class NcnnEngine(ExportedEngine):
    """An ncnn network as an engine, with as many threads as PyTorch has now; it computes in float32, one image at a time."""

    def __init__(self, path: Path) -> None:
        """Load the files beside `path`, the .ncnn.param.

        Raises:
            ConfigError: ncnn is not installed.
            CheckpointError: a file cannot be read, or is not what was exported.
        """
        ncnn = import_package("ncnn", str(path), "ncnn")
        super().__init__(path, read_ncnn_metadata(path), 1)
        self._mat = ncnn.Mat
        self._net = ncnn.Net()
        options = self._net.opt
        options.num_threads = torch.get_num_threads()
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_storage = False
        _check_sums(path)
        weights = _find(path, WEIGHTS)
        if self._net.load_param(str(path)) or not weights.is_file() or self._net.load_model(str(weights)):
            what = f"cannot be read by ncnn together with {weights.name}"
            raise CheckpointError(what, where=path, right="export it again")

    def run(self, images: Tensor) -> Sequence[Tensor]:
        """Run the network on one image."""
        extractor = self._net.create_extractor()
        pixels = images[0].numpy()  # a Mat does not own the memory that it is made from
        extractor.input(INPUT, self._mat(pixels))
        names = [f"out{number}" for number in range(len(list_output_names(self.metadata)))]
        return [torch.from_numpy(np.array(extractor.extract(name)[1]))[None] for name in names]


def read_ncnn_metadata(path: Path) -> Metadata:
    """Read what the .ncnn.json beside a .ncnn.param says.

    Raises:
        CheckpointError: it is not there, or damaged.
    """
    facts = _find(path, FACTS)
    try:
        return parse_metadata(read_text(facts, MOST_JSON_BYTES), path)
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"needs {facts.name} beside it", where=path, right="export it again") from error


def format_facts(metadata: Metadata, parts: Mapping[str, bytes]) -> bytes:
    """Return the content of the .ncnn.json: the metadata, and the SHA-256 of the layers and the weights."""
    sums = {suffix: hashlib.sha256(parts[suffix]).hexdigest() for suffix in (PARAM, WEIGHTS)}
    return json.dumps({**json.loads(metadata.format()), "sha256": sums}).encode()


@dataclass(frozen=True)
class _Facts:
    """What the .ncnn.json holds beside the metadata."""

    sha256: dict[str, str]


def _check_sums(path: Path) -> None:
    """Raise CheckpointError if the layers or the weights are damaged, which would crash ncnn."""
    sums = load_record(_Facts, _find(path, FACTS), CheckpointError, "export it again").sha256
    for suffix in (PARAM, WEIGHTS):
        check_part(_find(path, suffix), sums.get(suffix))


def _find(path: Path, suffix: str) -> Path:
    return path.with_name(path.name.removesuffix(PARAM) + suffix)
