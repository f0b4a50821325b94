"""Tool calls: what the model is told, and what of its text is a call."""

import json
from typing import Any

import pytest

from llm.serve.bodies import parse
from llm.serve.errors import ApiError
from llm.serve.messages import ToolCall
from llm.serve.requests import ChatRequest
from llm.serve.tools import CallReader, call_schema, render_turns

ASK = {"role": "user", "content": "What is the weather?"}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ö"}}\n</tool_call>'
MADE = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Ö"}'}}


def ask(**change: Any) -> ChatRequest:
    body = {"model": "m", "messages": [ASK], "tools": [WEATHER, CLOCK]} | change
    return parse(ChatRequest, json.dumps(body).encode())


def read(text: str, size: int = 1, forced: bool = False) -> list[str | tuple[str, Any]]:
    """Return the parts of a text that arrives so many characters at a time; neighbouring texts are joined."""
    reader = CallReader(["weather", "clock"], forced)
    parts = [part for i in range(0, len(text), size) for part in reader.feed(text[i : i + size])] + reader.finish()
    joined: list[str | tuple[str, Any]] = []
    for part in parts:
        if isinstance(part, ToolCall):
            joined.append((part.function.name, json.loads(part.function.arguments)))
        elif joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def test_tools_stand_in_the_system_turn_in_qwens_form() -> None:
    body = ask(messages=[{"role": "system", "content": "Be brief."}, ASK])
    system, user = render_turns(body.messages, body.offered_tools)
    assert user == ASK
    assert system["role"] == "system"
    assert system["content"].startswith("Be brief.\n\n# Tools\n\n")
    lines = system["content"].split("<tools>\n")[1].split("\n</tools>")[0].splitlines()
    assert [json.loads(line) for line in lines] == [WEATHER, CLOCK]
    (alone, _) = render_turns(ask().messages, ask().offered_tools)
    assert alone["content"].startswith("# Tools")


def test_conversation_without_tools_is_as_it_was() -> None:
    assert render_turns(ask(tool_choice="none").messages, ask(tool_choice="none").offered_tools) == [ASK]


def test_calls_and_answers_of_the_history_are_rendered() -> None:
    messages = [
        ASK,
        {"role": "assistant", "content": None, "tool_calls": [MADE, MADE | {"id": "call_2"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "tool", "tool_call_id": "call_2", "content": "sun"},
        {"role": "assistant", "content": "Both.", "refusal": None},
    ]
    turns = render_turns(ask(messages=messages).messages, [])
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user", "assistant"]
    assert turns[1]["content"] == f"{CALL}\n{CALL}"
    assert turns[2]["content"] == "<tool_response>\nrain\n</tool_response>\n<tool_response>\nsun\n</tool_response>"


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    "text, parts",
    [
        ("no call", ["no call"]),
        ("a < b <tool", ["a < b <tool"]),
        ("ends with space \n", ["ends with space \n"]),
        (CALL, [("weather", {"city": "Ö"})]),
        (f"I look. \n{CALL}\n", ["I look.", ("weather", {"city": "Ö"})]),
        (f"{CALL}\n{CALL}\n and", [("weather", {"city": "Ö"}), ("weather", {"city": "Ö"}), "and"]),
        (CALL.removesuffix("</tool_call>"), [("weather", {"city": "Ö"})]),  # the end of the answer ends it
        (CALL[:-20], [CALL[:-20]]),
        ("<tool_call>nonsense</tool_call> x", ["<tool_call>nonsense</tool_call> x"]),
        ('<tool_call>{"name": "other", "arguments": {}}</tool_call>', None),
        ('<tool_call>{"name": "weather", "arguments": "{}"}</tool_call>', None),
        ('<tool_call>{"name": "weather", "arguments": {"a": NaN}}</tool_call>', None),
        ('<tool_call>{"name": ["weather"], "arguments": {}}</tool_call>', None),
        ('<tool_call>["weather"]</tool_call>', None),
        ("<tool_call>" + "[" * 5000 + "</tool_call>", None),
    ],
)
def test_calls_are_read_however_the_text_is_cut(text: str, size: int, parts: list[Any] | None) -> None:
    assert read(text, size) == ([text] if parts is None else parts)


@pytest.mark.parametrize("size", [1, 1000])
def test_forced_answer_is_a_call_or_text(size: int) -> None:
    whole = '{"name":"clock","arguments":{}}'
    assert read(whole, size, forced=True) == [("clock", {})]
    assert read(whole[:-2], size, forced=True) == [whole[:-2]]
    assert read("", size, forced=True) == []


def test_forced_call_has_a_schema() -> None:
    own = {"$defs": {"C": {"type": "string"}}, "type": "object", "properties": {"city": {"$ref": "#/$defs/C"}}}
    weather = {"type": "function", "function": {"name": "weather", "parameters": own}}
    named = {"type": "function", "function": {"name": "weather"}}
    for choice, names in ((named, ["weather"]), ("required", ["clock", "weather"])):
        schema = call_schema(ask(tools=[CLOCK, weather], tool_choice=choice))
        calls = list(schema["$defs"].values())
        assert schema["anyOf"] == [{"$ref": f"#/$defs/{name}"} for name in schema["$defs"]]
        assert [call["properties"]["name"] for call in calls] == [{"const": name} for name in names]
        assert all(call["required"] == ["name", "arguments"] for call in calls)
        # A function's own references hold in their new place.
        place = schema["anyOf"][-1]["$ref"] + "/properties/arguments/$defs/C"
        assert calls[-1]["properties"]["arguments"]["properties"]["city"] == {"$ref": place}


@pytest.mark.parametrize(
    "change, param",
    [
        ({"tools": []}, "tools"),
        ({"tools": [CLOCK, CLOCK]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": None, "tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": "required", "stop": "x"}, "stop"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [ASK, {"role": "tool", "tool_call_id": "x", "content": "y"}]}, "messages[1].tool_call_id"),
        ({"messages": [{"role": "tool", "content": "y"}]}, "messages[0].tool_call_id"),
        ({"messages": [ASK | {"tool_calls": [MADE]}]}, "messages[0].tool_calls"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [MADE | {"function": {"name": "f", "arguments": "["}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_wrong_tools_are_refused_by_name(change: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        ask(**change)
    assert caught.value.param == param
