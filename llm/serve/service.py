"""The BentoML service: one worker, one engine thread, the routes of llm.serve.app, and the gateway in front of all.

BentoML adds /livez and /readyz. `python -m llm.serve` starts it after a check that there is something to
serve, with a key for this run; `bentoml serve llm.serve.service:Gristmill` starts it plainly, with the keys of the file
and of GRISTMILL_API_KEY.
"""

import asyncio
import os
from functools import partial

import bentoml
from fastapi.responses import Response

from llm.serve.answers import let_turn
from llm.serve.app import Served, create_app
from llm.serve.drain import Drain, stop_by_drain
from llm.serve.engine import Engine
from llm.serve.errors import ErrorBodies
from llm.serve.gateway import Gateway
from llm.serve.keys import KeyRing, find_keys_file
from llm.serve.limits import Budget, Limiter
from llm.serve.log import RequestLog, configure_logging
from llm.serve.metrics import make_metrics
from llm.serve.params import ServeParams
from llm.serve.release import find_releases, load_backend, load_releases


def read_metrics() -> Response:
    """GET /metrics: what Prometheus reads."""
    # Imported here, as everywhere: it chooses its multiprocess mode, which BentoML's workers have, when it is imported.
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


params = ServeParams.read()
app = create_app(params.max_prompt_chars)
app.add_api_route("/metrics", read_metrics, methods=["GET"])
drain = Drain(params.grace_s)
limiter = Limiter(Budget(find_keys_file().with_name("usage.json")))


# BentoML's own timeout would answer in words of its own: the gateway's comes first. Its own metrics keep a series for
# every path that anybody asks for, before a key is looked at: strangers could fill the memory with them. Its access log
# writes paths as they are: with a line break in one, strangers could write lines of their own. And its tracing would
# make a span of every event of a stream, which costs more than the event.
@bentoml.service(
    name="gristmill",
    workers=1,
    traffic={"timeout": params.request_timeout_s + 60},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": "."},
)
@bentoml.asgi_app(app)
class Gristmill:
    """An OpenAI-compatible server of one packaged release, or of several."""

    def __init__(self) -> None:
        configure_logging()
        # BentoML makes this object on the event loop that will run the routes.
        loop = asyncio.get_running_loop()
        stop_by_drain(drain, loop)
        releases = load_releases(find_releases())
        metrics = make_metrics([release.model for release in releases])
        self.served: dict[str, Served] = {}
        for release in releases:
            engine = Engine(
                partial(load_backend, release, params),
                release.tokenizer.vocab_size,
                release.context,
                max_running=params.max_running,
                max_queue=params.max_queue,
                stream_interval=params.stream_interval,
                observe=metrics[release.model],
                pause=let_turn(loop),
            )
            self.served[release.model] = Served(release, engine, metrics[release.model])
        app.state.served = self.served

    def __is_alive__(self) -> bool:
        return all(one.engine.alive for one in self.served.values())

    def __is_ready__(self) -> bool:
        return self.__is_alive__() and not drain.active

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def close(self) -> None:
        """Stop the engines' threads, and write what the keys have used."""
        for one in self.served.values():
            one.engine.close()
        limiter.save()


# The first is the outermost.
Gristmill.add_asgi_middleware(RequestLog)  # type: ignore[attr-defined]
Gristmill.add_asgi_middleware(  # type: ignore[attr-defined]
    Gateway,
    params=params,
    keys=KeyRing(find_keys_file(), os.environ.get("GRISTMILL_API_KEY")),
    limiter=limiter,
    drain=drain,
)
Gristmill.add_asgi_middleware(ErrorBodies)  # type: ignore[attr-defined]
