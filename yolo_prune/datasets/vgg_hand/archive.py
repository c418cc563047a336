"""Unpack the wanted files of a .tar.gz that may be malicious, or reject all of it."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from yolo_prune.bounded import open_plain
from yolo_prune.errors import DatasetError

MAX_BYTES = 4 << 30
"""Limit of the unpacked size of an archive."""
MAX_MEMBERS = 200_000
"""Limit of the number of members."""

_BLOCK_BYTES = 1 << 16
_BUFFER_BYTES = 1 << 20
_HEADER_BYTES = 1 << 20
"""The most that is read at once: tarfile reads a long name at once, with a size taken from the archive."""
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}
_DAMAGE = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError)
_RIGHT = "download the archive again from its publisher; nothing of it was kept"


def unpack(
    archive: Path,
    folder: Path,
    choose: Callable[[PurePosixPath], PurePosixPath | None],
    max_bytes: int = MAX_BYTES,
    max_members: int = MAX_MEMBERS,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the members of a .tar.gz for which `choose` returns a path in `folder` to that path.

    Every member is checked, chosen or not: it must not lead out of a folder, be a link, a device or a pipe, or be
    stored twice. The archive is read to its end, to check its checksum. After an error, `folder` holds some files and
    should be deleted. `progress` is called with the numbers of packed bytes read and of all.

    Raises:
        DatasetError: a member is rejected (names it), the archive is damaged or not an archive, or it unpacks to more
            than `max_bytes` or `max_members`.
        OSError: `folder` cannot be written.
    """
    with (
        _open(archive) as packed,
        gzip.GzipFile(fileobj=packed) as unpacked,
        _Bounded(archive, unpacked, max_bytes) as stream,
    ):
        size_bytes = archive.stat().st_size
        seen: set[PurePosixPath] = set()
        for number, (tar, member) in enumerate(_list_members(archive, stream), start=1):
            if number > max_members:
                raise DatasetError(f"holds more than {max_members:,} members", where=archive, right=_RIGHT)
            _check_member(archive, member, folder, max_bytes)
            path = PurePosixPath(member.name)
            if member.isfile() and path in seen:
                raise _reject(archive, member, "is stored twice")
            seen.add(path)
            place = choose(path) if member.isfile() else None
            if place is not None:
                _write(archive, tar, member, folder / place)
            if progress:
                progress(packed.tell(), size_bytes)


class _Bounded(io.BufferedReader):
    """The unpacked bytes; reading past a limit, or too many at once, raises an error."""

    def __init__(self, archive: Path, unpacked: gzip.GzipFile, max_bytes: int) -> None:
        super().__init__(unpacked, _BUFFER_BYTES)
        self._archive, self._max_bytes = archive, max_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _HEADER_BYTES:
            raise tarfile.ReadError("a header is out of bounds")
        block = super().read(size)
        self._check(self.tell())
        return block

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._check(offset)
        return super().seek(offset, whence)

    def _check(self, position: int) -> None:
        if position > self._max_bytes:
            raise DatasetError(f"unpacks to more than {self._max_bytes:,} bytes", where=self._archive, right=_RIGHT)


def _open(archive: Path) -> BinaryIO:
    try:
        with open_plain(archive):  # a pipe would be waited for
            return archive.open("rb")
    except OSError as error:
        right = "name a .tar.gz file that can be read"
        raise DatasetError(f"cannot be read ({error.strerror})", where=archive, right=right) from error


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Turn errors of the parsers into errors that name the archive."""
    try:
        yield
    except (*_DAMAGE, ValueError, OverflowError, RecursionError) as error:
        what = f"is a damaged archive, or no .tar.gz at all ({error})"
        raise DatasetError(what, where=archive, right="download it again from its publisher") from error


def _list_members(archive: Path, stream: _Bounded) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    with _reading(archive):
        tar = tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
    while True:
        with _reading(archive):
            member = tar.next()
        if member is None:
            break
        yield tar, member
    with _reading(archive):
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile mistakes a broken header for the end
            raise tarfile.ReadError(f"neither a header nor the end at byte {tar.offset:,}")
        while stream.read(_BLOCK_BYTES):  # read up to gzip's checksum
            pass


def _check_member(archive: Path, member: tarfile.TarInfo, folder: Path, max_bytes: int) -> None:
    path, windows = PurePosixPath(member.name), PureWindowsPath(member.name)
    if path.is_absolute() or windows.drive or windows.root:
        raise _reject(archive, member, "has an absolute path")
    if ".." in windows.parts:  # Windows paths accept both kinds of slash
        raise _reject(archive, member, "leads out of the folder")
    if not member.name.isprintable():
        raise _reject(archive, member, "has a name with signs that cannot be printed")
    if member.issparse() or not (member.isfile() or member.isdir()):
        raise _reject(archive, member, f"is {_KINDS.get(member.type, 'no plain file')}")
    if member.size < 0:
        raise _reject(archive, member, "has a size below 0")
    if member.size > max_bytes - member.offset_data:
        raise DatasetError(f"unpacks to more than {max_bytes:,} bytes", where=archive, right=_RIGHT)
    check_also = getattr(tarfile, "data_filter", None)  # missing in early releases of Python 3.10 and 3.11
    if check_also is not None:
        try:
            check_also(member, str(folder))
        except tarfile.TarError as error:
            raise _reject(archive, member, f"is rejected ({error})") from error


def _write(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _reading(archive):
        source = tar.extractfile(member)
    if source is None:
        raise _reject(archive, member, "is no plain file")
    try:
        file = path.open("xb")  # the same path below two top folders, or differing only in case on some disks
    except FileExistsError as error:
        raise _reject(archive, member, "is stored twice") from error
    with source, file:
        while True:
            with _reading(archive):
                block = source.read(_BLOCK_BYTES)
            if not block:
                break
            file.write(block)


def _reject(archive: Path, member: tarfile.TarInfo, what: str) -> DatasetError:
    name = member.name if member.name.isprintable() else ascii(member.name)
    return DatasetError(what, where=f"{archive}: {name}", right=_RIGHT)
