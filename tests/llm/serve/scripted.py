"""The routes behind the gateway on a real socket, over an engine that says what a test wants to hear."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from llm.serve.app import Served, create_app
from llm.serve.backend import Event, Sampling, TokenScore
from llm.serve.drain import Drain
from llm.serve.engine import Engine
from llm.serve.gateway import Gateway
from llm.serve.keys import KeyRing
from llm.serve.limits import Budget, Limiter
from llm.serve.metrics import make_metrics
from llm.serve.params import KeyLimits, ServeParams
from llm.serve.release import Release

KEY = "scripted-" + "k" * 40
MANY = 10**12
NO_LIMITS = KeyLimits(requests_per_minute=MANY, tokens_per_minute=MANY, parallel=MANY, tokens_per_day=MANY)


class ScriptedBackend:
    """Says `text` to every request, a token a step, and then ends; a request without end goes on for ever."""

    name = "scripted"
    max_running = None
    cache_use = 0.0

    def __init__(self, release: Release, unsupported: frozenset[str] = frozenset()):
        self.unsupported = unsupported
        self.text, self.endless, self.num_steps = "Hello there.", False, 0
        self.asked: list[tuple[list[int], Sampling]] = []
        self.running: dict[int, tuple[list[int], Sampling]] = {}
        self._tokenizer = release.tokenizer

    def score(self, ids: list[int], num_top: int) -> list[TokenScore]:
        return [TokenScore(-1.0, {}) for _ in ids[1:]]

    def add(self, request: int, ids: list[int], sampling: Sampling) -> None:
        self.asked.append((ids, sampling))
        tokens = [*self._tokenizer.encode(self.text), self._tokenizer.im_end_id]
        self.running[request] = ([] if self.endless else tokens[: sampling.max_tokens], sampling)

    def step(self) -> list[tuple[int, Event]]:
        self.num_steps += 1
        return [(request, self._advance(request, *row)) for request, row in list(self.running.items())]

    def _advance(self, request: int, tokens: list[int], sampling: Sampling) -> Event:
        if not tokens:  # endless
            return Event([self._tokenizer.encode("a")[0]])
        token = tokens.pop(0)
        finish = "stop" if token in sampling.stop_ids else None if tokens else "length"
        if finish:
            del self.running[request]
        top = {other: -2.0 - other for other in range(sampling.num_top or 0)}
        scores = [] if sampling.num_top is None else [TokenScore(-0.5, top)]
        return Event([token], finish, scores)

    def cancel(self, request: int) -> None:
        self.running.pop(request, None)


@dataclass
class Api:
    """A running server, and what stands behind it."""

    address: str
    backend: ScriptedBackend
    engine: Engine
    app: FastAPI


@contextmanager
def serve(
    releases: list[Release], params: ServeParams, folder: Path, unsupported: frozenset[str] = frozenset()
) -> Iterator[Api]:
    """Run the routes in a thread, for KEY alone; the first release's backend is the one to script."""
    backends = [ScriptedBackend(release, unsupported) for release in releases]
    app = create_app(params.max_prompt_chars)
    app.state.served = {}
    metrics = make_metrics([release.model for release in releases], CollectorRegistry())
    for release, backend in zip(releases, backends, strict=True):
        engine = Engine(
            lambda backend=backend: backend,
            release.tokenizer.vocab_size,
            release.context,
            max_running=params.max_running,
            max_queue=params.max_queue,
        )
        app.state.served[release.model] = Served(release, engine, metrics[release.model])
    keys, limiter = KeyRing(folder / "keys.json", KEY), Limiter(Budget(folder / "usage.json"))
    guarded = Gateway(app, params.model_copy(update={"limits": NO_LIMITS}), keys, limiter, Drain(params.grace_s))
    server = uvicorn.Server(uvicorn.Config(guarded, host="127.0.0.1", port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    first = next(iter(app.state.served.values()))
    try:
        yield Api(f"http://127.0.0.1:{port}", backends[0], first.engine, app)
    finally:
        server.should_exit = True
        for one in app.state.served.values():
            one.engine.close()
        thread.join(timeout=10)
