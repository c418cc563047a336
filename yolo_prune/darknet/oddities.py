"""What a cfg may say that Darknet allows, but that may not be meant."""

from __future__ import annotations

from collections.abc import Iterator

from yolo_prune.darknet.sections import Section, split_sections
from yolo_prune.darknet.squeeze import is_ambiguous


def find_oddities(text: str, source: str) -> Iterator[str]:
    """Yield what may not be meant: keys that are set twice, a sigmoid that is taken twice, an activation that is guessed."""
    before: Section | None = None
    is_told = False
    for section in split_sections(text, source):
        if is_ambiguous(section) and not is_told:
            is_told = True
            yield f"{section.where()}: [se] is read with activation=logistic; write activation=hard_sigmoid below it if it was trained with that"
        for key, line in section.repeated:
            yield f"{source}:{line}: {key} is set twice in [{section.name}]; as in Darknet, the first value counts: {section.values[key][0]}"
        is_new = section.values.get("new_coords", ("0", 0))[0].strip() not in ("", "0")
        if section.name == "yolo" and before is not None and not is_new:
            activation = before.values.get("activation", ("logistic", 0))[0]
            if activation == "logistic":
                yield (
                    f"{before.where('activation')}: the convolution before [yolo] is logistic, so that a sigmoid is taken twice, as in Darknet; "
                    "new_coords=1 in [yolo] takes it once"
                )
        before = section
