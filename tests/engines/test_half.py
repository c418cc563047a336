"""Half precision, and 1×1 convolutions that are pruned 2:4 as products with semi-structured sparse matrices."""

from __future__ import annotations

import pytest
import torch
from networks import make_small_network, measure_largest_gap, randomise_, run
from torch import Tensor
from torch.sparse import SparseSemiStructuredTensorCUTLASS

from yolo_prune.darknet.layers import Conv, Shortcut
from yolo_prune.engines import half
from yolo_prune.engines.half import COLUMNS, ROWS, HalfDetector, SemiStructuredDetector, is_semi_structured
from yolo_prune.engines.make import make_engine
from yolo_prune.engines.precision import choose_precision
from yolo_prune.errors import ConfigError, EngineError
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.config import WeightConfig
from yolo_prune.pruning.plans.weight_plan import make_weight_plan
from yolo_prune.pruning.surgery.rebuild import zero_weights

LAYERS = (
    Conv(64, 3, padding=1), Conv(32, 1), Conv(64, 3, padding=1), Shortcut(0), Conv(128, 3, 2, 1), Conv(96, 1), Conv(48, 1),
)  # fmt: skip
FITTING = [1, 5]
"""The 1×1 convolutions of LAYERS whose inputs are a multiple of 64 and whose outputs are one of 32."""


def make_pruned(pattern: str = "2:4") -> Detector:
    model = randomise_(Detector(make_small_network(*LAYERS)), double=False).eval()
    return zero_weights(model, make_weight_plan(model, WeightConfig("l1", pattern=pattern)))


def draw_images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def is_close(one: list[Tensor], other: list[Tensor]) -> bool:
    return measure_largest_gap(one, other) < 0.01 * max(float(head.abs().max()) for head in other)


def test_half_precision_takes_and_gives_float32() -> None:
    model, images = make_pruned(), draw_images()
    heads = run(HalfDetector(model), images)
    assert all(head.dtype == torch.float32 for head in heads)
    assert is_close(heads, run(model, images))
    module = model.get_conv(0)
    assert module.conv.weight.dtype == torch.float32


def test_products_of_matrices_give_what_the_convolutions_give(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[Tensor] = []

    def pack(matrix: Tensor) -> Tensor:  # the GPU's own is another test's
        packed.append(matrix)
        return matrix

    monkeypatch.setattr(half, "to_sparse_semi_structured", pack)
    model, images = make_pruned(), draw_images()
    engine = SemiStructuredDetector(model)
    assert engine.sparse_layers == FITTING
    for _ in range(2):
        assert is_close(run(engine, images.to(memory_format=torch.channels_last)), run(HalfDetector(model), images))
    assert [tuple(matrix.shape) for matrix in packed] == [(32, 64), (96, 128)]
    for matrix in packed:
        assert ((matrix.reshape(-1, 4) != 0).sum(1) <= 2).all()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_gives_what_the_convolutions_give() -> None:
    model, images = make_pruned(), draw_images().cuda()
    engines = [make_engine(model, name, torch.device("cuda")) for name in ("half", "half-2:4")]
    with torch.inference_mode():
        dense, sparse = (engine(images) for engine in engines)
    assert is_close(list(sparse), list(dense))


def test_what_pytorch_packs_is_what_is_asked_for() -> None:
    limits = SparseSemiStructuredTensorCUTLASS._DTYPE_SHAPE_CONSTRAINTS[torch.float16]
    assert (limits.sparse_min_rows, limits.sparse_min_cols) == (ROWS, COLUMNS)


@pytest.mark.parametrize(
    ("layer", "shape", "zeros", "expected"),
    [
        (Conv(32, 1), (32, 64, 1, 1), 2, True),
        (Conv(32, 1), (32, 64, 1, 1), 1, False),
        (Conv(32, 1, 2), (32, 64, 1, 1), 2, False),
        (Conv(32, 3, 1, 1), (32, 64, 3, 3), 2, False),
        (Conv(48, 1), (48, 64, 1, 1), 2, False),
        (Conv(32, 1), (32, 96, 1, 1), 2, False),
    ],
)
def test_which_convolutions_fit(layer: Conv, shape: tuple[int, ...], zeros: int, expected: bool) -> None:
    weight = torch.ones(shape)
    weight.reshape(-1, 4)[:, :zeros] = 0
    assert is_semi_structured(layer, weight) == expected


def test_a_network_without_the_pattern_is_rejected() -> None:
    with pytest.raises(
        EngineError, match=r"engine: no 1×1 convolution of 64n inputs and 32n outputs is pruned 2:4; prune"
    ):
        SemiStructuredDetector(make_pruned("3:4"))


@pytest.mark.parametrize("name", ["half", "half-2:4"])
def test_half_precision_is_the_gpus(name: str) -> None:
    with pytest.raises(ConfigError, match=f"engine: {name} runs on CUDA, not on cpu; use device cuda"):
        make_engine(make_pruned(), name, torch.device("cpu"))
    assert choose_precision(name, None, torch.device("cuda")) == "fp16"
