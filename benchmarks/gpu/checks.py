"""What a device must compute as the CPU does: each check compares it with float64 or float32 on the CPU, to a stated tolerance.

tests/benchmarks/test_gpu_checks.py runs them on the CPU, and on a GPU where there is one; the stage `check` runs them without
pytest.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, distributed, nn

from gpu.networks import draw_images, make_detector
from yolo_prune.commands.config import FINETUNE, PruneConfig, SensitivityConfig
from yolo_prune.commands.evaluate import evaluate_models
from yolo_prune.commands.measure_config import EvaluateConfig
from yolo_prune.commands.prune import PruneResult, prune
from yolo_prune.commands.pruning.time_budgets import Stopwatch
from yolo_prune.commands.sensitivity import start_sensitivity
from yolo_prune.commands.train import resume_training, start_training
from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cfg import save_cfg
from yolo_prune.datasets.batches import Batch
from yolo_prune.datasets.config import SyntheticConfig
from yolo_prune.datasets.loader import DetectionDataset, make_loader
from yolo_prune.datasets.spec import load_spec
from yolo_prune.datasets.synthetic.dataset import make_dataset
from yolo_prune.engines.make import make_engine
from yolo_prune.engines.precision import computing_in
from yolo_prune.errors import Interrupted
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.decode import DecodedDetector, normalise
from yolo_prune.model.detector import Detector
from yolo_prune.model.loss import DetectionLoss
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.config import ScoreConfig, WeightConfig
from yolo_prune.pruning.plans.weight_plan import make_weight_plan
from yolo_prune.pruning.scores.importance import score_channels
from yolo_prune.pruning.surgery.rebuild import zero_weights
from yolo_prune.training.config import TrainConfig
from yolo_prune.training.epoch import train_step
from yolo_prune.training.optimizer import make_optimizer
from yolo_prune.training.schedule import measure_rates
from yolo_prune.training.state import make_training_state

SIDE, WIDTH = 64, 1 / 8
STEPS = 4


class Bench:
    """A small network, and drawn hands, for all checks."""

    def __init__(self, device: torch.device, folder: Path) -> None:
        self.device, self.folder = device, folder
        self.network = make_network("yolov3-tiny", width=WIDTH, img_size=SIDE)
        self.model = make_detector(self.network)
        self.data = make_dataset(
            folder / "hands", SyntheticConfig(train=24, val=12, test=4, size_px=SIDE), workers=1
        ).resolve()
        spec = load_spec(self.data)
        samples = DetectionDataset(spec.samples("train"), len(spec.names), SIDE)
        self.batches: list[Batch] = list(make_loader(samples, 8, shuffle=False, epoch=0))
        self._trained: Path | None = None

    @property
    def config(self) -> TrainConfig:
        """Settings of a short training on the device."""
        return TrainConfig(data=self.data, img_size=SIDE, batch_size=8, epochs=2, device=str(self.device), workers=0)

    @property
    def trained(self) -> Path:
        """A checkpoint that was trained on the CPU."""
        if self._trained is None:
            cfg = self.folder / "tiny.cfg"
            save_cfg(self.network, cfg)
            self._trained = start_training(replace(self.config, cfg=cfg, device="cpu"), self.folder / "trained")
        return self._trained

    def place(self, model: Detector) -> Detector:
        """Return a copy of a model on the device, channels last."""
        return copy.deepcopy(model).to(self.device).to(memory_format=torch.channels_last)


def compare(found: Tensor, wanted: Tensor, tolerance: float) -> str:
    """Compare tensors, the largest difference as a share of the largest value, and say both.

    Raises:
        AssertionError: they differ by more than the tolerance.
    """
    scale = max(1e-12, float(wanted.double().abs().max()))
    gap = float((found.double().cpu() - wanted.double().cpu()).abs().max()) / scale
    line = f"largest difference {gap:.1e}, tolerance {tolerance:.0e}"
    assert gap <= tolerance, line
    return line


def join(tensors: list[Tensor]) -> Tensor:
    """Return all values of several tensors in a row."""
    return torch.cat([tensor.detach().double().cpu().flatten() for tensor in tensors])


def check_forward(bench: Bench) -> str:
    """Raw heads in float32 against float64 on the CPU."""
    images = draw_images(4, 3, SIDE, bench.device)
    with torch.no_grad(), computing_in("fp32"):
        wanted = copy.deepcopy(bench.model).double()(images.double().cpu())
        found = bench.place(bench.model)(images)
    return compare(join(found), join(wanted), 1e-4)


def check_loss(bench: Bench) -> str:
    """The loss, and its gradients, against float64 on the CPU."""
    batch = bench.batches[0]

    def measure(model: Detector) -> Tensor:
        weight = next(model.parameters())
        images = normalise(batch.images.to(weight.device), weight.dtype)
        loss = DetectionLoss(model.network).to(weight.device)
        total = loss.measure(model.train()(images), batch.targets, *images.shape[-2:]).total
        gradients = torch.autograd.grad(total, list(model.parameters()))
        return join([total, *gradients])

    with computing_in("fp32"):
        return compare(measure(bench.place(bench.model)), measure(copy.deepcopy(bench.model).double()), 1e-3)


def take_steps(bench: Bench, precision: Literal["fp32", "bf16", "fp16"], device: torch.device) -> Tensor:
    """Return the losses of some training steps."""
    config = TrainConfig(batch_size=8, precision=precision)
    model = copy.deepcopy(bench.model).to(device).to(memory_format=torch.channels_last)
    training = make_training_state(model, config, STEPS)
    training.learn()
    losses = []
    for step in range(STEPS):
        rates = measure_rates(config, 0.0, step, STEPS)
        losses.append(train_step(training, bench.batches[step % len(bench.batches)], config, rates)[0])
    return torch.stack(losses)


def check_bf16(bench: Bench) -> str:
    """Training steps in bfloat16 against float32 on the CPU."""
    return compare(take_steps(bench, "bf16", bench.device), take_steps(bench, "fp32", torch.device("cpu")), 0.05)


def check_fp16(bench: Bench) -> str:
    """Training steps in float16 with a gradient scaler against float32 on the CPU."""
    return compare(take_steps(bench, "fp16", bench.device), take_steps(bench, "fp32", torch.device("cpu")), 0.05)


def check_channels_last(bench: Bench) -> str:
    """Raw heads of images in the other memory layout."""
    images = draw_images(4, 3, SIDE, bench.device)
    with torch.no_grad(), computing_in("fp32"):
        wanted = copy.deepcopy(bench.model).to(bench.device)(images.contiguous())
        return compare(join(bench.place(bench.model)(images)), join(wanted), 1e-4)


def check_fused_optimizer(bench: Bench) -> str:
    """Steps of the fused AdamW against PyTorch's plain one in float64 on the CPU."""

    def step(model: Detector, is_fused: bool) -> Tensor:
        optimizer = make_optimizer(model, TrainConfig(learning_rate=1e-3))
        if not is_fused:
            for group in optimizer.param_groups:
                group |= {"fused": False, "foreach": False}
        generator = torch.Generator().manual_seed(0)
        for _ in range(STEPS):
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter)  # of the same memory layout
                parameter.grad.copy_(torch.randn(parameter.shape, generator=generator))
            optimizer.step()
        return join(
            [
                parameter - before
                for parameter, before in zip(model.cpu().parameters(), bench.model.parameters(), strict=True)
            ]
        )

    return compare(step(bench.place(bench.model), True), step(copy.deepcopy(bench.model).double(), False), 1e-3)


