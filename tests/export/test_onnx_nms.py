"""NMS as ONNX operators keeps what `suppress` keeps, per class and over all classes."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from exporting import make_checkpoint, skip_without_packages

from yolo_prune.darknet.architectures import make_network
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.evaluation.detections import suppress
from yolo_prune.export.onnx_nms import append_nms
from yolo_prune.export.writers import describe

CLASSES, BOXES, IMAGES = 4, 40, 3


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize(("confidence", "nms_iou", "most"), [(0.001, 0.5, 300), (0.4, 0.2, 5), (0.0, 1.0, 300)])
def test_the_graph_keeps_what_suppress_keeps(agnostic: bool, confidence: float, nms_iou: float, most: int) -> None:
    skip_without_packages("onnx")
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    config = DetectConfig(confidence, nms_iou, most, agnostic)
    kinds = {"boxes": [IMAGES, BOXES, 4], "scores": [IMAGES, BOXES, CLASSES]}
    values = [onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in kinds.items()]
    inputs = [onnx.helper.make_tensor_value_info(f"{name}_in", 1, shape) for name, shape in kinds.items()]
    nodes = [onnx.helper.make_node("Identity", [f"{name}_in"], [name]) for name in kinds]
    graph = onnx.helper.make_graph(nodes, "net", inputs, values)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    checkpoint = make_checkpoint(make_network("yolov3-tiny", CLASSES, 0.0625, 64))
    append_nms(model, replace(describe(checkpoint, ""), nms=asdict(config)))
    onnx.checker.check_model(model)
    random = torch.Generator().manual_seed(0)
    corners = torch.rand((IMAGES, BOXES, 2), generator=random) * 30
    boxes = torch.cat((corners, corners + 5 + torch.rand((IMAGES, BOXES, 2), generator=random) * 30), -1)
    scores = torch.rand((IMAGES, BOXES, CLASSES), generator=random)
    session = runtime.InferenceSession(model.SerializeToString())
    (rows,) = session.run(None, {"boxes_in": boxes.numpy(), "scores_in": scores.numpy()})
    for found, expected in zip(rows, suppress(boxes, scores, config), strict=True):
        kept = found[found[:, 4] > 0]
        assert len(kept) == len(expected) > 0
        assert np.array_equal(kept[:, :4], expected.boxes_xyxy)
        assert np.array_equal(kept[:, 4], expected.scores)
        assert kept[:, 5].tolist() == expected.classes.tolist()
