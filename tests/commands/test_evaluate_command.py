from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny import Cli, read_json

from yolo_prune.datasets.images import read_header
from yolo_prune.datasets.labels import load_objects
from yolo_prune.datasets.spec import load_spec

KEYS = (
    "map50",
    "map50_interval",
    "coco_ap50",
    "coco_ap",
    "precision",
    "recall",
    "f1",
    "confidence",
    "recall_by_size",
    "curve",
)


@pytest.fixture
def saved(cli: Cli, trained: Path, workplace: Path) -> Path:
    """Return the trained checkpoint's detections in the test split."""
    read_json(cli("evaluate", trained, "--split", "test", "--save-detections", "found.json", "--json"))
    return workplace / "found.json"


def write_perfect(path: Path, data: Path, split: str = "test", score: float = 0.9) -> Path:
    """Write detections that are the labels."""
    spec, rows = load_spec(data), []
    for sample in spec.samples(split):
        header = read_header(sample.image)
        for own, cx, cy, w, h, _ in load_objects(sample, 1).astype(float).tolist():
            width, height = header.width_px, header.height_px
            bbox = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
            name = sample.image.relative_to(spec.root).as_posix()
            rows.append({"image_id": name, "category_id": int(own), "bbox": bbox, "score": score})
    path.write_text(json.dumps(rows))
    return path


def test_saved_detections_score_as_their_checkpoint_does(cli: Cli, trained: Path, hands: Path, saved: Path) -> None:
    once = read_json(cli("evaluate", trained, "--split", "test", "--json"))
    again = read_json(cli("evaluate", "--detections", saved, "--data", hands, "--split", "test", "--json"))
    assert {key: once[key] for key in KEYS} == {key: again[key] for key in KEYS}
    assert (once["checkpoint"], again["detections"]) == (str(trained), str(saved))
    assert once["images"] == again["images"] == 6
    assert once["compared"] == []


def test_models_are_compared_with_the_first(cli: Cli, trained: Path, hands: Path, saved: Path) -> None:
    perfect = write_perfect(saved.with_name("perfect.json"), hands)
    words = ("evaluate", trained, "--detections", saved, "--detections", perfect, "--split", "test")
    result = read_json(cli(*words, "--json"))
    same, better = result["compared"]
    assert same["map50_difference"] == 0
    assert same["map50_difference_interval"] == [0, 0]
    assert better["map50"] == pytest.approx(1)
    assert better["map50_difference"] == pytest.approx(1 - result["map50"])
    low, high = better["map50_difference_interval"]
    assert 0 < low <= better["map50_difference"] <= high
    text = cli(*words).out
    assert text.splitlines()[0] == f"test: 6 images, {result['instances']} objects"
    assert text.count("mAP against the first") == 2
    assert "found at 0.900, " in text


