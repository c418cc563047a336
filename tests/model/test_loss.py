from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import make_images
from torch import Tensor
from torchvision.ops import box_convert, complete_box_iou_loss

from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.layers import Conv, Yolo
from yolo_prune.darknet.network import Network
from yolo_prune.model.assignment import assign
from yolo_prune.model.config import LossConfig
from yolo_prune.model.detector import Detector, Heads
from yolo_prune.model.loss import DetectionLoss, Losses, measure_ciou

YOLOS = (
    Yolo((2,), ((8.0, 8.0), (16.0, 16.0), (64.0, 64.0)), 3),
    Yolo((0, 1), ((8.0, 8.0), (16.0, 16.0), (64.0, 64.0)), 3),
)
NETWORK = make_network("yolov3-tiny", classes=3, width=0.02, img_size=64)
NO_TARGETS = torch.zeros(0, 6, dtype=torch.float64)


def make_heads(network: Network = NETWORK, batch: int = 2, seed: int = 0) -> Heads:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, *network.shapes[index]) for index, _ in network.heads]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def make_targets(count: int, batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(batch, (count, 1), generator=generator)
    labels = torch.randint(3, (count, 1), generator=generator)
    boxes = torch.rand(count, 4, generator=generator, dtype=torch.float64) * 0.5 + 0.2
    return torch.cat((image, labels, boxes), 1)


def measure(heads: Heads, targets: Tensor, config: LossConfig | None = None, network: Network = NETWORK) -> Losses:
    losses: Losses = DetectionLoss(network, config).measure(heads, targets, network.height, network.width)
    return losses


def test_anchors_are_assigned_as_by_hand() -> None:
    # 12×10 px at (40, 20) of a 64×96 image: within 4 of the first two anchors, off by more than 4 of the third
    targets = torch.tensor([[1, 2, 40 / 96, 20 / 64, 12 / 96, 10 / 64]])
    coarse, fine = assign(targets, YOLOS, [(2, 3), (4, 6)], 64, 96, anchor_ratio=4.0)
    assert len(coarse.image) == 0
    assert fine.image.tolist() == [1, 1]
    assert fine.anchor.tolist() == [0, 1]
    assert fine.row.tolist() == [1, 1]
    assert fine.column.tolist() == [2, 2]
    assert fine.target_class.tolist() == [2, 2]
    torch.testing.assert_close(fine.boxes_cxcywh, torch.tensor([[40.0, 20, 12, 10]] * 2))


def test_the_best_anchor_is_assigned_whatever_its_ratio() -> None:
    sizes = [(60, 2), (1, 1), (64, 64)]
    targets = torch.tensor([[0, 0, 0.5, 0.5, w / 64, h / 64] for w, h in sizes])
    coarse, fine = assign(targets, YOLOS, [(2, 2), (4, 4)], 64, 64, anchor_ratio=1.5)
    # IoU of shapes: 60×2 has 16/168 with 8², 32/344 with 16², 120/4096 with 64²; 1×1 has 1/64 with 8²
    assert fine.boxes_cxcywh[:, 2:].tolist() == [[60, 2], [1, 1]]
    assert fine.anchor.tolist() == [0, 0]
    assert coarse.boxes_cxcywh[:, 2:].tolist() == [[64, 64]]


@pytest.mark.parametrize(("centre", "cell"), [(0.0, 0), (0.2499, 0), (0.25, 1), (0.999, 3), (1.0, 3)])
def test_the_centre_s_cell_is_assigned(centre: float, cell: int) -> None:
    targets = torch.tensor([[0, 0, centre, 0.6, 8 / 64, 8 / 64]], dtype=torch.float64)
    _, fine = assign(targets, YOLOS, [(2, 2), (4, 4)], 64, 64, anchor_ratio=1.5)
    assert (fine.row.tolist(), fine.column.tolist()) == ([2], [cell])


def test_a_tighter_ratio_makes_fewer_positives() -> None:
    targets, grids = make_targets(20), [(2, 2), (4, 4)]
    counts = [
        sum(len(part.image) for part in assign(targets, YOLOS, grids, 64, 64, ratio)) for ratio in (1.0, 2.0, 4.0, 9.0)
    ]
    assert counts[0] == 20
    assert counts == sorted(counts)
    assert counts[-1] > 20


def make_boxes(seed: int, count: int = 50) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 4, generator=generator, dtype=torch.float64) * 40 + 1


