"""Darknet cfg files, weights of Darknet and of other projects, names of classes."""

from __future__ import annotations

from fuzzing.grammars import cfg_texts
from fuzzing.targets.making import as_text, make_target

IMPORT = "import base/tiny.cfg --out out.pt"
NETWORKS = (
    make_target(
        "cfg",
        {"a.cfg": "tiny.cfg"},
        "cfg show FILE",
        "cfg show FILE --img-size 96",
        "import FILE --out out.pt",
        "data anchors base/hands/data.yaml --cfg FILE",
        damage=as_text,
        texts=lambda sound: cfg_texts(),
    ),
    make_target("cfg bytes", {"a.cfg": "tiny.cfg"}, "cfg show FILE", "import FILE --out out.pt"),
    make_target(
        "weights",
        {"a.weights": "tiny.weights", "a.conv.3": "tiny.conv.3"},
        f"{IMPORT} --weights FILE",
        f"{IMPORT} --weights FILE --prefix",
    ),
    make_target(
        "state dict",
        {"a.pth": "foreign.pth", "legacy.pth": "legacy.pth", "nested.pt": "nested.pt"},
        f"{IMPORT} --weights FILE",
    ),
    make_target("names", {"a.names": "a.names"}, f"{IMPORT} --names FILE", damage=as_text),
)
