"""What lies beside exported files: a model card in Markdown, and an example for each that runs in Python.

Source of what a card states: M. Mitchell et al., Model Cards for Model Reporting, 2019, section 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolo_prune.darknet.cost import measure_cost
from yolo_prune.darknet.network import Network
from yolo_prune.engines.exported.metadata import INPUT, Metadata
from yolo_prune.export.example import has_example, make_example_program
from yolo_prune.export.formats import FORMATS, measure_bytes
from yolo_prune.files import save_text
from yolo_prune.model.checkpoint import Checkpoint
from yolo_prune.version import __version__

RECIPE_KEYS = ("epochs", "batch_size", "optimizer", "learning_rate", "sparsity", "ratio", "criterion", "seed")
"""Settings of the stage that made the checkpoint which a card shows, where the stage has them."""
EXPORTED_BY = "- Exported by yolo_prune"
"""How a card's line begins that names the checkpoint which the files were made from."""
_CHANGES = {
    "none": "One image at a time, of this size",
    "batch": "Any number of images at a time, of this size",
    "size": "Any number of images at a time, of any sides that are multiples of 32 px",
}
_RAW_INPUT = (
    "float32 ({channels}, {height}, {width}), {colours}, 0 to 1. Scores here are those of images that are resized to just fit in, by area to shrink "
    "and linearly to enlarge, in the middle of grey 114/255; Darknet and OpenCV resize and pad as their own options say."
)
_RAW_OUTPUT = (
    "The convolution before each `[yolo]` layer gives, for every anchor and cell, x, y, width, height, objectness and a value for each "
    "class; the reader decodes them as the cfg says, and does NMS, per class, at IoU 0.5."
)


@dataclass(frozen=True)
class CardFacts:
    """What a model card is written from."""

    checkpoint: Checkpoint
    """The one that the files were made from, at the size that they have."""
    sha256: str
    """That of the checkpoint's file."""
    files: Mapping[str, Path]
    """The files by format."""
    metadata: Mapping[str, Metadata]
    """What each file that runs by itself says of itself, by format."""
    comparisons: Mapping[str, str] = field(default_factory=dict)
    """How near the outputs of a file are to the checkpoint's, in words, by format."""
    scores: Mapping[str, str] = field(default_factory=dict)
    """What a file scores, with interval, images and split, in words, by format."""


def write_card(stem: Path, facts: CardFacts) -> Path:
    """Write a model card, STEM.md, and an example for each file that runs in Python; return the card's path.

    Args:
        stem: path of the files without what ends their names.
        facts: what to state.

    Raises:
        OutputError: a file cannot be written.
    """
    programs = {name: f"{stem.name}_{name}.py" for name in facts.metadata if has_example(name)}
    for name, program in programs.items():
        text = make_example_program(name, facts.files[name].name, program, facts.metadata[name])
        save_text(stem.with_name(program), text)
    return save_text(stem.with_name(f"{stem.name}.md"), format_card(stem.name, facts, programs))


def quote_data(path: Path) -> str:
    """Return the name of a data set as Markdown: its file and the folder around it, not where that lies."""
    return _quote("/".join(path.parts[-2:]))


def format_card(title: str, facts: CardFacts, programs: Mapping[str, str]) -> str:
    """Return the text of a model card.

    Args:
        title: its heading.
        facts: what to state.
        programs: the name of the example of each format that has one.
    """
    parts = {
        "Files": _list_files(facts, programs),
        "Use": _explain_use(facts, programs),
        "Input": _explain_input(facts),
        "Output": _explain_output(facts),
        "Scores": _list_scores(facts),
        "How it was made": _explain_origin(facts),
        "Licence": _explain_licence(),
        "Limits": _list_limits(facts),
    }
    cost, checkpoint = measure_cost(facts.checkpoint.network), facts.checkpoint
    heading = (
        f"An object detector of the YOLO family, for {', '.join(map(_quote, checkpoint.names))}. {cost.params:,} params, "
        f"{cost.macs / 1e9:.3f} G MACs at {checkpoint.img_size} px, {cost.size_bytes / 1e6:.2f} MB as float32."
    )
    sections = [f"## {name}\n\n" + "\n".join(lines) for name, lines in parts.items()]
    return "\n\n".join([f"# {_escape(title)}", heading, *sections]) + "\n"


