"""The shipped configs are what the generator makes, and every recipe can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from yolo_prune.commands.run import load_run
from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cfg import format_cfg, load_cfg, pair_anchors

CONFIGS = ROOT / "configs"
DEMO_ANCHORS = "35,23,26,38,39,33,38,52,53,43,60,63"
MADE: dict[str, dict[str, Any]] = {
    "yolov3-hand": {"arch": "yolov3"},
    "yolov3-tiny-hand": {"arch": "yolov3-tiny"},
    "yolov3-spp-hand": {"arch": "yolov3-spp"},
    "yolov4-hand": {"arch": "yolov4"},
    "yolov4-tiny-hand": {"arch": "yolov4-tiny"},
    "yolov3-hand-quarter": {"arch": "yolov3", "width": 0.25},
    "demo-hand": {
        "arch": "yolov3-tiny",
        "width": 0.5,
        "img_size": 160,
        "anchors": pair_anchors(tuple(map(float, DEMO_ANCHORS.split(","))), "the test"),
    },
}


def test_every_shipped_cfg_is_listed_here() -> None:
    assert {path.stem for path in CONFIGS.glob("*.cfg")} == set(MADE)


@pytest.mark.parametrize("name", MADE)
def test_shipped_cfg_is_what_the_generator_makes(name: str) -> None:
    path = CONFIGS / f"{name}.cfg"
    network = make_network(**MADE[name])
    assert load_cfg(path) == network
    assert path.read_text() == format_cfg(network)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipe_can_be_read_and_names_a_shipped_cfg(path: Path) -> None:
    config = load_run(path)
    assert config.train.cfg is not None
    assert (CONFIGS.parent / config.train.cfg).is_file()
