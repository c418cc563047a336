"""Frames of video files, and of what is live."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path
from threading import Event
from typing import Any

import cv2
import numpy as np
import pytest
from videos import FPS, Server, draw_frame, serve, turn_video, write_video

from yolo_prune.datasets import live, sources
from yolo_prune.datasets.live import LiveVideo, open_video, take_all
from yolo_prune.datasets.sources import Video
from yolo_prune.datasets.video import AHEAD, Frame, VideoFile
from yolo_prune.errors import DatasetError

WAIT_S = 20.0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(live, "PAUSES_S", (0.01, 0.01))
    with serve() as server:
        yield server


def make_video(word: str | Path, scratch: Path = Path("nowhere")) -> Video:
    return sources.make_video(word, scratch)


def read(word: str | Path, stride: int = 1, scratch: Path = Path("nowhere")) -> tuple[VideoFile, list[Frame]]:
    video = open_video(make_video(word, scratch), stride)
    assert isinstance(video, VideoFile)
    return video, list(video.frames())


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "mp4v"), ("a.avi", "MJPG"), ("a.mkv", "mp4v"), ("a.mov", "mp4v")]
)
def test_every_frame_of_a_file_in_order(tmp_path: Path, name: str, codec: str) -> None:
    video, frames = read(write_video(tmp_path / name, codec=codec))
    assert (video.fps, video.count) == (FPS, 20)
    assert [frame.number for frame in frames] == list(range(20))
    assert [frame.time_s for frame in frames] == pytest.approx([number / FPS for number in range(20)], abs=1e-3)
    for frame in frames:
        assert frame.pixels.shape == (64, 96, 3)
        assert np.abs(frame.pixels.astype(int) - draw_frame(frame.number)).mean() < 8
    assert video.decoding_s > 0


def test_pixels_are_rgb(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 64))
    writer.write(np.full((64, 64, 3), (250, 40, 10), np.uint8))  # blue, as OpenCV orders it
    writer.release()
    _, (frame,) = read(tmp_path / "a.avi")
    assert frame.pixels.mean((0, 1)) == pytest.approx([10, 40, 250], abs=12)


def test_a_file_may_be_closed_while_it_is_read(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 200)
    for _ in range(20):
        video = open_video(make_video(tmp_path / "a.mp4"))
        assert isinstance(video, VideoFile)
        frames = video.frames()
        next(frames)
        video.close()
        assert len(list(frames)) <= AHEAD


def test_a_stride_keeps_numbers_and_times(tmp_path: Path) -> None:
    _, frames = read(write_video(tmp_path / "a.mp4"), stride=6)
    assert [frame.number for frame in frames] == [0, 6, 12, 18]
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.6, 1.2, 1.8])


def test_a_telephone_s_video_stands_upright(tmp_path: Path) -> None:
    turn_video(write_video(tmp_path / "a.mp4"))
    _, frames = read(tmp_path / "a.mp4")
    assert frames[0].pixels.shape == (96, 64, 3)
    turned = cv2.rotate(draw_frame(0), cv2.ROTATE_90_CLOCKWISE).astype(int)
    assert np.abs(frames[0].pixels - turned).mean() < 8


def test_names_that_ffmpeg_would_read_otherwise(workplace: Path) -> None:
    for name in ("concat:a.mp4", "a%03d.mp4", "ä b.mp4"):
        write_video(Path("plain.mp4"), frames=3).rename(name)
        assert len(read(name)[1]) == 3


def test_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("1\n2\n" * 99)
    (tmp_path / "void.mp4").touch()
    write_video(tmp_path / "none.avi", 0, codec="MJPG")
    (tmp_path / "cut.mp4").write_bytes(write_video(tmp_path / "whole.mp4").read_bytes()[:-200])
    for name, what in (
        ("text.mp4", "is not a readable video; name a whole video file"),
        ("void.mp4", "is not a readable video; "),
        ("cut.mp4", "is not a readable video; "),  # its table of contents was at the end
        ("none.avi", "holds no frame that can be read; "),
        ("absent.mp4", "there is no such video; name a video that exists"),
    ):
        with pytest.raises(DatasetError) as error:
            read(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: {what}")


def test_frames_before_a_broken_end_are_read(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.avi", 40, codec="MJPG").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    video = open_video(make_video(tmp_path / "cut.avi"))
    assert isinstance(video, VideoFile)
    numbers: list[int] = []
    with pytest.raises(DatasetError, match=r"cut\.avi: ends after \d\.\d of 4\.0 s, the rest is missing or broken; "):
        numbers.extend(frame.number for frame in video.frames())
    assert numbers == list(range(len(numbers)))
    assert 5 < len(numbers) < 30


def test_a_broken_middle_is_passed_over(tmp_path: Path) -> None:
    data = bytearray(write_video(tmp_path / "a.avi", 40, codec="MJPG").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(300)
    (tmp_path / "a.avi").write_bytes(data)
    _, frames = read(tmp_path / "a.avi")
    assert frames[-1].number >= 30


def test_no_camera(workplace: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"^camera 77: there is no such camera, or another .*; check that it is conn"
    ):
        open_video(make_video("77"))
    Path("77").mkdir()
    with pytest.raises(DatasetError, match=r"or write \./77 for the file$"):
        open_video(make_video("77"))


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_video_by_its_url_is_read_as_a_file(server: Server, tmp_path: Path, has_ranges: bool) -> None:
    """It can be read in place if the server sends any part of it; its table of contents is at the end."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    server.has_ranges = has_ranges
    server.files["clip.mp4"] = ("video/mp4", write_video(tmp_path / "a.mp4").read_bytes())
    video, frames = read(server.url("clip.mp4"), scratch=scratch)
    assert [frame.number for frame in frames] == list(range(20))
    assert video.video.name == server.url("clip.mp4")
    assert len(list(scratch.iterdir())) == (not has_ranges)
    server.files["clip.mp4"] = ("video/mp4", b"no video" * 99)
    with pytest.raises(DatasetError, match=r"clip\.mp4: (sends no video that can be read|is not a readable video); "):
        read(server.url("clip.mp4"), scratch=scratch)
    server.files["list.m3u8"] = ("application/vnd.apple.mpegurl", b"#EXTM3U")
    assert make_video(server.url("list.m3u8"), scratch).place == server.url("list.m3u8")


