from __future__ import annotations

import copy
import dataclasses
import math
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from networks import copy_state, is_same_state
from tiny import PRUNABLE, SIDE, TINY_CFG, Killed, before_step, is_same, is_same_run, make_config

from yolo_prune.commands.train import resume_training, start_training
from yolo_prune.config import parse_config
from yolo_prune.darknet.cfg import parse_cfg
from yolo_prune.datasets.config import AugmentConfig
from yolo_prune.datasets.loader import DetectionDataset, make_loader
from yolo_prune.datasets.spec import load_spec
from yolo_prune.errors import ConfigError, DatasetError, Interrupted, TrainingError, WeightsError, YoloPruneError
from yolo_prune.evaluation.evaluate import measure_score_of
from yolo_prune.model.checkpoint import load_checkpoint, save_checkpoint
from yolo_prune.model.detector import ConvLayer, Detector
from yolo_prune.model.weights import save_weights
from yolo_prune.pruning.sparsity.balance import MEAN_GAMMA
from yolo_prune.training import epoch as epoch_module
from yolo_prune.training import epoch_end, resume
from yolo_prune.training import run as run_module
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.epoch import train_step
from yolo_prune.training.initial_model import make_start
from yolo_prune.training.schedule import StepRates
from yolo_prune.training.state import TrainingState, make_training_state

pytestmark = [
    pytest.mark.usefixtures("undrawn"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),  # Python 3.12 on, for workers
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # on a machine of one core
]
CPU = torch.device("cpu")
STEPS = 9
"""Three epochs of three steps."""


@pytest.fixture
def config(hands: Path, tiny_cfg: Path) -> TrainConfig:
    return make_config(hands, tiny_cfg)


@contextmanager
def killed_after_save(number: int) -> Iterator[None]:
    """Kill the run once it has written its checkpoint `number`, counted from 1: last, best, last, best, last …"""
    saves = 0

    def save(*arguments: Any) -> Path:
        nonlocal saves
        saves += 1
        path = save_checkpoint(*arguments)
        if saves == number:
            raise Killed
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "save_checkpoint", save)
        yield


