"""A detector on the CPU that skips zero weights."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

import torch
from torch import Tensor

from yolo_prune.engines.sparse.build import load_kernel
from yolo_prune.engines.sparse.packing import PackedWeights, can_pack, pack_weights
from yolo_prune.engines.sparse.program import Program
from yolo_prune.errors import EngineError
from yolo_prune.model.detector import Detector, Heads, Visit
from yolo_prune.model.fold import fold_batchnorm

MOST_DENSITY = 0.5
"""Convolutions skip zeros up to this share of non-zeros: there PyTorch takes 0.9 to 1.3 times as long for 3×3 ones,
see docs/weight_pruning.md."""
DETOUR = 32
"""Weights per input and output channel that take as long as converting pixels to PyTorch's layout and back."""
MOST_PROGRAMS = 4
"""Number of image shapes whose buffers are kept."""


class SparseDetector(Detector):
    """A detector with folded batch norm whose convolutions skip zeros if they have enough; weights must not change.

    A convolution skips zeros if the kernel supports it (see `can_pack`) and at most `most_density` of its weights, or
    few more (`DETOUR`), are not zero. All others run as in `Detector`.

    Raises:
        EngineError: the kernel cannot be compiled on this machine.
    """

    def __init__(self, model: Detector, most_density: float = MOST_DENSITY, instructions: str = "native") -> None:
        folded = fold_batchnorm(model)
        with torch.device("meta"):
            super().__init__(folded.network)
        state = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in folded.state_dict().items()}
        self.load_state_dict(state, assign=True)
        self.eval().requires_grad_(False)
        self._kernel = load_kernel(instructions)
        self._packed = self._pack(most_density)
        self._programs: OrderedDict[tuple[int, ...], Program] = OrderedDict()
        self._lock = Lock()

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """The numbers of the convolutions that skip zeros."""
        return tuple(self._packed)

    def forward(self, images: Tensor, visit: Visit | None = None) -> Heads:
        """Map float32 images (B, 3, H, W) in 0 … 1 to raw heads as `Detector` does; with `visit`, no layer skips zeros.

        Raises:
            EngineError: the images are not on the CPU.
        """
        if images.device.type != "cpu":
            raise EngineError(f"does not run on {images.device}", where="engine sparse", right="use the CPU")
        if visit is not None:
            return super().forward(images, visit)
        with self._lock, torch.inference_mode():
            images = self.take_images(images)
            shape = tuple(images.shape)
            program = self._programs.pop(shape, None) or Program(self, self._packed, self._kernel, shape)
            self._programs[shape] = program
            while len(self._programs) > MOST_PROGRAMS:
                self._programs.popitem(last=False)
            return program.run(images.float(), torch.get_num_threads())

    def _pack(self, most_density: float) -> dict[int, PackedWeights]:
        packed = {}
        for index, layer in self.network.convs:
            module = self.get_conv(index)
            if can_pack(layer) and _pays(module.conv.weight, most_density):
                packed[index] = pack_weights(module.conv.weight, layer.stride)
        return packed


def _pays(weight: Tensor, most_density: float) -> bool:
    detour = DETOUR * (weight.shape[0] + weight.shape[1])
    return int(weight.count_nonzero()) <= most_density * weight.numel() + detour