def check_sync_batch_norm(bench: Bench) -> str:
    """Synchronised batch norm in a group of one process against plain batch norm."""
    images = draw_images(4, 3, SIDE, bench.device)
    model = bench.place(bench.model).train()
    wanted = join(copy.deepcopy(model)(images))
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    if bench.device.type != "cuda":  # without a group it is plain batch norm
        return compare(join(synchronised(images)), wanted, 1e-6)
    store: Any = distributed.HashStore()  # type: ignore[attr-defined]  # documented, not in torch's types
    distributed.init_process_group("nccl", store=store, rank=0, world_size=1)
    try:
        return compare(join(synchronised(images)), wanted, 1e-3)
    finally:
        distributed.destroy_process_group()


def check_resume(bench: Bench) -> str:
    """A training that was stopped and resumed against one that was not: the validation AP50 of the end."""
    config = replace(bench.config, weights=bench.trained)
    whole = load_checkpoint(start_training(config, bench.folder / "whole").with_name("last.pt"))
    folder = bench.folder / "stopped"
    with suppress(Interrupted):
        start_training(replace(config, max_minutes=0.0), folder)
    resumed = load_checkpoint(resume_training(folder, {"max_minutes": None}).with_name("last.pt"))
    weights = [torch.cat([tensor.flatten().double() for tensor in one.state.values()]) for one in (resumed, whole)]
    return compare(weights[0], weights[1], 1e-2)


def check_taylor(bench: Bench) -> str:
    """Taylor scores of all channels against float64 on the CPU."""
    graph, config = make_channel_graph(bench.network), ScoreConfig(criterion="taylor")

    def measure(model: Detector) -> Tensor:
        weight = next(model.parameters())
        examples = [(normalise(batch.images.to(weight.device), weight.dtype), batch.targets) for batch in bench.batches]
        scores = score_channels(model, graph, config, examples)
        return torch.from_numpy(scores[np.isfinite(scores)])

    with computing_in("fp32"):
        return compare(measure(bench.place(bench.model)), measure(copy.deepcopy(bench.model).double()), 1e-3)


