"""Make an engine, which runs a network, by its name."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import nn

from yolo_prune.engines.graph import GraphedDetector
from yolo_prune.engines.half import HalfDetector, SemiStructuredDetector
from yolo_prune.engines.precision import DTYPES, choose_precision
from yolo_prune.engines.sparse.engine import SparseDetector
from yolo_prune.errors import ConfigError
from yolo_prune.model.decode import DecodedDetector
from yolo_prune.model.detector import Detector
from yolo_prune.model.fold import fold_batchnorm

Engine: TypeAlias = nn.Module
"""Maps images (B, 3, H, W) in 0 … 1 to boxes_xyxy (B, N, 4) in pixels and scores (B, N, C)."""
OF_CUDA = ("cudagraph", "half", "half-2:4")
"""Engines that run on CUDA alone."""
COMPILE_MODES = {"compile": "default", "compile-max": "max-autotune-no-cudagraphs"}
"""PyTorch's modes. CUDA graphs are an engine of their own."""


def make_engine(model: Detector, engine: str, device: torch.device, precision: str | None = None) -> Engine:
    """Make an engine with the network's decoding; for the names see `BenchConfig` in commands/config.py.

    With tf32 and fp32 the caller sets how float32 is multiplied (`precision.computing_in`).

    Raises:
        ConfigError: `engine` does not run on `device`, or not in `precision`.
        EngineError: the engine cannot be built on this machine.
    """
    check_device(engine, device)
    detector = _make_detector(model, engine, DTYPES[choose_precision(engine, precision, device)])
    decoded: nn.Module = DecodedDetector(detector).to(device).to(memory_format=torch.channels_last).eval()
    if engine == "cudagraph":
        return GraphedDetector(decoded)
    if engine in COMPILE_MODES:
        decoded.compile(mode=COMPILE_MODES[engine], dynamic=False)
    return decoded


def check_device(engine: str, device: torch.device) -> None:
    """Check that an engine runs on a device.

    Raises:
        ConfigError: it does not.
    """
    if engine in OF_CUDA and device.type != "cuda":
        right = "use device cuda, or another engine"
        raise ConfigError(f"{engine} runs on CUDA, not on {device}", where="engine", right=right)
    if engine == "sparse" and device.type != "cpu":
        right = "use device cpu, or another engine"
        raise ConfigError(f"sparse runs on the CPU, not on {device}", where="engine", right=right)


def _make_detector(model: Detector, engine: str, dtype: torch.dtype) -> Detector:
    match engine:
        case "sparse":
            return SparseDetector(model)
        case "half-2:4":
            return SemiStructuredDetector(model)
        case "eager":
            return model if dtype == torch.float32 else HalfDetector(model, dtype, folds=False)
        case _:
            return fold_batchnorm(model) if dtype == torch.float32 else HalfDetector(model, dtype)
