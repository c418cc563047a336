"""What a stage is told, and how it writes down what it found."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from yolo_prune.datasets.config import SyntheticConfig
from yolo_prune.datasets.synthetic.dataset import make_dataset
from yolo_prune.files import save_json

TINY_WIDTH, TINY_SIDE = 1 / 16, 64
SIDE = 416


@dataclass
class Job:
    """The settings of a stage, which it gets as JSON."""

    stage: str
    seconds: float
    """How long it may take."""
    out: str
    device: str = "cuda"
    is_tiny: bool = False
    data: str | None = None
    weights: str | None = None
    seed: int = 0
    results: dict[str, Any] = field(default_factory=dict)
    """What was found so far."""
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds_left(self) -> float:
        """Seconds until the stage is ended."""
        return self.seconds - (time.monotonic() - self.began)

    @property
    def place(self) -> torch.device:
        """The device."""
        return torch.device(self.device)

    @property
    def img_size(self) -> int:
        """Side of the network's input in pixels."""
        return TINY_SIDE if self.is_tiny else SIDE

    @property
    def width(self) -> float:
        """Factor on the filters of yolov3-hand."""
        return TINY_WIDTH if self.is_tiny else 1.0

    @property
    def folder(self) -> Path:
        """The folder of all results."""
        return Path(self.out)

    def find_data(self) -> Path:
        """Return the data set's path: the given one, or hands that are drawn on first use."""
        if self.data is not None:
            return Path(self.data).resolve()
        count = 24 if self.is_tiny else 640
        drawn = SyntheticConfig(train=count, val=count // 4, test=count // 4, size_px=2 * TINY_SIDE)
        return make_dataset(self.folder / "hands", drawn, workers=None).resolve()

    def save(self) -> None:
        """Write what was found so far to OUT/STAGE.json."""
        save_json(self.folder / f"{self.stage}.json", self.results)

    def load(self, stage: str) -> dict[str, Any]:
        """Return what an earlier stage found; empty if it found nothing."""
        path = self.folder / f"{stage}.json"
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def format(self) -> str:
        """Return the settings as JSON, for `parse_job`."""
        values = asdict(self)
        del values["results"], values["began"]
        return json.dumps(values)


def parse_job() -> Job:
    """Return the job that this process was started with."""
    return Job(**json.loads(sys.argv[1]))
