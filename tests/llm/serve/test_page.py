"""The chat page in headless Chromium: first over the real server, then over one whose every reply is decided here."""

import json
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.llm.serve.page_stub import (
    Reply,
    Stub,
    answer,
    break_off,
    describe,
    end_early,
    fail_midway,
    hang_up,
    refuse,
)

Chrome = webdriver.Chrome


@pytest.fixture
def stubbed(browser: Chrome, stub: Stub) -> Chrome:
    """The page of the stand-in, in a browser that has kept nothing."""
    browser.get(stub.address)
    browser.execute_script("localStorage.clear()")
    return open_page(browser, stub.address)


def open_page(browser: Chrome, address: str) -> Chrome:
    browser.get(address)
    # Signing in loads the page anew.
    wait(browser).until(lambda b: b.find_elements(By.ID, "about") and "context" in b.find_element(By.ID, "about").text)
    return browser


def wait(browser: Chrome) -> WebDriverWait[Chrome]:
    return WebDriverWait(browser, 20, poll_frequency=0.05)


def ask(page: Chrome, question: str) -> WebElement:
    """Type a question, press Enter, and return the last answer as it is when it has ended."""
    type_question(page, question + Keys.ENTER)
    return last_answer(page)


def type_question(page: Chrome, text: str) -> None:
    page.find_element(By.ID, "question").send_keys(text)


def last_answer(page: Chrome) -> WebElement:
    wait(page).until(lambda b: b.find_element(By.ID, "send").text == "Send")
    return page.find_elements(By.CSS_SELECTOR, ".assistant")[-1]


def press(page: Chrome, name: str) -> None:
    """Press the button of this accessible name."""
    (button,) = [one for one in page.find_elements(By.TAG_NAME, "button") if one.accessible_name == name]
    button.click()


def choose(page: Chrome, **options: str) -> None:
    """Write into fields of the settings."""
    press(page, "Settings")
    for name, value in options.items():
        page.find_element(By.ID, name).send_keys(value)
    press(page, "Close settings")


def note(turn: WebElement) -> str:
    return turn.find_element(By.CLASS_NAME, "note").text


def text(turn: WebElement) -> str:
    return str(turn.find_element(By.CLASS_NAME, "text").get_property("textContent"))


def texts(page: Chrome) -> list[str]:
    read = "return [...document.querySelectorAll('.turn > .text')].map((one) => one.textContent)"
    return list(page.execute_script(read))


def status(page: Chrome) -> str:
    return str(page.find_element(By.ID, "status").get_property("textContent"))


# Over the real server.


def test_question_gets_an_answer_from_the_real_server(browser: Chrome, server: str, key: str) -> None:
    page = open_page(browser, f"{server}/#key={key}")
    page.get_log("browser")
    assert page.find_element(By.ID, "name").text == "gristmill"
    assert "0123456789abcdef-not-released" in page.find_element(By.ID, "about").text
    assert page.find_element(By.ID, "banner").is_displayed()
    choose(page, max_tokens="30", top_k="50", min_p="0.01", frequency_penalty="0.1", seed="1")
    question = "<img src=x onerror=alert(1)> What does it return?"
    last = ask(page, question)
    assert "tokens/s" in note(last)
    assert texts(page)[0] == question
    assert text(last)
    press(page, "Lineage")
    wait(page).until(lambda b: "CC0-1.0: 12" in b.find_element(By.ID, "facts").text)
    assert "models/base 2c3d" in page.find_element(By.ID, "facts").text
    press(page, "Close lineage")
    assert [line for line in page.get_log("browser") if line["level"] == "SEVERE"] == []
    press(page, "New")
    page.execute_script("document.getElementById('question').value = 'words and '.repeat(2000)")
    assert "leave no room" in note(ask(page, "?"))
    page.delete_all_cookies()
    assert note(ask(page, "Still here?")) == "You are signed out."
    page.find_element(By.LINK_TEXT, "Sign in again").click()
    wait(page).until(lambda b: b.find_elements(By.ID, "key"))


# Over the stand-in.


