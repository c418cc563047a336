"""What follows a run while it trains: a progress bar on a terminal, and a log for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_prune.console import Bar
from yolo_prune.datasets.images import read_image
from yolo_prune.errors import ConfigError
from yolo_prune.training.epoch import EpochStats
from yolo_prune.training.resume import Progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class ProgressBar(Bar):
    """Shows the progress of a run, and the figures of its present epoch, if stderr is a terminal."""

    def __init__(self, progress: Progress, epochs: int, images_per_epoch: int, is_shown: bool) -> None:
        super().__init__("train", epochs * images_per_epoch, is_shown=is_shown)
        self._progress_of_run, self._epochs, self._images_per_epoch = progress, epochs, images_per_epoch
        self._loss = ""
        self.move(progress.stats)

    def look(self, stats: EpochStats) -> None:
        """Show the present epoch's loss so far."""
        self._loss = f", loss {stats.means['loss']:.3f}" if stats.steps else ""
        self.move(stats)

    def move(self, stats: EpochStats) -> None:
        """Move the bar to the images counted in `stats`, those of the present epoch."""
        run = self._progress_of_run
        scores = [row["val_map50"] for row in run.rows if row["val_map50"] is not None]
        score = f", AP50 {scores[-1]:.3f}" if scores else ""
        epoch = f"epoch {min(self._epochs, run.epoch + 1)}/{self._epochs}"
        done = min(self._epochs, run.epoch) * self._images_per_epoch + stats.images
        self.show(done, note=f"{epoch}{self._loss}{score}")


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
    with import_writer()(folder, purge_step=epoch + 1) as writer:
        yield TensorBoardLog(writer)


def import_writer() -> type[SummaryWriter]:
    """Return TensorBoard's writer.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        right = "pip install 'yolo-prune[tensorboard]', or leave it out"
        raise ConfigError("TensorBoard is not installed", where="tensorboard", right=right) from None
    return SummaryWriter
