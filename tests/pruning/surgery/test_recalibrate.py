from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from networks import copy_state
from tiny import SIDE
from torch import Tensor, nn

from yolo_prune.datasets.loader import DetectionDataset, make_loader
from yolo_prune.datasets.spec import load_spec
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.decode import normalise
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.surgery.recalibrate import recalibrate_

CPU = torch.device("cpu")


@pytest.fixture
def model(trained: Path) -> Detector:
    return copy.deepcopy(load_checkpoint(trained).make_model()).eval()


@pytest.fixture
def batches(hands: Path) -> list[Tensor]:
    """Return 5, 5 and 2 images."""
    data = DetectionDataset(load_spec(hands).samples("train"), 1, SIDE)
    return [normalise(batch.images) for batch in make_loader(data, 5, shuffle=False, epoch=0)]


def list_norms(model: Detector) -> dict[str, nn.BatchNorm2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}


@torch.no_grad()
def measure_by_hand(model: Detector, batches: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the mean over the batches of each batch's own mean and unbiased variance."""
    twin = copy.deepcopy(model).train()
    seen: dict[str, list[Tensor]] = {}
    for name, norm in list_norms(twin).items():
        seen[name] = []
        norm.register_forward_pre_hook(lambda module, inputs, name=name: seen[name].append(inputs[0].double().clone()))
    for batch in batches:
        twin(batch)
    return {
        name: (
            torch.stack([values.mean((0, 2, 3)) for values in inputs]).mean(0),
            torch.stack([values.transpose(0, 1).flatten(1).var(1) for values in inputs]).mean(0),
        )
        for name, inputs in seen.items()
    }


def test_statistics_are_the_plain_mean_over_the_batches(model: Detector, batches: list[Tensor]) -> None:
    expected = measure_by_hand(model, batches)
    assert recalibrate_(model, batches, CPU) == 12
    for name, norm in list_norms(model).items():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, variance = expected[name]
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-4, atol=1e-5)


def test_old_statistics_leave_no_trace(model: Detector, batches: list[Tensor]) -> None:
    other = copy.deepcopy(model)
    for norm in list_norms(other).values():
        assert norm.running_mean is not None
        norm.running_mean.add_(100)
    recalibrate_(model, batches, CPU)
    recalibrate_(other, batches, CPU)
    assert all(torch.equal(left, right) for left, right in zip(model.buffers(), other.buffers(), strict=True))


@pytest.mark.parametrize("training", [False, True])
def test_weights_mode_and_momentum_stay_as_they_were(model: Detector, batches: list[Tensor], training: bool) -> None:
    momenta: list[float | None] = [0.1 * (number + 1) for number in range(len(list_norms(model)))]
    for norm, momentum in zip(list_norms(model).values(), momenta, strict=True):
        norm.momentum = momentum
    model.train(training)
    before = copy_state(model)
    recalibrate_(model, batches, CPU)
    assert [norm.momentum for norm in list_norms(model).values()] == momenta
    assert model.training is training
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
