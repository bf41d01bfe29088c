"""The pages as a browser shows them: a real Chromium, driven by Playwright."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages_made import HOSTILE

COMMANDS = ("diff", "values", "inspect", "convert", "check")


class Opened:
    """A page in a tab, and all that went wrong in it."""

    def __init__(self, context: Any, path: Path) -> None:
        self.tab = context.new_page()
        self.wrong: list[str] = []
        self.tab.on("console", lambda message: self.wrong.append(message.text))
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.wrong.append(f"dialog {dialog.message}"))
        self.tab.on("request", lambda request: self._requested(request.url, path.as_uri()))
        self.tab.goto(path.as_uri())

    def _requested(self, url: str, own: str) -> None:
        if url != own:
            self.wrong.append(f"request {url}")

    def shown(self) -> list[str]:
        """The keys in the table, as they are shown."""
        found: list[str] = self.tab.eval_on_selector_all(
            "#table tbody tr td:first-child", "cells => cells.map(cell => cell.textContent)"
        )
        return found

    def count(self) -> str:
        return str(self.tab.inner_text("#count"))

    def module(self, name: str) -> Any:
        return self.tab.locator(f'#map g[aria-label^="{name},"]')


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    made = browser.new_context(viewport={"width": 1200, "height": 900}, color_scheme="light")
    yield made
    made.close()


@pytest.fixture
def diff(context: Any, pages: dict[str, Path]) -> Iterator[Opened]:
    opened = Opened(context, pages["diff"])
    yield opened
    assert opened.wrong == []


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("width", [360, 1200])
def test_a_page_loads_without_an_error_or_a_request(
    browser: Any, pages: dict[str, Path], name: str, width: int
) -> None:
    """Nor does any of it stand out of a narrow screen."""
    context = browser.new_context(viewport={"width": width, "height": 800})
    opened = Opened(context, pages[name])
    assert opened.tab.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.tab.title()
    assert opened.wrong == []
    context.close()


def test_hostile_names_are_shown_and_do_nothing(diff: Opened) -> None:
    assert f"{HOSTILE}.weight" in diff.shown()
    assert diff.tab.locator("main img").count() == 0
    assert diff.tab.locator("main script").count() == 0


def test_no_other_script_could_run(diff: Opened) -> None:
    """Were an element let through, the policy would stop it."""
    diff.tab.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.bad=1>')"
    )
    diff.tab.wait_for_timeout(100)
    assert diff.tab.evaluate("window.bad") is None
    refused = [message for message in diff.wrong if "Content Security Policy" in message]
    assert len(refused) == 2  # the image and what it would have run
    diff.wrong.clear()


def test_words_filter_the_table(diff: Opened) -> None:
    diff.tab.fill("#search", "conv neck BIAS")
    assert sorted(diff.shown()) == ["neck.0.conv.bias", "neck.1.conv.bias", "neck.2.conv.bias"]
    assert diff.count() == "3 of 17 tensors"
    diff.tab.click("#clear")
    assert len(diff.shown()) == 17


def test_statuses_filter_the_table(diff: Opened) -> None:
    diff.tab.get_by_role("button", name="− missing 1").click()
    assert diff.shown() == ["neck.2.conv.bias"]
    diff.tab.get_by_role("button", name="≠ shape 1").click()
    assert {*diff.shown()} == {"neck.2.conv.bias", "head.weight"}
    pressed = diff.tab.get_by_role("button", name="≠ shape 1")
    assert pressed.get_attribute("aria-pressed") == "true"


def test_columns_sort_the_table_and_say_so(diff: Opened) -> None:
    size = diff.tab.get_by_role("button", name="size", exact=True)
    first = diff.shown()
    head = size.locator("xpath=..")
    size.click()
    assert diff.shown()[0] == f"{HOSTILE}.weight"
    assert head.get_attribute("aria-sort") == "descending"
    size.click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert diff.shown()[-1] == f"{HOSTILE}.weight"
    size.click()
    assert head.get_attribute("aria-sort") == "none"
    assert diff.shown() == first
    diff.tab.get_by_role("button", name="key", exact=True).click()
    assert diff.shown()[-1] == "neck.2.conv.weight"


def test_a_click_descends_and_the_path_leads_back(diff: Opened) -> None:
    diff.module("neck").click()
    assert diff.count() == "6 of 17 tensors in neck"
    assert all(key.startswith("neck.") for key in diff.shown())
    assert diff.module("backbone").count() == 0
    diff.module("neck.1").click()
    assert diff.count() == "2 of 17 tensors in neck.1"
    diff.tab.locator("#path").get_by_role("button", name="neck").click()
    assert diff.count() == "6 of 17 tensors in neck"
    diff.tab.locator("#path").get_by_role("button", name="all tensors").click()
    assert diff.count() == "all 17 tensors"


def test_the_keyboard_alone_is_enough(diff: Opened) -> None:
    press = diff.tab.keyboard.press
    diff.module("all tensors").focus()
    press("ArrowDown")
    while not diff.tab.inner_text("#told").startswith("neck, 6 tensors"):
        before = diff.tab.inner_text("#told")
        press("ArrowRight")
        assert diff.tab.inner_text("#told") != before
    press("Enter")
    assert diff.count() == "6 of 17 tensors in neck"
    press("ArrowDown")
    press("Enter")
    assert diff.count() == "2 of 17 tensors in neck.0"
    press("Escape")
    press("Escape")
    assert diff.count() == "all 17 tensors"
    # One stop for Tab in the whole map.
    assert diff.tab.locator('#map g[tabindex="0"]').count() == 1


def test_a_module_says_what_is_wrong_below_it(diff: Opened) -> None:
    label = diff.module("neck").get_attribute("aria-label")
    assert label.startswith("neck, 6 tensors, ")
    assert label.endswith("4 fits, 1 missing, 1 dtype")


def test_no_status_is_told_by_its_colour_alone(diff: Opened) -> None:
    signs = {"missing": "−", "unexpected": "+", "shape": "≠", "dtype": "≈"}
    legend = diff.tab.inner_text("#legend")
    for label, sign in signs.items():
        assert f"{sign} {label}" in legend
        assert diff.tab.locator(f'#map rect[fill="url(#pattern-{label})"]').count()


def test_the_command_is_copied(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    opened = Opened(context, pages["diff"])
    options = opened.tab.locator(".points .copy code").first.text_content()
    opened.tab.locator(".points .copy button").first.click()
    opened.tab.locator(".points .copy button", has_text="Copied").first.wait_for()
    assert opened.tab.evaluate("navigator.clipboard.readText()") == options
    context.close()


def test_a_cause_shows_its_keys_in_the_table(diff: Opened) -> None:
    point = diff.tab.locator(".points > li", has_text="of modules that").first
    point.locator("summary").click()
    point.locator("button.only").click()
    assert f"{HOSTILE}.weight" in diff.shown()
    assert len(diff.shown()) < 17


def test_dark_is_the_choice_of_the_system_and_of_the_button(
    browser: Any, pages: dict[str, Path]
) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        opened = Opened(context, pages["diff"])
        read = "getComputedStyle(document.body).backgroundColor"
        colours[scheme] = opened.tab.evaluate(read)
        opened.tab.click("#theme")
        assert opened.tab.evaluate(read) != colours[scheme]
        context.close()
    assert colours["light"] != colours["dark"]


def test_print_shows_the_whole_table_and_no_controls(diff: Opened) -> None:
    diff.tab.emulate_media(media="print")
    assert not diff.tab.locator("#theme").is_visible()
    assert not diff.tab.locator("#search").is_visible()
    table = diff.tab.locator(".scroll").first
    assert table.evaluate("box => box.scrollHeight <= box.clientHeight + 1")
    assert len(diff.tab.pdf(format="A4")) > 10_000


def test_histograms_mark_what_is_not_finite(context: Any, pages: dict[str, Path]) -> None:
    opened = Opened(context, pages["inspect"])
    caption = opened.tab.inner_text("#chart figcaption")
    assert "7 values are not finite" in caption
    assert opened.tab.locator('#table svg[role="img"][aria-label$="7 not finite"]').count() == 1
    opened.tab.fill("#search", "backbone")
    assert "all values are finite" in opened.tab.inner_text("#chart figcaption")
    assert opened.wrong == []


def test_the_chart_names_the_tensor_that_changed_most(context: Any, pages: dict[str, Path]) -> None:
    opened = Opened(context, pages["values"])
    assert opened.tab.inner_text("#chart figcaption").startswith("Largest: 0.01 in neck.")
    opened.tab.fill("#search", "backbone")
    assert opened.tab.inner_text("#chart figcaption").startswith("No relative L2 above 0")


@pytest.mark.parametrize(
    ("name", "scheme"), [*((name, "light") for name in COMMANDS), ("diff", "dark")]
)
def test_axe_finds_nothing(browser: Any, pages: dict[str, Path], name: str, scheme: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is not installed"
    )
    # axe itself is a script that the page's policy would not let run.
    context = browser.new_context(bypass_csp=True, color_scheme=scheme)
    opened = Opened(context, pages[name])
    found = axe.Axe().run(opened.tab).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
    context.close()
