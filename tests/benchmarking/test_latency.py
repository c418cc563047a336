from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from networks import make_images, make_small_network, randomise_

from yolo_prune.benchmarking.latency import (
    Latency,
    describe_environment,
    make_network_call,
    make_suppression_call,
    measure_latencies,
    timing_threads,
)
from yolo_prune.darknet.layers import Conv
from yolo_prune.engines.make import make_engine
from yolo_prune.evaluation.config import DetectConfig
from yolo_prune.evaluation.detections import Detections, suppress
from yolo_prune.model.checkpoint import load_checkpoint
from yolo_prune.model.detector import Detector

CPU = torch.device("cpu")


def make_model() -> Detector:
    return randomise_(Detector(make_small_network(Conv(4, 3, padding=1), Conv(6, 3, 2, 1))), double=False)


def test_calls_take_turns_in_every_round() -> None:
    order: list[str] = []

    def make_call(name: str) -> Callable[[], None]:
        return lambda: order.append(name)

    latencies = measure_latencies([make_call(name) for name in "abc"], runs=3, warmup=2, device=CPU)
    assert "".join(order) == "abc" * 5
    assert len(latencies) == 3


def test_percentiles_are_of_the_timed_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s = 0.0

    def make_call(durations_ms: list[float]) -> Callable[[], None]:
        left = iter(durations_ms)

        def call() -> None:
            nonlocal clock_s
            clock_s += next(left) / 1e3

        return call

    monkeypatch.setattr("yolo_prune.benchmarking.latency.time", SimpleNamespace(perf_counter=lambda: clock_s))
    calls = [make_call([1000, 5, 1, 3, 2, 4]), make_call([1000, 10, 10, 10, 10, 60])]
    first, second = measure_latencies(calls, runs=5, warmup=1, device=CPU)
    assert (first.p5, first.p50, first.p95) == pytest.approx((1.2, 3, 4.8))  # between the 1st and 2nd, 4th and 5th
    assert (second.p5, second.p50, second.p95) == pytest.approx((10, 10, 50))


def test_nothing_tracks_gradients_while_it_is_timed() -> None:
    tracked: list[bool] = []
    measure_latencies([lambda: tracked.append(torch.is_grad_enabled())], runs=1, warmup=1, device=CPU)
    assert tracked == [False, False]


def test_engines_agree_and_leave_the_model_as_it_was() -> None:
    model = make_model()
    keys = set(model.state_dict())
    images = make_images(model)
    eager, folded = (make_engine(model, name, CPU) for name in ("eager", "folded"))
    assert any("bn" in key for key in eager.state_dict())
    assert not any("bn" in key for key in folded.state_dict())
    with torch.inference_mode():
        for one, other in zip(eager(images), folded(images), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert set(model.state_dict()) == keys


def test_suppression_is_timed_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    engine = make_engine(model, "eager", CPU)
    images, passes = make_images(model), []
    engine.register_forward_hook(lambda module, inputs, outputs: passes.append(inputs))
    config = DetectConfig(confidence=0.01)
    call = make_suppression_call(engine, images, config)
    assert len(passes) == 1
    found = call()
    assert len(passes) == 1
    make_network_call(engine, images)()
    assert len(passes) == 2
    assert isinstance(found, list)
    boxes, scores = engine(images)
    expected = suppress(boxes, scores, config)
    assert [len(image) for image in found if isinstance(image, Detections)] == list(map(len, expected))


def test_the_environment_says_what_a_time_depends_on() -> None:
    environment = describe_environment(CPU, "folded")
    assert environment["device"]
    assert environment["threads"] == torch.get_num_threads()
    assert (environment["device_type"], environment["precision"], environment["engine"]) == ("cpu", "fp32", "folded")


def test_a_real_network_takes_time(trained: Path) -> None:
    model = load_checkpoint(trained).make_model().eval()
    engine = make_engine(model, "folded", CPU)
    (latency,) = measure_latencies([make_network_call(engine, torch.rand(1, 3, 64, 64))], runs=3, warmup=1, device=CPU)
    assert isinstance(latency, Latency)
    assert 0 < latency.p5 <= latency.p50 <= latency.p95


@pytest.mark.parametrize(("wanted", "free", "used"), [(None, 1, 1), (None, 4, 2), (2, 1, 2), (1, 2, 1)])
def test_only_free_cores_are_used_unless_threads_are_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wanted: int | None, free: int, used: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr("yolo_prune.benchmarking.latency.count_free_cores", lambda: free)
    try:
        with timing_threads(wanted):
            assert torch.get_num_threads() == used
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    told = "warning: other processes use the cores: timing with 1 of 2 threads; --threads 2 uses all\n"
    assert capsys.readouterr().err == (told if wanted is None and free == 1 else "")
