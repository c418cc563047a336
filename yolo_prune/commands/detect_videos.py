"""The videos of `detect`: frames from files in their order, and from all that is live at once, the newest first."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from threading import Event
from types import TracebackType

from yolo_prune.commands.detect_outputs import Issues, Outputs
from yolo_prune.console import Bar, report
from yolo_prune.datasets.live import LiveVideo, open_video, take_all
from yolo_prune.datasets.sources import Source, Video
from yolo_prune.datasets.video import Frame, VideoFile
from yolo_prune.errors import DatasetError
from yolo_prune.evaluation.detections import Detections
from yolo_prune.evaluation.predictor import Predictor
from yolo_prune.evaluation.video_writer import VideoWriter
from yolo_prune.text_tables import pluralize
from yolo_prune.training.signals import StopSignal, watch_signals

BEFORE = "what came before is done"
LONGEST_TITLE = 20
"""Characters of a video's name in front of a bar."""


class _Track:
    """A video in progress: its annotated copy, which is finished whenever the work is stopped, and its speed.

    Args:
        word: the source that it belongs to.
        reader: where its frames come from.
    """

    def __init__(self, word: str, reader: VideoFile | LiveVideo, outputs: Outputs, stride: int) -> None:
        self.word, self.reader, self._outputs = word, reader, outputs
        self._path = outputs.begin_video(reader.video.stem) if outputs.config.save else None
        self._writer: VideoWriter | None = None
        self._fps = reader.fps / stride
        self.done, self.network_s = 0, 0.0
        self._start_s = time.perf_counter()

    def __enter__(self) -> _Track:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        """Finish the copy, also if nobody reads the lines of JSON any more; after another error discard it."""
        self.reader.close()
        if self._writer is not None:
            if kind is None or issubclass(kind, (BrokenPipeError, KeyboardInterrupt)):
                self._outputs.finish_video(self._writer.close())
            else:
                self._writer.discard()
        if kind is None and self.done:
            report(f"{self.reader.video.name}: {pluralize(self.done, 'frame')}, {self.describe_speed()}")

    def add(self, frame: Frame, found: Detections) -> None:
        """Write, draw and show a frame."""
        self.done += 1
        self._outputs.add_frame(self.reader.video.name, found, frame.number, frame.time_s)
        if not self._outputs.draws:
            return
        drawn = self._outputs.draw(frame.pixels, found)
        if self._path is not None:
            if self._writer is None:
                self._writer = VideoWriter(self._path, self._fps)
            self._writer.write(drawn, frame.time_s)
        self._outputs.show(drawn)

    def describe_speed(self) -> str:
        """Say how many frames a second were done, and how many decoding alone and the network alone would do."""
        rates = [f"network {_rate(self.done, self.network_s)}"]
        if isinstance(self.reader, VideoFile):
            rates.insert(0, f"decoding {_rate(self.done, self.reader.decoding_s)}")
        else:
            rates.append(f"{self.reader.dropped} dropped")
        return f"{_rate(self.done, time.perf_counter() - self._start_s)} a second ({', '.join(rates)})"


class VideoRun:
    """Detects objects in the videos of sources.

    Args:
        batch_size: frames of a file that go through the network together; live frames go alone.
    """

    def __init__(self, predictor: Predictor, batch_size: int, outputs: Outputs, issues: Issues) -> None:
        self._predictor, self._batch_size = predictor, batch_size
        self._outputs, self._issues = outputs, issues
        self._config = outputs.config

    def detect_all(self, sources: Iterable[Source]) -> int:
        """Detect objects in every frame; return the exit code of what stopped it, 0 if nothing did.

        Raises:
            OutputError: a file cannot be written.
        """
        videos = [(source.word, video) for source in sources for video in source.videos]
        if not videos:
            return 0
        videos.sort(key=lambda one: one[1].is_url or one[1].is_camera)  # files come first, which end by themselves
        with watch_signals(self._config.max_minutes) as stop, ExitStack() as stack:
            live, news = [], Event()
            for word, video in videos:
                if self._has_to_stop(stop):
                    break
                if (track := self._open(word, video, news)) is None:
                    continue
                if isinstance(track.reader, LiveVideo):
                    live.append(stack.enter_context(track))
                else:
                    self._detect_file(track, track.reader, stop)
            self._detect_live(live, stop)
            return stop.code
        return 0

    def _open(self, word: str, video: Video, news: Event) -> _Track | None:
        try:
            reader = open_video(video, self._config.stride, news)
        except DatasetError as error:
            self._issues.add(word, error)
            return None
        return _Track(word, reader, self._outputs, self._config.stride)

    def _detect_file(self, track: _Track, reader: VideoFile, stop: StopSignal) -> None:
        with track, _make_bar(reader.video.name, reader.count // self._config.stride or None) as bar:
            try:
                for batch in _group(reader.frames(), self._batch_size):
                    self._detect(track, batch)
                    bar.show(track.done, note=track.describe_speed())
                    if self._has_to_stop(stop):
                        break
            except DatasetError as error:
                self._issues.add(track.word, error, BEFORE)

    def _detect_live(self, tracks: Sequence[_Track], stop: StopSignal) -> None:
        if not tracks:
            return
        by_reader = {id(track.reader): track for track in tracks}
        readers = [track.reader for track in tracks if isinstance(track.reader, LiveVideo)]
        with _make_bar(", ".join(track.reader.video.name for track in tracks)) as bar:
            for reader, frame in take_all(readers, lambda: self._has_to_stop(stop)):
                track = by_reader[id(reader)]
                self._detect(track, [frame])
                bar.show(sum(each.done for each in tracks), note=track.describe_speed())
        for track, reader in zip(tracks, readers, strict=True):
            if reader.error is not None:
                self._issues.add(track.word, reader.error, BEFORE)

    def _detect(self, track: _Track, frames: Sequence[Frame]) -> None:
        start_s = time.perf_counter()
        all_found = self._predictor.detect_batch([frame.pixels for frame in frames])
        track.network_s += time.perf_counter() - start_s
        for frame, found in zip(frames, all_found, strict=True):
            track.add(frame, found)
            if self._outputs.is_left:
                break

    def _has_to_stop(self, stop: StopSignal) -> bool:
        return self._outputs.is_left or stop.code != 0


def _group(frames: Iterator[Frame], size: int) -> Iterator[list[Frame]]:
    """Yield frames in groups; if reading fails, those that were read come before the error."""
    group: list[Frame] = []
    broken: DatasetError | None = None
    try:
        for frame in frames:
            group.append(frame)
            if len(group) == size:
                yield group
                group = []
    except DatasetError as error:
        broken = error
    if group:
        yield group
    if broken is not None:
        raise broken


def _make_bar(title: str, total: int | None = None) -> Bar:
    return Bar(title if len(title) <= LONGEST_TITLE else f"…{title[1 - LONGEST_TITLE :]}", total, "frames")


def _rate(count: int, seconds: float) -> str:
    rate = count / seconds if seconds > 0 else 0.0
    return f"{rate:.1f}" if rate < 100 else f"{rate:.0f}"
