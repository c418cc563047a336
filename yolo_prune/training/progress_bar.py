"""A progress bar for a whole run, on a terminal: images, rate, time left, loss and AP50."""

from __future__ import annotations

from types import TracebackType

from tqdm import tqdm

from yolo_prune.training.epoch import EpochStats
from yolo_prune.training.resume import Progress


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
