"""γ sparsity in training: shrink γ by the proximal step of λ‖γ‖₁, channels tied by shortcuts together."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from yolo_prune.errors import PlanError
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.channels import ChannelGraph

GAMMA_THRESHOLD = 0.01
"""Training reports channels with a smaller |γ| as removable: λ holds γ near zero, but seldom at zero."""
ZERO_GAMMA = 1e-6
"""A |γ| no larger than this is zero: a moving average of weights leaves as much of a γ that was set to zero."""
ZERO_SHARE = 0.01
"""Where no λ says which scale γ have, a γ is near zero if it is no larger than this share of the largest in its group."""


def sum_squared_changes(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return (C,) the squared first-order change of the loss if a layer's channels are zeroed: Σ θ² · mean (∂L/∂θ)².

    `pairs` are parameters θ of the layer, with C channels along their first dimension, and their mean squared gradients.
    Products of different gradients are missing: training does not keep them.
    Source: Theis et al., "Faster gaze prediction with dense networks and Fisher pruning" (2018), eq. 7.
    """
    changes = [parameter.square() * square for parameter, square in pairs]
    return torch.stack([change.flatten(1).sum(1) if change.ndim > 1 else change for change in changes]).sum(0)


class GammaSparsity:
    """The γ of all prunable channels, as one vector per channel id.

    A channel written by one convolution has one γ, which is soft-thresholded. A channel that shortcuts tie over m
    convolutions has m members, each with its γ. They are shrunk together by their root mean square, so that all reach
    zero in the same step. Channels with a member that is not trained, or has no γ, are not changed.
    Source: Parikh and Boyd, "Proximal Algorithms" (2014), §6.5.1 and §6.5.4.

    Raises:
        PlanError: the network has no batch normalisation.
    """

    def __init__(self, model: Detector, graph: ChannelGraph) -> None:
        self._gammas: list[nn.Parameter] = []
        self._betas: list[nn.Parameter] = []
        ids: list[Tensor] = []
        fixed, lacking = torch.zeros(graph.size, dtype=torch.bool), torch.zeros(graph.size, dtype=torch.bool)
        for layer in graph.conv_layers:
            module = model.get_conv(layer)
            written = torch.from_numpy(graph.writes[layer])
            if module.bn is not None:
                self._gammas.append(module.bn.weight)
                self._betas.append(module.bn.bias)
                ids.append(written)
            else:
                lacking[written] = True
            if not module.conv.weight.requires_grad:
                fixed[written] = True
        if not ids:
            raise PlanError("no convolution has a γ", where="sparsity", right="use a cfg with batch_normalize=1")
        device = self._gammas[0].device
        self._ids = torch.cat(ids).to(device)
        self._sizes = [len(part) for part in ids]
        self._members = torch.bincount(self._ids, minlength=graph.size)
        self._prunable = (torch.from_numpy(graph.prunable) & ~lacking).to(device) & (self._members > 0)
        self._trained = self._prunable & ~fixed.to(device)

    @torch.no_grad()
    def shrink_(self, amount: float) -> None:
        """Move the γ of prunable channels towards zero by `amount` (the step size times λ), in place."""
        factor = (1 - amount / self._measure_rms().clamp(min=1e-12)).clamp(min=0)
        self._multiply(self._gammas, torch.where(self._trained, factor, 1))

    @torch.no_grad()
    def measure_worth(self, squares: Callable[[nn.Parameter], Tensor]) -> Tensor:
        """Return (N,) the squared first-order change of the loss if a channel is zeroed: Σ γ² (∂L/∂γ)² + β² (∂L/∂β)².

        The sum runs over a channel's members. `squares` returns the mean squared gradients of a parameter. Unlike |γ|,
        the result does not depend on the size of the weights that read the channel.
        Source: that of `sum_squared_changes`.
        """
        members = [
            sum_squared_changes(((gamma, squares(gamma)), (beta, squares(beta))))
            for gamma, beta in zip(self._gammas, self._betas, strict=True)
        ]
        return self._add_up(torch.cat(members))

    @torch.no_grad()
    def find_zeros(self) -> Tensor:
        """Return (N,) bool: the trained, prunable channels whose γ are all zero."""
        return self._trained & (self._measure_rms() == 0)

    @torch.no_grad()
    def find_zeroed(self) -> Tensor:
        """Return (N,) bool: those of `find_zeros` whose β are all zero too, so that their output is 0 everywhere."""
        betas = torch.cat([parameter.detach() for parameter in self._betas])
        return self.find_zeros() & (self._add_up(betas.square()) == 0)

    @property
    def trained(self) -> Tensor:
        """(N,) bool: the prunable channels of which every member has a γ and is trained."""
        return self._trained

    @torch.no_grad()
    def clear_(self, channels: Tensor) -> None:
        """Set γ and β of `channels` (N,) bool to zero, in place; removing them then changes no output."""
        kept = (~channels).to(self._gammas[0])
        self._multiply(self._gammas, kept)
        self._multiply(self._betas, kept)

    @torch.no_grad()
    def measure(self) -> NDArray[np.float64]:
        """Return (N,) |γ| of every prunable channel, the root mean square over its members; inf for the others."""
        return self._measure_rms().masked_fill(~self._prunable, torch.inf).double().cpu().numpy()

    def _multiply(self, parameters: list[nn.Parameter], factor: Tensor) -> None:
        changed = torch.cat([parameter.detach() for parameter in parameters]) * factor[self._ids]
        for parameter, part in zip(parameters, torch.split(changed, self._sizes), strict=True):
            parameter.copy_(part)

    def _measure_rms(self) -> Tensor:
        """Return (N,) the root mean square of a channel's members.

        The proximal step of the group lasso shrinks by it. Importance (`reduce_members`) takes the mean by default, as
        published; for a channel of its own both are |γ|.
        """
        gamma = torch.cat([parameter.detach() for parameter in self._gammas])
        return (self._add_up(gamma.square()) / self._members.clamp(min=1)).sqrt()

    def _add_up(self, members: Tensor) -> Tensor:
        return members.new_zeros(len(self._members)).index_add_(0, self._ids, members)
