"""Write a network for LiteRT (TensorFlow Lite)."""

from __future__ import annotations

import logging
import warnings
import zipfile
from pathlib import Path

from yolo_prune.engines.exported.litert import FACTS
from yolo_prune.engines.exported.packages import import_package
from yolo_prune.export.litert_int8 import quantize_litert, replace_leaky
from yolo_prune.export.request import Request
from yolo_prune.files import open_atomically
from yolo_prune.scraps import make_temporary_folder


def export_litert(request: Request, path: Path) -> Path:
    """Write a .tflite file with its metadata appended as a ZIP archive, which readers of the format skip; see `Writer`."""
    litert = import_package("litert_torch", "--format litert", "litert")
    with make_temporary_folder() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            made = folder / "model.tflite"
            is_int8 = request.metadata.precision == "int8"
            module = replace_leaky(request.module, request.images) if is_int8 else request.module
            litert.convert(module, (request.images,)).export(str(made))
            if is_int8:
                quantize_litert(made, request.calibration)
        finally:
            logging.disable(logging.NOTSET)
        with zipfile.ZipFile(made, "a") as archive:
            archive.writestr(FACTS, request.metadata.format())
        with open_atomically(path) as file:
            file.write(made.read_bytes())
    return path
