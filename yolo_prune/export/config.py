"""Settings of `export`."""

from __future__ import annotations

from typing import Annotated, Literal

from yolo_prune.config import Setting, settings
from yolo_prune.errors import ConfigError
from yolo_prune.shared_settings import ImgSize, PathSetting, Words

FORMATS = {
    "darknet": ".weights",
    "pytorch-yolov3": ".pth",
    "onnx": ".onnx",
    "openvino": ".xml",
}
"""The formats, and the suffix of each one's file."""
RUN = ("onnx", "openvino")
"""Formats that are run by themselves, with decoding inside."""
FILES, INSIDE, CHECK = "Files", "What is inside", "Check"


@settings
class ExportConfig:
    """What `export` writes."""

    format: Annotated[
        Words,
        Setting(
            "One or several of darknet (cfg and .weights), pytorch-yolov3 (a state dict, .pth, as other PyTorch implementations read it), "
            "onnx and openvino (with decoding inside).",
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
        Literal["fp32", "fp16"] | None,
        Setting(
            "Of the weights, in onnx and openvino; decoding stays in fp32.",
            default="fp16 in openvino, else fp32",
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
    fold: Annotated[
        bool,
        Setting(
            "Fold batch norm in darknet and pytorch-yolov3, so that OpenCV and every Darknet give the same outputs; "
            "elsewhere it always is.",
            group=INSIDE,
        ),
    ] = False
    verify: Annotated[
        bool, Setting("Compare the outputs of onnx and openvino files with the checkpoint's, on images.", group=CHECK)
    ] = True
    data: Annotated[
        PathSetting | None,
        Setting("A data.yaml whose images are compared on.", default="the checkpoint's, else noise", group=CHECK),
    ] = None

    def __post_init__(self) -> None:
        """Raise ConfigError if a format is unknown or given twice, or a setting has no meaning for the formats."""
        for one in self.format:
            if one not in FORMATS:
                raise ConfigError(f"unknown format {one}", where="format", right=f"use one of {', '.join(FORMATS)}")
        if len(set(self.format)) < len(self.format):
            raise ConfigError("names a format twice", where="format", right="name each once")
        given = {
            "precision": self.precision is not None,
            "dynamic": self.dynamic != "none",
            "layout": self.layout != "yoloprune",
        }
        for key, is_given in given.items():
            if is_given and not set(self.formats) & set(RUN):
                what = f"has no meaning for {' and '.join(self.formats)}"
                raise ConfigError(what, where=key, right=f"leave it out, or use --format {' or '.join(RUN)}")

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats to write.

        Raises:
            ConfigError: none is given, and the suffix of `out` is that of none.
        """
        suffix = "" if self.out is None else self.out.suffix
        if self.format or not suffix:
            return self.format or ("darknet",)
        found = [name for name, own in FORMATS.items() if own == suffix]
        if not found:
            right = f"use {', '.join(FORMATS.values())}, or name the --format"
            raise ConfigError(f"{suffix} is the suffix of no format", where="out", right=right)
        return (found[0],)
