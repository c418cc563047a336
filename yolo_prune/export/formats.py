"""The formats that `export` writes, and what may be asked for in each: facts alone, imported without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Format:
    """What is known of a format."""

    suffix: str
    """The end of its file's name."""
    runs_in: str
    """What reads its files, in words."""
    beside: tuple[str, ...] = ()
    """The ends of the names of further files that belong to it."""
    precisions: tuple[str, ...] = ()
    """Types of the weights, the default first; empty for formats of weights alone, which hold float32."""
    dynamic: tuple[str, ...] = ("none",)
    """What may change from call to call."""
    layouts: tuple[str, ...] = ("yoloprune",)
    """Names of the layouts of its outputs."""
    has_nms: bool = False
    """Whether NMS can be inside."""
    is_run_here: bool = True
    """Whether a file can be run on this kind of machine, to be compared and benched."""

    @property
    def holds_network(self) -> bool:
        """Whether a file runs by itself, with decoding inside."""
        return bool(self.precisions)


FORMATS = {
    "darknet": Format(".weights", "Darknet, OpenCV 4"),
    "pytorch-yolov3": Format(".pth", "other PyTorch implementations"),
    "onnx": Format(
        ".onnx",
        "ONNX Runtime, OpenCV 5, TensorRT and others",
        precisions=("fp32", "fp16", "int8"),
        dynamic=("none", "batch", "size"),
        layouts=("yoloprune", "ultralytics"),
        has_nms=True,
    ),
    "openvino": Format(
        ".xml",
        "OpenVINO",
        beside=(".bin",),
        precisions=("fp16", "fp32", "int8"),
        dynamic=("none", "batch", "size"),
        layouts=("yoloprune", "ultralytics"),
        has_nms=True,
    ),
    "ncnn": Format(".ncnn.param", "ncnn", beside=(".ncnn.bin", ".ncnn.json"), precisions=("fp16", "fp32")),
    "litert": Format(".tflite", "LiteRT (TensorFlow Lite)", precisions=("fp32", "int8")),
    "executorch": Format(".pte", "ExecuTorch, with XNNPACK", precisions=("fp32",)),
    "pt2": Format(
        ".pt2",
        "PyTorch, `torch.export.load`",
        precisions=("fp32",),
        dynamic=("none", "batch", "size"),
        layouts=("yoloprune", "ultralytics"),
    ),
    "coreml": Format(
        ".mlpackage",
        "Core ML, on Apple's systems; it was converted, and not run",
        precisions=("fp16", "fp32"),
        is_run_here=False,
    ),
}
"""By their names."""
SUFFIXES = {form.suffix: name for name, form in FORMATS.items()}
"""The format of each suffix."""


def find_format(name: str) -> str | None:
    """Return the format that the end of a file's name stands for, or None."""
    return next((format for suffix, format in SUFFIXES.items() if name.endswith(suffix)), None)


def measure_bytes(path: Path) -> int:
    """Return the size of a file, or folder, and of those beside it that belong to its format."""
    format = find_format(path.name)
    suffixes = () if format is None else FORMATS[format].beside
    stem = path.name.removesuffix("" if format is None else FORMATS[format].suffix)
    parts = [path, *(path.with_name(stem + suffix) for suffix in suffixes)]
    inner = [file for part in parts for file in (part.rglob("*") if part.is_dir() else [part])]
    return sum(file.stat().st_size for file in inner if file.is_file())


def list_formats_with(key: str, value: object) -> list[str]:
    """Return the names of the formats that allow a value of the setting `precision`, `dynamic` or `layout`."""
    field = {"precision": "precisions", "dynamic": "dynamic", "layout": "layouts"}[key]
    return [name for name, form in FORMATS.items() if form.holds_network and value in getattr(form, field)]
