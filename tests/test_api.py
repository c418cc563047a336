"""The Python API: the public names, what a detector takes and gives, and every example of docs/python.md."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image
from tiny import Cli, read_json
from videos import write_video

import yolo_prune as yp
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.datasets.images import read_image

PAGE = ROOT / "docs/python.md"


def test_every_public_name_is_there_and_no_other() -> None:
    assert dir(yp) == sorted(yp.__all__)
    for name in yp.__all__:
        assert getattr(yp, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'prone'"):
        yp.__getattr__("prone")


def test_the_import_is_light() -> None:
    code = "import sys, yolo_prune; sys.exit(' '.join({'torch', 'cv2', 'numpy', 'pydantic'} & set(sys.modules)) or 0)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def photo(hands: Path) -> Path:
    return hands.parent / "images/val/000000.jpg"


def is_same(one: yp.Detections, other: yp.Detections) -> bool:
    return all(np.array_equal(getattr(one, part), getattr(other, part)) for part in ("boxes_xyxy", "scores", "classes"))


def test_paths_arrays_and_pil_images_give_the_same(trained: Path, photo: Path) -> None:
    detector = yp.load(trained, confidence=0.001)
    expected = detector(photo)
    pixels = read_image(photo)
    assert len(expected)
    assert is_same(detector(str(photo)), expected)
    assert is_same(detector(pixels), expected)
    assert is_same(detector(Image.fromarray(pixels)), expected)
    first, second = detector([photo, pixels])
    assert is_same(first, expected)
    assert is_same(second, expected)
    assert detector([]) == []


def test_a_grey_image_is_one_of_three_equal_channels(trained: Path, photo: Path) -> None:
    detector = yp.load(trained, confidence=0.001)
    grey = np.asarray(Image.open(photo).convert("L"))
    assert is_same(detector(grey), detector(np.stack([grey] * 3, axis=-1)))


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), np.zeros(3, np.uint8)],
)
def test_an_array_that_is_no_image_is_an_error(trained: Path, array: Any) -> None:
    with pytest.raises(
        yp.YoloPruneError, match=r"^images: an array of shape .* is no image; use RGB uint8 \(H, W, 3\)$"
    ):
        yp.load(trained)(array)


def test_it_finds_what_the_command_finds(cli: Cli, trained: Path, photo: Path) -> None:
    rows = read_json(cli("detect", trained, photo, "--confidence", 0.001, "--json"))["detections"]
    found = yp.load(trained, confidence=0.001)(photo)
    assert len(rows) == len(found)
    np.testing.assert_allclose([row["score"] for row in rows], found.scores, atol=1e-6)


def test_pruning_leaves_its_input_as_it_was(workplace: Path, trained: Path) -> None:
    base = yp.load(shutil.copy(trained, "base.pt"))
    image = torch.rand(1, 3, *base.img_size[::-1])
    before = [part.clone() for part in base.engine(image)]
    content = base.path.read_bytes()
    slim = yp.prune(base, ratio=0.5, one_shot=True, criterion="l2", fold="leaky", recalibrate=0)
    assert measure_cost(slim.network).params < measure_cost(base.network).params
    assert base.path.read_bytes() == content
    assert all(torch.equal(now, then) for now, then in zip(base.engine(image), before, strict=True))


def test_a_wrong_setting_is_named(workplace: Path, trained: Path) -> None:
    with pytest.raises(yp.YoloPruneError, match=r"^unknown key ratoi; did you mean ratio\?$"):
        yp.prune(trained, ratoi=0.5)
    with pytest.raises(yp.YoloPruneError, match=r"^ratio: 1\.5 is out of range; use a number from 0 to below 1$"):
        yp.prune(trained, ratio=1.5)


def test_every_example_of_the_page_runs(
    workplace: Path, hands: Path, tiny_cfg: Path, trained: Path, photo: Path
) -> None:
    shutil.copytree(hands.parent, "hands")
    shutil.copy(tiny_cfg, "tiny.cfg")
    shutil.copy(photo, "photo.jpg")
    write_video(Path("clip.mp4"))
    Path("runs/finetune").mkdir(parents=True)
    shutil.copy(trained, "runs/finetune/best.pt")
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) >= 6
    names: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), names)
    assert names["final"].path.is_file()


def test_a_name_that_is_taken_is_an_error_from_a_config_too(workplace: Path, trained: Path) -> None:
    config = yp.PruneConfig(name="mine", ratio=0.5, one_shot=True, criterion="l2", fold="leaky", recalibrate=0)
    assert yp.prune(trained, config).path == Path("runs/mine/pruned.pt")
    with pytest.raises(yp.YoloPruneError, match="runs/mine already holds a run"):
        yp.prune(trained, config)
