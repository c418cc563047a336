from __future__ import annotations

import pytest
import torch
from torch import Tensor

from yolo_prune.pruning.surgery.least_squares import Moments


def add_all(inputs: Tensor, targets: Tensor, parts: int = 1) -> Moments:
    moments = Moments(inputs.shape[1], targets.shape[1])
    for some, wanted in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
        moments.add(some, wanted)
    return moments


def make_samples(count: int, inputs: int, targets: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return correlated inputs away from zero, and targets that are partly a function of them."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(count, inputs, generator=generator, dtype=torch.float64)
    mixed = draw @ torch.randn(inputs, inputs, generator=generator, dtype=torch.float64) + 3
    noise = torch.randn(count, targets, generator=generator, dtype=torch.float64)
    return mixed, mixed @ torch.randn(inputs, targets, generator=generator, dtype=torch.float64) + noise - 7


def test_a_line_by_hand() -> None:
    # through (0, 1), (1, 2), (2, 6): means 1 and 3, covariance 5/3, variance 2/3
    slopes, intercept = add_all(torch.tensor([[0.0], [1], [2]]), torch.tensor([[1.0], [2], [6]])).solve(0)
    assert slopes.item() == pytest.approx(2.5)
    assert intercept.item() == pytest.approx(0.5)
    # a ridge of half the variance: 5/3 / (2/3 + 1/3)
    slopes, intercept = add_all(torch.tensor([[0.0], [1], [2]]), torch.tensor([[1.0], [2], [6]])).solve(0.5)
    assert slopes.item() == pytest.approx(5 / 3)
    assert intercept.item() == pytest.approx(3 - 5 / 3)


@pytest.mark.parametrize("parts", [1, 7])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_the_same_as_lstsq(ridge: float, parts: int) -> None:
    inputs, targets = make_samples(200, 12, 5)
    slopes, intercept = add_all(inputs, targets, parts).solve(ridge)
    centred = inputs - inputs.mean(0)
    penalty = (ridge * centred.square().mean() * len(inputs)) ** 0.5 * torch.eye(12, dtype=torch.float64)
    rows = torch.cat((centred, penalty))
    wanted = torch.cat((targets - targets.mean(0), torch.zeros(12, 5, dtype=torch.float64)))
    expected = torch.linalg.lstsq(rows, wanted).solution.T
    assert torch.allclose(slopes, expected, 1e-9, 1e-9)
    assert torch.allclose(intercept, targets.mean(0) - expected @ inputs.mean(0), 1e-9, 1e-9)


def test_fewer_samples_than_inputs_and_inputs_that_never_vary() -> None:
    inputs, targets = make_samples(4, 12, 2)
    inputs[:, 3] = 5
    slopes, intercept = add_all(inputs, targets).solve(1e-6)
    assert slopes.isfinite().all()
    assert slopes[:, 3].abs().max() < 1e-7
    assert torch.allclose(inputs @ slopes.T + intercept, targets, 1e-3, 1e-3)
    slopes, intercept = add_all(torch.full((4, 3), 2.0), targets).solve(1e-3)
    assert slopes.tolist() == [[0.0] * 3] * 2
    assert torch.allclose(intercept, targets.mean(0))


def test_no_inputs_leave_the_mean() -> None:
    _, targets = make_samples(9, 1, 3)
    slopes, intercept = add_all(torch.zeros(9, 0), targets).solve(1e-3)
    assert slopes.shape == (3, 0)
    assert torch.allclose(intercept, targets.mean(0))