def test_ciou_equals_torchvision_s() -> None:
    boxes, targets = make_boxes(0).requires_grad_(), make_boxes(1)
    other = boxes.detach().clone().requires_grad_()
    ciou, _ = measure_ciou(boxes, targets)
    expected = complete_box_iou_loss(box_convert(other, "cxcywh", "xyxy"), box_convert(targets, "cxcywh", "xyxy"))
    torch.testing.assert_close(1 - ciou, expected, rtol=1e-6, atol=1e-6)
    torch.autograd.backward((1 - ciou).sum())
    torch.autograd.backward(expected.sum())
    torch.testing.assert_close(boxes.grad, other.grad, rtol=1e-5, atol=1e-7)


def test_ciou_by_hand() -> None:
    # shifted by half its width: IoU 1/3; hull 15×10, so distance² / diagonal² = 25 / 325; same shape, no aspect term
    ciou, iou = measure_ciou(torch.tensor([[5.0, 5, 10, 10]]), torch.tensor([[10.0, 5, 10, 10]]))
    assert float(iou) == pytest.approx(1 / 3)
    assert float(ciou) == pytest.approx(1 / 3 - 25 / 325)


def make_perfect_heads(targets: Tensor, config: LossConfig) -> Heads:
    """Return head maps whose positives decode to their targets and whose other cells see nothing."""
    yolos = [yolo for _, yolo in NETWORK.heads]
    shapes = [NETWORK.shapes[index] for index, _ in NETWORK.heads]
    grids = [(shape.height, shape.width) for shape in shapes]
    heads: Heads = []
    for yolo, shape, found in zip(
        yolos, shapes, assign(targets, tuple(yolos), grids, 64, 64, config.anchor_ratio), strict=True
    ):
        raw = torch.zeros(2, len(yolo.mask), 8, shape.height, shape.width, dtype=torch.float64)
        raw[:, :, 4:] = -20
        for image, anchor, row, column, label, box in zip(
            found.image, found.anchor, found.row, found.column, found.target_class, found.boxes_cxcywh, strict=True
        ):
            wide, high = yolo.own_anchors[int(anchor)]
            stride = 64 / shape.height
            offset = box[:2] / stride - torch.stack((column, row))
            cell = raw[image, anchor, :, row, column]
            cell[:2] = torch.logit(offset)
            cell[2:4] = torch.log(box[2:] / box.new_tensor([wide, high]))
            cell[4], cell[5 + int(label)] = 20, 20
        heads.append(raw.view(2, -1, shape.height, shape.width))
    return heads


def test_a_perfect_prediction_costs_nothing() -> None:
    targets = torch.tensor(
        [[0, 0, 0.3, 0.3, 0.2, 0.3], [0, 1, 0.8, 0.7, 0.4, 0.5], [1, 2, 0.6, 0.1, 0.9, 0.2]], dtype=torch.float64
    )
    losses = measure(make_perfect_heads(targets, LossConfig()), targets)
    assert float(losses.box) < 1e-6
    assert float(losses.objectness) < 1e-4
    assert float(losses.classes) < 1e-4
    other = targets.clone()
    other[0, 2:4] += 0.1
    assert float(measure(make_perfect_heads(targets, LossConfig()), other).box) > 0.05


