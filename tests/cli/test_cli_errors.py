"""Bad input: one line that names the place and what would be right, exit code 2, and nothing half-written."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY_CFG, Cli, Outcome

from yolo_prune.darknet.cfg import parse_cfg
from yolo_prune.model.checkpoint import load_checkpoint, save_checkpoint
from yolo_prune.model.detector import Detector
from yolo_prune.model.weights import save_weights
from yolo_prune.pruning.channels import make_channel_graph
from yolo_prune.pruning.plans.plan import Plan
from yolo_prune.pruning.plans.plan_file import BlockPlan, save_plan


@pytest.fixture
def data(workplace: Path, hands: Path) -> Path:
    """Return the data.yaml of a copy that a test may change: ./hands/data.yaml."""
    shutil.copytree(hands.parent, workplace / "hands")
    return Path("hands/data.yaml")


def check(outcome: Outcome, place: str, right: str) -> None:
    """Expect one line that begins with the place and ends in what would be right, and no run."""
    assert (outcome.code, outcome.out) == (2, ""), outcome.err
    progress, line = outcome.err.splitlines()[:-1], outcome.err.splitlines()[-1]
    assert not any(word in text for text in progress for word in ("Traceback", "error", "Error"))
    assert line.startswith(f"error: {place}"), line
    assert right in line[len(f"error: {place}") :], line
    assert not list(Path().rglob("runs/*")), "something was written"


def remove(path: str) -> Callable[[], object]:
    return Path("hands", path).unlink


def write(path: str, content: str | bytes) -> Callable[[], object]:
    return lambda: Path("hands", path).write_bytes(content.encode() if isinstance(content, str) else content)


def empty(folder: str) -> Callable[[], object]:
    def spoil() -> None:
        for path in Path("hands", folder).iterdir():
            path.unlink()

    return spoil


YAML = "path: .\ntrain: images/train\nval: images/val\nnames: {0: hand}\n"
LABEL = "hands/labels/train/000001.txt"


@pytest.mark.parametrize(
    ("spoil", "place", "right"),
    [
        (write("images/train/000001.jpg", b"\xff\xd8 no"), "hands/images/train/000001.jpg: is not a readable", "put a whole JPEG"),
        (write("images/val/000000.jpg", b""), "hands/images/val/000000.jpg: is not a readable image", "put a whole"),
        (write("labels/train/000001.txt", "0 .5 .5 .1 .1\n0 .5 .5 .1"), f"{LABEL}:2: '0 .5 .5 .1' is not five numbers", "write class cx cy w h"),
        (write("labels/train/000001.txt", "0 .5 x .1 .1"), f"{LABEL}:1: '0 .5 x .1 .1' is not five numbers", "write class cx cy w h"),
        (write("labels/train/000001.txt", "1 .5 .5 .1 .1"), f"{LABEL}:1: class 1 is out of range", "from 0 to 0"),
        (write("labels/train/000001.txt", "0 .9 .5 .4 .1"), f"{LABEL}:1: a box from 0.7 to 1.1 lies outside", "write shares"),
        (write("labels/train/000001.txt", "0 .5 .5 0 .1"), f"{LABEL}:1: a box of width 0", "greater than 0"),
        (empty("images/val"), "hands/data.yaml: val: there are no images in images/val", "put images there"),
        (write("data.yaml", YAML.replace("val: images/val\n", "")), "hands/data.yaml: the key val is missing", "add a line val:"),
        (write("data.yaml", YAML.replace("names", "name")), "hands/data.yaml: the key names is missing", "add a line names:"),
        (write("data.yaml", YAML + "}"), "hands/data.yaml:5: is not YAML", "correct that line"),
        (write("data.yaml", YAML.replace("images/train", "pics")), "hands/data.yaml: train: there is no folder", "name a folder"),
        (write("data.yaml", YAML.replace("images/train", "list.txt")), "hands/list.txt: the list cannot be read", "name a text file"),
        (write("data.yaml", YAML.replace("{0: hand}", "[palm, fist]")), "tiny.cfg: has 1 classes, the data set 2", "the same classes"),
        (remove("data.yaml"), "hands/data.yaml: there is no such file", "name a data.yaml"),
    ],
)  # fmt: skip
def test_bad_data(cli: Cli, data: Path, tiny_cfg: Path, spoil: Callable[[], object], place: str, right: str) -> None:
    shutil.copy(tiny_cfg, "tiny.cfg")
    spoil()
    check(cli("train", "--data", data, "--cfg", "tiny.cfg", "--epochs", 1), place, right)


def test_an_image_of_a_list_that_is_not_there(cli: Cli, data: Path, tiny_cfg: Path) -> None:
    data.write_text(YAML.replace("images/val", "val.txt"))
    Path("hands/val.txt").write_text("images/val/000000.jpg\nimages/val/missing.jpg\n")
    check(cli("train", "--data", data, "--cfg", tiny_cfg), "hands/val.txt:2: ", "missing.jpg")


@pytest.mark.parametrize(
    ("old", "new", "place", "right"),
    [
        ("[shortcut]", "[shortcat]", "bad.cfg:37: ", "did you mean [shortcut]?"),
        ("from=-3", "from=-9", "bad.cfg:37: layer 4 [shortcut] reads layer -5", "name one of 0 … 3"),
        ("[shortcut]\nfrom=-3\nactivation=linear", "[route]\nlayers=-1,7", "bad.cfg:37: layer 4 [route] reads layer 7", "name one of 0 … 3"),
        ("filters=12", "filters=13", "bad.cfg:", "12"),
        ("filters=16", "filters=many", "bad.cfg:43: filters=many", "correct the value"),
        ("filters=16", "filtres=16", "bad.cfg:", "filters"),
        ("[net]", "[nut]", "bad.cfg:1: does not begin with [net]", "put a [net] section first"),
    ],
)  # fmt: skip
def test_bad_cfg(cli: Cli, hands: Path, old: str, new: str, place: str, right: str) -> None:
    assert old in TINY_CFG
    Path("bad.cfg").write_text(TINY_CFG.replace(old, new))
    check(cli("train", "--data", hands, "--cfg", "bad.cfg"), place, right)
    check(cli("cfg", "show", "bad.cfg"), place, right)


@pytest.mark.parametrize("short_bytes", [4, 400])
def test_truncated_weights(cli: Cli, hands: Path, tiny_cfg: Path, short_bytes: int) -> None:
    path = save_weights(Detector(parse_cfg(TINY_CFG)), Path("tiny.weights"))
    os.truncate(path, path.stat().st_size - short_bytes)
    outcome = cli("train", "--data", hands, "--cfg", tiny_cfg, "--weights", path)
    check(outcome, "tiny.weights: holds ", "values, the network expects 2,644; use a file made for this cfg")


class Bomb:
    """A pickle of it would make a file when it is read."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("exploded",)


