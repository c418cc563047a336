"""What words of the command line stand for."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
from videos import Server, draw_frame, serve, write_video

from yolo_prune.datasets import remote
from yolo_prune.datasets.images import read_image
from yolo_prune.datasets.remote import quote_url
from yolo_prune.datasets.sources import Source, find_camera, find_source, list_words, make_video
from yolo_prune.errors import DatasetError


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    place = tmp_path / "scratch"
    place.mkdir()
    return place


@pytest.fixture
def photos(workplace: Path) -> Path:
    """Make a folder of three images, one of them deeper, a video and a text."""
    for name in ("photos/a.png", "photos/b.JPG", "photos/deep/c.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(name, draw_frame(0))
    write_video(Path("photos/clip.mp4"), frames=2)
    Path("photos/notes.txt").write_text("no image")
    return Path("photos")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve() as server:
        yield server


def list_names(source: Source) -> list[str]:
    return [*(image.name for image in source.images), *(video.name for video in source.videos)]


@pytest.mark.usefixtures("photos")
def test_files_folders_and_patterns(scratch: Path) -> None:
    for word, names in (
        ("photos/a.png", ["photos/a.png"]),
        ("photos/clip.mp4", ["photos/clip.mp4"]),
        ("photos", ["photos/a.png", "photos/b.JPG", "photos/deep/c.png", "photos/clip.mp4"]),
        ("photos/*", ["photos/a.png", "photos/b.JPG", "photos/clip.mp4"]),
        ("photos/**/*.png", ["photos/a.png", "photos/deep/c.png"]),
        ("photos/[ab].*", ["photos/a.png", "photos/b.JPG"]),
        ("photos/unknown.dat", ["photos/unknown.dat"]),
    ):
        assert list_names(find_source(word, scratch)) == names
    source = find_source("photos", scratch)
    assert [video.place for video in source.videos] == [str(Path("photos/clip.mp4").absolute())]
    cv2.imwrite("photos/[ab].png", draw_frame(0))  # a file that is called like a pattern
    assert list_names(find_source("photos/[ab].png", scratch)) == ["photos/[ab].png"]


@pytest.mark.usefixtures("photos")
def test_what_holds_no_image(scratch: Path) -> None:
    Path("empty").mkdir()
    for word, what in (("empty", "holds"), ("photos/*.txt", "matches"), ("none/**/*.jpg", "matches")):
        with pytest.raises(DatasetError) as error:
            find_source(word, scratch)
        assert str(error.value).startswith(f"{word}: {what} no image or video; name ")


def test_cameras(scratch: Path, workplace: Path) -> None:
    Path("1").mkdir()
    for word, number in (("0", 0), ("12", 12), ("1", 1), ("/dev/video3", 3)):
        (video,) = find_source(word, scratch).videos
        assert (video.place, video.stem, video.is_camera) == (number, f"camera-{number}", True)
    for word in ("9" * 20, "9" * 5000, "/dev/video" + "9" * 20):
        assert find_camera(word) is None
    for word in ("9" * 5000, "/dev/a\0"):
        with pytest.raises(DatasetError, match=r"^SOURCE: .{1,40} cannot be a path"):
            find_source(word, scratch)
    cv2.imwrite("1/a.png", draw_frame(0))
    assert list_names(find_source("./1", scratch)) == ["1/a.png"]


def test_urls(server: Server, scratch: Path) -> None:
    _, png = cv2.imencode(".png", draw_frame(3))
    server.files = {
        "photo": ("image/png", png.tobytes()),
        "raw/other%20one.png": ("application/octet-stream", png.tobytes()),
        "caf%C3%A9%20one.png": ("image/png", png.tobytes()),
        "clip.mp4": ("application/octet-stream", b"video"),
        "film": ("video/mp4", b"video"),
        "page.html": ("text/html; charset=utf-8", b"<html>"),
    }
    for path, stem in (("photo", "photo"), ("raw/other%20one.png", "other_one"), ("café one.png", "café_one")):
        (image,) = find_source(server.url(path), scratch).images
        assert (image.name, image.stem) == (server.url(path), stem)
        assert read_image(image.path).shape == (64, 96, 3)
    for path, stem in (("clip.mp4", "clip"), ("film", "film"), ("stream", "stream")):
        (video,) = find_source(server.url(path), scratch).videos
        assert (video.place, video.stem, video.is_url) == (server.url(path), stem, True)
    assert make_video("udp://239.0.0.1:5000", scratch).stem == "239.0.0.1_5000"  # no one answers: only reading can tell
    for path, what in (
        ("none.jpg", "the server says 404 Not Found; "),
        ("page.html", "holds no image or video, but text"),
    ):
        with pytest.raises(DatasetError) as error:
            find_source(server.url(path), scratch)
        assert str(error.value).startswith(f"{server.url(path)}: {what}")


def test_urls_of_no_server(scratch: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.2)
    for url, what in (
        ("http://127.0.0.1:9/a.jpg", "http://127.0.0.1:9/a.jpg: cannot be reached (Connection refused); check"),
        ("rtsp://me:secret@127.0.0.1:9/s", "rtsp://127.0.0.1:9/s: cannot be reached (Connection refused); check"),
        (server.url("silent"), f"{server.url('silent')}: does not send within 0.2 s; check"),
        ("http://name.invalid/a.jpg", "http://name.invalid/a.jpg: the host is not known; check"),
        ("http://caf\u00e9.invalid/a.jpg", "http://café.invalid/a.jpg: the host is not known; check"),
        ("http://a..b/a.jpg", "http://a..b/a.jpg: is no URL; name"),
        (f"rtsp://{'a' * 64}.b/", f"rtsp://{'a' * 64}.b/: is no URL; name"),
        ("http:///a.jpg", "http:///a.jpg: is no URL; name"),
        ("http://me:\ud800@127.0.0.1:9/a.jpg", "http://127.0.0.1:9/a.jpg: is no URL; name"),
        ("http://127.0.0.1:9/\ud800.jpg", "http://127.0.0.1:9/\ud800.jpg: is no URL; name"),
        ("http://127.0.0.1:9/\udcaf.jpg?\udcaf", "http://127.0.0.1:9/\udcaf.jpg?\udcaf: cannot be reached (Connection"),
        ("http://\udcaf:\udcaf@127.0.0.1:9/a.jpg", "http://127.0.0.1:9/a.jpg: cannot be reached (Connection refused)"),
        ("http://[::1/a.jpg", "http://[::1/a.jpg: is no URL; name"),
        ("file:///a.mp4", "file:///a.mp4: file:// is not known; use http, https, rtsp, "),
        ("gopher://a/b", "gopher://a/b: gopher:// is not known; use http, https, rtsp, "),
    ):
        with pytest.raises(DatasetError) as error:
            find_source(url, scratch)
        assert str(error.value).startswith(what)


def test_an_image_that_is_too_large_or_too_slow(scratch: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["a.jpg"] = ("image/jpeg", bytes(1 << 20))
    server.files["a.mp4"] = ("video/mp4", bytes(1 << 20))
    server.has_ranges = False
    for name, limits in (("a.jpg", "IMAGE_LIMITS"), ("a.mp4", "VIDEO_LIMITS")):
        monkeypatch.setattr(remote, limits, (1 << 20, -1.0))
        with pytest.raises(DatasetError, match=rf"{name}: is not there after -1 s; download it first"):
            find_source(server.url(name), scratch)
        monkeypatch.setattr(remote, limits, (1 << 19, 60.0))
        with pytest.raises(DatasetError, match=rf"{name}: holds more than 0 MiB; download it first"):
            find_source(server.url(name), scratch)
        monkeypatch.setattr(remote, limits, (1 << 20, 60.0))
        find_source(server.url(name), scratch)


def read(monkeypatch: pytest.MonkeyPatch, data: bytes, scratch: Path, *words: str) -> list[str | Source]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return list_words(words or ("-",), scratch)


def test_stdin_holds_words_or_one_image(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, b"a.jpg\nb c.jpg \r\n\nclip.mp4", scratch) == ["a.jpg", "b c.jpg", "clip.mp4"]
    assert read(monkeypatch, b"b.jpg\n", scratch, "a.jpg", "-", "c.jpg") == ["a.jpg", "b.jpg", "c.jpg"]
    assert read(monkeypatch, b"caf\xe9.jpg", scratch) == ["caf\udce9.jpg"]  # a name that is not UTF-8
    for suffix in (".jpg", ".png", ".bmp", ".webp", ".tiff"):
        _, encoded = cv2.imencode(suffix, draw_frame(1))
        (source,) = read(monkeypatch, encoded.tobytes(), scratch)
        assert isinstance(source, Source)
        assert (source.images[0].name, source.images[0].stem) == ("-", "stdin")
        assert read_image(source.images[0].path).shape == (64, 96, 3)
    for data, words, what in (
        (b"", ("-",), "-: stdin is empty; "),
        (b"a.jpg\n-\n", ("-",), "-: stdin names itself; "),
        (b"a.jpg", ("-", "-"), "-: stdin is named twice; "),
    ):
        with pytest.raises(DatasetError) as error:
            read(monkeypatch, data, scratch, *words)
        assert str(error.value).startswith(what)


def test_one_video_is_wanted(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), draw_frame(0))
    with pytest.raises(DatasetError, match="is no video; name one video file, camera or stream"):
        make_video(tmp_path / "a.png", tmp_path)
    assert make_video(0, tmp_path).is_camera


def test_bytes_of_a_command_line_that_are_no_utf8_reach_the_server_as_they_are() -> None:
    word = os.fsdecode(b"http://me\xff:caf\xc3\xa9@host/a b/\xff.jpg?\xaf=\xc3\xa9%20#end")
    assert quote_url(word) == "http://me%FF:caf%C3%A9@host/a%20b/%FF.jpg?%AF=%C3%A9%20"