def test_text_appears_while_the_answer_streams(stubbed: Chrome, stub: Stub) -> None:
    stub.replies = [answer("One, ", "two, ", "three.", hold=True)]
    type_question(stubbed, "Count." + Keys.ENTER)
    wait(stubbed).until(lambda b: texts(b) == ["Count.", "One, "])
    assert stubbed.find_element(By.ID, "send").text == "Stop"
    assert stubbed.find_element(By.ID, "log").get_attribute("aria-busy") == "true"
    stub.go_on.set()
    last = last_answer(stubbed)
    assert text(last) == "One, two, three."
    assert note(last).startswith("tokens: 3 · ")
    assert "tokens/s" in note(last)
    assert status(stubbed) == "Answered."
    assert stubbed.find_element(By.ID, "log").get_attribute("aria-busy") is None
    assert stub.asked[0]["messages"] == [{"role": "user", "content": "Count."}]
    assert stub.asked[0]["temperature"] == 0.7


@pytest.mark.parametrize("how", ["Escape", "Stop"])
def test_an_answer_is_stopped_and_what_there_is_stays(stubbed: Chrome, stub: Stub, how: str) -> None:
    stub.replies = [answer("One, ", "two", hold=True), answer("Well.")]
    type_question(stubbed, "Count." + Keys.ENTER)
    wait(stubbed).until(lambda b: texts(b) == ["Count.", "One, "])
    if how == "Stop":
        press(stubbed, "Stop")
    else:
        type_question(stubbed, Keys.ESCAPE)
    last = last_answer(stubbed)
    assert (text(last), note(last), status(stubbed)) == ("One, ", "stopped", "Stopped.")
    ask(stubbed, "And?")
    assert [message["content"] for message in stub.asked[1]["messages"]] == ["Count.", "One, ", "And?"]


def test_enter_sends_and_shift_enter_breaks_the_line(stubbed: Chrome, stub: Stub) -> None:
    stub.replies = [answer("Yes.")]
    type_question(stubbed, "one" + Keys.SHIFT + Keys.ENTER + Keys.NULL + "two")
    assert stub.asked == []
    ask(stubbed, "")
    assert stub.asked[0]["messages"][0]["content"] == "one\ntwo"
    type_question(stubbed, "  " + Keys.ENTER)
    assert len(stub.asked) == 1


def test_retry_asks_the_same_again(stubbed: Chrome, stub: Stub) -> None:
    stub.replies = [answer("A."), answer("B."), answer("C.")]
    ask(stubbed, "first")
    ask(stubbed, "second")
    press(stubbed, "Retry answer 2")
    last_answer(stubbed)
    assert texts(stubbed) == ["first", "A.", "second", "C."]
    assert stub.asked[2] == stub.asked[1]
    names = [one.accessible_name for one in stubbed.find_elements(By.TAG_NAME, "button")]
    assert "Retry answer 1" not in names


def test_edit_replaces_a_question_and_what_follows_it(stubbed: Chrome, stub: Stub) -> None:
    stub.replies = [answer("A."), answer("B."), answer("C.")]
    ask(stubbed, "first")
    ask(stubbed, "second")
    press(stubbed, "Edit question 1")
    assert "Sending replaces" in status(stubbed)
    type_question(stubbed, Keys.ESCAPE)
    assert texts(stubbed) == ["first", "A.", "second", "B."]
    assert stubbed.find_element(By.ID, "question").get_property("value") == ""
    press(stubbed, "Edit question 1")
    ask(stubbed, ", better")
    assert texts(stubbed) == ["first, better", "C."]
    assert stub.asked[2]["messages"] == [{"role": "user", "content": "first, better"}]


