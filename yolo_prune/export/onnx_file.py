"""Write a network as an ONNX file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.engines.exported.layout import NAMES
from yolo_prune.engines.exported.metadata import KEY, Metadata
from yolo_prune.engines.exported.packages import import_package
from yolo_prune.export.tracing import make_dynamic_shapes
from yolo_prune.files import open_atomically

OPSET = 18
INPUT_NAME = "images"
LOCAL = "pkg."
"""The beginning of the metadata in which PyTorch stores paths of this machine."""


def export_onnx(module: nn.Module, images: Tensor, metadata: Metadata, path: Path, dynamic: str) -> Path:
    """Write a module that maps images (B, 3, H, W) to the outputs of `metadata.layout`; return `path`.

    Raises:
        ConfigError: a package is not installed.
        OutputError: the file cannot be written.
    """
    onnx = import_package("onnx", "--format onnx")
    import_package("onnxscript", "--format onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own exporter
        program = torch.onnx.export(
            module,
            (images,),
            dynamo=True,
            input_names=[INPUT_NAME],
            output_names=list(NAMES[metadata.layout]),
            dynamic_shapes=make_dynamic_shapes(dynamic),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _strip(model)
    for key, value in {KEY: metadata.format(), **_list_ultralytics_keys(metadata)}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(model)
    with open_atomically(path) as file:
        file.write(model.SerializeToString())
    return path


def _strip(model: Any) -> None:
    """Remove what PyTorch writes of this machine's files, in place."""
    model.ClearField("metadata_props")
    model.doc_string = ""
    for function in model.functions:
        function.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")
    for part in (
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
    ):
        part.ClearField("metadata_props")
        part.doc_string = ""


def _list_ultralytics_keys(metadata: Metadata) -> dict[str, str]:
    """Return the metadata that ultralytics' tools read, for their layout. Source: ultralytics/nn/autobackend.py."""
    if metadata.layout != "ultralytics":
        return {}
    return {
        "task": "detect",
        "names": repr(dict(enumerate(metadata.names))),
        "stride": "32",
        "imgsz": repr([metadata.img_size.height, metadata.img_size.width]),
        "batch": "1",
        "channels": "3",
    }
