"""The answers of one request: the engine's events, and the text that they become."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from llm.serve.backend import Event, Finish, TokenScore
from llm.serve.engine import Engine, QueueFull, Sink
from llm.serve.errors import ApiError
from llm.serve.keys import Caller
from llm.serve.metrics import Metrics, Reason, Watch
from llm.serve.prompts import Prompt
from llm.serve.release import Release
from llm.serve.replies import Usage
from llm.serve.text import TextStream

LOOP_TURNS = 4  # from an event to its bytes on the socket: hand-over, reader, sender, and one to spare


@dataclass(frozen=True)
class Piece:
    """A stretch of certain text; with `finish`, the last."""

    text: str
    num_tokens: int  # of the answer so far, its end token included
    finish: Finish | None = None
    tokens: tuple[int, ...] = ()  # the new ones
    scores: tuple[TokenScore, ...] = ()  # one for each of them, where they were asked for


class _Reader:
    """Events to pieces, one token at a time, so that neither text nor usage depends on the engine's steps."""

    def __init__(self, release: Release, stops: list[str]):
        self._text = TextStream(release.token_bytes, stops)

    def read(self, event: Event) -> Piece:
        text = ""
        for number, token in enumerate(event.tokens, 1):
            text += self._text.feed(token)
            if self._text.stopped:
                tokens, scores = tuple(event.tokens[:number]), tuple(event.scores[:number])
                return Piece(text, self._text.num_tokens, "stop", tokens, scores)
        tokens, scores = tuple(event.tokens), tuple(event.scores)
        if not event.finish:
            return Piece(text, self._text.num_tokens, None, tokens, scores)
        text += self._text.finish()
        finish = "stop" if self._text.stopped else event.finish
        return Piece(text, self._text.num_tokens, finish, tokens, scores)


def stream_answer(engine: Engine, release: Release, prompt: Prompt) -> Iterator[Piece]:
    """Yield the pieces of an answer; leaving the loop early cancels it."""
    reader = _Reader(release, prompt.stops)
    for event in engine.stream(prompt.ids, prompt.sampling):
        piece = reader.read(event)
        yield piece
        if piece.finish:
            return


@dataclass
class Answer:
    """A whole answer."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    finish: Finish = "length"


class Session:
    """The answers of one HTTP request, on the running event loop; `close` cancels those that still run.

    It is not left to `pieces`' own end: a generator that a hang-up leaves suspended ends when it is collected, which
    may be after the last token.
    """

    def __init__(
        self,
        engine: Engine,
        release: Release,
        metrics: Metrics,
        caller: Caller | None = None,
    ):
        self._engine, self._release, self._metrics, self._caller = engine, release, metrics, caller
        self.watches: list[Watch] = []  # one over each answer
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._requests: dict[int, int] = {}  # the engine's number of each answer
        self._prompts: list[Prompt] = []
        self._num_tokens: list[int] = []
        self._num_choices = 1

    def start(self, prompts: Sequence[Prompt], num_choices: int = 1) -> None:
        """Hand all prompts to the engine, of which each stands there so many times.

        Raises: ApiError: the engine is full (429) or has stopped (503), or refuses a prompt (400).
        """
        self._prompts, self._num_choices, self._num_tokens = list(prompts), num_choices, [0] * len(prompts)
        try:
            for index, prompt in enumerate(prompts):
                if prompt.sampling.max_tokens:
                    self._submit(partial(self._engine.submit, prompt.ids, prompt.sampling), index)
                else:
                    self._events.put_nowait((index, Event([], "length")))
        except ApiError:
            self._cancel()  # all or none: nothing is charged
            raise
        for index, prompt in enumerate(prompts):
            self.watches.append(self._metrics.started(0 if index % num_choices else len(prompt.ids)))

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yield the pieces of all answers as they come, each with its prompt's place.

        Raises: ApiError: the engine has failed.
        """
        readers = {index: _Reader(self._release, prompt.stops) for index, prompt in enumerate(self._prompts)}
        while readers:
            index, event = await self._next()
            if index not in readers:  # a stop string has ended the text before the engine knew of it
                continue
            piece = readers[index].read(event)
            self._num_tokens[index] = piece.num_tokens
            self.watches[index].tokens(len(piece.tokens))
            if piece.finish:
                self.watches[index].finished(piece.finish)
                del readers[index]
                if event.finish is None:
                    self._engine.cancel(self._requests[index])
            yield index, piece

    async def collect(self) -> list[Answer]:
        """Return all answers, whole. Raises ApiError as `pieces` does."""
        answers = [Answer() for _ in self._prompts]
        async for index, piece in self.pieces():
            answer = answers[index]
            answer.text += piece.text
            answer.tokens += piece.tokens
            answer.scores += piece.scores
            answer.finish = piece.finish or answer.finish
        return answers

    async def score(self, ids: list[int], num_top: int) -> list[TokenScore]:
        """Return the scores of all ids but the first, when no answer is running. Raises ApiError as `pieces` does."""
        self._submit(partial(self._engine.submit_score, ids, num_top), 0)
        while True:
            _, event = await self._next()
            if event.finish:
                return event.scores

    async def _next(self) -> tuple[int, Event]:
        index, event = await self._events.get()
        if event.finish == "error":
            self._finish("error")
            message = "the engine failed on this request" if self._engine.alive else "the server is shutting down"
            raise ApiError(message, status=500 if self._engine.alive else 503, code="engine_error")
        return index, event

    def _submit(self, submit: Callable[..., int], index: int) -> None:
        loop = asyncio.get_running_loop()
        sink: Sink = lambda event: _hand_over(loop, self._events, (index, event))  # noqa: E731
        try:
            self._requests[index] = submit(sink, owner="" if self._caller is None else self._caller.key_id)
        except QueueFull as error:
            raise ApiError(str(error), status=429, code="queue_full", retry_after_s=error.retry_after_s) from None
        except RuntimeError as error:
            raise ApiError(str(error), status=503, code="engine_error", retry_after_s=1) from None
        except ValueError as error:
            raise ApiError(str(error), code="invalid_value") from None

    def usage(self) -> Usage:
        """Return the tokens so far; a prompt counts once, however many answers it gets."""
        num_prompt = sum(len(prompt.ids) for prompt in self._prompts[:: self._num_choices])
        num_answer = sum(self._num_tokens)
        return Usage(prompt_tokens=num_prompt, completion_tokens=num_answer, total_tokens=num_prompt + num_answer)

    def close(self) -> None:
        """Cancel what still runs, and charge the caller for what there was; the second time nothing happens."""
        self._finish("abort")
        if self._caller is not None and self._requests:
            self._caller.charge(self.usage().total_tokens)
        self._cancel()

    def _finish(self, reason: Reason) -> None:
        """Say so of the answers that have not ended."""
        for watch in self.watches:
            watch.finished(reason)

    def _cancel(self) -> None:
        for number in self._requests.values():
            self._engine.cancel(number)
        self._requests = {}


def _hand_over(
    loop: asyncio.AbstractEventLoop, events: "asyncio.Queue[tuple[int, Event]]", item: tuple[int, Event]
) -> None:
    # A loop that has closed has no reader either: the server is shutting down.
    if not loop.is_closed():
        loop.call_soon_threadsafe(events.put_nowait, item)


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
