"""An example program for an exported file: NumPy and the file's own runtime are all that it needs."""

from __future__ import annotations

from yolo_prune.engines.exported.metadata import Metadata

_LOAD = {
    "onnx": """import onnxruntime

session = onnxruntime.InferenceSession(FILE)
run = lambda images: session.run(None, {"images": images})
""",
    "openvino": """import openvino

model = openvino.compile_model(FILE, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
run = lambda images: list(model(images).values())
""",
    "ncnn": """import ncnn

net = ncnn.Net()
net.load_param(FILE)
net.load_model(FILE.replace(".param", ".bin"))
def run(images):
    extractor = net.create_extractor()
    extractor.input("in0", ncnn.Mat(images[0]))
    return [np.array(extractor.extract(name)[1])[None] for name in ("out0", "out1")]
""",
    "litert": """from ai_edge_litert.interpreter import Interpreter

runner = Interpreter(FILE).get_signature_runner()
run = lambda images: [value for _, value in sorted(runner(args_0=images).items())]
""",
    "executorch": """import torch
from executorch.runtime import Runtime

program = Runtime.get().load_program(FILE)
method = program.load_method("forward")
run = lambda images: [output.numpy() for output in method.execute([torch.from_numpy(images)])]
""",
    "pt2": """import torch

module = torch.export.load(FILE).module()
run = lambda images: [output.numpy() for output in torch.utils._pytree.tree_leaves(module(torch.from_numpy(images)))]
""",
}
"""What loads a file and runs it, by its format."""
_READ = {
    "yoloprune": "boxes, scores = (output[0] for output in run(images))",
    "ultralytics": "rows = run(images)[0][0].T\nboxes, scores = np.hstack((rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2)), rows[:, 4:]",
}
"""What turns the outputs of each layout into boxes (N, 4) and scores (N, C)."""
_NMS = """areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
for number, name in enumerate(NAMES):
    left = [index for index in np.argsort(-scores[:, number]) if scores[index, number] >= CONFIDENCE]
    while left:
        best, *left = left
        print(name, f"{scores[best, number]:.3f}", *boxes[best].round(1))
        shared = np.minimum(boxes[left, 2:], boxes[best, 2:]) - np.maximum(boxes[left, :2], boxes[best, :2])
        shared = shared.clip(0).prod(1)
        left = [index for index, one in zip(left, shared) if one <= IOU * (areas[index] + areas[best] - one)]
"""
_KEPT = """for box, row in zip(boxes, rows):
    if row[4] >= CONFIDENCE:
        print(NAMES[int(row[5])], f"{row[4]:.3f}", *box.round(1))
"""


def has_example(format: str) -> bool:
    """Return whether there is an example for a format: it runs in Python."""
    return format in _LOAD


def make_example_program(format: str, file: str, name: str, metadata: Metadata) -> str:
    """Return the text of a Python program that finds objects in an image with an exported file.

    Args:
        format: a format for which there is an example.
        file: the name of the exported file, beside the program.
        name: the name of the program.
    """
    size = metadata.img_size
    read = "rows = run(images)[0][0]\nboxes = rows[:, :4]" if metadata.nms else _READ[metadata.layout]
    return f'''"""Find objects: python {name} IMAGE.npy, an array of RGB uint8, (height, width, 3). Prints name, score, x1 y1 x2 y2."""
import sys
from pathlib import Path

import numpy as np
{_LOAD[format].replace("FILE", f"str(Path(__file__).with_name({file!r}))")}
WIDTH, HEIGHT, NAMES, CONFIDENCE, IOU = {size.width}, {size.height}, {list(metadata.names)}, 0.25, 0.5

def resize(image, new):
    """Resize the first axis: by area to shrink, linearly to enlarge."""
    old = len(image)
    weights = np.diff((np.arange(new + 1)[:, None] * old / new - np.arange(old)).clip(0, 1), axis=0) * new / old
    if new > old:
        places = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
        weights = (1 - np.abs(places[:, None] - np.arange(old))).clip(0)
    return np.tensordot(weights, image, 1)

image = np.load(sys.argv[1])
scale = min(HEIGHT / image.shape[0], WIDTH / image.shape[1])
height, width = (max(1, round(side * scale)) for side in image.shape[:2])
small = resize(resize(image, height).swapaxes(0, 1), width).swapaxes(0, 1).round()
top, left = (HEIGHT - height) // 2, (WIDTH - width) // 2
padded = np.full((HEIGHT, WIDTH, 3), 114.0)
padded[top : top + height, left : left + width] = small
images = np.ascontiguousarray(padded.transpose(2, 0, 1)[None] / 255, np.float32)

{read}
boxes = (boxes - [left, top, left, top]) * np.tile([image.shape[1] / width, image.shape[0] / height], 2)
boxes = boxes.clip(0, [image.shape[1], image.shape[0]] * 2)
{_KEPT if metadata.nms else _NMS}'''
