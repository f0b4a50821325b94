"""Messages from what published sets hold for a talk: OpenAI messages, ShareGPT turns, transcripts.

Calls of tools and pictures are refused: neither can be represented, and a talk without them would teach a model to
make things up.
"""

import json
import re
from collections.abc import Mapping, Sequence

from llm.data.rows.cells import read_string, show
from llm.data.schema import BadRecord, Message

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai"), "assistant"),
}
TOOL_ROLES = ("tool", "function", "function_call", "observation", "tool_call", "tool_response", "ipython")
ROLE_KEYS = ("role", "from", "speaker")
CONTENT_KEYS = ("content", "value", "text")
MAX_WEIGHT = 10
# Each pattern is anchored, or begins with letters that do not repeat: a text of a million newlines costs one pass.
_TRANSCRIPT = re.compile(r"\s*Human:.*\n\nAssistant:", re.DOTALL)
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_JSON = re.compile(r'\s*\[\s*\{\s*"(role|from|content|value)"\s*:')


def say(role: str, content: str) -> Message:
    """Return a message."""
    return {"role": role, "content": content}


def is_talk(text: str) -> bool:
    """Say whether a string is a transcript or a list of messages in JSON, rather than what one side says."""
    return bool(_TRANSCRIPT.match(text) or _JSON.match(text))


def split_reply(value: object, name: str) -> tuple[list[Message], str]:
    """Return what was said before the last turn, and that turn's words; a plain string is an answer alone."""
    if isinstance(value, str) and not is_talk(value):
        messages = [say("assistant", read_string(value, name))]
    else:
        messages = read_messages(value, name)
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRecord("no_answer", f"{show(name)} does not end in an answer")
    if not messages[-1]["content"].strip():
        raise BadRecord("empty_reply", f"{show(name)} ends in a blank answer")
    check_messages(messages, "empty_message")
    return messages[:-1], messages[-1]["content"]


def read_messages(value: object, name: str) -> list[Message]:
    """Return the messages of a list, of a list as JSON (as CSV files have it), of one message, or of a transcript.

    A blank system prompt is none.
    """
    value = _parse(value, name)
    if isinstance(value, str) and _TRANSCRIPT.match(value):
        return split_transcript(read_string(value, name))
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise BadRecord("wrong_type", f"{show(name)} is {type(value).__name__}, expected a list of messages")
    if not value:
        raise BadRecord("no_messages", f"{show(name)} is an empty list")
    messages = [_read_message(one) for one in value]
    return [one for one in messages if one["role"] != "system" or one["content"].strip()]


def read_weights(value: object, name: str) -> list[float] | None:
    """Return the `weight` of each of the assistant's messages, of what `read_messages` has read; None: all are 1.

    OpenAI's fine-tuning format has 0 or 1 there; any number from 0 to 10 is taken.
    """
    value = _parse(value, name)
    messages = [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []
    if all(one.get("weight") is None for one in messages):
        return None
    weights = []
    for one, read in zip(messages, map(_read_message, messages), strict=True):
        weight = one.get("weight")
        if weight is not None and read["role"] != "assistant":
            raise BadRecord("bad_weight", f"a message of the {read['role']} has one; only the assistant's can")
        if weight is not None and not _is_weight(weight):
            raise BadRecord("bad_weight", f"{show(weight)}: expected a number from 0 to {MAX_WEIGHT}")
        if read["role"] == "assistant":
            weights.append(1.0 if weight is None else float(weight))
    if not any(weights):
        raise BadRecord("nothing_to_learn", "every answer has the weight 0")
    return None if all(weight == 1 for weight in weights) else weights


def split_transcript(text: str) -> list[Message]:
    """Return the turns of a transcript; a turn begins at a paragraph that begins with `Human:` or `Assistant:`."""
    _, *parts = _TURN.split(text)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [say(ROLES[role.lower()], content.strip()) for role, content in pairs]


def check_messages(messages: Sequence[Message], empty: str) -> None:
    """Raise BadRecord if one of the messages is blank."""
    for number, message in enumerate(messages, 1):
        if not message["content"].strip():
            raise BadRecord(empty, f"message {number} of {len(messages)} ({message['role']}) is blank")


def _parse(value: object, name: str) -> object:
    """Return a list of messages that stands as JSON in a string; other values as they are."""
    if not isinstance(value, str) or not _JSON.match(value):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadRecord("bad_json", f"{show(name)} is not a list of messages in JSON") from None


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_WEIGHT  # so not NaN


def _read_message(one: object) -> Message:
    if not isinstance(one, Mapping):
        raise BadRecord("wrong_type", f"a message is {type(one).__name__}, expected an object")
    said = next((one[key] for key in ROLE_KEYS if one.get(key) is not None), None)
    name = said.strip().lower() if isinstance(said, str) else ""
    if name in TOOL_ROLES or one.get("tool_calls") or one.get("function_call"):
        raise BadRecord("tool_turn", f"a turn of {show(name)} calls a tool or holds its result")
    if name not in ROLES:
        raise BadRecord("unknown_role", f"{show(said)}: expected one of {', '.join(ROLES)}")
    content = next((one[key] for key in CONTENT_KEYS if one.get(key) is not None), None)
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        return say(ROLES[name], "\n".join(_read_part(part) for part in content))
    return say(ROLES[name], read_string(content, "content"))


def _read_part(part: object) -> str:
    """Return the text of one part of a message's content."""
    if isinstance(part, Mapping) and part.get("type", "text") in ("text", "input_text", "output_text"):
        part = part.get("text")
    elif isinstance(part, Mapping):
        raise BadRecord("unsupported_part", f"a part of type {show(part.get('type'))} in a message")
    return read_string(part, "a part of content")
