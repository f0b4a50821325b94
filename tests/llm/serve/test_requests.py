import json
from typing import Any

import pytest
from pydantic import BaseModel

from llm.serve.bodies import parse
from llm.serve.errors import ApiError
from llm.serve.prompts import prepare_chat, prepare_completion
from llm.serve.release import Release
from llm.serve.requests import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from llm.serve.tools import render_turns

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "m", "prompt": "hi"}


def refuse(kind: type[BaseModel], body: bytes | dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(kind, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    "change, param",
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages[0].name"),
        ({"temperature": "0"}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": True}, "top_p"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"ignore_eos": True, "response_format": {"type": "json_object"}}, "ignore_eos"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"max_completion_tokens": -3}, "max_completion_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"min_p": 1.1}, "min_p"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"1": "1"}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"user": "u" * 1001}, "user"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_object"}, "stop": "x"}, "stop"),
        ({"tools": []}, "tools"),
        ({"functions": []}, "functions"),
        ({"store": True}, "store"),
        ({"temprature": 1}, "temprature"),
        ({"model": 5}, "model"),
    ],
)
def test_chat_refuses_and_names_the_field(change: dict[str, Any], param: str) -> None:
    error = refuse(ChatRequest, CHAT | change)
    assert error.param == param
    assert param in error.message


@pytest.mark.parametrize(
    "prompt",
    ["", [], [""], [[]], ["a", ""], 5, None, {"a": 1}, [1.5], [True], ["a", 1], [["a"]], ["a"] * 33, "x" * 1_000_001],
)
def test_completion_refuses_prompts(prompt: object) -> None:
    assert refuse(CompletionRequest, TEXT | {"prompt": prompt}).param == "prompt"


@pytest.mark.parametrize(
    "field, value", [("suffix", "x"), ("best_of", 2), ("logprobs", True), ("logprobs", 6), ("max_tokens", -1)]
)
def test_completion_refuses_what_it_does_not_do(field: str, value: object) -> None:
    assert refuse(CompletionRequest, TEXT | {field: value}).param == field


def test_echo_is_not_streamed() -> None:
    error = refuse(CompletionRequest, TEXT | {"echo": True, "stream": True})
    assert error.param == "echo"
    assert "stream" in error.message


def test_answers_of_one_request_are_bounded() -> None:
    assert refuse(CompletionRequest, TEXT | {"prompt": ["a"] * 5, "n": 13}).param == "n"


def test_longest_text_is_a_setting() -> None:
    body = json.dumps(CHAT | {"messages": [{"role": "user", "content": "x" * 101}]}).encode()
    assert parse(ChatRequest, body).messages[0].content == "x" * 101
    with pytest.raises(ApiError) as caught:
        parse(ChatRequest, body, max_chars=100)
    assert caught.value.param == "messages[0].content"


@pytest.mark.parametrize(
    "kind, change, param",
    [
        (TokenizeRequest, {}, "prompt"),
        (TokenizeRequest, {"prompt": "a", "messages": CHAT["messages"]}, "prompt"),
        (TokenizeRequest, {"prompt": ["a"]}, "prompt"),
        (TokenizeRequest, {"prompt": "a", "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        (DetokenizeRequest, {}, "tokens"),
        (DetokenizeRequest, {"tokens": ["a"]}, "tokens[0]"),
        (DetokenizeRequest, {"tokens": [True]}, "tokens[0]"),
    ],
)
def test_tokenizer_routes_refuse(kind: Any, change: dict[str, Any], param: str) -> None:
    assert refuse(kind, change).param == param


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nope",
        b'{"model": "m", "prompt": NaN',
        b'{"model": "m", "prompt": "\\ud800"}',
        b'{"model": "m", "prompt": "\xff"}',
        b"[" * 100_000,
        b'{"model": "m", "prompt": "a", "user": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "m", "model": "m", "prompt": "a"}',
        b'{"model": "m", "prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "m", "prompt": "a", "logit_bias": {"1": Infinity}}',
        b'{"model": "m", "prompt": "a", "logit_bias": {"1": 1e999}}',
        b"\xff\xfe{\x00}\x00",
        b"\x00",
    ],
)
def test_broken_json_is_refused(body: bytes) -> None:
    assert refuse(CompletionRequest, body).code == "invalid_json"


@pytest.mark.parametrize("body", [b"[]", b"5", b"null", b'"x"'])
def test_body_that_is_no_object_is_refused(body: bytes) -> None:
    refuse(ChatRequest, body)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999", b"-1"])
def test_numbers_that_are_none_are_refused(number: bytes) -> None:
    refuse(CompletionRequest, b'{"model": "m", "prompt": "a", "temperature": ' + number + b"}")


def test_missing_fields_are_named() -> None:
    assert refuse(ChatRequest, {"model": "m"}).param == "messages"
    assert refuse(CompletionRequest, {"prompt": "x"}).param == "model"


def test_two_lengths_that_differ_are_refused() -> None:
    assert "max_completion_tokens" in refuse(ChatRequest, CHAT | {"max_tokens": 1, "max_completion_tokens": 2}).message


def test_stream_options_need_a_stream() -> None:
    assert "stream_options" in refuse(ChatRequest, CHAT | {"stream_options": {"include_usage": True}}).message


def test_harmless_fields_are_accepted() -> None:
    body = CHAT | {
        "user": "u",
        "n": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "seed": -5,
        "stop": None,
        "temperature": 0,
        "top_p": 1,
        "stream": None,
    }
    assert parse(ChatRequest, json.dumps(body).encode()).temperature == 0


@pytest.mark.parametrize("wish", [None, False, True])
def test_ignore_eos_leaves_no_token_that_stops(wish: bool | None, release: Release) -> None:
    chat = prepare_chat(parse(ChatRequest, json.dumps(CHAT | {"ignore_eos": wish}).encode()), release)
    (text,) = prepare_completion(parse(CompletionRequest, json.dumps(TEXT | {"ignore_eos": wish}).encode()), release)
    assert chat.sampling.stop_ids == text.sampling.stop_ids == (frozenset() if wish else release.stop_ids)


def test_content_parts_are_joined_and_composed() -> None:
    parts = [{"type": "text", "text": "e"}, {"type": "text", "text": "x"}]
    body = CHAT | {"messages": [{"role": "developer", "content": parts}, {"role": "user", "content": "e\u0301"}]}
    turns = render_turns(parse(ChatRequest, json.dumps(body).encode()).messages, [])
    assert turns == [{"role": "system", "content": "ex"}, {"role": "user", "content": "é"}]


@pytest.mark.parametrize(
    "prompt, read", [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2]], [[1], [2]])]
)
def test_prompt_forms(prompt: object, read: list[object]) -> None:
    assert parse(CompletionRequest, json.dumps(TEXT | {"prompt": prompt}).encode()).prompt == read
