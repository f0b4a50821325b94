"""One thread that owns the model and runs every request through it, step by step.

A backend (OpenVINO or torch) knows nothing of threads; `Engine` gives it token ids, hands tokens out as they come,
and drops a request whose reader has gone. Token ids and lengths are checked here, because OpenVINO accepts wrong ones.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Literal, Protocol

log = logging.getLogger(__name__)

Finish = Literal["stop", "length", "error"]


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens, and when to end."""

    max_tokens: int
    stop_ids: frozenset[int]
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is all
    min_p: float = 0.0  # tokens less probable than this share of the most probable one are left out; 0 is none
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    num_top: int | None = None  # log-probabilities wanted, with so many alternatives at each place
    json_schema: str | None = None  # the answer is one compact JSON value of this schema, or ends by length


@dataclass(frozen=True)
class TokenScore:
    """Log-probability [nats] of a given token, and those of the most probable ones at its place."""

    logprob: float
    top: dict[int, float]


@dataclass(frozen=True)
class Event:
    """New tokens of one request, or the scores of given ones; with `finish`, its last."""

    tokens: list[int]
    finish: Finish | None = None
    scores: list[TokenScore] = field(default_factory=list)


class Backend(Protocol):
    """A model that advances all its requests by one step; called from one thread only.

    `score` is None where the engine has no exact log-probabilities; else it gives those of all ids but the first.
    """

    name: str

    @property
    def score(self) -> Callable[[list[int], int], list[TokenScore]] | None: ...
    def add(self, request: int, ids: list[int], sampling: Sampling) -> None: ...
    def step(self) -> list[tuple[int, Event]]: ...
    def cancel(self, request: int) -> None: ...


Sink = Callable[[Event], None]


@dataclass(frozen=True)
class _Add:
    number: int
    ids: list[int]
    request: Sampling | int  # how to go on, or how many alternatives to score at each place
    sink: Sink


class Engine:
    """The thread over a backend.

    `observe(running, new_tokens)` is told what happened; `pause()` runs after each step and lets other threads work:
    OpenVINO's step holds the interpreter's lock.
    """

    def __init__(
        self,
        backend: Backend,
        vocab_size: int,
        context: int,
        observe: Callable[[int, int], None] = lambda running, new_tokens: None,
        pause: Callable[[], None] = lambda: time.sleep(0),
    ):
        self.name, self.context, self.alive = backend.name, context, True
        self.can_score = backend.score is not None
        self._backend, self._vocab_size, self._observe = backend, vocab_size, observe
        self._pause = pause
        self._commands: queue.SimpleQueue[_Add | int | None] = queue.SimpleQueue()  # an int cancels, None closes
        self._lock = threading.Lock()  # held to add, and to stop adding: no request is ever left without an end
        self._sinks: dict[int, Sink] = {}
        self._numbers = count(1)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def check(self, ids: list[int], sampling: Sampling) -> None:
        """Raise ValueError for what a backend might silently accept."""
        self._check_ids(ids)
        if sampling.max_tokens < 1 or len(ids) + sampling.max_tokens > self.context:
            raise ValueError(f"{len(ids)} + {sampling.max_tokens} tokens do not fit a context of {self.context}")

    def _check_ids(self, ids: list[int]) -> None:
        if not ids:
            raise ValueError("the prompt holds no token")
        wrong = [i for i in ids if not 0 <= i < self._vocab_size]
        if wrong:
            raise ValueError(f"token id {wrong[0]} is outside the vocabulary of {self._vocab_size}")

    def submit(self, ids: list[int], sampling: Sampling, sink: Sink) -> int:
        """Start a request and return its number; `sink` gets its events, called from the engine's thread.

        Raises: ValueError: see `check`. RuntimeError: the engine has stopped.
        """
        self.check(ids, sampling)
        return self._put(ids, sampling, sink)

    def submit_score(self, ids: list[int], num_top: int, sink: Sink) -> int:
        """Score given ids; `sink` gets one event, with the scores of all but the first.

        Raises: as `submit`; ValueError too when the engine cannot score.
        """
        self._check_ids(ids)
        if not self.can_score or len(ids) > self.context:
            raise ValueError(f"{self.name} cannot score {len(ids)} tokens in a context of {self.context}")
        return self._put(ids, num_top, sink)

    def _put(self, ids: list[int], request: Sampling | int, sink: Sink) -> int:
        with self._lock:
            if not self.alive:
                raise RuntimeError("the engine has stopped")
            number = next(self._numbers)
            self._commands.put(_Add(number, ids, request, sink))
        return number

    def cancel(self, number: int) -> None:
        """End a request; nothing happens when it has ended already."""
        self._commands.put(number)

    def stream(self, ids: list[int], sampling: Sampling) -> Iterator[Event]:
        """Yield the events of a request; leaving the loop early cancels it."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        number = self.submit(ids, sampling, events.put)
        try:
            while True:
                event = events.get()
                yield event
                if event.finish:
                    return
        finally:
            self.cancel(number)

    def close(self) -> None:
        """Stop the thread; running requests end with an error."""
        self._commands.put(None)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            while self._take_commands():
                if self._sinks:
                    self._hand_out(self._backend.step())
                    self._pause()
        except Exception:
            log.exception("the engine failed")
        with self._lock:
            self.alive = False
        left = list(self._sinks.values())
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, _Add):
                left.append(command.sink)
        self._sinks.clear()
        for sink in left:
            sink(Event([], "error"))
        self._observe(0, 0)

    def _take_commands(self) -> bool:
        """Do what was asked; wait for it when nothing is running. Returns False when closed."""
        while True:
            try:
                command = self._commands.get(block=not self._sinks)
            except queue.Empty:
                return True
            if command is None:
                return False
            if isinstance(command, _Add):
                self._sinks[command.number] = command.sink
                self._start(command)
            elif self._sinks.pop(command, None) is not None:
                self._backend.cancel(command)
            self._observe(len(self._sinks), 0)

    def _start(self, command: _Add) -> None:
        if isinstance(command.request, Sampling):
            self._backend.add(command.number, command.ids, command.request)
            return
        assert self._backend.score is not None, self.name
        scores = self._backend.score(command.ids, command.request)
        self._hand_out([(command.number, Event([], "stop", scores))])

    def _hand_out(self, events: list[tuple[int, Event]]) -> None:
        for number, event in events:
            sink = self._sinks.get(number)
            if event.finish:
                self._sinks.pop(number, None)
            if sink is not None:
                sink(event)
        self._observe(len(self._sinks), sum(len(event.tokens) for _, event in events))
