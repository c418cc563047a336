"""In which precision an engine computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from yolo_prune.errors import ConfigError

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OF_ENGINES = {
    **dict.fromkeys(("half", "half-2:4"), "fp16"),
    **dict.fromkeys(("sparse", "onnxruntime", "openvino", "ncnn", "litert", "executorch", "pt2"), "fp32"),
}
"""Engines that compute in one precision alone; the others compute in fp32 by default."""
OF_CUDA = ("tf32", "fp16")
"""Precisions that the CPU has not, or is very slow in."""


def choose_precision(engine: str, wanted: str | None, device: torch.device) -> str:
    """Return the precision of an engine: fp32, tf32, bf16 or fp16.

    Raises:
        ConfigError: the engine, or the device, does not compute in the wanted precision.
    """
    own = OF_ENGINES.get(engine)
    if wanted is not None and own is not None and wanted != own:
        raise ConfigError(f"{engine} computes in {own} alone", where="precision", right="leave it out")
    precision = wanted or own or "fp32"
    if precision in OF_CUDA and device.type != "cuda" and own is None:
        right = "use fp32 or bf16, or device cuda"
        raise ConfigError(f"{precision} runs on CUDA, not on {device}", where="precision", right=right)
    return precision


PLACES: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]  # torch types lack it
"""Where PyTorch keeps how float32 numbers are multiplied on CUDA."""


@contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Multiply float32 numbers on CUDA as they are, or with `tf32` rounded to TensorFloat-32, in the block.

    By default PyTorch rounds in convolutions, but not in products of matrices.
    """
    before = [place.fp32_precision for place in PLACES]
    compute_in(precision)
    try:
        yield
    finally:
        for place, value in zip(PLACES, before, strict=True):
            place.fp32_precision = value


def compute_in(precision: str) -> None:
    """Multiply float32 numbers on CUDA from now on as `computing_in` says."""
    for place in PLACES:
        place.fp32_precision = "tf32" if precision == "tf32" else "ieee"
