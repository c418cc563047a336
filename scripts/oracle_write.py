"""Write networks as Darknet files, with the raw outputs that they give here: python scripts/oracle_write.py FOLDER

One folder per network: net.cfg, net.weights, images.npy (B, 3, H, W) float32 in 0 … 1, for every convolution N before a
[yolo] its outputs conv_N.npy (B, C, H', W'), computed in float64, and for what OpenCV cannot read the reason in
unreadable.txt. scripts/oracle_compare.py reads them with OpenCV 4, where neither PyTorch nor yolo_prune is installed.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from yolo_prune.darknet.architectures import ARCHITECTURES, make_network
from yolo_prune.darknet.cfg import save_cfg
from yolo_prune.darknet.layers import (
    ACTIVATIONS,
    AvgPool,
    Conv,
    Dropout,
    Gate,
    Layer,
    MaxPool,
    Reorg,
    Route,
    Shortcut,
    Upsample,
    Yolo,
)
from yolo_prune.darknet.network import Network
from yolo_prune.model.decode import normalise
from yolo_prune.model.detector import BN_EPS, ConvLayer, Detector
from yolo_prune.model.fold import fold_batchnorm
from yolo_prune.model.weights import save_weights
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.plans.plan import Plan
from yolo_prune.pruning.surgery.constants import carry_constants
from yolo_prune.pruning.surgery.rebuild import rebuild
from yolo_prune.pruning.surgery.recalibrate import recalibrate_

OPENCV_BN_EPS = 1e-6
"""What OpenCV adds to a variance. Here, as in AlexeyAB's Darknet, that is 1e-5, and no Darknet file says which: the two ε
alone move outputs of these networks by as much as 2. So our side is computed with OpenCV's, except for networks whose
batch norm is folded into the convolutions before they are written: those leave the reader no ε to choose.
Source: setBatchNorm in OpenCV's darknet_io.cpp, fuse_conv_batchnorm in Darknet's network.c.
"""

WIDTH = 0.25
CLASSES = 3
KEEP_SHARES = (0.2, 0.5, 0.9)
SMALL_KEEP_SHARES = (0.5,)
SMALL_SIDES = 26, 21  # even and odd: the last window lies within the image or reaches over its edge
BATCH = 2

POOLS = ((2, 1, 1), (2, 1, 2), (2, 2, 0), (2, 2, 1), (3, 1, 2), (3, 1, 3), (3, 2, 2), (4, 2, 1), (5, 1, 4))
"""Sizes, strides and paddings of the poolings."""

SLICES_OF_TWO, GREY, NEW_COORDS = "slices-of-two", "grey", "new-coords"
OPENCV_ACTIVATIONS = ("linear", "leaky", "relu", "mish", "swish", "logistic", "tanh")
"""Source: ReadDarknetFromCfgStream in OpenCV's darknet_io.cpp."""


def main() -> None:
    """Write every network, whole and pruned, to a folder of its own."""
    parser = argparse.ArgumentParser(description="Write networks as Darknet files, with the outputs they give here.")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    print(
        f"computed here with OpenCV's batch-norm ε, {OPENCV_BN_EPS:g} for our {BN_EPS:g}, but for the folded networks"
    )
    torch.set_num_threads(1)  # on networks this small, threads wait for each other longer than they compute
    random = np.random.default_rng(0)
    for name, network, shares in list_networks():
        images = make_images(network)
        model = make_model(network, OPENCV_BN_EPS)
        write_case(folder / name, model, images)
        for share in shares:
            write_case(folder / f"{name}-keep-{share}", prune(model, share, random), images)
        pruned = prune(make_model(network, BN_EPS), shares[0], random)
        write_case(folder / f"{name}-keep-{shares[0]}-folded", pruned, images, fold=True)
    for name in set(ACTIVATIONS) - set(OPENCV_ACTIVATIONS):
        for case in folder.glob(f"activation-{name}*"):
            (case / "unreadable.txt").write_text(f"OpenCV does not know {name}")
    for case in folder.glob(f"{SLICES_OF_TWO}*"):
        (case / "unreadable.txt").write_text("OpenCV loses count of its layers where a route slices several sources")


def list_networks() -> Iterator[tuple[str, Network, tuple[float, ...]]]:
    """Yield every network with its name and the shares of its channels to keep."""
    for arch in ARCHITECTURES:
        yield arch, replace(make_network(arch, CLASSES, WIDTH, img_size=128), width=160), KEEP_SHARES
    for name, layers in list_blocks():
        head = Yolo((0, 1), ((4.0, 4.0), (8.0, 6.0)), CLASSES, new_coords=name == NEW_COORDS)
        activation = "logistic" if head.new_coords else "linear"
        last = Conv(head.channels, 1, batch_normalize=False, activation=activation)
        width, height = SMALL_SIDES
        yield name, Network(width, height, 1 if name == GREY else 3, (*layers, last, head)), SMALL_KEEP_SHARES


