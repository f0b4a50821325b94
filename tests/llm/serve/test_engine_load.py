"""The engine under load and under failure, with a backend of one scripted token per step."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from llm.serve.backend import Backend, Event, Sampling, TokenScore
from llm.serve.engine import Engine, QueueFull, Unobserved

WAIT_S = 20


class Scripted:
    """Gives each request its first prompt token back; a step waits for `gate`, and raises after `good_steps`."""

    name = "scripted"
    max_running: int | None = None
    unsupported = frozenset({"json_schema"})
    score: Callable[[list[int], int], list[TokenScore]] | None = None
    cache_use = 0.0

    def __init__(self, gate: threading.Event | None = None, good_steps: int = 10**6):
        self.gate, self.good_steps = gate, good_steps
        self.left: dict[int, tuple[int, int]] = {}
        self.started: list[int] = []
        self.most = 0

    def add(self, request: int, ids: list[int], sampling: Sampling) -> None:
        if ids[0] == 9:
            raise RuntimeError("no such grammar")
        self.left[request] = (ids[0], sampling.max_tokens)
        self.started.append(ids[0])

    def step(self) -> list[tuple[int, Event]]:
        self.most = max(self.most, len(self.left))
        if self.gate is not None:
            assert self.gate.wait(WAIT_S)
        if not self.good_steps:
            raise RuntimeError("out of memory")
        self.good_steps -= 1
        events = []
        for request, (token, left) in list(self.left.items()):
            self.left[request] = (token, left - 1)
            events.append((request, Event([token], "length" if left == 1 else None)))
            if left == 1:
                del self.left[request]
        return events

    def cancel(self, request: int) -> None:
        self.left.pop(request, None)


class Sink:
    """Collects the events of one request."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.finish: str | None = None
        self._done = threading.Event()

    def __call__(self, event: Event) -> None:
        self.tokens += event.tokens
        if event.finish:
            assert self.finish is None, "a request ends once"
            self.finish = event.finish
            self._done.set()

    def wait(self) -> str | None:
        assert self._done.wait(WAIT_S)
        return self.finish


@contextmanager
def running(make_backend: Callable[[], Backend], **limits: int) -> Iterator[Engine]:
    engine = Engine(make_backend, 10, 100, **limits)  # type: ignore[arg-type]
    yield engine
    engine.close()


def submit(engine: Engine, token: int, owner: str = "", max_tokens: int = 2) -> Sink:
    sink = Sink()
    engine.submit([token], Sampling(max_tokens, frozenset()), sink, owner)
    return sink


def test_owners_take_turns_and_no_more_than_the_limit_run() -> None:
    gate = threading.Event()
    backend = Scripted(gate)
    with running(lambda: backend, max_running=1) as engine:
        sinks = [submit(engine, token, owner) for token, owner in [(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "b")]]
        gate.set()
        assert [sink.wait() for sink in sinks] == ["length"] * 5
        assert backend.started in ([1, 4, 2, 5, 3], [1, 2, 4, 3, 5])  # the first may have started before b came
        assert backend.most == 1
        assert [sink.tokens for sink in sinks] == [[1, 1], [2, 2], [3, 3], [4, 4], [5, 5]]


def test_owners_take_turns_at_a_backend_that_takes_one_at_a_time() -> None:
    backend, seen, sinks = Scripted(), _Seen(), [Sink() for _ in range(5)]
    backend.max_running = 1
    engine = Engine(lambda: backend, 10, 100, observe=seen, max_queue=4)

    def submit_rest(event: Event) -> None:  # in the engine's thread, so that all wait before the second one starts
        if event.finish is None:
            for sink, owner in zip(sinks[1:], "aabb", strict=True):
                engine.submit([sinks.index(sink) + 1], Sampling(2, frozenset()), sink, owner)
            with pytest.raises(QueueFull):
                engine.submit([1], Sampling(2, frozenset()), Sink(), "c")
        sinks[0](event)

    engine.submit([1], Sampling(2, frozenset()), submit_rest, "a")
    assert [sink.wait() for sink in sinks] == ["length"] * 5
    engine.close()
    assert (backend.started, backend.most) == ([1, 2, 4, 3, 5], 1)
    assert seen.states == [(1, 4), (0, 4), (1, 3), (0, 3), (1, 2), (0, 2), (1, 1), (0, 1), (1, 0), (0, 0), (0, 0)]


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    gate = threading.Event()
    with running(lambda: Scripted(gate), max_running=2, max_queue=1) as engine:
        sinks = [submit(engine, 1) for _ in range(3)]
        with pytest.raises(QueueFull, match="too many requests") as refused:
            submit(engine, 1)
        assert refused.value.retry_after_s >= 1
        gate.set()
        assert [sink.wait() for sink in sinks] == ["length"] * 3
        assert submit(engine, 1).wait() == "length"