def write_text_file(path: Path) -> None:
    path.write_text("weights, honestly\n")


def write_bomb(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


def write_packed_bomb(path: Path) -> None:
    torch.save({"format": "yolo_prune checkpoint", "cfg": Bomb()}, path)


def write_foreign(path: Path) -> None:
    torch.save({"model": torch.zeros(3)}, path)


def write_other_state(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["state"]["layers.0.bn.weight"] = torch.ones(9)
    torch.save(content, path)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (Path.unlink, "cannot be read (No such file or directory); name a .pt file"),
        (write_text_file, "it is damaged or no checkpoint"),
        (write_bomb, "it is damaged or no checkpoint"),
        (write_packed_bomb, "is a pickle that could run code, or is damaged; name a checkpoint that yoloprune wrote"),
        (write_foreign, "is not a yolo_prune checkpoint; name a checkpoint"),
        (truncate, "it is damaged or no checkpoint"),
        (write_other_state, "its cfg wants layers.0.bn.weight of shape (8,), its tensor has (9,); make it again"),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        "prune {}",
        "finetune {}",
        "bench {}",
        "evaluate {}",
        "detect {} hands/images/val",
        "cfg show {}",
        "train --weights {}",
    ],
)
def test_what_is_no_checkpoint(
    cli: Cli, trained: Path, data: Path, command: str, spoil: Callable[[Path], None], what: str
) -> None:
    path = Path(shutil.copy(trained, "a.pt"))
    spoil(path)
    check(cli(*command.format(path).split()), "a.pt: ", what)
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    ("words", "place", "right"),
    [
        ("prune {pt} --ratio 1", "--ratio: 1 is out of range", "use a number from 0 to below 1"),
        ("prune {pt} --ratio -0.1", "--ratio: -0.1 is out of range", "use a number from 0 to below 1"),
        ("prune {pt} --ratio nan", "--ratio: nan is out of range", "use a number from 0 to below 1"),
        ("prune {pt} --ratio most", "Invalid value for '--ratio'", "number"),
        ("prune {pt} --ratio 0.95", "--ratio: 0.95 of 36 channels cannot be removed", "use at most 0.777"),
        ("prune {pt} --min-channels 0", "--min-channels: 0 is out of range", "use a whole number from 1"),
        ("prune {pt} --recalibrate -1", "--recalibrate: -1 is out of range", "use a whole number from 0"),
        ("prune {pt} --name ../up", "--name: '../up' is no folder name", "without slashes"),
        ("prune {pt} --data none.yaml", "none.yaml: there is no such file", "name a data.yaml"),
        ("prune", "CHECKPOINT: no checkpoint of train below runs", "run yoloprune train first"),
        ("finetune", "CHECKPOINT: no checkpoint of prune below runs", "run yoloprune prune first"),
        ("bench", "CHECKPOINT: no checkpoint of finetune or prune or train", "run yoloprune train first"),
        ("train --epoch 3", "No such option: --epoch", "--epochs"),
        ("train --epochs 0", "--epochs: 0 is out of range", "use a whole number from 1"),
        ("train --epochs 1.5", "Invalid value for '--epochs'", "integer"),
        ("train --img-size 100", "--img-size: 100 is no multiple of 32", "use 96"),
        ("train --seed -1", "--seed: -1 is out of range", "use a whole number from 0"),
        ("train --device tpu", "--device: unknown device tpu", "use auto, cpu, cuda or cuda:N"),
        ("train --device cuda:99", "--device: cuda:99 is not there", "use cpu"),
        ("train --name a/b", "--name: 'a/b' is no folder name", "without slashes"),
        ("train --resume", "runs/train/last.pt: there is nothing to resume", "name a run folder"),
        ("train --resume --epochs 5", "--epochs: a resumed run keeps its settings", "leave it out"),
        ("finetune {pt} --resume", "CHECKPOINT: a resumed run keeps its settings", "leave it out"),
        ("train --config settings.yaml", "settings.yaml:1: unknown key epoch", "did you mean epochs?"),
        ("train --config types.yaml", "types.yaml:1: epochs: 'many' is of the wrong type", "use a whole number from 1"),
        ("train --config none.yaml", "none.yaml: cannot be read", "name a YAML file"),
        ("train --weights {pt} --cfg {cfg}", "--cfg: a checkpoint brings its own network", "leave it out"),
        ("bench {pt} --engine rocket", "--engine: unknown engine rocket", "use one of eager, folded, compile, compile-max, cudagraph, sparse, half, half-2:4"),
        ("bench {pt} --img-size 50", "--img-size: 50 is no multiple of 32", "use 64"),
        ("bench {pt} --split tset", "{data}: tset: there are no images for tset", "use one of train, val, test"),
        ("evaluate {pt} --img-size -5", "--img-size: -5 is no multiple of 32", "use 32"),
        ("evaluate {pt} --list none.txt", "none.txt: the list cannot be read", "name a text file"),
        ("evaluate {pt} --data two.yaml", "--data: the network does not know the class a, but hand", "use a data set"),
        ("evaluate {pt} --device mps", "--device: unknown device mps", "use auto, cpu"),
        ("detect {pt} none.jpg", "none.jpg: there is no such image", "name an image"),
        ("detect {pt} settings.yaml", "settings.yaml: is not a readable image", "put a whole"),
        ("detect {pt} {image} --confidence 2", "--confidence: 2 is out of range", "use a number from 0 to 1"),
        ("detect {pt}", "Missing argument", "see yoloprune detect --help"),
        ("cfg make --arch yolov9", "--arch: unknown arch yolov9", "yolov3"),
        ("cfg make --img-size 100", "--img-size: 100", "32"),
        ("cfg make --out settings.yaml/a.cfg", "settings.yaml/a.cfg: cannot be written", ""),
        ("data synthetic --train 0 --out new", "--train: 0 is out of range", "use a whole number from 1"),
        ("data synthetic --out .", ".: is not a folder of synthetic hands", "name a new or empty folder"),
        ("run settings.yaml", "settings.yaml:1: unknown key epoch", "did you mean train.epochs?"),
        ("prone", "No such command 'prone'", "see yoloprune --help"),
    ],
)  # fmt: skip
def test_bad_words(cli: Cli, trained: Path, hands: Path, tiny_cfg: Path, words: str, place: str, right: str) -> None:
    Path("settings.yaml").write_text("epoch: 3\n")
    Path("types.yaml").write_text("epochs: many\n")
    Path("two.yaml").write_text(
        f"path: {hands.parent}\n" + YAML.removeprefix("path: .\n").replace("{0: hand}", "[a, b]")
    )
    names = {"pt": trained, "data": hands, "cfg": tiny_cfg, "image": hands.parent / "images/val/000000.jpg"}
    added = ["--data", str(hands)] * (words.startswith("train") and "--resume" not in words)
    check(cli(*words.format_map(names).split(), *added), place.format_map(names), right)
    assert {path.name for path in Path().iterdir()} == {"settings.yaml", "types.yaml", "two.yaml"}