def test_other_tools_see_the_same_score(cli: Cli, trained: Path, hands: Path, workplace: Path) -> None:
    """pycocotools, given the detections as saved with the ids of annotations, agrees on COCO's AP."""
    spec = load_spec(hands)
    images, annotations = [], []
    for number, sample in enumerate(spec.samples("test"), 11):  # in their order, by which both break ties of scores
        header = read_header(sample.image)
        images.append(
            {"id": number, "file_name": sample.image.name, "width": header.width_px, "height": header.height_px}
        )
        for _, cx, cy, w, h, _ in load_objects(sample, 1).astype(float).tolist():
            box = [
                (cx - w / 2) * header.width_px,
                (cy - h / 2) * header.height_px,
                w * header.width_px,
                h * header.height_px,
            ]
            annotations.append(
                {"image_id": number, "category_id": 3, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            )
    values = {
        "images": images,
        "annotations": [{"id": number, **row} for number, row in enumerate(annotations, 1)],
        "categories": [{"id": 3, "name": "hand"}],
    }
    Path("test.json").write_text(json.dumps(values))
    words = ("--split", "test", "--annotations", "test.json", "--data", hands, "--json")
    result = read_json(cli("evaluate", trained, "--save-detections", "ids.json", *words))
    assert {row["category_id"] for row in json.loads(Path("ids.json").read_text())} == {3}
    again = read_json(cli("evaluate", "--detections", "ids.json", *words))
    assert {key: result[key] for key in KEYS} == {key: again[key] for key in KEYS}
    truth = COCO("test.json")
    evaluation = COCOeval(truth, truth.loadRes("ids.json"), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert (result["coco_ap50"], result["coco_ap"]) == pytest.approx(
        (evaluation.stats[1], evaluation.stats[0]), abs=1e-6
    )


def test_detect_writes_what_evaluate_reads(cli: Cli, trained: Path, hands: Path) -> None:
    folder = hands.parent / "images/test"
    assert cli("detect", trained, folder, "--confidence", "0.001", "--out", "found").code == 0
    words = ("--data", hands, "--split", "test", "--json")
    once = read_json(cli("evaluate", trained, *words))
    again = read_json(cli("evaluate", "--detections", "found/detections.json", *words))
    assert again["map50"] == pytest.approx(once["map50"], abs=1e-6)


def test_a_list_is_scored_with_detections_of_the_whole_split(cli: Cli, hands: Path, workplace: Path) -> None:
    perfect = write_perfect(workplace / "perfect.json", hands)
    Path("few.txt").write_text("images/test/000001.jpg\nimages/test/000004.jpg\n")
    result = read_json(cli("evaluate", "--detections", perfect, "--data", hands, "--list", "few.txt", "--json"))
    assert (result["images"], result["map50"]) == (2, pytest.approx(1))


def test_curves_are_drawn(cli: Cli, trained: Path, hands: Path, saved: Path) -> None:
    perfect = write_perfect(saved.with_name("perfect.json"), hands)
    for count, words in enumerate(([], ["--detections", perfect])):
        outcome = cli("evaluate", trained, *words, "--split", "test", "--curves", f"{count}.png")
        assert outcome.code == 0
        assert f"curves in {count}.png" in outcome.err
        with Image.open(f"{count}.png") as image:
            assert image.size == (1400, 460)


def test_a_set_without_objects_has_no_score_but_curves(cli: Cli, trained: Path, hands: Path, workplace: Path) -> None:
    shutil.copytree(hands.parent, workplace / "empty")
    shutil.rmtree(workplace / "empty/labels/test")
    words = ("--data", "empty/data.yaml", "--split", "test", "--curves", "curves.png")
    result = read_json(cli("evaluate", trained, *words, "--json"))
    assert result["map50"] is None
    assert result["instances"] == 0
    assert Path("curves.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--detections", "perfect.json"], "error: --data: detections do not say what they were made on; name a data.yaml"),
        (["--detections", "none.json", "--data", "HANDS"], "none.json: cannot be read"),
        (["--detections", "bad.json", "--data", "HANDS"], "bad.json[0]: image_id 'x.jpg' is not in the data set"),
        (["--detections", "class.json", "--data", "HANDS"], "class.json[0]: category_id 1 is unknown; use one of 0, or"),
        (["--detections", "perfect.json", "--save-detections", "a.json", "--data", "HANDS"], "there are 0 checkpoints"),
        (["TRAINED", "TRAINED", "--save-detections", "a.json"], "--save-detections: there are 2 checkpoints; name one"),
        (["TRAINED", "--curves", "a.pdf"], "a.pdf is no PNG file; name a file that ends in .png"),
        (["TRAINED", "--curves", "taken/a.png"], "taken/a.png: cannot be written"),
        (["TRAINED", "--annotations", "perfect.json", "--save-detections", "a.json"], "perfect.json: there is no list images"),
        (["TRAINED", "--split", "none"], "none: there are no images for none; use one of train, val, test"),
        (["TRAINED", "--img-size", "50"], "--img-size: 50 is no multiple of 32"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(cli: Cli, trained: Path, hands: Path, words: list[str], message: str) -> None:
    write_perfect(Path("perfect.json"), hands, "val")
    row = {"image_id": "000000.jpg", "category_id": 0, "bbox": [0, 0, 1, 1], "score": 0.5}
    Path("bad.json").write_text(json.dumps([row | {"image_id": "x.jpg"}]))
    Path("class.json").write_text(json.dumps([row | {"category_id": 1}]))
    Path("taken").write_text("")
    outcome = cli("evaluate", *({"HANDS": hands, "TRAINED": trained}.get(word, word) for word in words))
    assert outcome.code == 2
    assert message in outcome.err.splitlines()[-1]
    assert outcome.out == ""
    assert not Path("a.json").exists()
