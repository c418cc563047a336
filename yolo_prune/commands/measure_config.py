"""Settings of the commands that measure: evaluate, detect, bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from yolo_prune.config import RUN, Setting, settings
from yolo_prune.errors import ConfigError
from yolo_prune.evaluation.config import AGNOSTIC, DetectConfig
from yolo_prune.shared_settings import (
    MOST_IMAGES,
    MOST_PROCESSES,
    ONE_OR_SEVERAL,
    Device,
    Force,
    ImgSize,
    PathSetting,
    TableEngine,
    WholeNumbers,
    Words,
)

ClassMap = Annotated[
    Words,
    Setting(
        "Classes that the data set calls by another name, as NETWORK=DATA,…: car=vehicle,truck=vehicle.",
        flag="--map",
        group="Data",
    ),
]

AgnosticNms = Annotated[bool, Setting(AGNOSTIC, group="Detection")]
AllClasses = Annotated[
    bool,
    Setting(
        "Print all of many classes, not only those with the lowest AP and those with the most objects; --json always has all.",
        group="Results",
    ),
]

ENGINES = (
    *("eager", "folded", "compile", "compile-max", "cudagraph", "sparse", "half", "half-2:4"),
    *("onnxruntime", "openvino", "ncnn", "litert", "executorch", "pt2"),
)
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
TIMED = "What is timed"
OUTPUT = "Output"

DataOfCheckpoint = Annotated[PathSetting | None, Setting("A data.yaml.", default="the checkpoint's", group="Data")]
OwnImgSize = Annotated[
    ImgSize | None,
    Setting(
        "Size of the input: the side of a square, or WIDTHxHEIGHT.",
        unit="px",
        default="each checkpoint's",
        group="Data",
    ),
]


@settings
class EvaluateConfig:
    """What checkpoints and files of detections are scored on, and what is left beside the scores."""

    data: Annotated[PathSetting | None, Setting("A data.yaml.", default="the first checkpoint's", group="Data")] = None
    split: Annotated[str, Setting("Split to score on.", group="Data")] = "val"
    subset: Annotated[
        PathSetting | None,
        Setting("A text file of image paths, relative to the data set, to score on.", flag="--list", group="Data"),
    ] = None
    annotations: Annotated[
        PathSetting | None,
        Setting(
            "COCO annotations whose ids of images and classes the detections use.",
            default="images by their path, classes by their index",
            group="Data",
        ),
    ] = None
    class_map: ClassMap = ()
    agnostic_nms: AgnosticNms = False
    img_size: OwnImgSize = None
    device: Device = "auto"
    save_detections: Annotated[
        PathSetting | None, Setting("File for the checkpoint's detections as COCO results.", group="Results")
    ] = None
    curves: Annotated[
        PathSetting | None, Setting("PNG file for precision, recall and F1, and recall by size.", group="Results")
    ] = None
    plots: Annotated[
        PathSetting | None,
        Setting(
            "Folder for plots: confusion.png, the confusion matrix, and class_curves.png, precision over recall, and F1, precision and recall "
            "over the confidence, of every class; curves.png, as by --curves; and with --worst these images, truth and detections side by side.",
            group="Results",
        ),
    ] = None
    force: Force = False
    worst: Annotated[
        int, Setting("List so many images with the most loss (docs/evaluation.md).", ge=0, group="Results")
    ] = 0
    all_classes: AllClasses = False

    def __post_init__(self) -> None:
        """Raise ConfigError if the curves' file is no PNG."""
        if self.curves is not None and self.curves.suffix.lower() != ".png":
            raise ConfigError(f"{self.curves} is no PNG file", where="curves", right="name a file that ends in .png")


@settings
class DetectRunConfig(DetectConfig):
    """What `detect` draws and writes, and where."""

    confidence: Annotated[float, Setting("Scores below this are dropped.", ge=0, le=1)] = 0.25
    classes: Annotated[Words, ONE_OR_SEVERAL, Setting("Only these classes, by name or number.", default="all")] = ()
    stride: Annotated[
        int, Setting("Step between the frames of videos and streams that are taken; 1 takes all.", ge=1)
    ] = 1
    max_minutes: Annotated[
        float | None,
        Setting("Stop a video or stream after so long, with exit code 124.", ge=0, unit="minutes", group=RUN),
    ] = None
    out: Annotated[
        PathSetting | None,
        Setting(
            "Folder for annotated images and videos, detections.json and detections.jsonl.",
            default="runs/detect",
            group=OUTPUT,
        ),
    ] = None
    save: Annotated[bool, Setting("Write annotated images and videos beside the JSON.", group=OUTPUT)] = True
    force: Force = False
    show: Annotated[
        bool, Setting("Show them in a window; q, Esc or closing it stops, any key shows the next image.", group=OUTPUT)
    ] = False
    img_size: Annotated[
        ImgSize | None,
        Setting("Size of the input: the side of a square, or WIDTHxHEIGHT.", unit="px", default="the checkpoint's"),
    ] = None
    engine: Annotated[
        Literal["eager", "folded", "sparse", "cudagraph", "onnxruntime", "openvino", "ncnn"],
        Setting("What runs a checkpoint, as in bench; an exported file runs in its own."),
    ] = "folded"
    batch_size: Annotated[
        int | None,
        Setting("Images that go through the network at a time.", ge=1, le=MOST_IMAGES, default="16 on CUDA, else 1"),
    ] = None
    device: Device = "auto"