def kill() -> None:
    raise Killed


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 3, 5, STEPS - 1])  # an epoch's first, last and middle
def test_a_stopped_run_ends_in_the_same_bits(
    config: TrainConfig, trained: Path, tmp_path: Path, step: int, signum: signal.Signals
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with before_step(step, lambda: signal.raise_signal(signum)), pytest.raises(Interrupted) as stop:
        start_training(config, tmp_path / "run")
    assert stop.value.exit_code == 128 + signum
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert load_checkpoint(tmp_path / "run/last.pt").training["epoch"] == step // 3
    assert resume_training(tmp_path / "run") == tmp_path / "run/best.pt"
    assert is_same_run(tmp_path / "run", trained.parent)


@pytest.mark.parametrize("step", [1, 2, 4, STEPS])
def test_a_killed_run_ends_in_the_same_bits(config: TrainConfig, trained: Path, tmp_path: Path, step: int) -> None:
    with before_step(step, kill), pytest.raises(Killed):
        start_training(config, tmp_path / "run")
    resume_training(tmp_path / "run")
    assert is_same_run(tmp_path / "run", trained.parent)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_a_run_killed_while_it_saves_ends_in_the_same_bits(
    config: TrainConfig, tmp_path: Path, sparsity: float
) -> None:
    """The first best.pt is written for want of another, the second for its score."""
    config = parse_config(config, {"epochs": 2, "sparsity": sparsity, "val_interval": 2}, "test")
    start_training(config, tmp_path / "whole")
    for save in (1, 2, 3, 4):
        run = tmp_path / str(save)
        with killed_after_save(save), pytest.raises(Killed):
            start_training(config, run)
        resume_training(run)
        assert is_same_run(run, tmp_path / "whole")


def test_a_run_stopped_twice_with_workers_ends_in_the_same_bits(
    config: TrainConfig, trained: Path, tmp_path: Path
) -> None:
    config = parse_config(config, {"workers": 2}, "test")
    with before_step(4, lambda: signal.raise_signal(signal.SIGTERM)), pytest.raises(Interrupted):
        start_training(config, tmp_path / "run")
    with before_step(2, lambda: signal.raise_signal(signal.SIGTERM)), pytest.raises(Interrupted):
        resume_training(tmp_path / "run")
    resume_training(tmp_path / "run", {"workers": 0})
    ours, theirs = (load_checkpoint(folder / "last.pt") for folder in (tmp_path / "run", trained.parent))
    assert is_same(ours.state, theirs.state)
    assert is_same(ours.training, theirs.training)
    assert is_same(load_checkpoint(tmp_path / "run/best.pt").state, load_checkpoint(trained).state)


def test_a_seed_is_a_run(config: TrainConfig, trained: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)  # whatever was drawn before
    start_training(config, tmp_path / "same")
    assert is_same_run(tmp_path / "same", trained.parent)
    start_training(parse_config(config, {"seed": 1}, "test"), tmp_path / "other")
    assert not is_same(
        load_checkpoint(tmp_path / "other/last.pt").state, load_checkpoint(trained.parent / "last.pt").state
    )


def test_a_run_leaves_its_folder(config: TrainConfig, trained: Path) -> None:
    names = {"config.yaml", "results.csv", "last.pt", "best.pt", "train_batch.png", "val_detections.png"}
    assert {path.name for path in trained.parent.iterdir()} == names
    kept = parse_config(TrainConfig(), yaml.safe_load((trained.parent / "config.yaml").read_text()), "test")
    assert kept == dataclasses.replace(config, keep_zeros=False)  # as resolved
    assert (trained.parent / "results.csv").read_text().count("\n") == 1 + config.epochs


def test_best_is_the_average_of_the_best_epoch(trained: Path, hands: Path) -> None:
    last, best = load_checkpoint(trained.parent / "last.pt"), load_checkpoint(trained)
    scores = [row["val_map50"] for row in last.training["rows"]]
    metrics = best.provenance["metrics"]
    assert metrics["val_map50"] == max(scores)
    assert scores[metrics["epoch"] - 1] == max(scores)
    assert not best.training
    assert best.names == load_spec(hands).names
    assert best.provenance["stage"] == "train"
    assert best.provenance["parent"] is None


@pytest.mark.parametrize(("sparsity", "kept"), [(0.0, 2), (0.1, 3)])
def test_a_sparse_run_keeps_its_last_epoch_and_others_their_best(
    config: TrainConfig, tmp_path: Path, sparsity: float, kept: int
) -> None:
    averages: list[dict[str, torch.Tensor]] = []

    def pretend(run: Any, model: Detector, val: Any) -> float:
        if run.config.is_sparse and len(seen) % 2:
            seen.append(None)  # what a prune would leave is scored after the whole
            return 0.1
        seen.append(copy_state(model))
        averages.append(copy_state(model))
        return (0.5, 0.9, 0.1)[len(averages) - 1]

    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_end, "_score", pretend)
        best = load_checkpoint(start_training(parse_config(config, {"sparsity": sparsity}, "test"), tmp_path / "run"))
    assert best.provenance["metrics"] == {"epoch": kept, "val_map50": (0.5, 0.9, 0.1)[kept - 1]}
    assert is_same(best.state, averages[kept - 1])
    last = load_checkpoint(tmp_path / "run/last.pt")
    assert is_same(last.training["average"], averages[-1])
    assert not is_same(last.state, averages[-1])
    assert last.training["average_updates"] == STEPS


def make_tiny_state(config: TrainConfig) -> TrainingState:
    torch.manual_seed(0)
    return make_training_state(Detector(parse_cfg(TINY_CFG)).train(), config, 1)


@pytest.fixture
def pair(hands: Path) -> DetectionDataset:
    """Return two images with objects."""
    data = DetectionDataset(load_spec(hands).samples("train"), 1, SIDE)
    chosen = [sample for sample, labels in zip(data.samples, data.labels, strict=True) if len(labels)][:2]
    return DetectionDataset(chosen, 1, SIDE)


