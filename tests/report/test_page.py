"""The page as a file: whole, self-contained, escaped, and readable without seeing it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import vl_convert
from tiny import HOSTILE

VOID = {"meta", "img", "input", "link", "br", "hr", "base"}
SECTIONS = ("results", "frontier", "widths", "times", "training", "curves", "comparisons", "mistakes", "reproduce")


class Page(HTMLParser):
    """Elements of a page with their attributes, and the text in each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        assert self._open == [], "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]][-1] += data

    def find(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(page_text: str) -> Page:
    return Page(page_text)


def read_plots(page: Page) -> dict[str, Any]:
    """Return the specifications of the plots, by their keys."""
    specs: dict[str, Any] = json.loads(page.texts["script"][0])["specs"]
    return specs


def test_it_is_one_small_file_that_loads_nothing(page: Page, page_file: Path) -> None:
    assert page_file.stat().st_size < 3_000_000
    assert not page.find("link")
    assert not page.find("base")
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "poster", "data", "action", "background"):
            value = attributes.get(name) or ""
            assert value.startswith(("#", "data:image/jpeg;base64,")) or not value, f"<{tag} {name}={value[:80]}>"
    styles = "".join(page.texts["style"]) + "".join(attributes.get("style") or "" for _, attributes in page.elements)
    assert not re.search(r"url\(|@import|https?:|//[a-z]", styles)
    assert "http" not in page.texts["script"][0]


def test_the_browser_is_told_to_load_nothing_and_to_run_these_scripts_alone(page: Page) -> None:
    policy = next(meta["content"] for meta in page.find("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")
    expected = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.texts["script"][1:]]
    assert rules["script-src"] == " ".join(f"'sha256-{one}'" for one in expected)


def test_text_of_users_is_text(page: Page, page_text: str) -> None:
    assert len(page.find("script")) == 3
    assert all((image["src"] or "").startswith("data:") for image in page.find("img"))
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    shown = page.texts["th"] + page.texts["text"]
    for name in HOSTILE:
        assert any(name in text for text in shown), name
        assert name not in page_text
    json_text = page_text.partition('id="plots">')[2].partition("</script>")[0]
    assert "<" not in json_text
    assert json.loads(json_text)


def test_no_part_is_missing(page: Page, hostile_run: Path) -> None:
    ids = {attributes.get("id") for attributes in page.find("section")}
    assert ids == set(SECTIONS)
    targets = {(attributes["href"] or "")[1:] for attributes in page.find("a")}
    assert targets == set(SECTIONS)
    kinds = Counter(key.rpartition("-")[0] or key for key in read_plots(page))
    assert kinds["frontier"] == 3
    assert kinds["gammas"] == 2
    assert {"widths", "times", "loss", "precision", "val"} <= kinds.keys()
    labelled = [path for path in (hostile_run / "hands/labels/test").iterdir() if path.read_text()]
    assert len(page.find("input")) == min(6, len(labelled)) > 0
    text = " ".join(page.texts["code"])
    for command in ("train", "prune", "finetune"):
        assert f"yoloprune {command}" in text


def test_it_can_be_read_without_being_seen(page: Page) -> None:
    assert page.find("html")[0]["lang"] == "en"
    assert len(page.texts["caption"]) == len(page.find("table")) > 5
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.find("th"))
    assert all(attributes.get("alt") for attributes in page.find("img"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = [attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes]
    assert set(labels) <= set(ids)
    plots = [attributes["data-plot"] for attributes in page.find("div") if "data-plot" in attributes]
    assert set(plots) == read_plots(page).keys()
    assert {f"{key}-title" for key in plots} <= set(labels)
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))


def test_every_plot_is_valid(page: Page) -> None:
    for key, spec in read_plots(page).items():
        compiled = vl_convert.vegalite_to_vega({"$schema": "https://vega.github.io/schema/vega-lite/v6.json", **spec})
        assert compiled["marks"], key
