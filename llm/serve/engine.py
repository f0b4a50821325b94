"""One thread that owns the model and runs every request through it, step by step.

A backend knows nothing of threads; `Engine` gives it token ids, hands tokens out as they come, and drops a request
whose reader has gone. Token ids and lengths are checked here, because OpenVINO accepts wrong ones. A backend that
raises is replaced: what ran on it ends with an error, what waits goes on.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from llm.serve.backend import Backend, Event, Sampling
from llm.serve.fair_queue import FairQueue
from llm.serve.grammar import to_grammar
from llm.serve.pacing import Pacer

log = logging.getLogger(__name__)

MAX_FAILURES = 3  # backends that fail one after the other, with no request finished, before the engine gives up


class Observer(Protocol):
    """Is told what happens, from the engine's thread."""

    def state(self, running: int, waiting: int, cache_use: float) -> None: ...
    def tokens(self, count: int) -> None: ...
    def restarted(self) -> None: ...


class Unobserved:
    """An observer that does nothing."""

    def state(self, running: int, waiting: int, cache_use: float) -> None:
        """Ignore it."""

    def tokens(self, count: int) -> None:
        """Ignore it."""

    def restarted(self) -> None:
        """Ignore it."""


class QueueFull(RuntimeError):
    """No more requests may wait; `retry_after_s` is about how long a request has taken of late."""

    def __init__(self, retry_after_s: int):
        super().__init__(f"too many requests wait for the engine; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


Sink = Callable[[Event], None]


@dataclass(frozen=True)
class _Request:
    number: int
    ids: list[int]
    work: Sampling | int  # how to go on, or how many alternatives to score at each place
    sink: Sink
    begun_s: float


class Engine:
    """The thread over a backend.

    `make_backend` loads the model, now and after each failure. At most `max_running` requests are in the backend, fewer
    where it takes no more, and `max_queue` more may wait. A stream's tokens are handed out `stream_interval` at a time:
    see `Pacer`. `pause()` runs after each step and lets other threads work, as OpenVINO's step holds the interpreter's
    lock.
    """

    def __init__(
        self,
        make_backend: Callable[[], Backend],
        vocab_size: int,
        context: int,
        *,
        max_running: int = 64,
        max_queue: int = 256,
        stream_interval: int = 1,
        observe: Observer | None = None,
        pause: Callable[[], None] = lambda: time.sleep(0),
    ):
        self._make_backend, self._backend = make_backend, make_backend()
        self.name, self.unsupported = self._backend.name, self._backend.unsupported
        self.can_score = self._backend.score is not None
        self.context, self.alive, self.restarts = context, True, 0
        self._vocab_size, self._max_queue = vocab_size, max_queue
        self._max_running = min(max_running, self._backend.max_running or max_running)
        self._observe, self._pause = observe or Unobserved(), pause
        self._pacer, self._num_new = Pacer(stream_interval), 0  # new: tokens that the observer was not told of yet
        self._changed = threading.Condition()  # guards the next four, and `alive`
        self._waiting: FairQueue[_Request] = FairQueue()
        self._running: dict[int, _Request] = {}
        self._cancelled: set[int] = set()
        self._closing = False
        self._numbers = count(1)
        self._failures = 0
        self._usual_s = 1.0  # that a request takes
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def check(self, ids: list[int], sampling: Sampling) -> None:
        """Raise ValueError for what a backend cannot do, or might silently accept."""
        self._check_ids(ids)
        if sampling.max_tokens < 1 or len(ids) + sampling.max_tokens > self.context:
            raise ValueError(f"{len(ids)} + {sampling.max_tokens} tokens do not fit a context of {self.context}")
        missing = sampling.needs() & self.unsupported
        if missing:
            raise ValueError(f"the engine {self.name} does not do {', '.join(sorted(missing))}")
        self._check_known([token for token, _ in sampling.logit_bias])
        if sampling.json_schema is not None:
            to_grammar(sampling.json_schema)

    def _check_ids(self, ids: list[int]) -> None:
        if not ids:
            raise ValueError("the prompt holds no token")
        self._check_known(ids)

    def _check_known(self, ids: list[int]) -> None:
        wrong = [i for i in ids if not 0 <= i < self._vocab_size]
        if wrong:
            raise ValueError(f"token id {wrong[0]} is outside the vocabulary of {self._vocab_size}")

    def submit(self, ids: list[int], sampling: Sampling, sink: Sink, owner: str = "") -> int:
        """Queue a request and return its number; `sink` gets its events, called from the engine's thread.

        Owners take turns; the requests of one are started in their order.

        Raises: ValueError: see `check`. QueueFull: too many wait. RuntimeError: the engine has stopped.
        """
        self.check(ids, sampling)
        return self._put(ids, sampling, sink, owner)

    def submit_score(self, ids: list[int], num_top: int, sink: Sink, owner: str = "") -> int:
        """Score given ids; `sink` gets one event, with the scores of all but the first.

        Raises: as `submit`; ValueError too when the engine cannot score.
        """
        self._check_ids(ids)
        if not self.can_score or len(ids) > self.context:
            raise ValueError(f"{self.name} cannot score {len(ids)} tokens in a context of {self.context}")
        return self._put(ids, num_top, sink, owner)

    def _put(self, ids: list[int], work: Sampling | int, sink: Sink, owner: str) -> int:
        with self._changed:
            if not self.alive:
                raise RuntimeError("the engine has stopped")
            if len(self._running) + len(self._waiting) >= self._max_running + self._max_queue:
                raise QueueFull(max(1, round(self._usual_s)))
            number = next(self._numbers)
            self._waiting.put(owner, number, _Request(number, ids, work, sink, time.monotonic()))
            self._changed.notify()
        return number

    def cancel(self, number: int) -> None:
        """End a request; nothing happens when it has ended already."""
        with self._changed:
            if self._waiting.remove(number) is None and number in self._running:
                self._cancelled.add(number)
                self._changed.notify()

    def stream(self, ids: list[int], sampling: Sampling, owner: str = "") -> Iterator[Event]:
        """Yield the events of a request; leaving the loop early cancels it."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        number = self.submit(ids, sampling, events.put, owner)
        try:
            while True:
                event = events.get()
                yield event
                if event.finish:
                    return
        finally:
            self.cancel(number)

    def close(self) -> None:
        """Stop the thread; running and waiting requests end with an error."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while self._wait_for_work():
            if not self._turn_safely() and not self._restart():
                break
        with self._changed:
            self.alive = False
            left = list(self._running.values())
            while self._waiting:
                left.append(self._waiting.take())
            self._running.clear()
        self._fail(left)
        self._observe.state(0, 0, 0.0)

    def _wait_for_work(self) -> bool:
        with self._changed:
            if self._running or self._waiting or self._closing:
                return not self._closing
            self._changed.wait_for(lambda: self._waiting or self._closing)
        self._pause()  # those that come together start together
        return not self._closing

    def _turn_safely(self) -> bool:
        try:
            self._turn()
        except Exception:
            log.exception("the engine failed on %d requests", len(self._running))
            return False
        return True

    def _turn(self) -> None:
        """Drop what was cancelled, start what may run, and take one step."""
        with self._changed:
            dropped = [number for number in self._cancelled if self._running.pop(number, None) is not None]
            self._cancelled.clear()
        for number in dropped:
            self._backend.cancel(number)
            self._pacer.drop(number)
        while (request := self._take_next()) is not None:
            self._start(request)
            if not isinstance(request.work, Sampling):
                break  # scoring took a step's time: the running ones are next
        if self._running:
            events = self._backend.step()
            self._num_new += sum(len(event.tokens) for _, event in events)
            self._pacer.put(events)
        if (due := self._pacer.take()) or not self._running:
            self._hand_out(due)
            self._observe.tokens(self._num_new)
            self._num_new = 0
            self._observe.state(len(self._running), len(self._waiting), self._backend.cache_use)
        self._pause()

    def _take_next(self) -> _Request | None:
        with self._changed:
            if not self._waiting or len(self._running) >= self._max_running:
                return None
            request = self._waiting.take()
            self._running[request.number] = request
            return request

    def _start(self, request: _Request) -> None:
        """Hand a request to the backend; one that the backend refuses fails alone."""
        try:
            if isinstance(request.work, Sampling):
                self._backend.add(request.number, request.ids, request.work)
                return
            assert self._backend.score is not None, self.name
            event = Event([], "stop", self._backend.score(request.ids, request.work))
        except Exception:
            log.exception("the engine refused a request of %d tokens", len(request.ids))
            event = Event([], "error")
        self._hand_out([(request.number, event)])

    def _hand_out(self, events: list[tuple[int, Event]]) -> None:
        for number, event in events:
            request = self._running.get(number)
            if request is None:  # cancelled
                continue
            if event.finish:
                with self._changed:
                    del self._running[number]
                if event.finish != "error":
                    self._failures = 0
                self._usual_s += 0.1 * (time.monotonic() - request.begun_s - self._usual_s)
            request.sink(event)

    def _restart(self) -> bool:
        """Fail what was running and load the model anew. Returns False when there is no use in going on."""
        self._hand_out(self._pacer.take(everything=True))
        with self._changed:
            broken = list(self._running.values())
            self._running.clear()
            self._cancelled.clear()
        self._fail(broken)
        self._failures += 1
        del self._backend  # two models may not fit the memory
        while self._failures < MAX_FAILURES:
            try:
                self._backend = self._make_backend()
            except Exception:
                log.exception("the engine could not load the model again")
                self._failures += 1
                continue
            self.restarts += 1
            self._observe.restarted()
            log.warning("the engine was restarted: %d requests failed, %d go on", len(broken), len(self._waiting))
            return True
        log.error("the engine stops: it failed %d times in a row with no request finished", self._failures)
        return False

    @staticmethod
    def _fail(requests: list[_Request]) -> None:
        for request in requests:
            request.sink(Event([], "error"))
