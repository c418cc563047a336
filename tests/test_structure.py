from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import yolo_prune

LIGHT = (
    *("pruning.channels", "pruning.plans.plan", "pruning.config", "model.config", "config", "files", "errors"),
    *("threads", "contention"),
)

pytestmark = pytest.mark.checkout
SCREEN = 50
"""Lines."""


def test_the_network_as_data_needs_no_torch() -> None:
    darknet = sorted((Path(yolo_prune.__file__).parent / "darknet").glob("[!_]*.py"))
    assert len(darknet) >= 4
    modules = [*(f"yolo_prune.darknet.{path.stem}" for path in darknet), *(f"yolo_prune.{name}" for name in LIGHT)]
    code = f"import sys, {', '.join(modules)}; print(*sorted({{'torch', 'torchvision', 'cv2'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_each_step_of_the_method_is_one_function_of_at_most_a_screen() -> None:
    root = Path(yolo_prune.__file__).parent
    rows = re.findall(
        r"^\| [^|]+ \| `([\w/]+\.py)`, `(\w+)` \|$", (root.parent / "docs/design.md").read_text(), re.MULTILINE
    )
    assert len(rows) == 7
    for file, name in rows:
        functions = {
            node.name: node for node in ast.parse((root / file).read_text()).body if isinstance(node, ast.FunctionDef)
        }
        found = functions[name]
        assert found.end_lineno is not None
        assert found.end_lineno - found.lineno < SCREEN, name
