"""A browser to look at pages with: Chromium or Chrome, without a window."""

from __future__ import annotations

import os
import shutil

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM, REQUIRED = "YOLO_PRUNE_CHROMIUM", "required"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic"),
)
"""For a browser that may run as root and shall load nothing."""


def find_browser() -> str:
    """Return the program that YOLO_PRUNE_CHROMIUM names, or one on PATH; without one the test is skipped, or fails if one is required."""
    named = os.environ.get(CHROMIUM, "")
    if named not in ("", REQUIRED):
        return named
    found = next((path for name in PROGRAMS if (path := shutil.which(name)) is not None), None)
    if found is None and named == REQUIRED:
        pytest.fail(f"{CHROMIUM}={REQUIRED}, and none of {', '.join(PROGRAMS)} is on PATH")
    return found or pytest.skip(f"none of {', '.join(PROGRAMS)} is on PATH, and {CHROMIUM} names none")
