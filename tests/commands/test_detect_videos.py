"""`detect` on videos, streams and mixtures: annotated videos, lines of JSON, errors and stops."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from exporting import list_formats
from paths import ROOT
from test_detect import FakeEngine
from tiny import Cli, Outcome, read_json
from videos import FPS, SIZE, Server, draw_frame, read_video, serve, write_video

import yolo_prune as yp
from yolo_prune.console import Bar
from yolo_prune.datasets import live
from yolo_prune.evaluation.previews import PALETTE

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1"}
WAIT_S = 60.0


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find one box in every image: a quarter of its width and height, right of and below the middle less 1/4."""
    monkeypatch.setattr("yolo_prune.evaluation.models.make_engine", lambda model, engine, device: FakeEngine(model))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(live, "PAUSES_S", (0.01, 0.01))
    with serve() as server:
        yield server


def run(cli: Cli, trained: Path, *words: object, stdin: str | bytes = "") -> Outcome:
    return cli("detect", trained, "--device", "cpu", "--out", "out", *words, stdin=stdin)


def read_lines(text: str) -> list[dict[str, Any]]:
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.usefixtures("fake")
def test_a_video_is_annotated_and_its_frames_are_lines(cli: Cli, trained: Path) -> None:
    write_video(Path("clip.avi"), codec="MJPG")
    outcome = run(cli, trained, "clip.avi")
    assert (outcome.code, outcome.out) == (0, "out/clip.mp4\n")
    assert sorted(path.name for path in Path("out").iterdir()) == ["clip.mp4", "detections.jsonl"]
    frames, fps = read_video(Path("out/clip.mp4"))
    assert (len(frames), fps) == (20, FPS)
    lines = read_lines(Path("out/detections.jsonl").read_text())
    assert [line["frame"] for line in lines] == list(range(20))
    assert [line["time_s"] for line in lines] == pytest.approx([number / FPS for number in range(20)])
    assert {line["source"] for line in lines} == {"clip.avi"}
    for frame, line in zip(frames, lines, strict=True):
        assert frame.shape == (SIZE[1], SIZE[0], 3)
        (found,) = line["detections"]
        assert found == {"box_xyxy": found["box_xyxy"], "score": 0.9, "class": 0, "name": "hand"}
        # (16, 24, 32, 40) in a square of 64 px, in which the image is 64 × 43 px below 10 px
        assert found["box_xyxy"] == pytest.approx([24, 21, 48, 45], abs=0.6)
        edge = frame[30:40, 46:51].astype(int) - PALETTE[0][::-1]
        assert np.abs(edge).sum(-1).min() < 120  # its right edge is drawn
    (told,) = outcome.err.splitlines()
    assert re.fullmatch(r"clip\.avi: 20 frames, [\d.]+ a second \(decoding [\d.]+, network [\d.]+\)", told)


@pytest.mark.usefixtures("fake")
def test_other_outputs(cli: Cli, trained: Path) -> None:
    write_video(Path("clip.mp4"))
    outcome = run(cli, trained, "clip.mp4", "--no-save", "--stride", 6)
    assert (outcome.code, outcome.out) == (0, "out/detections.jsonl\n")
    assert [path.name for path in Path("out").iterdir()] == ["detections.jsonl"]
    assert [line["frame"] for line in read_lines(Path("out/detections.jsonl").read_text())] == [0, 6, 12, 18]
    result = read_json(run(cli, trained, "clip.mp4", "--stride", 2, "--json"))
    assert result == {
        "results": None,
        "images": [],
        "detections": [],
        "frames": "out/detections.jsonl",
        "videos": ["out/clip.mp4"],
    }
    frames, fps = read_video(Path("out/clip.mp4"))
    assert (len(frames), fps) == (10, FPS / 2)
    streamed = run(cli, trained, "clip.mp4", "--jsonl")
    assert streamed.code == 0
    assert streamed.out == Path("out/detections.jsonl").read_text()


@pytest.mark.usefixtures("fake")
def test_videos_images_and_folders_together(cli: Cli, trained: Path) -> None:
    for name in ("a/clip.mp4", "b/clip.mp4"):
        write_video(Path(name), frames=3)
    for name in ("b/clip.png", "photo.png"):
        cv2.imwrite(name, draw_frame(0))
    outcome = run(cli, trained, "a/clip.mp4", "b", "-", "--jsonl", stdin="photo.png\n")
    assert outcome.code == 0, outcome.err
    assert [(line["source"], line["frame"]) for line in read_lines(outcome.out)] == [
        *(("b/clip.png", None), ("photo.png", None)),
        *(("a/clip.mp4", number) for number in range(3)),
        *(("b/clip.mp4", number) for number in range(3)),
    ]
    outcome = run(cli, trained, "a/clip.mp4", "b", "photo.png")
    assert outcome.out.split() == ["out/detections.json", "out/clip.mp4", "out/clip-2.mp4"]
    results = json.loads(Path("out/detections.json").read_text())
    assert [result["image_id"] for result in results] == ["b/clip.png", "photo.png"]
    assert {path.name for path in Path("out").iterdir()} == {
        *("clip.mp4", "clip-2.mp4", "clip.png", "photo.png", "detections.json", "detections.jsonl"),
    }


