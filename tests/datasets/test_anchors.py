from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import TINY_CFG, Cli, read_json
from torchvision.ops import box_iou

from yolo_prune.arrays import Float64Array
from yolo_prune.darknet.anchors import get_anchors, replace_anchors
from yolo_prune.darknet.architectures import YOLOV3_ANCHORS, make_network
from yolo_prune.darknet.cfg import format_cfg, pair_anchors, parse_cfg
from yolo_prune.darknet.layers import Anchors
from yolo_prune.darknet.network import Network
from yolo_prune.datasets import anchors as module
from yolo_prune.datasets.anchors import (
    find_anchors,
    format_anchors,
    improve_anchors,
    load_sides,
    measure_fit,
    measure_iou,
    round_anchors,
)
from yolo_prune.datasets.images import ORIENTATION_TAG
from yolo_prune.datasets.loader import DetectionDataset
from yolo_prune.datasets.spec import Sample, load_spec
from yolo_prune.errors import CfgError, DatasetError

RATIO = 4.0
SIDES = st.tuples(st.integers(1, 400), st.integers(1, 400))
BOXES = st.lists(SIDES, min_size=1, max_size=40).map(lambda pairs: np.array(pairs, np.float64))


def make_boxes(seed: int, count: int) -> Float64Array:
    """Return boxes of many shapes, a third of them much larger."""
    rng = np.random.default_rng(seed)
    small = np.exp(rng.normal(3, 0.5, (count, 2)))
    small[: count // 3] *= 6
    return small


def score(boxes: Float64Array, anchors: Float64Array) -> float:
    return measure_fit(boxes, anchors, RATIO).mean_iou


def test_iou_of_hand_worked_boxes() -> None:
    boxes = np.array([[2, 4], [4, 2], [4, 4]], np.float64)
    expected = [[1, 4 / 12, 8 / 16], [4 / 12, 1, 8 / 16], [8 / 16, 8 / 16, 1]]
    np.testing.assert_allclose(measure_iou(boxes, boxes), expected, rtol=1e-15)
    np.testing.assert_allclose(measure_iou(boxes, np.array([[1.0, 16.0]])), [[4 / 20], [2 / 22], [4 / 28]], rtol=1e-15)


def test_iou_is_that_of_boxes_with_one_corner() -> None:
    boxes, anchors = make_boxes(0, 50), make_boxes(1, 7)
    corners = [torch.from_numpy(np.concatenate((np.zeros_like(sides), sides), axis=1)) for sides in (boxes, anchors)]
    np.testing.assert_allclose(measure_iou(boxes, anchors), box_iou(*corners).numpy(), rtol=1e-12)


@pytest.mark.parametrize("chunk", [1 << 20, 1])
def test_the_fit_of_hand_worked_boxes(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    boxes = np.array([[10, 10], [10, 20], [20, 20], [40, 10]], np.float64)
    fit = measure_fit(boxes, np.array([[10.0, 10.0], [40.0, 40.0]]), RATIO)
    assert fit.mean_iou == (1 + 0.5 + 0.25 + 0.25) / 4
    assert fit.recall_50 == 0.5  # an IoU of just 0.5 is enough
    assert fit.within_ratio == 0.75  # a side that is off by just the ratio is too much, as in the loss
    assert fit.boxes == 4
    assert measure_fit(boxes, np.array([[10.0, 10.0], [40.0, 40.0]]), 4.01).within_ratio == 1


def test_clusters_apart_are_found_exactly() -> None:
    centres = np.array([[12, 20], [40, 30], [60, 110], [200, 90], [250, 300]], np.float64)
    cross = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], np.float64)
    boxes = (centres[:, None] + cross).reshape(-1, 2)
    for seed in range(5):
        shuffled = np.random.default_rng(seed).permutation(boxes)
        np.testing.assert_array_equal(find_anchors(shuffled, 5, seed), centres)


