"""Make an engine, which runs a network, by its name."""

from __future__ import annotations

import torch

from yolo_prune.engines.half import HalfDetector, SemiStructuredDetector
from yolo_prune.engines.sparse.engine import SparseDetector
from yolo_prune.errors import ConfigError
from yolo_prune.model.decode import DecodedDetector
from yolo_prune.model.detector import Detector
from yolo_prune.model.fold import fold_batchnorm


def make_engine(model: Detector, engine: str, device: torch.device) -> DecodedDetector:
    """Make an engine with the network's decoding; for the names see `ENGINES` in commands/config.py.

    Raises:
        ConfigError: `engine` does not run on `device`.
        EngineError: the engine cannot be built on this machine.
    """
    match engine:
        case "eager":
            detector = model
        case "folded":
            detector = fold_batchnorm(model)
        case "sparse":
            if device.type != "cpu":
                right = "use device cpu, or another engine"
                raise ConfigError(f"sparse runs on the CPU, not on {device}", where="engine", right=right)
            detector = SparseDetector(model)
        case "half" | "half-2:4":
            if device.type != "cuda":
                right = "use device cuda, or another engine"
                raise ConfigError(f"{engine} runs on CUDA, not on {device}", where="engine", right=right)
            detector = HalfDetector(model) if engine == "half" else SemiStructuredDetector(model)
        case _:
            raise AssertionError(f"BenchConfig let {engine} through")
    return DecodedDetector(detector).to(device).to(memory_format=torch.channels_last).eval()
