"""What `detect` leaves: names of files, lines of JSON, annotated images in a window, and errors of sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TextIO, TypeAlias

from yolo_prune.commands.measure_config import DetectRunConfig
from yolo_prune.console import report_error, warn
from yolo_prune.datasets.sources import Source
from yolo_prune.errors import DatasetError, OutputError
from yolo_prune.evaluation.detections import Detections
from yolo_prune.evaluation.frame_lines import format_line
from yolo_prune.evaluation.previews import Image, draw_detections
from yolo_prune.evaluation.window import Window, find_display_issue
from yolo_prune.own_files import check_own

Emit: TypeAlias = Callable[[str], object]
"""Takes a line of JSON as soon as a frame or an image is done."""


class Issues:
    """The errors of sources. Of several sources each error is told when it is met, as others may take hours."""

    def __init__(self, sources: int) -> None:
        self.sources = sources
        self.errors: list[DatasetError] = []
        self._words: set[str] = set()
        self._rest = ""

    def add(self, word: str, error: DatasetError, rest: str = "the others are done") -> None:
        """Store an error of the source that is called `word`, and what is done all the same."""
        self.errors.append(error)
        self._rest = rest
        self._words.add(word)
        if self.sources > 1:
            report_error(str(error))

    def raise_some(self) -> None:
        """Raise if there are errors, where other sources were read.

        Raises:
            DatasetError: the error, or in how many sources there are some.
        """
        if self.sources > 1 and self.errors:
            self._raise_summary("the others are done")
        for error in self.errors[:-1]:
            report_error(str(error))
        for error in self.errors[-1:]:
            raise DatasetError(f"{error.what}; {self._rest}", where=error.where, right=error.right)

    def raise_all(self) -> None:
        """Raise if there are errors, where nothing was read.

        Raises:
            DatasetError: as `raise_some`.
        """
        if self.sources > 1 and self.errors:
            self._raise_summary("nothing is done")
        for error in self.errors:
            raise error

    def _raise_summary(self, rest: str) -> NoReturn:
        what = f"{len(self._words)} of {self.sources} could not be read, or not as a whole; {rest}"
        raise DatasetError(what, where="sources", right="see the lines above")


class Outputs:
    """Where everything that was found goes.

    Args:
        folder: where files are written.
        config: what is written.
        names: the classes.
        sources: their files are never overwritten.
        emit: takes each line of JSON.
    """

    def __init__(
        self,
        folder: Path,
        config: DetectRunConfig,
        names: Sequence[str],
        sources: Sequence[Source],
        emit: Emit | None = None,
    ) -> None:
        self.folder, self.config, self.names, self._emit = folder, config, names, emit
        self._videos: dict[Path, bool] = {}
        self.frames: Path | None = None
        """The JSON lines of frames, once there is one."""
        self._taken = {place.absolute() for source in sources for place in source.files}
        self._file: TextIO | None = None
        self._window: Window | None = None
        self.is_left = False
        """Whether the user has closed the window: nothing more is done."""
        if config.out is not None:
            self._check_replaced(sources)
        if config.show:
            issue = find_display_issue()
            self._window = None if issue else Window()
            if issue:
                warn(f"--show: {issue}; going on without a window")

    def make_path(self, stem: str, suffix: str) -> Path:
        """Return an unused name in the folder, with a number appended if there is another of the name or it is a source."""
        path, number = self.folder / f"{stem}{suffix}", 2
        while path.absolute() in self._taken:
            path, number = self.folder / f"{stem}-{number}{suffix}", number + 1
        self._taken.add(path.absolute())
        return path

    def _check_replaced(self, sources: Sequence[Source]) -> None:
        """Raise OutputError if a file of somebody else would be replaced; what cannot be read may leave names free."""
        taken = set(self._taken)
        images = [image.stem for source in sources for image in source.images]
        videos = [video.stem for source in sources for video in source.videos]
        json = [name for name, some in (("detections.json", images), ("detections.jsonl", videos)) if some]
        drawn = [(stem, ".png") for stem in images] + [(stem, ".mp4") for stem in videos]
        paths = [self.make_path(*one) for one in drawn if self.config.save]
        self._taken = taken
        check_own([self.folder / name for name in json] + paths, force=self.config.force)

    @property
    def videos(self) -> tuple[Path, ...]:
        """The annotated videos that are finished, in the order in which they were begun."""
        return tuple(path for path, is_finished in self._videos.items() if is_finished)

    def begin_video(self, stem: str) -> Path:
        """Return a name for an annotated video."""
        path = self.make_path(stem, ".mp4")
        self._videos[path] = False
        return path

    def finish_video(self, path: Path) -> None:
        """Count a video as finished."""
        self._videos[path] = True

    @property
    def draws(self) -> bool:
        """Whether annotated images are to be written or shown."""
        return self.config.save or self._window is not None

    def draw(self, pixels: Image, found: Detections) -> Image:
        """Return a copy of an image (H, W, 3) with its detections."""
        return draw_detections(pixels, found, self.names, min_score=self.config.confidence)

    def show(self, image: Image, wait_ms: int = 1) -> None:
        """Show an image; without a window nothing is shown."""
        if self._window is not None and not self._window.show(image, wait_ms):
            self._window.close()
            self._window, self.is_left = None, True

    def emit(self, source: str, found: Detections) -> None:
        """Pass an image's line on."""
        if self._emit is not None:
            self._emit(format_line(source, found, self.names))

    def add_frame(self, source: str, found: Detections, number: int, time_s: float) -> None:
        """Write a frame's line to detections.jsonl, where others can read it at once, and pass it on.

        Raises:
            OutputError: it cannot be written.
        """
        line = format_line(source, found, self.names, number, time_s)
        path = self.folder / "detections.jsonl"
        try:
            if self._file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = path.open("w", encoding="utf-8")
                self.frames = path
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"cannot be written ({error.strerror or error})", where=path) from error
        if self._emit is not None:
            self._emit(line)

    def close(self) -> None:
        """Close the file of lines and the window."""
        if self._file is not None:
            with suppress(OSError):  # all is flushed but a line that could not be written, which has been told
                self._file.close()
        if self._window is not None:
            self._window.close()
