"""What Prometheus reads: counts equal what the clients were told, times are of the right things."""

import itertools
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from llm.serve.metrics import make_metrics
from llm.serve.params import ServeParams
from llm.serve.release import Release
from tests.llm.serve.scripted import KEY, serve

ASK: list[Any] = [{"role": "user", "content": "What does this function do?"}]
MODEL = {"model_name": "gristmill"}


def read(http: httpx.Client) -> dict[tuple[str, ...], float]:
    """Return the samples of the model at /metrics by name, and by reason where there is one."""
    samples: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(http.get("/metrics").text):
        for sample in family.samples:
            labels = dict(sample.labels)
            if labels.pop("model_name", None) == "gristmill" and "le" not in labels:
                samples[sample.name, *labels.values()] = sample.value
    return samples


def wait_for_end(http: httpx.Client) -> None:
    deadline = time.monotonic() + 10
    while read(http)["vllm:num_requests_running",]:
        assert time.monotonic() < deadline, "a request still runs"


def test_counts_are_those_that_the_clients_saw(http: httpx.Client, client: openai.OpenAI) -> None:
    wait_for_end(http)
    before = read(http)
    options: dict[str, Any] = {"model": "gristmill", "temperature": 0}
    usages = [
        client.chat.completions.create(messages=ASK, max_tokens=40, **options).usage,
        client.completions.create(prompt=["The quick", "The lazy dog"], max_tokens=7, **options).usage,
        client.chat.completions.create(messages=ASK, n=2, max_tokens=5, **options).usage,  # one prompt, two answers
    ]
    for size in (1, 25):
        *_, last = client.chat.completions.create(
            messages=ASK, max_tokens=size, stream=True, stream_options={"include_usage": True}, **options
        )
        usages.append(last.usage)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(messages=[], **options)
    wait_for_end(http)
    after = read(http)
    grown = {name: value - before[name] for name, value in after.items() if not name[0].endswith(("_sum", "_created"))}
    answers, tokens = 7, sum(usage.completion_tokens for usage in usages if usage)
    assert tokens == 40 + 2 * 7 + 2 * 5 + 1 + 25
    assert grown == {
        ("vllm:num_requests_running",): 0,
        ("vllm:num_requests_waiting",): 0,
        ("vllm:kv_cache_usage_perc",): grown["vllm:kv_cache_usage_perc",],
        ("vllm:prompt_tokens_total",): sum(usage.prompt_tokens for usage in usages if usage),
        ("vllm:generation_tokens_total",): tokens,
        ("vllm:request_success_total", "length"): answers,
        ("vllm:request_success_total", "stop"): 0,
        ("vllm:request_success_total", "abort"): 0,
        ("vllm:request_success_total", "error"): 0,
        ("vllm:time_to_first_token_seconds_count",): answers,
        ("vllm:inter_token_latency_seconds_count",): tokens - answers,
        ("vllm:e2e_request_latency_seconds_count",): answers,
        ("gristmill_engine_restarts_total",): 0,
    }
    spent = {name: after[name,] - before[name,] for name, *_ in after if name.endswith("_seconds_sum")}
    parts = spent["vllm:time_to_first_token_seconds_sum"] + spent["vllm:inter_token_latency_seconds_sum"]
    assert 0 < parts <= spent["vllm:e2e_request_latency_seconds_sum"]


def test_a_stop_string_and_a_hang_up_are_told_apart(
    http: httpx.Client, client: openai.OpenAI, release: Release
) -> None:
    options: dict[str, Any] = {"model": "gristmill", "messages": ASK, "temperature": 0}
    text = client.chat.completions.create(max_tokens=40, **options).choices[0].message.content
    wait_for_end(http)
    before = read(http)
    client.chat.completions.create(max_tokens=200, stop=(text or "")[10:12], **options)
    stream = client.chat.completions.create(max_tokens=release.context, stream=True, **options)
    list(itertools.islice(stream, 3))
    stream.close()
    wait_for_end(http)
    after = read(http)
    grown = {name[1]: after[name] - before[name] for name in after if name[0] == "vllm:request_success_total"}
    assert grown == {"stop": 1, "length": 0, "abort": 1, "error": 0}


@pytest.mark.slow
def test_two_servers_of_one_folder_count_apart(start_server: Any, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    with start_server([], {}) as first, httpx.Client(base_url=first.address, headers=headers) as http:
        body = {"model": "gristmill", "prompt": "The quick", "max_tokens": 3, "temperature": 0}
        http.post("/v1/completions", json=body)
        wait_for_end(http)
        before = read(http)
        assert before["vllm:generation_tokens_total",] == 3
        with start_server([], {}) as second, httpx.Client(base_url=second.address, headers=headers) as other:
            assert read(other)["vllm:generation_tokens_total",] == 0
            assert read(http) == before


def test_an_engine_that_fails_is_counted(release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve([release], ServeParams(), tmp_path) as api:
        reasons: list[str] = []
        monkeypatch.setattr(api.app.state.served["gristmill"].metrics, "succeeded", reasons.append)
        monkeypatch.setattr(api.backend, "step", lambda: 1 / 0)
        body = {"model": "gristmill", "messages": ASK, "n": 2}
        reply = httpx.post(f"{api.address}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"})
        assert reply.status_code == 500
        assert reasons == ["error", "error"]


def test_times_of_an_answer_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked at 0 s; two tokens at 1 s, four more at 3 s, one at 7 s; ended at 8 s."""
    registry = CollectorRegistry()
    clock = iter([0.0, 1.0, 3.0, 7.0, 8.0])
    monkeypatch.setattr("llm.serve.metrics.time.monotonic", lambda: next(clock))
    watch = make_metrics(["gristmill"], registry)["gristmill"].started(prompt_tokens=11)
    for count in (2, 4, 0, 1):
        watch.tokens(count)
    watch.finished("stop")
    watch.finished("abort")

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, MODEL | labels)

    assert (watch.first_token_s, watch.answer_tokens, watch.reason) == (1.0, 7, "stop")
    assert value("vllm:prompt_tokens_total") == 11
    assert value("vllm:time_to_first_token_seconds_sum") == 1
    assert value("vllm:inter_token_latency_seconds_count") == 6  # one of 0 s, four of 0.5 s, one of 4 s
    assert value("vllm:inter_token_latency_seconds_sum") == 6
    assert value("vllm:inter_token_latency_seconds_bucket", le="0.0001") == 1
    assert value("vllm:inter_token_latency_seconds_bucket", le="0.5") == 5
    assert value("vllm:e2e_request_latency_seconds_sum") == 8
    assert value("vllm:request_success_total", finished_reason="stop") == 1
    assert value("vllm:request_success_total", finished_reason="abort") == 0


def test_models_are_counted_apart() -> None:
    registry = CollectorRegistry()
    metrics = make_metrics(["one", "two"], registry)
    metrics["one"].state(running=3, waiting=2, cache_use=0.25)
    metrics["one"].tokens(5)
    metrics["two"].restarted()
    read = {
        (model, name): registry.get_sample_value(name, {"model_name": model})
        for model in ("one", "two")
        for name in (
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:kv_cache_usage_perc",
            "vllm:generation_tokens_total",
            "gristmill_engine_restarts_total",
        )
    }
    assert list(read.values()) == [3, 2, 0.25, 5, 0, 0, 0, 0, 0, 1]