def test_as_many_anchors_as_boxes_are_the_boxes() -> None:
    boxes = make_boxes(3, 12)
    np.testing.assert_array_equal(find_anchors(boxes, 12), boxes[boxes.prod(1).argsort()])


def find_best_pair(boxes: Float64Array) -> float:
    """Try every split into two clusters, and as the centre of each every width with every height in it."""
    best = 0.0
    for members in product((False, True), repeat=len(boxes) - 1):
        chosen = np.array((True, *members))
        total = 0.0
        for cluster in (boxes[chosen], boxes[~chosen]):
            if len(cluster):
                grid = np.array(list(product(cluster[:, 0], cluster[:, 1])))
                total += measure_iou(cluster, grid).sum(0).max()
        best = max(best, total / len(boxes))
    return best


@pytest.mark.parametrize("seed", range(25))
def test_two_anchors_of_few_boxes_are_the_best_there_are(seed: int) -> None:
    boxes = make_boxes(seed, 3 + seed % 6)
    assert score(boxes, find_anchors(boxes, 2)) == pytest.approx(find_best_pair(boxes), abs=1e-3)


@pytest.mark.parametrize(("seed", "count"), [(0, 1), (1, 3), (2, 6), (3, 9)])
def test_boxes_drawn_at_random_are_never_better_anchors(seed: int, count: int) -> None:
    boxes, rng = make_boxes(seed, 300), np.random.default_rng(seed)
    found = score(boxes, find_anchors(boxes, count))
    assert found > max(score(boxes, rng.choice(boxes, count, replace=False)) for _ in range(300))


def test_more_restarts_are_never_worse() -> None:
    boxes = make_boxes(5, 400)
    scores = [score(boxes, find_anchors(boxes, 9, restarts=restarts)) for restarts in range(1, 11)]
    assert scores == sorted(scores)
    assert scores[0] < scores[-1]


@given(BOXES, BOXES)
@settings(max_examples=200, deadline=None)
def test_k_means_never_leads_to_a_lower_mean_iou_or_leaves_an_anchor_unused(
    boxes: Float64Array, start: Float64Array
) -> None:
    before = start.copy()
    anchors = improve_anchors(boxes, start)
    np.testing.assert_array_equal(start, before)
    assert score(boxes, anchors) >= score(boxes, start) - 1e-12
    if len(np.unique(boxes, axis=0)) >= len(anchors):
        assert set(measure_iou(boxes, anchors).argmax(1)) == set(range(len(anchors)))


def test_anchors_follow_from_boxes_and_seed() -> None:
    boxes = make_boxes(6, 200)
    np.testing.assert_array_equal(find_anchors(boxes, 6, 1), find_anchors(boxes.copy(), 6, 1))
    assert not np.array_equal(find_anchors(boxes, 6, 1, restarts=1), find_anchors(boxes, 6, 2, restarts=1))