def test_without_targets_only_objectness_is_trained() -> None:
    heads = make_heads()
    losses = measure(heads, NO_TARGETS)
    split = [raw.view(2, 3, 8, *raw.shape[2:])[:, :, 4] for raw in heads]
    expected = sum(torch.log1p(objectness.exp()).sum() for objectness in split)
    torch.testing.assert_close(losses.objectness, torch.as_tensor(expected).detach(), rtol=1e-9, atol=1e-9)
    assert float(losses.box) == float(losses.classes) == 0
    torch.autograd.backward(losses.total)
    assert all(raw.grad is not None and raw.grad.isfinite().all() for raw in heads)


@pytest.mark.parametrize("seed", range(4))
def test_parts_add_up_and_weights_weigh(seed: int) -> None:
    heads, targets = make_heads(seed=seed), make_targets(6, seed=seed)
    once, twice = (measure(heads, targets, LossConfig(w, w, w)) for w in (1.0, 2.0))
    torch.testing.assert_close(once.total.detach(), once.box + once.objectness + once.classes)
    torch.testing.assert_close(twice.total, 2 * once.total)


def test_a_prediction_that_overlaps_an_object_is_no_negative() -> None:
    # 40×40 px at (31, 31): assigned to the coarse head's cell (0, 0); its neighbour to the right predicts nearly the same box
    targets = torch.tensor([[0, 0, 31 / 64, 31 / 64, 40 / 64, 40 / 64]], dtype=torch.float64)
    yolo = NETWORK.heads[0][1]
    trained = []
    for ignore_iou in (0.7, 0.99):
        coarse, fine = (raw.detach().clone() for raw in make_heads())
        wide, high = yolo.own_anchors[0]
        coarse[:, :4, 0, 1] = torch.tensor([-6.0, 3.4, math.log(40 / wide), math.log(40 / high)])
        torch.autograd.backward(
            measure([coarse.requires_grad_(), fine], targets, LossConfig(ignore_iou=ignore_iou)).total
        )
        assert coarse.grad is not None
        trained.append([float(coarse.grad[image, 4, 0, 1]) != 0 for image in range(2)])
    assert trained == [[False, True], [True, True]]


