"""What the name of a weights file says."""

from __future__ import annotations

import re
from pathlib import Path


def names_prefix(path: Path) -> bool:
    """Return whether a file's name says that it holds a network's first layers alone: NAME.conv.N, as Darknet writes."""
    return re.search(r"\.(conv|backbone)\.\d+$", path.name) is not None


def is_darknet_weights(path: Path) -> bool:
    """Return whether a file is one of Darknet's by its name: it does not say of which network its weights are."""
    return path.suffix == ".weights" or names_prefix(path)
