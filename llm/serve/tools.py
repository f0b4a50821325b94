"""Tool calls in Qwen's form: tools in the system turn, a call between tags, an answer to it in a user's turn.

The model's own chat template knows three roles; what is here becomes content of theirs. A call is JSON that parses, of
a function that was offered, or it is no call but text. That the arguments fit the function's schema is certain only
where a grammar makes them: with a `tool_choice` that forces a call.
"""

import json
import secrets
from collections.abc import Sequence
from typing import Any

from llm.serve.bodies import read_json
from llm.serve.messages import FunctionCall, Json, Message, Tool, ToolCall
from llm.serve.requests import ChatRequest
from llm.serve.text import longest_start

OPEN, CLOSE = "<tool_call>", "</tool_call>"
# The wording on which Qwen's models were trained, from their published chat template.
_BEFORE_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_AFTER_TOOLS = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
_ANY_OBJECT = {"type": "object"}


def render_turns(messages: Sequence[Message], tools: Sequence[Tool]) -> list[dict[str, str]]:
    """Return the conversation as turns of the roles that the chat template knows."""
    turns: list[dict[str, str]] = []
    after_tool = False
    for message in messages:
        role = {"developer": "system", "tool": "user"}.get(message.role, message.role)
        content = message.content or ""
        if message.role == "tool":
            content = f"<tool_response>\n{content}\n</tool_response>"
        for call in message.tool_calls or []:
            written = _dump({"name": call.function.name, "arguments": read_json(call.function.arguments)})
            content += f"{chr(10) if content else ''}{OPEN}\n{written}\n{CLOSE}"
        if message.role == "tool" and after_tool:  # answers to several calls stand in one turn
            turns[-1]["content"] += "\n" + content
        else:
            turns.append({"role": role, "content": content})
        after_tool = message.role == "tool"
    if tools:
        if turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": ""})
        asked = turns[0]["content"]
        turns[0]["content"] = f"{asked}{chr(10) * 2 if asked else ''}{_describe(tools)}"
    return turns


def _describe(tools: Sequence[Tool]) -> str:
    lines = [_dump(tool.model_dump(exclude_none=True)) for tool in tools]
    return _BEFORE_TOOLS + "".join(f"\n{line}" for line in lines) + _AFTER_TOOLS


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def call_schema(body: ChatRequest) -> Json:
    """Return the schema of the call that `tool_choice` forces."""
    tools = [tool for tool in body.offered_tools if body.named_tool in (None, tool.function.name)]
    places = [f"#/$defs/call{number}" for number in range(len(tools))]
    calls = {f"call{number}": _one_call(tool, places[number]) for number, tool in enumerate(tools)}
    return {"$defs": calls, "anyOf": [{"$ref": place} for place in places]}


def _one_call(tool: Tool, place: str) -> Json:
    arguments = _move(tool.function.parameters or _ANY_OBJECT, f"{place}/properties/arguments")
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _move(schema: Any, place: str) -> Any:
    """Return a schema whose own references hold after it has become a part of another."""
    if isinstance(schema, list):
        return [_move(one, place) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: place + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _move(value, place)
        for key, value in schema.items()
    }


class CallReader:
    """An answer's text to content and calls, while it arrives.

    A call is given out whole. What may still become one is held back, and so is white space before it.
    """

    def __init__(self, names: Sequence[str], forced: bool = False):
        """`forced`: the whole answer is one call, without tags."""
        self._names, self._forced = names, forced
        self._held = ""
        self._after_call = False
        self.calls: list[ToolCall] = []

    def feed(self, text: str) -> list[str | ToolCall]:
        """Return what has become certain."""
        self._held += text
        parts: list[str | ToolCall] = []
        while not self._forced:
            if self._after_call:
                self._held = self._held.lstrip()
            start = self._held.find(OPEN)
            end = self._held.find(CLOSE, start) if start >= 0 else -1
            if end < 0:
                sure = self._held[: start if start >= 0 else len(self._held) - longest_start(self._held, [OPEN])]
                return parts + self._take_text(len(sure.rstrip()))
            parts += self._take(start, end + len(CLOSE), self._held[start + len(OPEN) : end])
        return parts

    def finish(self) -> list[str | ToolCall]:
        """Return what was held back, at the end of the text: a call whose end tag is missing is one too."""
        start = 0 if self._forced else self._held.find(OPEN)
        if start < 0:
            return self._take_text(len(self._held))
        return self._take(start, len(self._held), self._held[start:].removeprefix(OPEN))

    def _take(self, start: int, end: int, inner: str) -> list[str | ToolCall]:
        """Take what is held up to `end`; from `start` on it is a call, if `inner` can be read as one."""
        call = self._read(inner)
        if call is None:
            return self._take_text(end)
        cut = len(self._held[:start].rstrip())
        before = self._take_text(cut)
        self._held = self._held[end - cut :]
        self.calls.append(call)
        self._after_call = True
        return [*before, call]

    def _take_text(self, end: int) -> list[str | ToolCall]:
        text, self._held = self._held[:end], self._held[end:]
        self._after_call = self._after_call and not text
        return [text] if text else []

    def _read(self, text: str) -> ToolCall | None:
        try:
            value = read_json(text)
        except ValueError:
            return None
        if not isinstance(value, dict) or value.keys() != {"name", "arguments"}:
            return None
        if value["name"] not in self._names or not isinstance(value["arguments"], dict):
            return None
        function = FunctionCall(name=value["name"], arguments=_dump(value["arguments"]))
        return ToolCall(id=f"call_{secrets.token_hex(12)}", type="function", function=function)
