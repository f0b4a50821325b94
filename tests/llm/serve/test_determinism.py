"""The same answer alone and among eight others, and a control that finds answers that differ."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

import pytest

from llm.config import ConfigError
from llm.serve.backend import Backend, Event, Sampling
from llm.serve.determinism import PROMPTS, measure
from llm.serve.engine import Engine
from llm.serve.openvino_backend import OpenVinoBackend
from llm.serve.release import Release
from llm.serve.torch_backend import TorchBackend

SAME = {"same_among_others": 1.0, "same_with_warm_cache": 1.0}


def share(make: Callable[[], Backend], prompts: Sequence[list[int]], max_tokens: int, rounds: int) -> dict[str, float]:
    with closing(Engine(make, 10**6, 10**6)) as engine:
        return measure(engine, prompts, max_tokens, rounds)


def encode(release: Release) -> list[list[int]]:
    return [release.encode_chat([{"role": "user", "content": text}]) for text in PROMPTS]


def test_torch_answers_the_same_among_others(release: Release) -> None:
    shares = share(lambda: TorchBackend(release.folder / "hf"), encode(release), max_tokens=5, rounds=1)
    assert shares == {"answers": 9, **SAME}


def test_openvino_in_exact_mode_answers_the_same_among_others(release: Release) -> None:
    make = partial(OpenVinoBackend, release.served, release.context, exact=True)
    assert share(make, encode(release), max_tokens=25, rounds=1) == {"answers": 9, **SAME}


@pytest.mark.slow
def test_the_command_prints_the_shares_of_the_release(release: Release) -> None:
    environment = os.environ | {"GRISTMILL_RELEASE": str(release.folder), "GRISTMILL_EXACT": "1"}
    command = [sys.executable, "-m", "llm.serve.determinism", "--tokens", "200", "--rounds", "4"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=True)
    shares = json.loads(done.stdout.splitlines()[-1])
    assert shares["engine"] == "openvino-exact"
    assert (shares["answers"], shares["same_among_others"], shares["same_with_warm_cache"]) == (36, 1.0, 1.0)


class Crowded:
    """Writes how many requests run beside this one: never the same alone and among others."""

    name, unsupported, score, cache_use = "crowded", frozenset[str](), None, 0.0

    def __init__(self, max_running: int | None = None) -> None:
        self.max_running = max_running
        self._left: dict[int, int] = {}

    def add(self, request: int, ids: list[int], sampling: Sampling) -> None:
        self._left[request] = sampling.max_tokens

    def step(self) -> list[tuple[int, Event]]:
        num = len(self._left)
        self._left = {request: left - 1 for request, left in self._left.items()}
        events = [(request, Event([num], None if left else "length")) for request, left in self._left.items()]
        self._left = {request: left for request, left in self._left.items() if left}
        return events

    def cancel(self, request: int) -> None:
        del self._left[request]


def test_an_engine_whose_answers_depend_on_company_is_found_out() -> None:
    shares = share(Crowded, [[1]] * 9, max_tokens=12, rounds=2)
    assert shares == {"answers": 18, "same_among_others": 0.0, "same_with_warm_cache": 0.0}


def test_what_an_engine_takes_one_at_a_time_it_is_given_one_at_a_time() -> None:
    assert share(partial(Crowded, 1), [[1]] * 9, max_tokens=12, rounds=2) == {"answers": 18, **SAME}


def test_an_engine_that_fails_is_said_so() -> None:
    class Broken(Crowded):
        def step(self) -> list[tuple[int, Event]]:
            raise RuntimeError("out of memory")

    with pytest.raises(ConfigError, match="the engine crowded failed on a prompt"):
        share(Broken, [[1]] * 9, max_tokens=12, rounds=1)
