"""Compare the memory that a training step needs with what is available, before anything of it is allocated."""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager

from yolo_prune.console import warn
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.memory import estimate_training_bytes
from yolo_prune.darknet.network import Network
from yolo_prune.datasets.loader import CACHE_BYTES
from yolo_prune.errors import InsufficientMemoryError
from yolo_prune.image_size import ImageSize
from yolo_prune.memory import find_available_bytes, format_bytes, naming_out_of_memory
from yolo_prune.model.free_memory import ERROR, find_free_bytes, find_largest_batch, find_largest_size
from yolo_prune.text_tables import pluralize
from yolo_prune.training.resume import Run
from yolo_prune.training.run_data import list_sizes
from yolo_prune.training.state import choose_dtype


class StepMemory:
    """The memory of a run's steps: what they need, and what this process may use."""

    def __init__(self, run: Run, network: Network, teacher: Network | None = None) -> None:
        """Measure what is available now, when the weights of the network and of the teacher are in memory already."""
        self._network, self._config, self._teacher = network, run.config, teacher
        self._processes, self._is_cuda = run.processes, run.device.type == "cuda"
        sizes = list_sizes(run.img_size, run.config.multi_scale)
        self._size = max(sizes, key=lambda size: size.pixels, default=run.img_size)
        self._value_bytes = choose_dtype(run.config.precision, run.device).itemsize
        self._images = self._count_images(run.config.accumulate)
        self._loaded = sum(measure_cost(one).size_bytes for one in (network, teacher) if one is not None)
        self._free = self._share(find_free_bytes(run.device))

    def _share(self, free: int | None) -> int | None:
        """Return this process's part of a machine's memory; a GPU's is its own."""
        text = os.environ.get("LOCAL_WORLD_SIZE", "")  # of torchrun
        here = int(text) if text.isdecimal() else self._processes.count
        return free if free is None or self._is_cuda else free // max(1, here)

    def _count_images(self, parts: int) -> int:
        """Return how many images of one process go through the network at once if a step has so many parts."""
        return math.ceil(self._config.batch_size / (self._processes.count * parts))

    def check(self) -> None:
        """Check that the step fits; warn if it barely does.

        Raises:
            InsufficientMemoryError: it does not.
        """
        needed = self._estimate(self._images, self._size)
        if self._free is None or needed <= self._free:
            return
        images = pluralize(self._images, "image")
        what = (
            f"a step with {images} of {self._size} px at once needs about {format_bytes(needed)} of memory, "
            f"and {format_bytes(self._free)} are available"
        )
        if (1 - ERROR) * needed > self._free:
            raise InsufficientMemoryError(what, where="batch_size", right=self._explain())
        warn(f"{what}; if it runs out, {self._explain()}")

    def measure_cache(self) -> int:
        """Return how many bytes the decoded images of each data set may take beside the step."""
        free = self._share(find_available_bytes())
        if free is None:
            return CACHE_BYTES
        if not self._is_cuda:
            free -= self._estimate(self._images, self._size)
        return max(0, min(CACHE_BYTES, free // 4))

    def naming_out_of_memory(self) -> AbstractContextManager[None]:
        """Return a context whose errors about memory name the step, and what would fit."""
        step = f"a step with {pluralize(self._images, 'image')} of {self._size} px at once"
        return naming_out_of_memory(step, self._explain())

    def _estimate(self, images: int, size: ImageSize) -> int:
        """Return the bytes beside the weights that are loaded."""
        whole = estimate_training_bytes(
            self._network,
            images,
            size,
            moments=2 if self._config.optimizer == "adamw" else 1,
            value_bytes=self._value_bytes,
            teacher=self._teacher,
        )
        return whole - self._loaded

    def _explain(self) -> str:
        """Return the settings that would fit."""
        if self._free is None:
            return "use a smaller batch_size, more parts (accumulate), or a smaller img_size"
        most = max(1, self._images - 1)
        images = find_largest_batch(self._estimate, most, self._size, self._free) if self._images > 1 else 0
        if images:
            batch_size = self._config.batch_size
            parts = next(
                parts
                for parts in range(1, batch_size + 1)
                if batch_size % parts == 0 and self._count_images(parts) <= images
            )
            return f"set accumulate to {parts} (the step stays the same), or batch_size to {images * self._processes.count}"
        if (size := find_largest_size(self._estimate, self._size, self._free)) is not None and size != self._size:
            return f"set img_size to {size}, and batch_size to {self._processes.count}"
        return "use a smaller network, or a machine with more memory"
