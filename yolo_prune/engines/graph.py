"""A network as a CUDA graph: all its kernels are launched at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WARMUP = 3
"""Passes before a graph is recorded, in which libraries choose kernels and reserve memory."""


class GraphedDetector(nn.Module):
    """A network with its decoding whose kernels are recorded once for each shape of its input, and replayed.

    Source: PyTorch's notes on CUDA semantics, "CUDA Graphs".
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector
        self._recorded: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, Tensor]]] = {}

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, H, W) on the GPU in 0 … 1 to boxes_xyxy (B, N, 4) in pixels and scores (B, N, C)."""
        if images.shape not in self._recorded:
            self._recorded[images.shape] = self._record(images)
        graph, inputs, outputs = self._recorded[images.shape]
        inputs.copy_(images)
        graph.replay()
        boxes, scores = (output.clone() for output in outputs)  # the next replay overwrites its own
        return boxes, scores

    def _record(self, images: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, Tensor]]:
        inputs = images.clone()
        side = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(side):
            for _ in range(WARMUP):
                self.detector(inputs)
        torch.cuda.current_stream(images.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.detector(inputs)
        return graph, inputs, outputs
