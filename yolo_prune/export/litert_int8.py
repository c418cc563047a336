"""int8 in LiteRT: ai-edge-quantizer, on everything up to the detection heads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolo_prune.engines.exported.packages import import_package

CONVOLUTIONS = {"CONV_2D", "DEPTHWISE_CONV_2D"}
SIGNATURE = "serving_default"
MODULES = (
    *("quantizer", "recipe", "recipe_manager", "calibrator", "qtyping"),
    *("utils.tfl_flatbuffer_utils", "utils.qsv_utils"),
)
"""Of the package ai_edge_quantizer."""


def replace_leaky(network: nn.Module, images: Tensor) -> nn.Module:
    """Return a module that computes leaky ReLU as a maximum, which the quantizer knows."""
    program = torch.export.export(network, (images,))
    leaky = torch.ops.aten.leaky_relu.default
    changed = program.run_decompositions({leaky: lambda values, slope=0.01: torch.maximum(values, values * slope)})
    module: nn.Module = changed.module()
    return module


def quantize_litert(path: Path, images: Sequence[Tensor]) -> None:
    """Quantize a .tflite file in place; what decodes stays in float32.

    Ranges are those of all images. By itself the quantizer takes a moving average over the last forty or so, and cuts off more.

    Args:
        path: a file in float32.
        images: training images (1, 3, H, W) in 0 … 1.

    Raises:
        ConfigError: a package is not installed.
    """
    quantizer, recipe, managers, calibrator, types, files, updates = (
        import_package(f"ai_edge_quantizer.{name}", "--precision int8", "litert") for name in MODULES
    )
    model = files.read_model(str(path))
    made = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
    for scope in list_decoding_scopes(model, files, types.BuiltinOperator):
        made.update_quantization_recipe(
            f"^{re.escape(scope)}$", types.TFLOperationName.ALL_SUPPORTED, algorithm_key="no_quantize"
        )
    for operation in (types.TFLOperationName.INPUT, types.TFLOperationName.OUTPUT):  # they stay in float32
        made.update_quantization_recipe(".*", operation, algorithm_key="no_quantize")
    (name,) = (item.name.decode() for item in model.signatureDefs[0].inputs)
    recipes = managers.RecipeManager()
    recipes.load_quantization_recipe(made.get_quantization_recipe())
    measured = calibrator.Calibrator(str(path), qsv_update_func=updates.min_max_update)
    measured.calibrate({SIGNATURE: [{name: image.numpy()} for image in images]}, recipes)
    made.quantize(measured.get_model_qsvs()).export_model(str(path), overwrite=True)


def list_decoding_scopes(model: Any, files: Any, operators: Any) -> list[str]:
    """Return the scopes of the operators between the heads' convolutions and the outputs: those that decode."""
    graph = model.subgraphs[0]
    maker_of = {tensor: operator for operator in graph.operators for tensor in operator.outputs}
    kinds = {value: name for name, value in vars(operators).items() if name.isupper()}
    scopes: set[str] = set()
    left = list(graph.outputs)
    while left:
        operator = maker_of.get(left.pop())
        if operator is None or kinds[model.operatorCodes[operator.opcodeIndex].builtinCode] in CONVOLUTIONS:
            continue
        scope = files.get_op_scope(operator, graph.tensors)
        if scope not in scopes:
            scopes.add(scope)
            left.extend(operator.inputs)
    return sorted(scopes)
