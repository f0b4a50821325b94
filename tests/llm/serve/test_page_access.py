"""The chat page for eyes, keyboards and screen readers: contrast, names, focus, sizes, in both themes and two widths.

With GRISTMILL_SCREENSHOTS=folder each state is saved there as a picture.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.llm.serve.page_stub import Stub, answer, describe, refuse
from tests.llm.serve.test_page import ask, open_page, press, wait

Chrome = webdriver.Chrome
LOOKS = [(theme, width) for theme in ("light", "dark") for width in (1280, 390)]
STATES = ["empty", "talk", "settings", "lineage"]
CODE = "It returns the words of a text:\n\n    def words(text):\n        return text.split()\n\nand nothing else."

CONTRAST = (Path(__file__).parent / "page_contrast.js").read_text()
CONTROLS = """
const scope = document.querySelector("dialog[open]") ?? document.body;
const controls = scope.querySelectorAll("button, input, select, textarea, a[href], [tabindex]");
return [...controls].filter((one) => one.checkVisibility());
"""


@pytest.fixture
def stubbed(browser: Chrome, stub: Stub) -> Chrome:
    browser.get(stub.address)
    browser.execute_script("localStorage.clear()")
    return browser


def show(page: Chrome, stub: Stub, theme: str, width: int, state: str) -> None:
    """Bring the page into a state."""
    scheme = {"name": "prefers-color-scheme", "value": theme}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    if state != "empty":
        stub.models = [describe("gristmill", status="not released"), describe("gristmill@00112233")]
    open_page(page, stub.address)
    if state == "talk":
        stub.replies = [answer(CODE), answer("A longer answer, " * 12), refuse(429, "slow down", retry_after="17")]
        for question in ("What does str.split return?", "And with an argument? " * 4, "Again?"):
            ask(page, question)
    elif state != "empty":
        press(page, state.capitalize())
        if state == "lineage":
            wait(page).until(lambda b: b.find_element(By.ID, "facts").text)


def release_size(page: Chrome) -> None:
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("theme, width", LOOKS)
@pytest.mark.parametrize("state", STATES)
def test_it_can_be_read_in_both_themes_and_fits(
    stubbed: Chrome, stub: Stub, theme: str, width: int, state: str
) -> None:
    show(stubbed, stub, theme, width, state)
    if os.environ.get("GRISTMILL_SCREENSHOTS"):
        stubbed.save_screenshot(str(Path(os.environ["GRISTMILL_SCREENSHOTS"]) / f"{state}-{theme}-{width}.png"))
    texts, borders = stubbed.execute_script(CONTRAST)
    assert len(texts) > 5
    assert [(name, round(ratio, 2)) for name, ratio in texts if ratio < 4.5] == []
    assert [(name, round(ratio, 2)) for name, ratio in borders if ratio < 3] == []
    sideways = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert stubbed.execute_script(sideways) == 0
    for control in controls(stubbed):  # WCAG 2.2, 2.5.8
        assert min(control.size["width"], control.size["height"]) >= 24, control.accessible_name
    release_size(stubbed)


def test_the_measure_of_contrast_finds_a_faint_text(stubbed: Chrome, stub: Stub) -> None:
    show(stubbed, stub, "light", 1280, "empty")
    stubbed.execute_script("document.getElementById('hint').style.color = '#999'")
    texts, _ = stubbed.execute_script(CONTRAST)
    assert [name for name, ratio in texts if ratio < 4.5] == ["hint"]
    release_size(stubbed)


def controls(page: Chrome) -> list[Any]:
    return list(page.execute_script(CONTROLS))


@pytest.mark.parametrize("state", STATES)
def test_every_control_has_a_name_and_shows_its_focus(stubbed: Chrome, stub: Stub, state: str) -> None:
    show(stubbed, stub, "light", 1280, state)
    names = [control.accessible_name for control in controls(stubbed)]
    assert all(names)
    assert len(names) == len(set(names)), "two controls have one name"
    reached = set()
    for _ in range(2 * len(names)):
        stubbed.switch_to.active_element.send_keys(Keys.TAB)
        focused = stubbed.switch_to.active_element
        if focused.tag_name == "body":
            continue
        reached.add(focused.accessible_name)
        assert focused.value_of_css_property("outline-width") == "2px", focused.accessible_name
        assert focused.value_of_css_property("outline-style") == "solid", focused.accessible_name
    assert reached >= set(names)
    release_size(stubbed)


def test_a_screen_reader_finds_its_way(stubbed: Chrome, stub: Stub) -> None:
    show(stubbed, stub, "light", 1280, "talk")
    assert stubbed.execute_script("return document.documentElement.lang") == "en"
    roles = {
        "log": "log",
        "banner": "status",
        "status": "status",
        "question": "textbox",
        "model": "combobox",
        "chats": "combobox",
    }
    for name, role in roles.items():
        assert stubbed.find_element(By.ID, name).aria_role == role, name
    turns = stubbed.find_elements(By.CSS_SELECTOR, ".turn")
    assert [turn.aria_role for turn in turns] == ["article"] * 6
    assert [turn.accessible_name for turn in turns][:3] == ["question 1", "answer 1", "question 2"]
    for state, title in {"Settings": "Settings", "Lineage": "What this model is made from"}.items():
        press(stubbed, state)
        dialog = stubbed.find_element(By.CSS_SELECTOR, "dialog[open]")
        assert (dialog.aria_role, dialog.accessible_name) == ("dialog", title)
        press(stubbed, f"Close {state.lower()}")
        assert stubbed.switch_to.active_element.accessible_name == state
    release_size(stubbed)
