"""Read and write the weights of other PyTorch implementations of Darknet networks, as state dicts.

Most name a layer by the number of its section in the cfg, as in `module_list.12.conv_12.weight` or
`module_list.12.Conv2d.weight`. Others have names of their own, but the same order. Only plain data is read: a pickled
module could run code.
"""

from __future__ import annotations

import _codecs
import io
import re
import zipfile
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolo_prune.bounded import open_plain
from yolo_prune.darknet.squeeze import ADDED
from yolo_prune.errors import WeightsError
from yolo_prune.files import open_atomically
from yolo_prune.limits import is_bounded
from yolo_prune.model.checkpoint_file import DAMAGE, check_members
from yolo_prune.model.detector import Detector
from yolo_prune.model.weights import check_values, load_weights

SUFFIXES = (".pt", ".pth")
PARTS = ("ema", "model", "state_dict", "model_state_dict", "net", "weights")
"""Keys under which a checkpoint may keep its state dict, the better one first."""
BN_PARTS = ("weight", "bias", "running_mean", "running_var")
SECTION = re.compile(r"^module_list\.(\d+)\.(.+)$")
SQUEEZE = re.compile(r"^module_list\.(\d+)\.\w+\.fc\.(0|2)\.(weight|bias)$")
"""The linear layers of squeeze and excite, with a ReLU between them."""
NUMBERED = re.compile(r"^module_list\.(\d+)\.(.+)\.(weight|bias|running_mean|running_var)$")


@dataclass
class _Layer:
    """What a state dict holds of one convolution."""

    name: str
    kernel: Tensor
    others: dict[str, Tensor] = field(default_factory=dict)
    """The bias, or batch norm's weight, bias, running_mean and running_var."""


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file, bare or in a checkpoint, without a prefix that all its names have.

    Raises:
        WeightsError: the file cannot be read, holds a pickled module, or no state dict.
    """
    try:
        source: Path | io.BytesIO = path
        with open_plain(path) as plain:
            if zipfile.is_zipfile(plain):
                with zipfile.ZipFile(plain) as file:
                    check_members(file, path, WeightsError)
            else:  # of a PyTorch before 1.6; a pickle may claim texts of any length, and memory yields no more than there is
                plain.seek(0)
                source = io.BytesIO(plain.read())
        with torch.serialization.safe_globals(_list_plain_types()):
            content = torch.load(source, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"cannot be read ({error.strerror})", where=path, right="name a file of weights") from error
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds an object of {found[1]}, which could run code" if found else "is no file that PyTorch wrote"
        right = (
            "where it was made, save plain weights: model = torch.load(FILE, weights_only=False)['model']; "
            "torch.save(model.state_dict(), 'weights.pt')"
        )
        raise WeightsError(what, where=path, right=right) from error
    except DAMAGE as error:
        raise WeightsError("is damaged, or no file that PyTorch wrote", where=path, right="fetch it again") from error
    if not is_bounded(content, path.stat().st_size):
        raise WeightsError("is nested too deep, or holds itself", where=path, right="save model.state_dict()")
    state = _find_state(content)
    if state is None:
        keys = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        raise WeightsError(f"holds no state dict, but {keys}", where=path, right="save model.state_dict()")
    while all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def fill_weights(model: Detector, path: Path, is_prefix: bool) -> str:
    """Fill `model` in place from Darknet .weights or, by its suffix, from a state dict; say what was taken.

    Raises:
        WeightsError: the file does not fit the network, or cannot be read.
    """
    if path.suffix in SUFFIXES:
        return load_foreign_weights(model, path)
    return load_weights(model, path, is_prefix).format()


def load_foreign_weights(model: Detector, path: Path) -> str:
    """Fill `model` in place from a state dict of another project, and say how layers were found.

    Raises:
        WeightsError: the file cannot be read, its layers are not those of the network (names the first that differs),
            or it holds values that no trained network has. The model is left as it was then.
    """
    state = _expand_squeezes(load_state_dict(path))
    layers = _split_by_number(state)
    how = "by their numbers"
    if layers is None:
        ordered = list(_split_in_order(state))
        numbers = [index for index, _ in model.network.convs]
        if len(ordered) != len(numbers):
            what = f"holds {len(ordered)} convolutions, the network has {len(numbers)}"
            raise WeightsError(what, where=path, right="name the cfg that it was made with")
        layers, how = dict(zip(numbers, ordered, strict=True)), "in their order, as their names say no number"
    tensors = dict(_iterate_tensors(model, layers, path))
    with torch.no_grad():
        for own, found in tensors.values():
            own.copy_(found)
    return f"took {len(layers)} convolutions {how}"


def save_foreign_weights(model: Detector, path: Path) -> Path:
    """Write the model as a state dict that implementations with `module_list` read, and return `path`.

    Raises:
        OutputError: the file cannot be written.
    """
    state: dict[str, Tensor] = {}
    for index, _ in model.network.convs:
        module = model.get_conv(index)
        state[f"module_list.{index}.conv_{index}.weight"] = module.conv.weight.detach().cpu()
        if module.bn is None:
            assert module.conv.bias is not None
            state[f"module_list.{index}.conv_{index}.bias"] = module.conv.bias.detach().cpu()
        else:
            state |= {
                f"module_list.{index}.batch_norm_{index}.{name}": value.cpu()
                for name, value in module.bn.state_dict().items()
            }
    with open_atomically(path) as file:
        torch.save(state, file)
    return path


def _list_plain_types() -> list[Any]:
    """Return what NumPy's numbers, which training loops leave in checkpoints, are stored as."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *dtypes, _codecs.encode]


