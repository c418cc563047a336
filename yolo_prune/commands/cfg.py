"""`cfg make` and `cfg show`: make a Darknet cfg, and measure what a network costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cfg import format_cfg, load_cfg, pair_anchors, save_cfg
from yolo_prune.darknet.config import CfgConfig, ShowConfig
from yolo_prune.darknet.cost import Cost, format_cost, measure_cost
from yolo_prune.darknet.memory import Memory, estimate_memory, format_memory
from yolo_prune.darknet.network import Network
from yolo_prune.files import check_replaceable, is_text
from yolo_prune.shipped_configs import find_cfg


@dataclass(frozen=True)
class CfgResult:
    """A network, and the file that it was written to."""

    network: Network
    path: Path | None

    @property
    def stdout(self) -> str:
        """The file's path; without a file the cfg itself."""
        return format_cfg(self.network).rstrip() if self.path is None else str(self.path)

    def as_dict(self) -> dict[str, Any]:
        """Return the path, or the text, and the network's cost."""
        place = {"text": format_cfg(self.network)} if self.path is None else {"cfg": str(self.path)}
        return {**place, **measure_cost(self.network).as_dict()}


@dataclass(frozen=True)
class CostResult:
    """The cost of a network, and the memory that it needs."""

    cost: Cost
    memory: Memory

    @property
    def stdout(self) -> str:
        """A table of the layers, the totals, and the memory."""
        return f"{format_cost(self.cost)}\n{format_memory(self.memory)}"

    def as_dict(self) -> dict[str, Any]:
        """Return the totals, the memory in bytes, and one dictionary for each layer."""
        memory = {"memory_bytes": self.memory.as_dict()}
        return {**self.cost.as_dict(), **memory, "layers": self.cost.layers_as_dicts()}


def make_cfg(config: CfgConfig) -> CfgResult:
    """Make a network, and write its cfg if the settings name a file.

    Raises:
        CfgError: the anchors are not what the architecture has.
        OutputError: the file cannot be written, or is there already and holds something else.
    """
    anchors = None if config.anchors is None else pair_anchors(config.anchors, "anchors")
    network = make_network(config.arch, config.classes, config.width, config.img_size, anchors)
    if config.out is None:
        return CfgResult(network, None)
    check_replaceable([config.out], force=config.force, is_own=lambda path: is_text(path, format_cfg(network)))
    return CfgResult(network, save_cfg(network, config.out))


def show_cfg(file: Path, config: ShowConfig) -> CostResult:
    """Measure the network of a cfg file or of a checkpoint.

    Raises:
        CfgError, CheckpointError: the file cannot be read, or its network cannot have that size.
    """
    if file.suffix == ".pt":
        from yolo_prune.model.checkpoint import load_checkpoint  # a cfg needs no PyTorch

        network = load_checkpoint(file).network
    else:
        network = load_cfg(find_cfg(file))
    cost = measure_cost(network, config.img_size)
    return CostResult(cost, estimate_memory(network, config.batch_size, config.img_size))