def test_two_images_can_be_overfitted(pair: DetectionDataset) -> None:
    config = TrainConfig(learning_rate=2e-2, weight_decay=0.0)
    training = make_tiny_state(config)
    (batch,) = make_loader(pair, 2, shuffle=False, epoch=0)
    losses = [train_step(training, batch, config, StepRates(config.learning_rate)).tolist() for _ in range(150)]
    assert all(math.isclose(sum(parts), total, rel_tol=1e-4) for total, *parts in losses)
    assert losses[-1][0] < 0.2 * losses[0][0]
    assert measure_score_of(training.model.eval(), pair, device=CPU, batch_size=2).map50 > 0.9


def test_a_step_moves_by_the_rate_it_is_given(pair: DetectionDataset) -> None:
    config = TrainConfig(learning_rate=0.5)
    training = make_tiny_state(config)
    (batch,) = make_loader(pair, 2, shuffle=False, epoch=0)
    before = copy.deepcopy(list(training.model.parameters()))
    train_step(training, batch, config, StepRates(0.0))
    assert all(map(torch.equal, training.model.parameters(), before))
    train_step(training, batch, config, StepRates(1e-3))
    assert not all(map(torch.equal, training.model.parameters(), before))


def test_gradients_are_clipped(pair: DetectionDataset) -> None:
    (batch,) = make_loader(pair, 2, shuffle=False, epoch=0)
    norms = {}
    for clip in (0.0, 1e-3):
        config = TrainConfig(clip_norm=clip)
        training = make_tiny_state(config)
        train_step(training, batch, config, StepRates(1e-3))
        gradients = [parameter.grad for parameter in training.model.parameters()]
        norms[clip] = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients if gradient is not None))
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert norms[0.0] > 1e-2


def test_sparsity_reaches_zeros_and_keeps_the_last_epoch(config: TrainConfig, tmp_path: Path) -> None:
    # λ of 2 shrinks γ by up to 2·rate a step: seven steps at 0.03 are enough to end a γ of 0.5
    changes = {"sparsity": 2.0, "learning_rate": 0.1, "warmup_fraction": 0.0, "close_mosaic_fraction": 1.0}
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yolo_prune.commands.train.report", lines.append)
        best = start_training(parse_config(config, changes, "test"), tmp_path / "run")
    last = load_checkpoint(tmp_path / "run/last.pt")
    model = last.make_last_step_model()
    zeros = sum(
        int((module.bn.weight == 0).sum())
        for module in model.layers
        if isinstance(module, ConvLayer) and module.bn is not None
    )
    below = [row["channels_below"] for row in last.training["rows"]]
    assert zeros >= below[-1] > 0  # a tied channel has two γ
    assert below == sorted(below)
    assert last.training["rows"][-1]["channels"] == PRUNABLE
    assert load_checkpoint(best).provenance["metrics"]["epoch"] == 3
    assert lines[0] == "balanced the γ of 4 groups"
    assert f"; {below[-1]} of {PRUNABLE} channels ({below[-1] / PRUNABLE:.0%}) near zero; pruned now " in lines[-1]


@pytest.mark.parametrize(("sparsity", "mean"), [("auto", 1.0), (1e-6, MEAN_GAMMA)])
def test_gammas_are_balanced_where_they_are_shrunk(
    config: TrainConfig, tmp_path: Path, sparsity: Any, mean: float
) -> None:
    changes = {"sparsity": sparsity, "learning_rate": 1e-4, "ema_fraction": 0.0}
    start_training(parse_config(config, changes, "test"), tmp_path / "run")
    model = load_checkpoint(tmp_path / "run/last.pt").make_model()
    modules = (module.bn for module in model.layers if isinstance(module, ConvLayer) and module.bn is not None)
    gammas = torch.cat([bn.weight.detach() for bn in modules])
    assert float(gammas[gammas != 0].mean()) == pytest.approx(mean, rel=0.1)


