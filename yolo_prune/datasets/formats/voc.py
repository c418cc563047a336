"""Load and save Pascal VOC annotations: an xml file per image, and lists of images.

    <annotation>
      <filename>a.jpg</filename>
      <size><width>640</width><height>480</height><depth>3</depth></size>
      <object>
        <name>person</name><difficult>0</difficult>
        <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>640</xmax><ymax>480</ymax></bndbox>
        <part><name>hand</name><bndbox>…</bndbox></part>
      </object>
    </annotation>

Pixels count from 1, and both ends belong to a box: this one covers the whole image, 0 … 640 and 0 … 480. A difficult
object and its parts become ignored boxes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree as ET
from xml.parsers import expat

from yolo_prune.bounded import is_file, read_bytes, read_lines
from yolo_prune.datasets.formats.faults import Faults
from yolo_prune.datasets.formats.labelled_set import (
    PIXEL_DECIMALS,
    Box,
    LabelledImage,
    LabelledSet,
    Progress,
    Source,
    StatedSize,
    choose_names,
    find_canvas,
    find_image,
    find_parent,
    list_tails,
    make_image,
    make_set,
    parse_name,
    place_image,
)
from yolo_prune.datasets.images import read_header
from yolo_prune.datasets.spec import SUFFIXES
from yolo_prune.errors import DatasetError
from yolo_prune.files import save_text
from yolo_prune.limits import DEEPEST, LONGEST_PATH, MOST_LIST_BYTES, MOST_XML_BYTES, MOST_XML_ELEMENTS

EDGES = ("xmin", "ymin", "xmax", "ymax")
RIGHT_FILE = "name VOC annotations, xml files that begin with <annotation>"


@dataclass(frozen=True)
class _Object:
    """An object or a part of one, whose edges are not parsed yet."""

    name: str
    edges: tuple[str | None, ...]
    ignore: bool
    is_part: bool
    where: str


@dataclass(frozen=True)
class _File:
    """The contents of one xml file."""

    path: Path
    split: str
    filename: str
    stated_px: StatedSize
    objects: tuple[_Object, ...]


def load_voc(
    sources: Sequence[Source],
    wanted: Sequence[str] | None = None,
    images: Path | None = None,
    progress: Progress = None,
    faults: Faults | None = None,
) -> LabelledSet:
    """Read image-set lists or folders of xml files. Classes are the objects' names in alphabetical order, or `wanted`.

    A wanted name is taken from objects and from parts; without wanted names, parts are left out. Images are searched
    beside the xml file, in the folder `images`, and in JPEGImages, by the name that the file says or by its own.

    Raises:
        DatasetError: a list or an xml file is malformed (names the line), an image is missing or of another size.
    """
    faults = faults or Faults()
    files: list[_File] = []
    for source in sources:
        for path in _find_files(source):
            with faults:
                files.append(_load_file(path, source.split))
    faults.check(is_end=False)
    objects = [one for file in files for one in file.objects if wanted is not None or not one.is_part]
    names = choose_names(wanted, sorted({one.name for one in objects}), sources[0].path)
    numbers = {name: number for number, name in enumerate(names)}
    found = []
    for done, file in enumerate(files, 1):
        with faults:
            found.append(_load_image(file, numbers, images, faults, takes_parts=wanted is not None))
        if progress:
            progress(done, len(files))
    faults.check()
    return make_set(names, found)


def save_voc(folder: Path, data: LabelledSet, link: bool = False, progress: Progress = None) -> None:
    """Write Annotations, JPEGImages and ImageSets/Main to a folder; with `link`, link to the images instead of copying.

    All splits share a folder: slashes and spaces in names become `_`, and names get their split as a prefix if two
    splits use the same name.

    Raises:
        DatasetError: two names become the same, or one cannot be written to a list.
    """
    names = _flatten_names(data.images)
    for split in data.splits:
        own = [name for name, image in zip(names, data.images, strict=True) if image.split == split]
        save_text(folder / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{name.stem}\n" for name in own))
    (folder / "Annotations").mkdir(parents=True)
    for done, (name, image) in enumerate(zip(names, data.images, strict=True), 1):
        place_image(image.image, folder / "JPEGImages" / name, link)
        text = format_voc(image, str(name), data.names)
        (folder / "Annotations" / f"{name.stem}.xml").write_text(text, encoding="utf-8")
        if progress:
            progress(done, len(names))


def format_voc(image: LabelledImage, filename: str, names: Sequence[str]) -> str:
    """Format an image's objects as VOC xml; decimals of pixels are kept."""
    root = ET.Element("annotation")
    _add(root, folder="JPEGImages", filename=filename)
    size = ET.SubElement(root, "size")
    _add(size, width=str(image.width_px), height=str(image.height_px), depth="3")
    _add(root, segmented="0")
    objects = image.objects
    for kind, box, ignore in zip(objects.classes, objects.boxes_xyxy.tolist(), objects.ignore, strict=True):
        item = ET.SubElement(root, "object")
        _add(item, name=names[kind], pose="Unspecified", truncated="0", difficult=str(int(ignore)))
        x1, y1, x2, y2 = box
        edges = map(_format_pixel, (x1 + 1, y1 + 1, x2, y2))
        _add(ET.SubElement(item, "bndbox"), **dict(zip(EDGES, edges, strict=True)))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def parse_xml(data: bytes, path: Path) -> ET.Element:
    """Parse an xml file; each element has the attribute `line`, and no other.

    Document types are rejected, because their entities can expand to fill the memory, or read files.

    Raises:
        DatasetError: it is not xml, has a document type, is nested too deep or holds too many elements (names the line).
    """
    builder, parser = ET.TreeBuilder(), expat.ParserCreate()
    count = depth = 0

    def reject(*_: object) -> None:
        where = f"{path}:{parser.CurrentLineNumber}"
        raise DatasetError("has a document type, which is not allowed", where=where, right="remove <!DOCTYPE …>")

    def start(tag: str, _: dict[str, str]) -> None:
        nonlocal count, depth
        count, depth = count + 1, depth + 1
        if depth > DEEPEST or count > MOST_XML_ELEMENTS:
            what = "is nested too deep" if depth > DEEPEST else f"has more than {MOST_XML_ELEMENTS:,} elements"
            raise DatasetError(what, where=f"{path}:{parser.CurrentLineNumber}", right=RIGHT_FILE)
        builder.start(tag, {"line": str(parser.CurrentLineNumber)})

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    parser.StartDoctypeDeclHandler = reject
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError, ValueError) as error:  # the last two: an encoding that expat does not know
        problem = expat.errors.messages[error.code] if isinstance(error, expat.ExpatError) else str(error)
        where = f"{path}:{parser.CurrentLineNumber}"
        raise DatasetError(
            f"is not xml ({problem})", where=where, right="correct that line, or save as UTF-8"
        ) from error
    return builder.close()


