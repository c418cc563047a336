"""Estimates of memory against what PyTorch allocates: tensor by tensor, and as the process's resident memory."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from networks import make_small_network
from paths import ROOT
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from yolo_prune.darknet import memory
from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.layers import Conv, MaxPool, Route, Shortcut
from yolo_prune.darknet.memory import (
    KERNEL_BYTES,
    LOSS_COPIES,
    count_live_bytes,
    estimate_evaluation_bytes,
    estimate_memory,
    estimate_training_bytes,
    format_memory,
)
from yolo_prune.image_size import ImageSize
from yolo_prune.model.detector import Detector


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if (key := storage._cdata) not in self._known:
            self._known.add(key)
            self.now += (size := storage.nbytes())
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def test_a_forward_pass_by_hand() -> None:
    network = make_small_network(Conv(8, 3, 2, 1), Conv(8, 3, 1, 1), Shortcut(0), side=64)
    image, layer = 4 * 3 * 64 * 64, 4 * 8 * 32 * 32
    head = 4 * 6 * 32 * 32
    # the second convolution: its input, which the shortcut reads again, its output, and that before its batch norm
    assert list(memory._OutputSizes(network, None, 1, 4).follow_forward()) == [
        image + 2 * layer,
        3 * layer,
        3 * layer,
        layer + head,
        head,
    ]
    assert count_live_bytes(network, 2) == 2 * max(image + layer, 3 * layer)
    assert estimate_evaluation_bytes(network, 1) == (
        measure_cost(network).size_bytes + 3 * KERNEL_BYTES + round(1.25 * (image + 2 * layer))
    )


def test_what_layers_keep_by_hand() -> None:
    network = make_small_network(
        Conv(8, 3, 2, 1),
        Conv(8, 3, 1, 1, activation="mish"),
        MaxPool(2, 2, 0),
        Route((2,)),
        side=64,
    )
    image, layer, pooled, head = (4 * count for count in (3 * 64 * 64, 8 * 32 * 32, 8 * 16 * 16, 6 * 16 * 16))
    kept = image + 2 * layer + 3 * layer + 3 * pooled + (1 + LOSS_COPIES) * head
    assert memory._OutputSizes(network, None, 1, 4).count_kept() == kept


@pytest.mark.parametrize("arch", ["yolov3", "yolov3-tiny", "yolov4", "yolov4-tiny"])
def test_passes_of_published_networks_need_what_is_estimated(arch: Any) -> None:
    network = make_network(arch, 2, 0.125, ImageSize(128, 128), None)
    model = Detector(network)
    images = torch.rand(2, 3, 128, 128)
    with torch.inference_mode(), LiveBytes() as counted:
        model.eval()(images)
    sizes = memory._OutputSizes(network, None, 2, 4)
    assert counted.most + images.nbytes == pytest.approx(max(sizes.follow_forward()), rel=0.1)
    with LiveBytes() as counted:
        heads = model.train()(images)
        torch.autograd.backward(sum((head.square().sum() for head in heads), torch.zeros(())))
    assert counted.most + images.nbytes == pytest.approx(max(sizes.follow_backward()), rel=0.1)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's clear_refs")
@pytest.mark.parametrize(
    "case", ["yolov3-tiny@1:416:4:evaluate", "yolov3-tiny@1:416:4:train", "yolov4-tiny@0.5:224:16:train"]
)
def test_resident_memory_is_within_a_fifth_of_the_estimate(case: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/memory.py"), case]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_estimates_grow_with_images_sizes_and_teachers() -> None:
    network = make_network("yolov3-tiny", 1, 0.5, ImageSize(128, 128), None)
    estimates = [
        *(estimate_training_bytes(network, 8, moments=1), estimate_training_bytes(network, 8)),
        *(estimate_training_bytes(network, 16), estimate_training_bytes(network, 16, teacher=network)),
        *(estimate_training_bytes(network, 16, 256), estimate_training_bytes(network, 16, ImageSize(512, 256))),
    ]
    assert estimates == sorted(set(estimates))
    assert estimate_training_bytes(network, 64, value_bytes=2) < estimate_training_bytes(network, 64)
    assert estimate_evaluation_bytes(network, 16) < estimate_training_bytes(network, 16)


def test_the_line_that_is_printed() -> None:
    network = make_network("yolov3-tiny", 1, 1, ImageSize(416, 416), None)
    estimates = estimate_memory(network, 16)
    assert estimates.as_dict() == {
        "batch_size": 16,
        "train": estimate_training_bytes(network, 16),
        "evaluate": estimate_evaluation_bytes(network, 16),
    }
    assert format_memory(memory.Memory(16, 1_384_000_000, 530_400_000)) == (
        "memory for 16 images at once: 1.38 GB to train, 530 MB to evaluate, and 500 MB for PyTorch itself"
    )