def _find_state(content: Any) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping):
        return None
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if any(tensor.ndim == 4 for tensor in tensors.values()):
        return tensors
    found = (_find_state(content[key]) for key in PARTS if key in content)
    return next((state for state in found if state is not None), None)


def _expand_squeezes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict in which sections [se] have the names and numbers of the four that they are read as.

    Their two linear layers become convolutions, with biases of 0 unless they have some.
    """
    sections = sorted({int(found[1]) for name in state if (found := SQUEEZE.match(name))})
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if (section := SECTION.match(name)) is None:
            named[name] = tensor
            continue
        number = int(section[1])
        number += ADDED * bisect_left(sections, number)
        if linear := SQUEEZE.match(name):
            place = f"module_list.{number + (1 if linear[2] == '0' else 2)}.conv."
            named[place + linear[3]] = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
            named.setdefault(place + "bias", tensor.new_zeros(len(tensor)))
        else:
            named[f"module_list.{number}.{section[2]}"] = tensor
    return named


def _split_by_number(state: Mapping[str, Tensor]) -> dict[int, _Layer] | None:
    """Return the convolutions by the numbers in their names; None if some name has no number."""
    kernels: dict[int, _Layer] = {}
    for name, tensor in state.items():
        if tensor.ndim == 4:
            if (found := NUMBERED.match(name)) is None:
                return None
            kernels[int(found[1])] = _Layer(name, tensor)
    for name, tensor in state.items():
        found = NUMBERED.match(name)
        if tensor.ndim == 1 and found is not None and int(found[1]) in kernels:
            kernels[int(found[1])].others[found[3]] = tensor
    return kernels


def _split_in_order(state: Mapping[str, Tensor]) -> Iterator[_Layer]:
    """Yield the convolutions with the batch norm or bias that follows each."""
    layer: _Layer | None = None
    for name, tensor in state.items():
        if tensor.ndim == 4:
            if layer is not None:
                yield layer
            layer = _Layer(name, tensor)
        elif layer is not None and tensor.ndim == 1 and (part := name.rpartition(".")[2]) in BN_PARTS:
            layer.others[part] = tensor
    if layer is not None:
        yield layer


def _iterate_tensors(
    model: Detector, layers: Mapping[int, _Layer], path: Path
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Yield each tensor of the model with the file's.

    Raises:
        WeightsError: a layer is missing, superfluous or of another shape, or a value is none of a trained network.
    """
    right = "name the cfg that it was made with"
    wanted = {index for index, _ in model.network.convs}
    if odd := sorted(wanted ^ layers.keys()):
        what = "lacks" if odd[0] in wanted else "holds"
        raise WeightsError(f"{what} a convolution as layer {odd[0]}", where=path, right=right)
    for index in sorted(wanted):
        module, layer = model.get_conv(index), layers[index]
        own = {"kernel": module.conv.weight}
        found = {"kernel": layer.kernel}
        if module.bn is None:
            assert module.conv.bias is not None
            own["bias"] = module.conv.bias
        else:
            state = dict(module.bn.named_parameters()) | dict(module.bn.named_buffers())
            own |= {part: state[part] for part in BN_PARTS}
        found |= {part: layer.others[part] for part in own if part in layer.others}
        for part, tensor in own.items():
            if part not in found:
                raise WeightsError(f"layer {index}, {layer.name}, has no {part}", where=path, right=right)
            if found[part].shape != tensor.shape:
                what = f"{layer.name}, layer {index}, has a {part} of {_format(found[part])}, the network one of {_format(tensor)}"
                raise WeightsError(what, where=path, right=right)
            check_values({NAMES.get(part, part): found[part].float().numpy()}, index, path)
            yield f"{index}.{part}", (tensor.data, found[part])


NAMES = {"weight": "γ", "running_mean": "mean", "running_var": "variance"}


def _format(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
