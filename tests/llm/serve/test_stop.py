"""A real server that is told to stop, or whose supervisor is killed: last events, exit code, and no process left."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

Start = Callable[[list[str], dict[str, str]], AbstractContextManager[Any]]
EXIT_S = 90
pytestmark = pytest.mark.slow


@pytest.fixture
def start(start_server: Start, tmp_path: Path) -> Callable[[float], AbstractContextManager[Any]]:
    def run(grace_s: float) -> AbstractContextManager[Any]:
        params = tmp_path / "params.yaml"
        params.write_text(f"serve: {{grace_s: {grace_s}}}")
        return start_server([], {"GRISTMILL_PARAMS": str(params)})

    return run


def ask(running: Any, key: str, **options: Any) -> Any:
    body = {"model": "gristmill", "prompt": "The quick", "temperature": 0, "max_tokens": 4000} | options
    return {
        "method": "POST",
        "url": f"{running.address}/v1/completions",
        "json": body,
        "headers": {"Authorization": f"Bearer {key}"},
        "timeout": EXIT_S,
    }


def read_events(reply: httpx.Response) -> Iterator[str]:
    for line in reply.iter_lines():
        if line:
            assert line.startswith("data: ")
            yield line.removeprefix("data: ")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + EXIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_short_grace_ends_streams_with_an_error(start: Any, key: str) -> None:
    with start(0.2) as running:
        workers = psutil.Process(running.process.pid).children(recursive=True)
        assert workers
        with httpx.stream(**ask(running, key, stream=True)) as reply:
            events = read_events(reply)
            next(events)
            running.process.send_signal(signal.SIGTERM)
            *_, last, done = events
        assert json.loads(last)["error"]["code"] == "server_stopping"
        assert done == "[DONE]"
        assert running.process.wait(timeout=EXIT_S) == 0
        assert not [worker for worker in workers if worker.is_running()]


def test_long_grace_lets_streams_end_and_admits_nobody(start: Any, key: str) -> None:
    with start(300) as running:
        workers = psutil.Process(running.process.pid).children(recursive=True)
        with httpx.stream(**ask(running, key, stream=True)) as reply:
            events = read_events(reply)
            next(events)
            running.process.send_signal(signal.SIGTERM)
            wait_until(lambda: httpx.get(f"{running.address}/readyz").status_code == 503)
            refused = httpx.request(**ask(running, key))
            *_, last, done = events
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "300"
        assert refused.json()["error"]["code"] == "server_stopping"
        assert json.loads(last)["choices"][0]["finish_reason"] == "length"
        assert done == "[DONE]"
        assert running.process.wait(timeout=EXIT_S) == 0
        assert not [worker for worker in workers if worker.is_running()]


def test_client_that_does_not_read_keeps_no_server_alive(start: Any, key: str) -> None:
    with start(0) as running, httpx.stream(**ask(running, key, stream=True)) as reply:
        next(reply.iter_raw(1))
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(timeout=EXIT_S) == 0


def test_killed_supervisor_leaves_no_worker(start: Any, key: str) -> None:
    with start(0) as running:
        workers = psutil.Process(running.process.pid).children(recursive=True)
        running.process.kill()
        running.process.wait()
        psutil.wait_procs(workers, timeout=EXIT_S)
        assert not [worker for worker in workers if worker.is_running()]
