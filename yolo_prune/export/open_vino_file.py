"""Write a network as OpenVINO's .xml and .bin."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

from yolo_prune.engines.exported.layout import list_output_names
from yolo_prune.engines.exported.metadata import KEY
from yolo_prune.engines.exported.open_vino import WEIGHTS_KEY
from yolo_prune.engines.exported.packages import import_package
from yolo_prune.export.onnx_file import make_onnx_model
from yolo_prune.export.onnx_nms import append_nms
from yolo_prune.export.open_vino_int8 import quantize_openvino
from yolo_prune.export.request import Request
from yolo_prune.export.tracing import make_dynamic_shapes
from yolo_prune.files import measure_sha256, open_atomically
from yolo_prune.scraps import make_temporary_folder


def export_openvino(request: Request, path: Path) -> Path:
    """Write an OpenVINO file, the .xml, and its .bin; see `Writer`."""
    openvino = import_package("openvino", "--format openvino")
    metadata, images = request.metadata, request.images
    model = _convert(request)
    shape = model.inputs[0].partial_shape
    sizes = {"none": images.shape, "batch": (-1, *images.shape[1:]), "size": (-1, images.shape[1], -1, -1)}
    wanted = list(sizes[metadata.dynamic])
    if shape != openvino.PartialShape(wanted):
        model.reshape(wanted)
    if metadata.precision == "int8":
        model = quantize_openvino(model, request.calibration)
    for output, name in zip(model.outputs, list_output_names(metadata), strict=True):
        output.get_tensor().set_names({name})
    model.inputs[0].get_tensor().set_names({"images"})
    model.set_rt_info(metadata.format(), [KEY])
    with make_temporary_folder() as folder:
        made = folder / "model.xml"
        save = partial(openvino.save_model, model, made, compress_to_fp16=metadata.precision != "fp32")
        save()
        model.set_rt_info(measure_sha256(made.with_suffix(".bin")), [WEIGHTS_KEY])
        save()  # the same weights
        for source in (made.with_suffix(".bin"), made):
            with open_atomically(path.with_suffix(source.suffix)) as file:
                file.write(source.read_bytes())
    return path


def _convert(request: Request) -> Any:
    """Return an OpenVINO model; with NMS inside it is made from an ONNX model, as torch.export has no NMS."""
    openvino = import_package("openvino", "--format openvino")
    if request.metadata.nms is not None:
        onnx = import_package("onnx", "--nms")
        with make_temporary_folder() as folder:
            source = folder / "model.onnx"
            model = make_onnx_model(request)
            append_nms(model, request.metadata)
            onnx.save(model, source)
            return openvino.convert_model(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own exporter
        shapes = make_dynamic_shapes(request.metadata.dynamic)
        return openvino.convert_model(torch.export.export(request.module, (request.images,), dynamic_shapes=shapes))
