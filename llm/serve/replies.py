"""Bodies of the answers, in OpenAI's shapes, and vLLM's for /tokenize and /detokenize."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from llm.serve.messages import ToolCall

FinishReason = Literal["stop", "length", "tool_calls"]


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Usage(_Reply):
    """Tokens read and written; those of all choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Alternative(_Reply):
    """A token and its log-probability [nats]."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(Alternative):
    """A token of the answer, and the most probable ones at its place."""

    top_logprobs: list[Alternative]


class ChatLogprobs(_Reply):
    """Log-probabilities of an answer's tokens, but for the one that ends it."""

    content: list[ChatToken]
    refusal: None = None


class AnswerMessage(_Reply):
    """What the assistant says, or the calls that it makes."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(_Reply):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class _Head(_Reply):
    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatReply(_Head):
    """An answer of /v1/chat/completions."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage


class DeltaCall(ToolCall):
    """A call, given out whole."""

    index: int


class Delta(_Reply):
    """What is new of a message; the rest is left out."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[DeltaCall] | None = None


class ChunkChoice(_Reply):
    """What is new of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(_Head):
    """An event of a streamed chat."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChunkChoice]
    usage: Usage | None = None


class TextLogprobs(_Reply):
    """Log-probabilities [nats] of a completion's tokens; the first token of an echoed prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(_Reply):
    """One answer, or what is new of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None


class TextReply(_Head):
    """An answer of /v1/completions, or an event of it."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]
    usage: Usage | None = None


class ModelAbout(_Reply):
    """What is served under a name."""

    release: str
    fingerprint: str
    status: Literal["released", "not released"]
    context: int
    file: str
    engine: str


class ModelReply(_Reply):
    """GET /v1/models/{model}."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["gristmill"] = "gristmill"
    metadata: ModelAbout


class ModelList(_Reply):
    """GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelReply]


class TokenizeReply(_Reply):
    """An answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeReply(_Reply):
    """An answer of /detokenize."""

    prompt: str


class ErrorDetail(_Reply):
    """What was wrong, and with which field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(_Reply):
    """The body of every answer that is an error."""

    error: ErrorDetail
