"""The vLLM engine's bookkeeping, against a stand-in: nothing here says that vLLM itself does what we expect."""

import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from llm.serve.backend import Event, Sampling, TokenScore
from llm.serve.vllm_backend import VllmBackend


class StandIn:
    """Records what it is given; `outputs` are those of the next step."""

    def __init__(self) -> None:
        self.added: list[tuple[str, dict[str, list[int]], SimpleNamespace]] = []
        self.aborted: list[list[str]] = []
        self.outputs: list[SimpleNamespace] = []

    def add_request(self, number: str, prompt: dict[str, list[int]], params: SimpleNamespace) -> None:
        self.added.append((number, prompt, params))

    def step(self) -> list[SimpleNamespace]:
        return self.outputs

    def abort_request(self, numbers: list[str]) -> None:
        self.aborted.append(numbers)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    one = StandIn()
    vllm, params = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    vllm.EngineArgs = vllm.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    vllm.LLMEngine = SimpleNamespace(from_engine_args=lambda arguments: one)  # type: ignore[attr-defined]
    params.RequestOutputKind = SimpleNamespace(DELTA="delta")  # type: ignore[attr-defined]
    params.StructuredOutputsParams = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)
    return one


def output(number: str, tokens: list[int], finish: str | None = None, logprobs: object = None) -> SimpleNamespace:
    answer = SimpleNamespace(token_ids=tokens, finish_reason=finish, logprobs=logprobs)
    return SimpleNamespace(request_id=number, outputs=[answer], finished=finish is not None)


def test_it_says_at_start_that_it_is_untested(engine: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        VllmBackend(Path("hf"), 512, 8)
    assert "untested" in caplog.text


def test_requests_and_events(engine: StandIn) -> None:
    backend = VllmBackend(Path("hf"), 512, 8)
    backend.add(1, [5, 6], Sampling(9, frozenset({2, 0}), seed=-1, logit_bias=((7, 1.5),), json_schema="true"))
    backend.add(2, [5], Sampling(9, frozenset(), num_top=1))
    backend.add(3, [5], Sampling(9, frozenset()))
    (number, prompt, params), *_ = engine.added
    assert (number, prompt) == ("1", {"prompt_token_ids": [5, 6]})
    assert (params.stop_token_ids, params.seed, params.logit_bias) == ([0, 2], 2**63 - 1, {7: 1.5})
    assert params.structured_outputs.grammar.startswith("root ::= value")
    best, chosen = SimpleNamespace(logprob=-0.5, rank=1), SimpleNamespace(logprob=-2.0, rank=4)
    engine.outputs = [
        output("1", [8, 2], "stop"),
        output("2", [9], None, [{4: best, 9: chosen}]),
        output("3", [1], "abort"),
    ]
    assert backend.step() == [
        (1, Event([8, 2], "stop")),
        (2, Event([9], None, [TokenScore(-2.0, {4: -0.5})])),
        (3, Event([1], "error")),
    ]
    for ended in (1, 2, 2):
        backend.cancel(ended)
    assert engine.aborted == [["2"]]
