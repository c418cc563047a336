"""The sound files that cases are made of: all are made here, by the package and the tests' own helpers."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from networks import randomise_
from paths import FILES
from PIL import Image
from tiny import SIDE, TINY_CFG
from vgg_archive import make_files, write_archive
from videos import write_video

from fuzzing.case import Case
from fuzzing.command import run_command
from yolo_prune.darknet.cfg import parse_cfg
from yolo_prune.datasets.config import SyntheticConfig
from yolo_prune.datasets.synthetic.dataset import make_dataset
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.model.weights import save_weights
from yolo_prune.training import report

RUN = {
    "name": "whole",
    "data": "hands/data.yaml",
    "device": "cpu",
    "train": {"cfg": "tiny.cfg", "epochs": 1, "batch_size": 4},
    "sparse": {"epochs": 1, "batch_size": 4, "sparsity": 0.5},
    "prune": {"ratio": 0.5, "effort": 1, "recalibrate": 4, "images": 4},
    "finetune": {"epochs": 1, "batch_size": 4},
    "bench": {"runs": 1, "warmup": 0, "threads": [1]},
}
"""The smallest whole study."""


def make_base(folder: Path, parts: set[str]) -> Path:
    """Write the sound files into a new folder, in a child that leaves no thread behind, and return the folder."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            folder.mkdir(parents=True)
            os.chdir(folder)
            report._draw_results = lambda path, rows: None  # the plot takes longer than the training
            for name in ("data", *sorted(parts - {"data"})):
                PARTS[name]()
            code = 0
        except BaseException:  # noqa: BLE001  # a child must not go on as its parent
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the sound files could not be made")
    return folder


def yoloprune(*words: str) -> None:
    """Run a command that must succeed."""
    outcome = run_command(Case(words))
    if outcome.code:
        raise RuntimeError(f"{' '.join(words)}: {outcome.err} {outcome.trace}")


def _make_data() -> None:
    """Images and labels in every format, a network, and its weights in every format but exported ones."""
    make_dataset(Path("hands"), SyntheticConfig(train=4, val=2, test=2, size_px=SIDE), workers=1)
    Path("tiny.cfg").write_text(TINY_CFG)
    Path("a.names").write_text("hand\n")
    Path("run.yaml").write_text(yaml.safe_dump(RUN))
    Path("set.names").write_text("hand\n")
    lists = {split: sorted(Path("hands/images", split).iterdir()) for split in ("train", "val")}
    for split, images in lists.items():
        Path(f"{split}.txt").write_text("".join(f"{image}\n" for image in images))
    Path("set.data").write_text("classes = 1\ntrain = train.txt\nvalid = val.txt\nnames = set.names\n")
    Path("listed.yaml").write_text("path: .\ntrain: train.txt\nval: [val.txt, hands/images/test]\nnames: {0: hand}\n")
    model = randomise_(Detector(parse_cfg(TINY_CFG, "tiny.cfg")), 0, double=False)
    plain = Checkpoint(model.network, model.state_dict(), ("hand",), {"stage": "train", "metrics": {"ap50": 0.5}})
    save_checkpoint(Path("plain.pt"), plain)
    save_weights(model, Path("tiny.weights"))
    Path("tiny.conv.3").write_bytes(
        Path("tiny.weights").read_bytes()[: 20 + 4 * (4 * 8 + 216 + 4 * 8 + 576 + 4 * 4 + 32)]
    )
    yoloprune("export", "plain.pt", "--format", "pytorch-yolov3", "--out", "foreign.pth")
    state = torch.load("foreign.pth", weights_only=True)
    torch.save({"epoch": 3, "model": state, "best": np.float64(0.5)}, "nested.pt")
    torch.save(state, "legacy.pth", _use_new_zipfile_serialization=False)
    with torch.no_grad():
        for _, tensor in zip(range(40), model.parameters(), strict=False):
            tensor[torch.rand(tensor.shape, generator=torch.Generator().manual_seed(1)) < 0.9] = 0
    save_checkpoint(Path("packed.pt"), replace(plain, state=model.state_dict()))
    for name in ("last-0.1.0.pt", "pruned-0.1.0.pt"):
        shutil.copyfile(FILES / name, name)
    _make_images(Path("pictures"))


