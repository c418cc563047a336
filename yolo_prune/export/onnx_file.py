"""Write a network as an ONNX file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from yolo_prune.engines.exported.layout import NAMES
from yolo_prune.engines.exported.metadata import KEY, Metadata
from yolo_prune.engines.exported.packages import import_package
from yolo_prune.export.onnx_int8 import quantize_onnx
from yolo_prune.export.onnx_nms import append_nms
from yolo_prune.export.request import Request
from yolo_prune.export.tracing import make_dynamic_shapes
from yolo_prune.files import open_atomically

OPSET = 18
INPUT_NAME = "images"


def export_onnx(request: Request, path: Path) -> Path:
    """Write an ONNX file; see `Writer`."""
    onnx = import_package("onnx", "--format onnx")
    metadata = request.metadata
    model = make_onnx_model(request)
    if metadata.precision == "int8":
        model = quantize_onnx(model, request.calibration)
    if metadata.nms is not None:
        append_nms(model, metadata)
    for key, value in {KEY: metadata.format(), **_list_ultralytics_keys(metadata)}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(model)
    with open_atomically(path) as file:
        file.write(model.SerializeToString())
    return path


def make_onnx_model(request: Request) -> Any:
    """Return an ONNX model, without metadata, in float: the outputs are those of the module.

    Raises:
        ConfigError: a package is not installed.
    """
    import_package("onnxscript", "--format onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own exporter
        program = torch.onnx.export(
            request.module,
            (request.images,),
            dynamo=True,
            input_names=[INPUT_NAME],
            output_names=list(NAMES["yoloprune" if request.metadata.nms else request.metadata.layout]),
            dynamic_shapes=make_dynamic_shapes(request.metadata.dynamic),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _strip(model)
    return model


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
        "args": repr({"nms": metadata.nms is not None, "dynamic": metadata.dynamic != "none"}),
    }
