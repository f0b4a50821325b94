"""From the answers of an engine to the replies of /v1/chat/completions and /v1/completions, whole or in chunks."""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from llm.serve.answers import Answer, Piece, Session
from llm.serve.logprobs import describe_chat, describe_text, score_prompt
from llm.serve.messages import ToolCall
from llm.serve.prompts import Prompt
from llm.serve.release import Release
from llm.serve.replies import (
    AnswerMessage,
    ChatChoice,
    ChatReply,
    ChunkChoice,
    Delta,
    DeltaCall,
    FinishReason,
    TextChoice,
    TextReply,
)
from llm.serve.requests import ChatRequest, CompletionRequest
from llm.serve.tools import CallReader


def make_head(prefix: str, kind: str, release: Release) -> dict[str, Any]:
    """Return the fields that a reply shares with its chunks."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": release.model,
        "system_fingerprint": release.fingerprint,
    }


def _make_reader(body: ChatRequest) -> CallReader:
    names = [tool.function.name for tool in body.offered_tools]
    return CallReader([body.named_tool] if body.named_tool else names, body.must_call)


def _finish(part: Answer | Piece, reader: CallReader) -> FinishReason | None:
    assert part.finish != "error", "a session raises it"
    return "tool_calls" if part.finish == "stop" and reader.calls else part.finish


async def answer_chat(session: Session, release: Release, body: ChatRequest) -> ChatReply:
    """Return the answers whole."""
    choices = []
    for index, answer in enumerate(await session.collect()):
        reader = _make_reader(body)
        parts = [*reader.feed(answer.text), *reader.finish()]
        content = "".join(part for part in parts if isinstance(part, str))
        calls = [part for part in parts if isinstance(part, ToolCall)]
        message = AnswerMessage(role="assistant", content=content, refusal=None)
        if calls:
            message = AnswerMessage(role="assistant", content=content or None, refusal=None, tool_calls=calls)
        logprobs = describe_chat(release, answer) if body.logprobs else None
        finish = _finish(answer, reader)
        assert finish is not None
        choices.append(ChatChoice(index=index, message=message, logprobs=logprobs, finish_reason=finish))
    head = make_head("chatcmpl", "chat.completion", release)
    return ChatReply(**head, choices=choices, usage=session.usage())


async def stream_chat(session: Session, release: Release, body: ChatRequest) -> AsyncIterator[ChunkChoice]:
    """Yield what is new of the answers, as it comes."""
    readers = [_make_reader(body) for _ in range(body.n or 1)]

    def chunk(index: int, delta: Delta, piece: Piece | None = None, finish: FinishReason | None = None) -> ChunkChoice:
        logprobs = describe_chat(release, piece) if body.logprobs and piece is not None else None
        return ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish)

    for index in range(len(readers)):
        yield chunk(index, Delta(role="assistant", content=""))
    async for index, piece in session.pieces():
        reader = readers[index]
        parts = reader.feed(piece.text) + (reader.finish() if piece.finish else [])
        deltas = [_delta(part, reader) for part in parts]
        if body.logprobs and piece.tokens and not deltas:  # tokens whose text is held back
            deltas = [Delta(content="")]
        for number, delta in enumerate(deltas):
            yield chunk(index, delta, piece if number == 0 else None)
        if piece.finish:
            yield chunk(index, Delta(), finish=_finish(piece, reader))


def _delta(part: str | ToolCall, reader: CallReader) -> Delta:
    if isinstance(part, str):
        return Delta(content=part)
    return Delta(tool_calls=[DeltaCall(**part.model_dump(), index=reader.calls.index(part))])


async def answer_text(session: Session, release: Release, body: CompletionRequest, prompts: list[Prompt]) -> TextReply:
    """Return the answers whole, each after its prompt where that is to be echoed."""
    answers = await session.collect()
    choices = []
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        echoed = prompt.ids[prompt.num_implied :] if body.echo else []
        text = release.tokenizer.decode(echoed) + answer.text if echoed else answer.text
        logprobs = None
        if body.logprobs is not None:
            scores = [*await score_prompt(session, prompt, body), *answer.scores]
            logprobs = describe_text(release, [*echoed, *answer.tokens], scores)
        choices.append(TextChoice(index=index, text=text, logprobs=logprobs, finish_reason=_plain(answer)))
    return TextReply(**make_head("cmpl", "text_completion", release), choices=choices, usage=session.usage())


async def stream_text(session: Session, release: Release, body: CompletionRequest) -> AsyncIterator[TextChoice]:
    """Yield what is new of the answers, as it comes."""
    places: dict[int, int] = {}
    async for index, piece in session.pieces():
        logprobs = None
        if body.logprobs is not None:
            logprobs = describe_text(release, piece.tokens, piece.scores, places.get(index, 0))
            places[index] = places.get(index, 0) + len(piece.text)
        if piece.text or piece.finish or logprobs:
            yield TextChoice(index=index, text=piece.text, logprobs=logprobs, finish_reason=_plain(piece))


def _plain(part: Answer | Piece) -> FinishReason | None:
    assert part.finish != "error", "a session raises it"
    return part.finish
