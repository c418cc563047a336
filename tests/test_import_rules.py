"""The import rules are contracts in pyproject.toml; they must hold, and must be able to fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

pytestmark = pytest.mark.checkout
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"

TORCHLESS = (
    "yolo_prune.darknet.cost",
    "yolo_prune.pruning.channels",
    "yolo_prune.pruning.plans.plan",
    "yolo_prune.cli.main",
)


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LINT, "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_the_package_keeps_its_import_rules() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("darknet/cost.py", "import yolo_prune.cli", "Imports only point down the list of packages"),
        ("model/loss.py", "import yolo_prune.training.epoch", "Imports only point down the list of packages"),
        ("datasets/spec.py", "import yolo_prune.darknet.cfg", "Data sets know nothing of networks"),
        ("pruning/plans/plan.py", "import torch", "The network as data, its channel graph and plans need no torch"),
    ],
)
def test_a_broken_rule_is_caught(tmp_path: Path, module: str, line: str, contract: str) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "yolo_prune", tmp_path / "yolo_prune", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "yolo_prune" / module).open("a") as file:
        file.write(f"\n{line}\n")
    result = lint(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{contract} BROKEN" in result.stdout


@pytest.mark.parametrize("module", TORCHLESS)
def test_imports_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_training_and_scoring_need_no_package_that_reads_annotations_of_coco() -> None:
    code = "import sys; sys.modules['pycocotools'] = None; import yolo_prune.commands.train, yolo_prune.commands.bench"
    subprocess.run([sys.executable, "-c", code], check=True)