def list_blocks() -> Iterator[tuple[str, tuple[Layer, ...]]]:
    """Yield what the architectures do not hold, each with its name: layers to put a head on."""
    conv = Conv(8, 3, padding=1)
    half = replace(conv, filters=4)
    for name in ACTIVATIONS:
        unnormalised = replace(conv, batch_normalize=False, activation=name)
        yield f"activation-{name}", (conv, replace(conv, activation=name), unnormalised, Shortcut(0, name))
    for size, stride, padding in POOLS:
        yield f"maxpool-{size}-{stride}-{padding}", (conv, MaxPool(size, stride, padding), conv)
    yield "paddings", (Conv(8, 3), Conv(8, 5, 2, 1), Conv(8, 1, padding=1), Conv(8, 2, 2, 1), Conv(8, 2, padding=0))
    yield "grouped", (conv, replace(conv, groups=2), replace(conv, filters=12, stride=2, groups=4))
    yield "depthwise", (conv, replace(conv, groups=8), replace(conv, filters=16, stride=2, groups=8), Conv(8, 1))
    yield "upsample", (conv, replace(conv, stride=2), Upsample(2), Route((2,)), Upsample(3), conv)
    yield "route", (conv, half, Conv(6, 1), Route((2, 0, 1)), half, Route((1,)), Shortcut(4), Route((6, 2)))
    yield "slice", (conv, Route((0,), 2, 1), half, half, Route((3, 2)), Conv(8, 1), Route((0, 5)))
    yield "slice-in-four", (conv, conv, Route((0,), 4, 2), conv)
    yield SLICES_OF_TWO, (conv, conv, Route((0, 1), 2, 1), conv)
    yield "shortcut-of-more", (conv, half, Shortcut(0), conv)
    yield "shortcut-of-less", (half, conv, Shortcut(0), conv)
    even = (replace(conv, stride=2), Upsample(2))
    yield "reorg", (*even, Reorg(2, is_mixed=True), Conv(8, 1))  # OpenCV does not know [reorg3d]
    yield "dropout", (conv, Dropout((("probability", ".2"),)), conv)
    plain = Conv(4, 1, batch_normalize=False, activation="swish")
    squeeze = (AvgPool(), plain, replace(plain, filters=8, activation="logistic"))
    yield "squeeze", (conv, *squeeze, Gate(0, "channels"), conv)
    yield "attention", (conv, replace(conv, activation="logistic"), Gate(0, "values"), conv)
    yield GREY, (conv, conv)
    yield NEW_COORDS, (conv, conv)


@torch.no_grad()
def make_model(network: Network, eps: float) -> Detector:
    """Return a detector of random numbers whose batch norms have this ε."""
    generator = torch.Generator().manual_seed(0)
    model = Detector(network).eval()
    for module in model.layers:
        if not isinstance(module, ConvLayer):
            continue
        module.conv.weight.normal_(0, module.conv.weight[0].numel() ** -0.5, generator=generator)
        if module.conv.bias is not None:
            module.conv.bias.normal_(0, 0.5, generator=generator)
        if module.bn is not None:
            module.bn.eps = eps
            module.bn.weight.uniform_(0.3, 1.2, generator=generator)
            module.bn.bias.normal_(0, 1, generator=generator)
    return model


def make_images(network: Network) -> Tensor:
    """Return random images (B, 3, H, W) uint8."""
    generator = torch.Generator().manual_seed(0)
    shape = BATCH, network.channels, network.height, network.width
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def prune(model: Detector, share: float, random: np.random.Generator) -> Detector:
    """Return a slimmer detector that keeps about a share of the channels, drawn at random, and what a plan must keep."""
    graph = make_channel_graph(model.network)
    keep = graph.frozen | (random.random(graph.size) < share)
    for layer in graph.conv_layers:
        if not keep[graph.writes[layer]].any():
            keep[random.choice(graph.writes[layer])] = True
    plan = Plan(keep)
    return rebuild(model, plan, carry_constants(model, plan))


@torch.no_grad()
def write_case(folder: Path, model: Detector, images: Tensor, fold: bool = False) -> None:
    """Write a detector's files, its batch norm folded or not, and its outputs; its statistics become those of the images.

    With any others a deep network of random numbers gives every image the same outputs, and no error in its first layers shows.
    """
    recalibrate_(model, [normalise(images)], torch.device("cpu"))
    written = fold_batchnorm(model) if fold else model
    save_cfg(written.network, folder / "net.cfg")
    save_weights(written, folder / "net.weights")
    inputs = normalise(images)
    np.save(folder / "images.npy", inputs.numpy())
    heads = copy.deepcopy(model).double()(inputs.double())
    for (index, _), outputs in zip(model.network.heads, heads, strict=True):
        np.save(folder / f"conv_{index - 1}.npy", outputs.numpy())


if __name__ == "__main__":
    main()
