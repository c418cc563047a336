"""The model card beside exported files: every format has one, it states what a reader needs, and it is valid Markdown."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import make_checkpoint
from markdown_it import MarkdownIt
from tiny import Cli, read_json

from yolo_prune.darknet.architectures import make_network
from yolo_prune.export.card import CardFacts, write_card
from yolo_prune.export.formats import FORMATS
from yolo_prune.export.tracing import make_module
from yolo_prune.export.writers import describe
from yolo_prune.model.checkpoint import Checkpoint

SECTIONS = ["Files", "Use", "Input", "Output", "Scores", "How it was made", "Licence", "Limits"]
PROVENANCE = {
    "stage": "finetune",
    "version": "0.1.0",
    "recipe": {"epochs": 23, "learning_rate": 0.001, "weights": "/home/me/secret.pt"},
    "parent": {"path": "/home/me/pruned.pt", "sha256": "beef"},
    "data": {"path": "/home/me/hands/data.yaml", "fingerprint": "f00d"},
    "metrics": {"epoch": 20, "val_map50": 0.61},
}


def make_card(place: Path, *formats: str, checkpoint: Checkpoint | None = None, **facts: Any) -> str:
    """Write files of some formats, empty ones, and return the text of their card."""
    checkpoint = checkpoint or make_checkpoint(make_network("yolov3-tiny", 2, 0.0625, 64))
    metadata = {name: describe(checkpoint, "cafe", **facts) for name in formats if FORMATS[name].holds_network}
    files = {name: place / f"net{FORMATS[name].suffix}" for name in formats}
    for path in files.values():
        path.write_bytes(bytes(10_000))
    return write_card(place / "net", CardFacts(checkpoint, "cafe", files, metadata)).read_text()


def read_section(card: str, name: str) -> str:
    return card.split(f"## {name}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_has_a_card_with_all_sections(tmp_path: Path, format: str) -> None:
    card = make_card(tmp_path, format)
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == SECTIONS
    assert all(read_section(card, name).strip() for name in SECTIONS)
    assert f"| `net{FORMATS[format].suffix}` | {FORMATS[format].runs_in} |" in card
    assert "0.01 MB" in read_section(card, "Files")
    assert "0 `class 0`, 1 `class 1`" in read_section(card, "Use")
    shape = "(1, 3, 64, 64)" if FORMATS[format].holds_network else "(3, 64, 64)"
    assert shape in read_section(card, "Input")
    assert "RGB" in read_section(card, "Input")
    assert "114/255" in read_section(card, "Input")
    assert "NMS" in read_section(card, "Output")
    assert "SHA-256 cafe" in read_section(card, "How it was made")
    assert read_section(card, "Licence").strip().startswith("Unknown.")
    assert ("not run" in read_section(card, "Limits")) == (not FORMATS[format].is_run_here)


@pytest.mark.parametrize("size", [64, 96])
@pytest.mark.parametrize("arch", ["yolov3-tiny", "yolov3"])
def test_the_number_of_boxes_is_the_network_s(tmp_path: Path, arch: str, size: int) -> None:
    checkpoint = make_checkpoint(make_network(arch, 3, 0.0625, size))
    boxes, scores = make_module(checkpoint.make_model().eval(), "yoloprune", False)(torch.zeros(1, 3, size, size))
    assert scores.shape == (1, boxes.shape[1], 3)
    card = make_card(tmp_path, "onnx", checkpoint=checkpoint)
    assert f"N is {boxes.shape[1]:,}; classes is 3, batch is 1." in read_section(card, "Output")


@pytest.mark.parametrize(
    ("facts", "section", "said"),
    [
        ({"dynamic": "batch"}, "Input", "(batch, 3, 64, 64). Any number of images at a time, of this size."),
        (
            {"dynamic": "size"},
            "Input",
            "`: shape (batch, 3, height, width). Any number of images at a time, of any sides",
        ),
        ({"layout": "ultralytics"}, "Output", "output0: float32 (batch, 4 + classes, N)"),
        ({"precision": "int8"}, "Limits", "The ranges of int8"),
    ],
)
def test_what_was_asked_for_is_stated(tmp_path: Path, facts: dict[str, Any], section: str, said: str) -> None:
    assert said in read_section(make_card(tmp_path, "onnx", **facts), section)
    assert said not in read_section(make_card(tmp_path, "onnx"), section)


def test_the_origin_and_scores_of_the_checkpoint_are_stated_but_no_folder_of_its_maker(tmp_path: Path) -> None:
    checkpoint = replace(make_checkpoint(make_network("yolov3-tiny", 1, 0.0625, 64)), provenance=PROVENANCE)
    card = make_card(tmp_path, "darknet", "onnx", checkpoint=checkpoint)
    made, scores = read_section(card, "How it was made"), read_section(card, "Scores")
    for said in ("`yoloprune finetune`", "`epochs: 23`", "SHA-256 beef", "`hands/data.yaml`", "fingerprint f00d"):
        assert said in made
    assert "AP50 0.6100 on the val split of `hands/data.yaml`" in scores
    assert "On images that training did not see: not measured." in scores
    assert "/home/me" not in card
    assert "secret" not in card


@pytest.mark.parametrize("provenance", [{}, {"data": None, "parent": None, "recipe": [], "metrics": None}])
def test_a_checkpoint_that_says_nothing_of_itself_has_a_card(tmp_path: Path, provenance: dict[str, Any]) -> None:
    checkpoint = replace(make_checkpoint(make_network("yolov3-tiny", 1, 0.0625, 64)), provenance=provenance)
    card = make_card(tmp_path, "pt2", checkpoint=checkpoint)
    assert "Data: a data set that the checkpoint does not name." in card


def test_it_is_markdown_whatever_the_classes_are_called(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(make_network("yolov3-tiny", 4, 0.0625, 64))
    names = ("a|b", "*c*", "<d>`e", "two\nlines")
    card = make_card(tmp_path, *FORMATS, checkpoint=checkpoint.with_names(names))
    tokens = MarkdownIt("commonmark").enable("table").parse(card)
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    assert headings == ["net", *SECTIONS]
    assert [token.type for token in tokens].count("tr_open") == 1 + len(FORMATS)
    assert [token.type for token in tokens].count("td_open") == 5 * len(FORMATS)
    assert not [token for token in tokens if token.type in ("html_block", "fence", "code_block", "blockquote_open")]
    inline = [child for token in tokens if token.type == "inline" for child in token.children or ()]
    assert not [child for child in inline if child.type in ("em_open", "html_inline")]
    spans = {child.content for child in inline if child.type == "code_inline"}
    assert {"a|b", "*c*", "<d>`e", "two lines"} <= spans


def test_export_writes_one_for_weights_alone_and_for_files_that_run(cli: Cli, trained: Path, hands: Path) -> None:
    words = ("--format", "darknet,pytorch-yolov3,pt2", "--out", "net", "--data", hands, "--verify-map")
    result = read_json(cli("export", trained, *words, "--json"))
    card = Path(result["card"]).read_text()
    assert result["card"] == "net.md"
    for name in ("net.weights", "net.pth", "net.pt2"):
        assert f"| `{name}` |" in card
    score = result["scores"]["pt2"]
    low, high = score["interval"]
    assert low <= score["exported"] <= high
    said = f"- `net.pt2`: AP50 {score['exported']:.4f}, 95 % bootstrap interval over images [{low:.3f}, {high:.3f}]; "
    assert said in read_section(card, "Scores")
    assert f"on 6 images of the test split of `{hands.parent.name}/data.yaml`." in read_section(card, "Scores")
    assert "- `net.pt2`: outputs equal the checkpoint's to" in read_section(card, "Scores")
    assert "not measured" not in read_section(card, "Scores")
    assert cli("export", trained, "--out", "other", "--no-card").code == 0
    assert not Path("other.md").exists()
