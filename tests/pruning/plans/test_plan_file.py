from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import make_plan_at_random, make_small_network, networks, randomise_

from yolo_prune.darknet.architectures import make_network
from yolo_prune.darknet.layers import Conv, Shortcut
from yolo_prune.darknet.network import Network
from yolo_prune.errors import PlanError
from yolo_prune.model.detector import Detector
from yolo_prune.pruning.blocks import drop_blocks, find_blocks, pick_blocks
from yolo_prune.pruning.channels import ChannelGraph, make_channel_graph
from yolo_prune.pruning.plans.plan import Plan, check_plan
from yolo_prune.pruning.plans.plan_file import (
    FORMAT,
    BlockPlan,
    format_plan,
    load_plan,
    measure_network_sha256,
    parse_plan,
    save_plan,
)
from yolo_prune.pruning.surgery.rebuild import cut_blocks, rebuild

NETWORK = make_small_network(
    Conv(6, 3, 1, 1),
    Conv(3, 1),
    Conv(6, 3, 1, 1),
    Shortcut(0),  # 3
    Conv(2, 1),
    Conv(6, 3, 1, 1),
    Shortcut(3),  # 6
    Conv(4, 1),
)
"""Ids: image 0-2, layers 0, 2 and 5 from 3 on, layer 1 from 9, layer 4 from 12, layer 7 from 14, head from 18 to 23."""
YOLOV3 = make_network("yolov3", width=0.05)

Place = tuple[str | int, ...]
"""Keys and numbers that lead to a value in plain data."""
MISSING = object()


def make_plan_of(dropped: Sequence[int], blocks: Sequence[int] = ()) -> BlockPlan:
    """Return a plan for `NETWORK` without the given blocks."""
    picked = pick_blocks(NETWORK, blocks)
    keep = np.ones(make_channel_graph(drop_blocks(NETWORK, picked)).size, dtype=bool)
    keep[list(dropped)] = False
    return BlockPlan(picked, Plan(keep))


MADE = make_plan_of([3, 8, 10, 14, 16])


def put(content: Any, place: Place, value: Any) -> Any:
    """Return a copy of plain data with another value at a place, or nothing there."""
    if not place:
        return value
    first, *rest = place
    changed = copy.copy(content)
    if rest:
        changed[first] = put(content[first], tuple(rest), value)
    elif value is MISSING:
        del changed[first]
    else:
        changed[first] = value
    return changed


def is_same_plan(one: BlockPlan, other: BlockPlan) -> bool:
    return one.blocks == other.blocks and np.array_equal(one.plan.keep, other.plan.keep)


