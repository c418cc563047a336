"""The window of `detect --show`, and what there is without a display."""

from __future__ import annotations

import sys
from typing import Any

import cv2
import numpy as np
import pytest

from yolo_prune.evaluation import window
from yolo_prune.evaluation.window import Window, find_display_issue

IMAGE = np.full((900, 1600, 3), (250, 40, 10), np.uint8)


class FakeDisplay:
    """Stores what OpenCV is asked to show, and presses keys."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: list[int] = []
        self.visible = 1.0
        self.shown: list[Any] = []
        self.sizes: list[tuple[int, int]] = []
        self.closed = 0
        monkeypatch.setattr(cv2, "namedWindow", lambda title, flags: None)
        monkeypatch.setattr(cv2, "resizeWindow", lambda title, width, height: self.sizes.append((width, height)))
        monkeypatch.setattr(cv2, "imshow", lambda title, image: self.shown.append(image))
        monkeypatch.setattr(cv2, "waitKey", lambda wait_ms: self.keys.pop(0) if self.keys else -1)
        monkeypatch.setattr(cv2, "getWindowProperty", lambda title, key: self.visible)
        monkeypatch.setattr(cv2, "destroyAllWindows", self.close)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> FakeDisplay:
    return FakeDisplay(monkeypatch)


def test_frames_are_shown_until_a_key_or_the_window_stops_it(display: FakeDisplay) -> None:
    for key, goes_on in ((-1, True), (ord("a"), True), (ord("q"), False), (27, False), (0x100000 + ord("Q"), False)):
        display.keys = [key]
        shown = Window()
        assert shown.show(IMAGE) is goes_on
        shown.close()
    assert display.sizes == [(1280, 720)] * 5
    assert display.closed == 5
    assert tuple(display.shown[0][0, 0]) == (10, 40, 250)  # as OpenCV orders it
    display.visible = 0.0
    assert Window().show(IMAGE) is False


def test_an_image_stays_until_a_key(display: FakeDisplay) -> None:
    display.keys = [-1, -1, ord(" ")]
    assert Window().show(IMAGE, wait_ms=0)
    assert display.keys == []
    display.keys = [-1, ord("q")]
    assert not Window().show(IMAGE, wait_ms=0)


def test_a_window_that_was_never_opened_is_closed(display: FakeDisplay) -> None:
    Window().close()
    assert display.closed == 0


@pytest.mark.skipif(sys.platform != "linux", reason="others have no DISPLAY")
def test_no_display_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert find_display_issue() == "there is no display (DISPLAY is not set)"
    monkeypatch.setenv("DISPLAY", ":99")  # where nobody listens: OpenCV's windows abort the process
    assert find_display_issue() == "OpenCV can open no window on this display"
    monkeypatch.setattr(window, "PROBE", "pass")
    assert find_display_issue() is None
