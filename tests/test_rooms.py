from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yolo_prune

LIGHT = ("pruning.channels", "pruning.plan", "pruning.settings", "model.settings", "config", "files", "errors")


def test_the_network_as_data_needs_no_torch() -> None:
    darknet = sorted((Path(yolo_prune.__file__).parent / "darknet").glob("[!_]*.py"))
    assert len(darknet) >= 4
    modules = [*(f"yolo_prune.darknet.{path.stem}" for path in darknet), *(f"yolo_prune.{name}" for name in LIGHT)]
    code = f"import sys, {', '.join(modules)}; print(*sorted({{'torch', 'torchvision', 'cv2'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
