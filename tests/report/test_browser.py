"""The page in a browser: everything is drawn, and works with a pointer, a keyboard, on a phone and on paper."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from browser import FLAGS, find_browser
from playwright.sync_api import Browser, Page, sync_playwright

Open: TypeAlias = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_browser()
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def troubles() -> list[str]:
    """Messages of the console, errors and requests of the pages of a test."""
    return []


@pytest.fixture
def visit(browser: Browser, page_file: Path, troubles: list[str]) -> Iterator[Open]:
    """Return a function that opens the page at a width, and waits until it is drawn."""
    contexts = []

    def visit_page(width: int = 1280, colours: str = "light", file: Path = page_file) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=colours)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(dialog.message))
        page.on(
            "request",
            lambda request: troubles.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
        )
        page.goto(file.as_uri())
        page.wait_for_selector("body.ready")
        return page

    yield visit_page
    for context in contexts:
        context.close()


def test_every_plot_is_drawn_without_a_message(visit: Open, troubles: list[str]) -> None:
    page = visit()
    places = page.locator("[data-plot]")
    assert places.count() >= 8
    for number in range(places.count()):
        place = places.nth(number)
        name = place.get_attribute("data-plot")
        marks = place.locator("svg .mark-symbol path, svg .mark-rect path, svg .mark-line path")
        assert marks.count() > 0, name
        box = place.locator("svg").bounding_box()
        assert box is not None
        assert box["width"] > 200, name
    assert page.evaluate("window.hacked") is None
    assert troubles == []


def read_models(page: Page) -> list[str]:
    return page.locator("#results-table tbody th").all_inner_texts()


def test_the_table_is_sorted_by_click_and_by_keyboard(visit: Open) -> None:
    page = visit()
    models = read_models(page)
    assert models == ["Original", "Sparse", "Pruned", "Finetuned"]
    heading = page.locator("#results-table thead th", has_text="params")
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert read_models(page) == ["Pruned", "Finetuned", "Original", "Sparse"]
    heading.get_by_role("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert read_models(page) == ["Original", "Sparse", "Pruned", "Finetuned"]
    name = page.locator("#results-table thead th", has_text="model")
    name.get_by_role("button").press("Space")
    assert (name.get_attribute("aria-sort"), heading.get_attribute("aria-sort")) == ("ascending", "none")
    assert read_models(page) == sorted(models)


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_a_phone_scrolls_tables_and_not_the_page(visit: Open, colours: str) -> None:
    page = visit(380, colours)
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    page.mouse.wheel(50, 0)
    assert page.evaluate("scrollX") == 0


def test_the_slider_moves_the_line_between_before_and_after(visit: Open) -> None:
    page = visit()
    figure = page.locator(".compare").first
    slider = figure.get_by_role("slider")
    read = "(figure) => getComputedStyle(figure.querySelector('.left')).clipPath"
    before = figure.evaluate(read)
    slider.focus()
    page.keyboard.press("Home")
    assert slider.input_value() == "0"
    at_start = figure.evaluate(read)
    assert at_start != before
    page.keyboard.press("ArrowRight")
    assert slider.input_value() == "1"
    assert figure.evaluate(read) != at_start
    assert "line between before and after" in (slider.evaluate("(one) => one.labels[0].innerText") or "")


def test_colours_follow_the_system_and_the_switch(visit: Open) -> None:
    read = "getComputedStyle(document.body).backgroundColor"
    axis = "getComputedStyle(document.querySelector('[data-plot] svg .role-axis-label text')).fill"
    light, dark = visit(colours="light"), visit(colours="dark")
    assert light.evaluate(read) != dark.evaluate(read)
    assert light.evaluate(axis) != dark.evaluate(axis)
    expected = dark.evaluate(read), dark.evaluate(axis)
    light.get_by_label("Colours").select_option("dark")
    assert (light.evaluate(read), light.evaluate(axis)) == expected


def test_names_are_text_under_the_pointer_too(visit: Open, troubles: list[str]) -> None:
    page = visit()
    point = page.locator("[data-plot=widths] svg .mark-rect path").first
    point.scroll_into_view_if_needed()
    point.hover()
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    assert "channels" in tooltip.inner_text()
    assert troubles == []


def test_it_prints_in_light_colours_and_no_wider_than_the_paper(visit: Open) -> None:
    page = visit(794, "dark")
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 794
    assert not page.locator("nav").is_visible()
    assert page.locator("#results-table").is_visible()


def test_without_scripts_figures_and_tables_are_there(browser: Browser, page_file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert "Original" in page.locator("#results-table").inner_text()
    assert "drawn by scripts" in page.locator("main").inner_text()
    context.close()
