"""Cameras and streams: a thread reads all that comes, and only the newest frame is kept, so that nothing lags behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from threading import Event, Lock, Thread

import cv2

from yolo_prune.console import warn
from yolo_prune.datasets.sources import Video
from yolo_prune.datasets.video import Frame, VideoFile, get_fps, has_length, open_capture, to_rgb
from yolo_prune.errors import DatasetError

PAUSES_S = (1.0, 2.0, 4.0)
"""Seconds to wait before each try to connect again to a stream that broke, until a try brings more than one frame."""
POLL_S = 0.2
"""How often it is asked whether to stop, where no frame comes."""
PATIENCE_S = 2.0
"""Seconds that the end waits for a thread that is still reading."""


class LiveVideo:
    """A camera or a stream. `take` returns the newest frame; those that came before it and were not taken are dropped.

    Args:
        video: where it is.
        capture: what was opened of it.
        stride: step between the frames that are taken.
        news: an event that is set whenever there is a new frame, and at the end; several may share one.
    """

    def __init__(self, video: Video, capture: cv2.VideoCapture, stride: int = 1, news: Event | None = None) -> None:
        self.video, self.fps = video, get_fps(capture)
        self.error: DatasetError | None = None
        """Why it ended."""
        self.dropped = 0
        """Frames that nobody took, since the first that somebody took."""
        self.news = news or Event()
        self._capture, self._stride = capture, stride
        self._newest: tuple[int, float, object] | None = None
        self._read, self._first, self._start_s = 0, 0, 0.0
        self._read_before, self._tries = 0, 0  # frames before it last broke; tries since it brought more than one
        self._is_started, self._is_stopped, self._has_ended = False, Event(), False
        self._lock = Lock()
        self._thread = Thread(target=self._run, name=f"reader of {video.name}", daemon=True)
        self._thread.start()

    def take(self) -> Frame | None:
        """Return the newest frame, once; None if none has come since."""
        with self._lock:
            if self._newest is None:
                return None
            (number, time_s, image), self._newest = self._newest, None
            if not self._is_started:
                self._is_started, self._first, self._start_s, self.dropped = True, number, time_s, 0
        return Frame(number - self._first, time_s - self._start_s, to_rgb(image))

    @property
    def has_ended(self) -> bool:
        """Whether no frame will come, and all have been taken."""
        return self._has_ended and self._newest is None

    def frames(self) -> Iterator[Frame]:
        """Yield the newest frame whenever one is asked for, waiting for it.

        Raises:
            DatasetError: the stream broke.
        """
        for _, frame in take_all([self], lambda: False):
            yield frame
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Stop reading."""
        self._is_stopped.set()
        self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        try:
            while not self._is_stopped.is_set():
                try:
                    is_there, image = self._capture.read()
                except cv2.error:
                    is_there, image = False, None
                if is_there and image is not None:
                    self._keep(image)
                elif not self._connect_again():
                    break
        except DatasetError as error:
            self.error = error
        finally:
            self._capture.release()
            self._has_ended = True
            self.news.set()

    def _keep(self, image: object) -> None:
        number, self._read = self._read, self._read + 1
        if number % self._stride:
            return
        with self._lock:
            self.dropped += self._newest is not None
            self._newest = (number, time.monotonic(), image)
        self.news.set()

    def _connect_again(self) -> bool:
        """Open the stream again after it broke, and read a frame; return False if reading was stopped meanwhile.

        Raises:
            DatasetError: it stays away.
        """
        if self._is_stopped.is_set():
            return False
        self._capture.release()
        if not self._read:
            raise DatasetError("sends no frame", where=self.video.name, right="check that it runs")
        if self.video.is_camera:
            right = "check that it is plugged in, and that no other program uses it"
            raise DatasetError("gives no more frames", where=f"camera {self.video.name}", right=right)
        brought, self._read_before = self._read - self._read_before, self._read
        if brought > 1 or not self._tries:
            self._tries = 0
            warn(f"{self.video.name}: the stream broke off; connecting again")
        if self._tries == len(PAUSES_S):
            right = "check that it is a stream, and not an image"
            raise DatasetError("the stream breaks off after each frame", where=self.video.name, right=right)
        for pause_s in PAUSES_S[self._tries :]:
            if self._is_stopped.wait(pause_s):
                return False
            self._tries += 1
            try:
                self._capture = open_capture(self.video)
                is_there, image = self._capture.read()
            except (DatasetError, cv2.error):
                continue
            if is_there:
                self._keep(image)
                return True
        what = f"the stream broke off after {self._read} frames, and stays away"
        raise DatasetError(what, where=self.video.name, right="check that it still runs")


def open_video(video: Video, stride: int = 1, news: Event | None = None) -> VideoFile | LiveVideo:
    """Open a video file, a camera or a stream; what is not a file and states no length is live.

    Raises:
        DatasetError: it is not there, or no video.
    """
    capture = open_capture(video)
    if video.is_camera or (video.is_url and not has_length(capture)):
        return LiveVideo(video, capture, stride, news)
    return VideoFile(video, capture, stride)


def take_all(videos: Sequence[LiveVideo], is_stopped: Callable[[], bool]) -> Iterator[tuple[LiveVideo, Frame]]:
    """Yield the newest frames of several live videos that share one event, in turn, until all have ended."""
    while running := [video for video in videos if not video.has_ended]:
        running[0].news.wait(POLL_S)
        running[0].news.clear()
        for video in running:
            if is_stopped():
                return
            if (frame := video.take()) is not None:
                yield video, frame