@pytest.mark.usefixtures("fake")
def test_a_video_is_never_overwritten_by_its_copy(cli: Cli, trained: Path) -> None:
    before = write_video(Path("out/clip.mp4"), frames=3).read_bytes()
    assert run(cli, trained, "out/*.mp4").out == "out/clip-2.mp4\n"
    assert Path("out/clip.mp4").read_bytes() == before


@pytest.mark.usefixtures("fake")
def test_an_image_from_stdin(cli: Cli, trained: Path) -> None:
    outcome = run(cli, trained, "-", stdin=cv2.imencode(".png", draw_frame(0))[1].tobytes())
    assert (outcome.code, outcome.out) == (0, "out/detections.json\n")
    assert [result["image_id"] for result in json.loads(Path("out/detections.json").read_text())] == ["-"]
    assert Path("out/stdin.png").is_file()
    piped = cli("detect", "-", "out/stdin.png", "--device", "cpu", stdin=f"{trained}\n")
    assert (piped.code, piped.out) == (0, "runs/detect/detections.json\n")
    both = cli("detect", "-", "-", stdin=f"{trained}\n")
    assert (both.code, both.err) == (2, "error: -: CHECKPOINT and SOURCE both read stdin; name one of them\n")


@pytest.mark.usefixtures("fake")
def test_what_a_server_sends(cli: Cli, trained: Path, server: Server) -> None:
    server.files["photo.jpg"] = ("image/jpeg", cv2.imencode(".jpg", draw_frame(0))[1].tobytes())
    server.files["clip.mp4"] = ("video/mp4", write_video(Path("clip.mp4")).read_bytes())
    server.frames_per_connection = [1 << 30, 25, 0]
    outcome = run(cli, trained, server.url("stream"), server.url("photo.jpg"), server.url("clip.mp4"))
    assert outcome.code == 2
    assert outcome.out.split() == ["out/detections.json", "out/stream.mp4", "out/clip.mp4"]
    results = json.loads(Path("out/detections.json").read_text())
    assert [result["image_id"] for result in results] == [server.url("photo.jpg")]
    assert len(read_video(Path("out/clip.mp4"))[0]) == 20
    assert len(read_video(Path("out/stream.mp4"))[0]) >= 1
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert errors[0].startswith(f"error: {server.url('stream')}: the stream broke off after ")
    assert errors[1].startswith("error: sources: 1 of 3 could not be read, or not as a whole; the others are done; ")


@pytest.mark.usefixtures("fake")
def test_a_stream_s_video_takes_as_long_as_the_stream(cli: Cli, trained: Path, server: Server) -> None:
    server.frames_per_connection, server.pause_s = [1 << 30, 10, 0], 0.1  # ten frames a second, though 25 are stated
    assert run(cli, trained, server.url("stream")).code == 2
    frames, fps = read_video(Path("out/stream.mp4"))
    lines = read_lines(Path("out/detections.jsonl").read_text())
    assert fps == 25
    assert len(frames) / fps == pytest.approx(lines[-1]["time_s"], abs=0.1)


@pytest.mark.usefixtures("fake")
def test_two_streams_at_once(cli: Cli, trained: Path, server: Server) -> None:
    server.frames_per_connection = [1 << 30, 1 << 30, 40, 40, 0]
    one, other = server.url("stream"), server.url("stream/stream")  # their videos would have the same name
    outcome = run(cli, trained, one, other)
    assert (outcome.code, outcome.out) == (2, "out/stream.mp4\nout/stream-2.mp4\n")
    sources = [line["source"] for line in read_lines(Path("out/detections.jsonl").read_text())]
    assert sources.index(other) < len(sources) - 1 - sources[::-1].index(one), "one comes after the other"
    for name in ("stream", "stream-2"):
        assert len(read_video(Path(f"out/{name}.mp4"))[0]) > 5


