"""NMS as a part of an ONNX model: its operators, appended to boxes and scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from yolo_prune.engines.exported.layout import list_output_names
from yolo_prune.engines.exported.metadata import Metadata
from yolo_prune.engines.exported.packages import import_package


def append_nms(model: Any, metadata: Metadata) -> None:
    """Replace the outputs boxes (B, N, 4) and scores (B, N, C) by detections (B, M, 6), in place; see `suppress`.

    NMS gives indices. The scores at these indices are put into zeros (B, N, C), of which the M highest of each image are taken.
    So the output has M rows also where fewer are found, and ties are ordered by box, then by class, as everywhere else.
    With `agnostic_nms` the best score of each box stands for all, as (B, N, 1), and its class is looked up at the end.
    """
    onnx = import_package("onnx", "--nms")
    settings = metadata.nms
    assert settings is not None
    is_agnostic = bool(settings.get("agnostic_nms"))  # older files do not say
    classes = 1 if is_agnostic else len(metadata.names)
    (name,) = list_output_names(metadata)
    graph = model.graph

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        graph.node.append(onnx.helper.make_node(kind, inputs, [output], name=f"nms/{output}", **attributes))
        return output

    def hold(value: Any, title: str, kind: type) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, kind), f"nms/{title}"))
        return f"nms/{title}"

    scores = "scores"
    if is_agnostic:
        best = ["best_scores", "best_classes"]
        graph.node.append(
            onnx.helper.make_node("TopK", [scores, hold([1], "one_of_each", np.int64)], best, name="nms/best")
        )
        scores = best[0]
    least = np.nextafter(np.float32(settings["confidence"]), np.float32(-1))  # the operator drops scores that are equal
    of_class = add("Transpose", [scores], "scores_of_class", perm=[0, 2, 1])
    rows_in_all = hold([-1], "rows_in_all", np.int64)
    all_boxes = add("Shape", ["boxes"], "boxes_shape")
    count = add("Gather", [all_boxes, hold(1, "one", np.int64)], "box_count")
    selected = add(
        "NonMaxSuppression",
        [
            *("boxes", of_class, count),
            hold(settings["nms_iou"], "iou", np.float32),
            hold(least, "confidence", np.float32),
        ],
        "selected",
    )  # rows of image, class, box
    places = add("Gather", [selected, hold([0, 2, 1], "image_box_class", np.int64)], "places", axis=1)
    kept_scores = add("GatherND", [scores, places], "kept_scores")
    zeros = add(
        "ConstantOfShape",
        [add("Shape", [scores], "scores_shape")],
        "zeros",
        value=onnx.numpy_helper.from_array(np.zeros(1, np.float32)),
    )
    dense = add("ScatterND", [zeros, places, kept_scores], "dense")
    flat = add("Flatten", [dense], "flat")
    total = add("Mul", [count, hold(classes, "classes", np.int64)], "total")
    limit = add("Min", [total, hold(settings["max_detections"], "limit", np.int64)], "most")
    most = add("Reshape", [limit, rows_in_all], "most_1d")
    graph.node.append(onnx.helper.make_node("TopK", [flat, most], ["top_scores", "top_places"], name="nms/top"))
    box_of = add("Div", ["top_places", "nms/classes"], "top_boxes")
    if is_agnostic:
        of_box = add("Flatten", ["best_classes"], "class_of_box")
        class_of = add("GatherElements", [of_box, box_of], "top_classes", axis=1)
    else:
        class_of = add("Mod", ["top_places", "nms/classes"], "top_classes")
    last = hold([-1], "last", np.int64)
    expanded = add("Unsqueeze", [box_of, last], "top_boxes_3d")
    shape = add("Concat", [add("Shape", [box_of], "top_shape"), hold([4], "four", np.int64)], "corner_shape", axis=0)
    corners = add("GatherElements", ["boxes", add("Expand", [expanded, shape], "corner_places")], "corners", axis=1)
    columns = [
        corners,
        add("Unsqueeze", ["top_scores", last], "score_column"),
        add("Unsqueeze", [add("Cast", [class_of], "class_numbers", to=onnx.TensorProto.FLOAT), last], "class_column"),
    ]
    add("Concat", columns, name, axis=2)
    batch = graph.output[0].type.tensor_type.shape.dim[0]
    images = batch.dim_value or batch.dim_param
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [images, None, 6]))
