"""The bytes of a .pt file: checked against their CRC-32, and read without trusting them.

A .pt file is a zip: a pickle, and one member for the bytes of each tensor. PyTorch checks none of the CRC-32 that a zip
has, and a tensor in a pickle may claim any size. Here no tensor is used before all bytes are checked, no pickle that asks
for more than plain values and tensors is read at all, and what is read takes no more memory than the file.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
import zipfile
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolo_prune.bounded import open_plain
from yolo_prune.errors import CheckpointError, InsufficientMemoryError, YoloPruneError
from yolo_prune.limits import MOST_PICKLE_BYTES, is_bounded
from yolo_prune.memory import explain_out_of_memory, is_out_of_memory

OURS = "name a checkpoint that yoloprune wrote; another project's weights go with their cfg: import CFG --weights FILE"
COPY = "take it from a copy, or make it again"
BLOCK_BYTES = 1 << 20

_KINDS = (
    "BFloat16",
    "Bool",
    "Byte",
    "Char",
    "ComplexDouble",
    "ComplexFloat",
    "Double",
    "Float",
    "Half",
    "Int",
    "Long",
    "Short",
)
_PLAIN = {
    "collections OrderedDict",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    "torch Size",
    *(f"torch {kind}Storage" for kind in _KINDS),
}
"""The functions that a pickle of plain values and tensors calls. PyTorch allows more, such as an array of any size."""
DAMAGE = (
    *(OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError),
    *(AssertionError, MemoryError, NotImplementedError, struct.error, zipfile.BadZipFile, pickle.UnpicklingError),
)
"""What the readers of Python and PyTorch raise for a damaged file."""


def load_plain(path: Path) -> Any:
    """Read a file that `torch.save` wrote; tensors are memory-mapped. All bytes are read and checked once.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or holds more than plain values and tensors.
        InsufficientMemoryError: it does not fit into memory.
    """
    right = "name a .pt file that train, prune or finetune wrote"
    try:
        with open_plain(path) as plain, zipfile.ZipFile(plain) as file:
            check_members(file, path, CheckpointError)
            size = _check_pickle(file, path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except DAMAGE as error:
        if is_out_of_memory(error):
            raise InsufficientMemoryError(explain_out_of_memory(error), where=path, right="free some memory") from error
        reason = (isinstance(error, OSError) and error.strerror) or "it is damaged or no checkpoint"
        raise CheckpointError(f"cannot be read ({reason})", where=path, right=right) from error
    if not is_bounded(content, size):
        raise CheckpointError("is nested too deep, or holds itself", where=path, right=OURS)
    return content


def says_format(path: Path, name: str) -> bool:
    """Return whether a file that `torch.save` wrote holds a mapping with this `format`, whether or not it is whole."""
    try:
        with open_plain(path) as plain, zipfile.ZipFile(plain) as file:
            _check_pickle(file, path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return isinstance(content, dict) and content.get("format") == name
    except (CheckpointError, *DAMAGE):
        return False


def check_members(file: zipfile.ZipFile, path: Path, error: type[YoloPruneError]) -> None:
    """Check every member of an uncompressed zip file against its CRC-32.

    Raises:
        YoloPruneError: of type `error`: a member is damaged; names it.
        zipfile.BadZipFile: the file is no zip file that `torch.save` writes.
    """
    members = file.infolist()
    if len({member.filename.lower() for member in members}) < len(members):
        raise zipfile.BadZipFile("two members have one name")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise zipfile.BadZipFile("its members are larger than the file")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise zipfile.BadZipFile("a member is compressed")
        try:
            with file.open(member) as stored:
                while stored.read(BLOCK_BYTES):
                    pass
        except (zipfile.BadZipFile, EOFError) as damage:
            what = f"is damaged: {member.filename} is not what was written (its CRC-32 differs)"
            raise error(what, where=path, right=COPY) from damage


def _check_pickle(file: zipfile.ZipFile, path: Path) -> int:
    """Check that the pickle calls nothing that it need not call, and return its bytes.

    Raises:
        CheckpointError: it does; names that.
    """
    names = [name for name in file.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise zipfile.BadZipFile("there is not one pickle")
    if (size := file.getinfo(names[0]).file_size) > MOST_PICKLE_BYTES:
        what = f"holds a pickle of {size >> 20:,} MiB, more than {MOST_PICKLE_BYTES >> 20}"
        raise CheckpointError(what, where=path, right=OURS)
    content = file.read(names[0])
    for operation, argument, _ in pickletools.genops(content):
        if operation.name in ("INST", "STACK_GLOBAL") or (operation.name == "GLOBAL" and argument not in _PLAIN):
            found = str(argument or "something unnamed").replace(" ", ".")
            what = f"asks for {found}, so it is a pickle that could run code, or is damaged"
            raise CheckpointError(what, where=path, right=OURS)
    return len(content)


def check_storages(content: Any, path: Path) -> None:
    """Check that the tensors of a file are dense, and that no two share memory.

    Raises:
        CheckpointError: one is not, or two do; names one.
    """
    ends = []
    for name, tensor in _iterate_tensors(content, ""):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_neg():
            raise CheckpointError(f"{name} is stored as no plain tensor", where=path, right=COPY)
        if tensor.numel() == 0:
            continue
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if last + 1 > tensor.numel():
            raise CheckpointError(f"{name} has gaps between its elements", where=path, right=COPY)
        if last + 1 < tensor.numel():
            raise CheckpointError(f"{name} claims more elements than the file has", where=path, right=COPY)
        begin = tensor.data_ptr()
        ends.append((begin, begin + tensor.numel() * tensor.element_size(), name))
    ends.sort()
    for (_, end, one), (begin, _, other) in pairwise(ends):
        if begin < end:
            raise CheckpointError(f"{one} and {other} are the same numbers in the file", where=path, right=COPY)


def _iterate_tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of a nest of mappings and lists with their places in it."""
    if isinstance(value, Tensor):
        yield name.lstrip("."), value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _iterate_tensors(part, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _iterate_tensors(part, f"{name}[{number}]")
