"""The notebook runs from its first cell to its last, and is stored without outputs, which would be of another machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from paths import ROOT

import yolo_prune

NOTEBOOK = ROOT / "docs/quickstart.ipynb"


def load() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


def test_it_is_stored_without_outputs() -> None:
    notebook = load()
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) >= 6
    assert [(cell.outputs, cell.execution_count) for cell in cells] == [([], None)] * len(cells)


def test_it_runs(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(yolo_prune.__file__).parents[1]))  # the kernel is another process
    notebook = load()
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(workplace)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    rows = {line.split()[0] for line in printed.splitlines() if line.startswith("quickstart")}
    assert rows == {"quickstart/best", "quickstart-pruned/pruned", "quickstart-finetuned/best"}, printed
    assert _count("image/png", outputs) == 1


def _count(kind: str, outputs: list[Any]) -> int:
    return sum(kind in output.get("data", ()) for output in outputs)
