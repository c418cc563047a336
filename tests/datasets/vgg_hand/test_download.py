from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vgg_archive import Response, Server, serve

from yolo_prune.datasets.vgg_hand.download import DownloadConfig, check_sha256, download
from yolo_prune.errors import ConfigError, DatasetError, OutputError

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = DownloadConfig(tries=4, pause_s=0.0, timeout_s=5.0)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[Server]:
    with serve(CONTENT) as server:
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hands.tar.gz"


def break_off(server: Server, path: Path, have: int, response: Response | None = None) -> None:
    """Leave the first bytes of a download."""
    server.responses = [response or Response(cut=have)]
    with pytest.raises(DatasetError, match="the download failed after 1 try: the transfer "):
        download(server.url, path, config=DownloadConfig(tries=1, timeout_s=5.0))
    assert Path(f"{path}.part").read_bytes() == CONTENT[:have]
    assert not path.exists()
    server.requests.clear()


def check_whole(path: Path) -> None:
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_comes_whole_and_its_hash_is_reported(server: Server, path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    assert download(server.url, path, progress=lambda done, total: seen.append((done, total))) == SHA256
    check_whole(path)
    assert seen == sorted(seen)
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert {total for _, total in seen} == {len(CONTENT)}
    assert server.ranges == [None]


def test_each_break_resumes_where_it_was_after_a_growing_pause(
    server: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("yolo_prune.datasets.vgg_hand.download.time.sleep", pauses.append)
    server.responses = [Response(cut=100_000), Response(cut=0), Response(cut=50_000), Response(status=503)]
    lines: list[str] = []
    assert download(server.url, path, SHA256.upper(), DownloadConfig(tries=5, pause_s=0.5), lines.append) == SHA256
    check_whole(path)
    assert server.ranges == [None, "bytes=100000-", "bytes=100000-", "bytes=150000-", "bytes=150000-"]
    assert all(headers["If-Range"] == '"one"' for headers in server.requests[1:])
    assert pauses == [0.5, 1.0, 1.5, 2.0]
    assert lines[0] == "the transfer ended after 100,000 of 300,000 bytes; trying again in 0.5 s"
    assert lines[3].startswith("the server responds 503 Service Unavailable; trying again in 2 s")


@given(st.lists(st.integers(0, len(CONTENT) - 1), max_size=3), st.booleans(), st.booleans())
@settings(max_examples=15, deadline=None)
def test_however_it_breaks_the_file_is_whole_or_not_there(cuts: list[int], ranges: bool, has_length: bool) -> None:
    with serve(CONTENT) as server, TemporaryDirectory() as folder:
        server.responses = [Response(cut=cut, ranges=ranges) for cut in cuts]
        server.responses += [Response(ranges=ranges, has_length=has_length)]
        download(server.url, Path(folder, "a"), config=QUICK)
        check_whole(Path(folder, "a"))


def test_a_later_call_resumes(server: Server, path: Path) -> None:
    break_off(server, path, 70_000)
    assert download(server.url, path, SHA256) == SHA256
    check_whole(path)
    assert server.ranges == ["bytes=70000-"]


def test_the_date_stands_in_for_an_etag_that_is_weak_or_missing(server: Server, path: Path) -> None:
    for etag in (None, 'W/"one"'):
        break_off(server, path, 70_000, Response(cut=70_000, headers={"ETag": etag}))
        server.responses = [Response(headers={"ETag": etag})]
        download(server.url, path)
        check_whole(path)
        assert server.ranges == ["bytes=70000-"]
        assert server.requests[0]["If-Range"] == server.modified
        path.unlink()


def test_without_etag_and_date_it_starts_again(server: Server, path: Path) -> None:
    break_off(server, path, 70_000, Response(cut=70_000, headers={"ETag": None, "Last-Modified": None}))
    server.responses = [Response(status=503)]
    with pytest.raises(DatasetError, match=r"; try again later$"):
        download(server.url, path, config=DownloadConfig(tries=1))
    download(server.url, path)
    check_whole(path)
    assert server.ranges == [None, None]


def test_a_file_that_changed_on_the_server_starts_again(server: Server, path: Path) -> None:
    break_off(server, path, 70_000)
    server.content, server.etag, server.modified = CONTENT[::-1], '"two"', "Tue, 02 Aug 2011 00:00:00 GMT"
    download(server.url, path)
    assert path.read_bytes() == CONTENT[::-1]
    assert server.ranges == ["bytes=70000-"]


@pytest.mark.parametrize(
    "response",
    [
        Response(shift=-1000),
        Response(shift=1000),
        Response(headers={"ETag": '"two"'}),
        Response(headers={"Content-Range": None}),
        Response(headers={"Content-Range": "bytes 70000-299999/300001"}),
        Response(headers={"Content-Range": "characters 1-2"}),
    ],
)
def test_another_part_than_the_one_asked_for_is_not_taken(server: Server, path: Path, response: Response) -> None:
    break_off(server, path, 70_000)
    server.responses = [response]
    lines: list[str] = []
    download(server.url, path, config=QUICK, report=lines.append)
    check_whole(path)
    assert server.ranges == ["bytes=70000-", None]
    assert lines == [
        "the server sent another part than the one asked for, so the download starts again; trying again in 0 s"
    ]


def test_a_part_of_unknown_whole_is_taken(server: Server, path: Path) -> None:
    break_off(server, path, 70_000)
    server.responses = [Response(headers={"Content-Range": "bytes 70000-299999/*"})]
    download(server.url, path)
    check_whole(path)
    assert server.ranges == ["bytes=70000-"]


def test_a_server_without_ranges_starts_again(server: Server, path: Path) -> None:
    break_off(server, path, 70_000)
    server.responses = [Response(ranges=False)]
    download(server.url, path)
    check_whole(path)
    assert server.ranges == ["bytes=70000-"]


def test_another_address_does_not_resume_what_is_there(server: Server, path: Path) -> None:
    break_off(server, path, 70_000)
    download(f"{server.url}?mirror", path)
    check_whole(path)
    assert server.ranges == [None]


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"url": 1}', '{"total_bytes": "many", "etag": "x"}', None])
def test_a_part_whose_record_is_corrupt_starts_again(server: Server, path: Path, record: str | None) -> None:
    break_off(server, path, 70_000)
    where = Path(f"{path}.part.json")
    if record is None:
        where.unlink()
    elif "many" in record:
        where.write_text(json.dumps({**json.loads(where.read_text()), **json.loads(record)}))
    else:
        where.write_text(record)
    download(server.url, path)
    check_whole(path)
    assert server.ranges == [None]


def test_a_part_that_is_longer_than_the_whole_starts_again(server: Server, path: Path) -> None:
    break_off(server, path, 70_000)
    Path(f"{path}.part").write_bytes(CONTENT + b"more")
    download(server.url, path)
    check_whole(path)
    assert server.ranges == [None]


def test_a_part_that_is_whole_gets_its_name_without_a_request(server: Server, path: Path) -> None:
    break_off(server, path, 70_000)
    Path(f"{path}.part").write_bytes(CONTENT)
    assert download(server.url, path) == SHA256
    check_whole(path)
    assert server.requests == []


def test_a_part_that_is_whole_of_unknown_size_gets_its_name_by_416(server: Server, path: Path) -> None:
    break_off(server, path, 70_000)
    record = Path(f"{path}.part.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "total_bytes": None}))
    Path(f"{path}.part").write_bytes(CONTENT)
    download(server.url, path)
    check_whole(path)
    assert server.ranges == [f"bytes={len(CONTENT)}-"]


def test_416_for_another_size_starts_again(server: Server, path: Path) -> None:
    break_off(server, path, 70_000)
    server.responses = [Response(status=416, headers={"Content-Range": "bytes */60000"})]
    download(server.url, path, config=QUICK)
    check_whole(path)
    assert server.ranges == ["bytes=70000-", None]


@pytest.mark.parametrize(("ranges", "last"), [(True, "no such rest"), (False, "ended after 300,000 of 400,000 bytes")])
def test_a_length_that_is_never_reached_is_an_error(server: Server, path: Path, ranges: bool, last: str) -> None:
    server.responses = [
        Response(length=400_000, ranges=ranges),
        Response(ranges=ranges, length=None if ranges else 400_000),
    ] * 2
    with pytest.raises(DatasetError, match=f"the download failed after 4 tries: .*{last}") as caught:
        download(server.url, path, config=QUICK)
    assert caught.value.where == server.url
    assert not path.exists()


def test_a_length_that_is_too_short_gives_a_short_file_which_the_hash_rejects(server: Server, path: Path) -> None:
    server.responses = [Response(length=200_000)]
    short = hashlib.sha256(CONTENT[:200_000]).hexdigest()
    with pytest.raises(DatasetError, match=f"has the SHA-256 {short}, not {SHA256}; run again"):
        download(server.url, path, SHA256)
    assert [file.name for file in path.parent.iterdir()] == ["hands.tar.gz.bad"]
    assert download(server.url, path, SHA256) == SHA256


@pytest.mark.parametrize("length", ["-5", "many", "1e5", ""])
def test_a_length_that_is_none_counts_as_unknown(server: Server, path: Path, length: str) -> None:
    server.responses = [Response(headers={"Content-Length": length})]
    assert download(server.url, path) == SHA256


def test_a_wrong_hash_names_both_and_keeps_the_file_under_another_name(server: Server, path: Path) -> None:
    wrong = "0" * 64
    with pytest.raises(DatasetError) as caught:
        download(server.url, path, wrong)
    assert str(caught.value) == (
        f"{path}.bad: the file from {server.url} has the SHA-256 {SHA256}, not {wrong}; "
        "run again to download it anew, or check the hash"
    )
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == {"hands.tar.gz.bad": CONTENT}


def test_the_hash_of_a_file_that_is_there(path: Path) -> None:
    path.write_bytes(CONTENT)
    assert check_sha256(path, None) == check_sha256(path, SHA256.upper()) == SHA256
    with pytest.raises(DatasetError, match=f"hands.tar.gz: has the SHA-256 {SHA256}, not {'a' * 64}; check the hash"):
        check_sha256(path, "A" * 64)
    check_whole(path)
    with pytest.raises(DatasetError, match=r"none: cannot be read \(No such file or directory\); name a file"):
        check_sha256(path.with_name("none"), None)


@pytest.mark.parametrize("status", [400, 403, 404, 410, 501, 204, 206])
def test_a_rejection_is_named_at_once(server: Server, path: Path, status: int) -> None:
    server.responses = [Response(status=status)]
    with pytest.raises(DatasetError, match=f"the server responds {status} .*; check --url, or get the file") as caught:
        download(server.url, path, config=QUICK)
    assert caught.value.where == server.url
    assert len(server.requests) == 1
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_passing_trouble_is_waited_out_a_few_times(server: Server, path: Path, status: int) -> None:
    server.responses = [Response(status=status)] * 4
    with pytest.raises(DatasetError, match=f"failed after 4 tries: the server responds {status} .*; try again later"):
        download(server.url, path, config=QUICK)
    assert len(server.requests) == 4
    assert not list(path.parent.iterdir())


def test_redirects_are_followed_with_the_range(server: Server, path: Path) -> None:
    break_off(server, path, 70_000)
    server.responses = [Response(location="/elsewhere.tar.gz")]
    download(server.url, path)
    check_whole(path)
    assert server.ranges == ["bytes=70000-"] * 2


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("file:///etc/passwd", "responds 302 .* is not allowed"),
        ("ftp://127.0.0.1/a", "unknown url type: ftp"),
        ("data:,hello", "responds 302 .* is not allowed"),
    ],
)
def test_a_redirect_away_from_http_is_rejected(server: Server, path: Path, target: str, what: str) -> None:
    server.responses = [Response(location=target)] * 4
    with pytest.raises(DatasetError, match=what):
        download(server.url, path, config=QUICK)
    assert not list(path.parent.iterdir())


