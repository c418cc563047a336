"""Images and videos, what names them, and what servers send."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from unittest.mock import patch

from fuzzing.case import Case, Outcome, Target
from fuzzing.command import run_command
from fuzzing.mutators import NASTY, damage_bytes, damage_text
from fuzzing.targets.making import make_target
from yolo_prune.commands.datasets import vgg_hand
from yolo_prune.datasets import live, remote, video
from yolo_prune.datasets.vgg_hand.download import DownloadConfig

DETECT = "detect base/plain.pt FILE --out out --device cpu"
PICTURES = (
    *("turned.jpg", "turned.webp", "turned.tif", "packed.tif", "progressive.jpg", "lossless.webp", "alpha.png"),
    *("palette.gif", "grey.png", "cmyk.jpg", "plain.png", "plain.bmp", "plain.ppm", "plain.jp2", "deep.png"),
)
WORDS = (
    *(
        "base/pictures",
        "base/pictures/*.png",
        "base/**/*.jpg",
        "base/clip.mp4",
        "0",
        "99999999999999999999",
        "/dev/video0",
    ),
    *(
        "http://127.0.0.1:9/a.jpg",
        "rtsp://127.0.0.1:9/a",
        "udp://127.0.0.1:9",
        "file:///etc/passwd",
        "http://[",
        "ftp://127.0.0.1/a",
    ),
    *(
        "http://user:pass@127.0.0.1:9/ä b.jpg?x=[#y",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:x/",
        "tcp://:9",
        "rtmp://",
        "~/x",
    ),
)
ADDRESS = "ADDRESS"
"""In the words of a case, the address of a server that sends its standard input to whoever asks."""
HEAD = b'HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: %d\r\nETag: "a"\r\nAccept-Ranges: bytes\r\n\r\n'


def _make_words(chance: Random, base: Path) -> Case:
    """Name something else than an image, on the command line or from stdin."""
    word = chance.choice(WORDS)
    if chance.random() < 0.6:
        word = damage_text(word, chance).decode("utf-8", "surrogateescape").replace("\0", "")
    if not word.strip("/. "):
        word = "none"  # else all files of the machine would be looked at
    if chance.random() < 0.4:
        return Case(("detect", "base/plain.pt", "-", "--out", "out"), stdin=word.encode("utf-8", "surrogateescape"))
    return Case(("detect", "base/plain.pt", "--out", "out", *chance.choice(((), ("--jsonl",))), "--", word))


def _make_stdin(chance: Random, base: Path) -> Case:
    """Send bytes where a path of a checkpoint, or an image, is expected."""
    content = (base / "pictures" / chance.choice(PICTURES)).read_bytes()
    data = (
        damage_bytes(content, chance)
        if chance.random() < 0.7
        else chance.choice(NASTY).encode("utf-8", "surrogatepass")
    )
    words = chance.choice(
        (
            "detect base/plain.pt - --out out",
            "detect - base/pictures/plain.png --out out",
            "export - --out out --format darknet",
        )
    )
    return Case(tuple(words.split()), stdin=data)


def _make_response(chance: Random, base: Path) -> Case:
    """Damage the headers, or the image, that a server sends."""
    content = (base / "pictures/plain.png").read_bytes()
    head = damage_text((HEAD % len(content)).decode(), chance) if chance.random() < 0.7 else HEAD % len(content)
    body = damage_bytes(content, chance) if chance.random() < 0.4 else content
    words = chance.choice(
        (f"detect base/plain.pt http://{ADDRESS}/a.png --out out", f"data vgg-hand --url http://{ADDRESS}/a --out out")
    )
    return Case(tuple(words.split()), stdin=head + body)


def _list_stdin(base: Path) -> list[Case]:
    image = (base / "pictures/plain.png").read_bytes()
    named = Case(("detect", "-", "base/pictures/plain.png", "--out", "out"), stdin=b"base/plain.pt\n")
    return [named, Case(("detect", "base/plain.pt", "-", "--out", "out"), stdin=image)]


def _list_responses(base: Path) -> list[Case]:
    pairs = (
        (f"detect base/plain.pt http://{ADDRESS}/a.png --out out", "pictures/plain.png"),
        (f"data vgg-hand --url http://{ADDRESS}/a --any-counts --out out", "hand_dataset.tar.gz"),
    )
    contents = [(words, (base / name).read_bytes()) for words, name in pairs]
    return [Case(tuple(words.split()), stdin=HEAD % len(content) + content) for words, content in contents]


@contextmanager
def _serve(content: bytes) -> Iterator[str]:
    """Send the same bytes to whoever connects, and hang up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, suppress(OSError):
                        connection.recv(1 << 16)
                        connection.sendall(content)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


@contextmanager
def _in_haste() -> Iterator[None]:
    """Wait for servers less long than usual."""
    quick = partial(vgg_hand.make_vgg_hand, patience=DownloadConfig(tries=2, pause_s=0, timeout_s=2))
    with (
        patch.object(vgg_hand, "make_vgg_hand", quick),
        patch.object(remote, "TIMEOUT_S", 2.0),
        patch.object(video, "TIMEOUT_S", 2.0),
        patch.object(live, "PAUSES_S", (0.1,)),
    ):
        yield


def run_with_server(case: Case) -> Outcome:
    """Run a command whose words may name the server, which sends what the case has for stdin."""
    with _serve(case.stdin) as address, _in_haste():
        return run_command(replace(case, words=tuple(word.replace(ADDRESS, address) for word in case.words), stdin=b""))


def run_in_haste(case: Case) -> Outcome:
    """Run a command that waits for nobody."""
    with _in_haste():
        return run_command(case)


MEDIA: tuple[Target, ...] = (
    make_target("images", {name: f"pictures/{name}" for name in PICTURES}, DETECT, f"{DETECT} --json --no-save"),
    make_target(
        "images of a set",
        {f"hands/images/val/{name}": f"pictures/{name}" for name in PICTURES},
        "data convert hands/data.yaml --to voc --out out",
        "data check hands/data.yaml --out out",
        copies=("hands",),
    ),
    make_target(
        "videos",
        {name: name for name in ("clip.mp4", "clip.avi", "clip.mkv")},
        f"{DETECT} --no-save",
        f"{DETECT} --stride 3",
        parts=("videos",),
    ),
    Target(
        "words of detect",
        _make_words,
        lambda base: [Case(("detect", "base/plain.pt", "base/pictures", "--out", "out"))],
        run_in_haste,
        parts=("videos",),
    ),
    Target(
        "stdin",
        _make_stdin,
        _list_stdin,
        run_command,
    ),
    Target(
        "servers",
        _make_response,
        _list_responses,
        run_with_server,
        parts=("sets",),
    ),
)
