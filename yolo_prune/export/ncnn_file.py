"""Write a network for ncnn: .ncnn.param, .ncnn.bin, and .ncnn.json with what the two cannot hold."""

from __future__ import annotations

import subprocess
import warnings
from pathlib import Path

import torch

from yolo_prune.engines.exported.ncnn import FACTS, PARAM, WEIGHTS, format_facts
from yolo_prune.engines.exported.packages import import_package
from yolo_prune.errors import OutputError
from yolo_prune.export.request import Request
from yolo_prune.files import open_atomically
from yolo_prune.scraps import make_temporary_folder


def export_ncnn(request: Request, path: Path) -> Path:
    """Write ncnn files; `path` is the .ncnn.param. See `Writer`."""
    pnnx = import_package("pnnx", "--format ncnn", "ncnn")
    stem = path.name.removesuffix("".join(path.suffixes[-2:]))
    with make_temporary_folder() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's tracing, which the converter reads
        traced = torch.jit.trace(request.module, request.images, check_trace=False)  # type: ignore[no-untyped-call]
        traced.save(str(folder / "model.pt"))
        words = [
            *(pnnx.EXEC_PATH, "model.pt", f"inputshape={list(request.images.shape)}".replace(" ", "")),
            f"fp16={int(request.metadata.precision == 'fp16')}",
        ]
        outcome = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
        made = folder / "model.ncnn.param"
        if outcome.returncode or not made.is_file():
            reason = (outcome.stderr or outcome.stdout).strip().splitlines()[-1:]
            raise OutputError(
                f"pnnx could not convert the network ({''.join(reason)})", where=path, right="report this"
            )
        _check_layers(made.read_text(), path)
        parts = {WEIGHTS: made.with_suffix(".bin").read_bytes(), PARAM: made.read_bytes()}
        facts = format_facts(request.metadata, parts)
        for suffix, content in {FACTS: facts, **parts}.items():
            with open_atomically(path.with_name(stem + suffix)) as file:
                file.write(content)
    return path


def _check_layers(param: str, path: Path) -> None:
    """Raise OutputError if the converter left operations that no layer of ncnn does; their names have a dot."""
    kinds = [line.split(maxsplit=1)[0] for line in param.splitlines()[2:] if line.strip()]
    unknown = sorted({kind for kind in kinds if "." in kind or ":" in kind})
    if unknown:
        what = f"ncnn has no layer for {', '.join(unknown)}, which the network needs"
        raise OutputError(what, where=path, right="use another --format")
