"""What follows a run while it trains: a progress bar on a terminal, and a log for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from yolo_prune.datasets.images import read_image
from yolo_prune.errors import ConfigError
from yolo_prune.training.epoch import EpochStats
from yolo_prune.training.resume import Progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class ProgressBar:
    """Shows the progress of a run if stderr is a terminal."""

    def __init__(self, progress: Progress, epochs: int, images_per_epoch: int, is_shown: bool) -> None:
        self._progress, self._epochs, self._images = progress, epochs, images_per_epoch
        self._bar = tqdm(
            desc="train",
            unit="image",
            total=epochs * images_per_epoch,
            initial=self._count(progress.stats),
            leave=False,
            smoothing=0.05,
            disable=None if is_shown else True,
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def show(self, stats: EpochStats) -> None:
        """Move the bar to the images counted in `stats`, those of the present epoch."""
        rows = self._progress.rows
        scores = [row["val_map50"] for row in rows if row["val_map50"] is not None]
        parts = [f"epoch {min(self._epochs, self._progress.epoch + 1)}/{self._epochs}"]
        parts += (
            [f"loss {stats.means['loss']:.3f}"] if stats.steps else [f"loss {row['loss']:.3f}" for row in rows[-1:]]
        )
        parts += [f"AP50 {scores[-1]:.3f}"] if scores else []
        self._bar.set_postfix_str(", ".join(parts), refresh=False)
        self._bar.update(self._count(stats) - self._bar.n)

    def _count(self, stats: EpochStats) -> int:
        return min(self._epochs, self._progress.epoch) * self._images + stats.images


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
