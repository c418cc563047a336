from __future__ import annotations

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from vgg_archive import make_member, write_archive

from yolo_prune.datasets.archive import unpack
from yolo_prune.errors import DatasetError

FILES = {"top/a/one.txt": b"1" * 1024, "top/a/two.txt": os.urandom(100_000), "top/b/three.bin": b"", "./four.txt": b"4"}


def take(member: PurePosixPath) -> PurePosixPath:
    return member


def take_text(member: PurePosixPath) -> PurePosixPath | None:
    return PurePosixPath("texts", member.name) if member.suffix == ".txt" else None


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pack(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content, 1))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_archive(tmp_path / "a.tar.gz", FILES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_what_is_chosen_is_unpacked_where_it_is_wanted(archive: Path, folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    unpack(archive, folder, take_text, progress=lambda done, total: seen.append((done, total)))
    assert read_tree(folder) == {f"texts/{Path(name).name}": FILES[name] for name in FILES if name.endswith(".txt")}
    assert seen == sorted(seen)
    assert 0 < seen[-1][0] <= seen[-1][1] == archive.stat().st_size


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_common_forms_of_tar_are_read(tmp_path: Path, folder: Path, form: int) -> None:
    files = {f"{'long' * 20}/{'name' * 20}.txt": b"a" * 700, "b.txt": b"b" * 512, "c.txt": b"", "d.txt": b"d" * 70_000}
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=form) as tar:
        for name, content in files.items():
            tar.addfile(make_member(name, size=len(content)), io.BytesIO(content))
    unpack(tmp_path / "a.tar.gz", folder, take)
    assert read_tree(folder) == files


LINKS = [
    (make_member("top/link", tarfile.SYMTYPE, "/etc/passwd"), "top/link: is a symbolic link"),
    (make_member("top/link", tarfile.SYMTYPE, "a/one.txt"), "top/link: is a symbolic link"),
    (make_member("top/hard.txt", tarfile.LNKTYPE, "top/a/one.txt"), "top/hard.txt: is a hard link"),
    (make_member("top/tty", tarfile.CHRTYPE), "top/tty: is a device"),
    (make_member("top/disk", tarfile.BLKTYPE), "top/disk: is a device"),
    (make_member("top/pipe", tarfile.FIFOTYPE), "top/pipe: is a pipe"),
    (make_member("top/odd", b"Z"), "top/odd: is no plain file"),
    (make_member("../evil.txt"), "../evil.txt: leads out of the folder"),
    (make_member("top/../../evil.txt"), "top/../../evil.txt: leads out of the folder"),
    (make_member("top/.."), "top/..: leads out of the folder"),
    (make_member("top\\..\\..\\evil.txt"), "top\\..\\..\\evil.txt: leads out of the folder"),
    (make_member("/evil.txt"), "/evil.txt: has an absolute path"),
    (make_member("//evil.txt"), "//evil.txt: has an absolute path"),
    (make_member("\\evil.txt"), "\\evil.txt: has an absolute path"),
    (make_member("C:\\evil.txt"), "C:\\evil.txt: has an absolute path"),
    (make_member("C:evil.txt"), "C:evil.txt: has an absolute path"),
    (make_member("../evil", tarfile.DIRTYPE), "../evil: leads out of the folder"),
    (make_member("/evil", tarfile.DIRTYPE), "/evil: has an absolute path"),
    (make_member("top/a/one.txt"), "top/a/one.txt: is stored twice"),
    (make_member("top/./a//one.txt"), "top/./a//one.txt: is stored twice"),
    (make_member("top/b/three.bin"), "top/b/three.bin: is stored twice"),
    (make_member("other/one.txt"), "other/one.txt: is stored twice"),
    (make_member("top/\x1b[2J.txt"), "'top/\\x1b[2J.txt': has a name with signs that cannot be printed"),
    (make_member("top/\udcff.txt"), "'top/\\udcff.txt': has a name with signs that cannot be printed"),
]


@pytest.mark.parametrize(("member", "what"), LINKS)
def test_one_hostile_member_refuses_the_whole(tmp_path: Path, folder: Path, member: tarfile.TarInfo, what: str) -> None:
    archive = write_archive(tmp_path / "a.tar.gz", FILES, [(member, b"")])
    with pytest.raises(DatasetError) as caught:
        unpack(archive, folder, take_text)
    assert str(caught.value) == f"{archive}: {what}; get the archive anew from its publisher; nothing of it was kept"
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar.gz", "out"}


def test_a_sparse_file_is_refused(tmp_path: Path, folder: Path) -> None:
    member = make_member("sparse.txt", size=3)
    member.pax_headers = {"GNU.sparse.map": "1000000,3", "GNU.sparse.size": "1000003", "GNU.sparse.name": "sparse.txt"}
    archive = write_archive(tmp_path / "a.tar.gz", {}, [(member, b"abc")])
    with pytest.raises(DatasetError, match=r"sparse\.txt: is no plain file"):
        unpack(archive, folder, take)


NAMES = st.lists(
    st.sampled_from(["..", ".", "", "a", "b", "/", "\\", "C:", "a.txt", "~", "\n", "é", "...", "out", "x" * 120]),
    max_size=6,
).map("/".join) | st.text(st.sampled_from("./\\ab:~ "), max_size=12)


@given(st.lists(st.tuples(NAMES, st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE])), max_size=4))
@example([("..", tarfile.REGTYPE)])
@example([("a/../../evil", tarfile.REGTYPE)])
@settings(max_examples=80, deadline=None)
def test_no_name_leads_out_of_the_folder(members: list[tuple[str, bytes]]) -> None:
    with TemporaryDirectory() as place:
        folder = Path(place, "deep/deeper/out")
        folder.mkdir(parents=True)
        archive = write_archive(Path(place, "a.tar.gz"), {}, [(make_member(name, kind), b"") for name, kind in members])
        with suppress(DatasetError, OSError):
            unpack(archive, folder, take)
        outside = [path for path in Path(place).rglob("*") if folder not in path.parents]
        assert set(outside) == {archive, folder, folder.parent, folder.parent.parent}
    assert not Path("/evil").exists()


