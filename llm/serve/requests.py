"""Bodies of the two completion routes: OpenAI's fields that are supported, and no others.

A field that would be ignored is refused, because a silent no changes answers without a word; the exceptions are
`user`, and the penalties and `n` at the values that mean nothing.
"""

import unicodedata
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from llm.serve.errors import from_validation

MAX_CHARS = 1_000_000  # far beyond any context; refused before it costs a tokenizer's time
MAX_PROMPTS = 32
MAX_STOPS = 4
MAX_LOGPROBS = 5  # alternatives at each place, as OpenAI has it


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    if len(value) > MAX_CHARS:
        raise ValueError(f"holds {len(value)} characters; at most {MAX_CHARS} are read")
    return unicodedata.normalize("NFC", value)


def _content(value: object) -> str:
    """Accept a string, or a list of text parts as newer clients send."""
    if isinstance(value, list):
        pieces = []
        for part in value:
            if not isinstance(part, dict) or part.keys() != {"type", "text"} or part["type"] != "text":
                raise ValueError('a content part must be {"type": "text", "text": ...}')
            pieces.append(_text(part["text"]))
        return "".join(pieces)
    return _text(value)


def _stops(value: object) -> list[str]:
    values = [] if value is None else value if isinstance(value, list) else [value]
    if len(values) > MAX_STOPS:
        raise ValueError(f"holds {len(values)} strings; at most {MAX_STOPS} are allowed")
    stops = [_text(one) for one in values]
    if "" in stops:
        raise ValueError("a stop string must not be empty")
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
        return _text(value)
    raise ValueError("must be a string, a list of strings, a list of token ids, or a list of such lists")


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _only(allowed: float) -> BeforeValidator:
    def check(value: Any) -> Any:
        if value is not None and (isinstance(value, bool) or value != allowed):
            raise ValueError(f"not supported; only {allowed} is accepted")
        return value

    return BeforeValidator(check)


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False


class Message(BaseModel):
    """One turn of the conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, PlainValidator(_content)]

    def as_turn(self) -> dict[str, str]:
        """Return the turn with the role under the name that the chat template knows."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class _Request(BaseModel):
    """What both routes share."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31 - 1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    ignore_eos: bool | None = None  # vLLM's: go on after an end token, until `max_tokens` or a stop string
    stop: Annotated[list[str], PlainValidator(_stops)] = []
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    n: Annotated[int | None, _only(1)] = None
    presence_penalty: Annotated[float | None, _only(0)] = None
    frequency_penalty: Annotated[float | None, _only(0)] = None

    @model_validator(mode="after")
    def _check_stream(self) -> "_Request":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: allowed only with stream=true")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a streamed answer ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(_Request):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _check_lengths(self) -> "ChatRequest":
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ: send one of them")
        return self


class CompletionRequest(_Request):
    """POST /v1/completions; with `max_tokens` 0, `echo` and `logprobs` it scores a prompt."""

    prompt: Annotated[list[str | list[int]], PlainValidator(_prompts)]
    max_tokens: int | None = Field(None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _check_scores(self) -> "CompletionRequest":
        if self.stream and (self.echo or self.logprobs is not None):
            raise ValueError("echo, logprobs: not supported with stream=true")
        return self


R = TypeVar("R", bound=_Request)


def parse(kind: type[R], body: bytes) -> R:
    """Return the request of a body. Raises ApiError(400) that names the field at fault."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None
