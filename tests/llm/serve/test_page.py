"""The chat page in headless Chromium: a question is typed, an answer read."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=900,700"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    one = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield one
    one.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, server: str, key: str) -> webdriver.Chrome:
    browser.get("about:blank")  # from the page itself a new fragment would load nothing
    browser.get(f"{server}/#key={key}")
    wait(browser).until(lambda b: "context" in b.find_element(By.ID, "about").text)
    return browser


def wait(browser: webdriver.Chrome) -> WebDriverWait[webdriver.Chrome]:
    return WebDriverWait(browser, 20, poll_frequency=0.05)


def ask(page: webdriver.Chrome, question: str) -> WebElement:
    """Type a question, press Enter, and return the turn of the answer."""
    page.find_element(By.ID, "question").send_keys(question, Keys.ENTER)
    return page.find_elements(By.CSS_SELECTOR, ".assistant")[-1]


def note(turn: WebElement) -> str:
    return turn.find_element(By.CLASS_NAME, "note").text


def test_question_gets_an_answer(page: webdriver.Chrome) -> None:
    assert page.find_element(By.ID, "model").text == "gristmill"
    assert "0123456789abcdef-not-released" in page.find_element(By.ID, "about").text
    assert page.find_element(By.ID, "banner").is_displayed()
    question = "<img src=x onerror=alert(1)> What does it return?"
    answer = ask(page, question)
    wait(page).until(lambda _: "tokens/s" in note(answer))
    assert page.find_element(By.CSS_SELECTOR, ".user .text").text == question
    assert answer.find_element(By.CLASS_NAME, "text").get_property("textContent")
    # The first answer fills the fixture's context, so the second can come only after it is forgotten.
    second = ask(page, "And then?")
    wait(page).until(lambda _: note(second))
    assert "forgotten" in note(second)
    assert second.find_element(By.CLASS_NAME, "text").get_property("textContent")
    assert len(page.find_elements(By.CSS_SELECTOR, ".turn")) == 4
    if os.environ.get("GRISTMILL_SCREENSHOTS"):
        page.save_screenshot(str(Path(os.environ["GRISTMILL_SCREENSHOTS"]) / "page.png"))
    faults = [line for line in page.get_log("browser") if line["level"] == "SEVERE"]
    faults = [line for line in faults if not any(status in line["message"] for status in ("400", "401"))]
    assert faults == []


def test_escape_stops_the_answer(page: webdriver.Chrome) -> None:
    temperature = page.find_element(By.ID, "temperature")
    temperature.clear()
    temperature.send_keys("0")  # the fixture's greedy answer fills the context
    # Escape follows at once from inside the page: through the driver a fast engine can be done before it.
    page.execute_script("""
        const question = document.getElementById("question");
        question.addEventListener("keydown", (event) => setTimeout(() => {
            const escape = new KeyboardEvent("keydown", {key: "Escape", bubbles: true});
            if (event.key === "Enter") question.dispatchEvent(escape);
        }));
    """)
    answer = ask(page, "Go on for ever.")
    wait(page).until(lambda _: note(answer) == "stopped")
    assert page.find_element(By.ID, "send").text == "Send"


def test_refusal_is_shown_and_a_new_chat_starts_over(page: webdriver.Chrome) -> None:
    question = page.find_element(By.ID, "question")
    page.execute_script("arguments[0].value = 'words and '.repeat(2000)", question)
    answer = ask(page, "?")
    wait(page).until(lambda _: "leave no room" in note(answer))
    assert "failed" in (answer.get_attribute("class") or "")
    page.find_element(By.ID, "fresh").click()
    assert page.find_elements(By.CSS_SELECTOR, ".turn") == []
    assert page.find_element(By.ID, "hint").is_displayed()