def test_what_lies_in_an_ignored_box_is_no_negative() -> None:
    # 16 px cells; the ignored box covers the left half of the first image, cells 0 and 1 of 4 in the fine head
    ignored = torch.tensor([[0, 0, 0.25, 0.5, 0.5, 1, 1]], dtype=torch.float64)
    _, fine = (raw.detach().clone() for raw in make_heads())
    maps = fine.view(2, -1, 8, *fine.shape[2:])
    maps[:, :, :2] = 0  # the middle of the cell
    anchors = fine.new_tensor(NETWORK.heads[1][1].own_anchors)
    maps[:, :, 2:4] = (fine.new_tensor([12.0, 12.0]) / anchors).log()[None, :, :, None, None]
    heads = [make_heads()[0].detach(), fine.requires_grad_()]
    torch.autograd.backward(measure(heads, ignored).total)
    assert fine.grad is not None
    trained = fine.grad.view(2, -1, 8, *fine.shape[2:])[:, :, 4] != 0
    columns = fine.shape[3]
    assert not trained[0, ..., : columns // 2].any()
    assert trained[0, ..., columns // 2 :].all()
    assert trained[1].all()


def test_ignored_boxes_train_nothing_and_hide_no_object() -> None:
    heads, targets = [raw.detach() for raw in make_heads()], make_targets(6)
    marked = torch.cat((targets, torch.zeros(6, 1, dtype=targets.dtype)), 1)
    assert float(measure(heads, marked).total) == float(measure(heads, targets).total)
    whole = targets.new_tensor([[0, 1, 0.5, 0.5, 1, 1, 1], [1, 0, 0.5, 0.5, 1, 1, 1]])
    plain, hidden = measure(heads, targets), measure(heads, torch.cat((marked, whole)))
    assert float(hidden.box) == float(plain.box)
    assert float(hidden.classes) == float(plain.classes)
    assert float(hidden.objectness) < float(plain.objectness)


def test_a_perfect_box_still_trains_objectness() -> None:
    targets = torch.tensor([[0, 1, 0.8, 0.7, 0.4, 0.5]], dtype=torch.float64)
    heads = make_perfect_heads(targets, LossConfig())
    for raw in heads:
        objectness = raw.view(2, 3, 8, *raw.shape[2:])[:, :, 4]
        objectness[objectness > 0] = 0  # σ(0) = ½ where the target is 1
    positives = sum(int((raw.view(2, 3, 8, -1)[:, :, 4] == 0).sum()) for raw in heads)
    assert float(measure(heads, targets).objectness) == pytest.approx(math.log(2), rel=1e-4)
    assert positives > 1


def test_boxes_that_share_an_anchor_have_the_better_iou_as_target() -> None:
    # both lie in the fine head's cell (1, 1), which predicts the first box; 4 px farther the IoU is 12·16 / 20·16
    first, second = ([0, 0, (20 + shift) / 64, 20 / 64, 16 / 64, 16 / 64] for shift in (0, 4))
    targets = torch.tensor([first, second], dtype=torch.float64)
    config = LossConfig(anchor_ratio=1.0001)
    for order in ([0, 1], [1, 0]):
        raw = torch.zeros(1, 8, 4, 4, dtype=torch.float64)
        raw[:, 0, 1, 1] = torch.logit(torch.tensor(0.25))
        raw[:, 1, 1, 1] = torch.logit(torch.tensor(0.25))
        raw.requires_grad_()
        network = Network(64, 64, 3, (Conv(8, 16, 16, batch_normalize=False), Yolo((0,), ((16.0, 16.0),), 3)))
        losses = DetectionLoss(network, config).measure([raw], targets[order], 64, 64)
        torch.autograd.backward(losses.total)
        assert raw.grad is not None
        assert float(raw.grad[0, 4, 1, 1]) == pytest.approx((0.5 - 1) / 2, rel=1e-5)


@given(st.integers(0, 500), st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_order_of_targets_and_of_images_does_not_matter(seed: int, count: int) -> None:
    heads, targets = make_heads(seed=seed), make_targets(count, seed=seed)
    targets = torch.cat((targets, targets[:2] + torch.tensor([0, 0, 0, 0, 0.01, 0.02])))  # two that share an anchor
    total = measure(heads, targets).total
    shuffled = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))]
    torch.testing.assert_close(measure(heads, shuffled).total, total, rtol=1e-9, atol=1e-9)
    swapped = shuffled.clone()
    swapped[:, 0] = 1 - swapped[:, 0]
    torch.testing.assert_close(measure([raw.flip(0) for raw in heads], swapped).total, total, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_gradients_are_finite_and_reach_every_kind_of_channel(scale: float) -> None:
    heads = [(raw.detach() * scale).requires_grad_() for raw in make_heads()]
    losses = measure(heads, make_targets(8))
    torch.autograd.backward(losses.total)
    for raw in heads:
        assert raw.grad is not None
        assert raw.grad.isfinite().all()
        if scale == 1:
            assert (raw.grad.view(2, 3, 8, -1).abs().sum((0, 1, 3)) > 0).all()


def test_half_precision_outputs_are_judged_in_single() -> None:
    heads, targets = make_heads(), make_targets(5).float()
    halves = [raw.detach().half() for raw in heads]
    judged = measure(halves, targets)
    assert judged.total.dtype == torch.float32
    assert math.isclose(
        float(judged.total), float(measure([raw.float() for raw in halves], targets).total), rel_tol=1e-6
    )


def test_a_few_steps_learn_one_image() -> None:
    torch.manual_seed(0)
    network = make_network("yolov3-tiny", classes=3, width=0.1, img_size=64)
    model = Detector(network).train()
    images, targets = make_images(model, 64), make_targets(3).float()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    history = []
    for _ in range(25):
        loss = measure(model(images), targets, network=network).total
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.5 * history[0]
