"""Sparsity training: shrink γ by the proximal step of λ‖γ‖₁, whole shortcut groups together."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from yolo_prune.errors import PlanError
from yolo_prune.model.detector import ConvLayer, Detector
from yolo_prune.pruning.channels import ChannelGraph

FLOOR = 2
"""So many channels of every group, its strongest, are never among the weakest that are pulled alone."""


class GammaSparsity:
    """The γ of every prunable channel, seen as one vector per channel id.

    A channel of its own has one γ and is soft-thresholded. A channel that shortcuts tie over m convolutions has m of them
    and is shrunk by its root mean square, so that the members reach zero in one step or not at all. Channels with a member
    that is not trained are left alone.
    Source: Parikh and Boyd, "Proximal Algorithms" (2014), §6.5.1 and §6.5.4.

    Raises:
        PlanError: the network has no batch normalisation.
    """

    def __init__(self, model: Detector, graph: ChannelGraph) -> None:
        self._gammas: list[nn.Parameter] = []
        ids: list[Tensor] = []
        fixed = torch.zeros(graph.size, dtype=torch.bool)
        for layer in graph.conv_layers:
            module = model.layers[layer]
            assert isinstance(module, ConvLayer)
            written = torch.from_numpy(graph.writes[layer])
            if module.bn is not None:
                self._gammas.append(module.bn.weight)
                ids.append(written)
            if not module.conv.weight.requires_grad:
                fixed[written] = True
        if not ids:
            raise PlanError("no convolution has a γ", where="sparsity", right="use a cfg with batch_normalize=1")
        device = self._gammas[0].device
        self._ids = torch.cat(ids).to(device)
        self._sizes = [len(part) for part in ids]
        self._members = torch.bincount(self._ids, minlength=graph.size)
        self._prunable = torch.from_numpy(graph.prunable).to(device) & (self._members > 0)
        self._trained = self._prunable & ~fixed.to(device)
        self._count = int(self._trained.sum())
        self._groups = [torch.from_numpy(group.ids).to(device) for group in graph.groups if not group.frozen]

    @torch.no_grad()
    def shrink_(self, amount: float, share: float = 1.0, fading: float = 0.0) -> None:
        """Move the γ of prunable channels towards zero by `amount` (the step size times λ), in place.

        With a `share` below 1 only so many of them move, those with the smallest γ; every group's `FLOOR` largest stay out.
        Those that move lose the share `fading` of what is left of their γ besides.
        """
        rms = self._measure_rms()
        moved = self._trained if share >= 1 else self._find_weakest(rms, share)
        factor = (1 - amount / rms.clamp(min=1e-12)).clamp(min=0) * (1 - fading)
        self._multiply(torch.where(moved, factor, 1))

    @torch.no_grad()
    def find_zeros(self) -> Tensor:
        """Return (N,) which prunable channels have no γ but zeros."""
        return self._trained & (self._measure_rms() == 0)

    @torch.no_grad()
    def clear_(self, channels: Tensor) -> None:
        """Set the γ of channels (N,) to zero, in place."""
        self._multiply((~channels).to(self._gammas[0]))

    @torch.no_grad()
    def measure(self) -> NDArray[np.float64]:
        """Return (N,) |γ| of every prunable channel, of a tied one the root mean square over its members; inf for others."""
        return self._measure_rms().masked_fill(~self._prunable, torch.inf).double().cpu().numpy()

    def _find_weakest(self, rms: Tensor, share: float) -> Tensor:
        floor = torch.zeros_like(self._trained)
        for ids in self._groups:
            floor[ids[rms[ids].topk(min(FLOOR, len(ids))).indices]] = True
        ranked = rms.masked_fill(~self._trained, torch.inf)
        limit = ranked.kthvalue(max(1, round(share * self._count))).values
        return self._trained & (ranked <= limit) & ~floor

    def _multiply(self, factor: Tensor) -> None:
        changed = torch.cat([parameter.detach() for parameter in self._gammas]) * factor[self._ids]
        for parameter, part in zip(self._gammas, torch.split(changed, self._sizes), strict=True):
            parameter.copy_(part)

    def _measure_rms(self) -> Tensor:
        gamma = torch.cat([parameter.detach() for parameter in self._gammas])
        total = gamma.new_zeros(len(self._members)).index_add_(0, self._ids, gamma.square())
        return (total / self._members.clamp(min=1)).sqrt()
