"""Training's images/s beside other trainers': python benchmarks/train_throughput.py [--peer-python /peer/bin/python]

Of the step alone (batches in memory) and of the whole epoch (reading, varying, steps; no validation, no saving). Each side is
a process of its own that waits while another is measured; rounds are interleaved. Each runs its trainer's own loop,
fed by a loader that waits for its turn: our train_epoch, ultralytics' DetectionTrainer, pytorchyolo's script; with its own
augmentation, loss, optimizer and moving average, on the same images. Of ultralytics validation, plots and saving are off, and
so are deterministic kernels, which slow it down; it takes an optimizer step for every --nominal-batch images, 64 as it does
by itself, others one for every batch. On a CPU it has no workers. pytorchyolo trains the network of --cfg itself.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from importlib import import_module, metadata
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# yolo_prune is imported within functions: a peer's interpreter has none.

PARTS = ("step", "epoch")
BATCHES_IN_MEMORY = 16
"""Batches over which the steps alone are timed."""
EPOCHS = 100
"""How long every side believes it trains, for its schedules; a round takes two."""
FORWARD_AND_BACKWARD = 3
"""MACs of a step over those of the forward pass: the gradients of inputs and of weights cost as much each."""
NET_OPTIONS = """channels=3 subdivisions=1 momentum=0.9 decay=0.0005 learning_rate=0.001 burn_in=1000 max_batches=500200
policy=steps steps=400000,450000 scales=.1,.1"""
"""What pytorchyolo wants in a cfg's [net]: Darknet's own values."""

Job = argparse.Namespace
"""The command's options, `folder` (data.yaml and the peers' files; theirs to write to) and `precision`."""


class SideError(Exception):
    """A side cannot be measured."""


class Side:
    """A trainer in a process of its own."""

    def __init__(self, kind: str, python: str, job: Job) -> None:
        """Start it and wait until it is about to take its first step.

        Raises:
            SideError: it cannot be imported, or fails.
        """
        quiet = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
        places = {"YOLO_CONFIG_DIR": job.folder, "OMP_NUM_THREADS": str(job.threads)}
        if job.device == "cpu":
            places["CUDA_VISIBLE_DEVICES"] = ""  # pytorchyolo takes a GPU that it sees
        self._images, self._log = job.images, Path(job.folder, f"{kind}.log")
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, str(Path(__file__).resolve()), "--worker", kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=job.folder,
                env=os.environ | quiet | places,
            )
        facts = self._ask(vars(job))
        self.name, self.params, self.macs = str(facts["name"]), int(facts["params"]), int(facts["macs"])

    def measure(self, part: str) -> float:
        """Have it train for a pass and return images/s."""
        done = self._ask({"part": part})
        if done["images"] != self._images:  # pytorchyolo continues without images that it cannot vary
            raise SideError(f"{self.name} took {done['images']} images of {self._images}")
        return float(done["images"] / done["seconds"])

    def close(self) -> None:
        """End the process, which leaves when its stdin ends."""
        self._process.communicate()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order, default=str), file=self._process.stdin, flush=True)
        response = json.loads(self._process.stdout.readline() or "{}")
        if not response or "error" in response:
            self._process.wait()
            last = self._log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise SideError(response.get("error", last))
        return dict(response)


class Gate:
    """A trainer's loader, each pass of which first reports what the one before took, then waits for an order."""

    def __init__(
        self, loader: Any, find_model: Callable[[], nn.Module], name: str, job: Job, responses: TextIO
    ) -> None:
        """Stand before a loader; the model is asked for in the first pass."""
        self.loader, self._find_model, self._name = loader, find_model, name
        self._job, self._responses, self._kept, self._found = job, responses, list[Any](), dict[str, Any]()

    def __getattr__(self, name: str) -> Any:
        """Be the loader in everything else."""
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        if not self._kept:
            torch.set_num_threads(self._job.threads)  # ultralytics has just set a number of its own
            self._kept = list(islice(self.loader, BATCHES_IN_MEMORY))
            self._found = {"name": self._name, **count_cost(self._find_model(), self._job.img_size)}
        if hasattr(self.loader, "reset"):
            self.loader.reset()  # else ultralytics' workers continue while another side is measured
        print(json.dumps(self._found), file=self._responses, flush=True)
        if not (line := sys.stdin.readline()):
            raise SystemExit
        kept = map(copy.copy, islice(cycle(self._kept), len(self)))  # ultralytics changes the dict that it gets
        started, images = time.perf_counter(), 0
        for batch in kept if json.loads(line)["part"] == "step" else self.loader:
            own = batch["img"] if isinstance(batch, dict) else batch[1] if isinstance(batch, tuple) else batch.images
            images += len(own)
            yield batch
        if self._job.device == "cuda":
            torch.cuda.synchronize()
        self._found = {"images": images, "seconds": time.perf_counter() - started}