@pytest.fixture
def spoiled(workplace: Path, trained: Path) -> Path:
    """Return a checkpoint with a γ that is NaN: ./spoiled.pt."""
    loaded = load_checkpoint(trained)
    state = {name: tensor.clone() for name, tensor in loaded.state.items()}
    state["layers.2.bn.weight"][3] = torch.nan
    return save_checkpoint(Path("spoiled.pt"), replace(loaded, state=state))


@pytest.mark.parametrize(
    ("words", "place", "right"),
    [
        ("prune spoiled.pt --ratio 0.5", "layer 2: γ holds NaN or infinity", "train again from a sound checkpoint"),
        ("prune spoiled.pt --criterion random", "layer 2: γ holds NaN or infinity", "train again"),
        ("plan spoiled.pt", "layer 2: γ holds NaN or infinity", "train again"),
        ("sensitivity spoiled.pt --criterion random", "layer 2: γ holds NaN or infinity", "train again"),
        ("prune {pt} --ratio 0.95 --min-channels 1", "--ratio: 0.95 of 36 channels cannot be removed: 1 stay in", "use at most 0.888"),
        ("prune {pt} --ratio 0.9 --spare 5", "--ratio: 0.9 of 20 channels cannot be removed: 2 stay in every", "use at most 0.7,"),
        ("prune {pt} --target-params 1.5", "--target-params: 1.5 is out of range", "use a number above 0, up to 1"),
        ("plan {pt} --target-macs 1.5", "--target-macs: 1.5 is out of range", "use a number above 0, up to 1"),
        ("prune {pt} --target-macs 0", "--target-macs: 0 is out of range", "use a number above 0, up to 1"),
        ("prune {pt} --target-params nan", "--target-params: nan is out of range", "use a number above 0, up to 1"),
        ("prune {pt} --target-macs 0.01", "--target-macs: 0.01 of the original cannot be reached: min_channels=2", "use at least 0."),
        ("prune {pt} --target-speedup 0.5", "--target-speedup: 0.5 is out of range", "use a number from 1"),
        ("prune {pt} --target-speedup nan", "--target-speedup: nan is out of range", "use a number from 1"),
        ("prune {pt} --target-latency-ms 0", "--target-latency-ms: 0 is out of range", "use a number above 0"),
        ("prune {pt} --target-latency-ms 1e9", "--target-latency-ms: 1e+09 ms is above the original's cost", "use less"),
        ("prune {pt} --drop-blocks 2", "--drop-blocks: 2 blocks cannot be cut: the network has 1", "use at most 1"),
        ("prune {pt} --drop-blocks 1 --spare 2", "--drop-blocks: 1 blocks cannot be cut: the network has 0", "use at most 0"),
        ("prune {pt} --drop-blocks -1", "--drop-blocks: -1 is out of range", "use a whole number from 0"),
        ("prune {pt} --spare 4", "--spare: layer 4 is no convolution", "as cfg show numbers them"),
        ("prune {pt} --spare 0,99 --drop-blocks 1", "--spare: layer 99 is no convolution", "as cfg show numbers"),
        ("plan {pt} --spare 3,x", "--spare: 'x' is of the wrong type", "use a list of whole numbers"),
        ("prune {pt} --criterion magic", "--criterion: unknown criterion magic", "use bn-gamma, l1, l2, fpgm, taylor, obs, random or auto"),
        ("prune {pt} --group-reduce min", "--group-reduce: unknown group reduce min", "use mean, max or sum"),
        ("prune {pt} --scope local", "--scope: unknown scope local", "use global, layer or floor"),
        ("prune {pt} --normalize sum", "--normalize: unknown normalize sum", "use none, mean or max"),
        ("prune {pt} --fold relu", "--fold: unknown fold relu", "use auto, leaky, mean, regress or none"),
        ("plan {pt} --fold none", "No such option: --fold", "yoloprune plan --help"),
        ("prune {pt} --score-batches 0", "--score-batches: 0 is out of range", "use a whole number from 1"),
        ("prune {pt} --seed -1", "--seed: -1 is out of range", "use a whole number from 0"),
        ("prune {pt} --round-to 0", "--round-to: 0 is out of range", "use a whole number from 1"),
        ("prune {pt} --config spare.yaml", "spare.yaml:1: spare: 'three' is of the wrong type", "use a list of whole numbers"),
        ("prune {pt} --config list.json", "list.json: is not a mapping", "write key: value lines"),
        ("prune {pt} --plan other.json", "other.json: was made for another network", "make a plan for this one"),
        ("plan {pt} --plan broken.json", "broken.json:2: is not JSON", "correct that line"),
        ("prune {pt} --plan list.json", "list.json: is not a plan", "name a file that yoloprune plan wrote"),
        ("prune {pt} --plan none.json", "none.json: cannot be read (No such file", "yoloprune plan wrote"),
        ("prune {pt} --plan {pt}", "{pt}: cannot be read", "yoloprune plan wrote"),
        ("prune {pt} --from-sensitivity broken.json", "broken.json:2: is not JSON", "correct that line"),
        ("prune {pt} --from-sensitivity other.json", "other.json: is no sensitivity table", "yoloprune sensitivity wrote"),
        ("plan {pt} --from-sensitivity list.json", "list.json: is no sensitivity table", "yoloprune sensitivity wrote"),
        ("prune {pt} --from-sensitivity none.json", "none.json: cannot be read (No such file", "sensitivity wrote"),
        ("sensitivity {pt} --ratios 0.5,0.25", "--ratios: 0.5, 0.25 are no rising shares", "between 0 and 1"),
        ("sensitivity {pt} --ratios 0.5,0.5", "--ratios: 0.5, 0.5 are no rising shares", "between 0 and 1"),
        ("sensitivity {pt} --ratios 0.5,1", "--ratios: 0.5, 1 are no rising shares", "between 0 and 1"),
        ("sensitivity {pt} --ratios 0.5,nan", "--ratios: 'nan' is of the wrong type", "use a list of numbers"),
        ("sensitivity {pt} --ratios half", "--ratios: 'half' is of the wrong type", "use a list of numbers"),
        ("sensitivity {pt} --metric map", "--metric: unknown metric map", "use map50 or loss"),
        ("sensitivity {pt} --images 0", "--images: 0 is out of range", "use a whole number from 1"),
        ("sensitivity {pt} --criterion magic", "--criterion: unknown criterion magic", "use bn-gamma, l1"),
        ("sensitivity {pt} --name a/b", "--name: 'a/b' is no folder name", "without slashes"),
        ("sensitivity {pt} --data none.yaml", "none.yaml: there is no such file", "name a data.yaml"),
        ("sensitivity {pt} --device tpu", "--device: unknown device tpu", "use auto, cpu"),
        ("sensitivity none.pt", "none.pt: cannot be read", "name a .pt file"),
        ("sensitivity", "CHECKPOINT: no checkpoint of train below runs", "run yoloprune train first"),
        ("plan", "CHECKPOINT: no checkpoint of train below runs", "run yoloprune train first"),
        ("sensitivity --resume", "runs/sensitivity/sensitivity.json: there is nothing to resume", "name a run"),
        ("sensitivity --resume --name a", "runs/a/sensitivity.json: there is nothing to resume", "name a run"),
    ],
)  # fmt: skip
def test_bad_words_for_pruning(cli: Cli, trained: Path, spoiled: Path, words: str, place: str, right: str) -> None:
    Path("broken.json").write_text('{\n"format" "yolo_prune plan"}')
    Path("list.json").write_text("[]")
    Path("spare.yaml").write_text("spare: three\n")
    other = parse_cfg(TINY_CFG.replace("filters=16", "filters=20"))
    keep = np.ones(make_channel_graph(other).size, dtype=bool)
    save_plan(Path("other.json"), other, BlockPlan((), Plan(keep)), {})
    files = set(Path().iterdir())
    check(cli(*words.format(pt=trained).split()), place.format(pt=trained), right)
    assert set(Path().iterdir()) == files


