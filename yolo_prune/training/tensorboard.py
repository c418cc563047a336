"""Log a run's results to TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_prune.datasets.images import read_image
from yolo_prune.errors import ConfigError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardLog:
    """Logs rows of results and images; without a writer it does nothing."""

    def __init__(self, writer: SummaryWriter | None = None) -> None:
        self._writer = writer

    def add_row(self, row: dict[str, Any]) -> None:
        """Log a row of results.csv at its epoch."""
        for name, value in row.items() if self._writer is not None else ():
            if name != "epoch" and value is not None:
                assert self._writer is not None
                self._writer.add_scalar(name, value, row["epoch"])

    def add_image(self, name: str, path: Path, epoch: int) -> None:
        """Log an image file."""
        if self._writer is not None:
            self._writer.add_image(name, read_image(path), epoch, dataformats="HWC")


@contextmanager
def open_log(folder: Path, is_wanted: bool, epoch: int) -> Iterator[TensorBoardLog]:
    """Yield a log that writes into a run's folder if `is_wanted`; it replaces older entries of epochs after `epoch`.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    if not is_wanted:
        yield TensorBoardLog()
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        right = "pip install 'yolo-prune[tensorboard]', or leave it out"
        raise ConfigError("TensorBoard is not installed", where="tensorboard", right=right) from None
    with SummaryWriter(folder, purge_step=epoch + 1) as writer:
        yield TensorBoardLog(writer)