def _add(parent: ET.Element, **texts: str) -> None:
    for tag, text in texts.items():
        ET.SubElement(parent, tag).text = text


def _format_pixel(value: float) -> str:
    return f"{value:.{PIXEL_DECIMALS}f}".rstrip("0").rstrip(".")


def _flatten_names(images: Sequence[LabelledImage]) -> list[PurePosixPath]:
    """Return a file name for each image; the part before the suffix is its id."""
    names = [PurePosixPath(re.sub(r"[/\s]", "_", image.name)) for image in images]
    splits = Counter(stem for _, stem in {(image.split, name.stem) for image, name in zip(images, names, strict=True)})
    if any(count > 1 for count in splits.values()):
        names = [PurePosixPath(f"{image.split}_{name}") for image, name in zip(images, names, strict=True)]
    taken: dict[str, LabelledImage] = {}
    for image, name in zip(images, names, strict=True):
        if not name.name.isprintable():
            raise DatasetError(f"{name.name!r} cannot stand in xml", where=image.image, right="give it another name")
        if (other := taken.setdefault(name.stem, image)) is not image:
            what = f"would be {name.stem} in VOC, as would {other.image}"
            raise DatasetError(what, where=image.image, right="give one of them another name")
    return names


def _find_files(source: Source) -> list[Path]:
    if not source.path.is_dir():
        return _read_list(source.path)
    for folder in (source.path, source.path / "Annotations"):
        if files := sorted(path for path in folder.glob("*.xml") if not path.name.startswith(".")):
            return files
    raise DatasetError("there are no xml files", where=source.path, right="name a folder of VOC annotations")


def _read_list(path: Path) -> list[Path]:
    """Return the xml files of an image set. Lists of person layout have one line per person, so images repeat."""
    parts = path.parts if "ImageSets" in path.parts else path.absolute().parts
    if "ImageSets" not in parts[:-1]:
        right = "name a list such as VOC2012/ImageSets/Main/train.txt, or a folder of xml files"
        raise DatasetError("is not below a folder ImageSets", where=path, right=right)
    folder = Path(*parts[: len(parts) - 1 - parts[::-1].index("ImageSets")], "Annotations")
    try:
        lines = [(number, line.split()) for number, line in read_lines(path, MOST_LIST_BYTES, LONGEST_PATH)]
    except (OSError, UnicodeDecodeError) as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) else ""
        right = "write an image's id per line"
        raise DatasetError(f"the list cannot be read{reason}", where=path, right=right) from error
    files: dict[Path, set[tuple[str, ...]]] = {}
    for number, (own, *others) in ((number, words) for number, words in lines if words):
        where = f"{path}:{number}"
        xml = folder / f"{parse_name(own, where)}.xml"
        if tuple(others) in files.setdefault(xml, set()):
            raise DatasetError(f"{own} is there twice", where=where, right="write each line once")
        if not is_file(xml):
            raise DatasetError(f"there is no file {xml}", where=where, right="write ids of annotated images")
        files[xml].add(tuple(others))
    if not files:
        raise DatasetError("the list is empty", where=path, right="write an image's id per line")
    return list(files)


