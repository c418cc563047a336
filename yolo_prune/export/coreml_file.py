"""Convert a network to Core ML. What comes out runs on Apple's systems alone, so it is not run here."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from yolo_prune.engines.exported.layout import list_output_names
from yolo_prune.engines.exported.metadata import KEY
from yolo_prune.engines.exported.packages import import_package
from yolo_prune.export.request import Request


def export_coreml(request: Request, path: Path) -> Path:
    """Write an .mlpackage, which is a folder; see `Writer`."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    coremltools = import_package("coremltools", "--format coreml", "coreml")
    precision = coremltools.precision.FLOAT32
    if request.metadata.precision == "fp16":
        precision = coremltools.transform.FP16ComputePrecision(op_selector=_is_before_decoding)
    names = list_output_names(request.metadata)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(request.module, (request.images,)).run_decompositions({})
        model = coremltools.convert(
            program,
            outputs=[coremltools.TensorType(name=name) for name in names],
            minimum_deployment_target=coremltools.target.iOS16,
            compute_precision=precision,
        )
    model.short_description = "An object detector. Its metadata says how to feed it."
    model.user_defined_metadata[KEY] = request.metadata.format()
    model.save(str(path))
    return path


def _is_before_decoding(operation: Any) -> bool:
    """Return whether a convolution follows an operation, or it is one."""
    left, seen = [operation], set()
    while left:
        one = left.pop()
        if one.op_type == "conv":
            return True
        if id(one) not in seen:
            seen.add(id(one))
            left.extend(child for output in one.outputs for child in output.child_ops)
    return False
