"""Configs that come with the package are found by name, from any folder, and can be copied to be edited."""

from __future__ import annotations

from pathlib import Path

import pytest
from paths import ROOT
from tiny import Cli, read_json

from yolo_prune.commands.run import load_run
from yolo_prune.darknet.cfg import load_cfg
from yolo_prune.shipped_configs import find_cfg, find_run, list_configs
from yolo_prune.training.config import TrainConfig

SHIPPED = sorted(path.name for path in (ROOT / "configs").iterdir())

pytestmark = pytest.mark.checkout


@pytest.mark.usefixtures("workplace")
def test_a_name_is_a_shipped_file() -> None:
    assert list_configs() == SHIPPED
    for name in ("yolov3-tiny-hand", "yolov3-tiny-hand.cfg"):
        found = TrainConfig(cfg=Path(name)).cfg
        assert found == find_cfg(Path(name)) == ROOT / "configs/yolov3-tiny-hand.cfg"
    assert load_run(Path("demo")).train.cfg == ROOT / "configs/demo-hand.cfg"
    assert find_run(Path("demo.yaml")) == ROOT / "configs/demo.yaml"


@pytest.mark.usefixtures("workplace")
def test_a_file_comes_before_a_shipped_one_and_a_path_is_left_alone() -> None:
    Path("demo-hand").write_text("")
    assert find_cfg(Path("demo-hand")) == Path("demo-hand")
    assert find_cfg(Path("other/demo-hand")) == Path("other/demo-hand")
    assert find_cfg(Path("no-such-hand")) == Path("no-such-hand")


def test_every_command_that_takes_a_cfg_takes_a_name(cli: Cli, hands: Path) -> None:
    shown = read_json(cli("cfg", "show", "yolov3-tiny-hand", "--json"))
    assert shown["params"] == 8_669_876
    assert cli("import", "demo-hand").out == "runs/import/demo-hand.pt\n"
    outcome = cli("data", "anchors", hands, "--cfg", "demo-hand", "--img-size", 160, "--count", 2)
    assert "demo-hand.cfg" in outcome.out, outcome.err


def test_a_copy_is_made_once(cli: Cli) -> None:
    assert cli("config", "copy", "demo", "--out", "mine").out == "mine/demo.yaml\n"
    assert Path("mine/demo.yaml").read_bytes() == (ROOT / "configs/demo.yaml").read_bytes()
    again = cli("config", "copy", "demo.yaml", "--out", "mine")
    assert (again.code, again.out) == (2, "")
    assert again.err == "error: mine/demo.yaml: is there already; remove it first, or name another folder with --out\n"
    assert cli("config", "copy", "demo-hand").out == "demo-hand.cfg\n"
    assert load_cfg(Path("demo-hand.cfg")) == load_cfg(ROOT / "configs/demo-hand.cfg")


@pytest.mark.parametrize(("words", "what"), [(("x",), "there is no x"), ((), "no config is named")])
def test_names_are_listed(cli: Cli, words: tuple[str, ...], what: str) -> None:
    outcome = cli("config", "copy", *words)
    assert (outcome.code, outcome.err) == (2, f"error: NAME: {what}; use one of {', '.join(SHIPPED)}\n")