def _make_images(folder: Path) -> None:
    folder.mkdir()
    image = Image.open(sorted(Path("hands/images/train").iterdir())[0])
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    image.save(folder / "turned.jpg", exif=exif)
    image.save(folder / "turned.webp", exif=exif)
    image.save(folder / "turned.tif", exif=exif)
    image.save(folder / "packed.tif", compression="tiff_lzw")
    image.save(folder / "progressive.jpg", progressive=True)
    image.save(folder / "lossless.webp", lossless=True)
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("P").save(folder / "palette.gif")
    image.convert("L").save(folder / "grey.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    for suffix in ("png", "bmp", "ppm", "jp2"):
        image.save(folder / f"plain.{suffix}")
    cv2.imwrite(str(folder / "deep.png"), np.asarray(image)[..., ::-1].astype(np.uint16) * 257)


def _make_sets() -> None:
    """The images as COCO and VOC sets, detections of them, and an archive as the Visual Geometry Group's."""
    yoloprune("data", "convert", "hands/data.yaml", "--to", "coco", "--out", "coco")
    yoloprune("data", "convert", "hands/data.yaml", "--to", "voc", "--out", "voc")
    values = json.loads(Path("coco/annotations/val.json").read_text())
    first = values["annotations"][0] if values["annotations"] else {}
    sides = [values["images"][0][key] for key in ("height", "width")]
    more = {"bbox": None, "image_id": 1, "category_id": 1, "iscrowd": 1}
    values["annotations"] += [
        {**first, **more, "id": 97, "segmentation": [[1, 1, 20, 1, 20, 20, 1, 20]]},
        {**first, **more, "id": 98, "segmentation": {"size": sides, "counts": [5, 20, sides[0] * sides[1] - 25]}},
    ]
    Path("coco/annotations/masks.json").write_text(json.dumps(values))
    rows = [
        {"image_id": f"images/val/{path.name}", "category_id": 0, "bbox": [1.5, 2, 20, 20], "score": 0.5}
        for path in sorted(Path("hands/images/val").iterdir())
    ]
    Path("detections.json").write_text(json.dumps(rows))
    numbered = [{**row, "image_id": number, "category_id": 1} for number, row in enumerate(rows, 1)]
    Path("numbered.json").write_text(json.dumps(numbered))
    files = make_files()
    write_archive(Path("hand_dataset.tar.gz"), files)
    for name, content in files.items():
        if name.endswith((".mat", ".jpg")):
            path = Path("archive", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _make_videos() -> None:
    write_video(Path("clip.mp4"), 6)
    write_video(Path("clip.avi"), 6, codec="MJPG")
    write_video(Path("clip.mkv"), 6)


def _make_runs() -> None:
    """A whole study, and a run of every command that can be resumed."""
    yoloprune("run", "run.yaml")
    train = ("--data", "hands/data.yaml", "--epochs", "2", "--batch-size", "4", "--workers", "0", "--device", "cpu")
    yoloprune("train", "--cfg", "tiny.cfg", *train)
    yoloprune(
        "sensitivity", "runs/train/best.pt", "--images", "2", "--criterion", "l2", "--ratios", "0.5", "--device", "cpu"
    )
    yoloprune("plan", "runs/train/best.pt", "--criterion", "l2", "--ratio", "0.5", "--device", "cpu")
    yoloprune("prune", "runs/train/best.pt", "--ratio", "0.5", "--effort", "1", "--recalibrate", "4", "--device", "cpu")
    yoloprune("iterate", "runs/train/best.pt", "--target-params", "0.8", "--device", "cpu")
    last = load_checkpoint(Path("runs/train/last.pt"))
    save_checkpoint(
        Path("stopped.pt"),
        replace(last, training={**last.training, "is_done": False, "epoch": 1, "rows": last.training["rows"][:1]}),
    )
    yoloprune("data", "check", "hands/data.yaml", "--out", "checked")


def _make_exported() -> None:
    for suffix in ("onnx", "xml", "ncnn.param", "pt2"):
        yoloprune("export", "plain.pt", "--out", f"exported/tiny.{suffix}", "--no-verify", "--img-size", "64")


def read_all(*paths: Path) -> list[bytes]:
    """Return the contents of files."""
    return [path.read_bytes() for path in paths]


def save_tensors(content: object) -> bytes:
    """Return what `torch.save` writes."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


PARTS: dict[str, Callable[[], None]] = {
    "data": _make_data,
    "sets": _make_sets,
    "videos": _make_videos,
    "runs": _make_runs,
    "exported": _make_exported,
}
