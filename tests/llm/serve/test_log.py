"""The log of requests: one JSON line each, an id that the client knows, and nothing of what was said."""

import asyncio
import io
import itertools
import json
import logging
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from llm.serve.log import JsonLines, RequestLog
from llm.serve.metrics import make_metrics

SECRET = "xylophone quagmire"


async def answer(request: Request) -> PlainTextResponse:
    request.state.caller = SimpleNamespace(key_id="key-7")
    watch = make_metrics(["gristmill"], CollectorRegistry())["gristmill"].started(4)
    request.state.watches.append(watch)
    watch.tokens(3)
    watch.finished("stop")
    return PlainTextResponse("ok")


async def fail(request: Request) -> PlainTextResponse:
    raise RuntimeError("broken")


APP = RequestLog(Starlette(routes=[Route("/answer", answer), Route("/fail", fail), Route("/livez", answer)]))


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the log's handler would write to stderr."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("llm.serve.log")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)
    monkeypatch.setattr(logger, "propagate", False)
    return stream


def get(path: str, **headers: str) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(APP, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(run())


def test_a_line_holds_id_key_model_status_tokens_and_times(lines: io.StringIO) -> None:
    reply = get("/answer?token=secret", **{"X-Request-Id": "ticket-12.a_B"})
    assert reply.headers["X-Request-Id"] == "ticket-12.a_B"
    (line,) = map(json.loads, lines.getvalue().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    assert 0 <= line.pop("first_token_seconds") <= line.pop("seconds")
    assert line == {
        "level": "info",
        "logger": "llm.serve.log",
        "message": "request",
        "request_id": "ticket-12.a_B",
        "key_id": "key-7",
        "method": "GET",
        "path": "/answer",
        "status": 200,
        "model": "gristmill",
        "prompt_tokens": 4,
        "answer_tokens": 3,
        "finish": ["stop"],
    }


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, 'x"}', "a\tb", "../../etc"])
def test_an_ill_formed_id_is_replaced(lines: io.StringIO, name: str) -> None:
    reply = get("/answer", **{"X-Request-Id": name})
    made = reply.headers["X-Request-Id"]
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert json.loads(lines.getvalue())["request_id"] == made


def test_a_failure_and_a_probe(lines: io.StringIO) -> None:
    assert get("/fail").status_code == 500
    (line,) = map(json.loads, lines.getvalue().splitlines())
    assert (line["status"], line["key_id"]) == (500, None)
    assert "model" not in line
    get("/livez")
    assert len(lines.getvalue().splitlines()) == 1
    get("/" + "x" * 500)
    assert len(json.loads(lines.getvalue().splitlines()[-1])["path"]) == 100


def test_an_exception_stays_on_its_line() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        record = logging.LogRecord("llm.x", logging.ERROR, "x.py", 1, "failed %d", (3,), sys.exc_info())
    text = JsonLines().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["level"], line["message"]) == ("error", "failed 3")
    assert "ValueError: first\nsecond" in line["exception"]


def test_the_server_logs_each_request_and_nothing_of_its_text(
    server: str, client: openai.OpenAI, server_home: Path, key: str
) -> None:
    options: dict[str, Any] = {"model": "gristmill", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 9}
    whole = client.chat.completions.create(temperature=0, extra_headers={"X-Request-Id": "whole-1"}, **options)
    assert whole._request_id == "whole-1"
    stream = client.chat.completions.create(stream=True, extra_headers={"X-Request-Id": "stream-1"}, **options)
    list(stream)
    cut = options | {"max_tokens": 4000, "temperature": 0}
    stream = client.chat.completions.create(stream=True, extra_headers={"X-Request-Id": "cut-1"}, **cut)
    list(itertools.islice(stream, 3))
    stream.close()
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            extra_headers={"X-Request-Id": "wrong-1"}, extra_body={"unknown": SECRET}, **options
        )
    httpx.get(f"{server}/v1/models", headers={"X-Request-Id": "nobody-1"})
    text = wait_for_line(server_home / "server.log", '"cut-1"')
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    found = {line["request_id"]: line for line in lines if line["message"] == "request"}
    assert found["whole-1"]["status"] == 200
    assert whole.usage
    assert found["whole-1"]["prompt_tokens"] == whole.usage.prompt_tokens
    assert found["whole-1"]["answer_tokens"] == 9
    assert found["whole-1"]["finish"] == ["length"]
    assert found["whole-1"]["key_id"] == found["cut-1"]["key_id"]
    assert found["whole-1"]["key_id"]
    assert (found["nobody-1"]["status"], found["nobody-1"]["key_id"]) == (401, None)
    assert found["stream-1"]["model"] == "gristmill"
    assert 0 < found["stream-1"]["first_token_seconds"] <= found["stream-1"]["seconds"]
    assert found["cut-1"]["finish"] == ["abort"]
    assert found["wrong-1"]["status"] == 400
    assert SECRET not in text
    assert key not in text
    assert str(whole.choices[0].message.content) not in text


def wait_for_line(path: Path, needle: str) -> str:
    deadline = time.monotonic() + 10
    while needle not in (text := path.read_text()):
        assert time.monotonic() < deadline, f"{needle} is not in the log"
        time.sleep(0.02)
    return text
