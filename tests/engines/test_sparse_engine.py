"""The engine that skips zeros gives what the dense network gives: layer by layer, whole, on any number of threads."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import copy_state, is_same_state, make_small_network, measure_largest_gap, networks, randomise_, run
from torch import Tensor
from torch.nn import functional

from yolo_prune.darknet.anchors import resize
from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.layers import Conv, MaxPool, Route, Shortcut, Upsample
from yolo_prune.darknet.network import Network
from yolo_prune.engines.make import make_engine
from yolo_prune.engines.sparse import tiling
from yolo_prune.engines.sparse.build import INSTRUCTIONS, load_kernel
from yolo_prune.engines.sparse.engine import MOST_PROGRAMS, SparseDetector
from yolo_prune.engines.sparse.packing import can_pack, pack_weights
from yolo_prune.engines.sparse.planes import Planes
from yolo_prune.engines.sparse.steps import ACTIVATIONS, Block, Step, make_conv_step, make_pool_step, make_split_step
from yolo_prune.errors import ConfigError, EngineError
from yolo_prune.model.detector import ConvLayer, Detector, MaxPoolLayer, activate
from yolo_prune.model.fold import fold_batchnorm

TOLERANCE = 1e-4
CPU_FLAGS = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
RUNNABLE = [name for name in INSTRUCTIONS if name != "avx2" or "avx2" in CPU_FLAGS]


@pytest.fixture(scope="module", autouse=True)
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compile for every instruction set that this machine runs, in a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        load_kernel.cache_clear()
        for name in RUNNABLE:
            load_kernel(name)
        yield
    load_kernel.cache_clear()


@dataclass(frozen=True)
class Case:
    """A convolution and images for it."""

    channels: int
    filters: int
    size: int
    stride: int
    height: int
    width: int
    density: float
    batch: int
    activation: str
    is_added: bool
    seed: int


CASES = st.builds(
    Case, channels=st.integers(1, 40), filters=st.integers(1, 40), size=st.sampled_from((1, 3)),
    stride=st.sampled_from((1, 2)), height=st.integers(1, 17), width=st.integers(1, 17), density=st.floats(0, 1),
    batch=st.integers(1, 3), activation=st.sampled_from(ACTIVATIONS), is_added=st.booleans(), seed=st.integers(0, 2**31),
)  # fmt: skip


def fill_block(values: Tensor) -> Block:
    planes = Planes(*values.shape[1:])
    block = Block(planes.make_buffer(len(values)), planes, len(values))
    block.pixels.copy_(values)
    return block


def convolve(
    kernel: ctypes.CDLL, case: Case, weight: Tensor, bias: Tensor, images: Tensor, added: Tensor | None, threads: int
) -> Block:
    """Run one convolution by the kernel, alone."""
    first, steps = fill_block(images), []
    source = first
    if case.stride == 2:
        planes = first.planes.halve(case.size)
        halved = Block(planes.make_buffer(case.batch), planes, case.batch)
        halved.pixels.fill_(torch.nan)  # whatever was there before must not matter
        steps.append(make_split_step(first, halved))
        source = halved
    target = fill_block(torch.full((case.batch, *find_output(case)), torch.nan))
    limits = tiling.Limits(kernel.count_lanes(), kernel.count_vectors(), kernel.count_rows())
    other = None if added is None else fill_block(added)
    step, _kept = make_conv_step(
        limits, pack_weights(weight, case.stride), bias, case.activation, source, target, other
    )
    array = (Step * (len(steps) + 1))(*steps, step)
    assert kernel.run_steps(array, len(array), threads) == 0
    return target


def find_output(case: Case) -> tuple[int, int, int]:
    return case.filters, -(-case.height // case.stride), -(-case.width // case.stride)


def draw_tensors(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(case.seed)
    shape = (case.filters, case.channels, case.size, case.size)
    weight = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < case.density)
    bias = torch.randn(case.filters, generator=generator)
    images = torch.randn((case.batch, case.channels, case.height, case.width), generator=generator)
    added = torch.randn((case.batch, *find_output(case)), generator=generator) if case.is_added else None
    return weight, bias, images, added


@pytest.mark.parametrize("instructions", RUNNABLE)
@given(CASES, st.integers(1, 3), st.sampled_from((256, 2048, 32768)))
@settings(max_examples=120, deadline=None)
def test_a_sparse_convolution_equals_the_masked_dense_one(
    instructions: str, case: Case, threads: int, cache_bytes: int
) -> None:
    weight, bias, images, added = draw_tensors(case)
    expected = functional.conv2d(images.double(), weight.double(), bias.double(), case.stride, case.size // 2)
    expected = activate(expected, case.activation)
    if added is not None:
        expected = expected + added
    with pytest.MonkeyPatch.context() as patch:  # small caches make many tiles and blocks of small layers
        patch.setattr(tiling, "FIRST_LEVEL_BYTES", cache_bytes)
        patch.setattr(tiling, "SECOND_LEVEL_BYTES", 32 * cache_bytes)
        patch.setattr(tiling, "LEAST_NONZEROS", 1)
        target = convolve(load_kernel(instructions), case, weight, bias, images, added, threads)
    gap = (target.pixels - expected).abs().max() / expected.abs().max().clamp(min=1)
    assert gap < TOLERANCE
    whole = target.planes.make_mask()
    padding = target.buffer[target.planes.front :][: len(whole)][torch.from_numpy(whole == 0)]
    assert not padding.any(), "the next convolution reads zeros there"


@pytest.mark.parametrize("instructions", RUNNABLE)
@given(st.data(), st.integers(1, 6), st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_max_pooling_is_the_dense_one_s_to_the_bit(
    instructions: str, data: st.DataObject, size: int, stride: int, height: int, width: int, seed: int
) -> None:
    least = max(0, size - min(height, width))
    padding = data.draw(st.integers(min(least, 2 * (size - 1)), 2 * (size - 1)))
    if min(height, width) + padding < size:
        return
    layer = MaxPool(size, stride, padding)
    images = torch.randn((2, 3, height, width), generator=torch.Generator().manual_seed(seed))
    expected = MaxPoolLayer(layer)(images)
    source, target = fill_block(images), fill_block(torch.full_like(expected, torch.nan))
    step = make_pool_step(source, target, layer)
    assert load_kernel(instructions).run_steps((Step * 1)(step), 1, 2) == 0
    assert torch.equal(target.pixels, expected)
    whole = target.planes.make_mask()
    assert not target.buffer[target.planes.front :][: len(whole)][torch.from_numpy(whole == 0)].any()


@given(CASES.filter(lambda case: case.channels * case.filters > 100), st.integers(2, 3))
@settings(max_examples=30, deadline=None)
def test_threads_leave_the_bits_alone(case: Case, threads: int) -> None:
    tensors = draw_tensors(case)
    one, many = (convolve(load_kernel("native"), case, *tensors, count).pixels for count in (1, threads))
    assert torch.equal(one, many)


@torch.no_grad()
def prune_by_magnitude_(model: Detector, sparsity: float) -> Detector:
    """Set the smallest weights of every convolution to zero in place."""
    for module in model.layers:
        if isinstance(module, ConvLayer):
            weight = module.conv.weight
            limit = weight.abs().flatten().quantile(sparsity)
            weight.mul_(weight.abs() > limit)
    return model


@given(networks(), st.integers(0, 1000), st.floats(0, 1), st.sampled_from((0.0, 0.5, 1.0)), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_whole_networks_give_the_masked_dense_ones_outputs(
    network: Network, seed: int, sparsity: float, most_density: float, batch: int
) -> None:
    model = prune_by_magnitude_(randomise_(Detector(network), seed, double=False), sparsity)
    engine = SparseDetector(model, most_density)
    generator = torch.Generator().manual_seed(seed)
    for side in (16, 16, 32):  # a program that is used again, and one for another size
        images = torch.rand(batch, 3, side, side, generator=generator).to(memory_format=torch.channels_last)
        expected = run(model.double(), images.double())
        scale = max(1.0, *(float(head.abs().max()) for head in expected))
        assert measure_largest_gap(run(engine, images), expected) < TOLERANCE * scale


@pytest.fixture(scope="module")
def tiny() -> Detector:
    network = resize(make_network("yolov3-tiny", classes=1, width=0.5), 96)
    return prune_by_magnitude_(randomise_(Detector(network), double=False), 0.9)


def test_a_pruned_yolov3_tiny_gives_the_same_heads(tiny: Detector) -> None:
    engine = SparseDetector(tiny)
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    expected = run(fold_batchnorm(tiny).double(), images.double())
    assert len(engine.sparse_layers) == len(tiny.network.convs)
    assert measure_largest_gap(run(engine, images), expected) < TOLERANCE * max(float(h.abs().max()) for h in expected)


def test_runs_and_threads_give_the_same_bits(tiny: Detector) -> None:
    engine = SparseDetector(tiny)
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    try:
        outputs = []
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            outputs.append(run(engine, images))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in outputs[1:] for a, b in zip(outputs[0], other, strict=True))
    assert outputs[0][0].data_ptr() != outputs[1][0].data_ptr(), "an output must not change with the next call"


def test_callers_at_the_same_time_get_the_same_bits(tiny: Detector) -> None:
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    engines = [SparseDetector(tiny) for _ in range(4)]
    expected = run(engines[0], images)

    def agrees(engine: SparseDetector) -> bool:
        return all(torch.equal(a, b) for _ in range(20) for a, b in zip(run(engine, images), expected, strict=True))

    with ThreadPoolExecutor(len(engines)) as pool:
        assert all(pool.map(agrees, engines))


def test_a_forked_process_has_threads_of_its_own() -> None:
    case = Case(8, 40, 3, 1, 17, 17, 0.3, 2, "leaky", False, 0)
    tensors, kernel = draw_tensors(case), load_kernel("native")
    expected = convolve(kernel, case, *tensors, 2).pixels.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads, which is what this is about
        child = os.fork()
    if not child:
        code = 1
        try:
            code = int(not torch.equal(convolve(kernel, case, *tensors, 2).pixels, expected))
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def test_dense_layers_stay_dense_and_the_model_stays_itself() -> None:
    network = make_small_network(Conv(64, 3, padding=1), Conv(96, 3, padding=1), Conv(96, 3, padding=1))
    model = randomise_(Detector(network))
    with torch.no_grad():
        convolution = model.get_conv(2)
        convolution.conv.weight[:, 20:] = 0
    state = copy_state(model)
    engine = SparseDetector(model)
    assert engine.sparse_layers == (0, 2, 3)  # 1 has no zeros; the first and the head have too little to do
    images = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    assert measure_largest_gap(run(engine, images), run(model, images)) < TOLERANCE
    assert is_same_state(model, state)


def test_layers_between_convolutions_keep_the_padding_clean() -> None:
    layers = (
        Conv(8, 3, padding=1), Conv(8, 3, padding=1), Shortcut(0), Conv(8, 3, 2, 1, activation="mish"), Upsample(),
        Route((4, 2)), MaxPool(2, 1, 1), Conv(8, 3, padding=1), Route((7, 7), 2, 1), Shortcut(4, "leaky"),
        Conv(8, 3, padding=1),
    )  # fmt: skip
    model = randomise_(Detector(make_small_network(*layers)), double=False)
    engine = SparseDetector(model)
    for seed in range(3):
        images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        assert measure_largest_gap(run(engine, images), run(model, images)) < TOLERANCE


def test_what_the_kernel_does_not_know_runs_dense() -> None:
    assert can_pack(Conv(8, 3, 2, 1))
    for layer in (Conv(8, 5, 1, 2), Conv(8, 3, 1, 0), Conv(8, 3, 1, 1, groups=2), Conv(8, 3, 3, 1), Conv(8, 1, 1, 1)):
        assert not can_pack(layer)


def test_only_so_many_sizes_are_kept(tiny: Detector) -> None:
    engine = SparseDetector(tiny)
    for blocks in range(1, MOST_PROGRAMS + 3):
        run(engine, torch.zeros(1, 3, 32 * blocks, 32))
    assert len(engine._programs) == MOST_PROGRAMS


def test_images_of_other_channels_are_named(tiny: Detector) -> None:
    with pytest.raises(EngineError, match=r"images of 1 channels; use images of 3 channels"):
        run(SparseDetector(tiny), torch.zeros(1, 1, 96, 96))


def test_the_engine_is_the_cpus(tiny: Detector) -> None:
    with pytest.raises(ConfigError, match=r"engine: sparse runs on the CPU, not on cuda; use device cpu"):
        make_engine(tiny, "sparse", torch.device("cuda"))


def test_bench_makes_the_engine(tiny: Detector) -> None:
    images = torch.rand(1, 3, 96, 96)
    engines = [make_engine(tiny, name, torch.device("cpu")) for name in ("folded", "sparse")]
    assert isinstance(engines[1].detector, SparseDetector)
    with torch.inference_mode():
        for one, other in zip(engines[0](images), engines[1](images), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_places_name_every_weight_once() -> None:
    weight = torch.arange(1.0, 2 * 6 * 9 + 1).view(2, 6, 3, 3)
    for rows, blocks in ((1, 1), (2, 3), (16, 6)):
        placed = pack_weights(weight, 1).place(Planes(6, 5, 5), rows, blocks)
        assert sorted(placed.weights["value"]) == list(range(1, 109))
        assert placed.starts[-1] == 108
        assert (np.diff(placed.starts) >= 0).all()
        assert placed.divide(7)[-1] == placed.groups


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class TestCompiler:
    """What is said where the kernel cannot be made: one line that tells what would be right."""

    @pytest.fixture(autouse=True)
    def fresh(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return tmp_path

    def fake(self, folder: Path, body: str) -> str:
        path = folder / "fake-c++"
        path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo fake 1.0 && exit 0\n{body}\n')
        path.chmod(0o755)
        return str(path)

    def fail(self) -> str:
        with pytest.raises(EngineError) as caught:
            load_kernel.__wrapped__("native")
        line = str(caught.value)
        assert "\n" not in line
        return line

    def test_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        assert "no C++ compiler (no-such-compiler)" in self.fail()
        monkeypatch.delenv("CXX")
        monkeypatch.setenv("PATH", "")
        assert "(c++, g++, clang++)" in self.fail()
        assert "install g++ or clang++, name one in CXX, or use another engine" in self.fail()

    def test_one_that_fails(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("CXX", self.fake(tmp_path, "echo 'kernel.cpp:1: error: no vectors here' >&2; exit 1"))
        assert "cannot compile the sparse kernel (kernel.cpp:1: error: no vectors here)" in self.fail()
        assert not list((tmp_path / "cache" / "yolo_prune").iterdir())

    def test_one_that_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "false")
        assert "does not tell its version" in self.fail()

    def test_one_that_writes_nonsense(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("CXX", self.fake(tmp_path, 'while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"'))
        assert "cannot be loaded" in self.fail()

    def copy_ready(self, folder: Path) -> str:
        """Return a compiler that copies a kernel that is compiled already."""
        return self.fake(folder, f'while [ "$1" != -o ]; do shift; done; cp {load_kernel("native")._name} "$2"')

    def test_no_place_for_the_result(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("yolo_prune.console._told", set())
        monkeypatch.setenv("CXX", self.copy_ready(tmp_path))
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        places = [load_kernel.__wrapped__("native")._name for _ in range(2)]
        assert all("/.yolo_prune." in place for place in places)
        told = " ".join(capsys.readouterr().err.split())
        assert told.count("the sparse kernel is compiled for this process alone") == 1

    def test_a_damaged_or_foreign_result_is_made_anew(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("CXX", self.copy_ready(tmp_path))
        made = Path(load_kernel.__wrapped__("native")._name)
        assert made.stat().st_mode & 0o777 == 0o600
        whole = made.read_bytes()
        for spoil in (lambda: made.write_bytes(whole[:5000]), lambda: made.write_bytes(b""), lambda: made.chmod(0o666)):
            made.unlink()  # a mapped file must not be cut short
            made.write_bytes(whole)
            made.chmod(0o600)
            spoil()
            assert load_kernel.__wrapped__("native")._name == str(made)
            assert made.read_bytes() == whole
            assert made.stat().st_mode & 0o777 == 0o600

    def test_a_folder_that_others_may_write_is_closed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("CXX", self.copy_ready(tmp_path))
        folder = tmp_path / "cache" / "yolo_prune"
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        assert Path(load_kernel.__wrapped__("native")._name).parent == folder
        assert folder.stat().st_mode & 0o777 == 0o755

    def test_it_ends_with_the_process_that_wanted_it(self, tmp_path: Path) -> None:
        pid_file = tmp_path / "pid"
        script = (
            f'[ "$1" != --version ] || exit 0; echo $$ > {pid_file}.part; mv {pid_file}.part {pid_file}; exec sleep 300'
        )
        code = "from yolo_prune.engines.sparse.build import load_kernel; load_kernel()"
        environment = {**os.environ, "CXX": self.fake(tmp_path, script), "TMPDIR": str(tmp_path)}
        with subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
            wait_until(pid_file.exists)
            process.kill()
        wait_until(lambda: not is_running(int(pid_file.read_text())))

    def test_a_compiler_may_be_several_words(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("CXX", f"env {self.copy_ready(tmp_path)}")
        assert load_kernel.__wrapped__("native")._name.startswith(str(tmp_path / "cache"))

    def test_a_result_is_used_again(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        ready = load_kernel("native")._name
        monkeypatch.setenv("CXX", self.fake(tmp_path, f'while [ "$1" != -o ]; do shift; done; cp {ready} "$2"'))
        load_kernel.__wrapped__("native")
        (made,) = (tmp_path / "cache" / "yolo_prune").iterdir()
        monkeypatch.setenv("CXX", self.fake(tmp_path, "exit 1"))
        assert load_kernel.__wrapped__("native")._name == str(made)
