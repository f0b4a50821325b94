"""OpenAI's `logprobs` of chats and completions.

Log-probabilities are the model's own [nats], whatever the sampling was.
"""

import codecs
from collections.abc import Sequence

from llm.serve.answers import Answer, Piece, Session
from llm.serve.backend import TokenScore
from llm.serve.prompts import Prompt
from llm.serve.release import Release
from llm.serve.replies import Alternative, ChatLogprobs, ChatToken, TextLogprobs
from llm.serve.requests import CompletionRequest


def describe_chat(release: Release, part: Answer | Piece) -> ChatLogprobs:
    """Return the log-probabilities of an answer, or of a part of it, without those of the token that ends it."""
    content = [
        ChatToken(
            **_alternative(release, token, one.logprob).model_dump(),
            top_logprobs=[_alternative(release, other, logprob) for other, logprob in one.top.items()],
        )
        for token, one in zip(part.tokens, part.scores, strict=True)
        if token not in release.stop_ids
    ]
    return ChatLogprobs(content=content)


def _alternative(release: Release, token: int, logprob: float) -> Alternative:
    piece = release.token_bytes[token] if token < len(release.token_bytes) else b""
    return Alternative(token=name_token(release, token), logprob=logprob, bytes=list(piece))


async def score_prompt(session: Session, prompt: Prompt, body: CompletionRequest) -> list[TokenScore | None]:
    """Return the scores of a prompt that is echoed; its first token has none."""
    if body.logprobs is None or not body.echo:
        return []
    return [None, *await session.score(prompt.ids, body.logprobs)][prompt.num_implied :]


def describe_text(
    release: Release, ids: Sequence[int], scores: Sequence[TokenScore | None], start: int = 0
) -> TextLogprobs:
    """Return the log-probabilities of a completion's tokens, or of those that follow `start` characters of it."""
    names = [name_token(release, token) for token in ids]
    top = [
        None if one is None else {name_token(release, i): logp for i, logp in one.top.items()} | {name: one.logprob}
        for name, one in zip(names, scores, strict=True)
    ]
    logprobs = [None if one is None else one.logprob for one in scores]
    offsets = [start + place for place in _place(release, ids)]
    return TextLogprobs(tokens=names, token_logprobs=logprobs, top_logprobs=top, text_offset=offsets)


def name_token(release: Release, token: int) -> str:
    """Return the token's text; `bytes:\\x..` for a part of a character, so that no two tokens share a name."""
    if token >= len(release.token_bytes):  # a model may have rows beyond its tokenizer's entries
        return f"<{token}>"
    piece = release.token_bytes[token]
    if not piece:
        return str(release.tokenizer.backend.id_to_token(token))
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _place(release: Release, ids: Sequence[int]) -> list[int]:
    """Return how many characters stand before each token."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    places, length = [], 0
    for token in ids:
        places.append(length)
        piece = release.token_bytes[token] if token < len(release.token_bytes) else b""
        length += len(decoder.decode(piece)) if piece else len(name_token(release, token))
    return places
