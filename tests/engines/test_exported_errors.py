"""What a runtime of exported files raises, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolo_prune.engines.exported.base import reading
from yolo_prune.errors import CheckpointError, InsufficientMemoryError


@pytest.mark.parametrize("text", ["", "first line\nthe reason\n"])
def test_whatever_a_runtime_raises_names_the_file(text: str) -> None:
    with pytest.raises(CheckpointError) as caught, reading(Path("a.onnx"), "cannot be read by X"):
        raise ArithmeticError(text)
    assert str(caught.value) == f"a.onnx: cannot be read by X ({text.strip().split(chr(10))[-1]}); export it again"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("std::bad_alloc")])
def test_too_little_memory_is_not_called_damage(error: Exception) -> None:
    with pytest.raises(InsufficientMemoryError, match=r"^a\.onnx: out of memory"), reading(Path("a.onnx")):
        raise error