def _load_file(path: Path, split: str) -> _File:
    try:
        root = parse_xml(read_bytes(path, MOST_XML_BYTES), path)
    except OSError as error:
        raise DatasetError(f"cannot be read ({error.strerror})", where=path, right=RIGHT_FILE) from error
    if root.tag != "annotation":
        raise DatasetError(f"begins with <{root.tag}>", where=path, right=RIGHT_FILE)
    stated: StatedSize = (_parse_side(root, "width", path), _parse_side(root, "height", path))
    if stated == (0, 0):  # some tools write this where they do not know it
        stated = None, None
    return _File(path, split, _read(root, "filename") or path.stem, stated, tuple(_iterate_objects(root, path)))


def _iterate_objects(root: ET.Element, path: Path) -> Iterator[_Object]:
    for item in root.iterfind("object"):
        difficult = _read(item, "difficult") or "0"
        if difficult not in ("0", "1"):
            where = f"{path}:{item.get('line')}"
            raise DatasetError(f"difficult is {difficult[:40]!r}", where=where, right="write 0 or 1")
        for element in (item, *item.iterfind("part")):
            where = f"{path}:{element.get('line')}"
            if not (name := _read(element, "name")):
                raise DatasetError(f"the {element.tag} has no name", where=where, right="write <name>…</name>")
            edges = tuple(_read(element, f"bndbox/{edge}") for edge in EDGES)
            yield _Object(name, edges, difficult == "1", element is not item, where)


def _read(element: ET.Element, path: str) -> str | None:
    text = element.findtext(path)
    return None if text is None else text.strip()


def _parse_side(root: ET.Element, key: str, path: Path) -> float | None:
    element = root.find(f"size/{key}")
    text = "" if element is None else (element.text or "").strip()
    if element is None or not text:
        return None
    if (value := _parse_number(text)) is None:
        where = f"{path}:{element.get('line')}"
        raise DatasetError(f"{key} is {text[:40]!r}", where=where, right="write a number of pixels")
    return value


def _parse_number(text: str | None) -> float | None:
    """Return a finite number, or None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _parse_box(item: _Object) -> tuple[float, float, float, float]:
    """Return the edges x1, y1, x2, y2 of an object, counted from 0."""
    edges = [value for edge in item.edges if (value := _parse_number(edge)) is not None]
    if len(edges) < len(EDGES):
        found = ", ".join(f"{key} {edge}" for key, edge in zip(EDGES, item.edges, strict=True))
        right = "write <bndbox> with xmin, ymin, xmax and ymax, finite numbers"
        raise DatasetError(f"{item.name} has no box ({found[:120]})", where=item.where, right=right)
    x1, y1, x2, y2 = edges
    return x1 - 1, y1 - 1, x2, y2


def _load_image(
    file: _File, numbers: Mapping[str, int], images: Path | None, faults: Faults, takes_parts: bool
) -> LabelledImage:
    where, home = str(file.path), file.path.parent
    folders = [home, *([images] if images else []), home / "JPEGImages", find_parent(home) / "JPEGImages"]
    choices = []
    for filename in list_tails(file.filename, where):
        endings = () if filename.name.lower().endswith(SUFFIXES) else SUFFIXES  # some files omit the suffix
        choices += [filename, *(filename.with_name(filename.name + ending) for ending in endings)]
    choices += [PurePosixPath(file.path.stem + ending) for ending in SUFFIXES]  # the image was renamed, with its xml
    image, name = find_image(choices, folders, where)
    header = read_header(image)
    canvas = find_canvas(header, file.stated_px, image, where)
    boxes, left_out = [], []
    for one in file.objects:
        with faults:
            if one.name in numbers and (takes_parts or not one.is_part):
                boxes.append(Box(numbers[one.name], _parse_box(one), one.ignore))
            else:
                left_out.append(one.name)
    return make_image(image, name, file.split, header, boxes, canvas_px=canvas, left_out=left_out)
