"""Sparsity training: shrink γ by the proximal step of λ‖γ‖₁, whole shortcut groups together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_prune.errors import PlanError
from yolo_prune.model.detector import ConvLayer, Detector
from yolo_prune.pruning.channels import ChannelGraph


class GammaSparsity:
    """The γ of every prunable channel, seen as one vector per channel id.

    A channel of its own has one γ and is soft-thresholded. A channel that shortcuts tie over m convolutions has m of them
    and is shrunk by its root mean square, so that the members reach zero in one step or not at all.
    Source: Parikh and Boyd, "Proximal Algorithms" (2014), §6.5.1 and §6.5.4.

    Raises:
        PlanError: the network has no batch normalisation.
    """

    def __init__(self, model: Detector, graph: ChannelGraph) -> None:
        self._gammas: list[nn.Parameter] = []
        ids: list[Tensor] = []
        for layer in graph.conv_layers:
            module = model.layers[layer]
            assert isinstance(module, ConvLayer)
            if module.bn is not None:
                self._gammas.append(module.bn.weight)
                ids.append(torch.from_numpy(graph.writes[layer]))
        if not ids:
            raise PlanError("no convolution has a γ", where="sparsity", right="use a cfg with batch_normalize=1")
        device = self._gammas[0].device
        self._ids = torch.cat(ids).to(device)
        self._sizes = [len(part) for part in ids]
        self._members = torch.bincount(self._ids, minlength=graph.size)
        self._prunable = torch.from_numpy(graph.prunable).to(device) & (self._members > 0)

    @torch.no_grad()
    def shrink_(self, amount: float) -> None:
        """Move every prunable channel's γ towards zero by `amount` (the learning rate times λ), in place."""
        gamma = torch.cat([parameter.detach() for parameter in self._gammas])
        rms = self._measure_rms(gamma)
        factor = torch.where(self._prunable, (1 - amount / rms.clamp(min=1e-12)).clamp(min=0), 1)
        for parameter, part in zip(self._gammas, torch.split(gamma * factor[self._ids], self._sizes), strict=True):
            parameter.copy_(part)

    @torch.no_grad()
    def count_below(self, threshold: float) -> tuple[int, int]:
        """Return how many prunable channels have a γ (root mean square over members) below `threshold`, and how many there are."""
        rms = self._measure_rms(torch.cat([parameter.detach() for parameter in self._gammas]))
        return int((self._prunable & (rms < threshold)).sum()), int(self._prunable.sum())

    def _measure_rms(self, gamma: Tensor) -> Tensor:
        total = gamma.new_zeros(len(self._members)).index_add_(0, self._ids, gamma.square())
        return (total / self._members.clamp(min=1)).sqrt()