@torch.no_grad()
def count_cost(model: nn.Module, img_size: int) -> dict[str, int]:
    """Return a network's learnable parameters, and its MACs in training for one image."""
    twin, images = copy.deepcopy(model).train(), 2
    with FlopCounterMode(display=False) as counter:
        twin(torch.zeros(images, 3, img_size, img_size, device=next(twin.parameters()).device))
    params = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"params": params, "macs": counter.get_total_flops() // (2 * images)}


def train_with_yolo_prune(job: Job, responses: TextIO) -> None:
    """Train as training/run.py does, pass by pass."""
    import cv2

    from yolo_prune.darknet.anchors import resize
    from yolo_prune.darknet.cfg import load_cfg
    from yolo_prune.datasets.loader import DetectionDataset, make_loader
    from yolo_prune.datasets.spec import load_spec
    from yolo_prune.model.detector import Detector
    from yolo_prune.training.config import TrainConfig
    from yolo_prune.training.epoch import EpochStats, train_epoch
    from yolo_prune.training.schedule import measure_rates
    from yolo_prune.training.state import make_training_state

    cv2.setNumThreads(job.threads)
    torch.backends.cudnn.benchmark = job.device == "cuda"
    config = TrainConfig(batch_size=job.batch_size, epochs=EPOCHS, precision=job.precision)
    spec = load_spec(Path(job.folder, "data.yaml"))
    data = DetectionDataset(spec.samples("train"), len(spec.names), job.img_size, augment=config.augment)
    model = Detector(resize(load_cfg(Path(job.cfg)), job.img_size)).to(memory_format=torch.channels_last).to(job.device)
    steps = len(data) // job.batch_size
    training = make_training_state(model, config, EPOCHS * steps)
    make = partial(
        make_loader, data, job.batch_size, shuffle=True, workers=job.workers, pin_memory=job.device == "cuda"
    )
    gate = Gate(make(epoch=0), lambda: model, f"yolo_prune {Path(job.cfg).stem}", job, responses)
    for epoch in range(EPOCHS):
        gate.loader = make(epoch=epoch)
        schedule = [measure_rates(config, 0.0, epoch * steps + step, EPOCHS * steps) for step in range(steps)]
        hooks: dict[str, Any] = dict.fromkeys(("before_step", "after_step", "after_look"), lambda stats: None)
        train_epoch(training, gate, config, schedule.__getitem__, EpochStats(), **hooks)


def train_with_ultralytics(job: Job, responses: TextIO) -> None:
    """Have ultralytics' trainer train, pass by pass."""
    module: Any = import_module("ultralytics.models.yolo.detect")
    trainer = module.DetectionTrainer(
        overrides={
            "model": f"{job.net}.yaml",
            "data": f"{job.folder}/data.yaml",
            "project": job.folder,
            "epochs": EPOCHS,
            "batch": job.batch_size,
            "imgsz": job.img_size,
            "workers": job.workers,
            "device": "cpu" if job.device == "cpu" else "0",
            "amp": "bf16" if job.precision == "bf16" else False,
            "cache": job.cache,
            "optimizer": "AdamW",  # which `auto` takes for runs of up to 10,000 steps
            "lr0": 0.002,
            "nbs": job.nominal_batch,
            "warmup_epochs": 0,  # in which an optimizer step is taken more often than later
            "close_mosaic": 0,
            **dict.fromkeys(("deterministic", "pretrained", "val", "plots", "save", "verbose"), False),
        }
    )
    make_loader, name = trainer.get_dataloader, f"ultralytics {metadata.version('ultralytics')} {job.net}"

    def make_gate(*place: Any, mode: str, **more: Any) -> Any:
        loader = make_loader(*place, mode=mode, **more)
        return Gate(loader, lambda: trainer.model, name, job, responses) if mode == "train" else loader

    trainer.get_dataloader = make_gate
    trainer.train()


