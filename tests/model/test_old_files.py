"""Files that version 0.1.0 wrote: they load to the same bits, their settings are read, and a stopped run is resumed.

tests/files/last-0.1.0.pt is the last.pt of a run of three epochs that was stopped after two of three steps of its second;
pruned-0.1.0.pt was pruned from its best.pt with `pictures: 6`.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from paths import FILES
from tiny import SIDE, TINY_CFG, Cli, read_json

from yolo_prune.commands.config import PruneConfig
from yolo_prune.config import parse_config
from yolo_prune.datasets.config import SyntheticConfig
from yolo_prune.datasets.synthetic.dataset import make_dataset
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.training.config import TrainConfig


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("last-0.1.0.pt", "301b02a333e2efbd67c44174523faa5c70087e6ca3ad8ba9f1d8c93bb88757be"),
        ("pruned-0.1.0.pt", "d7dff213df6789e4e36ea9cee5b4e4668445b72cb4fc25132bb1e491ffe76f63"),
    ],
)
def test_tensors_load_to_the_same_bits(name: str, sha256: str) -> None:
    state = load_checkpoint(FILES / name).make_last_step_model().state_dict()
    content = hashlib.sha256()
    for key in sorted(state):
        content.update(key.encode())
        content.update(state[key].numpy().tobytes())
    assert content.hexdigest() == sha256


def test_settings_are_read() -> None:
    recipe = load_checkpoint(FILES / "pruned-0.1.0.pt").provenance["recipe"]
    assert recipe["pictures"] == 6
    assert parse_config(PruneConfig(), recipe, "recipe").images == 6
    recipe = load_checkpoint(FILES / "last-0.1.0.pt").provenance["recipe"]
    assert parse_config(TrainConfig(), recipe, "recipe").batch_size == 4


def test_a_stopped_run_is_resumed(cli: Cli) -> None:
    make_dataset(Path("hands"), SyntheticConfig(train=12, val=6, test=6, size_px=SIDE), workers=1)
    Path("tiny.cfg").write_text(TINY_CFG)
    Path("runs/old").mkdir(parents=True)
    shutil.copy(FILES / "last-0.1.0.pt", "runs/old/last.pt")
    made = read_json(cli("train", "--resume", "--name", "old", "--json"))
    assert made["epoch"] in (1, 2, 3)
    done = load_checkpoint(Path("runs/old/last.pt")).training
    assert (done["epoch"], done["is_done"], len(done["rows"])) == (3, True, 3)
