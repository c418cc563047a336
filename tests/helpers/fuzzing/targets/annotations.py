"""Data sets: what describes them, lists, labels, annotations of other formats, detections."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import yaml

from fuzzing.case import Case, Target
from fuzzing.command import run_command
from fuzzing.grammars import json_texts, yaml_texts
from fuzzing.mutators import damage_bytes, damage_json, damage_nested, damage_text
from fuzzing.targets.making import as_bytes, as_json, as_text, make_target

CHECK, CONVERT = "data check FILE --out out", "data convert FILE --to coco --out out"
HANDS = ("hands",)
READERS = (
    "data convert hands/data.yaml --to voc --out out",
    "data anchors hands/data.yaml --count 2",
    "data check hands --out out",
)
COCO = "data convert train=base/coco/annotations/train.json val=a.json --out out --images base/coco/images"
VOC = (
    "data",
    "convert",
    "train=voc/ImageSets/Main/train.txt",
    "val=voc/ImageSets/Main/val.txt",
    "--to",
    "yolo",
    "--out",
    "out",
)
VGG = "data vgg-hand --archive FILE --any-counts --out out"


def _as_yaml(content: bytes, chance: Random, others: Any) -> bytes:
    if chance.random() < 0.5:
        return damage_text(content.decode(), chance)
    return yaml.safe_dump(damage_nested(yaml.safe_load(content), chance), allow_unicode=True).encode("utf-8", "replace")


def _make_archive(chance: Random, base: Path) -> Case:
    """Damage the archive's bytes, packed or not, or those of one file in it."""
    packed = (base / "hand_dataset.tar.gz").read_bytes()
    content = gzip.decompress(packed)
    kind = chance.random()
    if kind < 0.2:
        return _name_archive(damage_bytes(packed, chance))
    if kind < 0.5:
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 1, 3))):
            header = 512 * chance.randrange(len(damaged) // 512)
            damaged[header + chance.randrange(512)] = chance.choice((0, 32, 48, 49, 53, 55, 76, 120, 128, 255))
        return _name_archive(gzip.compress(bytes(damaged), 1))
    return _name_archive(_damage_member(content, chance))


def _damage_member(content: bytes, chance: Random) -> bytes:
    """Damage one file of an archive and write all anew."""
    made = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(content)) as source,
        tarfile.open(fileobj=made, mode="w:gz", compresslevel=1) as target,
    ):
        members = source.getmembers()
        chosen = chance.choice([one for one in members if one.name.endswith((".mat", ".jpg"))])
        for member in members:
            file = source.extractfile(member) if member.isfile() else None
            part = b"" if file is None else file.read()
            if member is chosen:
                part = damage_bytes(part, chance)
                member.size = len(part)
            target.addfile(member, io.BytesIO(part) if member.isfile() else None)
    return made.getvalue()


def _name_archive(content: bytes) -> Case:
    return Case(tuple(VGG.replace("FILE", "a.tar.gz").split()), {"a.tar.gz": content})


def _make_coco(chance: Random, base: Path) -> Case:
    """Damage an annotations file; the images stay where they are."""
    split = chance.choice(("val", "masks"))
    text = (base / f"coco/annotations/{split}.json").read_text()
    words = chance.choice(("--to yolo", "--to voc --skip-bad"))
    return Case(tuple(f"{COCO} {words}".split()), {"a.json": damage_json(text, chance)})


def _list_coco(base: Path) -> list[Case]:
    words = f"{COCO} --to yolo".split()
    return [
        Case(tuple(words), {"a.json": (base / f"coco/annotations/{split}.json").read_bytes()})
        for split in ("val", "masks")
    ]


def _make_voc(chance: Random, base: Path) -> Case:
    """Damage one xml file, or the list of images."""
    files = sorted((base / "voc/Annotations").glob("*.xml"))
    lists = sorted((base / "voc/ImageSets/Main").glob("*.txt"))
    path = chance.choice([*files, *lists])
    return Case(
        (*VOC, *chance.choice(((), ("--skip-bad",)))),
        {str(path.relative_to(base)): damage_text(path.read_text(), chance)},
        ("voc",),
    )


