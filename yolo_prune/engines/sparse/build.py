"""Compile the kernel once per machine and load it; no build step at installation, no PyTorch headers."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from yolo_prune.engines.sparse.steps import Step
from yolo_prune.errors import EngineError

SOURCE = Path(__file__).with_name("kernel.cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-ffp-contract=fast")
INSTRUCTIONS = {"native": "-march=native", "avx2": "-march=x86-64-v3", "portable": None}
"""The instruction sets to compile for: the machine's own; AVX2 with FMA; the compiler's default."""
TIMEOUT_S = 300


@cache
def load_kernel(instructions: str = "native") -> ctypes.CDLL:
    """Return the kernel for one of `INSTRUCTIONS`; compile it, unless an earlier call of any process has done so.

    The compiler is $CXX or the first of c++, g++ and clang++; results are kept below $XDG_CACHE_HOME, else ~/.cache.

    Raises:
        EngineError: there is no compiler, it fails, or its output cannot be stored or loaded.
    """
    command = [_find_compiler(), *FLAGS, *filter(None, [INSTRUCTIONS[instructions]])]
    path = _find_cache() / f"kernel-{_identify(command)}.so"
    if not path.is_file():
        _compile(command, path)
    try:
        kernel = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(f"cannot be loaded ({error})", where=path, right="delete it and run again") from error
    assert kernel.measure_step_bytes() == ctypes.sizeof(Step), "steps.py does not mirror kernel.cpp"
    return kernel


def _find_compiler() -> str:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else list(COMPILERS)
    for name in names:
        if found := shutil.which(name):
            return found
    raise EngineError(
        f"found no C++ compiler ({', '.join(names)}), which the sparse engine needs once",
        where="engine",
        right="install g++ or clang++, name one in CXX, or use another engine",
    )


def _find_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yolo_prune"


def _identify(command: list[str]) -> str:
    """Return a name that depends on all that affects the compiled file: source, compiler, flags, and CPU."""
    try:
        version = subprocess.run([command[0], "--version"], capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(
            f"does not tell its version ({error})", where=command[0], right="name a C++ compiler in CXX"
        ) from error
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    cpu = [line for line in lines if line.startswith(("model name", "flags", "Features"))][:2] or [platform.processor()]
    parts = [
        SOURCE.read_bytes(),
        version,
        "\0".join(command).encode(),
        platform.machine().encode(),
        *map(str.encode, cpu),
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _compile(command: list[str], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / path.name
            result = subprocess.run(
                [*command, str(SOURCE), "-o", str(made)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
            if result.returncode:
                reason = next((line for line in result.stderr.splitlines() if "error" in line), "no reason given")
                raise EngineError(
                    f"cannot compile the sparse kernel ({reason})",
                    where=command[0],
                    right="name g++ 9, clang++ 10 or a newer one in CXX, or use another engine",
                )
            made.replace(path)
    except OSError as error:
        raise EngineError(
            f"the compiled kernel cannot be kept ({error.strerror or error})",
            where=path.parent,
            right="name a folder that can be written in XDG_CACHE_HOME",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"has not compiled the sparse kernel in {TIMEOUT_S} s", where=command[0], right="name another one in CXX"
        ) from error
