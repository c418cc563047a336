"""Compile the kernel once per machine and load it; no build step at installation, no PyTorch headers."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from yolo_prune.console import warn_once
from yolo_prune.engines.sparse.steps import Step
from yolo_prune.errors import EngineError, OutputError
from yolo_prune.files import open_atomically
from yolo_prune.scraps import make_temporary_folder

SOURCE = Path(__file__).with_name("kernel.cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-ffp-contract=fast")
INSTRUCTIONS = {"native": "-march=native", "avx2": "-march=x86-64-v3", "portable": None}
"""The instruction sets to compile for: the machine's own; AVX2 with FMA; the compiler's default."""
TIMEOUT_S = 300
_SUPERVISOR = """
import os, signal, subprocess, sys, time
parent = os.getppid()
child = subprocess.Popen(sys.argv[1:])
while child.poll() is None:
    if os.getppid() != parent:
        os.killpg(0, signal.SIGKILL)
    time.sleep(0.02)
sys.exit(min(abs(child.returncode), 1))
"""
"""Runs a compiler, and ends it, and the programs that it has started, once the process that wanted it has ended."""
OTHERS_WRITE = 0o022
"""The bits of a file's mode by which others than its owner may write it."""


@cache
def load_kernel(instructions: str = "native") -> ctypes.CDLL:
    """Return the kernel for one of `INSTRUCTIONS`; compile it, unless an earlier call of any process has done so.

    The compiler is $CXX, which may be several words, or the first of c++, g++ and clang++. Results are kept below
    $XDG_CACHE_HOME, else ~/.cache, with the hash of their bytes in the name: a damaged one is compiled anew. Where
    nothing can be kept, or the folder is another user's, a folder of this process's own is used, which is told once.

    Raises:
        EngineError: there is no compiler, it fails, or its output cannot be stored or loaded.
    """
    compiler, flags = _find_compiler(), [*FLAGS, *filter(None, [INSTRUCTIONS[instructions]])]
    path = _find_or_make([*compiler, *flags], f"kernel-{_identify(compiler, flags)}")
    try:
        kernel = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(f"cannot be loaded ({error})", where=path, right="delete it and run again") from error
    assert kernel.measure_step_bytes() == ctypes.sizeof(Step), "steps.py does not mirror kernel.cpp"
    return kernel


def _find_or_make(command: list[str], name: str) -> Path:
    folder, reason = _find_cache()
    if folder is not None:
        if (found := _find_whole(folder, name)) is not None:
            return found
        content = _compile(command)
        try:
            return _keep(content, folder, name)
        except (OSError, OutputError) as error:
            reason = str(error)
    else:
        content = _compile(command)
    warn_once("kernel cache", f"{reason}: the sparse kernel is compiled for this process alone")
    try:
        stack = ExitStack()
        atexit.register(stack.close)
        return _keep(content, stack.enter_context(make_temporary_folder()), name)
    except (OSError, OutputError) as error:
        right = "name a folder that can be written in XDG_CACHE_HOME"
        raise EngineError(f"the compiled kernel cannot be kept ({error})", where="engine", right=right) from error


def _find_compiler() -> list[str]:
    """Return the words of the command that compiles, the first one as a path."""
    try:
        given = shlex.split(os.environ.get("CXX", ""))
    except ValueError:  # quotes without an end
        given = [os.environ["CXX"]]
    for words in [given] if given else [[name] for name in COMPILERS]:
        if found := shutil.which(words[0]):
            return [found, *words[1:]]
    names = given[:1] or COMPILERS
    raise EngineError(
        f"found no C++ compiler ({', '.join(names)}), which the sparse engine needs once",
        where="engine",
        right="install g++ or clang++, name one in CXX, or use another engine",
    )


def _find_cache() -> tuple[Path | None, str]:
    """Return the folder to keep kernels in, which only this user can write; None and the reason without one."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yolo_prune"
    except RuntimeError:
        return None, "there is no home folder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _is_own(folder):
            return None, f"{folder} is another user's"
        if folder.stat().st_mode & OTHERS_WRITE:
            folder.chmod(folder.stat().st_mode & 0o777 & ~OTHERS_WRITE)
        list(folder.iterdir())
    except OSError as error:
        return None, f"{folder} cannot be used ({error.strerror})"
    return folder, ""


def _is_own(path: Path) -> bool:
    return not hasattr(os, "geteuid") or path.stat().st_uid == os.geteuid()


def _find_whole(folder: Path, name: str) -> Path | None:
    """Return a kept kernel of this user's whose bytes are those that were written."""
    for path in sorted(folder.glob(f"{name}-*.so")):
        try:
            is_safe = not path.is_symlink() and _is_own(path) and not path.stat().st_mode & OTHERS_WRITE
            if is_safe and path.stem == _name(name, path.read_bytes()):
                return path
        except OSError:
            continue
    return None


def _name(name: str, content: bytes) -> str:
    return f"{name}-{hashlib.sha256(content).hexdigest()[:32]}"


def _keep(content: bytes, folder: Path, name: str) -> Path:
    """Write a kernel whole, synced, and for this user alone, and return its path."""
    path = folder / f"{_name(name, content)}.so"
    for old in folder.glob(f"{name}-*.so"):
        old.unlink()  # it was not whole, or not safe
    with open_atomically(path) as file:
        file.write(content)
    path.chmod(0o600)
    return path


def _identify(compiler: list[str], flags: list[str]) -> str:
    """Return a name that depends on all that affects the compiled file: source, compiler, flags, and CPU."""
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(
            f"does not tell its version ({error})", where=compiler[0], right="name a C++ compiler in CXX"
        ) from error
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    cpu = [line for line in lines if line.startswith(("model name", "flags", "Features"))][:2] or [platform.processor()]
    parts = [
        SOURCE.read_bytes(),
        version,
        "\0".join([*compiler, *flags]).encode(),
        platform.machine().encode(),
        *map(str.encode, cpu),
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _compile(command: list[str]) -> bytes:
    try:
        with make_temporary_folder() as scratch:
            made = scratch / "kernel.so"
            result = _run([*command, str(SOURCE), "-o", str(made)], scratch)
            if result.returncode:
                reason = next((line for line in result.stderr.splitlines() if "error" in line), "no reason given")
                raise EngineError(
                    f"cannot compile the sparse kernel ({reason})",
                    where=command[0],
                    right="name g++ 9, clang++ 10 or a newer one in CXX, or use another engine",
                )
            return made.read_bytes()
    except OSError as error:
        raise EngineError(
            f"the compiled kernel cannot be written ({error.strerror or error})",
            where=error.filename or tempfile.gettempdir(),
            right="name a folder that can be written in TMPDIR",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"has not compiled the sparse kernel in {TIMEOUT_S} s", where=command[0], right="name another one in CXX"
        ) from error


def _run(command: list[str], scratch: Path) -> subprocess.CompletedProcess[str]:
    """Run a compiler, with temporary files of its own in `scratch`; it ends with this process, by SIGKILL even.

    Raises:
        OSError: it cannot be started.
        subprocess.TimeoutExpired: it takes too long.
    """
    with subprocess.Popen(
        [sys.executable, "-ISc", _SUPERVISOR, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, out, err)
