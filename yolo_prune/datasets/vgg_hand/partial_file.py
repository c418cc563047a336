"""The beginning of a file that is being downloaded, on disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from yolo_prune.errors import DatasetError, OutputError, YoloPruneError
from yolo_prune.files import load_json, save_json


@dataclass(frozen=True)
class Version:
    """What a server reports of a file, to recognise later whether it is still the same."""

    url: str
    etag: str | None
    last_modified: str | None
    total_bytes: int | None

    @property
    def validator(self) -> str | None:
        """The value for If-Range: a strong ETag, else a date."""
        word = self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified
        return word if word and word.isascii() and word.isprintable() else None


class Part:
    """The beginning of a file on disk, and the version that it belongs to."""

    def __init__(self, path: Path, url: str) -> None:
        self.path, self.url = path, url
        self.bytes_path = path.with_name(f"{path.name}.part")
        self.version_path = path.with_name(f"{path.name}.part.json")

    def load(self) -> tuple[int, Version | None]:
        """Return the number of bytes and their version; (0, None) if there is nothing to continue from."""
        try:
            have, record = self.bytes_path.stat().st_size, load_json(self.version_path, DatasetError, "")
            version = Version(**record)
            types_are_right = isinstance(version.total_bytes, int | None) and all(
                isinstance(word, str | None) for word in (version.etag, version.last_modified)
            )
        except (OSError, TypeError, YoloPruneError):
            return 0, None
        if not types_are_right or version.url != self.url or version.validator is None:
            return 0, None
        if have == 0 or (version.total_bytes is not None and have > version.total_bytes):
            return 0, None
        return have, version

    def start(self, version: Version) -> None:
        """Discard the existing bytes, and record the version of the bytes to come."""
        self.discard()
        save_json(self.version_path, asdict(version))

    def discard(self) -> None:
        """Discard the existing bytes."""
        try:
            self.bytes_path.unlink(missing_ok=True)
            self.version_path.unlink(missing_ok=True)
        except OSError as error:
            raise make_write_error(self.bytes_path, error) from error


def make_write_error(path: Path, error: OSError) -> OutputError:
    """Return the error for a file that cannot be written."""
    return OutputError(f"cannot be written ({error.strerror or error})", where=path)
