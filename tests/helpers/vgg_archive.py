"""A small archive built as the Visual Geometry Group's is, and a loopback server that breaks off, lies and forgets."""

from __future__ import annotations

import io
import re
import tarfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from yolo_prune.datasets.vgg_hand.annotations import FOLDERS

Quad = tuple[tuple[float, float], tuple[float, float], tuple[float, float], tuple[float, float]]
"""Corners a, b, c, d as MATLAB has them: (y, x), the first pixel's centre being (1, 1)."""

WIDTH, HEIGHT = 40, 20
INNER: Quad = ((5, 11), (5, 20), (14, 20), (14, 11))
"""Through the centres of the pixels in columns 11 and 20, rows 5 and 14, the first being 1."""
TILTED: Quad = ((10.25, 5.5), (2.5, 9), (12, 21.75), (18, 17))
OVER: Quad = ((-3, -8), (-3, 6), (9, 6), (9, -8))
"""Across the upper left corner."""
BEYOND: Quad = ((25, 50), (25, 60), (30, 60), (30, 50))
"""Beyond the lower right corner."""

HANDS: dict[str, dict[str, list[Quad]]] = {
    "train": {"Buffy_1": [INNER, TILTED], "VOC2007_1": [OVER], "VOC2007_2": []},
    "val": {"VOC2007_1": [INNER]},
    "test": {"VOC2007_1": [TILTED, BEYOND, INNER], "Skin_3": [INNER]},
}
"""Images of each split, and the hands in them: 3, 1 and 2 images, 3, 1 and 4 hands."""


def make_box(quad: Quad, fields: str = "abcd", **further: Any) -> dict[str, Any]:
    """Return one box as a struct: its corners in the order of `fields`, 1×2 rows, then further fields."""
    corners = {name: np.array([corner], np.float64) for name, corner in zip("abcd", quad, strict=True)}
    return {**{name: corners[name] for name in fields}, **further}


def make_mat(boxes: Iterable[Any], name: str = "boxes", compress: bool = True, **variables: Any) -> bytes:
    """Return a MATLAB file with a 1×N cell of boxes."""
    items = list(boxes)
    cell = np.empty((1, len(items)), object)
    for index, item in enumerate(items):
        cell[0, index] = item
    stream = io.BytesIO()
    savemat(stream, {name: cell, **variables}, do_compression=compress)
    return stream.getvalue()


def make_jpeg(width: int = WIDTH, height: int = HEIGHT, orientation: int = 1) -> bytes:
    """Return a grey JPEG, with an orientation in its EXIF data."""
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height), (90, 90, 90)).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def make_files(
    hands: Mapping[str, Mapping[str, Iterable[Quad]]] = HANDS, top: str = "hand_dataset/"
) -> dict[str, bytes]:
    """Return the files of an archive by name, with such as nobody asked for."""
    files = {f"{top}README.txt": b"hands", f"{top}training_dataset/displaydata.m": b"imshow"}
    for split, images in hands.items():
        for name, quads in images.items():
            files[f"{top}{FOLDERS[split]}/images/{name}.jpg"] = make_jpeg()
            boxes = [make_box(quad, "dbca", L=1.0) for quad in quads]
            files[f"{top}{FOLDERS[split]}/annotations/{name}.mat"] = make_mat(boxes)
        files[f"{top}{FOLDERS[split]}/images/Thumbs.db"] = b"no image"
        files[f"{top}{FOLDERS[split]}/images/._{next(iter(images))}.jpg"] = b"a Mac's, no image either"
    return files


def make_member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    """Return a member's header."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, target, size
    return member


def write_archive(
    path: Path, files: Mapping[str, bytes], further: Iterable[tuple[tarfile.TarInfo, bytes]] = ()
) -> Path:
    """Write a .tar.gz with the folders of files, the files, and further members, whatever their headers claim."""
    folders = sorted({str(parent) for name in files for parent in Path(name).parents} - {"."})
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for folder in folders:
            tar.addfile(make_member(folder, tarfile.DIRTYPE))
        for name, content in files.items():
            tar.addfile(make_member(name, size=len(content)), io.BytesIO(content))
        assert tar.fileobj is not None
        for member, content in further:
            block = member.tobuf() + content + bytes(-len(content) % tarfile.BLOCKSIZE)
            tar.fileobj.write(block)
            tar.offset += len(block)
    return path


@dataclass
class Response:
    """How the server responds to one request."""

    cut: int | None = None
    """It hangs up after so many bytes of the body."""
    status: int | None = None
    """Another status than the right one, with no body."""
    location: str | None = None
    """Where it sends the client instead."""
    length: int | None = None
    """What it says is the body's length."""
    has_length: bool = True
    """Whether it says a length at all."""
    ranges: bool = True
    """Whether it takes notice of Range."""
    shift: int = 0
    """So many bytes off is the part that it sends."""
    headers: dict[str, str | None] = field(default_factory=dict)
    """Headers over the usual ones; None leaves one out."""
    wait: threading.Event | None = None
    """Before it hangs up, it waits for that."""


class Server(ThreadingHTTPServer):
    """Serves one file on the loopback; `responses` are used up one by one, then it does as it should."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.etag, self.modified = content, '"one"', "Mon, 01 Aug 2011 00:00:00 GMT"
        self.responses: list[Response] = []
        self.requests: list[dict[str, str]] = []
        """The headers of each request."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hand_dataset.tar.gz"

    @property
    def ranges(self) -> list[str | None]:
        """What each request asked for."""
        return [headers.get("Range") for headers in self.requests]


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(dict(self.headers.items()))
        response = server.responses.pop(0) if server.responses else Response()
        content, status, start = server.content, 200, 0
        headers: dict[str, str | None] = {"ETag": server.etag, "Last-Modified": server.modified}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and response.ranges and self.headers.get("If-Range") in (server.etag, server.modified):
            status, start = 206, int(asked[1]) + response.shift
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if start >= len(content):
                status, headers["Content-Range"] = 416, f"bytes */{len(content)}"
        body = b"" if status == 416 or response.status else content[start:]
        if response.has_length:
            headers["Content-Length"] = str(len(body) if response.length is None else response.length)
        if response.location:
            status, headers["Location"] = 302, response.location
        self.send_response(response.status or status)
        for name, value in {**headers, **response.headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: response.cut])
        if response.wait:
            response.wait.wait(20)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serve(content: bytes) -> Iterator[Server]:
    """Serve a file until the block ends."""
    with Server(content) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
