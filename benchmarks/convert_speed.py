"""How long `data convert` takes for a COCO file of train2017's size, and its memory: python benchmarks/convert_speed.py

Makes the file, 118,287 images of 640 × 480 pixels with 860,001 outlined objects, and a val split of one image, in a
folder (in memory, if it is in /dev/shm), then converts them to the layout that `train` reads, by a process on one core.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIZE_PX = (640, 480)
POINTS = 20
CATEGORIES = 80


def main() -> None:
    """Make the data set, convert it, and print seconds and memory."""
    parser = argparse.ArgumentParser(description="data convert on a COCO file of train2017's size.")
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--objects", type=int, default=860_001)
    parser.add_argument("--to", default="yolo", help="yolo, coco or voc")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where the data set is made, and removed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        make_images(folder / "img", arguments.images)
        make_annotations(folder / "train.json", arguments.images, arguments.objects)
        make_annotations(folder / "val.json", 1, 7)
        megabytes = (folder / "train.json").stat().st_size / 1e6
        print(f"{arguments.images} images, {arguments.objects} objects, {megabytes:.0f} MB of JSON, to {arguments.to}")
        times = [convert(folder, arguments.to) for _ in range(arguments.runs)]
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"{np.median(times):.1f} s [{min(times):.1f}, {max(times):.1f}], {memory:.2f} GB")


def make_images(folder: Path, count: int) -> None:
    """Write the same image under many names."""
    folder.mkdir()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)).resize(SIZE_PX)
    with io.BytesIO() as buffer:
        image.save(buffer, "JPEG")
        content = buffer.getvalue()
    for number in range(count):
        (folder / f"{number:012d}.jpg").write_bytes(content)


def make_annotations(path: Path, images: int, objects: int) -> None:
    """Write a COCO file, whose objects have outlines of `POINTS` points as COCO's have, in random order."""
    random = np.random.default_rng(0)
    width, height = SIZE_PX
    owners = random.integers(images, size=objects).tolist()
    corners = (random.random((objects, 2)) * (width / 2, height / 2)).round(2)
    sides = (random.random((objects, 2)) * (width / 2 - 2, height / 2 - 2) + 2).round(2)
    outlines = (corners[:, None] + random.random((objects, POINTS, 2)) * sides[:, None]).round(2).reshape(objects, -1)
    boxes, areas = np.hstack((corners, sides)).tolist(), (sides.prod(axis=1) / 2).tolist()
    kinds = random.integers(1, CATEGORIES + 1, size=objects).tolist()
    with path.open("w") as file:
        names = [{"id": number, "name": f"class {number}"} for number in range(1, CATEGORIES + 1)]
        sizes = {"width": width, "height": height}
        entries = [{"license": 1, "file_name": f"{one:012d}.jpg", **sizes, "id": one} for one in range(images)]
        file.write(f'{{"info": {{}}, "images": {json.dumps(entries)}, "annotations": [')
        for number, owner in enumerate(owners):
            row = {
                "segmentation": [outlines[number].tolist()],
                "area": areas[number],
                "iscrowd": 0,
                "image_id": owner,
                "bbox": boxes[number],
                "category_id": kinds[number],
                "id": number + 1,
            }
            file.write(f"{', ' if number else ''}{json.dumps(row)}")
        file.write(f'], "categories": {json.dumps(names)}}}')


def convert(folder: Path, kind: str) -> float:
    """Run the command on the first core that this process may use, and return how many seconds it took."""
    out = folder / "out"
    sources = [f"train={folder / 'train.json'}", f"val={folder / 'val.json'}", "--images", str(folder / "img")]
    command = [sys.executable, "-m", "yolo_prune", "data", "convert", *sources, "--to", kind, "--out", str(out)]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, preexec_fn=take_one_core)
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return seconds


def take_one_core() -> None:
    """Run on one core from now on."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


if __name__ == "__main__":
    main()
