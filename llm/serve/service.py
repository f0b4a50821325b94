"""The BentoML service: one worker, one engine thread, the routes of llm.serve.app, and the gateway in front of all.

BentoML adds /livez, /readyz and /metrics. `python -m llm.serve` starts it after a check that there is something to
serve, with a key for this run; `bentoml serve llm.serve.service:Gristmill` starts it plainly, with the keys of the file
and of GRISTMILL_API_KEY.
"""

import asyncio
import os
from functools import partial

import bentoml

from llm.serve.answers import let_turn
from llm.serve.app import Served, create_app
from llm.serve.drain import Drain, stop_by_drain
from llm.serve.engine import Engine
from llm.serve.errors import ErrorBodies
from llm.serve.gateway import Gateway
from llm.serve.keys import KeyRing, find_keys_file
from llm.serve.limits import Budget, Limiter
from llm.serve.params import ServeParams
from llm.serve.release import Release, find_release, load_backend

params = ServeParams.read()
app = create_app()
drain = Drain(params.grace_s)
limiter = Limiter(Budget(find_keys_file().with_name("usage.json")))


# BentoML's own timeout would answer in words of its own: the gateway's comes first. Its tracing is off: that would make
# a span of every event of a stream, which costs more than the event.
@bentoml.service(
    name="gristmill",
    workers=1,
    traffic={"timeout": params.request_timeout_s + 60},
    tracing={"excluded_urls": "."},
)
@bentoml.asgi_app(app)
class Gristmill:
    """An OpenAI-compatible server of one packaged release."""

    def __init__(self) -> None:
        # BentoML makes this object on the event loop that will run the routes.
        loop = asyncio.get_running_loop()
        stop_by_drain(drain, loop)
        release = Release.load(find_release())
        pause = let_turn(loop)
        engine = Engine(
            partial(load_backend, release, params),
            release.tokenizer.vocab_size,
            release.context,
            max_running=params.max_running,
            max_queue=params.max_queue,
            observe=_Prometheus(),
            pause=pause,
        )
        self.served = Served(release, engine)
        app.state.served = self.served

    def __is_alive__(self) -> bool:
        return self.served.engine.alive

    def __is_ready__(self) -> bool:
        return self.served.engine.alive and not drain.active

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def close(self) -> None:
        """Stop the engine's thread, and write what the keys have used."""
        self.served.engine.close()
        limiter.save()


# The first is the outermost.
Gristmill.add_asgi_middleware(  # type: ignore[attr-defined]
    Gateway,
    params=params,
    keys=KeyRing(find_keys_file(), os.environ.get("GRISTMILL_API_KEY")),
    limiter=limiter,
    drain=drain,
)
Gristmill.add_asgi_middleware(ErrorBodies)  # type: ignore[attr-defined]


class _Prometheus:
    def __init__(self) -> None:
        # Imported here, because BentoML sets the folder of its multiprocess mode after it has imported the service.
        from prometheus_client import Counter, Gauge

        self._running = Gauge("gristmill_requests_running", "Requests in the engine", multiprocess_mode="livesum")
        self._tokens = Counter("gristmill_generated_tokens", "Tokens generated, those of cancelled requests included")
        self._restarts = Counter("gristmill_engine_restarts", "Times that the engine failed and was loaded again")

    def state(self, running: int, waiting: int, cache_use: float) -> None:
        self._running.set(running)

    def tokens(self, count: int) -> None:
        self._tokens.inc(count)

    def restarted(self) -> None:
        self._restarts.inc()