def test_the_interpreter_s_own_check_counts_too(archive: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
        raise tarfile.TarError("not today")

    monkeypatch.setattr(tarfile, "data_filter", refuse, raising=False)
    with pytest.raises(DatasetError, match=r"top: is refused \(not today\)|four.txt: is refused"):
        unpack(archive, folder, take)
    monkeypatch.delattr(tarfile, "data_filter")
    unpack(archive, folder, take)
    assert len(read_tree(folder)) == len(FILES)


@pytest.mark.parametrize("choose", [take, lambda member: None])
def test_a_bomb_is_refused_before_it_goes_off(
    tmp_path: Path, folder: Path, choose: Callable[[PurePosixPath], PurePosixPath | None]
) -> None:
    archive = write_archive(tmp_path / "a.tar.gz", {"a": bytes(3_000_000)})
    assert archive.stat().st_size < 20_000
    unpack(archive, tmp_path / "enough", choose, max_bytes=3_100_000)
    with pytest.raises(DatasetError, match=r"a\.tar\.gz: unpacks to more than 2,900,000 bytes; get the archive anew"):
        unpack(archive, folder, choose, max_bytes=2_900_000)
    assert read_tree(folder) == {}
    many = write_archive(tmp_path / "b.tar.gz", {f"{number}": bytes(300_000) for number in range(20)})
    with pytest.raises(DatasetError, match="more than 2,900,000 bytes"):
        unpack(many, folder, choose, max_bytes=2_900_000)


def test_a_bomb_behind_the_end_is_refused(tmp_path: Path, folder: Path) -> None:
    archive = pack(tmp_path / "a.tar.gz", bytes(5_000_000))
    with pytest.raises(DatasetError, match="unpacks to more than 3,000,000 bytes"):
        unpack(archive, folder, take, max_bytes=3_000_000)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
@pytest.mark.parametrize("size", [50_000_000, -1024])
def test_a_header_that_claims_megabytes_is_not_read(tmp_path: Path, folder: Path, kind: bytes, size: int) -> None:
    header = make_member("long", kind, size=size).tobuf(tarfile.GNU_FORMAT)
    archive = pack(tmp_path / "a.tar.gz", header + bytes(max(0, size)) + bytes(1024))
    with pytest.raises(
        DatasetError, match=r"is a damaged archive, or no \.tar\.gz at all \(a header is out of bounds\)"
    ):
        unpack(archive, folder, take)


def test_a_member_of_negative_size_is_refused(tmp_path: Path, folder: Path) -> None:
    archive = pack(tmp_path / "a.tar.gz", make_member("a", size=-512).tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DatasetError, match=r"a\.tar\.gz: a: has a size below 0"):
        unpack(archive, folder, lambda member: None)


def test_too_many_members_are_refused(tmp_path: Path, folder: Path) -> None:
    archive = write_archive(tmp_path / "a.tar.gz", {f"{number}": b"" for number in range(20)})
    unpack(archive, folder, take, max_members=20)
    with pytest.raises(DatasetError, match="holds more than 19 members"):
        unpack(archive, tmp_path / "other", take, max_members=19)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_a_cut_or_spoilt_archive_is_refused_or_gives_the_same_files(data: st.DataObject) -> None:
    with TemporaryDirectory() as place:
        archive = write_archive(Path(place, "a.tar.gz"), FILES)
        content = bytearray(archive.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        is_cut = data.draw(st.booleans())
        if is_cut:
            del content[at:]
        else:
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        archive.write_bytes(content)
        with suppress(DatasetError):
            unpack(archive, Path(place, "out"), take)
            assert not is_cut
            assert read_tree(Path(place, "out")) == {str(PurePosixPath(name)): FILES[name] for name in FILES}


@pytest.mark.parametrize("whole_bytes", [0, 100, 3_000_000])
def test_a_gzip_that_goes_wrong_midway_is_refused(tmp_path: Path, folder: Path, whole_bytes: int) -> None:
    packer = zlib.compressobj(1, wbits=31)
    content = (make_member("a.txt", size=5_000_000).tobuf() + bytes(5_000_000))[:whole_bytes]
    packed = packer.compress(content) + packer.flush(zlib.Z_FULL_FLUSH)
    (tmp_path / "a.tar.gz").write_bytes(packed + b"\x07" * 100)  # a block of a type that deflate does not have
    with pytest.raises(DatasetError, match=r"is a damaged archive, or no .* invalid block type"):
        unpack(tmp_path / "a.tar.gz", folder, take)


@pytest.mark.parametrize("name", sorted(FILES)[:2])
def test_a_tar_that_is_broken_within_a_whole_gzip_is_refused(tmp_path: Path, folder: Path, name: str) -> None:
    archive = write_archive(tmp_path / "a.tar.gz", FILES)
    content = bytearray(gzip.decompress(archive.read_bytes()))
    header = content.index(name.encode())
    content[header : header + 20] = b"\xff" * 20
    pack(archive, bytes(content))
    with pytest.raises(DatasetError, match="damaged archive, or no"):
        unpack(archive, folder, take)


def test_a_tar_without_its_end_is_refused(tmp_path: Path, folder: Path) -> None:
    member = make_member("a", size=600)
    whole = member.tobuf() + b"a" * 600 + bytes(424)
    for size in (len(whole), len(whole) - 424, len(whole) - 500, 700, 300):
        archive = pack(tmp_path / "a.tar.gz", whole[:size])
        with pytest.raises(DatasetError, match="damaged archive, or no"):
            unpack(archive, tmp_path / f"{size}", take)
    unpack(pack(tmp_path / "a.tar.gz", whole + bytes(1024)), folder, take)
    assert read_tree(folder) == {"a": b"a" * 600}


@pytest.mark.parametrize(
    "content", [b"", b"<html>moved</html>", *(gzip.compress(b"hands" * count, mtime=0) for count in (0, 1, 1000))]
)
def test_what_is_no_archive_is_refused(tmp_path: Path, folder: Path, content: bytes) -> None:
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(DatasetError, match=r"a\.tar\.gz: is a damaged archive, or no \.tar\.gz at all"):
        unpack(tmp_path / "a.tar.gz", folder, take)


def test_a_plain_tar_is_refused(tmp_path: Path, folder: Path) -> None:
    archive = write_archive(tmp_path / "a.tar.gz", FILES)
    archive.write_bytes(gzip.decompress(archive.read_bytes()))
    with pytest.raises(DatasetError, match="is a damaged archive, or no"):
        unpack(archive, folder, take)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(DatasetError, match=rf"cannot be read \({why}\); name a \.tar\.gz file that can be read"):
            unpack(path, tmp_path / "out", take)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_no_fault_of_the_archive(archive: Path, folder: Path) -> None:
    (folder / "texts").write_text("in the way")
    with pytest.raises(OSError, match=r"File exists|Not a directory"):
        unpack(archive, folder, take_text)
