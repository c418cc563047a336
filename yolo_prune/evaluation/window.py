"""A window that shows images, where there is a display."""

from __future__ import annotations

import os
import subprocess
import sys

import cv2

from yolo_prune.evaluation.previews import Image

STOP_KEYS = (ord("q"), ord("Q"), 27)
LARGEST_PX = (1280, 800)
"""The size at first of a window for larger images."""
PROBE = "import cv2; cv2.namedWindow('yoloprune'); cv2.destroyAllWindows()"
PROBE_S = 60.0


def find_display_issue() -> str | None:
    """Return in a few words why no window can be opened; None if one can.

    Another process tries it: where there is no display, the library of the windows ends the process that asks for one.
    """
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "there is no display (DISPLAY is not set)"
    try:
        tried = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, timeout=PROBE_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return "no window can be opened"
    return "OpenCV can open no window on this display" if tried.returncode else None


class Window:
    """A window, which opens with the first image."""

    def __init__(self, title: str = "yoloprune") -> None:
        self._title, self._is_open = title, False

    def show(self, image: Image, wait_ms: int = 1) -> bool:
        """Show an RGB image, and return whether to go on: neither q nor Esc was pressed, and the window is there.

        Args:
            image: (H, W, 3).
            wait_ms: how long to wait for a key; 0 waits until there is one, or the window is closed.
        """
        if not self._is_open:
            cv2.namedWindow(self._title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
            height, width = image.shape[:2]
            scale = min(1.0, LARGEST_PX[0] / width, LARGEST_PX[1] / height)
            cv2.resizeWindow(self._title, max(1, round(width * scale)), max(1, round(height * scale)))
            self._is_open = True
        cv2.imshow(self._title, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        while True:
            key = cv2.waitKey(wait_ms or 100)
            if key & 0xFF in STOP_KEYS or cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1:
                return False
            if wait_ms or key >= 0:
                return True

    def close(self) -> None:
        """Close the window."""
        if self._is_open:
            cv2.destroyAllWindows()
            self._is_open = False
