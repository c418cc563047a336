"""Refit a pruned network by least squares, so that the kept channels make up for the removed ones.

    original   x ─► conv W ─► y ─► batch norm ─► activation ─► …
    pruned     x' ─► conv W' ─► y' ─► …          x': the kept channels of x, as output by the layers fitted before

W' and a bias b minimise the mean of ‖W' x' + b − y‖² over images and positions, plus a ridge penalty on the distance of
W' from the kept weights of W. Layers are fitted in the network's order, so that each also corrects the errors of those
before. b is added to the bias or subtracted from the batch norm's running mean. `constants.py` does the same with W'
fixed, for b alone.

Sources: He et al., "Channel Pruning for Accelerating Very Deep Neural Networks" (2017), §3.1 (the least squares, and inputs
of the pruned network, targets of the original); Luo et al., "ThiNet" (2017), §3.2.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from yolo_prune.darknet.layers import get_sources
from yolo_prune.darknet.network import Network
from yolo_prune.errors import PlanError
from yolo_prune.image_size import ImageSize
from yolo_prune.model.detector import Detector, evaluating
from yolo_prune.pruning.channels import ChannelGraph, make_channel_graph
from yolo_prune.pruning.plans.plan import Plan
from yolo_prune.pruning.surgery.least_squares import Moments
from yolo_prune.pruning.surgery.rebuild import rebuild
from yolo_prune.pruning.surgery.replay import Replay

RIDGE = 0.1
"""λ of the ridge penalty, as a share of the inputs' mean variance."""
MIN_POSITIONS, POSITIONS_PER_INPUT = 4096, 4
"""A layer is fitted on at least so many positions, and so many per weight of a filter, if the images have as many."""
MAX_PIXELS = 2**24
"""Limit on the pixels of all images together: more do not repay their time and memory."""


def count_images(wanted: int, img_size: ImageSize) -> int:
    """Return how many images to fit on: `wanted`, or fewer if they have more than `MAX_PIXELS` pixels."""
    return max(1, min(wanted, MAX_PIXELS // img_size.pixels))


@torch.no_grad()
def refit(model: Detector, plan: Plan, batches: Sequence[Tensor], ridge: float = RIDGE, seed: int = 0) -> Detector:
    """Return the slimmer model of `rebuild`, with all convolutions that pruning affects fitted to their old outputs.

    `batches` are images (B, 3, H, W) in 0 … 1 on the model's device. Of grouped convolutions, only the bias is fitted.
    All other layers keep exactly their weights, and `model` is unchanged.

    Raises:
        PlanError: the plan does not fit the network, or there are no images.
    """
    if not sum(map(len, batches)):
        raise PlanError("there are no images to fit weights on", where="fold", right="name a data set, or use leaky")
    graph, slim = make_channel_graph(model.network), rebuild(model, plan).requires_grad_(False)
    reached, generator = find_reached(model.network, graph, plan), torch.Generator().manual_seed(seed)
    with evaluating(model), evaluating(slim):
        original, pruned = Replay(model, batches), Replay(slim, batches)
        for index in graph.conv_layers:
            if index in reached:
                keep = torch.from_numpy(plan.keep[graph.writes[index]])
                _fit_(slim, model, index, keep, (original, pruned), ridge, generator)
    return slim.requires_grad_(True)


def find_reached(network: Network, graph: ChannelGraph, plan: Plan) -> frozenset[int]:
    """Return the layers whose inputs a plan changes, because it drops input channels or changes an earlier layer."""
    reached: set[int] = set()
    for index, layer in enumerate(network.layers):
        if any(source in reached for source in get_sources(layer, index)) or not plan.keep[graph.reads[index]].all():
            reached.add(index)
    return frozenset(reached)


def _fit_(
    slim: Detector,
    model: Detector,
    index: int,
    keep: Tensor,
    replays: tuple[Replay, Replay],
    ridge: float,
    generator: torch.Generator,
) -> None:
    """Fit one convolution of `slim` in place; `keep` (out,) bool are the filters of `model` that it still has."""
    old, new = model.get_conv(index), slim.get_conv(index)
    kernel, width = new.conv, new.conv.weight[0].numel()
    is_grouped = kernel.groups > 1
    weight = kernel.weight.flatten(1).double()
    moments = Moments(0 if is_grouped else width, len(weight), weight.device)
    wanted = max(MIN_POSITIONS, POSITIONS_PER_INPUT * width)
    images = replays[0].images
    for before, after in zip(*(replay.iterate_inputs(index) for replay in replays), strict=True):
        targets = old.conv(before)[:, keep.to(before.device)] - kernel(after)
        places = _pick(targets, -(-wanted * len(targets) // images), generator)
        inputs = after.new_zeros(len(places), 0) if is_grouped else _take_patches(after, kernel, places)
        moments.add(inputs, targets.permute(0, 2, 3, 1).flatten(0, 2)[places])
    slopes, intercept = moments.solve(ridge)
    if not is_grouped:
        kernel.weight.add_(slopes.view_as(kernel.weight).to(kernel.weight))
    if new.bn is not None:
        assert new.bn.running_mean is not None
        new.bn.running_mean.sub_(intercept.to(kernel.weight))
    else:
        assert kernel.bias is not None
        kernel.bias.add_(intercept.to(kernel.weight))


def _pick(outputs: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return up to `count` of the B·H·W positions of outputs (B, C, H, W), drawn at random and sorted."""
    total = outputs[:, 0].numel()
    if count >= total:
        return torch.arange(total, device=outputs.device)
    return torch.randperm(total, generator=generator)[:count].sort().values.to(outputs.device)


def _take_patches(inputs: Tensor, kernel: nn.Conv2d, places: Tensor) -> Tensor:
    """Return (P, C·h·w) patches of inputs (B, C, H, W) at P positions of the output, numbered image by image."""
    (size, _), (stride, _), (padding, _) = kernel.kernel_size, kernel.stride, _get_padding(kernel)
    windows = functional.pad(inputs, (padding,) * 4).unfold(2, size, stride).unfold(3, size, stride)
    height, width = windows.shape[2:4]
    image, row, column = places // (height * width), places // width % height, places % width
    return windows[image, :, row, column].flatten(1)


def _get_padding(kernel: nn.Conv2d) -> tuple[int, ...]:
    assert not isinstance(kernel.padding, str)
    return kernel.padding