def train_with_pytorchyolo(job: Job, responses: TextIO) -> None:
    """Have pytorchyolo's script train, pass by pass; it knows no mixed precision, so autocast is put around it."""
    script: Any = import_module("pytorchyolo.train")
    name = f"pytorchyolo {metadata.version('pytorchyolo')} {Path(job.cfg).stem}"
    make_loader, script.load_model = script._create_data_loader, cache(script.load_model)
    find_model = partial(script.load_model, "peer.cfg", None)  # as it is called below, so that the same model returns
    script._create_data_loader = lambda *given: Gate(make_loader(*given), find_model, name, job, responses)
    never = f"--checkpoint_interval {EPOCHS + 1} --evaluation_interval {EPOCHS + 1}"
    sys.argv[1:] = f"-m peer.cfg -d peer.data -e {EPOCHS} --n_cpu {job.workers} {never}".split()
    with torch.autocast(job.device, torch.bfloat16, enabled=job.precision == "bf16"):
        script.run()


PEERS = {"ultralytics": train_with_ultralytics, "pytorchyolo": train_with_pytorchyolo}


def work(kind: str) -> None:
    """Be a side's process: read the job, then orders, from stdin and respond on stdout, a line of JSON each."""
    responses = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a peer prints is no response
    try:
        {"yolo_prune": train_with_yolo_prune, **PEERS}[kind](Job(**json.loads(sys.stdin.readline())), responses)
    except ImportError as error:
        print(json.dumps({"error": f"cannot be imported: {error}"}), file=responses, flush=True)


def lay_out(job: Job) -> None:
    """Put the images into the job's folder as every side reads them, with pytorchyolo's other files."""
    from yolo_prune.commands.data import load_data

    spec, folder, images = load_data(job.data), Path(job.folder), ""
    for part in ("images", "labels"):
        (folder / part / "train").mkdir(parents=True)
    for number, sample in enumerate(islice(cycle(spec.samples("train")), job.images)):
        image = folder / "images" / "train" / f"{number:06d}{sample.image.suffix}"
        image.symlink_to(sample.image.resolve())
        images += f"{image}\n"
        label = sample.label.read_text() if sample.label.exists() else ""
        (folder / "labels" / "train" / f"{number:06d}.txt").write_text(label)
    data = {"path": job.folder, **dict.fromkeys(("train", "val"), "images/train"), "names": spec.names}
    (folder / "data.yaml").write_text(json.dumps(data))  # JSON is YAML
    (folder / "train.txt").write_text(images)
    (folder / "names.txt").write_text("\n".join([*spec.names, ""]))
    (folder / "peer.data").write_text("train=train.txt\nvalid=train.txt\nnames=names.txt\n")
    own = [f"width={job.img_size}", f"height={job.img_size}", f"batch={job.batch_size}"]
    layers = Path(job.cfg).read_text().partition("\n[")[2]
    (folder / "peer.cfg").write_text("\n".join(["[net]", *own, *NET_OPTIONS.split(), f"[{layers}"]))


def measure(sides: list[Side], rounds: int) -> dict[str, list[list[float]]]:
    """Return images/s by part, then round, then side, after a round that does not count."""
    every = [{part: [side.measure(part) for side in sides] for part in PARTS} for _ in range(rounds + 1)]
    return {part: [one[part] for one in every[1:]] for part in PARTS}