def test_copy_puts_the_text_on_the_clipboard(stubbed: Chrome, stub: Stub) -> None:
    permission = {"origin": stub.address, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    stubbed.execute_cdp_cmd("Browser.grantPermissions", permission)
    stub.replies = [answer("<b>One</b>\n two")]
    ask(stubbed, "Count.")
    press(stubbed, "Copy answer 1")
    wait(stubbed).until(lambda b: status(b) == "Copied.")
    copied = "navigator.clipboard.readText().then(arguments[0])"
    assert stubbed.execute_async_script(copied) == "<b>One</b>\n two"
    stubbed.execute_script("navigator.clipboard.writeText = () => Promise.reject(new Error('denied'))")
    press(stubbed, "Copy question 1")
    wait(stubbed).until(lambda b: status(b).startswith("Selected"))
    assert stubbed.execute_script("return getSelection().toString()") == "Count."


def test_settings_are_sent_and_kept(stubbed: Chrome, stub: Stub) -> None:
    stub.replies = [answer("Aye.")]
    numbers = {
        "temperature": 0.3,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.05,
        "frequency_penalty": 0.1,
        "max_tokens": 64,
        "seed": 5,
    }
    choose(stubbed, system="Be a pirate.", **{name: str(value) for name, value in numbers.items()})
    open_page(stubbed, stub.address)
    ask(stubbed, "Hello")
    body = stub.asked[0]
    assert body["messages"][0] == {"role": "system", "content": "Be a pirate."}
    assert {name: body[name] for name in numbers} == numbers


def test_conversations_are_kept_chosen_and_deleted(stubbed: Chrome, stub: Stub) -> None:
    stub.replies = [answer("A."), answer("B."), answer("C.")]
    ask(stubbed, "first")
    press(stubbed, "New")
    assert texts(stubbed) == []
    ask(stubbed, "second")
    open_page(stubbed, stub.address)
    assert texts(stubbed) == ["second", "B."]
    chats = Select(stubbed.find_element(By.ID, "chats"))
    assert [option.text for option in chats.options] == ["second", "first"]
    chats.select_by_visible_text("first")
    assert texts(stubbed) == ["first", "A."]
    ask(stubbed, "more")
    assert [message["content"] for message in stub.asked[2]["messages"]] == ["first", "A.", "more"]
    press(stubbed, "Delete")
    stubbed.switch_to.alert.dismiss()
    assert len(texts(stubbed)) == 4
    press(stubbed, "Delete")
    stubbed.switch_to.alert.accept()
    open_page(stubbed, stub.address)
    chats = Select(stubbed.find_element(By.ID, "chats"))
    assert [option.text for option in chats.options] == ["second"]
    assert (
        stubbed.execute_script("return Object.keys(localStorage).filter((key) => key.startsWith('chat:')).length") == 1
    )


def test_a_new_conversation_ends_the_answer_of_the_old_one(stubbed: Chrome, stub: Stub) -> None:
    stub.replies = [answer("One, ", "two", hold=True), answer("B.")]
    type_question(stubbed, "Count." + Keys.ENTER)
    wait(stubbed).until(lambda b: texts(b) == ["Count.", "One, "])
    press(stubbed, "New")
    wait(stubbed).until(lambda b: b.find_element(By.ID, "send").text == "Send")
    ask(stubbed, "Other.")
    assert texts(stubbed) == ["Other.", "B."]
    Select(stubbed.find_element(By.ID, "chats")).select_by_visible_text("Count.")
    assert texts(stubbed) == ["Count.", "One, "]
    assert note(stubbed.find_elements(By.CSS_SELECTOR, ".assistant")[-1]) == "stopped"


def test_a_model_is_picked_when_there_are_several(stubbed: Chrome, stub: Stub) -> None:
    assert not stubbed.find_element(By.ID, "model").is_displayed()
    assert not stubbed.find_element(By.ID, "banner").is_displayed()
    stub.models = [describe("gristmill"), describe("gristmill@0011", status="not released")]
    open_page(stubbed, stub.address)
    Select(stubbed.find_element(By.ID, "model")).select_by_visible_text("gristmill@0011")
    assert stubbed.find_element(By.ID, "banner").is_displayed()
    assert "not-released" in stubbed.find_element(By.ID, "about").text
    stub.replies = [answer("Yes.")]
    ask(stubbed, "Who?")
    assert stub.asked[0]["model"] == "gristmill@0011"
    open_page(stubbed, stub.address)
    assert Select(stubbed.find_element(By.ID, "model")).first_selected_option.text == "gristmill@0011"


@pytest.mark.parametrize(
    "reply, message",
    [
        (refuse(401, "send a valid API key"), "You are signed out."),
        (refuse(403, "the key k1 has no scope 'inference'"), "the key k1 has no scope 'inference'"),
        (refuse(429, "slow down", retry_after="17"), "Too many requests: try again in 17 s."),
        (refuse(503, "stopping", retry_after="30"), "The server takes no requests now: try again in 30 s."),
        (refuse(500, "internal error"), "The server failed: internal error."),
        (lambda handler: handler.head(502, {}), "The server failed: status 502."),
        (hang_up, "The server does not answer"),
        (end_early, "The connection was lost before the answer ended."),
        (break_off, "The connection was lost before the answer ended."),
        (fail_midway, "The server failed: the engine failed on this request."),
    ],
    ids=["401", "403", "429", "503", "500", "502", "gone", "ends early", "breaks off", "error event"],
)
def test_what_went_wrong_is_said_and_can_be_retried(stubbed: Chrome, stub: Stub, reply: Reply, message: str) -> None:
    stub.replies = [reply, answer("Now it works.")]
    last = ask(stubbed, "Hello")
    assert "failed" in (last.get_attribute("class") or "")
    assert message in note(last)
    assert message in status(stubbed)
    links = [link.get_attribute("href") for link in stubbed.find_elements(By.CSS_SELECTOR, "#status a")]
    assert links == ([f"{stub.address}/"] if "signed out" in message else [])
    press(stubbed, "Retry answer 1")
    assert texts(stubbed)[0] == "Hello"
    assert text(last_answer(stubbed)) == "Now it works."
    assert stub.asked[1] == stub.asked[0]


def test_oldest_turns_are_forgotten_when_the_context_is_full(stubbed: Chrome, stub: Stub) -> None:
    full = refuse(400, "messages: too long", code="context_length_exceeded")
    stub.replies = [answer("A."), answer("B."), full, full, answer("C."), full]
    choose(stubbed, system="Be brief.")
    for question in ("first", "second"):
        ask(stubbed, question)
    last = ask(stubbed, "third")
    assert (text(last), len(texts(stubbed))) == ("C.", 6)
    assert "earlier turns no longer fit" in note(last)
    sent = [[message["content"] for message in body["messages"]] for body in stub.asked[2:]]
    assert sent[0] == ["Be brief.", "first", "A.", "second", "B.", "third"]
    assert sent[1:] == [["Be brief.", "second", "B.", "third"], ["Be brief.", "third"]]
    press(stubbed, "New")
    assert note(ask(stubbed, "too much")) == "messages: too long"


def test_a_question_without_an_answer_is_not_sent_again(stubbed: Chrome, stub: Stub) -> None:
    stub.replies = [answer("A."), refuse(500, "internal error"), answer("C.")]
    for question in ("first", "second", "third"):
        ask(stubbed, question)
    assert [message["content"] for message in stub.asked[2]["messages"]] == ["first", "A.", "third"]


def test_a_server_that_is_down_at_first_is_asked_again(stubbed: Chrome, stub: Stub) -> None:
    stub.models_reply = refuse(503, "starting")
    stubbed.get(stub.address)
    wait(stubbed).until(lambda b: "takes no requests now" in status(b))
    assert stubbed.find_element(By.ID, "about").text == "not connected"
    stub.models_reply, stub.replies = None, [answer("Here.")]
    assert text(ask(stubbed, "Hello")) == "Here."
    assert "context 512" in stubbed.find_element(By.ID, "about").text


def test_lineage_is_shown_and_its_errors_too(stubbed: Chrome, stub: Stub) -> None:
    press(stubbed, "Lineage")
    facts = stubbed.find_element(By.ID, "facts")
    wait(stubbed).until(lambda _: facts.text)
    assert facts.text.splitlines() == [
        "Release",
        "0123456789abcdef, released",
        "Training started from",
        "Qwen3-0.6B, 77aa",
        "Source fables: 20 documents, by licence",
        "CC0-1.0: 12 · MIT: 8",
        "By source: conversations",
        "chat: 3",
        "Stage pretrain wrote",
        "models/base 2c3d4e5f60718293a4b5c6d7e8f90a1b",
    ]
    stubbed.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not stubbed.find_element(By.ID, "lineage").is_displayed()
    assert stubbed.switch_to.active_element.accessible_name == "Lineage"
    stub.lineage = {}
    press(stubbed, "Lineage")
    wait(stubbed).until(lambda _: "Not to be had now" in facts.text)


HOSTILE = [
    "<img src=x onerror='window.hacked=1'>",
    "</textarea></script><script>window.hacked=1</script>",
    "<svg/onload=window.hacked=1><a href=javascript:window.hacked=1>x</a>",
    "${window.hacked=1} {{constructor.constructor('window.hacked=1')()}}",
    "\u202eevil\u202c \ufeff\u200d Z\u0351\u036b\u0343 \U0001f468\u200d\U0001f469\u200d\U0001f467",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_is_only_text_wherever_it_stands(stubbed: Chrome, stub: Stub, hostile: str) -> None:
    stub.models = [describe(hostile), describe("other")]
    stub.models[0]["metadata"] |= {"fingerprint": hostile, "file": hostile, "status": hostile}
    stub.lineage = {
        "corpus": {"sources": {hostile: {"documents": {hostile: 1}, "licences": {hostile: 1}}}},
        "stages": {hostile: {"outs": {hostile: hostile}}},
        "init_from": {"name": hostile, "digest": hostile},
    }
    stub.replies = [answer(hostile, hostile), refuse(400, hostile)]
    open_page(stubbed, stub.address)
    elements = "return document.querySelectorAll('img, svg, script, a, iframe').length"
    before = stubbed.execute_script(elements)
    fill = "const box = document.getElementById('question'); box.value = arguments[0]; box.form.requestSubmit();"
    stubbed.execute_script(fill, hostile)
    assert text(last_answer(stubbed)) == hostile * 2
    stubbed.execute_script(fill, hostile)
    assert note(last_answer(stubbed)) == hostile.strip()
    press(stubbed, "Lineage")
    wait(stubbed).until(lambda b: b.find_element(By.ID, "facts").text)
    open_page(stubbed, stub.address)  # and again as it was kept
    assert texts(stubbed)[:2] == [hostile, hostile * 2]
    assert stubbed.execute_script(elements) == before
    assert stubbed.execute_script("return window.hacked") is None


def test_naughty_strings_are_shown_as_they_are(stubbed: Chrome, stub: Stub, shared_data: Path) -> None:
    strings = [one for one in json.loads((shared_data / "naughty-strings" / "blns.json").read_text()) if one]
    assert len(strings) > 400
    turns = [{"role": role, "content": one} for one in strings for role in ("user", "assistant")]
    keep = "localStorage.setItem('chat:1', JSON.stringify({id: '1', turns: arguments[0]}))"
    stubbed.execute_script(keep, turns)
    elements = "return document.querySelectorAll('img, svg, script, a, iframe, style, link').length"
    before = stubbed.execute_script(elements)
    open_page(stubbed, stub.address)
    assert texts(stubbed) == [turn["content"] for turn in turns]
    assert stubbed.execute_script(elements) == before


def test_what_is_kept_may_be_broken(stubbed: Chrome, stub: Stub) -> None:
    broken = {
        "chat:1": "{",
        "chat:2": "null",
        "chat:3": '{"id": "3"}',
        "chat:4": '{"id": "4", "turns": 7}',
        "settings": "[",
        "model": "1",
    }
    for key, value in broken.items():
        stubbed.execute_script("localStorage.setItem(...arguments)", key, value)
    stub.replies = [answer("Fine.")]
    open_page(stubbed, stub.address)
    assert text(ask(stubbed, "Hello")) == "Fine."


def test_the_policy_stops_a_script_that_gets_in(stubbed: Chrome, stub: Stub) -> None:
    """Were text ever to become markup, the Content-Security-Policy would still keep it from running."""
    stubbed.execute_script("""
        window.blocked = [];
        document.addEventListener("securitypolicyviolation", (event) => window.blocked.push(event.effectiveDirective));
        document.getElementById("hint").innerHTML = "<img src=x onerror='window.hacked=1'><p style='color: red'>x</p>";
        const script = document.createElement("script");
        script.textContent = "window.hacked = 1";
        document.body.append(script);
    """)
    expected = {"img-src", "style-src-attr", "script-src-elem"}
    wait(stubbed).until(lambda b: expected <= set(b.execute_script("return window.blocked")))
    assert stubbed.execute_script("return window.hacked") is None
