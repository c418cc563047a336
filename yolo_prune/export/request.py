"""What a format's writer is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from torch import Tensor, nn

from yolo_prune.engines.exported.metadata import Metadata


@dataclass(frozen=True)
class Request:
    """A network to write."""

    module: nn.Module
    """Maps images (B, 3, H, W) in 0 … 1 to the outputs of the metadata's layout, without NMS."""
    images: Tensor
    """Images (B, 3, H, W) to trace with."""
    metadata: Metadata
    calibration: Sequence[Tensor] = ()
    """Training images (1, 3, H, W) in 0 … 1 that the ranges of int8 are measured on."""


Writer: TypeAlias = Callable[[Request, Path], Path]
"""Writes one format and returns the path given.

Raises:
    ConfigError: a package is not installed.
    OutputError: the file cannot be written.
"""
