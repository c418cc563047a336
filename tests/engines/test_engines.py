"""Every engine that the CPU can run gives what the network gives, to its precision; what it cannot run is an error."""

from __future__ import annotations

import pytest
import torch
from networks import make_images, make_small_network, randomise_
from tiny import Cli, read_json

from yolo_prune.darknet.layers import Conv
from yolo_prune.engines.make import make_engine
from yolo_prune.engines.precision import choose_precision, computing_in
from yolo_prune.errors import ConfigError
from yolo_prune.model.decode import DecodedDetector
from yolo_prune.model.detector import Detector

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def make_model() -> Detector:
    return randomise_(Detector(make_small_network(Conv(8, 3, padding=1), Conv(16, 3, 2, 1))), double=False).eval()


@pytest.mark.parametrize(
    ("engine", "precision", "tolerance"),
    [
        ("eager", None, 0.0),
        ("eager", "bf16", 0.02),
        ("folded", "fp32", 1e-5),
        ("folded", "bf16", 0.02),
        ("sparse", None, 1e-4),
        ("compile", None, 1e-5),
        ("compile", "bf16", 0.02),
    ],
)
def test_an_engine_gives_what_the_network_gives(engine: str, precision: str | None, tolerance: float) -> None:
    model = make_model()
    images = make_images(model).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        wanted = DecodedDetector(model)(images)
        found = make_engine(model, engine, CPU, precision)(images)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).abs().max()) <= tolerance * float(other.abs().max())


@pytest.mark.parametrize("engine", ["cudagraph", "half", "half-2:4"])
def test_an_engine_of_the_gpu_is_rejected_on_the_cpu(engine: str) -> None:
    with pytest.raises(ConfigError, match=f"engine: {engine} runs on CUDA, not on cpu; use device cuda"):
        make_engine(make_model(), engine, CPU)


@pytest.mark.parametrize(
    ("engine", "wanted", "device", "found"),
    [
        ("folded", None, CPU, "fp32"),
        ("folded", "bf16", CPU, "bf16"),
        ("compile", "fp16", CUDA, "fp16"),
        ("cudagraph", "tf32", CUDA, "tf32"),
        ("half", None, CUDA, "fp16"),
        ("half-2:4", "fp16", CUDA, "fp16"),
        ("folded", "tf32", CPU, "precision: tf32 runs on CUDA, not on cpu"),
        ("folded", "fp16", CPU, "precision: fp16 runs on CUDA, not on cpu"),
        ("half", "bf16", CUDA, "precision: half computes in fp16 alone"),
        ("sparse", "bf16", CPU, "precision: sparse computes in fp32 alone"),
    ],
)
def test_the_precision_is_the_engine_s_or_the_wanted_one(
    engine: str, wanted: str | None, device: torch.device, found: str
) -> None:
    if found.startswith("precision"):
        with pytest.raises(ConfigError, match=found):
            choose_precision(engine, wanted, device)
    else:
        assert choose_precision(engine, wanted, device) == found


@pytest.mark.parametrize(("precision", "value"), [("fp32", "ieee"), ("bf16", "ieee"), ("tf32", "tf32")])
def test_float32_is_rounded_where_that_was_asked_for_alone(precision: str, value: str) -> None:
    before = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]  # torch types lack it
    with computing_in(precision):
        assert torch.backends.cudnn.conv.fp32_precision == value  # type: ignore[attr-defined]
        assert torch.backends.cuda.matmul.fp32_precision == value
    assert torch.backends.cudnn.conv.fp32_precision == before  # type: ignore[attr-defined]


def test_bench_says_the_precision(cli: Cli, trained: object) -> None:
    words = ("bench", trained, "--no-score", "--runs", 1, "--warmup", 0, "--device", "cpu")
    outcome = cli(*words, "--precision", "bf16", "--json")
    assert read_json(outcome)["environment"]["precision"] == "bf16"
    assert cli(*words, "--precision", "tf32").err.endswith(
        "error: --precision: tf32 runs on CUDA, not on cpu; use fp32 or bf16, or device cuda\n"
    )
