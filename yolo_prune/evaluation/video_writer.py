"""Write an MP4 file of frames that have times; it gets its name when it is whole."""

from __future__ import annotations

import os
from pathlib import Path

import cv2

from yolo_prune.bounded import is_utf8
from yolo_prune.errors import OutputError
from yolo_prune.evaluation.previews import Image
from yolo_prune.own_files import mark_mp4
from yolo_prune.scraps import begin_scrap, discard, remove_scraps

CODEC = "mp4v"
"""MPEG-4 part 2, the one codec for MP4 files that every build of OpenCV with FFmpeg can write."""
LONGEST_GAP_S = 10.0
"""A longer time without a frame is left out."""


class VideoWriter:
    """Write frames at a constant rate, so that they are shown at their times.

    A frame that comes later than the rate says is preceded by copies of the one before it, and one that comes too soon
    is left out. If the times are those of the rate, every frame is written once.

    Args:
        path: the file to write, ending in .mp4.
        fps: frames per second.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self.fps = round(fps, 3 if fps < 65 else 2 if fps < 650 else 0)  # MPEG-4 counts with up to 65,535 parts of 1 s
        self._scratch = begin_scrap(path, path.suffix)  # OpenCV takes the format from it
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._written, self._origin_s = 0, 0.0
        self._last: Image | None = None

    def write(self, image: Image, time_s: float) -> None:
        """Add an RGB image (H, W, 3), resized if it is not as large as the first.

        Raises:
            OutputError: no video can be written there.
        """
        if self._writer is None:
            self._size, self._origin_s = (image.shape[1], image.shape[0]), time_s
            self._writer = self._open()
        missing = round((time_s - self._origin_s) * self.fps) - self._written
        if missing > LONGEST_GAP_S * self.fps:
            self._origin_s += missing / self.fps
            missing = 0
        if missing < 0:
            return
        if (image.shape[1], image.shape[0]) != self._size:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]  # still uint8
        frame: Image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)  # type: ignore[assignment]  # still uint8
        for _ in range(missing):
            self._write(frame if self._last is None else self._last)
        self._write(frame)
        self._last = frame

    def close(self) -> Path:
        """Finish the file and return its path.

        Raises:
            OutputError: it could not be written; a file of that name is unchanged.
        """
        try:
            if self._writer is not None:
                self._writer.release()
            if not _can_be_read(self._scratch):
                raise OutputError("cannot be written", where=self.path, right="check that the disk is not full")
            mark_mp4(self._scratch)
            with self._scratch.open("rb+") as file:
                os.fsync(file.fileno())
            self._scratch.replace(self.path)
        except OSError as error:
            raise OutputError(f"cannot be written ({error.strerror or error})", where=self.path) from error
        finally:
            self.discard()
        return self.path

    def discard(self) -> None:
        """Remove what was written, unless it is finished."""
        if self._writer is not None:
            self._writer.release()
        discard(self._scratch)

    def _open(self) -> cv2.VideoWriter:
        if not is_utf8(str(self._scratch.absolute())):
            raise OutputError("is in a folder whose name is not UTF-8", where=self.path, right="name another --out")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            remove_scraps(self.path.parent, self.path.name)
            self._scratch.touch()
        except OSError as error:
            raise OutputError(f"cannot be written ({error.strerror or error})", where=self.path) from error
        code = cv2.VideoWriter.fourcc(*CODEC)
        writer = cv2.VideoWriter(str(self._scratch.absolute()), code, self.fps, self._size)
        if not writer.isOpened():
            self.discard()
            right = "use a build of OpenCV with FFmpeg, or --no-save"
            size = " × ".join(map(str, self._size))
            raise OutputError(f"OpenCV writes no {CODEC} video of {size} px", where=self.path, right=right)
        return writer

    def _write(self, frame: Image) -> None:
        assert self._writer is not None
        self._writer.write(frame)
        self._written += 1


def _can_be_read(path: Path) -> bool:
    capture = cv2.VideoCapture(str(path.absolute()))
    is_there = bool(capture.isOpened()) and bool(capture.grab())
    capture.release()
    return is_there
