"""Download one large file over HTTP. An interrupted download is continued; only a complete file gets its name.

hand_dataset.tar.gz            complete, with the right hash if one was given; never downloaded again
hand_dataset.tar.gz.part       the beginning of the file, as far as it was downloaded
hand_dataset.tar.gz.part.json  the server's version of that file, so that two versions are never mixed
hand_dataset.tar.gz.bad        complete, but with another hash than the given one
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from yolo_prune.datasets.remote import make_opener
from yolo_prune.datasets.vgg_hand.partial_file import Part, Version, make_write_error
from yolo_prune.errors import ConfigError, DatasetError
from yolo_prune.files import measure_sha256

Progress = Callable[[int, int | None], None]
"""Called with the number of downloaded bytes and, if known, of all."""
Report = Callable[[str], None]
"""Called with a message."""

_BLOCK_BYTES = 1 << 16
_PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Statuses that may be temporary."""
_RIGHT_URL = "check --url, or get the file in another way and name it with --archive"


@dataclass(frozen=True)
class DownloadConfig:
    """How long to retry and to wait for a server."""

    tries: int = 5
    """Number of requests for the rest of an interrupted download."""
    pause_s: float = 1.0
    """Seconds before the second try; doubled for each further one."""
    timeout_s: float = 30.0
    """Seconds without a byte after which a transfer counts as interrupted."""
    max_bytes: int = 4 << 30
    """A larger file is rejected."""

    def __post_init__(self) -> None:
        """Raise if a value is out of range.

        Raises:
            ConfigError: a value is out of range.
        """
        if self.tries < 1:
            raise ConfigError(f"{self.tries} is too small", where="tries", right="give 1 or more")
        if not 0 <= self.pause_s < float("inf"):
            raise ConfigError(f"{self.pause_s} is out of range", where="pause_s", right="give 0 or more seconds")
        if not 0 < self.timeout_s < float("inf"):
            raise ConfigError(f"{self.timeout_s} is out of range", where="timeout_s", right="give more than 0 seconds")
        if self.max_bytes < 1:
            raise ConfigError(f"{self.max_bytes} is too small", where="max_bytes", right="give 1 or more")


def download(
    url: str,
    path: Path,
    sha256: str | None = None,
    config: DownloadConfig | None = None,
    report: Report = lambda line: None,
    progress: Progress | None = None,
) -> str:
    """Download `url` to the file `path`, which must not exist, and return its SHA-256.

    If the download stops, also with Ctrl-C, the bytes so far stay in a file beside `path`, and the next call continues
    from there, unless the server's file has changed. With `sha256`, a file with another hash does not get the name
    `path`.

    Raises:
        ConfigError: `url` is not an http or https address.
        DatasetError: the server returns an error, breaks off repeatedly, or sends a file that is too large or has
        another hash.
        OutputError: a file cannot be written.
    """
    check_url(url)
    config = config or DownloadConfig()
    part = Part(path, url)
    _complete(part, config, report, progress)
    return _name_whole(part, sha256)


def check_url(url: str) -> None:
    """Raise if a text is not an http or https address.

    Raises:
        ConfigError: it is not.
    """
    try:
        parts = urlsplit(url)
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_right = False
    if not is_right:
        raise ConfigError(f"{url!r} is no address", where="url", right="write http://… or https://…")


def check_sha256(path: Path, expected: str | None) -> str:
    """Return the SHA-256 of an existing file.

    Raises:
        DatasetError: the file cannot be read, or its hash is not the expected one; the file is not changed.
    """
    try:
        found = measure_sha256(path)
    except OSError as error:
        right = "name a file that can be read"
        raise DatasetError(f"cannot be read ({error.strerror})", where=path, right=right) from error
    if expected is not None and found != expected.lower():
        right = "check the hash, or download the file again"
        raise DatasetError(f"has the SHA-256 {found}, not {expected.lower()}", where=path, right=right)
    return found


class _Broken(Exception):
    """A try failed, but another one may succeed."""


def _complete(part: Part, config: DownloadConfig, report: Report, progress: Progress | None) -> None:
    for attempt in range(1, config.tries + 1):
        try:
            _try_once(part, config, progress)
        except _Broken as broken:
            if attempt == config.tries:
                have, _ = part.load()
                right = f"run again to go on from {part.bytes_path}" if have else "try again later"
                tries = "1 try" if attempt == 1 else f"{attempt} tries"
                raise DatasetError(
                    f"the download failed after {tries}: {broken}", where=part.url, right=right
                ) from broken
            pause_s = attempt * config.pause_s
            report(f"{broken}; trying again in {pause_s:g} s")
            time.sleep(pause_s)
        else:
            return


