"""Write a network as OpenVINO's .xml and .bin."""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from yolo_prune.engines.exported.layout import NAMES
from yolo_prune.engines.exported.metadata import KEY, Metadata
from yolo_prune.engines.exported.packages import import_package
from yolo_prune.export.tracing import make_dynamic_shapes
from yolo_prune.files import open_atomically


def export_openvino(module: nn.Module, images: Tensor, metadata: Metadata, path: Path, dynamic: str) -> Path:
    """Write a module that maps images (B, 3, H, W) to the outputs of `metadata.layout`; return `path`, the .xml.

    Raises:
        ConfigError: OpenVINO is not installed.
        OutputError: a file cannot be written.
    """
    openvino = import_package("openvino", "--format openvino")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own exporter
        program = torch.export.export(module, (images,), dynamic_shapes=make_dynamic_shapes(dynamic))
        model = openvino.convert_model(program)
    shape = model.inputs[0].partial_shape
    sizes = {"none": images.shape, "batch": (-1, *images.shape[1:]), "size": (-1, images.shape[1], -1, -1)}[dynamic]
    if shape != openvino.PartialShape(list(sizes)):
        model.reshape(list(sizes))
    for output, name in zip(model.outputs, NAMES[metadata.layout], strict=True):
        output.get_tensor().set_names({name})
    model.inputs[0].get_tensor().set_names({"images"})
    model.set_rt_info(metadata.format(), [KEY])
    with TemporaryDirectory() as folder:
        made = Path(folder, "model.xml")
        openvino.save_model(model, made, compress_to_fp16=metadata.precision == "fp16")
        for source in (made.with_suffix(".bin"), made):
            with open_atomically(path.with_suffix(source.suffix)) as file:
                file.write(source.read_bytes())
    return path
