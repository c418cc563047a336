"""Calls that run a network in an engine on one image, to be timed."""

from __future__ import annotations

import torch

from yolo_prune.benchmarking.latency import Call, draw_inputs, make_network_call
from yolo_prune.engines.exported.model import RUNTIMES
from yolo_prune.engines.make import make_engine
from yolo_prune.export.writers import ENGINE_SUFFIXES, describe, write_model
from yolo_prune.model.checkpoint import Checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.scraps import make_temporary_folder


def make_timed_call(model: Detector, engine: str, device: torch.device) -> Call:
    """Return a call that runs a network with its decoding on one image; an engine of exported files gets one.

    Raises:
        ConfigError: the engine does not run on the device, or its package is not installed.
    """
    if engine not in ENGINE_SUFFIXES:
        images = draw_inputs(model.network.img_size, model.network.channels)
        made = make_engine(model, engine, device)
        return make_network_call(made, images.to(device, memory_format=torch.channels_last))
    suffix = ENGINE_SUFFIXES[engine]
    checkpoint = Checkpoint(model.network, model.state_dict(), tuple(map(str, range(model.network.classes))))
    with make_temporary_folder() as folder:
        path = write_model(checkpoint, describe(checkpoint, ""), folder / f"model{suffix}")
        return make_network_call(RUNTIMES[suffix].make_engine(path), draw_inputs(model.network.img_size))
