"""Parents of a checkpoint are followed by their SHA-256, never by their path alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Cli

from yolo_prune.commands.bench import find_lineage
from yolo_prune.commands.lineage import find_parent, find_uncut
from yolo_prune.files import measure_sha256
from yolo_prune.model.checkpoint import Checkpoint, load_checkpoint, make_provenance, save_checkpoint


def save(path: str, source: Path, stage: str, parent: Path | None, **facts: Any) -> Path:
    return save_checkpoint(Path(path), replace(load_checkpoint(source), provenance=make_provenance(stage, {}, parent, **facts)))  # fmt: skip


@pytest.fixture
def line(workplace: Path, trained: Path) -> list[Path]:
    """Return an original, the network pruned from it, and the one finetuned from this."""
    original = save("original.pt", trained, "train", None)
    pruned = save("pruned.pt", trained, "prune", original)
    return [original, pruned, save("finetuned.pt", trained, "finetune", pruned)]


def test_a_line_is_followed_to_its_end(line: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    rows = find_lineage(line[-1])
    assert list(rows) == ["Original", "Pruned", "Finetuned"]
    assert [path.name for path in rows.values()] == [path.name for path in line]
    assert find_uncut(load_checkpoint(line[-1])).path == line[0].resolve()
    assert capsys.readouterr().err == ""


def test_an_ancestor_that_is_gone_ends_the_line(line: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    line[0].unlink()
    assert list(find_lineage(line[-1])) == ["Pruned", "Finetuned"]
    assert capsys.readouterr().err == ""


def test_another_network_at_the_path_is_left_out_and_told(
    line: list[Path], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save("original.pt", trained, "train", None, metrics={"other": 1})
    assert list(find_lineage(line[-1])) == ["Pruned", "Finetuned"]
    told = " ".join(capsys.readouterr().err.split())
    assert told.startswith("warning: ")
    assert f"{line[0].resolve()}, which it comes from, has changed since: it is left out" in told
    assert find_uncut(load_checkpoint(line[-1])).path is None


def name_parent(path: Path, parent: Path, sha256: str) -> Checkpoint:
    loaded = load_checkpoint(path)
    facts = {**loaded.provenance, "parent": {"path": str(parent.resolve()), "sha256": sha256}}
    state = {name: tensor.clone() for name, tensor in loaded.state.items()}
    changed = replace(loaded, state=state, provenance=facts)
    save_checkpoint(path, changed)
    return changed


def test_who_names_itself_as_parent_has_none(line: list[Path], cli: Cli) -> None:
    path = line[0]
    checkpoint = name_parent(path, path, measure_sha256(path))
    assert list(find_lineage(path)) == ["Original"]
    parent = find_parent(checkpoint)
    assert parent is not None
    assert parent.path is None
    assert find_uncut(checkpoint).path is None
    outcome = cli("bench", path, "--lineage", "--no-score", "--runs", 1, "--warmup", 0)
    assert outcome.code == 0
    assert "has changed since: it is left out" in " ".join(outcome.err.split())


def test_two_that_name_each_other_have_an_end(line: list[Path]) -> None:
    name_parent(line[0], line[1], measure_sha256(line[1]))
    assert list(find_lineage(line[1])) == ["Pruned"]
    assert list(find_lineage(line[0]))[-1] == "Original"


@pytest.mark.parametrize(
    "words", ["bench {} --no-score", "evaluate {}", "detect {} {image}", "export {}", "profile {}"]
)
def test_weights_that_are_nan_are_named_where_they_are_used(
    cli: Cli, hands: Path, trained: Path, words: str, tmp_path: Path
) -> None:
    loaded = load_checkpoint(trained)
    state = {name: tensor.clone() for name, tensor in loaded.state.items()}
    state["layers.2.bn.weight"][3] = torch.nan
    save_checkpoint(Path("nan.pt"), replace(loaded, state=state))
    image = next((hands.parent / "images/val").iterdir())
    outcome = cli(*words.format("nan.pt", image=image).split())
    assert outcome.code == 2
    assert outcome.out == ""
    line = " ".join(outcome.err.split())
    assert line == "error: nan.pt: layers.2.bn.weight holds NaN or infinity; train again from a sound checkpoint"
    assert {path.name for path in Path().iterdir()} == {"nan.pt"}
