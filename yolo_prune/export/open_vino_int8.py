"""int8 in OpenVINO: NNCF's post-training quantization, on everything up to the detection heads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from yolo_prune.engines.exported.packages import import_package
from yolo_prune.engines.exported.signal_stack import keeping_signal_stack

LOGGER = "nncf"


def quantize_openvino(model: Any, images: Sequence[Tensor]) -> Any:
    """Return a model whose layers up to the heads' convolutions compute in int8; what decodes stays in float32.

    Args:
        model: an OpenVINO model in float32.
        images: training images (1, 3, H, W) in 0 … 1.

    Raises:
        ConfigError: NNCF is not installed.
    """
    nncf = import_package("nncf", "--precision int8")
    logging.getLogger(LOGGER).setLevel(logging.ERROR)
    with keeping_signal_stack():
        return nncf.quantize(
            model,
            nncf.Dataset([image.numpy() for image in images]),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(images),
            fast_bias_correction=False,  # the fast one costs pruned networks AP50
            ignored_scope=nncf.IgnoredScope(names=list_decoding_operations(model)),
        )


def list_decoding_operations(model: Any) -> list[str]:
    """Return the names of the operations between the heads' convolutions and the outputs: those that decode."""
    names: set[str] = set()
    left = [output.get_node() for output in model.outputs]
    while left:
        node = left.pop()
        name = node.get_friendly_name()
        if node.get_type_name() in ("Convolution", "Constant", "Result", "Parameter"):
            if node.get_type_name() == "Result":
                left.extend(source.get_node() for source in node.input_values())
            continue
        if name not in names:
            names.add(name)
            left.extend(source.get_node() for source in node.input_values())
    return sorted(names)
