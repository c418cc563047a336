"""Videos made for tests, and a server on this machine that sends images, videos and streams."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

SIZE = (96, 64)
FPS = 10.0


def draw_frame(number: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Return a grey frame, BGR, with a white square that moves by 2 px a frame."""
    frame = np.full((size[1], size[0], 3), 60, np.uint8)
    left = 2 * number % (size[0] - 16)
    frame[20:36, left : left + 16] = 255
    return frame


def write_video(
    path: Path, frames: int = 20, fps: float = FPS, codec: str = "mp4v", size: tuple[int, int] = SIZE
) -> Path:
    """Write a video of the moving square."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, size)
    assert writer.isOpened()
    for number in range(frames):
        writer.write(draw_frame(number, size))
    writer.release()
    return path


def read_video(path: Path) -> tuple[list[NDArray[np.uint8]], float]:
    """Return the frames of a video, BGR, and how many there are in a second."""
    capture = cv2.VideoCapture(str(path))
    assert capture.isOpened(), path
    frames = []
    while (read := capture.read())[0]:
        frames.append(np.asarray(read[1], np.uint8))
    return frames, capture.get(cv2.CAP_PROP_FPS)


def turn_video(path: Path) -> None:
    """Mark an MP4 file as one to be shown turned by 90°, as a telephone that is held upright does."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # version, times, id, duration, layer: then the matrix
    parts = (0, 1 << 16, 0, -(1 << 16) & 0xFFFFFFFF, 0, 0, 64 << 16, 0, 1 << 30)
    data[place : place + 36] = b"".join(part.to_bytes(4, "big") for part in parts)
    path.write_bytes(data)


class Server:
    """What a test's server sends, by path."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.files: dict[str, tuple[str, bytes]] = {}
        self.streamed = 0
        """Frames of the stream that were sent."""
        self.frames_per_connection: list[int] = []
        """After how many frames the stream breaks off, for each connection; the last but one stands for all others."""
        self.pause_s = 0.03
        """Between two frames of the stream."""
        self.has_ranges = True
        """Whether parts of files are sent."""
        self.stalls = False
        """Whether the stream stays open without a frame, instead of breaking off."""
        self.connections = 0
        self.is_open = True

    def url(self, path: str) -> str:
        """Return the URL of a path."""
        return f"http://{self.address}/{path}"

    def take_limit(self) -> int:
        """Return after how many frames the next connection breaks off."""
        self.connections += 1
        place = min(self.connections, len(self.frames_per_connection)) - 1
        return self.frames_per_connection[place] if self.frames_per_connection else 1 << 30


@contextmanager
def serve() -> Iterator[Server]:
    """Run a server: `/stream…` is endless MJPEG, `/silent` never answers, others are files; 404 without one."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *words: Any) -> None:
            """Write nothing."""

        def do_GET(self) -> None:
            if self.path.startswith("/stream"):
                self._stream()
            elif self.path == "/silent":
                while server.is_open:
                    time.sleep(0.05)
            elif (found := server.files.get(self.path[1:])) is None:
                self.send_error(404)
            else:
                self._send(*found)

        def _send(self, kind: str, data: bytes) -> None:
            wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "") if server.has_ranges else "")
            first = int(wanted[1]) if wanted else 0
            last = int(wanted[2]) if wanted and wanted[2] else len(data) - 1
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Type", kind)
            if server.has_ranges:
                self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(last + 1 - first))
            if wanted:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.end_headers()
            self._write(data[first : last + 1])

        def _stream(self) -> None:
            limit = server.take_limit()
            if limit == 0:
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=part")
            self.end_headers()
            for number in range(limit):
                _, jpeg = cv2.imencode(".jpg", draw_frame(number))
                head = f"--part\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
                if not server.is_open or not self._write(head + jpeg.tobytes() + b"\r\n"):
                    return
                server.streamed += 1
                time.sleep(server.pause_s)
            while server.is_open and server.stalls:
                time.sleep(0.05)

        def _write(self, data: bytes) -> bool:
            try:
                self.wfile.write(data)
                self.wfile.flush()
            except OSError:  # the reader has gone
                return False
            return True

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        server = Server(f"127.0.0.1:{listening.server_address[1]}")
        thread = threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.is_open = False
            listening.shutdown()
            thread.join()