def _list_files(facts: CardFacts, programs: Mapping[str, str]) -> Iterator[str]:
    yield "| file | runs in | precision | size | example |"
    yield "| --- | --- | --- | --- | --- |"
    for name, path in facts.files.items():
        precision = facts.metadata[name].precision if name in facts.metadata else "fp32"
        size = f"{measure_bytes(path) / 1e6:.2f} MB"
        program = _quote(programs[name]) if name in programs else "–"
        file, program = (cell.replace("|", "\\|") for cell in (_quote(path.name), program))
        yield f"| {file} | {FORMATS[name].runs_in} | {precision} | {size} | {program} |"


def _explain_use(facts: CardFacts, programs: Mapping[str, str]) -> Iterator[str]:
    yield "It finds objects of its classes in images, as boxes with scores from 0 to 1."
    yield ""
    names = ", ".join(f"{number} {_quote(name)}" for number, name in enumerate(facts.checkpoint.names))
    yield f"- Classes: {names}."
    for program in programs.values():
        yield f"- {_quote(f'python {program} IMAGE.npy')} prints what it finds; it needs NumPy and the runtime alone."
    for name, path in facts.files.items():
        if name in facts.metadata and FORMATS[name].is_run_here:
            yield f"- {_quote(f'yoloprune detect {path.name} photos')} draws what it finds."


def _explain_input(facts: CardFacts) -> Iterator[str]:
    size, channels = facts.checkpoint.img_size, facts.checkpoint.network.channels
    colours = "RGB" if channels == 3 else "grey"
    for names, (dynamic,) in _group(facts, lambda fact: (fact.dynamic,)):
        batch = "1" if dynamic == "none" else "batch"
        sides = "height, width" if dynamic == "size" else f"{size.height}, {size.width}"
        yield f"- {names}: shape ({batch}, 3, {sides}). {_CHANGES[dynamic]}."
    if facts.metadata:
        yield f"- {INPUT}"
    if names := _quote_raw(facts):
        text = _RAW_INPUT.format(channels=channels, height=size.height, width=size.width, colours=colours)
        yield f"- {names}: {text}"


def _explain_output(facts: CardFacts) -> Iterator[str]:
    network = facts.checkpoint.network
    for names, (outputs, dynamic, has_nms) in _group(
        facts, lambda fact: (fact.outputs, fact.dynamic, fact.nms is not None)
    ):
        yield f"- {names}: {outputs}"
        if not has_nms:
            batch = "1" if dynamic == "none" else "any"
            yield f"  At {network.img_size} px N is {_count_boxes(network):,}; classes is {network.classes}, batch is {batch}."
    if names := _quote_raw(facts):
        yield f"- {names}: {_RAW_OUTPUT}"


def _list_scores(facts: CardFacts) -> Iterator[str]:
    for name, said in facts.scores.items():
        yield f"- {_quote(facts.files[name].name)}: {said}."
    metrics = _get(facts.checkpoint.provenance, "metrics")
    on_val, after = metrics.get("val_map50"), metrics.get("map50_after")
    if isinstance(on_val, float):
        yield (
            f"- The checkpoint, in training: AP50 {on_val:.4f} on the val split of {_name_data(facts.checkpoint)}, by which its "
            "epoch was chosen, which makes it too good. No interval was measured."
        )
    if isinstance(after, float):
        yield (
            f"- The checkpoint, after it was pruned: AP50 {after:.4f} on {metrics.get('scored_images')} images of the val split of "
            f"{_name_data(facts.checkpoint)}. No interval was measured."
        )
    if not facts.scores:
        yield (
            "- On images that training did not see: not measured. `yoloprune export --verify-map` measures AP50 with its 95 % "
            "interval, and writes it here."
        )
    for name, said in facts.comparisons.items():
        yield f"- {_quote(facts.files[name].name)}: {said}."
    for name in facts.metadata:
        if name not in facts.comparisons and name not in facts.scores:
            yield f"- {_quote(facts.files[name].name)}: its outputs were not compared with the checkpoint's."


