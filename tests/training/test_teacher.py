"""A network that learns from another: the difference, the run, what it rejects."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from networks import make_images, randomise_
from tiny import SIDE, TINY_CFG, Cli, is_same
from torch import Tensor

from yolo_prune.commands.train import start_training
from yolo_prune.darknet.cfg import parse_cfg
from yolo_prune.datasets.loader import DetectionDataset, make_loader
from yolo_prune.datasets.spec import load_spec
from yolo_prune.errors import ConfigError
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.config import DistillConfig
from yolo_prune.model.detector import Detector
from yolo_prune.model.distillation import measure_attention_gap, measure_distillation
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.epoch import train_step
from yolo_prune.training.schedule import StepRates
from yolo_prune.training.state import make_training_state
from yolo_prune.training.teacher import FeatureHook, Teacher, load_teacher

pytestmark = pytest.mark.usefixtures("undrawn")
NETWORK = parse_cfg(TINY_CFG)
YOLOS = tuple(yolo for _, yolo in NETWORK.heads)


def make_head(*cells: tuple[float, ...]) -> Tensor:
    """Return a head map of one cell, its two anchors' x, y, w, h, objectness and class as given."""
    return torch.tensor(cells, dtype=torch.float64).reshape(1, -1, 1, 1)


def test_the_difference_by_hand() -> None:
    sure, unsure = (0.0, 0.0, 0.5, -0.5, 2.0, 1.0), (1.0, 2.0, 3.0, 4.0, -800.0, 5.0)
    student = make_head((1.0, 0.0, 0.0, 0.0, 0.0, 0.0), (0.0,) * 4 + (-800.0, 0.0))
    total = float(measure_distillation([student], [make_head(sure, unsure)], YOLOS))

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    def divergence(teacher: float, own: float) -> float:
        p, q = sigmoid(teacher), sigmoid(own)
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    belief = sigmoid(2)
    boxes = (sigmoid(1) - 0.5) ** 2 + 0.5**2 + 0.5**2
    assert total == pytest.approx(divergence(2, 0) + belief * (boxes + divergence(1, 0)), rel=1e-9)


def test_networks_that_agree_differ_by_nothing() -> None:
    torch.manual_seed(0)
    model = Detector(NETWORK).double().eval()
    with torch.no_grad():
        heads = model(make_images(model, SIDE))
    assert float(measure_distillation(heads, heads, YOLOS)) == pytest.approx(0, abs=1e-9)
    maps = [torch.randn(2, 5, 4, 4)]
    assert float(measure_attention_gap(maps, [-3 * maps[0]])) == pytest.approx(
        0, abs=1e-6
    )  # energy has no sign, no scale


def test_attention_by_hand() -> None:
    # energies 1, 0 and 0, 1 (two channels of the other): unit vectors at a right angle, squared distance 2
    one, other = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]], [[0.0, 2.0]]]])
    assert float(measure_attention_gap([one], [other])) == pytest.approx(2)


def test_a_teacher_s_gradient_is_the_trained_network_s_alone() -> None:
    torch.manual_seed(0)
    teacher = Teacher(Detector(NETWORK), DistillConfig(1.0, 1.0))
    model = Detector(NETWORK).train()
    images = make_images(model, SIDE)
    hook = FeatureHook(NETWORK)
    torch.autograd.backward(teacher.measure(images, model(images, hook.visit), hook.maps))
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_a_student_s_outputs_approach_its_teacher_s(hands: Path) -> None:
    """The labels say something else and count for little."""
    data = DetectionDataset(load_spec(hands).samples("train"), 1, SIDE)
    (batch,) = make_loader(data, len(data), shuffle=False, epoch=0)
    torch.manual_seed(1)
    model = Detector(NETWORK).train()
    teacher = Teacher(randomise_(Detector(NETWORK), 2).float(), DistillConfig(10.0))
    config = TrainConfig(batch_size=12)
    training = make_training_state(model, config, 200, teacher=teacher)
    taught = [float(train_step(training, batch, config, StepRates(5e-3))[4]) for _ in range(60)]
    assert taught[-1] < 0.2 * taught[0]


def test_a_run_with_a_teacher_says_so_and_repeats(trained: Path, hands: Path, tmp_path: Path) -> None:
    config = TrainConfig(data=hands, weights=trained, teacher=trained, epochs=1, batch_size=4, device="cpu")
    for name in ("one", "two"):
        start_training(config, tmp_path / name, "finetune")
    one, two = (load_checkpoint(tmp_path / name / "last.pt") for name in ("one", "two"))
    assert is_same(one.state, two.state)
    assert one.training["rows"][0]["teacher"] >= 0
    assert "teacher" in (tmp_path / "one/results.csv").read_text().splitlines()[0].split(",")


def test_finetune_takes_a_teacher(cli: Cli, trained: Path, hands: Path) -> None:
    pruned = cli("prune", "--one-shot", trained, "--ratio", 0.3, "--recalibrate", 0).out.strip()
    words = ("finetune", pruned, "--teacher", trained, "--epochs", 1, "--batch-size", 6, "--device", "cpu")
    outcome = cli(*words)
    assert outcome.code == 0, outcome.err
    assert ", teacher " in outcome.err


def test_a_teacher_with_other_heads_is_rejected(trained: Path) -> None:
    other = parse_cfg(TINY_CFG.replace("anchors=14,14, 30,30", "anchors=14,14, 30,31"))
    with pytest.raises(ConfigError, match=r"teacher: .*best\.pt has other heads than the network to train; name a"):
        load_teacher(trained, other, DistillConfig(), torch.device("cpu"))
