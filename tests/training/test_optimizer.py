from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY_CFG
from torch import nn

from yolo_prune.darknet.cfg import parse_cfg
from yolo_prune.model.detector import Detector
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.optimizer import WeightAverage, make_optimizer
from yolo_prune.training.schedule import measure_learning_rate, measure_step_size


def test_the_schedule_of_a_hand_worked_run() -> None:
    config = TrainConfig(learning_rate=0.2, final_learning_rate=0.1, warmup_fraction=0.2)
    rates = [measure_learning_rate(config, step, 11) for step in range(11)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.2])  # two steps up, then the cosine's first
    assert rates[4] == pytest.approx(0.2 * (0.1 + 0.9 * (1 + 0.5**0.5) / 2))  # an eighth of a turn
    assert rates[6] == pytest.approx(0.2 * 0.55)
    assert rates[10] == pytest.approx(0.02)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_runs_have_a_rate(steps: int) -> None:
    rates = [measure_learning_rate(TrainConfig(learning_rate=0.5), step, steps) for step in range(steps)]
    assert rates == [0.5] * steps


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.floats(0, 1), st.floats(0, 1))
def test_the_rate_rises_then_falls_and_stays_in_bounds(steps: int, warmup: float, final: float) -> None:
    config = TrainConfig(learning_rate=1.0, warmup_fraction=warmup, final_learning_rate=final)
    rates = [measure_learning_rate(config, step, steps) for step in range(steps)]
    peak = max(1, round(warmup * steps)) - 1
    assert rates[peak] == 1
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert all(0 < rate <= 1 for rate in rates[:-1])


@pytest.mark.parametrize(("optimizer", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adamw", 0.9)])
def test_a_steady_gradient_moves_a_parameter_by_the_step_size(optimizer: Any, momentum: float) -> None:
    config = TrainConfig(optimizer=optimizer, momentum=momentum, learning_rate=0.01)
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    stepper = make_optimizer(nn.ParameterList([parameter]), config)
    places = []
    for _ in range(300):
        parameter.grad = torch.ones_like(parameter)
        stepper.step()
        places.append(parameter.item())
    assert places[-2] - places[-1] == pytest.approx(measure_step_size(config, 0.01), rel=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_kernels_alone_decay(optimizer: Any) -> None:
    model = Detector(parse_cfg(TINY_CFG))
    config = TrainConfig(optimizer=optimizer, weight_decay=0.3)
    decays = {
        parameter: group["weight_decay"]
        for group in make_optimizer(model, config).param_groups
        for parameter in group["params"]
    }
    expected = {parameter: 0.3 * name.endswith("conv.weight") for name, parameter in model.named_parameters()}
    assert decays == expected


def test_the_average_follows_a_hand_worked_recursion() -> None:
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, horizon=5)
    weight = 1.0
    for update, value in enumerate((3.0, -1.0, 2.0, 8.0) * 15, start=1):
        with torch.no_grad():
            model.weight.fill_(value)
            assert model.num_batches_tracked is not None
            model.num_batches_tracked.fill_(update)
        average.update(model)
        decay = min(0.8, update / (10 + update))
        weight = decay * weight + (1 - decay) * value
        assert average.state["weight"].item() == pytest.approx(weight, rel=1e-5)
        assert average.state["num_batches_tracked"].item() == update
    assert average.updates == 60
    assert model.weight.item() == 8


def test_an_average_that_looks_back_one_step_is_the_model() -> None:
    model = nn.Linear(2, 1)
    average = WeightAverage(model, horizon=0.01)
    with torch.no_grad():
        model.weight.add_(1)
    average.update(model)
    assert torch.equal(average.state["weight"], model.weight)
