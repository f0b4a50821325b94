"""Bodies of the routes: OpenAI's fields that are supported, and no others; /tokenize and /detokenize are vLLM's.

A field that would be ignored is refused, because a silent no changes answers without a word; the exceptions say who
asks (`user`), or ask for what happens anyway.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from llm.serve.errors import FieldError
from llm.serve.messages import (
    MAX_NOTE_CHARS,
    MAX_TOOLS,
    STRICT,
    Json,
    Message,
    Name,
    Note,
    Text,
    Tool,
    check_conversation,
    read_text,
)

MAX_PROMPTS = 32
MAX_CHOICES = 16  # of one prompt
MAX_ANSWERS = 64  # of one request
MAX_STOPS = 4
MAX_LOGPROBS = 5  # alternatives at each place of a completion, as OpenAI has it
MAX_TOP_LOGPROBS = 20  # and of a chat
MAX_BIASES = 300
MODES = ("none", "auto", "required")


def _stops(value: object) -> list[str]:
    values = [] if value is None else value if isinstance(value, list) else [value]
    if len(values) > MAX_STOPS:
        raise ValueError(f"holds {len(values)} strings; at most {MAX_STOPS} are allowed")
    stops = [read_text(one) for one in values]
    if not all(0 < len(stop) <= MAX_NOTE_CHARS for stop in stops):
        raise ValueError(f"a stop string must hold 1 to {MAX_NOTE_CHARS} characters")
    return stops


def _prompts(value: object) -> list[str | list[int]]:
    """Accept a string, token ids, or a list of either."""
    many = value if isinstance(value, list) and not all(_is_id(one) for one in value) else [value]
    if not value or not all(many):
        raise ValueError("must not be empty")
    if len(many) > MAX_PROMPTS:
        raise ValueError(f"holds {len(many)} prompts; at most {MAX_PROMPTS} are allowed")
    return [_prompt(one) for one in many]


def _prompt(value: object) -> str | list[int]:
    if isinstance(value, list) and all(_is_id(one) for one in value):
        return value
    if isinstance(value, str):
        return read_text(value)
    raise ValueError("must be a string, a list of strings, a list of token ids, or a list of such lists")


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _biases(value: object) -> dict[int, float]:
    biases = {} if value is None else value
    if not isinstance(biases, dict) or len(biases) > MAX_BIASES:
        raise ValueError(f"must be an object of at most {MAX_BIASES} token ids")
    for token, bias in biases.items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise ValueError(f"{token!r} is no token id")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ValueError(f"the bias of token {token} must be a number from -100 to 100")
    return {int(token): float(bias) for token, bias in biases.items()}


def _choice(value: object) -> str | None:
    """Return a mode, or the name of a function after a colon."""
    if value is None or (isinstance(value, str) and value in MODES):
        return value
    if isinstance(value, dict) and value.keys() == {"type", "function"} and value["type"] == "function":
        function = value["function"]
        if isinstance(function, dict) and function.keys() == {"name"} and isinstance(function["name"], str):
            return f":{function['name']}"
    raise ValueError(f'must be one of {", ".join(MODES)}, or {{"type": "function", "function": {{"name": ...}}}}')


def _only(allowed: bool) -> BeforeValidator:
    def check(value: Any) -> Any:
        if value is not None and value is not allowed:
            raise ValueError(f"not supported; only {json.dumps(allowed)} is accepted")
        return value

    return BeforeValidator(check)


_IDS = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
_STRING = {"type": "string"}
_PROMPT = {
    "anyOf": [
        {**_STRING, "minLength": 1},
        _IDS,
        {"type": "array", "items": {"anyOf": [_STRING, _IDS]}, "minItems": 1, "maxItems": MAX_PROMPTS},
    ]
}
_STOP = {"anyOf": [_STRING, {"type": "array", "items": _STRING, "maxItems": MAX_STOPS}, {"type": "null"}]}
_BIAS = {
    "anyOf": [
        {"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}},
        {"type": "null"},
    ]
}
_NAMED = {
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "function": {"type": "object", "properties": {"name": _STRING}, "required": ["name"]},
    },
    "required": ["type", "function"],
}
_CHOICE = {"anyOf": [{"enum": list(MODES)}, _NAMED, {"type": "null"}]}


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = STRICT
    include_usage: bool = False


class _Request(BaseModel):
    """What both routes that generate share."""

    model_config = STRICT
    model: Text
    max_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="answers; that number i has the seed plus i")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=1e-6, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31 - 1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    ignore_eos: bool | None = None  # vLLM's: go on after an end token, until `max_tokens` or a stop string
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=2)
    logit_bias: Annotated[dict[int, float], PlainValidator(_biases), WithJsonSchema(_BIAS)] = {}
    stop: Annotated[list[str], PlainValidator(_stops), WithJsonSchema(_STOP)] = []
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Note | None = None

    @model_validator(mode="after")
    def _check_stream(self) -> "_Request":
        if self.stream_options is not None and not self.stream:
            raise FieldError("stream_options", "allowed only with stream=true")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a streamed answer ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


class AnswerSchema(BaseModel):
    """A JSON schema under a name."""

    model_config = STRICT
    name: Name
    description: Text | None = None
    schema_: Json = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """Text, any JSON object, or JSON of a schema."""

    model_config = STRICT
    type: Literal["text", "json_object", "json_schema"]
    json_schema: AnswerSchema | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> "ResponseFormat":
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise FieldError("json_schema", "needed with type 'json_schema', and allowed only there")
        return self


class ChatRequest(_Request):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, min_length=1, max_length=MAX_TOOLS)
    tool_choice: Annotated[str | None, PlainValidator(_choice), WithJsonSchema(_CHOICE)] = None
    parallel_tool_calls: Annotated[bool | None, _only(True)] = None

    @model_validator(mode="after")
    def _check_together(self) -> "ChatRequest":
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise FieldError("max_tokens", "differs from max_completion_tokens: send one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise FieldError("top_logprobs", "allowed only with logprobs=true")
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) < len(names):
            raise FieldError("tools", "two functions have one name")
        if self.tool_choice not in (None, "none") and not names:
            raise FieldError("tool_choice", "allowed only with tools")
        if self.named_tool is not None and self.named_tool not in names:
            raise FieldError("tool_choice", f"no tool is named {self.named_tool!r}")
        constrained = self.response_format is not None and self.response_format.type != "text"
        if constrained and self.offered_tools:
            raise FieldError("response_format", "JSON and tool calls exclude each other; send tool_choice='none'")
        if self.ignore_eos and (constrained or self.must_call):
            raise FieldError("ignore_eos", "JSON ends where it ends")
        if self.stop and (constrained or self.must_call):
            raise FieldError(
                "stop", "would cut JSON: not allowed with a response_format or a tool_choice that asks for it"
            )
        check_conversation(self.messages)
        return self

    @property
    def named_tool(self) -> str | None:
        """The function that must be called."""
        return self.tool_choice[1:] if self.tool_choice and self.tool_choice.startswith(":") else None

    @property
    def offered_tools(self) -> list[Tool]:
        """The tools that may be called."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def must_call(self) -> bool:
        """Whether the answer has to be a call."""
        return self.tool_choice not in (None, "none", "auto")


