"""The table of all targets, in groups that are run together."""

from __future__ import annotations

from fuzzing.case import Target
from fuzzing.targets.annotations import ANNOTATIONS
from fuzzing.targets.checkpoints import CHECKPOINTS
from fuzzing.targets.exported import EXPORTED
from fuzzing.targets.media import MEDIA
from fuzzing.targets.networks import NETWORKS
from fuzzing.targets.options import OPTIONS
from fuzzing.targets.runs import RUNS

GROUPS: dict[str, tuple[Target, ...]] = {
    "networks": NETWORKS,
    "checkpoints": CHECKPOINTS,
    "annotations": ANNOTATIONS,
    "media": MEDIA,
    "runs": RUNS,
    "options": OPTIONS,
    "exported": EXPORTED,
}


def choose(names: list[str]) -> list[Target]:
    """Return targets by their names or those of their groups; all without any.

    Raises:
        LookupError: there is no such target; the message is the name.
    """
    every = {target.name: target for group in GROUPS.values() for target in group}
    chosen: dict[str, Target] = {}
    for name in names or GROUPS:
        found = GROUPS.get(name, (every[name],) if name in every else ())
        if not found:
            raise LookupError(name)
        chosen |= {target.name: target for target in found}
    return list(chosen.values())
