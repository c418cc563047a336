"""LiteRT files, on the CPU."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from yolo_prune.bounded import open_plain
from yolo_prune.engines.exported.base import ExportedEngine
from yolo_prune.engines.exported.layout import list_output_names
from yolo_prune.engines.exported.metadata import KEY, Metadata, parse_metadata
from yolo_prune.engines.exported.packages import import_package
from yolo_prune.errors import CheckpointError
from yolo_prune.limits import MOST_JSON_BYTES

FACTS = f"{KEY}.json"
"""The name of the metadata in the archive at the end of a file."""


class LitertEngine(ExportedEngine):
    """A .tflite file as an engine, one image at a time, with as many threads as PyTorch has now."""

    def __init__(self, path: Path) -> None:
        """Load a file.

        Raises:
            ConfigError: LiteRT is not installed.
            CheckpointError: it cannot be read.
        """
        super().__init__(path, read_litert_metadata(path), 1)
        interpreter = import_package("ai_edge_litert.interpreter", str(path), "litert")
        try:
            self._interpreter = interpreter.Interpreter(str(path), num_threads=torch.get_num_threads())
            self._runner = self._interpreter.get_signature_runner()
        except (ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise CheckpointError(
                f"cannot be read by LiteRT ({reason})", where=path, right="export it again"
            ) from error
        (self._input,) = self._runner.get_input_details()

    def run(self, images: Tensor) -> Sequence[Tensor]:
        """Run the signature."""
        found = self._runner(**{self._input: images.numpy()})
        names = [f"output_{number}" for number in range(len(list_output_names(self.metadata)))]
        return [torch.from_numpy(found[name]) for name in names]


def read_litert_metadata(path: Path) -> Metadata:
    """Read the metadata of a .tflite file.

    Raises:
        CheckpointError: the file says nothing of its inputs and outputs.
    """
    try:
        with open_plain(path) as file, zipfile.ZipFile(file) as archive:
            facts = archive.getinfo(FACTS)
            text = archive.read(facts).decode() if facts.file_size <= MOST_JSON_BYTES else None
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, KeyError, UnicodeDecodeError):
        return parse_metadata(None, path)
    return parse_metadata(text, path)
