"""`data convert`: convert data sets from one format to another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from yolo_prune.bounded import is_file
from yolo_prune.commands.results import Summary
from yolo_prune.console import Bar, report, warn
from yolo_prune.datasets.config import ConvertConfig
from yolo_prune.datasets.data_file import SPLITS
from yolo_prune.datasets.formats.coco import load_coco, save_coco
from yolo_prune.datasets.formats.faults import Faults
from yolo_prune.datasets.formats.labelled_set import LabelledImage, LabelledSet, Source
from yolo_prune.datasets.formats.voc import load_voc, save_voc
from yolo_prune.datasets.formats.yolo import load_yolo, save_yolo
from yolo_prune.errors import ConfigError
from yolo_prune.files import make_folder_atomically
from yolo_prune.memory import without_collector
from yolo_prune.text_tables import pluralize

_WRITERS: dict[str, Callable[..., None]] = {"yolo": save_yolo, "coco": save_coco, "voc": save_voc}
_KINDS = {".yaml": "yolo", ".yml": "yolo", ".json": "coco", ".txt": "voc"}
_RIGHT_SOURCE = "name a data.yaml, SPLIT=FILE.json of COCO, SPLIT=LIST.txt of VOC, or SPLIT=FOLDER of VOC's xml files"


@dataclass(frozen=True)
class ConvertResult:
    """What was written."""

    out: Path
    """The data.yaml for yolo, the folder for coco and voc."""
    kind: str
    """The format: yolo, coco or voc."""
    data: LabelledSet
    """The contents of the sources."""

    @property
    def summary(self) -> Summary:
        """How much was written, and the command that may follow."""
        classes = pluralize(len(self.data.names), "class", "classes")
        line = f"{pluralize(len(self.data.images), 'image')}, {classes}"
        return Summary(line, ("train", "--data", str(self.out)) if self.kind == "yolo" else ())

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON output; `objects` does not include the `ignored` ones."""
        splits = {split: _count(self.data.of(split)) for split in self.data.splits}
        return {"out": str(self.out), "format": self.kind, "names": list(self.data.names), "splits": splits}

    @property
    def stdout(self) -> str:
        """The path that was written."""
        return str(self.out)


def convert(sources: Sequence[str], config: ConvertConfig) -> ConvertResult:
    """Read sources of one format and write them in another; on an error nothing is written.

    A source is a data.yaml, or SPLIT=PATH, where PATH is COCO's annotations.json, VOC's list below ImageSets, or a
    folder of VOC's xml files.

    Raises:
        ConfigError: the sources cannot be combined, or a split is missing.
        DatasetError: labels or images are invalid.
        OutputError: the folder is not empty, or cannot be written.
    """
    kind, parsed = _parse_sources(sources, config)
    with make_folder_atomically(config.out) as folder, without_collector():
        data = _load(kind, parsed, config)
        _report_losses(data, config)
        with Bar("writing images") as bar:
            _WRITERS[config.to](folder, data, config.link, bar.show)
    _report_contents(data)
    return ConvertResult(config.out / "data.yaml" if config.to == "yolo" else config.out, config.to, data)


def _load(kind: str, sources: list[Source], config: ConvertConfig) -> LabelledSet:
    faults = Faults(config.skip_bad)
    with Bar("reading images") as bar:
        if kind == "yolo":
            return load_yolo([source.path for source in sources], config.names, bar.show, faults)
        load = load_coco if kind == "coco" else load_voc
        return load(sources, config.names, config.images, bar.show, faults)


