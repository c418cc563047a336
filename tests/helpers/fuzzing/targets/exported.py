"""Exported files, and kernels that the sparse engine keeps."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

from fuzzing.case import Case, Outcome, Target
from fuzzing.command import run_function
from fuzzing.mutators import damage_bytes
from fuzzing.targets.making import Damage, as_bytes, as_json, as_text, make_target
from yolo_prune.engines.sparse import build


def _make(name: str, file: str, damage: Damage, *beside: str, words: str = "") -> Target:
    path = f"exported/{file}"
    line = f"detect {words or 'FILE'} base/pictures/plain.png --out out --no-save --device cpu"
    return make_target(
        name,
        {path: path},
        line,
        damage=damage,
        copies=tuple(f"exported/{one}" for one in beside),
        parts=("exported",),
    )


KERNEL = "0123456789abcdef"


def _make_kernel(chance: Random, base: Path) -> Case:
    content = b"\x7fELF" + chance.randbytes(200)
    name = build._name(KERNEL, content)
    return Case(
        (),
        {f"{name}.so": damage_bytes(content, chance), f"{KERNEL}-.so": b"", f"{KERNEL}-{chance.random()}.so": content},
    )


def find_kernel(case: Case) -> Outcome:
    """Look for a kept kernel: it is none whose bytes are not those that its name says."""

    def read() -> None:
        os.umask(0o077)
        for path in Path().glob("*.so"):
            path.chmod(0o600)
        found = build._find_whole(Path(), KERNEL)
        if found is not None and found.stem != build._name(KERNEL, found.read_bytes()):
            raise AssertionError("a damaged kernel was found")

    return run_function(read)


EXPORTED: tuple[Target, ...] = (
    _make("onnx", "tiny.onnx", as_bytes),
    _make("openvino xml", "tiny.xml", as_text, "tiny.bin"),
    _make("openvino bin", "tiny.bin", as_bytes, "tiny.xml", words="exported/tiny.xml"),
    _make("ncnn param", "tiny.ncnn.param", as_text, "tiny.ncnn.bin", "tiny.ncnn.json"),
    _make("ncnn bin", "tiny.ncnn.bin", as_bytes, "tiny.ncnn.param", "tiny.ncnn.json", words="exported/tiny.ncnn.param"),
    _make("ncnn json", "tiny.ncnn.json", as_json, "tiny.ncnn.param", "tiny.ncnn.bin", words="exported/tiny.ncnn.param"),
    _make("pt2", "tiny.pt2", as_bytes),
    Target("kernel", _make_kernel, lambda base: [Case()], find_kernel),
)
