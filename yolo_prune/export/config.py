"""Settings of `export`."""

from __future__ import annotations

from typing import Annotated, Literal

from yolo_prune.config import Setting, settings
from yolo_prune.errors import ConfigError
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.export.formats import FORMATS, SUFFIXES, find_format, list_formats_with
from yolo_prune.shared_settings import Force, ImgSize, PathSetting, Words

FILES, INSIDE, CHECK = "Files", "What is inside", "Check"


@settings
class ExportConfig:
    """What `export` writes."""

    format: Annotated[
        Words,
        Setting(
            f"One or several of {', '.join(FORMATS)}. Decoding is inside all but the first two, which are weights for Darknet and for "
            "other PyTorch implementations.",
            default="by the suffix of --out, else darknet",
            group=FILES,
        ),
    ] = ()
    out: Annotated[
        PathSetting | None,
        Setting(
            "Where to write: A makes A.cfg and A.weights, A.onnx or A.xml.",
            default="beside the checkpoint",
            group=FILES,
        ),
    ] = None
    card: Annotated[
        bool, Setting("Write a model card (A.md), and an example in Python beside files that run.", group=FILES)
    ] = True
    img_size: Annotated[
        ImgSize | None,
        Setting(
            "Size of the input: the side of a square, or WIDTHxHEIGHT.",
            unit="px",
            default="the checkpoint's",
            group=INSIDE,
        ),
    ] = None
    precision: Annotated[
        Literal["fp32", "fp16", "int8"] | None,
        Setting(
            "fp32 or fp16 weights, or int8 weights and activations, measured on training images; decoding stays in fp32.",
            default="fp16 in openvino, ncnn and coreml, else fp32",
            group=INSIDE,
        ),
    ] = None
    dynamic: Annotated[
        Literal["none", "batch", "size"],
        Setting("batch: any number of images at a time; size: any multiples of 32 px as well.", group=INSIDE),
    ] = "none"
    layout: Annotated[
        Literal["yoloprune", "ultralytics"],
        Setting("yoloprune: boxes and scores; ultralytics: one output, as its tools read it.", group=INSIDE),
    ] = "yoloprune"
    nms: Annotated[bool, Setting("Put NMS inside: one output of detections, the best first.", group=INSIDE)] = False
    detection: Annotated[DetectConfig, Setting("What NMS keeps.", group=INSIDE)] = DetectConfig()
    calibration_images: Annotated[
        int, Setting("Training images that the ranges of int8 are measured on.", ge=1, group=INSIDE)
    ] = 300
    fold: Annotated[
        bool,
        Setting(
            "Fold batch norm in darknet and pytorch-yolov3, so that OpenCV and every Darknet give the same outputs; "
            "elsewhere it always is.",
            group=INSIDE,
        ),
    ] = False
    verify: Annotated[
        bool, Setting("Compare the outputs of files that run with the checkpoint's, on images.", group=CHECK)
    ] = True
    verify_map: Annotated[
        bool, Setting("Score files that run, too, and show the difference to the checkpoint.", group=CHECK)
    ] = False
    data: Annotated[
        PathSetting | None,
        Setting(
            "A data.yaml: its validation images are compared on, its training images measured on for int8.",
            default="the checkpoint's, else noise",
            group=CHECK,
        ),
    ] = None

    force: Force = False

    def __post_init__(self) -> None:
        """Raise ConfigError if a format is unknown or given twice, or a setting has no meaning for the formats."""
        for one in self.format:
            if one not in FORMATS:
                raise ConfigError(f"unknown format {one}", where="format", right=f"use one of {', '.join(FORMATS)}")
        if len(set(self.format)) < len(self.format):
            raise ConfigError("names a format twice", where="format", right="name each once")
        given = {"precision": self.precision, "dynamic": self.dynamic, "layout": self.layout}
        defaults = {"precision": None, "dynamic": "none", "layout": "yoloprune"}
        for key, value in given.items():
            if value != defaults[key]:
                self._check(key, str(value), list_formats_with(key, value))
        if self.nms:
            self._check("nms", "", [name for name, form in FORMATS.items() if form.has_nms])

    def _check(self, key: str, value: str, allowed: list[str]) -> None:
        wrong = [name for name in self.formats if name not in allowed]
        if wrong:
            what = f"{value} has no meaning for {' and '.join(wrong)}".strip()
            raise ConfigError(what, where=key, right=f"leave it out, or use --format {' or '.join(allowed)}")

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats to write.

        Raises:
            ConfigError: none is given, and the suffix of `out` is that of none.
        """
        if self.format or self.out is None:
            return self.format or ("darknet",)
        found = find_format(self.out.name)
        if found is None and self.out.suffix:
            right = f"use {', '.join(SUFFIXES)}, or name the --format"
            raise ConfigError(f"{self.out.suffix} is the suffix of no format", where="out", right=right)
        return (found or "darknet",)
