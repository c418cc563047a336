"""Settings of the commands that make, import and export Darknet's files."""

from __future__ import annotations

from typing import Annotated, Literal

from yolo_prune.config import Setting, settings
from yolo_prune.image_size import ImageSize
from yolo_prune.shared_settings import MOST_IMAGES, Force, ImgSize, Numbers, PathSetting, Seed, Words

Arch = Literal["yolov3", "yolov3-spp", "yolov3-tiny", "yolov4", "yolov4-tiny"]


@settings
class CfgConfig:
    """The network that `cfg make` writes."""

    arch: Annotated[Arch, Setting("The network's architecture.")] = "yolov3"
    classes: Annotated[int, Setting("Classes to tell apart.", ge=1)] = 1
    width: Annotated[float, Setting("Factor on every convolution's filters but the heads'.", gt=0, le=8)] = 1.0
    img_size: Annotated[ImgSize, Setting("Size of the input: the side of a square, or WIDTHxHEIGHT.", unit="px")] = (
        ImageSize(416, 416)
    )
    anchors: Annotated[
        Numbers | None,
        Setting("Anchors in pixels of that input, as width,height pairs: 10,14,23,27.", default="COCO's, scaled"),
    ] = None
    out: Annotated[PathSetting | None, Setting("File to write.", default="stdout")] = None
    force: Force = False


@settings
class ShowConfig:
    """How `cfg show` measures a network."""

    batch_size: Annotated[int, Setting("Images at once, for the estimate of memory.", ge=1, le=MOST_IMAGES)] = 16
    img_size: Annotated[
        ImgSize | None,
        Setting("Size of the input: the side of a square, or WIDTHxHEIGHT.", unit="px", default="the cfg's own"),
    ] = None


@settings
class ImportConfig:
    """What `import` adds to a Darknet cfg."""

    weights: Annotated[
        PathSetting | None,
        Setting(
            "Darknet .weights, or a state dict (.pt, .pth) of another PyTorch implementation.", default="random numbers"
        ),
    ] = None
    prefix: Annotated[
        bool, Setting("The .weights may hold the first layers alone; so may a file named NAME.conv.N without this.")
    ] = False
    names: Annotated[
        Words | None, Setting("The classes' names, hand,foot, or a file with one per line.", default="their numbers")
    ] = None
    out: Annotated[PathSetting | None, Setting("File to write.", default="runs/import/CFG.pt")] = None
    seed: Seed = 0
    force: Force = False
