"""What to detect objects in: words of the command line, each one or more images and videos.

photo.jpg   photos   'photos/**/*.jpg'   clip.mp4        files, folders, patterns
0   /dev/video0                                          cameras
https://…/photo.jpg   http://…/clip.mp4   rtsp://…       images, videos and streams by their URL
-                                                        stdin: one image, or words, one a line
"""

from __future__ import annotations

import os
import re
import reprlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from yolo_prune.datasets.remote import (
    MOST_BYTES,
    check_stream,
    fetch,
    hide_password,
    is_url,
    is_web,
    make_stem,
    quote_url,
)
from yolo_prune.datasets.spec import SUFFIXES, find_files
from yolo_prune.errors import DatasetError
from yolo_prune.files import can_be_path, expand_home
from yolo_prune.limits import MOST_WORDS

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".m2v", ".ts", ".mts", ".m2ts"),
    *(".wmv", ".asf", ".flv", ".3gp", ".ogv", ".vob", ".mxf", ".mjpeg", ".mjpg", ".h264", ".h265", ".hevc", ".y4m"),
)
STDIN = "-"
PEEK_BYTES = 4096


@dataclass(frozen=True)
class ImageFile:
    """An image on disk."""

    name: str
    """The path or the URL that it came from."""
    path: Path
    stem: str
    """The name of what is made of it, without suffix."""


@dataclass(frozen=True)
class Video:
    """A video file, a camera or a stream."""

    name: str
    """As it was given, without a password."""
    place: str | int
    """What OpenCV opens: an absolute path, a URL, or the number of a camera."""
    stem: str
    """The name of what is made of it, without suffix."""
    is_url: bool = False

    @property
    def is_camera(self) -> bool:
        """Whether it is a camera of this machine."""
        return isinstance(self.place, int)


@dataclass(frozen=True)
class Source:
    """What one word stands for."""

    word: str
    images: tuple[ImageFile, ...] = ()
    videos: tuple[Video, ...] = ()

    @property
    def files(self) -> Iterator[Path]:
        """The files of images and videos."""
        yield from (image.path for image in self.images)
        yield from (Path(video.place) for video in self.videos if isinstance(video.place, str) and not video.is_url)


def list_words(words: Sequence[str], scratch: Path) -> list[str | Source]:
    """Return the words, with those on stdin, or the image there, for `-`. The image is stored in the folder `scratch`.

    Image files hold zero bytes and paths do not, which tells one from the other.

    Raises:
        DatasetError: stdin is named twice, is empty or too long.
    """
    if words.count(STDIN) > 1:
        raise DatasetError("stdin is named twice", where=STDIN, right="name it once")
    listed: list[str | Source] = []
    for word in words:
        listed.extend([word] if word != STDIN else _read_stdin(scratch))
    return listed


def find_source(word: str, scratch: Path) -> Source:
    """Find out what a word stands for. What must be downloaded is stored in the folder `scratch`.

    Raises:
        DatasetError: there is nothing of that name, a folder or pattern holds no image or video, or a server does not
            send what it should.
    """
    if is_url(word):
        return _find_url(word, scratch)
    if not can_be_path(word):
        raise DatasetError(f"{reprlib.repr(word)} cannot be a path", where="SOURCE", right="name images or videos")
    if (number := find_camera(word)) is not None:
        return Source(word, videos=(Video(word, number, f"camera-{number}"),))
    path = expand_home(word)
    if path.is_dir():
        return _sort(word, find_files(path, (*SUFFIXES, *VIDEO_SUFFIXES)), "holds no image or video")
    if has_magic(word) and not path.exists():
        names = sorted(set(glob(str(path), recursive=True)))  # noqa: PTH207  # Path.glob takes no absolute pattern
        files = map(Path, names)
        known = [file for file in files if file.suffix.lower() in (*SUFFIXES, *VIDEO_SUFFIXES) and file.is_file()]
        return _sort(word, known, "matches no image or video")
    return _sort(word, [path], "")


def find_camera(word: str) -> int | None:
    """Return the number of the camera that a word names, such as `0` or `/dev/video0`; None if it names none."""
    if re.fullmatch(r"[0-9]{1,9}", word):
        return int(word)
    device = re.fullmatch(r"/dev/video([0-9]{1,9})", os.path.realpath(word) if word.startswith("/dev/") else word)
    return int(device[1]) if device else None


def make_video(word: str | Path | int, scratch: Path) -> Video:
    """Return the one video, camera or stream that a word names. What must be downloaded is stored in the folder `scratch`.

    Raises:
        DatasetError: it names none, or images.
    """
    source = find_source(str(word), scratch)
    if len(source.videos) != 1 or source.images:
        raise DatasetError("is no video", where=source.word, right="name one video file, camera or stream")
    return source.videos[0]


def _sort(word: str, files: Sequence[Path], what: str) -> Source:
    """Return files as images and videos, by their suffix."""
    if not files:
        raise DatasetError(what, where=word, right="name images or videos, or a folder of them")
    videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    images = [ImageFile(str(file), file, file.stem) for file in files if file.suffix.lower() not in VIDEO_SUFFIXES]
    return Source(word, tuple(images), tuple(Video(str(file), str(file.absolute()), file.stem) for file in videos))


def _find_url(url: str, scratch: Path) -> Source:
    name, path, is_image = hide_password(url), _make_path(scratch), None
    if is_web(url):
        is_image = fetch(url, path)
    else:
        check_stream(url)
    stem = make_stem(url)
    if is_image:
        return Source(name, images=(ImageFile(name, path, stem),))
    if is_image is None:
        return Source(name, videos=(Video(name, quote_url(url), stem, is_url=True),))
    return Source(name, videos=(Video(name, str(path.absolute()), stem),))


def _make_path(scratch: Path) -> Path:
    return scratch / f"source-{len(list(scratch.iterdir()))}"


def _read_stdin(scratch: Path) -> Iterator[str | Source]:
    data = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise DatasetError(f"stdin holds more than {MOST_BYTES >> 20} MiB", where=STDIN, right="name a file")
    if b"\0" in data[:PEEK_BYTES]:
        path = _make_path(scratch)
        path.write_bytes(data)
        yield Source(STDIN, images=(ImageFile(STDIN, path, "stdin"),))
        return
    if data.count(b"\n") > MOST_WORDS:
        raise DatasetError(f"stdin has more than {MOST_WORDS:,} lines", where=STDIN, right="name a folder of images")
    words = [word for line in data.splitlines() if (word := os.fsdecode(line).strip())]
    if not words:
        raise DatasetError("stdin is empty", where=STDIN, right="pipe in an image, or paths, one a line")
    if STDIN in words:
        raise DatasetError("stdin names itself", where=STDIN, right="pipe in paths, one a line")
    yield from words