def make_rows(sides: list[Side], rates: dict[str, list[list[float]]], peak: float | None) -> list[dict[str, Any]]:
    """Return each side's figures, those measured as (median, least, most) over rounds; ratios are ours to theirs."""
    rows = []
    for place, side in enumerate(sides):
        row: dict[str, Any] = {"name": side.name, "params": side.params, "macs": side.macs}
        for part in PARTS:
            every = np.array(rates[part])
            own, ratios = every[:, place], every[:, 0] / every[:, place]
            figures = {"images_per_s": own}
            if place:
                figures |= {"ratio": ratios, "ratio_per_mac": ratios * sides[0].macs / side.macs}
            if peak is not None:
                figures["peak_share"] = own * 2 * FORWARD_AND_BACKWARD * side.macs / peak
            row |= {f"{part}_{key}": np.percentile(values, (50, 0, 100)).tolist() for key, values in figures.items()}
        rows.append(row)
    return rows


def report(rows: list[dict[str, Any]]) -> None:
    """Print the figures as a table."""
    for row in rows:
        print(f"{row['name']}: {row['params'] / 1e6:.2f} M params, {row['macs'] / 1e6:.0f} M MACs")
        for key, value in row.items():
            if isinstance(value, list):
                middle, low, high = (f"{number:.4g}" for number in value)
                print(f"  {key.replace('_', ' '):<22}{middle:>8}  [{low}, {high}]")


def main() -> None:
    """Measure all sides and print the figures."""
    parser = argparse.ArgumentParser(description="Training's images/s beside other trainers'.")
    parser.add_argument("--peer-python", help="an interpreter that has ultralytics or pytorchyolo")
    parser.add_argument("--cfg", type=Path, default=Path("configs/yolov3-tiny-hand.cfg"))
    parser.add_argument("--net", help="ultralytics' architecture (default: yolov3-tiny or yolov3, by the cfg's name)")
    parser.add_argument("--data", type=Path, help="a data.yaml (default: the synthetic hands)")
    numbers = {"img-size": 160, "batch-size": 16, "nominal-batch": 64, "images": 256, "rounds": 5, "workers": 0}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU (default: an H100's, dense bf16)")
    parser.add_argument("--cache", action="store_true", help="ultralytics too keeps decoded images in memory")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=("yolo_prune", *PEERS), help=argparse.SUPPRESS)
    job = parser.parse_args()
    if job.worker:
        work(job.worker)
        return
    job.images -= job.images % job.batch_size
    if not 1 <= job.rounds <= EPOCHS // 2 - 2 or not job.images:
        parser.error(f"measure at least a batch of images, in 1 to {EPOCHS // 2 - 2} rounds")
    job.cfg, job.precision = job.cfg.resolve(), "bf16" if job.device == "cuda" else "fp32"
    job.net = job.net or ("yolov3-tiny" if "tiny" in job.cfg.stem else "yolov3")
    with tempfile.TemporaryDirectory() as job.folder, ExitStack() as stack:
        lay_out(job)
        sides = [Side("yolo_prune", sys.executable, job)]
        stack.callback(sides[0].close)
        for kind in PEERS if job.peer_python else ():
            try:
                sides.append(Side(kind, job.peer_python, job))
                stack.callback(sides[-1].close)
            except (SideError, OSError) as error:
                print(f"{kind} is left out: {error}", file=sys.stderr)
        rates = measure(sides, job.rounds)
    job.card = torch.cuda.get_device_name() if job.device == "cuda" else "cpu"
    rows = make_rows(sides, rates, 1e12 * job.peak_tflops if job.device == "cuda" else None)
    if job.json:
        print(json.dumps({"settings": vars(job), "torch": torch.__version__, "sides": rows}, default=str))
        return
    print(f"{job.images} images of {job.img_size} px, batches of {job.batch_size}, {job.rounds} rounds")
    print(
        f"{job.card}, {job.precision}, {job.threads} threads, {job.workers} workers; median [least, most] over rounds"
    )
    report(rows)


if __name__ == "__main__":
    main()