def check_sensitivity(bench: Bench) -> str:
    """The damage of pruning each group against the CPU's."""
    config = SensitivityConfig(ratios=(0.5,), metric="loss", criterion="l2", images=8, data=bench.data)

    def measure(device: str) -> Tensor:
        table = start_sensitivity(
            bench.trained, replace(config, device=device), bench.folder / f"sensitivity-{device}"
        ).table
        return torch.tensor([score for curve in table.groups for score in curve.scores], dtype=torch.float64)

    with computing_in("fp32"):
        return compare(measure(str(bench.device)), measure("cpu"), 1e-3)


def check_stopwatch(bench: Bench) -> str:
    """The watch of latency budgets: a network against itself takes the same time, and a positive one."""
    watch = Stopwatch(bench.place(bench.model), bench.device)
    before, after = watch.measure(bench.place(bench.model))
    assert before > 0, before
    assert after > 0, after
    assert 1 / 3 < after / before < 3, f"{before:.3f} and {after:.3f} ms"
    return f"{before:.3f} and {after:.3f} ms"


def check_engines(bench: Bench) -> str:
    """Boxes and scores of every engine and precision that the device has against the network in float32 on the CPU."""
    images = draw_images(2, 3, SIDE, bench.device)
    with torch.no_grad():
        wanted = join(list(DecodedDetector(bench.model)(images.cpu())))
    rows = [("eager", "fp32", 1e-4), ("folded", "fp32", 1e-4), ("folded", "bf16", 0.05), ("compile", "fp32", 1e-4)]
    if bench.device.type == "cuda":
        rows += [
            ("folded", "tf32", 0.01),
            ("half", "fp16", 0.01),
            ("cudagraph", "fp32", 1e-4),
            ("cudagraph", "bf16", 0.05),
        ]
    lines = []
    for engine, precision, tolerance in rows:
        with torch.inference_mode(), computing_in(precision):
            call = make_engine(bench.model, engine, bench.device, precision)
            for _ in range(2):  # a recorded graph is replayed
                found = call(images)
        lines.append(f"{engine} {precision}: {compare(join(list(found)), wanted, tolerance)}")
    return "; ".join(lines)


def check_semi_structured(bench: Bench) -> str:
    """2:4 kernels against the same network in half precision; not on the CPU, which has none."""
    if bench.device.type != "cuda":
        return "the CPU has no 2:4 kernels"
    model = make_detector(make_network("yolov3", width=1 / 4, img_size=SIDE))
    sparse = zero_weights(model, make_weight_plan(model, WeightConfig("l1", pattern="2:4")))
    images = draw_images(2, 3, SIDE, bench.device)
    with torch.inference_mode():
        wanted = make_engine(sparse, "half", bench.device)(images)
        found = make_engine(sparse, "half-2:4", bench.device)(images)
    return compare(join(list(found)), join(list(wanted)), 0.02)


def check_evaluation(bench: Bench) -> str:
    """AP50 on validation images against the CPU's."""
    config = EvaluateConfig(data=bench.data, split="val")
    scores = [
        evaluate_models([bench.trained], [], replace(config, device=device)).models[0].evaluation.score.map50
        for device in (str(bench.device), "cpu")
    ]
    line = f"{scores[0]:.4f} and {scores[1]:.4f}"
    assert abs(scores[0] - scores[1]) <= 0.005, line
    return line


def check_prune_and_finetune(bench: Bench) -> str:
    """`prune`, which removes channels while it trains, and `finetune` with the original as teacher."""
    config = PruneConfig(
        ratio=0.5, effort=2, data=bench.data, device=str(bench.device), training=replace(bench.config, sparsity="auto", remove=True, data=None)
    )  # fmt: skip
    result = prune(bench.trained, config, bench.folder / "pruned")
    assert isinstance(result, PruneResult)
    assert result.planned.after.params < result.planned.before.params
    settings = replace(FINETUNE, **{name: getattr(bench.config, name) for name in ("data", "batch_size", "device")})
    best = start_training(
        replace(settings, weights=result.checkpoint, epochs=1), bench.folder / "finetuned", "finetune"
    )
    assert all(bool(tensor.isfinite().all()) for tensor in load_checkpoint(best).state.values())
    return f"{result.planned.before.params:,} → {result.planned.after.params:,} params"


CHECKS: dict[str, Callable[[Bench], str]] = {
    name.removeprefix("check_"): value for name, value in list(globals().items()) if name.startswith("check_")
}
"""All checks by name."""