def _list_voc(base: Path) -> list[Case]:
    return [Case(VOC, copies=("voc",))]


def _as_rows(content: bytes, chance: Random, others: Any) -> bytes:
    """Damage detections, of which there are few, or put any number of them beside each other."""
    rows = json.loads(content)
    return damage_json(json.dumps(rows * chance.choice((1, 1, 40))), chance)


ANNOTATIONS: tuple[Target, ...] = (
    make_target(
        "data.yaml",
        {"hands/data.yaml": "hands/data.yaml"},
        CHECK,
        CONVERT,
        "data anchors FILE --count 2",
        "train --data FILE --cfg base/tiny.cfg --epochs 1 --batch-size 4 --workers 0 --device cpu",
        damage=_as_yaml,
        copies=HANDS,
        texts=lambda sound: yaml_texts(yaml.safe_load(sound)),
    ),
    make_target(
        "data.yaml of lists",
        {"listed.yaml": "listed.yaml"},
        CONVERT,
        damage=_as_yaml,
        copies=("hands", "train.txt", "val.txt"),
    ),
    make_target(
        ".data",
        {"set.data": "set.data"},
        "data anchors FILE --count 2",
        CHECK,
        damage=as_text,
        copies=("hands", "train.txt", "val.txt", "set.names"),
    ),
    make_target(
        "list of images",
        {"train.txt": "train.txt"},
        "data convert listed.yaml --to voc --out out",
        damage=as_text,
        copies=("hands", "val.txt", "listed.yaml"),
    ),
    make_target(
        "set.names",
        {"set.names": "set.names"},
        "data check set.data --out out",
        damage=as_text,
        copies=("hands", "train.txt", "val.txt", "set.data"),
    ),
    make_target(
        "labels",
        {
            "hands/labels/train/000000.txt": "hands/labels/train/000000.txt",
            "hands/labels/val/000000.ignore.txt": "hands/labels/val/000000.txt",
        },
        *READERS,
        damage=as_text,
        copies=HANDS,
    ),
    make_target(
        "synthetic.yaml",
        {"hands/synthetic.yaml": "hands/synthetic.yaml"},
        "data synthetic --out hands --train 4 --val 2 --test 2 --size 64",
        damage=_as_yaml,
        copies=HANDS,
    ),
    Target("coco", _make_coco, _list_coco, run_command, parts=("sets",)),
    make_target(
        "coco drawn",
        {"a.json": "coco/annotations/val.json"},
        f"{COCO} --to yolo",
        damage=as_json,
        parts=("sets",),
        texts=lambda sound: json_texts(json.loads(sound)),
    ),
    Target("voc", _make_voc, _list_voc, run_command, parts=("sets",)),
    Target(
        "vgg-hand",
        _make_archive,
        lambda base: [_name_archive((base / "hand_dataset.tar.gz").read_bytes())],
        run_command,
        parts=("sets",),
    ),
    make_target(
        "detections",
        {"a.json": "detections.json"},
        "evaluate --detections FILE --data base/hands/data.yaml --split val",
        damage=_as_rows,
        parts=("sets",),
        texts=lambda sound: json_texts(json.loads(sound)),
    ),
    make_target(
        "ids",
        {"a.json": "coco/annotations/val.json"},
        "evaluate --detections base/numbered.json --data base/hands/data.yaml --split val --annotations FILE",
        damage=as_json,
        parts=("sets",),
        texts=lambda sound: json_texts(json.loads(sound)),
    ),
    make_target(
        "data bytes",
        {"hands/data.yaml": "hands/data.yaml", "hands/labels/val/000000.txt": "hands/labels/val/000000.txt"},
        *READERS,
        damage=as_bytes,
        copies=HANDS,
    ),
)
