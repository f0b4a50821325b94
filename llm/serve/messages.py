"""Turns of a conversation and the tools that are offered in it, as OpenAI's clients send them."""

import unicodedata
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from llm.serve.bodies import read_json
from llm.serve.errors import FieldError

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
NAME_PATTERN = r"^[a-zA-Z0-9_-]{1,64}$"
MAX_NOTE_CHARS = 1000  # of a text that says who asks, and of a stop string
MAX_TOOLS = 128


def read_text(value: object) -> str:
    """Return a string in NFC, as the model's training texts are."""
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return unicodedata.normalize("NFC", value)


def _content(value: object) -> str | None:
    """Accept a string, null, or a list of text parts as newer clients send."""
    if isinstance(value, list):
        pieces = []
        for part in value:
            if not isinstance(part, dict) or part.keys() != {"type", "text"} or part["type"] != "text":
                raise ValueError('a content part must be {"type": "text", "text": ...}')
            pieces.append(read_text(part["text"]))
        return "".join(pieces)
    return None if value is None else read_text(value)


_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}
_CONTENT = {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}, {"type": "null"}]}

Text = Annotated[str, PlainValidator(read_text), WithJsonSchema({"type": "string"})]
Note = Annotated[str, Field(max_length=MAX_NOTE_CHARS)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Json = dict[str, Any]  # an object that is handed on, such as a JSON schema


class FunctionCall(BaseModel):
    """A function's name, and its arguments as a JSON text."""

    model_config = STRICT
    name: str = Field(max_length=MAX_NOTE_CHARS)
    arguments: str


class ToolCall(BaseModel):
    """A call that an assistant made."""

    model_config = STRICT
    id: Note
    type: Literal["function"]
    function: FunctionCall


class Function(BaseModel):
    """A function that the model may call; without `parameters`, with any arguments."""

    model_config = STRICT
    name: Name
    description: Text | None = None
    parameters: Json | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A tool that is offered."""

    model_config = STRICT
    type: Literal["function"]
    function: Function


class Message(BaseModel):
    """One turn of the conversation."""

    model_config = STRICT
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, PlainValidator(_content), WithJsonSchema(_CONTENT)] = None
    tool_calls: list[ToolCall] | None = Field(None, max_length=MAX_TOOLS, description="of an assistant")
    tool_call_id: Note | None = Field(None, description="of a tool's answer: the call that it answers")
    refusal: None = None

    @model_validator(mode="after")
    def _check_role(self) -> "Message":
        if self.tool_calls and self.role != "assistant":
            raise FieldError("tool_calls", f"not of role {self.role!r}")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise FieldError("tool_call_id", "needed with role 'tool', and allowed only there")
        if self.content is None and not self.tool_calls:
            raise FieldError("content", "must be a string or a list of text parts")
        return self


def check_conversation(messages: list[Message]) -> None:
    """Raise FieldError for a call whose arguments are no JSON object, and for an answer that belongs to no call."""
    known: set[str] = set()
    for number, message in enumerate(messages):
        for place, call in enumerate(message.tool_calls or []):
            if not _is_object(call.function.arguments):
                field = f"messages[{number}].tool_calls[{place}].function.arguments"
                raise FieldError(field, "must be the text of a JSON object")
            known.add(call.id)
        if message.role == "tool" and message.tool_call_id not in known:
            raise FieldError(f"messages[{number}].tool_call_id", "no earlier call has this id")


def _is_object(text: str) -> bool:
    try:
        return isinstance(read_json(text), dict)
    except ValueError:
        return False
