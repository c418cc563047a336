"""int8 in ONNX: ONNX Runtime's own quantizer, on everything up to the detection heads."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from yolo_prune.engines.exported.packages import import_package
from yolo_prune.scraps import make_temporary_folder

PERCENTILE = 99.999
"""The share of a layer's values that its range covers; a few outliers would coarsen all others."""


class _Reader:
    """Feeds calibration images, one at a time."""

    def __init__(self, name: str, images: Sequence[Tensor]) -> None:
        self._feeds = iter([{name: image.numpy()} for image in images])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next feed, or None."""
        return next(self._feeds, None)


def quantize_onnx(model: Any, images: Sequence[Tensor]) -> Any:
    """Return a model whose layers up to the heads' convolutions compute in int8; what decodes stays in float32.

    Args:
        model: an ONNX model in float32.
        images: training images (1, 3, H, W) in 0 … 1.

    Raises:
        ConfigError: a package is not installed.
    """
    onnx = import_package("onnx", "--precision int8")
    quantization = import_package("onnxruntime.quantization", "--precision int8")
    shapes = import_package("onnxruntime.quantization.shape_inference", "--precision int8")
    with make_temporary_folder() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source, prepared, made = (folder / f"{name}.onnx" for name in ("source", "prepared", "made"))
        onnx.save(model, source)
        shapes.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        loaded = onnx.load(prepared)
        quantization.quantize_static(
            prepared,
            made,
            _Reader(loaded.graph.input[0].name, images),
            quant_format=quantization.QuantFormat.QDQ,
            calibrate_method=quantization.CalibrationMethod.Percentile,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=list_decoding_nodes(loaded),
            extra_options={"CalibPercentile": PERCENTILE},
        )
        return onnx.load(made)


def list_decoding_nodes(model: Any) -> list[str]:
    """Return the names of the nodes between the heads' convolutions and the outputs: those that decode."""
    maker_of = {output: node for node in model.graph.node for output in node.output}
    names: set[str] = set()
    left = [output.name for output in model.graph.output]
    while left:
        node = maker_of.get(left.pop())
        if node is not None and node.op_type != "Conv" and node.name not in names:
            names.add(node.name)
            left.extend(node.input)
    return sorted(names)
