"""What all engines of exported files share: several images through a file that takes fewer at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from yolo_prune.engines.exported.layout import split_outputs
from yolo_prune.engines.exported.metadata import Metadata
from yolo_prune.errors import CheckpointError, InsufficientMemoryError, YoloPruneError
from yolo_prune.files import measure_sha256
from yolo_prune.memory import explain_out_of_memory, is_out_of_memory


@contextmanager
def reading(path: Path, what: str = "is damaged, and cannot be run") -> Iterator[None]:
    """Say `what` of the file on whatever a runtime raises, as each has exceptions of its own; but tell a lack of memory.

    Raises:
        CheckpointError: names the file.
        InsufficientMemoryError: memory ran out.
    """
    try:
        yield
    except YoloPruneError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            right = "use a smaller batch or img_size, or free some memory"
            raise InsufficientMemoryError(explain_out_of_memory(error), where=path, right=right) from error
        reason = "".join(str(error).strip().splitlines()[-1:])
        raise CheckpointError(f"{what} ({reason})", where=path, right="export it again") from error


def check_part(part: Path, sha256: str | None) -> None:
    """Compare a file that lies beside an exported one with what was exported: a damaged one would crash its runtime.

    Raises:
        CheckpointError: it is another.
    """
    if part.is_file() and measure_sha256(part) != sha256:
        raise CheckpointError("is damaged: it is not what was exported", where=part, right="export it again")


class ExportedEngine(nn.Module):
    """An exported file as an engine."""

    def __init__(self, path: Path, metadata: Metadata, batch: int | None) -> None:
        """Take a file, what it says of itself, and how many images it takes at a time; None for any number."""
        super().__init__()
        self.path, self.metadata, self.batch = path, metadata, batch

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, H, W) in 0 … 1 to boxes_xyxy (B, N, 4) in pixels and scores (B, N, C).

        Raises:
            CheckpointError: the file is damaged: it cannot be run, or its outputs are not those that it should have.
        """
        parts = [self._split(part) for part in (torch.split(images, self.batch) if self.batch else [images])]
        boxes, scores = zip(*parts, strict=True)
        return torch.cat(boxes), torch.cat(scores)

    def _split(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with reading(self.path):
            outputs = self.run(images.contiguous())
        return split_outputs(outputs, self.metadata, str(self.path))

    @abstractmethod
    def run(self, images: Tensor) -> Sequence[Tensor]:
        """Map contiguous images (b, 3, H, W), as many as the file takes, to its outputs, in their order."""