def test_a_cancelled_request_neither_runs_nor_ends() -> None:
    gate = threading.Event()
    backend = Scripted(gate)
    with running(lambda: backend, max_running=1) as engine:
        first, waiting = Sink(), Sink()
        number = engine.submit([1], Sampling(50, frozenset()), first)
        engine.cancel(engine.submit([2], Sampling(2, frozenset()), waiting))
        last = submit(engine, 3)
        engine.cancel(number)
        gate.set()
        assert last.wait() == "length"
        assert (first.finish, waiting.finish, 2 in backend.started) == (None, None, False)
        assert len(first.tokens) <= 1, "it ends within the step that runs"


def test_a_crash_loses_no_token_that_was_made() -> None:
    backends = [Scripted(good_steps=3), Scripted()]
    with running(lambda: backends.pop(0), stream_interval=100) as engine:
        sink = submit(engine, 1, max_tokens=50)
        assert (sink.wait(), sink.tokens) == ("error", [1, 1, 1])
        assert submit(engine, 2, max_tokens=7).wait() == "length"


def test_answers_are_the_same_however_many_tokens_come_at_a_time() -> None:
    with running(lambda: Scripted(), stream_interval=4) as engine:
        sinks = [submit(engine, token, max_tokens=3 * token) for token in range(1, 8)]
        assert [sink.wait() for sink in sinks] == ["length"] * 7
        assert [sink.tokens for sink in sinks] == [[token] * 3 * token for token in range(1, 8)]


def test_a_crash_fails_what_runs_and_what_waits_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()
    backends = [Scripted(gate, good_steps=0), Scripted()]
    seen = _Restarts()
    engine = Engine(lambda: backends.pop(0), 10, 100, max_running=1, observe=seen)
    sinks = [submit(engine, token) for token in (1, 2, 3, 4)]
    gate.set()
    assert [sink.wait() for sink in sinks] == ["error", "length", "length", "length"]
    assert (engine.restarts, seen.count, engine.alive) == (1, 1, True)
    assert "out of memory" in caplog.text
    assert submit(engine, 5).wait() == "length"
    engine.close()


def test_a_backend_that_always_fails_stops_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    with running(lambda: Scripted(good_steps=0), max_running=1) as engine:
        assert [submit(engine, 1).wait() for _ in range(2)] == ["error"] * 2
        last, behind = submit(engine, 1), Sink()
        assert last.wait() == "error"
        engine._thread.join(WAIT_S)
        assert not engine.alive
        assert engine.restarts == 2
        assert "failed 3 times in a row" in caplog.text
        with pytest.raises(RuntimeError, match="stopped"):
            engine.submit([1], Sampling(2, frozenset()), behind)


def test_a_finished_request_forgives_earlier_failures() -> None:
    with running(lambda: Scripted(good_steps=2)) as engine:
        assert [submit(engine, 1).wait() for _ in range(8)] == ["length", "error"] * 4
        assert (engine.alive, engine.restarts) == (True, 4)


def test_a_model_that_cannot_be_loaded_again_stops_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    backends = [Scripted(good_steps=0)]
    with running(lambda: backends.pop()) as engine:
        assert submit(engine, 1).wait() == "error"
        engine._thread.join(WAIT_S)
        assert not engine.alive
        assert "could not load the model again" in caplog.text


def test_a_refused_request_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    with running(Scripted) as engine:
        sinks = [submit(engine, token) for token in (1, 9, 2)]
        assert [sink.wait() for sink in sinks] == ["length", "error", "length"]
        assert engine.restarts == 0
        assert "refused a request" in caplog.text


def test_what_the_engine_cannot_do_is_refused() -> None:
    with running(Scripted) as engine:
        assert engine.unsupported == {"json_schema"}
        with pytest.raises(ValueError, match="does not do json_schema"):
            engine.submit([1], Sampling(2, frozenset(), json_schema="{}"), Sink())
        with pytest.raises(ValueError, match="token id 10 is outside"):
            engine.submit([1], Sampling(2, frozenset(), logit_bias=((10, 1.0),)), Sink())


def test_scoring_lets_running_requests_step_in_between() -> None:
    order: list[str] = []

    class Scoring(Scripted):
        def score(self, ids: list[int], num_top: int) -> list[TokenScore]:  # type: ignore[override]
            order.append("score")
            return []

        def step(self) -> list[tuple[int, Event]]:
            order.append("step")
            return super().step()

    gate = threading.Event()
    with running(lambda: Scoring(gate)) as engine:
        sink, scored = submit(engine, 1, max_tokens=5), [Sink() for _ in range(3)]
        for one in scored:
            engine.submit_score([1, 2], 0, one)
        gate.set()
        assert [one.wait() for one in [sink, *scored]] == ["length", "stop", "stop", "stop"]
    assert not any(a == b == "score" for a, b in zip(order, order[1:], strict=False))


class _Seen(Unobserved):
    def __init__(self) -> None:
        self.states: list[tuple[int, int]] = []

    def state(self, running: int, waiting: int, cache_use: float) -> None:
        self.states.append((running, waiting))


class _Restarts(Unobserved):
    def __init__(self) -> None:
        self.count = 0

    def restarted(self) -> None:
        self.count += 1


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