@pytest.mark.parametrize(
    ("sparsity", "optimizer", "pulls"),
    [("auto", "sgd", True), ("auto", "adamw", False), (0.1, "adamw", True), (0.0, "sgd", False)],
)
def test_auto_needs_no_shrinkage_where_squares_are_kept(sparsity: Any, optimizer: Any, pulls: bool) -> None:
    assert TrainConfig(sparsity=sparsity, optimizer=optimizer).pulls_gammas == pulls


def test_a_nan_loss_ends_the_run(config: TrainConfig, tmp_path: Path) -> None:
    def spoil() -> None:
        patch.setattr(epoch_module, "normalise", lambda images, dtype: images.to(dtype) * math.nan)

    expected = pytest.raises(TrainingError, match="the loss became nan; start again with a lower learning_rate")
    with pytest.MonkeyPatch.context() as patch, before_step(5, spoil), expected:
        start_training(config, tmp_path / "run")
    last = load_checkpoint(tmp_path / "run/last.pt")
    assert last.training["epoch"] == 1
    for state in (last.state, last.training["average"], load_checkpoint(tmp_path / "run/best.pt").state):
        assert all(bool(tensor.isfinite().all()) for tensor in state.values())


@pytest.fixture
def own_hands(hands: Path, tmp_path: Path) -> Path:
    """Return the data.yaml of a copy that a test may change."""
    return shutil.copytree(hands.parent, tmp_path / "hands") / "data.yaml"


