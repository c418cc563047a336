"""Distillation losses: how much a network's outputs and feature maps differ from its teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from yolo_prune.darknet.layers import Yolo
from yolo_prune.model.decode import MAX_LOG_SCALE, split_head
from yolo_prune.model.detector import Heads


def measure_distillation(heads: Heads, teacher: Heads, yolos: Sequence[Yolo]) -> Tensor:
    """Return the summed difference between two networks' raw head maps (B, A·(5+C), H, W), a scalar; 0 where they agree.

    Objectness is compared everywhere. Boxes and classes are weighted by the teacher's objectness, because its outputs
    for the background are noise. The teacher gets no gradient.
    Source: Mehta and Ozturk, "Object detection at 200 Frames Per Second" (2018), §3.2.
    """
    total = heads[0].new_zeros((), dtype=torch.promote_types(heads[0].dtype, torch.float32))
    for own_raw, teacher_raw, yolo in zip(heads, teacher, yolos, strict=True):
        own, other = (split_head(raw, yolo).to(total.dtype) for raw in (own_raw, teacher_raw.detach()))
        teacher_objectness = other[..., 4].sigmoid()
        boxes = (own[..., :2].sigmoid() - other[..., :2].sigmoid()).square().sum(-1)
        boxes = boxes + (_cut(own[..., 2:4]) - _cut(other[..., 2:4])).square().sum(-1)
        classes = _measure_divergence(own[..., 5:], other[..., 5:]).sum(-1)
        objectness = _measure_divergence(own[..., 4], other[..., 4])
        total = total + (objectness + teacher_objectness * (boxes + classes)).sum()
    return total


def measure_attention_gap(maps: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the squared distance between two networks' attention maps, summed over images and pairs of maps, a scalar.

    An attention map is the mean square of a feature map (B, C, H, W) over its channels, normalised per image. The maps
    of a pair must agree in B, H and W but not in C, so a pruned network can be compared with a wider one.
    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention" (2017), §3.1.
    """
    gaps = [
        (_measure_attention(one) - _measure_attention(other.detach())).square().sum()
        for one, other in zip(maps, teacher, strict=True)
    ]
    return torch.stack(gaps).sum()


def _measure_attention(features: Tensor) -> Tensor:
    energy = features.to(torch.promote_types(features.dtype, torch.float32)).square().mean(1).flatten(1)
    return functional.normalize(energy, dim=1)


def _measure_divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return the Kullback–Leibler divergence, element by element, of Bernoulli distributions given as logits."""
    target = teacher.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(teacher, target, reduction="none")
    return functional.binary_cross_entropy_with_logits(logits, target, reduction="none") - entropy


def _cut(log_scale: Tensor) -> Tensor:
    return log_scale.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)
