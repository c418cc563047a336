"""Settings of a training run."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from yolo_prune.config import RUN, Setting, settings
from yolo_prune.darknet.file_names import is_darknet_weights
from yolo_prune.datasets.config import AugmentConfig
from yolo_prune.errors import ConfigError
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.model.config import DistillConfig, LossConfig
from yolo_prune.pruning.config import AUTO, PlanConfig
from yolo_prune.shared_settings import (
    MOST_IMAGES,
    MOST_PROCESSES,
    Device,
    ImgSize,
    MaxMinutes,
    PathSetting,
    RunName,
    Seed,
)
from yolo_prune.shipped_configs import CfgPath

DATA, NETWORK, SCHEDULE, OPTIMIZER = "Data", "Network", "Schedule", "Optimizer"
SPARSITY, TEACHER, VALIDATION = "γ sparsity", "Teacher", "Validation"


@settings
class TrainConfig:
    """Settings of `train` and `finetune`; `finetune` has its own defaults for some of them."""

    data: Annotated[
        PathSetting | None, Setting("A data.yaml.", default="synthetic hands, drawn on first use", group=DATA)
    ] = None
    cfg: Annotated[
        CfgPath | None,
        Setting(
            "A new network: a Darknet cfg file, or the name of a shipped one, such as yolov3-tiny-hand.",
            default="a quarter-width YOLOv3 at 192 px",
            group=NETWORK,
        ),
    ] = None
    weights: Annotated[
        PathSetting | None,
        Setting(
            "Start from a checkpoint (.pt), or fill the cfg from Darknet .weights or another implementation's state dict.",
            group=NETWORK,
        ),
    ] = None
    prefix: Annotated[
        bool,
        Setting(
            "The .weights may hold the first layers alone; so may a file named NAME.conv.N without this.", group=NETWORK
        ),
    ] = False
    epochs: Annotated[int, Setting("Passes over the training images.", ge=1, group=SCHEDULE)] = 30
    batch_size: Annotated[
        int, Setting("Images per step, over all processes.", ge=1, le=MOST_IMAGES, group=SCHEDULE)
    ] = 16
    accumulate: Annotated[
        int,
        Setting(
            "Parts in which a step's images go through the network, so that a large batch fits in memory (Darknet's subdivisions).",
            ge=1,
            group=SCHEDULE,
        ),
    ] = 1
    img_size: Annotated[
        ImgSize | None,
        Setting(
            "Size of the network's input: the side of a square, or WIDTHxHEIGHT.",
            unit="px",
            default="the checkpoint's or cfg's",
            group=DATA,
        ),
    ] = None
    multi_scale: Annotated[
        float,
        Setting(
            "Every step takes an input size of its own, a multiple of 32 px up to this share of img_size smaller or larger.",
            ge=0,
            lt=1,
            group=DATA,
        ),
    ] = 0.0
    auto_anchors: Annotated[
        bool,
        Setting(
            "Find a new network's anchors in the training boxes, as `data anchors` does, instead of the cfg's.",
            group=NETWORK,
        ),
    ] = False
    freeze: Annotated[
        int,
        Setting(
            "Layers from the start of the cfg that are not trained, batch-norm statistics included.",
            ge=0,
            group=NETWORK,
        ),
    ] = 0
    sparsity: Annotated[
        Annotated[float, Setting("", ge=0)] | Literal["auto"],
        Setting(
            "λ of the penalty λ‖γ‖₁: after each step γ moves towards zero by λ times the step size; 0 trains without. "
            "auto needs no λ: it brings just the channels of sparsity_ratio to zero in the run's time.",
            group=SPARSITY,
        ),
    ] = 0.0
    sparsity_ratio: Annotated[
        float, Setting("Share of the prunable channels that sparsity auto brings to zero.", gt=0, lt=1, group=SPARSITY)
    ] = 0.6
    sparsity_plan: Annotated[
        PlanConfig | None,
        Setting(
            "What sparsity auto brings to zero, where sparsity_ratio does not say enough: targets, floors, rounding."
        ),
    ] = None
    remove: Annotated[
        bool,
        Setting(
            "Remove channels that sparsity auto has brought to zero while training goes on, which makes it faster.",
            group=SPARSITY,
        ),
    ] = False
    sparsity_ramp: Annotated[
        float, Setting("Share of the run over which λ rises from zero.", ge=0, le=1, group=SPARSITY)
    ] = 0.0
    sparsity_rest: Annotated[
        float | None,
        Setting(
            "Share of the run, at its end, without λ: channels at zero stay there, the others recover.",
            ge=0,
            le=1,
            default="0.6 with auto, else 0",
            group=SPARSITY,
        ),
    ] = None
    keep_zeros: Annotated[
        bool | None,
        Setting(
            "Weights of convolution kernels that are exactly zero stay zero.",
            default="if prune zeroed them",
            group=NETWORK,
        ),
    ] = None
    teacher: Annotated[
        PathSetting | None,
        Setting("A checkpoint with the same heads, whose outputs the network learns beside the labels.", group=TEACHER),
    ] = None
    parent_teacher: Annotated[
        bool,
        Setting(
            "Without a teacher, take the network that the checkpoint was pruned from, if its file is still the same.",
            group=TEACHER,
        ),
    ] = False
    distill: Annotated[DistillConfig, Setting("How much the teacher counts.")] = field(default_factory=DistillConfig)
    name: RunName = "train"
    device: Device = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        Setting(
            "bf16, fp16: mixed precision, fp16 with a scaled loss; auto: bf16 on CUDA (fp16 where it has no bf16), else fp32.",
            group=RUN,
        ),
    ] = "auto"
    compile: Annotated[bool, Setting("Compile the network with torch.compile.", group=RUN)] = False
    seed: Seed = 0
    optimizer: Annotated[Literal["adamw", "sgd"], Setting("sgd with Nesterov's momentum.", group=OPTIMIZER)] = "adamw"
    learning_rate: Annotated[
        float, Setting("The highest learning rate, reached after the warm-up.", gt=0, group=OPTIMIZER)
    ] = 2e-3
    schedule: Annotated[
        Literal["cosine", "constant"],
        Setting("cosine: after the warm-up half a cosine down to final_learning_rate.", group=SCHEDULE),
    ] = "cosine"
    final_learning_rate: Annotated[
        float, Setting("The cosine's last learning rate as a share of the highest.", ge=0, le=1, group=SCHEDULE)
    ] = 0.01
    momentum: Annotated[float, Setting("SGD's momentum, AdamW's β₁.", ge=0, lt=1, group=OPTIMIZER)] = 0.9
    weight_decay: Annotated[
        float | None,
        Setting(
            "Decay of convolution kernels; γ, β and biases have none.",
            ge=0,
            default="0.02 with adamw, 0.0005 with sgd",
            group=OPTIMIZER,
        ),
    ] = None
    warmup_fraction: Annotated[
        float, Setting("Share of the run over which the learning rate rises from zero.", ge=0, le=1, group=SCHEDULE)
    ] = 0.03
    ema_fraction: Annotated[
        float,
        Setting(
            "Length of the weights' moving average as a share of the run; 0: no average.", ge=0, le=1, group=OPTIMIZER
        ),
    ] = 0.02
    clip_norm: Annotated[float, Setting("Largest L2 norm of the gradient; 0: no limit.", ge=0, group=OPTIMIZER)] = 10.0
    close_mosaic_fraction: Annotated[
        float, Setting("Share of the run, at its end, without mosaic.", ge=0, le=1, group=DATA)
    ] = 0.2
    patience: Annotated[
        int,
        Setting(
            "Stop after so many validations without a better AP50 (mean of three); 0: never.", ge=0, group=VALIDATION
        ),
    ] = 0
    rectangular: Annotated[
        bool,
        Setting("Validate on images padded to multiples of 32 px instead of to the whole input.", group=VALIDATION),
    ] = False
    agnostic_nms: Annotated[bool, Setting("Validate with NMS over all classes together.", group=VALIDATION)] = False
    workers: Annotated[
        int | None,
        Setting(
            "Processes that load images; 0 loads in the training process.",
            ge=0,
            le=MOST_PROCESSES,
            default="one per core on CUDA, up to 16, else 0",
            group=RUN,
            resumable=True,
        ),
    ] = None
    val_interval: Annotated[
        int,
        Setting(
            "Validate every so many epochs, and after the last one; 0: never, and the last epoch is the best.",
            ge=0,
            unit="epochs",
            group=VALIDATION,
        ),
    ] = 1
    goal: Annotated[
        float | None, Setting("Stop once a validation reaches this AP50.", ge=0, le=1, group=VALIDATION)
    ] = None
    save_minutes: Annotated[
        float,
        Setting(
            "Write last.pt so often within an epoch; after every epoch it is written anyway.",
            ge=0,
            unit="minutes",
            group=RUN,
            resumable=True,
        ),
    ] = 10.0
    max_minutes: MaxMinutes = None
    tensorboard: Annotated[
        bool, Setting("Write results and images for TensorBoard too.", group=RUN, resumable=True)
    ] = False
    augment: Annotated[AugmentConfig, Setting("How training images are varied.")] = field(default_factory=AugmentConfig)
    loss: Annotated[LossConfig, Setting("How the loss is made up.")] = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        """Raise if two settings contradict each other.

        Raises:
            ConfigError: names one of them.
        """
        if self.batch_size % self.accumulate:
            right = f"use a divisor of {self.batch_size}, the batch size"
            raise ConfigError(f"{self.accumulate} equal parts cannot be made", where="accumulate", right=right)
        if self.auto_anchors and self.cfg is None and self.weights is not None and self.weights.suffix == ".pt":
            raise ConfigError(
                "a checkpoint's heads were trained with its own anchors",
                where="auto_anchors",
                right=f"leave it out, or start from other weights than {self.weights}",
            )
        if self.cfg is None and self.weights is not None and is_darknet_weights(self.weights):
            what = f"{self.weights} does not say of which network it is"
            raise ConfigError(what, where="weights", right="name its cfg as well, such as --cfg yolov3-tiny-hand")
        for name in ("sparsity_plan", "remove"):
            if getattr(self, name) and self.sparsity != AUTO:
                raise ConfigError("applies only to sparsity auto", where=name, right="leave it out")
        if self.is_sparse:
            self._check_sparsity()

    @property
    def detection(self) -> DetectConfig:
        """What counts as a detection in validation."""
        return DetectConfig(agnostic_nms=self.agnostic_nms)

    @property
    def is_sparse(self) -> bool:
        """Whether the run trains with γ sparsity, so that channels end at zero."""
        return self.sparsity == AUTO or self.sparsity > 0

    @property
    def pulls_gammas(self) -> bool:
        """Whether λ moves γ towards zero. `auto` with AdamW needs no λ: AdamW's squared gradients rank the channels."""
        return self.is_sparse and not (self.sparsity == AUTO and self.optimizer == "adamw")

    @property
    def removal_plan(self) -> PlanConfig:
        """How many channels `auto` sets to zero, and which it keeps."""
        return self.sparsity_plan or PlanConfig(ratio=self.sparsity_ratio)

    def _check_sparsity(self) -> None:
        if self.sparsity_rest == 1:
            raise ConfigError("leaves λ no time", where="sparsity_rest", right="use a smaller share")
        for name, is_given in (("goal", self.goal is not None), ("patience", self.patience > 0)):
            if is_given:
                right = (
                    "leave it out: a run with γ sparsity must reach its last epoch, which has the most channels at zero"
                )
                raise ConfigError("does not go with sparsity", where=name, right=right)
