"""Find blocks of a JPEG that no encoder writes: damage that decoders accept without a word."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from yolo_prune.bounded import open_plain
from yolo_prune.console import warn_once
from yolo_prune.datasets.images import JPEG_START
from yolo_prune.limits import MOST_IMAGE_BYTES
from yolo_prune.scraps import make_temporary_folder

SLACK, SLACK_SMALLER = 32.0, 128.0
"""How much farther than by rounding an encoder's block may lie outside the range of samples, as a norm.

MozJPEG lets white overshoot, so that fewer ripples show around black letters: by up to 17 where tables are all ones. libjpeg 7
and later make smaller channels of colour by a DCT that overshoots at edges: by up to 110 around coloured letters. Single pixels that
alternate between opposite colours reach 240 there and are taken for damage.
"""
MOST_BLOCKS = 8192
"""So many blocks are decoded at once: 10 MB."""


@contextmanager
def finding_impossible_blocks() -> Iterator[None]:
    """Provide a folder for the copies of files that jpeglib makes; within this, `find_impossible_block` can be called."""
    if find_spec("jpeglib") is None:
        warn_once(
            "jpeglib",
            "JPEG images are not searched for damage that decoders do not report; that needs: pip install jpeglib",
        )
        yield
        return
    before = tempfile.tempdir
    with make_temporary_folder() as folder:
        tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before


def find_impossible_block(path: Path) -> str:
    """Return, as a text, where a JPEG that decoders accept has a block that no encoder writes; an empty one if nowhere.

    An encoder rounds the DCT of samples of 0 … 255 to multiples q of a table. The DCT keeps lengths, so a decoded block lies
    at most |q| from samples in that range, even where values are cut off instead of rounded. Overwritten bytes in the middle
    of a file are often decoded to its end without an error, into blocks that are far outside. Nothing is said of other files, of
    JPEGs that libjpeg 6b does not know, such as those with arithmetic coding, and where jpeglib is not installed.

    Raises:
        OSError: the file cannot be read, or there is no room for a copy among temporary files.
    """
    if find_spec("jpeglib") is None:
        return ""
    with open_plain(path, MOST_IMAGE_BYTES) as plain:
        start = plain.read(len(JPEG_START))
        if start != JPEG_START:
            return ""
        content = start + plain.read()
    import jpeglib

    file = Path(tempfile.gettempdir()) / f"{uuid4().hex}.jpg"  # jpeglib reads no name that is not UTF-8
    try:
        file.write_bytes(content)
        image = jpeglib.read_dct(str(file))
        channels = [channel for channel in (image.Y, image.Cb, image.Cr, image.K) if channel is not None]
    except OSError as error:
        if error.errno is not None:
            raise
        return ""
    finally:
        file.unlink(missing_ok=True)
    steps_px = 8 * image.samp_factor.max(axis=0) / image.samp_factor
    for channel, step_px, table in zip(channels, steps_px, image.quant_tbl_no, strict=True):
        excess = measure_excess(channel, image.qt[table])
        row, column = np.unravel_index(excess.argmax(), excess.shape)
        slack = SLACK if step_px.max() == 8 else SLACK_SMALLER
        if excess[row, column] > np.linalg.norm(image.qt[table].astype(float)) + slack:
            x, y = (column, row) * step_px[::-1]
            return f"the block at x {x:.0f}, y {y:.0f} px has values that no encoder writes"
    return ""


def measure_excess(channel: NDArray[np.int16], table: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return how far decoded blocks are outside the range of samples, as the norm of what is below 0 or above 255.

    Args:
        channel: (R, C, 8, 8) quantized DCT coefficients of R × C blocks.
        table: (8, 8) by which they are multiplied.

    Returns:
        (R, C).
    """
    from scipy.fft import idctn

    blocks = channel.reshape(-1, 8, 8)
    excess = np.empty(len(blocks), np.float32)
    for first in range(0, len(blocks), MOST_BLOCKS):
        part = blocks[first : first + MOST_BLOCKS] * table.astype(np.float32)
        samples = idctn(part, axes=(-2, -1), norm="ortho", overwrite_x=True) + 128
        samples -= samples.clip(0, 255)
        excess[first : first + MOST_BLOCKS] = np.sqrt(np.einsum("nij,nij->n", samples, samples))
    return excess.reshape(channel.shape[:2])
