"""The folder in which a command runs: a small data set, a small network, and what earlier commands made of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import yaml
from vgg_archive import make_files, write_archive
from videos import write_video

from kills.cases import STAGES
from kills.processes import start
from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cfg import format_cfg
from yolo_prune.datasets.config import SyntheticConfig
from yolo_prune.datasets.synthetic.dataset import make_dataset

PATIENCE_S = 300.0
ROOT = Path(__file__).resolve().parents[2]
PREPARATION = (
    "train --data hands/data.yaml --cfg tiny.cfg --epochs 2 --batch-size 6 --device cpu",
    "prune runs/train/best.pt --ratio 0.5 --one-shot --device cpu",
    "export runs/train/best.pt --format darknet --out darknet/tiny --no-card",
)


def prepare(folder: Path) -> Path:
    """Make what every command begins with below a folder, and return the folder."""
    base = folder / "place"
    base.mkdir(parents=True)
    make_dataset(base / "hands", SyntheticConfig(train=12, val=6, test=6, size_px=64), workers=1)
    (base / "tiny.cfg").write_text(format_cfg(make_network("yolov3-tiny", 1, 0.05, 64)))
    (base / "stages.yaml").write_text(yaml.safe_dump(STAGES))
    write_video(base / "clip.mp4", frames=10)
    write_archive(base / "vgg.tar.gz", make_files())
    for line in PREPARATION:
        run = start(line.split(), base, make_environment(base), folder / "output", is_new=False)
        if not run.wait(PATIENCE_S) or run.code:
            raise SystemExit(f"{line}: ends with {run.code}: {run.read('stderr')}")
    shutil.copy(base / "runs/prune/pruned.pt", base / "pruned.pt")
    shutil.rmtree(base / "runs/prune")
    (base / "runs/latest.json").unlink()
    return folder


def begin(folder: Path, prepared: Path) -> Path:
    """Make a folder what was prepared, and return the part of it in which commands run."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(prepared, folder, symlinks=True)
    return folder / "place"


def make_environment(place: Path, **more: str) -> dict[str, str]:
    """Return the environment of a command: home, caches and temporary files are in `place`'s parent."""
    own = {"home": "HOME", "tmp": "TMPDIR", "cache": "XDG_CACHE_HOME"}
    for folder in own:
        (place.parent / folder).mkdir(exist_ok=True)
    folders = {name: str(place.parent / folder) for folder, name in own.items()}
    alone = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "MPLBACKEND": "agg"}
    python = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, **folders, **alone, "PYTHONPATH": python, **more}
