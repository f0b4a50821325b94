"""What Prometheus sees of each model, under vLLM's names, so that dashboards and alerts made for it work here.

An engine reports to `Metrics` from its own thread; the HTTP side asks it for a `Watch` over each answer. BentoML serves
the result at /metrics.
"""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

Reason = Literal["stop", "length", "abort", "error"]  # abort: the client hung up
BUCKETS_S = tuple(digit * 10.0**power for power in range(-4, 3) for digit in (1, 2, 5))  # 0.1 ms to 500 s


class Metrics:
    """The metrics of one model; its first three methods are an engine's observer."""

    def __init__(self, model: str, collectors: dict[str, Any]):
        self.model = model
        self._success = {reason: collectors["success"].labels(model, reason) for reason in get_args(Reason)}
        self._of = {name: one.labels(model) for name, one in collectors.items() if name != "success"}
        self.state(0, 0, 0.0)  # a gauge that was never set is not shown

    def state(self, running: int, waiting: int, cache_use: float) -> None:
        """The engine runs and keeps waiting so many requests, and this share of its cache is in use."""
        self._of["running"].set(running)
        self._of["waiting"].set(waiting)
        self._of["cache"].set(cache_use)

    def tokens(self, count: int) -> None:
        """The engine has made so many tokens more, those that nobody will read included."""
        self._of["generated"].inc(count)

    def restarted(self) -> None:
        """The engine has failed and been built anew."""
        self._of["restarts"].inc()

    def started(self, prompt_tokens: int) -> "Watch":
        """Return the watch over an answer that is asked for now."""
        self._of["prompt"].inc(prompt_tokens)
        return Watch(self, prompt_tokens)

    def observe(self, name: Literal["first", "inter", "whole"], seconds: float) -> None:
        """A watch has measured a time."""
        self._of[name].observe(seconds)

    def succeeded(self, reason: Reason) -> None:
        """An answer has ended."""
        self._success[reason].inc()


class Watch:
    """The times and counts of one answer, from the moment that it is asked for."""

    def __init__(self, metrics: Metrics, prompt_tokens: int):
        self.model, self.prompt_tokens, self.answer_tokens = metrics.model, prompt_tokens, 0
        self.first_token_s: float | None = None
        self.reason: Reason | None = None
        self._metrics = metrics
        self._start = self._last = time.monotonic()

    def tokens(self, count: int) -> None:
        """So many tokens have come; together they took the time since the one before them."""
        if not count:
            return
        now = time.monotonic()
        gap_s, later = (now - self._last) / count, count
        if self.first_token_s is None:  # those that come with the first one come at once
            self.first_token_s = now - self._start
            self._metrics.observe("first", self.first_token_s)
            gap_s, later = 0.0, count - 1
        for _ in range(later):
            self._metrics.observe("inter", gap_s)
        self.answer_tokens += count
        self._last = now

    def finished(self, reason: Reason) -> None:
        """The answer has ended; of several calls the first holds."""
        if self.reason is None:
            self.reason = reason
            self._metrics.succeeded(reason)
            self._metrics.observe("whole", time.monotonic() - self._start)


def make_metrics(models: Iterable[str], registry: "CollectorRegistry | None" = None) -> dict[str, Metrics]:
    """Return the metrics of each model. Once in a process, because a name can be registered only once."""
    # Imported here, because BentoML sets the folder of its multiprocess mode after it has imported the service.
    from prometheus_client import REGISTRY, Counter, Gauge, Histogram

    into = registry or REGISTRY

    def gauge(name: str, text: str) -> Gauge:
        # A worker that was killed leaves its values behind: those of the newest one are the truth.
        return Gauge(name, text, ["model_name"], registry=into, multiprocess_mode="livemostrecent")

    def counter(name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, ["model_name", *labels], registry=into)

    def histogram(name: str, text: str) -> Histogram:
        return Histogram(name, text, ["model_name"], registry=into, buckets=BUCKETS_S)

    collectors = {
        "running": gauge("vllm:num_requests_running", "Requests that the engine advances"),
        "waiting": gauge("vllm:num_requests_waiting", "Requests that wait for the engine"),
        "cache": gauge("vllm:kv_cache_usage_perc", "Share of the engine's cache in use; 1 is all of it"),
        "prompt": counter("vllm:prompt_tokens", "Tokens of prompts"),
        "generated": counter("vllm:generation_tokens", "Tokens generated, those of aborted answers included"),
        "success": counter("vllm:request_success", "Answers that ended, by the reason", "finished_reason"),
        "restarts": counter("gristmill_engine_restarts", "Engines that failed and were built anew"),
        "first": histogram("vllm:time_to_first_token_seconds", "From a request to its first token"),
        "inter": histogram("vllm:inter_token_latency_seconds", "Between a token and the one before it"),
        "whole": histogram("vllm:e2e_request_latency_seconds", "From a request to the end of its answer"),
    }
    return {model: Metrics(model, collectors) for model in models}