def test_bench_asks_for_its_engine_before_it_scores(cli: Cli, trained: Path) -> None:
    outcome = cli("bench", trained, "--engine", "half", "--device", "cpu")
    assert outcome.code == 2
    assert outcome.err == "error: --engine: half runs on CUDA, not on cpu; use device cuda, or another engine\n"


def test_a_checkpoint_whose_data_set_is_missing(cli: Cli, data: Path, tiny_cfg: Path) -> None:
    assert cli("train", "--data", data, "--cfg", tiny_cfg, "--epochs", 1, "--batch-size", 12).code == 0
    shutil.rmtree("hands")
    for words, otherwise in (
        ("prune --one-shot --ratio 0.5", ", or use --recalibrate 0"),
        (
            "prune --one-shot --criterion taylor --fold mean",
            ", or use another --criterion and --fold leaky and --recalibrate 0",
        ),
        ("plan --drop-blocks 1", ", or use --drop-blocks 0"),
        ("bench", ", or use --no-score"),
        ("evaluate", ""),
        ("sensitivity", ""),
    ):
        outcome = cli(*words.split())
        assert outcome.code == 2
        assert outcome.err.startswith("error: --data: the checkpoint was trained on ")
        assert outcome.err.endswith(f"which is not there; name a data.yaml{otherwise}\n")
    assert {path.name for path in Path("runs").iterdir()} == {"train", "latest.json"}


def test_a_mistake_leaves_its_name_free(cli: Cli, data: Path, tiny_cfg: Path) -> None:
    words = ("train", "--data", data, "--cfg", tiny_cfg, "--epochs", 1, "--batch-size", 12, "--name", "mine")
    label = Path(LABEL)
    right = label.read_text()
    label.write_text("0 0.5")
    check(cli(*words), f"{LABEL}:1: ", "write class")
    label.write_text(right)
    assert cli(*words).out == "runs/mine/best.pt\n"


def test_a_folder_that_cannot_be_written(cli: Cli, trained: Path, hands: Path) -> None:
    Path("runs").write_text("in the way")
    outcome = cli("prune", "--one-shot", trained, "--ratio", 0.5, "--recalibrate", 0, "--criterion", "l2")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: runs: is no folder; ")