@settings
class MeasurementConfig:
    """How checkpoints are timed and scored."""

    data: DataOfCheckpoint = None
    split: Annotated[
        str | None, Setting("Split to score on.", default="test where there is one, else val", group="Data")
    ] = None
    class_map: ClassMap = ()
    lineage: Annotated[bool, Setting("Bench the checkpoints that each was made from as well.", group="Data")] = False
    score: Annotated[bool, Setting("Measure mAP as well as cost and speed.", group="Data")] = True
    img_size: OwnImgSize = None
    device: Device = "auto"
    engine: Annotated[
        Words,
        ONE_OR_SEVERAL,
        Setting(
            "One or several, each of which runs every checkpoint. eager: the network as trained; folded: batch norm folded into the convolutions; compile: folded, by torch.compile; compile-max: "
            "the same with max-autotune; cudagraph: folded, as one CUDA graph; sparse: folded, zero weights skipped, on the CPU; half: folded, "
            "in float16, on CUDA; half-2:4: the same, weights pruned 2:4 skipped in 1×1 convolutions; onnxruntime, openvino: exported, on the CPU.",
            group=TIMED,
        ),
    ] = ("folded",)
    precision: Annotated[
        Words,
        ONE_OR_SEVERAL,
        Setting(
            "In what the engines compute, one or several of fp32, tf32, bf16, fp16; tf32 and fp16 on CUDA.",
            default="fp16 with half, else fp32",
            group=TIMED,
        ),
    ] = ()
    batch_size: Annotated[
        WholeNumbers, ONE_OR_SEVERAL, Setting("Images per timed call, one number or several.", group=TIMED)
    ] = (1,)
    runs: Annotated[int, Setting("Timed calls of each checkpoint, interleaved.", ge=1, group=TIMED)] = 30
    warmup: Annotated[int, Setting("Calls of each checkpoint before the timed ones.", ge=0, group=TIMED)] = 5
    clock: Annotated[
        Literal["wall", "cpu"] | None,
        Setting(
            "wall: the time that passes; cpu: the time that the process computes, for one thread on a busy machine.",
            default="cpu with one thread where other processes want more than the cores, else wall",
            group=TIMED,
        ),
    ] = None
    threads: Annotated[
        WholeNumbers,
        ONE_OR_SEVERAL,
        Setting(
            "CPU threads while timing, one number or several.",
            default="one per core that others leave free",
            group=TIMED,
        ),
    ] = ()
    agnostic_nms: AgnosticNms = False

    def __post_init__(self) -> None:
        """Raise ConfigError if an engine or a precision is unknown, a number is below 1, or one is given twice."""
        for name, known in (("engine", ENGINES), ("precision", PRECISIONS)):
            for word in getattr(self, name):
                if word not in known:
                    raise ConfigError(f"unknown {name} {word}", where=name, right=f"use one of {', '.join(known)}")
        for name, most in (("batch_size", MOST_IMAGES), ("threads", MOST_PROCESSES)):
            for number in getattr(self, name):
                if not 1 <= number <= most:
                    right = f"use whole numbers from 1 to {most}"
                    raise ConfigError(f"{number} is out of range", where=name, right=right)
        for name, fewest in (("engine", 1), ("precision", 0), ("batch_size", 1), ("threads", 0)):
            given = getattr(self, name)
            if len(set(given)) < max(fewest, len(given)):
                raise ConfigError("names one twice, or none", where=name, right="name each once")


@settings
class BenchConfig(MeasurementConfig):
    """How checkpoints are timed and scored, and what is left beside the table."""

    all_classes: AllClasses = False
    report: Annotated[
        PathSetting | None,
        Setting("HTML file for a page of the figures, with plots, curves and images.", default="none", group="Results"),
    ] = None
    force: Force = False

    def __post_init__(self) -> None:
        """Raise ConfigError if the page's file is no HTML file, or as MeasurementConfig."""
        super().__post_init__()
        _check_page(self.report, "report")


@settings
class ReportConfig(MeasurementConfig):
    """What is measured for the page, and what is on it."""

    images: Annotated[
        int,
        Setting("Images with detections before and after, and as many with mistakes.", ge=0, le=48, group="Results"),
    ] = 6
    out: Annotated[
        PathSetting | None, Setting("HTML file to write.", default="runs/report/report.html", group="Results")
    ] = None
    force: Force = False

    def __post_init__(self) -> None:
        """Raise ConfigError if the page's file is no HTML file, or as MeasurementConfig."""
        super().__post_init__()
        _check_page(self.out, "out")


def _check_page(path: Path | None, name: str) -> None:
    if path is not None and path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{path} is no HTML file", where=name, right="name a file that ends in .html")


@settings
class ProfileConfig:
    """How the layers of networks are timed."""

    engine: Annotated[
        TableEngine,
        Setting("What runs the layers; onnxruntime and openvino on the CPU.", group=TIMED),
    ] = "folded"
    img_size: OwnImgSize = None
    device: Device = "auto"
    threads: Annotated[
        int | None,
        Setting(
            "CPU threads while timing.",
            ge=1,
            le=MOST_PROCESSES,
            default="one per core that others leave free",
            group=TIMED,
        ),
    ] = None
    plot: Annotated[PathSetting | None, Setting("Plot to write, a .png, .svg or .pdf.", default="none")] = None
    force: Force = False
