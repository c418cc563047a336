"""Data sets and checkpoints of several classes, made from the tiny ones of a single class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from networks import randomise_
from tiny import TINY_CFG

from yolo_prune.darknet.cfg import parse_cfg
from yolo_prune.datasets.images import read_header
from yolo_prune.datasets.labels import load_objects
from yolo_prune.datasets.spec import load_spec
from yolo_prune.model.checkpoint import Checkpoint, save_checkpoint
from yolo_prune.model.detector import Detector


def make_cfg(classes: int) -> str:
    """Return the text of the tiny network's cfg with so many classes."""
    return TINY_CFG.replace("filters=12\n", f"filters={2 * (5 + classes)}\n").replace("classes=1", f"classes={classes}")


def make_data(hands: Path, folder: Path, names: list[str], empty: int = 0) -> Path:
    """Copy the drawn hands with objects of several classes in turn, the last `empty` classes without any; return its data.yaml."""
    shutil.copytree(hands.parent, folder)
    number = 0
    for path in sorted(folder.glob("labels/*/*.txt")):
        lines = []
        for line in path.read_text().splitlines():
            lines.append(f"{number % (len(names) - empty)} {line.partition(' ')[2]}")
            number += 1
        path.write_text("".join(f"{line}\n" for line in lines))
    data = folder / "data.yaml"
    splits = "".join(f"{split}: images/{split}\n" for split in ("train", "val", "test"))
    data.write_text(f"path: .\n{splits}names: {json.dumps(names)}\n")
    return data


def make_checkpoint(path: Path, data: Path, names: list[str]) -> Path:
    """Write a checkpoint of random weights that names a data set."""
    network = parse_cfg(make_cfg(len(names)))
    model = randomise_(Detector(network), 0, double=False)
    provenance = {"stage": "train", "data": {"path": str(data.resolve())}}
    return save_checkpoint(path, Checkpoint(network, model.state_dict(), tuple(names), provenance=provenance))


def write_results(path: Path, data: Path, split: str, score: float = 0.9, every: int = 1) -> Path:
    """Write COCO results that are the labels of a split, without every `every`-th, if that is above 1; return the path."""
    spec, rows, number = load_spec(data), [], 0
    for sample in spec.samples(split):
        header = read_header(sample.image)
        for own, cx, cy, w, h, _ in load_objects(sample, len(spec.names)).astype(float).tolist():
            number += 1
            if every > 1 and number % every == 0:
                continue
            bbox = [
                (cx - w / 2) * header.width_px,
                (cy - h / 2) * header.height_px,
                w * header.width_px,
                h * header.height_px,
            ]
            name = sample.image.relative_to(spec.root).as_posix()
            rows.append({"image_id": name, "category_id": int(own), "bbox": bbox, "score": score})
    path.write_text(json.dumps(rows))
    return path