def _explain_origin(facts: CardFacts) -> Iterator[str]:
    provenance = facts.checkpoint.provenance
    stage, version = provenance.get("stage"), provenance.get("version")
    recipe, parent = _get(provenance, "recipe"), _get(provenance, "parent")
    made = f", which {_quote(f'yoloprune {stage}')} made" if stage else ""
    by = f" with yolo_prune {version}" if version else ""
    yield f"{EXPORTED_BY} {__version__} from the checkpoint with SHA-256 {facts.sha256}{made}{by}."
    if chosen := {key: recipe[key] for key in RECIPE_KEYS if recipe.get(key) is not None}:
        yield f"- Its settings: {', '.join(_quote(f'{key}: {value}') for key, value in chosen.items())}."
    if parent.get("sha256"):
        yield f"- Made from the checkpoint with SHA-256 {parent['sha256']}."
    fingerprint = _get(provenance, "data").get("fingerprint")
    yield f"- Data: {_name_data(facts.checkpoint)}{f', fingerprint {fingerprint}' if fingerprint else ''}."


def _explain_licence() -> Iterator[str]:
    yield (
        "Unknown. The checkpoint does not say under which licence its weights may be used: that depends on the images, the labels "
        "and the weights that it was trained from. Find out, and state it here, before you pass the files on."
    )


def _list_limits(facts: CardFacts) -> Iterator[str]:
    size = facts.checkpoint.img_size
    yield "- It finds the classes above and no others, and was made for images like those of its data set; how well it does on others was not measured."
    yield f"- Images are shrunk to {size} px: objects that are a few pixels large there are easily missed."
    yield "- Scores rank detections; they are no probabilities. Choose the least score that counts on images of your own."
    if any(fact.precision == "int8" for fact in facts.metadata.values()):
        yield "- The ranges of int8 were measured on training images; on very different images they may be too narrow."
    if any(not FORMATS[name].is_run_here for name in facts.metadata):
        yield "- Core ML files were converted, and not run: compare their outputs on one of Apple's systems first."
    yield "- It was not tested for uses in which a missed or a false detection harms somebody."


def _group(facts: CardFacts, key: Any) -> Iterator[tuple[str, Any]]:
    """Yield the quoted names of the files for which a value of their metadata is the same, and that value."""
    groups: dict[Any, list[str]] = {}
    for name, fact in facts.metadata.items():
        groups.setdefault(key(fact), []).append(_quote(facts.files[name].name))
    for value, names in groups.items():
        yield ", ".join(names), value


def _quote_raw(facts: CardFacts) -> str:
    """Return the quoted names of the files that hold weights alone."""
    return ", ".join(_quote(path.name) for name, path in facts.files.items() if name not in facts.metadata)


def _count_boxes(network: Network) -> int:
    """Return how many boxes a network gives for an image, before NMS."""
    shapes = ((head, network.shapes[index]) for index, head in network.heads)
    return sum(len(head.mask) * shape.height * shape.width for head, shape in shapes)


def _name_data(checkpoint: Checkpoint) -> str:
    """Return the quoted name of the data set that a checkpoint was trained on."""
    path = _get(checkpoint.provenance, "data").get("path")
    return "a data set that the checkpoint does not name" if path is None else quote_data(Path(path))


def _get(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a part of the provenance, which a file may lack."""
    part = values.get(key)
    return part if isinstance(part, Mapping) else {}


def _quote(text: str) -> str:
    """Return text as a code span of one line."""
    plain = " ".join(text.split())
    return f"`` {plain} ``" if "`" in plain else f"`{plain}`"


def _escape(text: str) -> str:
    """Return text so that Markdown shows it as it is."""
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>#|" else sign for sign in text)