def keep_one_per_group(graph: ChannelGraph, plan: Plan) -> Plan:
    """Return the plan with the first channel of every group that it would empty."""
    keep = plan.keep.copy()
    for group in graph.groups:
        keep[group.ids[0]] |= not keep[group.ids].any()
    return Plan(keep)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where a plan may be written, again and again."""
    return tmp_path_factory.mktemp("plan") / "plan.json"


@pytest.fixture
def text(path: Path) -> str:
    """Return a plan as it is written."""
    return save_plan(path, NETWORK, MADE, {}).read_text()


@given(networks(), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_a_plan_is_read_as_it_was_written(path: Path, network: Network, seed: int) -> None:
    graph = make_channel_graph(network)
    made = BlockPlan((), keep_one_per_group(graph, make_plan_at_random(graph, seed)))
    assert save_plan(path, network, made, {"seed": seed}) == path
    assert is_same_plan(load_plan(path, network), made)
    assert parse_plan(format_plan(network, made), network, "here").plan.keep.tolist() == made.plan.keep.tolist()


@given(st.sets(st.sampled_from(find_blocks(YOLOV3))), st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_cut_blocks_are_read_as_they_were_written(path: Path, cut: set[Any], seed: int) -> None:
    blocks = pick_blocks(YOLOV3, [block.shortcut for block in cut])
    graph = make_channel_graph(drop_blocks(YOLOV3, blocks))
    made = BlockPlan(blocks, keep_one_per_group(graph, make_plan_at_random(graph, seed)))
    assert is_same_plan(load_plan(save_plan(path, YOLOV3, made, {}), YOLOV3), made)


def test_a_plan_file_by_hand(path: Path) -> None:
    facts = {"checkpoint": "a.pt", "before": {"params": 9, "layers": [1]}, "dropped_blocks": []}
    assert save_plan(path, NETWORK, MADE, facts).read_text() == (
        "{\n"
        '  "format": "yolo_prune plan",\n'
        '  "format_version": 1,\n'
        f'  "network": "{measure_network_sha256(NETWORK)}",\n'
        '  "blocks": [],\n'
        '  "checkpoint": "a.pt",\n'
        '  "before": {\n'
        '    "params": 9,\n'
        '    "layers": [\n'
        "      1\n"
        "    ]\n"
        "  },\n"
        '  "dropped_blocks": [],\n'
        '  "groups": [\n'
        '    {"layers": [0, 2, 5], "channels": 6, "drop": [0, 5]},\n'
        '    {"layers": [1], "channels": 3, "drop": [1]},\n'
        '    {"layers": [4], "channels": 2, "drop": []},\n'
        '    {"layers": [7], "channels": 4, "drop": [0, 2]}\n'
        "  ]\n"
        "}\n"
    )
    assert is_same_plan(load_plan(path, NETWORK), MADE)


def test_groups_are_those_of_the_network_that_is_left() -> None:
    made = make_plan_of([4, 9 + 2, 12 + 3], blocks=[6])
    assert format_plan(NETWORK, made)["blocks"] == [6]
    assert format_plan(NETWORK, made)["groups"] == [
        {"layers": [0, 2], "channels": 6, "drop": [1]},
        {"layers": [1], "channels": 3, "drop": [2]},
        {"layers": [4], "channels": 4, "drop": [3]},  # layer 7 once the block is cut
    ]


@given(networks(), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_every_group_has_a_line_of_its_own(path: Path, network: Network, seed: int) -> None:
    graph = make_channel_graph(network)
    made = BlockPlan((), make_plan_at_random(graph, seed))
    written = save_plan(path, network, made, {}).read_text()
    lines = [line.strip().rstrip(",") for line in written.splitlines() if line.strip().startswith('{"layers"')]
    groups = json.loads(written)["groups"]
    assert [json.loads(line) for line in lines] == groups
    free = [group for group in graph.groups if not group.frozen]
    assert [(tuple(group["layers"]), group["channels"]) for group in groups] == [
        (group.writers, len(group.ids)) for group in free
    ]
    assert sum(len(group["drop"]) for group in groups) == (~made.plan.keep).sum()


def test_what_the_file_says_is_what_is_rebuilt(path: Path, text: str) -> None:
    path.write_text(text.replace('"channels": 3, "drop": [1]', '"channels": 3, "drop": [2, 0]'))
    made = load_plan(path, NETWORK)
    assert np.flatnonzero(made.plan.keep != MADE.plan.keep).tolist() == [9, 10, 11]
    model = randomise_(Detector(NETWORK))
    before, after = model.state_dict(), rebuild(model, made.plan).state_dict()
    assert torch.equal(after["layers.1.conv.weight"], before["layers.1.conv.weight"][[1]][:, [1, 2, 3, 4]])
    assert torch.equal(after["layers.1.bn.weight"], before["layers.1.bn.weight"][[1]])
    assert torch.equal(after["layers.2.conv.weight"], before["layers.2.conv.weight"][[1, 2, 3, 4]][:, [1]])
    assert torch.equal(after["layers.7.conv.weight"], before["layers.7.conv.weight"][[1, 3]][:, [1, 2, 3, 4]])


def test_a_block_written_into_the_file_is_cut(path: Path) -> None:
    content = format_plan(NETWORK, MADE)
    content["blocks"] = [6]
    content["groups"] = [
        {"layers": [4], "channels": 4, "drop": [1]},
        {"layers": [1], "channels": 3, "drop": []},
        {"layers": [0, 2], "channels": 6, "drop": [0], "note": "in any order, and with a note"},
    ]
    path.write_text(json.dumps(content))
    made = load_plan(path, NETWORK)
    assert is_same_plan(made, make_plan_of([3, 12 + 1], blocks=[6]))
    model = randomise_(Detector(NETWORK))
    slim = rebuild(cut_blocks(model, made.blocks), made.plan).state_dict()
    expected = model.state_dict()["layers.7.conv.weight"][[0, 2, 3]][:, 1:]
    assert torch.equal(slim["layers.4.conv.weight"], expected)


@given(networks(), st.integers(0, 999), st.data())
@settings(max_examples=30, deadline=None)
def test_an_edit_changes_what_was_edited_alone(network: Network, seed: int, data: st.DataObject) -> None:
    graph = make_channel_graph(network)
    made = BlockPlan((), keep_one_per_group(graph, make_plan_at_random(graph, seed)))
    content = format_plan(network, made)
    if not content["groups"]:
        return
    number = data.draw(st.integers(0, len(content["groups"]) - 1))
    group = [group for group in graph.groups if not group.frozen][number]
    drop = data.draw(st.lists(st.integers(0, len(group.ids) - 1), max_size=len(group.ids) - 1))  # perhaps some twice
    expected = made.plan.keep.copy()
    expected[group.ids] = [channel not in drop for channel in range(len(group.ids))]
    edited = parse_plan(put(content, ("groups", number, "drop"), drop), network, "here")
    assert edited.plan.keep.tolist() == expected.tolist()


def test_a_number_written_twice_counts_once() -> None:
    content = format_plan(NETWORK, MADE)
    twice = put(content, ("groups", 0, "drop"), [5, 0, 5, 0, 0])
    assert is_same_plan(parse_plan(twice, NETWORK, "here"), MADE)
    cut = format_plan(NETWORK, make_plan_of([], blocks=[3, 6]))
    assert parse_plan(put(cut, ("blocks",), [6, 3, 6]), NETWORK, "here").blocks == pick_blocks(NETWORK, [3, 6])


ANOTHER = "was made for another network; make a plan for this one with yoloprune plan"
NO_PLAN = "is not a plan; name a file that yoloprune plan wrote"
NO_LIST = "is no list of whole numbers from 0 on; write [3, 7, …]"
NO_GROUP = "is no group that can be pruned; name each group once, by the layers that yoloprune plan gives"
NO_BLOCK = "ends no residual block that can be cut; name one of 3, 6"


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ((), [], f"p.json: {NO_PLAN}"),
        ((), None, f"p.json: {NO_PLAN}"),
        ((), {}, f"p.json: {NO_PLAN}"),
        (("format",), "yolo_prune sensitivity", f"p.json: {NO_PLAN}"),
        (("format_version",), 2, "p.json: has format version 2; this version reads format 1"),
        (("format_version",), MISSING, "p.json: has format version None; this version reads format 1"),
        (("network",), measure_network_sha256(YOLOV3), f"p.json: {ANOTHER}"),
        (("network",), MISSING, f"p.json: {ANOTHER}"),
        (("blocks",), MISSING, f"p.json: blocks: None {NO_LIST}"),
        (("blocks",), 3, f"p.json: blocks: 3 {NO_LIST}"),
        (("blocks",), [True], f"p.json: blocks: [True] {NO_LIST}"),
        (("blocks",), [3, 5], f"p.json: blocks: layer 5 {NO_BLOCK}"),
        (("blocks",), [99], f"p.json: blocks: layer 99 {NO_BLOCK}"),
        (("blocks",), [3], "p.json: groups[0]: layer 0, 2, 5 " + NO_GROUP),
        (("groups",), {}, 'p.json: groups: is no list; write [{"layers": …, "channels": …, "drop": …}, …]'),
        (("groups",), MISSING, 'p.json: groups: is no list; write [{"layers": …, "channels": …, "drop": …}, …]'),
        (("groups",), [], "p.json: groups: lacks the group of layer 0, 2, 5; name every group"),
        (("groups", 3), MISSING, "p.json: groups: lacks the group of layer 7; name every group"),
        (("groups", 1), None, f"p.json: groups[1]: layers: None {NO_LIST}"),
        (("groups", 1), [[1], 3, []], f"p.json: groups[1]: layers: None {NO_LIST}"),
        (("groups", 1, "layers"), MISSING, f"p.json: groups[1]: layers: None {NO_LIST}"),
        (("groups", 1, "layers"), 1, f"p.json: groups[1]: layers: 1 {NO_LIST}"),
        (("groups", 1, "layers"), ["1"], f"p.json: groups[1]: layers: ['1'] {NO_LIST}"),
        (("groups", 1, "layers"), [3], f"p.json: groups[1]: layer 3 {NO_GROUP}"),
        (("groups", 1, "layers"), [8], f"p.json: groups[1]: layer 8 {NO_GROUP}"),  # the head's, frozen
        (("groups", 0, "layers"), [0, 2], f"p.json: groups[0]: layer 0, 2 {NO_GROUP}"),
        (("groups", 0, "layers"), [5, 2, 0], f"p.json: groups[0]: layer 5, 2, 0 {NO_GROUP}"),
        (("groups", 2, "layers"), [1], "p.json: groups[2]: layer 1 is listed twice; name each group once, by the "),
        (("groups", 3, "channels"), 5, "p.json: groups[3]: channels: layer 7 has 4 channels; write 4"),
        (("groups", 3, "channels"), MISSING, "p.json: groups[3]: channels: layer 7 has 4 channels; write 4"),
        (("groups", 3, "channels"), "4", "p.json: groups[3]: channels: layer 7 has 4 channels; write 4"),
        (("groups", 3, "drop"), MISSING, f"p.json: groups[3]: drop: None {NO_LIST}"),
        (("groups", 3, "drop"), "0, 2", f"p.json: groups[3]: drop: '0, 2' {NO_LIST}"),
        (("groups", 3, "drop"), [0, 4], "p.json: groups[3]: drop: layer 7 has no channel 4; use 0 … 3"),
        (("groups", 3, "drop"), [10**30], f"p.json: groups[3]: drop: layer 7 has no channel {10**30}; use 0 … 3"),
        (("groups", 3, "drop"), [0, -1], f"p.json: groups[3]: drop: [0, -1] {NO_LIST}"),
        (("groups", 3, "drop"), [0, True], f"p.json: groups[3]: drop: [0, True] {NO_LIST}"),
        (("groups", 3, "drop"), [1.0], f"p.json: groups[3]: drop: [1.0] {NO_LIST}"),
        (("groups", 3, "drop"), [3, 2, 1, 0], "p.json: groups[3]: drop: leaves layer 7 no channel; keep at least one"),
        (("groups", 2, "drop"), [1, 0, 1], "p.json: groups[2]: drop: leaves layer 4 no channel; keep at least one"),
        (("groups", 0, "drop"), [6], "p.json: groups[0]: drop: layer 0, 2, 5 has no channel 6; use 0 … 5"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(place: Place, value: Any, said: str) -> None:
    content = put(format_plan(NETWORK, MADE), place, value)
    with pytest.raises(PlanError) as caught:
        parse_plan(content, NETWORK, "p.json")
    assert str(caught.value).startswith(said)
    if not said.endswith(" "):
        assert str(caught.value) == said


def test_a_plan_for_a_pruned_network_is_for_another(path: Path, text: str) -> None:
    slim = rebuild(Detector(NETWORK), MADE.plan).network
    with pytest.raises(PlanError) as caught:
        load_plan(path, slim)
    assert str(caught.value) == f"{path}: {ANOTHER}"


def test_a_broken_line_is_named(path: Path, text: str) -> None:
    lines = text.splitlines()
    number = next(number for number, line in enumerate(lines) if '"layers": [1]' in line)
    lines[number] = lines[number].removesuffix(",")
    path.write_text("\n".join(lines))
    with pytest.raises(PlanError) as caught:
        load_plan(path, NETWORK)
    assert str(caught.value) == f"{path}:{number + 2}: is not JSON (Expecting ',' delimiter); correct that line"


@pytest.mark.parametrize("written", [b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_text_is_rejected(path: Path, written: bytes) -> None:
    path.write_bytes(written)
    with pytest.raises(PlanError) as caught:
        load_plan(path, NETWORK)
    assert str(caught.value) == f"{path}: cannot be read (it is no JSON text); name a file that yoloprune plan wrote"


def test_a_number_of_thousands_of_digits_is_rejected(path: Path) -> None:
    path.write_text(f"[{'1' * 5000}]")
    with pytest.raises(PlanError):  # by Python's reader or, where that has no limit, by ours
        load_plan(path, NETWORK)


def test_a_file_that_is_not_there_is_rejected(tmp_path: Path) -> None:
    for place, reason in ((tmp_path / "no.json", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(PlanError) as caught:
            load_plan(place, NETWORK)
        assert str(caught.value) == f"{place}: cannot be read ({reason}); name a file that yoloprune plan wrote"


def test_a_file_cut_short_anywhere_is_rejected(path: Path, text: str) -> None:
    for length in range(len(text) - 1):  # the last is a line break, which may be missing
        path.write_text(text[:length])
        with pytest.raises(PlanError):
            load_plan(path, NETWORK)
    path.write_text(text[:-1])
    assert is_same_plan(load_plan(path, NETWORK), MADE)


VALID = format_plan(NETWORK, make_plan_of([3, 9], blocks=[6])) | {"before": {"params": 1}}
KEYS = st.sampled_from(("format", "network", "blocks", "groups", "layers", "channels", "drop", "before"))
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 8)
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from((FORMAT, [0, 2], [1], [4], [], {}))
)
VALUES: st.SearchStrategy[Any] = st.deferred(
    lambda: LEAVES | st.lists(VALUES, max_size=4) | st.dictionaries(KEYS | st.text(max_size=3), VALUES, max_size=4)
)


def list_places(content: Any) -> list[Place]:
    """Return every place in plain data, the whole first."""
    pairs: Sequence[tuple[str | int, Any]] = ()
    if isinstance(content, dict):
        pairs = list(content.items())
    elif isinstance(content, list):
        pairs = list(enumerate(content))
    return [(), *((key, *place) for key, value in pairs for place in list_places(value))]


def parse_or_catch(content: Any) -> BlockPlan | PlanError:
    try:
        return parse_plan(json.loads(json.dumps(content)), NETWORK, "p.json")
    except PlanError as error:
        return error


@given(st.lists(st.tuples(st.sampled_from(list_places(VALID)), VALUES | st.just(MISSING)), min_size=1, max_size=2))
@settings(max_examples=120, deadline=None)
def test_anything_anywhere_is_a_plan_or_a_plan_error(edits: list[tuple[Place, Any]]) -> None:
    content: Any = VALID
    for place, value in edits:
        if place in list_places(content) and (place or value is not MISSING):
            content = put(content, place, value)
    parsed = parse_or_catch(content)
    if isinstance(parsed, BlockPlan):
        check_plan(make_channel_graph(drop_blocks(NETWORK, parsed.blocks)), parsed.plan)
        return
    assert parsed.where is not None
    assert parsed.where.startswith("p.json")
    assert parsed.right
    assert "\n" not in str(parsed)


@given(st.binary(max_size=30) | st.text(max_size=30).map(lambda text: text.encode(errors="surrogatepass")))
@settings(max_examples=60, deadline=None)
def test_any_file_at_all_is_rejected(path: Path, written: bytes) -> None:
    path.write_bytes(written)
    with pytest.raises(PlanError) as caught:
        load_plan(path, NETWORK)
    assert str(caught.value).startswith(str(path))
