"""Training settings: what each does to a step, an epoch and a run."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from networks import copy_state, make_images
from tiny import SIDE, TINY_CFG, is_same, is_same_run, make_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from yolo_prune.commands.train import start_training
from yolo_prune.config import parse_config
from yolo_prune.darknet.cfg import parse_cfg
from yolo_prune.datasets.batches import Batch
from yolo_prune.datasets.loader import DetectionDataset, make_loader
from yolo_prune.datasets.spec import load_spec
from yolo_prune.errors import ConfigError
from yolo_prune.evaluation.evaluate import predict_with
from yolo_prune.evaluation.models import make_predictor_of
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.config import DistillConfig, LossConfig
from yolo_prune.model.detector import Detector
from yolo_prune.model.loss import DetectionLoss, measure_class_weights, measure_offsets
from yolo_prune.training import epoch_end
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.epoch import train_step
from yolo_prune.training.run_data import count_workers, list_sizes
from yolo_prune.training.schedule import StepRates
from yolo_prune.training.state import TrainingState, choose_dtype, freeze_, make_training_state
from yolo_prune.training.teacher import Teacher

pytestmark = pytest.mark.usefixtures("undrawn")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batch(hands: Path) -> Batch:
    data = DetectionDataset(load_spec(hands).samples("train"), 1, SIDE)
    (batch,) = make_loader(data, len(data), shuffle=False, epoch=0)
    return batch


def make_double_state(config: TrainConfig, **parts: Any) -> TrainingState:
    """Return a training state in float64 whose batch norms are frozen, so that images do not see each other."""
    torch.manual_seed(0)
    return make_training_state(Detector(parse_cfg(TINY_CFG)).double().eval(), config, 10, **parts)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("has_teacher", [False, True])
@pytest.mark.parametrize("accumulate", [2, 3, 5])
def test_a_step_in_parts_is_the_step(batch: Batch, accumulate: int, optimizer: Any, has_teacher: bool) -> None:
    moved = []
    for parts in (1, accumulate):
        config = TrainConfig(batch_size=60, accumulate=parts, optimizer=optimizer)
        torch.manual_seed(1)
        teacher = Teacher(Detector(parse_cfg(TINY_CFG)).double(), DistillConfig(1.0, 1.0)) if has_teacher else None
        training = make_double_state(config, teacher=teacher)
        losses = train_step(training, batch, config, StepRates(1e-3))
        moved.append((losses, copy_state(training.model)))
    torch.testing.assert_close(moved[0][0], moved[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moved[0][1], moved[1][1], rtol=1e-6 if optimizer == "adamw" else 1e-9, atol=1e-9)
    assert (float(moved[0][0][4]) > 0) == has_teacher


def test_frozen_layers_stay_to_the_bit(hands: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    config = make_config(hands, tiny_cfg, freeze=3, epochs=1)
    torch.manual_seed(0)
    before = Detector(parse_cfg(TINY_CFG)).state_dict()
    after = load_checkpoint(start_training(config, tmp_path / "run").parent / "last.pt").state
    for name, tensor in after.items():
        is_frozen = int(name.split(".")[1]) < 3
        assert torch.equal(tensor, before[name]) == is_frozen, name


def test_frozen_gammas_are_not_shrunk(batch: Batch) -> None:
    config = TrainConfig(batch_size=12, freeze=1, sparsity=1.0)
    torch.manual_seed(0)
    training = make_training_state(Detector(parse_cfg(TINY_CFG)), config, 10)
    before = copy_state(training.model)
    assert training.sparsity is not None
    training.sparsity.shrink_(0.1)
    moved = {name for name, tensor in training.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {f"layers.{layer}.bn.weight" for layer in (1, 2, 3, 5)}


def test_nothing_left_to_train_is_rejected() -> None:
    freeze_(Detector(parse_cfg(TINY_CFG)), 7)
    with pytest.raises(ConfigError, match="freeze: 8 leaves nothing to train; use less than 8, the layers there are"):
        freeze_(Detector(parse_cfg(TINY_CFG)), 8)


def test_patience_ends_a_run_that_gets_no_better(hands: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    scores = iter((0.25, 0.5, 0.375, 0.25, 1.0))  # means of three: 0.25 and three times 0.375
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_end, "_score", lambda *arguments: next(scores))
        best = start_training(make_config(hands, tiny_cfg, epochs=9, patience=2), tmp_path / "run")
    last = load_checkpoint(tmp_path / "run/last.pt").training
    assert (last["epoch"], last["is_done"], last["waited"]) == (4, True, 2)
    assert load_checkpoint(best).provenance["metrics"] == {"epoch": 4, "val_map50": 0.25}  # as good, and later


@pytest.mark.parametrize(
    ("share", "sizes"), [(0.0, [96]), (0.3, [96]), (0.34, [64, 96, 128]), (0.9, [32, 64, 96, 128, 160])]
)
def test_scales_are_multiples_of_32_around_the_size(share: float, sizes: list[int]) -> None:
    assert list_sizes(96, share) == [(size, size) for size in sizes]


def test_a_multi_scale_run_sees_several_sizes_and_its_end_is_its_own(
    hands: Path, tiny_cfg: Path, tmp_path: Path
) -> None:
    sides: set[int] = set()
    forward = Detector.forward

    def record(model: Detector, images: Tensor, *arguments: Any) -> Any:
        if model.training:
            sides.add(images.shape[-1])
        return forward(model, images, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Detector, "forward", record)
        start_training(make_config(hands, tiny_cfg, multi_scale=0.5), tmp_path / "one")
    assert sides == {32, 64, 96}
    start_training(make_config(hands, tiny_cfg, multi_scale=0.5), tmp_path / "two")
    assert is_same_run(tmp_path / "one", tmp_path / "two")


@pytest.fixture
def wide_hands(hands: Path, tmp_path: Path) -> Path:
    """Return the data.yaml of a copy whose images are half as high as wide."""
    copy = shutil.copytree(hands.parent, tmp_path / "hands")
    for path in copy.glob("images/*/*"):
        cv2.imwrite(str(path), cv2.resize(np.array(cv2.imread(str(path))), (SIDE, SIDE // 2)))
    return copy / "data.yaml"


def test_rectangles_find_what_squares_find(trained: Path, wide_hands: Path) -> None:
    model = load_checkpoint(trained).make_model().eval()
    data = DetectionDataset(load_spec(wide_hands).samples("val"), 1, SIDE)
    found = [
        predict_with(make_predictor_of(model), data, range(len(data)), batch_size=4, rectangular=rectangular)
        for rectangular in (False, True)
    ]
    assert found[0].keys() == found[1].keys() == set(range(len(data)))
    best = [[float(one.scores.max(initial=0)) for _, one in sorted(every.items())] for every in found]
    assert best[0] == pytest.approx(best[1], abs=0.2)  # grey beside an image is not what zeros beside it are
    assert best[0] != best[1]


def test_rectangular_validation_is_what_it_says(wide_hands: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    shapes = set()
    forward = Detector.forward

    def record(model: Detector, images: Tensor, *arguments: Any) -> Any:
        if not model.training:
            shapes.add(tuple(images.shape[-2:]))
        return forward(model, images, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Detector, "forward", record)
        patch.setattr("yolo_prune.training.run.save_detections_image", lambda folder, *arguments: folder)
        start_training(make_config(wide_hands, tiny_cfg, rectangular=True, epochs=1), tmp_path / "run")
    assert shapes == {(SIDE // 2, SIDE)}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_as_single_does(batch: Batch, precision: Any) -> None:
    states = []
    for kind in ("fp32", precision):
        config = TrainConfig(batch_size=12, precision=kind, optimizer="sgd", learning_rate=0.05)
        torch.manual_seed(0)
        training = make_training_state(Detector(parse_cfg(TINY_CFG)).train(), config, 10)
        history = [float(train_step(training, batch, config, StepRates(0.05))[0]) for _ in range(12)]
        assert history[-1] < 0.95 * history[0]
        assert next(training.model.parameters()).dtype == torch.float32
        states.append(history)
    assert states[0] == pytest.approx(states[1], rel=0.05)
    assert states[0] != states[1]


def test_precision_follows_the_device() -> None:
    assert choose_dtype("auto", CPU) == torch.float32
    assert choose_dtype("fp16", CPU) == torch.float16
    assert count_workers(TrainConfig(), CPU) == 0
    assert 1 <= count_workers(TrainConfig(), torch.device("cuda")) <= 16
    assert count_workers(TrainConfig(workers=3), torch.device("cuda")) == 3


def test_compilation_is_asked_for_and_changes_no_output(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def compile_eagerly(model: Any) -> Any:
        asked.append(model)
        return lambda *arguments: model(*arguments)

    monkeypatch.setattr("torch.compile", compile_eagerly)
    states = []
    for wanted in (False, True):
        config = TrainConfig(batch_size=12, compile=wanted)
        training = make_double_state(config)
        train_step(training, batch, config, StepRates(1e-3))
        states.append(copy_state(training.model))
    assert len(asked) == 1
    assert is_same(*states)


def test_a_step_asks_nothing_of_the_device(batch: Batch) -> None:
    """On a GPU each of these operations makes the host wait until the device has caught up."""
    waits: list[str] = []

    class FeatureHook(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch gives it no types
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func.name()
            tensors = (
                [index for index in args[1] if index is not None]
                if name.startswith("aten::index") and isinstance(args[1], list | tuple)
                else []
            )
            if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select") or any(
                one.dtype == torch.bool for one in tensors
            ):
                waits.append(name)
            return func(*args, **(kwargs or {}))

    config = TrainConfig(batch_size=12, sparsity=0.1)
    torch.manual_seed(0)
    training = make_training_state(Detector(parse_cfg(TINY_CFG)).train(), config, 10)
    assigned = training.loss.assign_targets(batch.targets, len(batch.images), SIDE, SIDE)
    images = make_images(training.model, SIDE, batch=12)
    assert training.sparsity is not None
    with FeatureHook():  # type: ignore[no-untyped-call]  # the same
        losses = training.loss(training.forward(images), assigned)
        torch.autograd.backward(losses.total)
        torch.nn.utils.clip_grad_norm_(training.model.parameters(), 10.0, foreach=True)
        training.sparsity.shrink_(1e-3)
        training.average.update(training.model)
        assert waits == []
        training.loss.assign_targets(batch.targets, len(batch.images), SIDE, SIDE)  # which is made on the CPU
        assert waits


def test_squared_offsets_by_hand() -> None:
    # cell (1, 2) of 16 px, anchor 8×32, truth 16×16 at (20, 36): σ(x) should be 1/4, σ(y) 1/4, w log 2, h log ½
    values = torch.tensor([[0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    truth = torch.tensor([[20.0, 36.0, 16.0, 16.0]], dtype=torch.float64)
    off = measure_offsets(values, truth, torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[8.0, 32.0]]).double(), 16)
    assert float(off) == pytest.approx(2 * 0.25**2 + 2 * math.log(2) ** 2)


def test_label_smoothing_by_hand() -> None:
    network = parse_cfg(TINY_CFG.replace("classes=1", "classes=3").replace("filters=12", "filters=16"))
    losses = [
        float(
            DetectionLoss(network, LossConfig(label_smoothing=smoothing))._judge_classes(
                torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([0])
            )
        )
        for smoothing in (0.0, 0.2)
    ]

    def cost(logit: float, target: float) -> float:
        belief = 1 / (1 + math.exp(-logit))
        return -target * math.log(belief) - (1 - target) * math.log(1 - belief)

    assert losses[0] == pytest.approx(cost(2, 1) + cost(-1, 0) + cost(0.5, 0), rel=1e-5)
    assert losses[1] == pytest.approx(cost(2, 0.9) + cost(-1, 0.1) + cost(0.5, 0.1), rel=1e-5)


def test_classes_are_balanced_by_hand() -> None:
    assert measure_class_weights([10, 30], 0.0) == [1, 1]
    assert measure_class_weights([10, 30], 1.0) == pytest.approx([2, 2 / 3])
    assert measure_class_weights([10, 40], 0.5) == pytest.approx([5 / 3, 5 / 6])  # 1/√10 : 1/√40, 50 objects in all
    assert measure_class_weights([10, 0], 1.0) == pytest.approx([1, 1])
    assert measure_class_weights([0, 0], 1.0) == [1, 1]
    network = parse_cfg(TINY_CFG.replace("classes=1", "classes=2").replace("filters=12", "filters=14"))
    logits, kinds = torch.zeros(4, 2), torch.tensor([0, 1, 1, 1])
    weights = {balance: DetectionLoss(network, LossConfig(class_balance=balance), [10, 30]) for balance in (0.0, 1.0)}
    plain = float(weights[0.0]._judge_classes(logits, kinds))
    assert float(weights[1.0]._judge_classes(logits, kinds)) == pytest.approx(plain)  # as in the data set
    assert float(weights[1.0]._judge_classes(logits[:1], kinds[:1])) == pytest.approx(2 * 2 * math.log(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 3}, "accumulate: 3 equal parts cannot be made; use a divisor of 16"),
        ({"accumulate": 0}, "accumulate: 0 is out of range; use a whole number from 1"),
        ({"multi_scale": 1.0}, "multi_scale: 1 is out of range"),
        ({"schedule": "steps"}, "schedule: unknown schedule steps; use cosine or constant"),
        ({"precision": "int8"}, "precision: unknown precision int8; use auto, fp32, bf16 or fp16"),
        ({"sparsity": "some"}, "sparsity: 'some' is of the wrong type; use a number from 0, or auto"),
        ({"sparsity_ratio": 1.0}, "sparsity_ratio: 1 is out of range"),
        ({"sparsity": 0.1, "sparsity_rest": 1.0}, "sparsity_rest: leaves λ no time"),
        ({"sparsity": "auto", "patience": 3}, "patience: does not go with sparsity"),
        ({"max_minutes": -1.0}, "max_minutes: -1 is out of range"),
        ({"freeze": -1}, "freeze: -1 is out of range"),
    ],
)
def test_invalid_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        TrainConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box": -1.0}, "box: -1 is out of range"),
        ({"anchor_ratio": 0.5}, "anchor_ratio: 0.5 is out of range; use a number from 1"),
        ({"box_loss": "giou"}, "box_loss: unknown box loss giou; use ciou or mse"),
        ({"label_smoothing": 2.0}, "label_smoothing: 2 is out of range"),
    ],
)
def test_invalid_loss_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        LossConfig(**changes)


def test_sparsity_is_a_number_or_auto_wherever_it_is_written() -> None:
    for given, meant in (("auto", "auto"), (0.003, 0.003), (3e-3, 0.003), (1, 1.0)):
        assert parse_config(TrainConfig(), {"sparsity": given}, "test").sparsity == meant
    with pytest.raises(ConfigError, match=r"test: sparsity: \[1\] is of the wrong type; use a number from 0, or auto"):
        parse_config(TrainConfig(), {"sparsity": [1]}, "test")
