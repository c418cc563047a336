"""Annotated videos: each frame at its time, and a file only when it is whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from videos import draw_frame, read_video

from yolo_prune.errors import OutputError
from yolo_prune.evaluation.video_writer import VideoWriter


def write(path: Path, times: list[float], fps: float = 10.0) -> list[int]:
    """Write a frame of a brightness of its own at each time; return the frames of the file by their brightness."""
    path.unlink(missing_ok=True)
    writer = VideoWriter(path, fps)
    for number, time_s in enumerate(times):
        writer.write(np.full((64, 96, 3), 20 * number, np.uint8), time_s)
    assert not path.exists()
    writer.close()
    frames, read_fps = read_video(path)
    assert read_fps == pytest.approx(fps, abs=0.01)
    return [round(float(frame.mean()) / 20) for frame in frames]


def test_frames_are_shown_at_their_times(tmp_path: Path) -> None:
    for times, expected in (
        ([0.0, 0.1, 0.2, 0.3], [0, 1, 2, 3]),
        ([5.033, 5.1, 5.23, 5.333], [0, 1, 2, 3]),  # a first frame that is not at 0, and times that are not exact
        ([0.0, 0.3, 0.4], [0, 0, 0, 1, 2]),  # one comes late
        ([0.0, 0.04, 0.1, 0.12, 0.2], [0, 2, 4]),  # some come too soon
        ([0.0, 0.1, 600.0, 600.1], [0, 1, 2, 3]),  # a long gap is left out
    ):
        assert write(tmp_path / "a.mp4", times) == expected


@pytest.mark.parametrize("fps", [29.97, 23.976, 1 / 3, 59.94006, 119.88, 240.1234, 499.99])
def test_any_rate_can_be_written(tmp_path: Path, fps: float) -> None:
    assert write(tmp_path / "a.mp4", [number / fps for number in range(9)], fps) == list(range(9))


def test_colours_and_sizes(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", 10)
    for number, (width, height) in enumerate(((99, 63), (48, 32), (200, 100))):
        writer.write(np.full((height, width, 3), (250, 40, 10), np.uint8), number / 10)
    writer.close()
    frames, _ = read_video(tmp_path / "a.mp4")
    assert [frame.shape for frame in frames] == [(62, 98, 3)] * 3  # MPEG-4 has no odd sides
    for frame in frames:
        assert frame.mean((0, 1)) == pytest.approx([10, 40, 250], abs=12)


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("an older one")
    writer = VideoWriter(tmp_path / "a.mp4", 10)
    writer.write(draw_frame(0), 0.0)
    assert (tmp_path / "a.mp4").read_text() == "an older one"
    writer.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "an older one"
    writer = VideoWriter(tmp_path / "a.mp4", 10)
    writer.write(draw_frame(0), 0.0)
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert len(read_video(tmp_path / "a.mp4")[0]) == 1


def test_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/a\.mp4: cannot be written \("):
        VideoWriter(tmp_path / "file/a.mp4", 10).write(draw_frame(0), 0.0)
    monkeypatch.setattr("yolo_prune.evaluation.video_writer.CODEC", "none")
    with pytest.raises(
        OutputError, match=r"b\.mp4: OpenCV writes no none video of 96 × 64 px; use a build of OpenCV with"
    ):
        VideoWriter(tmp_path / "b.mp4", 10).write(draw_frame(0), 0.0)
    monkeypatch.undo()
    writer = VideoWriter(tmp_path / "c.mp4", 10)
    writer.write(draw_frame(0), 0.0)
    monkeypatch.setattr("yolo_prune.evaluation.video_writer._can_be_read", lambda path: False)
    with pytest.raises(OutputError, match=r"c\.mp4: cannot be written; check that the disk is not full"):
        writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