class CompletionRequest(_Request):
    """POST /v1/completions; with `max_tokens` 0, `echo` and `logprobs` it scores a prompt."""

    prompt: Annotated[list[str | list[int]], PlainValidator(_prompts), WithJsonSchema(_PROMPT)]
    max_tokens: int | None = Field(None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _check_together(self) -> "CompletionRequest":
        if self.stream and self.echo:
            raise FieldError("echo", "not supported with stream=true")
        if len(self.prompt) * (self.n or 1) > MAX_ANSWERS:
            raise FieldError("n", f"{len(self.prompt)} prompts times n are more than {MAX_ANSWERS} answers")
        return self


class TokenizeRequest(BaseModel):
    """POST /tokenize: of a text as /v1/completions reads it, or of a conversation as the chat does."""

    model_config = STRICT
    model: Text | None = Field(None, description="the first one served, unless named")
    prompt: Text | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=1000)
    tools: list[Tool] | None = Field(None, min_length=1, max_length=MAX_TOOLS)
    add_special_tokens: bool = Field(True, description="of a text: begin with the end-of-text token")
    add_generation_prompt: bool = Field(True, description="of a conversation: end with an opened answer")
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _check_together(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise FieldError("prompt", "send either this or messages")
        if self.tools and self.messages is None:
            raise FieldError("tools", "allowed only with messages")
        check_conversation(self.messages or [])
        return self


class DetokenizeRequest(BaseModel):
    """POST /detokenize."""

    model_config = STRICT
    model: Text | None = Field(None, description="the first one served, unless named")
    tokens: list[int]