def test_every_error_is_one_line(cli: Cli, trained: Path, server: Server) -> None:
    Path("text.mp4").write_text("no video\n" * 99)
    whole = write_video(Path("whole.avi"), 40, codec="MJPG").read_bytes()
    Path("cut.avi").write_bytes(whole[: len(whole) // 2])
    server.files["page.html"] = ("text/html", b"<html>")
    cases = (
        ("text.mp4", "text.mp4: is not a readable video; "),
        ("absent.mp4", "absent.mp4: there is no such video; "),
        ("none/*.jpg", "none/*.jpg: matches no image or video; "),
        ("77", "camera 77: there is no such camera, or another program uses it; "),
        ("/dev/video77", "camera /dev/video77: there is no such camera, "),
        (server.url("none.jpg"), f"{server.url('none.jpg')}: the server says 404 Not Found; "),
        (server.url("page.html"), f"{server.url('page.html')}: holds no image or video, "),
        ("http://127.0.0.1:9/a.jpg", "http://127.0.0.1:9/a.jpg: cannot be reached (Connection refused); "),
        ("rtsp://a:b@127.0.0.1:9/s", "rtsp://127.0.0.1:9/s: cannot be reached (Connection refused); "),
    )
    for word, what in cases:
        outcome = run(cli, trained, word)
        assert (outcome.code, outcome.out) == (2, "")
        assert outcome.err.startswith(f"error: {what}")
        assert outcome.err.count("\n") == 1
        assert not Path("out").exists()
    cut = run(cli, trained, "cut.avi")
    assert (cut.code, cut.out) == (2, "out/cut.mp4\n")
    assert cut.err.splitlines()[-1].startswith("error: cut.avi: ends after ")
    assert "; what came before is done; " in cut.err
    together = run(cli, trained, *(word for word, _ in cases), "whole.avi")
    assert (together.code, together.out) == (2, "out/whole.mp4\n")
    lines = [line for line in together.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == len(cases) + 1
    for _, what in cases:
        assert sum(line.startswith(f"error: {what}") for line in lines) == 1
    assert lines[-1].startswith(f"error: sources: {len(cases)} of {len(cases) + 1} could not be read, ")


def test_a_batch_loses_no_frame_before_a_broken_end(cli: Cli, trained: Path) -> None:
    whole = write_video(Path("whole.avi"), 40, codec="MJPG").read_bytes()
    Path("cut.avi").write_bytes(whole[: len(whole) // 2])
    run(cli, trained, "cut.avi")
    lines = Path("out/detections.jsonl").read_text()
    run(cli, trained, "cut.avi", "--batch-size", lines.count("\n") + 1, "--out", "other")
    assert Path("other/detections.jsonl").read_text().count("\n") == lines.count("\n") > 5


def test_an_error_while_writing_leaves_no_video(cli: Cli, trained: Path) -> None:
    write_video(Path("clip.mp4"))
    Path("out").mkdir()
    Path("out/detections.jsonl").symlink_to("/dev/full")
    outcome = run(cli, trained, "clip.mp4", "--force")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: out/detections.jsonl: cannot be written (")
    assert [path.name for path in Path("out").iterdir()] == ["detections.jsonl"]


@pytest.mark.parametrize("format", list_formats("onnx", "openvino", "ncnn"))
def test_exported_files_on_a_video(cli: Cli, trained: Path, format: str) -> None:
    write_video(Path("clip.mp4"), frames=3)
    exported = cli("export", trained, "--format", format, "--out", "net")
    assert exported.code == 0, exported.err
    confidence = ("--confidence", 0.004)
    of_file = run(cli, Path(exported.out.split()[0]), "clip.mp4", "--jsonl", *confidence)
    of_checkpoint = run(cli, trained, "clip.mp4", "--jsonl", *confidence)
    assert (of_file.code, of_checkpoint.code) == (0, 0), of_file.err
    one, other = read_lines(of_file.out), read_lines(of_checkpoint.out)
    best = [line["detections"][0]["score"] for line in one]
    assert best == pytest.approx([line["detections"][0]["score"] for line in other], abs=2e-3)


def test_time_that_is_up(cli: Cli, trained: Path, server: Server) -> None:
    outcome = run(cli, trained, server.url("stream"), "--max-minutes", 0.01)
    assert (outcome.code, outcome.out) == (124, "out/stream.mp4\n")
    assert outcome.err.splitlines()[-1] == "the time is up; what was made until then is whole"
    assert read_video(Path("out/stream.mp4"))[0]
    assert run(cli, trained, server.url("stream"), "--max-minutes", 0, "--out", "other").code == 124


def start(trained: Path, *words: object) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "yolo_prune", "detect", trained, *words, "--device", "cpu", "--out", "out"]
    return subprocess.Popen(
        list(map(str, line)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_whole_files(
    workplace: Path, trained: Path, server: Server, signum: signal.Signals, code: int
) -> None:
    """The lines can be read while it runs, also where no more come; the video has its name once it is whole."""
    server.frames_per_connection, server.stalls = [1 << 30, 40], True
    process = start(trained, server.url("stream"))
    lines, end = Path("out/detections.jsonl"), time.monotonic() + WAIT_S
    while not (lines.exists() and lines.read_text().count("\n") >= 5):
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    assert not Path("out/stream.mp4").exists()
    process.send_signal(signum)
    out, err = process.communicate(timeout=WAIT_S)
    assert (process.returncode, out) == (code, "out/stream.mp4\n")
    assert err.splitlines()[-1] == f"stopped by signal {signum.value}; what was made until then is whole"
    read = read_lines(lines.read_text())
    frames, fps = read_video(Path("out/stream.mp4"))
    assert (len(frames) - 1) / fps == pytest.approx(read[-1]["time_s"], abs=0.1)
    assert [line["frame"] for line in read] == sorted({line["frame"] for line in read})
    assert sorted(path.name for path in Path("out").iterdir()) == ["detections.jsonl", "stream.mp4"]


def test_a_reader_that_leaves_ends_it_cleanly(workplace: Path, trained: Path, server: Server) -> None:
    process = start(trained, server.url("stream"), "--jsonl")
    assert process.stdout is not None
    assert process.stderr is not None
    assert json.loads(process.stdout.readline())["frame"] == 0
    process.stdout.close()
    assert process.wait(WAIT_S) == 141
    assert process.stderr.read() == ""
    process.stderr.close()
    assert read_video(Path("out/stream.mp4"))[0]


@pytest.mark.skipif(sys.platform != "linux", reason="others have no DISPLAY")
def test_show_without_a_display(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(Path("clip.mp4"), frames=2)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    outcome = run(cli, trained, "clip.mp4", "--show")
    assert (outcome.code, outcome.out) == (0, "out/clip.mp4\n")
    line = "warning: --show: there is no display (DISPLAY is not set); going on without a window"
    assert outcome.err.splitlines()[0] == line


class FakeWindow:
    """A window that is closed at its third image."""

    shown: Sequence[int] = ()

    def show(self, image: object, wait_ms: int) -> bool:
        FakeWindow.shown = (*FakeWindow.shown, wait_ms)
        return len(FakeWindow.shown) < 3

    def close(self) -> None:
        """Do nothing."""


def test_closing_the_window_ends_it(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolo_prune.commands.detect_outputs.find_display_issue", lambda: None)
    monkeypatch.setattr("yolo_prune.commands.detect_outputs.Window", FakeWindow)
    monkeypatch.setattr(FakeWindow, "shown", ())
    write_video(Path("a.mp4"))
    write_video(Path("b.mp4"))
    cv2.imwrite("photo.png", draw_frame(0))
    outcome = run(cli, trained, "a.mp4", "b.mp4", "photo.png", "--show")
    assert (outcome.code, outcome.out) == (0, "out/detections.json\nout/a.mp4\n")
    assert FakeWindow.shown == (0, 1, 1)
    assert len(read_video(Path("out/a.mp4"))[0]) == 2
    FakeWindow.shown = ()
    outcome = run(cli, trained, "a.mp4", "--show", "--no-save", "--out", "other")
    assert (outcome.code, outcome.out) == (0, "other/detections.jsonl\n")


def test_the_bar_tells_how_fast_it_goes(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[object, ...]] = []
    monkeypatch.setattr(Bar, "show", lambda bar, done, note: told.append((bar._total, done, note)))
    write_video(Path("clip.mp4"))
    assert run(cli, trained, "clip.mp4", "--batch-size", 8).code == 0
    assert [(total, done) for total, done, _ in told] == [(20, 8), (20, 16), (20, 20)]
    for _, _, note in told:
        assert re.fullmatch(r"[\d.]+ a second \(decoding [\d.]+, network [\d.]+\)", str(note))


def test_streaming_from_python(trained: Path, tmp_path: Path, server: Server) -> None:
    write_video(tmp_path / "clip.mp4")
    detector = yp.load(trained, confidence=0.004, classes=["hand"])
    frames = list(detector.stream(tmp_path / "clip.mp4", stride=5))
    assert [frame.number for frame, _ in frames] == [0, 5, 10, 15]
    for frame, found in frames:
        assert np.array_equal(found.scores, detector(frame.pixels).scores)
        assert len(found)
    server.pause_s = 0.01
    numbers = [frame.number for (frame, _), _ in zip(detector.stream(server.url("stream")), range(3), strict=False)]
    assert numbers == sorted(set(numbers))
    with pytest.raises(yp.YoloPruneError, match="the network knows no class hnd; did you mean hand"):
        yp.load(trained, classes=["hnd"])