def stop_early(config: TrainConfig, folder: Path) -> None:
    with before_step(1, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(Interrupted):
        start_training(config, folder)


def test_changed_data_cannot_be_resumed(own_hands: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    stop_early(make_config(own_hands, tiny_cfg), tmp_path / "run")
    label = own_hands.parent / "labels/val/000000.txt"
    old = label.read_text()
    label.write_text(f"{old}0 0.5 0.5 0.1 0.1\n")
    before = (tmp_path / "run/last.pt").read_bytes()
    with pytest.raises(TrainingError, match=r"data\.yaml: the data set has changed since the run began; restore it"):
        resume_training(tmp_path / "run")
    assert (tmp_path / "run/last.pt").read_bytes() == before
    label.write_text(old)
    resume_training(tmp_path / "run")


def test_only_a_stopped_run_can_be_resumed(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"none/last\.pt: there is nothing to resume; name a run folder"):
        resume_training(tmp_path / "none")
    with pytest.raises(TrainingError, match="the run's 3 epochs are done; start a new run"):
        resume_training(trained.parent)


def test_nothing_is_left_of_a_run_that_cannot_begin(own_hands: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str, type[YoloPruneError]]] = [
        ({"device": "tpu"}, "device: unknown device tpu; use auto", ConfigError),
        ({"cfg": tiny_cfg, "weights": tmp_path / "a.pt"}, r"a\.pt: cannot be read", WeightsError),
    ]
    (own_hands.parent / "labels/val/000003.txt").write_text("0 0.5 0.5\n")
    cases.append(({}, r"labels/val/000003\.txt:1: '0 0\.5 0\.5' is not five numbers", DatasetError))
    for changes, message, kind in cases:
        with pytest.raises(kind, match=message):
            start_training(make_config(own_hands, **{"cfg": tiny_cfg, **changes}), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_run_begins_with_darknet_weights(config: TrainConfig, tmp_path: Path) -> None:
    model = Detector(parse_cfg(TINY_CFG))
    path = save_weights(model, tmp_path / "tiny.weights")
    lines: list[str] = []
    start = make_start(parse_config(config, {"weights": path}, "test"), 1, lines.append)
    assert is_same_state(start.model, copy_state(model))
    assert start.parent is None
    assert lines == [f"{path}: took 6 of 6 convolutions"]


def test_a_run_begins_with_a_checkpoint_and_leaves_it_alone(trained: Path, hands: Path, tmp_path: Path) -> None:
    before = trained.read_bytes()
    config = TrainConfig(weights=trained, epochs=1, batch_size=4, device="cpu")
    start = make_start(config, 1, print)
    assert is_same(start.model.state_dict(), load_checkpoint(trained).state)
    best = start_training(config, tmp_path / "run", "finetune")
    assert trained.read_bytes() == before
    made = load_checkpoint(best)
    assert made.provenance["stage"] == "finetune"
    assert made.provenance["parent"]["path"] == str(trained.resolve())
    assert made.provenance["data"]["path"] == str(hands.resolve())  # taken over from the checkpoint
    assert not is_same(made.state, load_checkpoint(trained).state)


def test_a_cfg_and_a_data_set_must_know_the_same_classes(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match=r"tiny\.cfg: has 1 classes, the data set 2; use a network"):
        make_start(config, 2, print)


def test_all_but_the_heads_is_the_checkpoint_s_where_classes_differ(trained: Path) -> None:
    lines: list[str] = []
    model = make_start(TrainConfig(weights=trained), 3, lines.append).model
    old = load_checkpoint(trained).state
    heads = [name for name in old if name.startswith("layers.6.")]
    assert heads
    assert is_same(
        {name: value for name, value in model.state_dict().items() if name not in heads},
        {name: value for name, value in old.items() if name not in heads},
    )
    assert [model.state_dict()[name].shape[0] for name in heads] == [16, 16]
    assert lines == [f"{trained}: trained on 1 class, the data set has 3: the head, layer 7, is new"]


def test_anchors_grow_with_the_input(config: TrainConfig) -> None:
    start = make_start(parse_config(config, {"img_size": 96}, "test"), 1, print)
    assert start.model.network.img_size == (96, 96)
    assert start.model.network.heads[0][1].anchors == ((21, 21), (45, 45))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs: 0 is out of range; use a whole number from 1"),
        ({"sparsity": -0.1}, "sparsity: -0.1 is out of range"),
        ({"sparsity": math.nan}, "sparsity: nan is out of range"),
        ({"momentum": 1.0}, "momentum: 1 is out of range"),
        ({"learning_rate": math.inf}, "learning_rate: inf is out of range; use a number above 0"),
        ({"seed": -1}, "seed: -1 is out of range; use a whole number"),
        ({"seed": 1 << 63}, "seed: 9223372036854775808 is out of range"),
        ({"img_size": 50}, "img_size: 50 is no multiple of 32; use 64"),
        ({"img_size": 0}, "img_size: 0 is no multiple of 32; use 32"),
        ({"optimizer": "adam"}, "optimizer: unknown optimizer adam; use adamw or sgd"),
        ({"name": "a/b"}, "name: 'a/b' is no folder name"),
        ({"name": ".."}, r"name: '\.\.' is no folder name"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        TrainConfig(**changes)


def test_mosaic_closes_at_the_end(config: TrainConfig, tmp_path: Path) -> None:
    seen: list[AugmentConfig | None] = []

    def record(data: DetectionDataset, *arguments: Any, **named: Any) -> Any:
        if named["shuffle"]:
            seen.append(data.augment)
        return make_loader(data, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "make_loader", record)
        start_training(parse_config(config, {"close_mosaic_fraction": 0.4}, "test"), tmp_path / "run")
    assert seen == [config.augment, config.augment, config.augment.without_mosaic()]


def test_a_network_without_batch_norm_trains_and_is_rejected_only_with_sparsity(hands: Path, tmp_path: Path) -> None:
    cfg = tmp_path / "plain.cfg"
    cfg.write_text(TINY_CFG.replace("batch_normalize=1\n", ""))
    config = make_config(hands, cfg, epochs=1)
    assert start_training(config, tmp_path / "plain").is_file()
    with pytest.raises(YoloPruneError, match="no convolution has a γ"):
        start_training(make_config(hands, cfg, epochs=1, sparsity=0.1), tmp_path / "sparse")