def test_of_a_stream_the_newest_frame_is_taken(server: Server, tmp_path: Path) -> None:
    video = open_video(make_video(server.url("stream"), tmp_path))
    assert isinstance(video, LiveVideo)
    frames = []
    for frame in video.frames():
        frames.append(frame)
        if len(frames) == 5:
            break
        seen = server.streamed
        wait_for(lambda: server.streamed >= seen + 8)  # noqa: B023  # called in this turn
    video.close()
    steps = np.diff([frame.number for frame in frames])
    assert frames[0].number == 0
    assert all(steps >= 4)  # some frames may still be on their way
    assert video.dropped >= sum(steps - 1)
    assert np.diff([frame.time_s for frame in frames]).min() > 0
    sent = server.streamed
    time.sleep(0.2)
    assert server.streamed <= sent + 2, "it goes on reading"


def test_a_stream_that_breaks_off_is_opened_again(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.frames_per_connection = [1 << 30, 6, 6, 0]  # the first is that which looks what is there
    video = open_video(make_video(server.url("stream"), tmp_path))
    numbers: list[int] = []
    with pytest.raises(DatasetError, match=r"stream: the stream broke off after \d+ frames, and stays away; check"):
        numbers.extend(frame.number for frame in video.frames())
    video.close()
    assert 6 < len(numbers) <= 12
    assert numbers == sorted(set(numbers))
    line = f"warning: {server.url('stream')}: the stream broke off; connecting again"
    assert set(capsys.readouterr().err.splitlines()) == {line}


def test_a_stream_that_stands_still_is_not_waited_for_for_ever(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yolo_prune.datasets.video.TIMEOUT_S", 0.3)
    server.frames_per_connection, server.stalls = [1 << 30, 20, 0], True
    video = open_video(make_video(server.url("stream"), tmp_path))
    start_s = time.monotonic()
    with pytest.raises(DatasetError, match="the stream broke off after"):
        list(video.frames())
    assert time.monotonic() - start_s < WAIT_S


class FakeCamera:
    """A camera that gives some frames, and then no more."""

    def __init__(self, frames: int) -> None:
        self.left = frames

    def read(self) -> tuple[bool, Any]:
        time.sleep(0.002)
        self.left -= 1
        return (True, draw_frame(self.left)) if self.left >= 0 else (False, None)

    def get(self, key: int) -> float:
        return {cv2.CAP_PROP_FPS: 0.0, cv2.CAP_PROP_FRAME_COUNT: -1.0}.get(key, 0.0)

    def release(self) -> None:
        self.left = 0


def test_cameras_at_once_until_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "open_capture", lambda video: FakeCamera(20 if video.place else 40))
    news = Event()
    videos = [open_video(Video(str(number), number, "a"), news=news) for number in (0, 1)]
    both = [video for video in videos if isinstance(video, LiveVideo)]
    assert [video.fps for video in both] == [30.0, 30.0]  # they say 0
    taken = [(both.index(video), frame.number) for video, frame in take_all(both, lambda: False)]
    assert {place for place, _ in taken} == {0, 1}
    for place, video in enumerate(both):
        numbers = [number for other, number in taken if other == place]
        assert numbers == sorted(set(numbers))
        assert "gives no more frames; check that it is plugged in" in str(video.error)


@pytest.mark.parametrize(
    ("frames", "opened", "said"),
    [
        ((9, 1, 9, 1), 5, "the stream breaks off after each frame; check that it is a stream, and not an image"),
        ((1,), 3, "the stream breaks off after each frame"),
        ((9, 9, 0), 4, "the stream broke off after 18 frames, and stays away; check that it still runs"),
        ((1, 0), 3, "the stream broke off after 1 frames, and stays away"),
    ],
)
def test_a_stream_that_brings_no_more_than_a_frame_each_time_is_given_up(
    monkeypatch: pytest.MonkeyPatch, frames: tuple[int, ...], opened: int, said: str
) -> None:
    captures = chain(map(FakeCamera, frames), repeat(FakeCamera(0)) if not frames[-1] else map(FakeCamera, repeat(1)))
    count = 0

    def open_next(video: Video) -> FakeCamera:
        nonlocal count
        count += 1
        return next(captures)

    monkeypatch.setattr(live, "PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(live, "open_capture", open_next)
    video = open_video(Video("http://host/a", "http://host/a", "a", is_url=True))
    assert isinstance(video, LiveVideo)
    with pytest.raises(DatasetError, match=f"^http://host/a: {said}"):
        list(video.frames())
    assert count == opened


def test_stopping_a_live_video(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "open_capture", lambda video: FakeCamera(10**6))
    video = open_video(Video("0", 0, "a"))
    assert isinstance(video, LiveVideo)
    taken: list[Frame] = []
    for _, frame in take_all([video], lambda: len(taken) > 2):
        taken.append(frame)
    assert len(taken) == 3
    video.close()
    assert not video._thread.is_alive()
