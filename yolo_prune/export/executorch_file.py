"""Write a network as an ExecuTorch program for XNNPACK, which runs on the CPUs of phones."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch

from yolo_prune.engines.exported.metadata import KEY
from yolo_prune.engines.exported.packages import import_package
from yolo_prune.export.request import Request
from yolo_prune.files import open_atomically


def export_executorch(request: Request, path: Path) -> Path:
    """Write a .pte file; see `Writer`."""
    exir = import_package("executorch.exir", "--format executorch", "executorch")
    xnnpack = import_package(
        "executorch.backends.xnnpack.partition.xnnpack_partitioner", "--format executorch", "executorch"
    )
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(request.module, (request.images,))
        lowered = exir.to_edge_transform_and_lower(
            program,
            partitioner=[xnnpack.XnnpackPartitioner()],
            constant_methods={KEY: request.metadata.format()},
        ).to_executorch()
    with open_atomically(path) as file:
        file.write(lowered.buffer)
    return path
