"""Hold what scripts/oracle_write.py wrote against OpenCV 4's reading of it: python scripts/oracle_compare.py FOLDER

Needs OpenCV 4 and numpy and nothing else; OpenCV 5 has no Darknet importer. Prints one line per network and exits 1
unless all of them agree.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

TOLERANCE = 1e-3
"""The largest absolute difference between two raw outputs that is rounding."""

Outputs = dict[str, NDArray[np.float64]]


def main() -> None:
    """Compare every network in the folder."""
    parser = argparse.ArgumentParser(description="Compare networks that were written as Darknet files with OpenCV 4.")
    parser.add_argument("folder", type=Path)
    cases = sorted(parser.parse_args().folder.iterdir())
    print(f"OpenCV {cv2.__version__}")
    verdicts = [compare(case) for case in cases]
    if failed := [case.name for case, verdict in zip(cases, verdicts, strict=True) if verdict == "FAILS"]:
        sys.exit(f"scripts/oracle: failed: {', '.join(failed)}")
    if "agrees" not in verdicts:
        sys.exit("scripts/oracle: failed: there was nothing to compare")
    print(f"scripts/oracle: {verdicts.count('agrees')} networks agree, {verdicts.count('unread')} were not compared")


def compare(case: Path) -> str:
    """Print what became of one network, and return it: agrees, unread or FAILS."""
    expected: Outputs = {path.stem: np.load(path) for path in sorted(case.glob("conv_*.npy"))}
    try:
        found = run(case, list(expected))
    except cv2.error as error:
        reason = case / "unreadable.txt"
        verdict, what = ("unread", reason.read_text()) if reason.exists() else ("FAILS", str(error).strip())
    else:
        verdict, what = judge(expected, found)
    print(f"{verdict:<6}  {case.name:<36}  {what}", flush=True)
    return verdict


def run(case: Path, names: list[str]) -> Outputs:
    """Return the outputs that OpenCV computes from a network's files, by the names that it gives their layers.

    Raises:
        cv2.error: OpenCV cannot read or run the network.
    """
    # readNet calls readNetFromDarknet, which the type stubs of OpenCV 5 no longer know
    net = cv2.dnn.readNet(str(case / "net.weights"), str(case / "net.cfg"), "darknet")
    outputs: list[list[NDArray[np.float64]]] = []
    for image in np.load(case / "images.npy"):  # one by one: OpenCV's scale_channels takes no more
        net.setInput(image[None])
        outputs.append([np.array(output, np.float64) for output in net.forward(names)])
    return {name: np.concatenate(parts) for name, parts in zip(names, zip(*outputs, strict=True), strict=True)}


def judge(expected: Outputs, found: Outputs) -> tuple[str, str]:
    """Return the verdict on a network's outputs, each (B, C, H, W), and the numbers that it rests on."""
    if any(expected[name].shape != found[name].shape for name in expected):
        return "FAILS", "shapes differ"
    gap = max(float(np.abs(expected[name] - found[name]).max()) for name in expected)
    largest = max(float(np.abs(outputs).max()) for outputs in expected.values())
    spread = min(float(np.abs(outputs[0] - outputs[1]).max()) for outputs in expected.values())
    what = f"largest difference {gap:.1e}, largest output {largest:.2f}"
    if not gap <= TOLERANCE:
        return "FAILS", what
    if spread < 100 * TOLERANCE:
        return "FAILS", f"{what}, but outputs hardly depend on the image ({spread:.1e}), which shows nothing"
    return "agrees", what


if __name__ == "__main__":
    main()
