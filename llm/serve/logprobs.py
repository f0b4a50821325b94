"""The choices of /v1/completions: the text, with the prompt where it is to be echoed, and OpenAI's `logprobs`.

Log-probabilities are the model's own [nats], whatever the sampling was, from one pass over prompt and answer.
"""

import codecs
from typing import Any

from llm.serve.answers import Prompt, Session
from llm.serve.engine import TokenScore
from llm.serve.release import Release
from llm.serve.requests import CompletionRequest


async def make_choice(
    session: Session, release: Release, prompt: Prompt, text: str, tokens: tuple[int, ...], body: CompletionRequest
) -> dict[str, Any]:
    """Return `text` and `logprobs` of one answer."""
    first = prompt.num_implied if body.echo else len(prompt.ids)
    if body.echo:
        text = release.tokenizer.decode(prompt.ids[first:]) + text
    if body.logprobs is None:
        return {"text": text, "logprobs": None}
    ids = [*prompt.ids, *tokens]
    scores = [None, *await session.score(ids, body.logprobs)]
    return {"text": text, "logprobs": _describe(release, ids[first:], scores[first:])}


def _describe(release: Release, ids: list[int], scores: list[TokenScore | None]) -> dict[str, Any]:
    names = [name_token(release, token) for token in ids]
    top = [
        None if one is None else {name_token(release, i): logp for i, logp in one.top.items()} | {name: one.logprob}
        for name, one in zip(names, scores, strict=True)
    ]
    return {
        "tokens": names,
        "token_logprobs": [None if one is None else one.logprob for one in scores],
        "top_logprobs": top,
        "text_offset": _place(release, ids),
    }


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


def _place(release: Release, ids: list[int]) -> list[int]:
    """Return how many characters stand before each token."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    places, length = [], 0
    for token in ids:
        places.append(length)
        piece = release.token_bytes[token] if token < len(release.token_bytes) else b""
        length += len(decoder.decode(piece)) if piece else len(name_token(release, token))
    return places
