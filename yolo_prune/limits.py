"""The largest files and data sets that are read.

Each limit is several times what the largest published data set or file has, so that no real file meets one. Larger ones
are slips, or were made to exhaust memory: they are an error before they are read. Networks have limits of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_BOXES = 50_000
"""Lines of a label file, and objects of an image: NWPU-Crowd has 20,033 heads in one."""
MOST_LABEL_BYTES = 1 << 24
"""Of a label file, which may hold polygons: LVIS' largest have about 1 MB."""
MOST_XML_BYTES = 1 << 24
"""Of a VOC xml file: one of 20,033 objects has 5 MB."""
MOST_XML_ELEMENTS = 16 * MOST_BOXES
"""Of a VOC xml file: an object has nine, and a few more for each of its parts."""
MOST_LIST_BYTES = 1 << 30
"""Of a text list of images: Open Images has 1.7 million, which take about 200 MB."""
LONGEST_PATH = 32_768
"""Characters of a line of a list: the longest path of Windows; Linux has 4,096."""
MOST_ANNOTATION_BYTES = 1 << 34
"""Of a COCO file, which is read entry by entry: that of Objects365 has about 6 GB."""
MOST_ENTRY_CHARACTERS = 1 << 24
"""Of one entry of such a file: polygons and run lengths of an image take less than 1 MB."""
MOST_CLASSES = 40_000
"""YOLO9000 has 9,418, ImageNet 21,841. A head with three anchors for more has more channels than a layer may have."""
LONGEST_NAME = 1_000
"""Characters of a class name: those of ImageNet have up to 130."""
MOST_NAMES_BYTES = 1 << 24
"""Of a .names file: that of YOLO9000 has 0.1 MB."""
MOST_IMAGE_BYTES = 1 << 30
"""Of an image's file: one of as many pixels as are decoded has 0.8 GB if it is not compressed."""
MOST_FRAME_PIXELS = 2**26
"""Of a video's frame: 8K has 2**25. Several frames are in memory at a time."""
MOST_WORDS = 1_000_000
"""Lines on stdin: each names an image or a video, which takes longer to read."""
MOST_JSON_BYTES = 1 << 24
"""Of a JSON file that is read as a whole, such as a plan or a record of a run: a plan of yolov4-p7 has about 1 MB."""
MOST_RESULTS_BYTES = 1 << 23
"""Of the results.csv of a run: 1,000 epochs have 0.3 MB."""
MOST_YAML_BYTES = 1 << 22
"""Of a YAML file: a data.yaml with the names of ImageNet has 1 MB."""
MOST_YAML_VALUES = 5 * MOST_CLASSES
"""Keys and values of a YAML file: each class name has a key and a value."""
MOST_CFG_BYTES = 1 << 22
"""Of a Darknet cfg: that of yolov4-p7, with 531 layers, has 60 kB; one of the most layers that are read has less than 1 MB."""
MOST_PICKLE_BYTES = 1 << 24
"""Of the pickle in a .pt file, which holds all but the tensors' bytes: that of yolov4-p7 has less than 1 MB."""
DEEPEST = 64
"""How deep mappings and lists may be nested."""


def is_bounded(value: Any, most: int) -> bool:
    """Return whether a nest of mappings and lists holds at most so many values, and is at most `DEEPEST` deep.

    What is held several times counts as often, so what holds itself has too many.
    """
    count, left = 0, [(value, 0)]
    while left:
        one, depth = left.pop()
        count += 1
        if count > most or depth > DEEPEST:
            return False
        if isinstance(one, Mapping):
            left += [(part, depth + 1) for pair in one.items() for part in pair]
        elif isinstance(one, list | tuple | set | frozenset):
            left += [(part, depth + 1) for part in one]
    return True
