"""ExecuTorch programs, in its own runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolo_prune.engines.exported.base import ExportedEngine
from yolo_prune.engines.exported.metadata import KEY, Metadata, parse_metadata
from yolo_prune.engines.exported.packages import import_package
from yolo_prune.errors import CheckpointError, ConfigError


class ExecutorchEngine(ExportedEngine):
    """A .pte file as an engine, one image at a time, with as many threads as PyTorch has, which must stay as many."""

    def __init__(self, path: Path) -> None:
        """Load a file.

        Raises:
            ConfigError: ExecuTorch is not installed, or an engine was made with another number of threads before.
            CheckpointError: it cannot be read.
        """
        program = _load(path)
        if (threads := _set_threads()) != torch.get_num_threads():
            what = f"ExecuTorch keeps the {threads} threads that this process began with"
            raise ConfigError(what, where="threads", right=f"use {threads}, or another process")
        super().__init__(path, _take_metadata(program, path), 1)
        self._program = program  # its methods do not keep it
        self._method = program.load_method("forward")

    def run(self, images: Tensor) -> Sequence[Tensor]:
        """Run the method, whose outputs lie in memory that the next call uses again."""
        return [output.clone() for output in self._method.execute([images])]


def read_executorch_metadata(path: Path) -> Metadata:
    """Read the metadata of a .pte file.

    Raises:
        ConfigError: ExecuTorch is not installed.
        CheckpointError: the file cannot be read, or says nothing of its inputs and outputs.
    """
    return _take_metadata(_load(path), path)


@cache
def _set_threads() -> int:
    """Set the runtime's threads, which cannot be changed any more once a network is loaded, and return their number."""
    threads = torch.get_num_threads()
    runtime = import_package("executorch.extension.pybindings.portable_lib", "", "executorch")
    runtime._unsafe_reset_threadpool(threads)
    return threads


def _load(path: Path) -> Any:
    runtime = import_package("executorch.runtime", str(path), "executorch")
    try:
        return runtime.Runtime.get().load_program(path)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise CheckpointError(
            f"cannot be read by ExecuTorch ({reason})", where=path, right="export it again"
        ) from error


def _take_metadata(program: Any, path: Path) -> Metadata:
    found = program.load_method(KEY).execute([])[0] if KEY in program.method_names else None
    return parse_metadata(found, path)