def _try_once(part: Part, config: DownloadConfig, progress: Progress | None) -> None:
    """Request the missing bytes and append them to the existing ones; return when the file is complete.

    Raises:
        _Broken: the file is not complete yet, or the existing bytes had to be discarded.
    """
    have, version = part.load()
    if version is not None and version.total_bytes == have:
        return
    headers = {"User-Agent": "yolo-prune"}
    if version is not None and version.validator is not None:
        headers |= {"Range": f"bytes={have}-", "If-Range": version.validator}
    try:
        response = _open(part.url, headers, config.timeout_s)
    except HTTPError as failure:
        with failure:
            if failure.code == 416 and version is not None:  # there is nothing after the bytes we have
                _check_end(part, have, version, failure.headers)
                return
            raise _make_status_error(failure.code, failure.reason, part.url) from failure
    with response:
        if response.status == 206 and version is not None:
            total_bytes = _check_continuation(part, have, version, response.headers)
        elif response.status == 200:  # the whole file: first try, changed file, or a server without ranges
            have, total_bytes = 0, _parse_length(response.headers)
            part.start(_read_version(part.url, response.headers, total_bytes))
        else:
            raise _make_status_error(response.status, response.reason, part.url)
        _append(response, part, have, total_bytes, config.max_bytes, progress)


def _open(url: str, headers: dict[str, str], timeout_s: float) -> HTTPResponse:
    try:
        response: HTTPResponse = make_opener().open(request.Request(url, headers=headers), timeout=timeout_s)
    except HTTPError:
        raise
    except (InvalidURL, ValueError) as error:
        raise ConfigError(f"{url!r} is no address ({error})", where="url", right=_RIGHT_URL) from error
    except URLError as error:
        raise _Broken(f"there is no response ({_say(error.reason)})") from error
    except (OSError, HTTPException) as error:
        raise _Broken(f"there is no response ({_say(error)})") from error
    return response


def _append(
    response: HTTPResponse, part: Part, have: int, total_bytes: int | None, max_bytes: int, progress: Progress | None
) -> None:
    """Append the bytes that follow the first `have` ones.

    Raises:
        _Broken: the transfer broke off.
    """
    try:
        file = part.bytes_path.open("ab")
    except OSError as error:
        raise make_write_error(part.bytes_path, error) from error
    with file:
        while total_bytes is None or have < total_bytes:
            if max(have, total_bytes or 0) > max_bytes:
                part.discard()
                raise DatasetError(f"is larger than {max_bytes:,} bytes", where=part.url, right=_RIGHT_URL)
            # not more than is missing: Python 3.10 reads past the response's end
            block = _read(
                response, have, _BLOCK_BYTES if total_bytes is None else min(_BLOCK_BYTES, total_bytes - have)
            )
            if not block:
                break
            try:
                file.write(block)
                file.flush()
            except OSError as error:
                raise make_write_error(part.bytes_path, error) from error
            have += len(block)
            if progress:
                progress(have, total_bytes)
    if total_bytes is not None and have != total_bytes:
        raise _Broken(f"the transfer ended after {have:,} of {total_bytes:,} bytes")


def _read(response: HTTPResponse, have: int, most_bytes: int) -> bytes:
    try:
        return response.read1(most_bytes)  # read() waits for the whole block, and would lose a part of it
    except (OSError, HTTPException, ValueError) as error:
        raise _Broken(f"the transfer broke off after {have:,} bytes ({_say(error)})") from error


def _check_continuation(part: Part, have: int, version: Version, headers: Message) -> int | None:
    """Return the whole file's size, None if unknown; raise if the response does not continue after `have` bytes."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", "").strip())
    total_bytes = version.total_bytes
    if found and found[3] != "*":
        total_bytes = int(found[3])
    sent = _read_version(part.url, headers, total_bytes)
    differs = any(
        new is not None and old is not None and new != old
        for old, new in (
            (version.etag, sent.etag),
            (version.last_modified, sent.last_modified),
            (version.total_bytes, sent.total_bytes),
        )
    )
    if found is None or int(found[1]) != have or differs:
        part.discard()
        raise _Broken("the server sent another part than the one asked for, so the download starts again")
    return total_bytes


def _check_end(part: Part, have: int, version: Version, headers: Message) -> None:
    found = re.fullmatch(r"bytes \*/(\d+)", headers.get("Content-Range", "").strip())
    if found is None or int(found[1]) != have or version.total_bytes is not None:  # a known size was not reached
        part.discard()
        raise _Broken("the server has no such rest of the file, so the download starts again")


def _read_version(url: str, headers: Message, total_bytes: int | None) -> Version:
    return Version(url, headers.get("ETag"), headers.get("Last-Modified"), total_bytes)


def _parse_length(headers: Message) -> int | None:
    text = headers.get("Content-Length", "").strip()
    return int(text) if re.fullmatch("[0-9]{1,18}", text) and "Transfer-Encoding" not in headers else None


def _name_whole(part: Part, sha256: str | None) -> str:
    """Give the complete file its name, or another name if its hash is wrong."""
    try:
        found = measure_sha256(part.bytes_path)
        is_right = sha256 is None or found == sha256.lower()
        name = part.path if is_right else part.path.with_name(f"{part.path.name}.bad")
        part.bytes_path.replace(name)
        part.version_path.unlink(missing_ok=True)
    except OSError as error:
        raise make_write_error(part.path, error) from error
    if not is_right:
        what = f"the file from {part.url} has the SHA-256 {found}, not {str(sha256).lower()}"
        raise DatasetError(what, where=name, right="run again to download it anew, or check the hash")
    return found


def _make_status_error(status: int, reason: str, url: str) -> Exception:
    line = f"the server responds {status} {reason}".rstrip()
    return _Broken(line) if status in _PASSING else DatasetError(line, where=url, right=_RIGHT_URL)


def _say(error: object) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