def test_redirects_in_a_circle_are_rejected(server: Server, path: Path) -> None:
    server.responses = [Response(location=server.url)] * 20
    with pytest.raises(DatasetError, match="the server responds 302 "):
        download(server.url, path, config=QUICK)


@pytest.mark.parametrize(
    "url",
    ["ftp://a.b/c", "file:///etc/passwd", "hands.tar.gz", "", "http://", "https:///a", "http://[a", "http://a:x/"],
)
def test_what_is_no_http_address_is_rejected(path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"url: .* is no address; write http://… or https://…"):
        download(url, path)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a b", "http://127.0.0.1:1/\x00", "http://127.0.0.1:1/ü"])
def test_an_address_with_signs_that_none_has_is_rejected(path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="is no address"):
        download(url, path, config=QUICK)


def test_there_is_no_server(path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(
        DatasetError, match=r"4 tries: there is no response \(Connection refused\); try again later"
    ) as caught:
        download(f"http://127.0.0.1:{port}/a", path, config=QUICK)
    assert caught.value.where == f"http://127.0.0.1:{port}/a"


def test_a_server_that_says_nothing_and_one_that_talks_something_else(path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/"
        with pytest.raises(DatasetError, match=r"2 tries: there is no response \(timed out\)"):
            download(url, path, config=DownloadConfig(tries=2, pause_s=0, timeout_s=0.1))

    def chat(place: socket.socket) -> None:
        with place.accept()[0] as other:
            other.recv(1000)
            other.sendall(b"220 smtp ready\r\n")

    with socket.create_server(("127.0.0.1", 0)) as chatty:
        thread = threading.Thread(target=chat, args=(chatty,))
        thread.start()
        with pytest.raises(DatasetError, match=r"1 try: there is no response \(220 smtp ready"):
            download(f"http://127.0.0.1:{chatty.getsockname()[1]}/", path, config=DownloadConfig(tries=1))
        thread.join()


def test_a_transfer_that_stands_still_is_broken_and_resumed(server: Server, path: Path) -> None:
    server.responses = [Response(cut=70_000, wait=(still := threading.Event()))]
    lines: list[str] = []
    download(server.url, path, config=DownloadConfig(tries=2, pause_s=0, timeout_s=2.0), report=lines.append)
    still.set()
    check_whole(path)
    assert server.ranges == [None, "bytes=70000-"]
    assert lines == ["the transfer broke off after 70,000 bytes (timed out); trying again in 0 s"]


def test_a_file_in_chunks_and_one_that_breaks_off_among_them(path: Path) -> None:
    bodies = [b"5\r\nhands\r\n4\r\n of", b"5\r\nhands\r\n4\r\n of \r\n3\r\nall\r\n0\r\n\r\n"]

    def respond(place: socket.socket) -> None:
        for body in bodies:
            with place.accept()[0] as other:
                other.recv(1000)
                other.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)

    with socket.create_server(("127.0.0.1", 0)) as place:
        thread = threading.Thread(target=respond, args=(place,))
        thread.start()
        lines: list[str] = []
        download(f"http://127.0.0.1:{place.getsockname()[1]}/", path, config=QUICK, report=lines.append)
        thread.join()
    assert path.read_bytes() == b"hands of all"
    assert len(lines) == 1
    assert lines[0].startswith("the transfer broke off after ")


@pytest.mark.parametrize("has_length", [True, False])
def test_a_file_that_is_too_large_is_rejected(server: Server, path: Path, has_length: bool) -> None:
    server.responses = [Response(has_length=has_length)]
    seen: list[int] = []
    with pytest.raises(DatasetError, match="is larger than 200,000 bytes"):
        download(
            server.url, path, None, DownloadConfig(max_bytes=200_000), progress=lambda done, total: seen.append(done)
        )
    assert not list(path.parent.iterdir())
    assert bool(seen) != has_length  # a length that is told is enough


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_came_stays_when_it_is_stopped(
    server: Server, path: Path, error: BaseException | type[BaseException]
) -> None:
    def stop(done: int, total: int | None) -> None:
        if done > 100_000:
            raise error

    with pytest.raises(type(error) if isinstance(error, BaseException) else error):
        download(server.url, path, progress=stop)
    have = Path(f"{path}.part").stat().st_size
    assert 100_000 < have < 300_000
    download(server.url, path)
    check_whole(path)
    assert server.ranges == [None, f"bytes={have}-"]


def test_a_place_that_cannot_be_written_is_named(server: Server, path: Path, tmp_path: Path) -> None:
    (tmp_path / "hands.tar.gz.part").mkdir()
    with pytest.raises(OutputError, match=r"hands\.tar\.gz\.part: cannot be written \("):
        download(server.url, path)
    with pytest.raises(OutputError, match="cannot be written"):
        download(server.url, tmp_path / "none/a" / ("long" * 100))


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"tries": 0}, "tries: 0 is too small"),
        ({"pause_s": -1.0}, r"pause_s: -1\.0 is out of range"),
        ({"pause_s": float("nan")}, "pause_s: nan is out of range"),
        ({"timeout_s": 0.0}, r"timeout_s: 0\.0 is out of range"),
        ({"max_bytes": 0}, "max_bytes: 0 is too small"),
    ],
)
def test_invalid_settings(values: dict[str, int], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        DownloadConfig(**values)