@given(BOXES, st.integers(1, 4), st.integers(-2, 6), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_anchors_grow_with_the_boxes(boxes: Float64Array, count: int, power: int, seed: int) -> None:
    boxes = boxes * 4
    count = min(count, len(np.unique(boxes, axis=0)))
    anchors = find_anchors(boxes, count, seed)
    np.testing.assert_array_equal(find_anchors(boxes * 2.0**power, count, seed), anchors * 2.0**power)
    assert (np.diff(anchors.prod(1)) >= 0).all()
    assert (anchors > 0).all()


@given(st.lists(st.tuples(st.floats(0.01, 30), st.floats(0.01, 30)), min_size=1, max_size=16))
@settings(max_examples=200, deadline=None)
def test_whole_anchors_are_different_and_near(pairs: list[tuple[float, float]]) -> None:
    exact = np.array(pairs)
    whole = round_anchors(exact)
    assert whole.shape == exact.shape
    assert len(np.unique(whole, axis=0)) == len(whole)
    assert (whole >= 1).all()
    np.testing.assert_array_equal(whole, whole.round())
    assert (np.diff(whole.prod(1)) >= 0).all()
    for anchor in exact:  # 16 places at most are taken: one of the 25 around is free, of 9 in a corner with reach 2
        assert abs(whole - anchor).max(1).min() < 4
    rounded = np.maximum(exact.round(), 1)
    if len(np.unique(rounded, axis=0)) == len(exact):
        assert {tuple(row) for row in whole.tolist()} == {tuple(row) for row in rounded.tolist()}


def test_anchors_that_would_round_to_one_move_apart_as_little_as_they_can() -> None:
    exact = np.array([[0.2, 0.3], [10.0, 20.0], [10.0, 20.4], [10.0, 20.3]])  # to 10,21, then 10,19 as 11,20 is further
    assert format_anchors(round_anchors(exact)) == "1,1,10,19,10,20,10,21"


def test_too_few_boxes_are_an_error() -> None:
    with pytest.raises(DatasetError, match=r"^d\.yaml: train: there are no boxes to find anchors for; use images"):
        find_anchors(np.zeros((0, 2)), 1, where="d.yaml: train")
    boxes = np.array([[10, 10], [10.001, 10], [20, 20], [20, 20]], np.float64)
    with pytest.raises(
        DatasetError, match=r"^boxes of 2 different sizes are too few for 3 anchors; find at most 2, or"
    ):
        find_anchors(boxes, 3)
    np.testing.assert_array_equal(find_anchors(boxes, 2), [[10, 10], [20, 20]])


def test_of_many_boxes_a_sample_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BOXES", 500)
    boxes, lines = make_boxes(7, 6000), list[str]()
    sampled = find_anchors(boxes, 6, report=lines.append)
    assert lines == ["looking for anchors in 500 of the 6,000 boxes"]
    assert score(boxes, sampled) == pytest.approx(score(boxes, improve_anchors(boxes, sampled)), abs=0.01)
    np.testing.assert_array_equal(find_anchors(boxes, 6), sampled)
    find_anchors(boxes[:500], 6, report=lines.append)
    assert len(lines) == 1


def test_a_sample_holds_enough_different_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BOXES", 20)
    rare = np.array([[10, 10], [30, 60], [90, 20]], np.float64)
    boxes = np.concatenate((np.full((5000, 2), 200.0), rare))
    np.testing.assert_array_equal(find_anchors(boxes, 4), [*rare, [200, 200]])


def test_boxes_are_sized_as_the_network_sees_them(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    Image.new("RGB", (200, 100)).save(tmp_path / "wide.png")
    Image.new("RGB", (30, 60)).save(tmp_path / "high.png")
    Image.new("RGB", (200, 100)).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "none.jpg").write_bytes(b"of no box: never opened")
    for name in ("wide", "high", "turned"):
        (tmp_path / f"{name}.txt").write_text("0 0.5 0.5 0.5 0.5\n" + "1 0.5 0.5 1 0.25\n" * (name == "high"))
    (tmp_path / "wide.ignore.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    names = ("wide.png", "none.jpg", "high.png", "turned.jpg")
    samples, calls = [Sample(tmp_path / name, (tmp_path / name).with_suffix(".txt")) for name in names], list[int]()
    sides = load_sides(samples, 2, 64, lambda done, total: calls.append(10 * done + total))
    assert sides.tolist() == [[32, 16], [16, 32], [32, 16], [16, 32]]
    assert calls == [14, 24, 34, 44]
    assert load_sides(samples[1:2], 2, 64).shape == (0, 2)


def test_boxes_are_as_large_as_in_the_images_that_the_network_gets(hands: Path) -> None:
    samples = load_spec(hands).samples("train")
    data = DetectionDataset(samples, 1, 96)
    boxes = np.concatenate([data[index][1] for index in range(len(data))])[:, 1:5].astype(np.float64)
    np.testing.assert_allclose(load_sides(samples, 1, 96), boxes[:, 2:] - boxes[:, :2], atol=0.5)


def list_anchors(network: Network) -> list[Anchors]:
    return [head.anchors for _, head in network.heads]


def test_new_anchors_take_the_places_of_the_old_by_size() -> None:
    network = make_network("yolov3", img_size=416)
    assert get_anchors(network) == YOLOV3_ANCHORS
    new = tuple((float(side), float(side)) for side in (9, 8, 7, 6, 5, 4, 3, 2, 1))
    changed = replace_anchors(network, new)
    assert list_anchors(changed) == [new[::-1]] * 3
    assert [head.mask for _, head in changed.heads] == [(6, 7, 8), (3, 4, 5), (0, 1, 2)]
    assert replace_anchors(changed, YOLOV3_ANCHORS) == network


def test_anchors_that_no_mask_selects_stay() -> None:
    """YOLOv4-tiny's masks are 3,4,5 and 1,2,3: five anchors, one of them of both heads."""
    network = make_network("yolov4-tiny", img_size=416)
    unused, *used = list_anchors(network)[0]
    assert get_anchors(network) == tuple(used)
    new = tuple((side, 2 * side) for side in (20.0, 30.0, 40.0, 50.0, 60.0))
    changed = replace_anchors(network, new)
    assert list_anchors(changed) == [(unused, *new)] * 2
    assert [head.own_anchors for _, head in changed.heads] == [new[2:], new[:3]]
    assert parse_cfg(format_cfg(changed)) == changed
    with pytest.raises(CfgError, match="6 anchors do not fit the network; give the 5 that its heads use"):
        replace_anchors(network, (unused, *new))


def test_a_list_in_another_order_keeps_it() -> None:
    network = parse_cfg(TINY_CFG.replace("14,14, 30,30", "30,30, 14,14, 5,90").replace("num=2", "num=3"))
    assert get_anchors(network) == ((14, 14), (30, 30))
    assert list_anchors(replace_anchors(network, ((1, 2), (3, 4)))) == [((3, 4), (1, 2), (5, 90))]


def test_heads_with_lists_of_their_own() -> None:
    head = TINY_CFG[TINY_CFG.index("[convolutional]\nfilters=12") :]
    other = head.replace("14,14, 30,30", "60,60, 14,14")
    network = parse_cfg(f"{TINY_CFG}\n[route]\nlayers=-3\n\n{other}")
    assert get_anchors(network) == ((14, 14), (14, 14), (30, 30), (60, 60))
    changed = replace_anchors(network, ((1, 1), (2, 2), (3, 3), (4, 4)))
    assert list_anchors(changed) == [((1, 1), (3, 3)), ((4, 4), (2, 2))]


def test_the_first_line_is_what_cfg_make_takes(cli: Cli, hands: Path) -> None:
    outcome = cli("data", "anchors", hands, "--img-size", 160)
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    first, head, _, *figures = outcome.out.splitlines()
    anchors = pair_anchors(tuple(map(float, first.split(","))), "stdout")
    assert list(anchors) == sorted(anchors, key=lambda pair: pair[0] * pair[1])
    boxes = load_sides(load_spec(hands).samples("train"), 1, 160)
    np.testing.assert_array_equal(anchors, round_anchors(find_anchors(boxes, 9)))
    fit = measure_fit(boxes, np.array(anchors), RATIO)
    assert head.split() == f"9 anchors for {len(boxes)} boxes of train at 160 px found".split()
    assert [line.split()[-1] for line in figures] == [
        f"{value:.4f}" for value in (fit.mean_iou, fit.recall_50, fit.within_ratio)
    ]
    made = cli("cfg", "make", "--img-size", 160, "--anchors", first)
    assert get_anchors(parse_cfg(made.out)) == anchors


def test_a_cfg_is_compared(cli: Cli, hands: Path) -> None:
    Path("tiny.cfg").write_text(TINY_CFG)
    words = ("data", "anchors", hands, "--cfg", "tiny.cfg", "--img-size", 128, "--split", "val", "--seed", 3)
    result = read_json(cli(*words, "--json"))
    boxes = load_sides(load_spec(hands).samples("val"), 1, 128)
    exact = find_anchors(boxes, 2, 3)
    whole = round_anchors(exact)
    assert result["anchors"] == whole.tolist()
    assert all(isinstance(side, int) for anchor in result["anchors"] for side in anchor)
    assert result["anchors_exact"] == exact.tolist()
    assert (result["img_size"], result["split"], result["boxes"]) == (128, "val", len(boxes))
    cfg, theirs = result["cfg"], np.array([[28.0, 28.0], [60.0, 60.0]])
    assert (cfg["path"], cfg["anchors"], cfg["boxes"]) == ("tiny.cfg", theirs.tolist(), len(boxes))
    for figures, anchors in ((result, whole), (cfg, theirs)):
        fit = measure_fit(boxes, anchors, RATIO)
        assert (figures["mean_iou"], figures["recall_50"], figures["within_ratio"]) == (
            fit.mean_iou,
            fit.recall_50,
            fit.within_ratio,
        )
    gain = result["mean_iou"] - cfg["mean_iou"]
    assert gain > 0
    lines = cli(*words).out.splitlines()
    assert lines[0] == format_anchors(whole)
    assert lines[1].split()[-2:] == ["found", "tiny.cfg"]
    assert lines[3].split()[-3:] == [f"{result['mean_iou']:.4f}", f"{cfg['mean_iou']:.4f}", f"({gain:+.4f})"]
    assert len(read_json(cli(*words, "--count", 4, "--json"))["anchors"]) == 4
    assert "cfg" not in read_json(cli("data", "anchors", hands, "--count", 1, "--json"))


def test_a_sample_is_reported_on_stderr(cli: Cli, hands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BOXES", 10)
    outcome = cli("data", "anchors", hands, "--count", 2)
    boxes = len(load_sides(load_spec(hands).samples("train"), 1, 416))
    assert outcome.err == f"looking for anchors in 10 of the {boxes} boxes\n"
    assert f"{boxes} boxes" in outcome.out


@pytest.mark.parametrize(
    ("words", "place", "right"),
    [
        ("none.yaml", "none.yaml: there is no such file", "name a data.yaml"),
        ("{data} --split tset", "{data}: tset: there are no images for tset", "use one of train, val, test"),
        ("{data} --count 0", "--count: 0 is out of range", "from 1 to 256"),
        ("{data} --count 257", "--count: 257 is out of range", "from 1 to 256"),
        ("{data} --count 99", "{data}: train: boxes of ", "different sizes are too few for 99 anchors; find at most "),
        ("{data} --seed -1", "--seed: -1 is out of range", "use a whole number from 0"),
        ("{data} --img-size 100", "--img-size: 100 is no multiple of 32", "use 96"),
        ("{data} --cfg none.cfg", "none.cfg: cannot be read", "name a Darknet cfg"),
        ("empty/data.yaml", "empty/data.yaml: train: there are no boxes", "use images with labels"),
        ("spoiled/data.yaml", "spoiled/images/train/", "put a whole JPEG"),
        ("", "Missing argument", "see yoloprune data anchors --help"),
    ],
)
def test_bad_words(cli: Cli, hands: Path, words: str, place: str, right: str) -> None:
    shutil.copytree(hands.parent / "images", "empty/images")
    shutil.copy(hands, "empty")
    shutil.copytree(hands.parent, "spoiled")
    for path in Path("spoiled/images/train").iterdir():
        path.write_bytes(b"\xff\xd8 no")
    outcome = cli("data", "anchors", *words.format(data=hands).split())
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: {place.format(data=hands)}"), outcome.err
    assert right in outcome.err
    assert outcome.err.count("\n") == 1
