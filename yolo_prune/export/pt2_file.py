"""Write a network as a program of torch.export."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch

from yolo_prune.engines.exported.metadata import KEY
from yolo_prune.export.request import Request
from yolo_prune.export.tracing import make_dynamic_shapes
from yolo_prune.files import open_atomically


def export_pt2(request: Request, path: Path) -> Path:
    """Write a .pt2 file; see `Writer`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own exporter
        shapes = make_dynamic_shapes(request.metadata.dynamic)
        program = torch.export.export(request.module, (request.images,), dynamic_shapes=shapes)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # holds paths of this machine
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={KEY: request.metadata.format()})
    with open_atomically(path) as file:
        file.write(content.getvalue())
    return path
