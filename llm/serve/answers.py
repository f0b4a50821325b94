"""One answer: a prompt that fits, the engine's events, and the text that they become."""

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from llm.serve.engine import Engine, Event, Finish, Sampling, Sink, TokenScore
from llm.serve.errors import ApiError
from llm.serve.release import Release
from llm.serve.requests import ChatRequest, CompletionRequest
from llm.serve.text import TextStream

COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions; a chat answer may fill the context

LOOP_TURNS = 4  # from an event to its bytes on the socket: hand-over, reader, sender, and one to spare


@dataclass(frozen=True)
class Piece:
    """A stretch of certain text; with `finish`, the last."""

    text: str
    num_tokens: int  # of the answer so far, its end token included
    finish: Finish | None = None
    tokens: tuple[int, ...] = ()  # the new ones


@dataclass(frozen=True)
class Prompt:
    """Token ids, and how to go on from them."""

    ids: list[int]
    sampling: Sampling
    stops: list[str]
    num_implied: int = 0  # ids at the beginning that the client did not send


def prepare_chat(body: ChatRequest, release: Release) -> Prompt:
    """Return the prompt of a chat request. Raises ApiError when it leaves no room."""
    turns = [message.as_turn() for message in body.messages]
    _require_readable(sum(len(turn["content"]) for turn in turns), release, "messages")
    ids = release.encode_chat(turns)
    return _fit(ids, body, release, body.max_tokens or body.max_completion_tokens or release.context, "messages")


def prepare_completion(body: CompletionRequest, release: Release) -> list[Prompt]:
    """Return the prompts of a completion request. Raises ApiError when one is wrong or leaves no room."""
    prompts = []
    for prompt in body.prompt:
        if isinstance(prompt, str):
            _require_readable(len(prompt), release, "prompt")
        ids = release.encode_text(prompt) if isinstance(prompt, str) else prompt
        wrong = [i for i in ids if not 0 <= i < release.tokenizer.vocab_size]
        if wrong:
            size = release.tokenizer.vocab_size
            message = f"prompt: token id {wrong[0]} is outside the vocabulary of {size}"
            raise ApiError(message, param="prompt", code="invalid_value")
        wish = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        fitted = _fit(ids, body, release, wish, "prompt")
        prompts.append(replace(fitted, num_implied=1) if isinstance(prompt, str) else fitted)
    return prompts


def _require_readable(num_chars: int, release: Release, param: str) -> None:
    """Refuse what cannot fit, even in the longest tokens, before it costs the time to encode it."""
    least = num_chars // max(len(piece) for piece in release.token_bytes)
    if least > release.context:
        raise ApiError(
            f"{param}: more than {least} tokens do not fit a context of {release.context}",
            param=param,
            code="context_length_exceeded",
        )


def _fit(ids: list[int], body: ChatRequest | CompletionRequest, release: Release, wish: int, param: str) -> Prompt:
    room = release.context - len(ids)
    if room < min(wish, 1):
        raise ApiError(
            f"{param}: {len(ids)} tokens leave no room for an answer in a context of {release.context}",
            param=param,
            code="context_length_exceeded",
        )
    sampling = Sampling(
        max_tokens=min(wish, room),
        stop_ids=frozenset() if body.ignore_eos else release.stop_ids,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        seed=secrets.randbits(63) if body.seed is None else body.seed,
    )
    return Prompt(ids, sampling, body.stop)


class _Reader:
    """Events to pieces, one token at a time, so that neither text nor usage depends on the engine's steps."""

    def __init__(self, release: Release, stops: list[str]):
        self._text = TextStream(release.token_bytes, stops)

    def read(self, event: Event) -> Piece:
        text = ""
        for number, token in enumerate(event.tokens, 1):
            text += self._text.feed(token)
            if self._text.stopped:
                return Piece(text, self._text.num_tokens, "stop", tuple(event.tokens[:number]))
        tokens = tuple(event.tokens)
        if not event.finish:
            return Piece(text, self._text.num_tokens, tokens=tokens)
        text += self._text.finish()
        return Piece(text, self._text.num_tokens, "stop" if self._text.stopped else event.finish, tokens)


def stream_answer(engine: Engine, release: Release, prompt: Prompt) -> Iterator[Piece]:
    """Yield the pieces of an answer; leaving the loop early cancels it."""
    reader = _Reader(release, prompt.stops)
    for event in engine.stream(prompt.ids, prompt.sampling):
        piece = reader.read(event)
        yield piece
        if piece.finish:
            return


class Session:
    """The answers of one HTTP request, on the running event loop; `close` cancels those that still run.

    It is not left to `stream`'s own end: a generator that a hang-up leaves suspended ends when it is collected, which
    may be after the last token.
    """

    def __init__(self, engine: Engine, release: Release):
        self._engine, self._release = engine, release
        self._numbers: list[int] = []

    async def stream(self, prompt: Prompt) -> AsyncIterator[Piece]:
        """Yield the pieces of an answer. Raises ApiError when the engine has failed."""
        if not prompt.sampling.max_tokens:
            yield Piece("", 0, "length")
            return
        reader = _Reader(self._release, prompt.stops)
        number, events = self._submit(partial(self._engine.submit, prompt.ids, prompt.sampling))
        while True:
            piece = reader.read(await events.get())
            if piece.finish == "error":
                raise ApiError("the engine failed on this request", status=500, code="engine_error")
            yield piece
            if piece.finish:
                self._engine.cancel(number)  # a stop string ends the text, but not the engine
                return

    async def score(self, ids: list[int], num_top: int) -> list[TokenScore]:
        """Return the scores of all ids but the first. Raises ApiError when the engine has failed."""
        _, events = self._submit(partial(self._engine.submit_score, ids, num_top))
        event = await events.get()
        if event.finish == "error":
            raise ApiError("the engine failed on this request", status=500, code="engine_error")
        return event.scores

    def _submit(self, submit: Callable[[Sink], int]) -> tuple[int, "asyncio.Queue[Event]"]:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()
        try:
            number = submit(lambda event: _hand_over(loop, events, event))
        except RuntimeError as error:
            raise ApiError(str(error), status=503, code="engine_error") from None
        self._numbers.append(number)
        return number, events

    def close(self) -> None:
        """Cancel what still runs; what has ended is not touched."""
        for number in self._numbers:
            self._engine.cancel(number)


def _hand_over(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], event: Event) -> None:
    # A loop that has closed has no reader either: the server is shutting down.
    if not loop.is_closed():
        loop.call_soon_threadsafe(events.put_nowait, event)


def let_turn(loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
    """Return a function by which another thread waits until the loop has turned a few times.

    The engine's thread calls it after each step. Otherwise the loop gets the interpreter's lock once per step, which
    is one system call: it falls behind the tokens, and notices a client that hangs up when all is generated.
    """
    done = threading.Event()

    def turn(left: int) -> None:
        if left:
            loop.call_soon(turn, left - 1)
        else:
            done.set()

    def wait() -> None:
        done.clear()
        if not loop.is_closed():
            loop.call_soon_threadsafe(turn, LOOP_TURNS)
            done.wait(timeout=0.05)

    return wait
