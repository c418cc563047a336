"""Which functions of the package read what others wrote, found in its source, and which group of targets reaches each."""

from __future__ import annotations

import ast
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import yolo_prune

ROOT = Path(yolo_prune.__file__).parent
READS = {
    *(
        "read_text",
        "read_bytes",
        "read_lines",
        "open_plain",
        "fromfile",
        "imdecode",
        "VideoCapture",
        "loadmat",
        "DictReader",
    ),
    *(
        "load_json",
        "load_plain_json",
        "load_record",
        "load_yaml",
        "parse_yaml",
        "parse_plain_yaml",
        "safe_load",
        "ZipFile",
    ),
    *("InferenceSession", "read_model", "load_param", "load_program", "get_modelmeta", "readline", "create_connection"),
    *(
        "Image.open",
        "path.open",
        "place.open",
        "archive.open",
        "tarfile.open",
        "torch.load",
        "export.load",
        "yaml.load",
    ),
    *("json.loads", "opener.open", "make_opener", "environ", "stdin", "getenv"),
}
"""Names whose use means that something is read that may be damaged: functions, or an owner and a function."""
Names = set[str]
_FRESH, _KERNEL = "what this process has just written", "what the kernel tells"
_SEVERAL = "it is called in one of several processes alone, which tests/training starts"
OUTSIDE = {
    "benchmarking.latency_table:_find_path": "reached by damaged inputs of environment alone",
    "benchmarking.layer_timing:_time_onnxruntime": _FRESH,
    "benchmarking.layer_timing:_time_openvino": _FRESH,
    "commands.run:_check_stages": "it reads as the commands of plan.json and sensitivity.json do",
    "cli.main:_leave": _SEVERAL,
    "contention:find_libgomp": _KERNEL,
    "datasets.live:__init__": "cameras and streams",
    "datasets.remote:check_stream": "reached by damaged inputs of words of detect alone",
    "engines.exported.executorch:_load": "its package is not installed with the others",
    "engines.exported.litert:read_litert_metadata": "its package is not installed with the others",
    "engines.sparse.build:_compile": _FRESH,
    "engines.sparse.build:_find_cache": "reached by damaged inputs of environment alone",
    "engines.sparse.build:_find_compiler": "reached by damaged inputs of environment alone",
    "engines.sparse.build:_identify": "reached by damaged inputs of environment alone",
    "evaluation.window:find_display_issue": "it asks whether a variable is set",
    "export.litert_file:export_litert": _FRESH,
    "export.litert_int8:quantize_litert": _FRESH,
    "export.ncnn_file:export_ncnn": _FRESH,
    "export.open_vino_file:export_openvino": _FRESH,
    "engines.exported.ncnn:format_facts": _FRESH,
    "engines.sparse.build:_run": _FRESH,
    "files:is_text": "it compares bytes",
    "launch:_read_number": _SEVERAL,
    "launch:is_told_by_another": _SEVERAL,
    "own_files:is_marked": "it asks whether an output that is there already is the command's own",
    "scraps:_may_be_writing": _KERNEL,
    "training.distributed:_holds_store": _SEVERAL,
    **{
        f"training.peers:{name}": _SEVERAL
        for name in (
            *("_count_memory_kills", "_name_machine", "_read_exit_status", "_read_failure"),
            *("_wait_for_all", "record"),
        )
    },
}
"""Readers that no sound input reaches, and why."""


def find_readers() -> Names:
    """Return the functions that use any of `READS`, as `module:function`; modules are named without the package."""
    return {name for path in sorted(ROOT.rglob("*.py")) for name in _find_in(path)}


def _find_in(path: Path) -> Iterator[str]:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef) and any(map(_reads, _walk_own(function))):
            yield f"{module}:{function.name}"


def _walk_own(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Yield the nodes of a function, without those of functions inside."""
    left: list[ast.AST] = list(ast.iter_child_nodes(function))
    while left:
        node = left.pop()
        yield node
        if not isinstance(node, ast.FunctionDef):
            left += ast.iter_child_nodes(node)


def _reads(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in READS
    if not isinstance(node, ast.Attribute):
        return False
    owner = node.value
    name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
    return node.attr in READS or f"{name}.{node.attr}" in READS


@contextmanager
def recording(readers: Names) -> Iterator[Names]:
    """Yield a set that gets the readers that are called in the block, in any thread."""
    modules = {name.partition(":")[0] for name in readers}
    called: Names = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            module = str(frame.f_globals.get("__name__", "")).removeprefix("yolo_prune.")
            if module in modules:
                called.add(f"{module}:{frame.f_code.co_name}")

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield called
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