def _parse_sources(words: Sequence[str], config: ConvertConfig) -> tuple[str, list[Source]]:
    """Return the format of all sources, and the sources."""
    parsed = [_parse_source(word) for word in words]
    kinds = list(dict.fromkeys(kind for kind, _ in parsed))
    if len(kinds) != 1:
        right = "convert each format by itself"
        raise ConfigError(f"sources of {' and '.join(kinds)} cannot be joined", where="SOURCE", right=right)
    if kinds == ["yolo"] and config.images is not None:
        raise ConfigError("a data.yaml brings its own images", where="--images", right="leave it out")
    splits = {source.split for _, source in parsed}
    for split in ("train", "val") if config.to == "yolo" and kinds != ["yolo"] else ():
        if split not in splits:
            right = f"a data.yaml needs train and val, so add {split}=PATH"
            raise ConfigError(f"there is no source for {split}", where="SOURCE", right=right)
    return kinds[0], [source for _, source in parsed]


def _parse_source(word: str) -> tuple[str, Source]:
    """Return the format of a source, and its path and split; a data.yaml has no single split."""
    split, equals, rest = word.partition("=")
    if not equals or is_file(Path(word)):
        split, rest = "", word
    elif split not in SPLITS:
        raise ConfigError(f"there is no split {split}", where=word, right=f"use one of {', '.join(SPLITS)}")
    path = Path(rest)
    kind = _find_kind(path, word)
    if kind == "yolo" and split:
        raise ConfigError("a data.yaml has splits of its own", where=word, right=f"write {rest}")
    if kind != "yolo" and not split:
        split = _guess_split(path) if kind == "coco" else ""
        if not split:
            right = f"write train={word}, val={word} or test={word}"
            raise ConfigError("its split is not named", where=word, right=right)
    return kind, Source(split, path)


def _find_kind(path: Path, word: str) -> str:
    kind = _KINDS.get(path.suffix.lower())
    if kind and is_file(path):
        return kind
    with suppress(OSError, ValueError):  # in case the text cannot be a path
        if path.is_dir():
            return "voc"
    what = "is of no format that can be read" if is_file(path) else "there is no such file or folder"
    raise ConfigError(what, where=word, right=_RIGHT_SOURCE)


def _guess_split(path: Path) -> str:
    """Return the split that a file's name contains, or '' unless there is exactly one."""
    found = [split for split in SPLITS if split in path.name]
    return found[0] if len(found) == 1 else ""


def _count(images: Sequence[LabelledImage]) -> dict[str, Any]:
    ignored = sum(int(image.objects.ignore.sum()) for image in images)
    return {
        "images": len(images),
        "objects": sum(len(image.objects) for image in images) - ignored,
        "ignored": ignored,
        "without_objects": sum(not len(image.objects) for image in images),
        "dropped": sum(image.dropped for image in images),
        "left_out": dict(Counter(name for image in images for name in image.left_out)),
    }


def _report_losses(data: LabelledSet, config: ConvertConfig) -> None:
    """Report boxes that are not written, and images that are in two splits."""
    left_out = Counter(name for image in data.images for name in image.left_out)
    if left_out:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(left_out.items()))
        parts = f", which are parts of objects; take them with --names {','.join(sorted(left_out))}"
        warn(f"left out boxes: {counts}{'' if config.names else parts}")
    if dropped := [image for image in data.images if image.dropped]:
        count = sum(image.dropped for image in dropped)
        boxes = pluralize(count, "box", "boxes")
        warn(f"dropped {boxes} without area or outside the image, the first in {dropped[0].image}")
    homes: dict[Path, LabelledImage] = {}
    resolve_folder = cache(Path.resolve)  # a folder of many images once
    shared = []
    for one in data.images:
        path = one.image
        path = path.resolve() if path.is_symlink() else resolve_folder(path.parent) / path.name
        if (home := homes.setdefault(path, one)).split != one.split:
            shared.append((home, one))
    if shared:
        home, one = shared[0]
        warn(f"{pluralize(len(shared), 'image')} in two splits, the first in {home.split} and {one.split}: {one.image}")


def _report_contents(data: LabelledSet) -> None:
    for split in data.splits:
        count = _count(data.of(split))
        objects = f"{pluralize(count['objects'], 'object')}, {count['ignored']} ignored"
        empty = pluralize(count["without_objects"], "image")
        report(f"{split}: {pluralize(count['images'], 'image')}, {objects}, {empty} without any")
