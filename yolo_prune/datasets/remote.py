"""URLs of images, videos and streams: what is there, and the bytes of images. Nothing here waits without a limit."""

from __future__ import annotations

import base64
import re
import socket
import time
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, quote, unquote, unquote_to_bytes, urlsplit, urlunsplit

from yolo_prune.datasets.spec import SUFFIXES
from yolo_prune.errors import DatasetError

TIMEOUT_S = 10.0
"""Seconds to wait for a connection, and for the next bytes."""
MOST_BYTES = 1 << 28
"""A larger image is not read."""
IMAGE_LIMITS, VIDEO_LIMITS = (MOST_BYTES, 120.0), (1 << 32, 3600.0)
"""Of a download: the most bytes, and the most seconds."""
PORTS = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443, "tcp": None, "udp": None, "rtp": None, "srt": None}
"""The schemes of streams beside http and https, with the port of those that have one."""
WEB = ("http", "https")
SAFE = "%/:=&?~+!$,;'@()*[]"
"""What stays as it is in a URL, beside ASCII letters and digits."""
BYTES = "surrogateescape"
"""How Python keeps the bytes of a command line that are no UTF-8."""
RIGHT_URL = "name the URL of an image, a video or a stream"


def is_url(word: str) -> bool:
    """Return whether a text is meant as a URL."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", word) is not None


def hide_password(url: str) -> str:
    """Return a URL without user and password, as it may be printed and stored."""
    return re.sub(r"(?<=://)[^/?#]*@", "", url)


def make_stem(url: str) -> str:
    """Return a name for the files that are made of a URL: that of its path without suffix, else the host."""
    parts = urlsplit(hide_password(url))
    return re.sub(r"[^\w.-]+", "_", PurePosixPath(unquote(parts.path)).stem or parts.netloc) or "stream"


def quote_url(url: str) -> str:
    """Return a URL with spaces and letters that are not ASCII as servers want them; its host stays.

    Raises:
        DatasetError: it is malformed.
    """
    parts = _split(url)
    user, at, host = parts.netloc.rpartition("@")
    user, path, query = (quote(part, SAFE, errors=BYTES) for part in (user, parts.path, parts.query))
    return urlunsplit(parts._replace(netloc=f"{user}{at}{host}", path=path, query=query, fragment=""))


def fetch(url: str, path: Path) -> bool | None:
    """Download the image at a URL of the web to `path`, or a video that its server sends only as a whole.

    Returns:
        Whether it is an image; None if there is a stream, or a video that can be read where it is.

    Raises:
        DatasetError: the server cannot be reached, or does not send it in time; there is something else, or too much.
    """
    name = hide_password(url)
    try:
        with _open(url) as response:
            kind = response.headers.get_content_type()
            is_image = _is_image(kind, url)
            if not is_image and (kind.startswith("text/") or kind == "application/json"):
                raise DatasetError(f"holds no image or video, but {kind}", where=name, right=RIGHT_URL)
            is_whole = response.length is not None and response.headers.get("Accept-Ranges") != "bytes"
            if not is_image and (not is_whole or _is_playlist(kind, url)):
                return None
            _download(response, path, name, *(IMAGE_LIMITS if is_image else VIDEO_LIMITS))
            return is_image
    except HTTPError as error:
        error.close()
        if error.code == 401 and "@" in urlsplit(url).netloc:
            return None  # the server wants another kind of login, which FFmpeg may know
        raise DatasetError(f"the server says {error.code} {error.reason}", where=name, right=RIGHT_URL) from error
    except (OSError, HTTPException) as error:
        raise _explain(name, error) from error


def _download(response: HTTPResponse, path: Path, name: str, most_bytes: int, most_s: float) -> None:
    deadline, count = time.monotonic() + most_s, 0
    with path.open("wb") as file:
        while block := response.read1(1 << 16):
            file.write(block)
            count += len(block)
            if count > most_bytes:
                raise DatasetError(f"holds more than {most_bytes >> 20} MiB", where=name, right="download it first")
            if time.monotonic() > deadline:
                raise DatasetError(f"is not there after {most_s:g} s", where=name, right="download it first")
    if response.length:
        raise DatasetError("was not sent to its end", where=name, right="try again")


def check_stream(url: str) -> None:
    """Raise if the server of a stream cannot be reached; of protocols without connections nothing is known before.

    Raises:
        DatasetError: the URL is malformed, or nobody listens there.
    """
    name, parts = hide_password(url), _split(url)
    if (port := parts.port or PORTS[parts.scheme]) is None or parts.scheme in ("udp", "rtp", "srt"):
        return
    try:
        socket.create_connection((parts.hostname or "localhost", port), TIMEOUT_S).close()
    except OSError as error:
        raise _explain(name, error) from error


def is_web(url: str) -> bool:
    """Return whether a URL is one of http or https.

    Raises:
        DatasetError: it is of an unknown kind.
    """
    scheme = url.partition(":")[0].lower()
    if scheme not in (*WEB, *PORTS):
        right = f"use {', '.join((*WEB, *PORTS))}, a camera's number, or a path"
        raise DatasetError(f"{scheme}:// is not known", where=hide_password(url), right=right)
    return scheme in WEB


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        if parts.port == 0 or not parts.netloc:
            raise ValueError
        (parts.hostname or "").encode("idna")
        url.encode(errors=BYTES)
    except ValueError as error:  # urlsplit and port check some of it only when they are asked
        raise DatasetError("is no URL", where=hide_password(url), right=RIGHT_URL) from error
    return parts


def _open(url: str) -> HTTPResponse:
    parts = _split(url)
    user, _, host = parts.netloc.rpartition("@")
    plain = urlunsplit(urlsplit(quote_url(url))._replace(netloc=host))
    asked = request.Request(plain, headers={"User-Agent": "yoloprune", "Accept": "*/*"})
    if user:  # not for the host that a redirect leads to
        word = base64.b64encode(unquote_to_bytes(user.encode(errors=BYTES))).decode()
        asked.add_unredirected_header("Authorization", f"Basic {word}")
    response: HTTPResponse = make_opener().open(asked, timeout=TIMEOUT_S)
    return response


def make_opener() -> request.OpenerDirector:
    """Return what opens a URL; unlike `urlopen` it follows no redirect to ftp: or file:."""
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler, request.UnknownHandler, request.HTTPHandler, request.HTTPSHandler,
        request.HTTPDefaultErrorHandler, request.HTTPRedirectHandler, request.HTTPErrorProcessor,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener


def _is_image(kind: str, url: str) -> bool:
    if kind in ("application/octet-stream", "binary/octet-stream", "text/plain"):  # what servers say of unknown files
        return PurePosixPath(urlsplit(url).path).suffix.lower() in SUFFIXES
    return kind.startswith("image/")


def _is_playlist(kind: str, url: str) -> bool:
    """Return whether there are only the addresses of the parts of a video."""
    return kind.endswith(("mpegurl", "dash+xml")) or urlsplit(url).path.lower().endswith((".m3u8", ".m3u", ".mpd"))


def _explain(name: str, error: Exception) -> DatasetError:
    """Return in one line why a server cannot be reached."""
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, TimeoutError):
        what = f"does not send within {TIMEOUT_S:g} s"
    elif isinstance(reason, socket.gaierror):
        what = "the host is not known"
    else:
        what = f"cannot be reached ({getattr(reason, 'strerror', None) or reason or type(reason).__name__})"
    return DatasetError(what, where=name, right="check the address, and that it is reachable from here")
