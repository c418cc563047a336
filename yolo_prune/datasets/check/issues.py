"""The kinds of issues that the checker finds, in the order in which it reports them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yolo_prune.errors import DatasetError

SMALL_BOX_PX = 4
"""A shorter side below this, at the network's size, is half a cell of the finest head: too small to learn."""
EXTREME_ASPECT = 6
"""A box with a larger ratio of longer to shorter side is rare: 3 of 6,035 real hands."""
COVERING_SHARE = 0.95
"""A box that covers more than this share of the image is often a label of the whole image."""
SAME_BOX_IOU = 0.9
"""Two boxes of a class with a higher IoU are probably the same object."""
SMALL_IMAGE_PX = 32
"""An image with a shorter side below this is smaller than one cell of the coarsest head."""


@dataclass(frozen=True)
class Kind:
    """A kind of issue."""

    title: str
    """The name of such issues, in the plural."""
    is_error: bool = False
    """True if training would stop or learn something wrong; else the issue is a warning."""


KINDS: Mapping[str, Kind] = {
    "unreadable_image": Kind("images that cannot be read", is_error=True),
    "cut_image": Kind("images that are cut off or damaged", is_error=True),
    "bad_label": Kind("bad label lines", is_error=True),
    "unreadable_labels": Kind("label files that cannot be read", is_error=True),
    "no_objects": Kind("splits without any object", is_error=True),
    "shared_labels": Kind("label files that serve two images", is_error=True),
    "damaged_image": Kind("images that are damaged, of which a decoder makes what it can"),
    "two_splits": Kind("images in two splits"),
    "identical_images": Kind("identical images within a split"),
    "near_duplicates": Kind("groups of near-duplicates within a split"),
    "repeated_label": Kind("labels that are written twice"),
    "repaired_labels": Kind("label files with boxes that are clipped, or with polygons, which count as boxes"),
    "odd_files": Kind("files that are not read as they may be meant"),
    "coinciding_boxes": Kind(f"boxes that nearly coincide with another of their class (IoU above {SAME_BOX_IOU})"),
    "labels_without_image": Kind("label files without an image"),
    "no_labels": Kind("images without a label file"),
    "small_box": Kind(f"boxes with a side below {SMALL_BOX_PX} px at the network's size"),
    "extreme_box": Kind(f"boxes more than {EXTREME_ASPECT} times as long as wide"),
    "covering_box": Kind(f"boxes that cover more than {COVERING_SHARE:.0%} of the image"),
    "empty_class": Kind("classes without objects"),
    "turned_image": Kind("images that their EXIF data turn; labels must be for the turned image"),
    "small_image": Kind(f"images with a side below {SMALL_IMAGE_PX} px"),
}


@dataclass(frozen=True)
class Issue:
    """One issue, and where it is."""

    kind: str
    """A key of `KINDS`."""
    where: str
    """A file, or a file and its line."""
    what: str
    """What is wrong there."""
    right: str | None = None
    """What to do about it."""
    others: tuple[str, ...] = ()
    """Further files or lines with the same issue."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Figures for JSON output."""

    @property
    def is_error(self) -> bool:
        """Return whether the issue is an error; else it is a warning."""
        return KINDS[self.kind].is_error

    def as_dict(self) -> dict[str, Any]:
        """Return the issue for JSON output."""
        level = "error" if self.is_error else "warning"
        common = {"kind": self.kind, "level": level, "where": self.where, "what": self.what, "right": self.right}
        return {**common, "others": list(self.others), **self.details}

    def format(self) -> str:
        """Return the issue as one line of text."""
        line = f"{self.where}: {self.what}"
        return line if self.right is None else f"{line}; {self.right}"


def make_issue(kind: str, error: DatasetError) -> Issue:
    """Return an error as an issue."""
    return Issue(kind, error.where or "", error.what, error.right)
