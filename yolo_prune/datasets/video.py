"""Frames of video files, cameras and streams, read by OpenCV as RGB, rotated as a file's metadata say."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from threading import Lock

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg writes to stderr what is told here in one line

import cv2
import numpy as np
from cv2.utils import logging as opencv_logging

from yolo_prune.bounded import is_utf8, open_plain
from yolo_prune.datasets.images import ImageArray
from yolo_prune.datasets.remote import TIMEOUT_S
from yolo_prune.datasets.sources import Video
from yolo_prune.errors import DatasetError
from yolo_prune.limits import MOST_FRAME_PIXELS

AHEAD = 4
"""Frames of a file that are read before they are asked for."""
USUAL_FPS, MOST_FPS = 30.0, 500.0
"""Frames per second of a video that does not say how many it has, and the most that are taken for true."""
LACKING_SHARE, LACKING_S = 0.05, 0.4
"""How much of a file may lack at its end, as the length that it states is not exact."""
RIGHT_VIDEO = "name a whole video file, such as an MP4"


@dataclass(frozen=True)
class Frame:
    """One frame of a video."""

    number: int
    """Counted from 0, dropped frames too."""
    time_s: float
    """Time since the first frame; of a file as the video states it, of a live source as it passes."""
    pixels: ImageArray
    """RGB (H, W, 3)."""


class VideoFile:
    """A video of known length: every frame is read, in order.

    Args:
        video: where it is.
        stride: step between the frames that are taken.
    """

    def __init__(self, video: Video, capture: cv2.VideoCapture, stride: int = 1) -> None:
        self.video, self.stride = video, stride
        self._capture, self._lock, self._is_closed = capture, Lock(), False
        self.fps = get_fps(capture)
        """Frames per second."""
        self.count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if has_length(capture) else 0
        """How many frames it says it has; 0 if that is not known."""
        self.decoding_s = 0.0
        """Seconds spent on decoding so far."""

    def frames(self) -> Iterator[Frame]:
        """Yield the frames; a thread reads ahead.

        Raises:
            DatasetError: it holds no frame, or ends before its end.
        """
        frames = self._read()
        with ThreadPoolExecutor(1) as pool:
            waiting = deque(pool.submit(next, frames, None) for _ in range(AHEAD))
            try:
                while (frame := waiting.popleft().result()) is not None:
                    waiting.append(pool.submit(next, frames, None))
                    yield frame
            finally:
                for future in waiting:
                    future.cancel()

    def close(self) -> None:
        """Release the file; `frames` yields no more than what it has read."""
        with self._lock:
            self._is_closed = True
            self._capture.release()

    def _read(self) -> Iterator[Frame]:
        number, time_s = 0, 0.0
        while (found := self._read_one(number)) is not None:
            stated_s, pixels = found
            time_s = max(time_s, stated_s if stated_s > 0 else number / self.fps)
            if pixels is not None:
                yield Frame(number, time_s, pixels)
            number += 1
        if self._is_closed:
            return
        if not number:
            raise DatasetError("holds no frame that can be read", where=self.video.name, right=RIGHT_VIDEO)
        if self.count:
            end_s, whole_s = time_s + 1 / self.fps, self.count / self.fps
            if whole_s - end_s > LACKING_S + LACKING_SHARE * whole_s:
                what = f"ends after {end_s:.1f} of {whole_s:.1f} s, the rest is missing or broken"
                raise DatasetError(what, where=self.video.name, right=RIGHT_VIDEO)

    def _read_one(self, number: int) -> tuple[float, ImageArray | None] | None:
        """Return the time of the next frame in s, and its pixels unless it is to be left out; None at the end."""
        start = time.perf_counter()
        with self._lock:
            try:
                if self._is_closed or not self._capture.grab():
                    return None
                stated_s = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                if number % self.stride:
                    return stated_s, None
                is_there, image = self._capture.retrieve()
                return stated_s, to_rgb(image) if is_there else None
            except cv2.error:
                return None
            finally:
                self.decoding_s += time.perf_counter() - start


def open_capture(video: Video) -> cv2.VideoCapture:
    """Open a video, camera or stream; a server that does not send is waited for `TIMEOUT_S`.

    Raises:
        DatasetError: it is not there, is no video, or has too many pixels.
    """
    _check_file(video)
    with _no_messages():
        try:
            capture = _open(video)
        except cv2.error:
            capture = cv2.VideoCapture()
    if not capture.isOpened():
        capture.release()
        raise _explain(video)
    width, height = (capture.get(side) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    if width * height > MOST_FRAME_PIXELS:
        capture.release()
        what = f"has frames of {width:.0f} × {height:.0f} pixels, more than {MOST_FRAME_PIXELS:,}"
        raise DatasetError(what, where=video.name, right="make it smaller")
    return capture


def _check_file(video: Video) -> None:
    """Check what OpenCV does not: a pipe would be waited for, and a name that is not UTF-8 crashes it.

    Raises:
        DatasetError: the file cannot be opened.
    """
    if not isinstance(video.place, str) or video.is_url:
        return
    if not is_utf8(video.place):
        raise DatasetError("has a name that is not UTF-8", where=video.name, right="rename it")
    try:
        with open_plain(Path(video.place)):
            pass
    except FileNotFoundError as error:
        raise _explain(video) from error
    except (OSError, ValueError) as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) else ""
        raise DatasetError(f"is not a readable video{reason}", where=video.name, right=RIGHT_VIDEO) from error


def _open(video: Video) -> cv2.VideoCapture:
    if isinstance(video.place, int):
        return cv2.VideoCapture(video.place)
    if not cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG):
        return cv2.VideoCapture(video.place)
    limit_ms = int(TIMEOUT_S * 1000)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit_ms]
    return cv2.VideoCapture(video.place, cv2.CAP_FFMPEG, limits if video.is_url else [])


def _explain(video: Video) -> DatasetError:
    if video.is_camera:
        there = f", or write ./{video.name} for the file" if Path(video.name).exists() else ""
        what = "there is no such camera, or another program uses it"
        return DatasetError(what, where=f"camera {video.name}", right=f"check that it is connected{there}")
    if not video.is_url and not Path(str(video.place)).exists():
        return DatasetError("there is no such video", where=video.name, right="name a video that exists")
    what = "sends no video that can be read" if video.is_url else "is not a readable video"
    return DatasetError(what, where=video.name, right=RIGHT_VIDEO)


@contextmanager
def _no_messages() -> Iterator[None]:
    """Keep OpenCV from writing to stderr what it tried."""
    level = opencv_logging.getLogLevel()
    opencv_logging.setLogLevel(opencv_logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        opencv_logging.setLogLevel(level)


def get_fps(capture: cv2.VideoCapture) -> float:
    """Return a video's frames per second, `USUAL_FPS` if it states no likely number."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if isfinite(fps) and 0 < fps <= MOST_FPS else USUAL_FPS


def has_length(capture: cv2.VideoCapture) -> bool:
    """Return whether a video states how many frames it has; a live one does not."""
    return 0 < capture.get(cv2.CAP_PROP_FRAME_COUNT) < 1e12


def to_rgb(image: object) -> ImageArray:
    """Return what OpenCV decoded, BGR or grey, as RGB uint8 (H, W, 3)."""
    pixels = np.asarray(image, np.uint8)
    code = cv2.COLOR_GRAY2RGB if pixels.ndim == 2 or pixels.shape[-1] == 1 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(pixels, code), np.uint8)
