"""Linear least squares over more samples than fit into memory, by sums of products and the normal equations."""

from __future__ import annotations

import torch
from torch import Tensor

CONSTANT = 1e-12
"""Inputs count as constant if their mean variance is at most this share of their mean square: rounding errors."""


class Moments:
    """Sums over samples of inputs (F,) and targets (O,) in float64: F² + F·O numbers for any number of samples."""

    def __init__(self, inputs: int, targets: int, device: torch.device | None = None) -> None:
        """Make sums without samples, for samples with `inputs` and `targets` numbers each."""

        def make(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.count = 0
        self._origin = make(inputs)
        """The mean of the first samples, subtracted from all inputs: large squares hide small differences."""
        self._inputs, self._targets = make(inputs), make(targets)
        self._squares, self._products = make(inputs, inputs), make(inputs, targets)

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Add samples: inputs (P, F) and targets (P, O)."""
        inputs, targets = inputs.double(), targets.double()
        if not self.count:
            self._origin = inputs.mean(0)
        inputs = inputs - self._origin
        self._squares.addmm_(inputs.T, inputs)
        self._products.addmm_(inputs.T, targets)
        self._inputs += inputs.sum(0)
        self._targets += targets.sum(0)
        self.count += len(inputs)

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Return the slopes (O, F) and intercepts (O,) that minimise Σ ‖slopes · x + intercept − t‖² / P + λ ‖slopes‖².

        λ is `ridge` times the mean variance of the inputs; intercepts are free. Inputs that never vary get slopes of 0.
        """
        mean_input, mean_target = self._inputs / self.count, self._targets / self.count
        covariance = self._squares / self.count - torch.outer(mean_input, mean_input)
        crossed = self._products / self.count - torch.outer(mean_input, mean_target)
        mean_input += self._origin
        variance = float(covariance.diagonal().sum())
        if variance <= CONSTANT * float(mean_input.square().sum()):
            return torch.zeros_like(crossed.T), mean_target
        covariance.diagonal().add_(ridge * variance / len(covariance))
        slopes = torch.cholesky_solve(crossed, torch.linalg.cholesky(covariance)).T
        return slopes, mean_target - slopes @ mean_input
