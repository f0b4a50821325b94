"""Penalties, biases and min-p, worked by hand; and of those OpenVINO's repetition penalty is the same."""

import math
from dataclasses import replace

import numpy as np
import openvino
import openvino_genai as genai
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from llm.export.gguf import write_gguf
from llm.model.folder import load_model, save_model
from llm.serve.backend import Backend, Sampling
from llm.serve.openvino_backend import OpenVinoBackend
from llm.serve.penalties import adjust
from llm.serve.release import Release
from llm.serve.torch_backend import TorchBackend

IDS = [5, 60, 70, 80, 90]
LOGITS = [2.0, -1.0, 0.5, -3.0]
PROMPT = [False, False, True, True]
COUNTS = [3.0, 2.0, 0.0, 0.0]


def adjusted(**options: object) -> list[float]:
    sampling = Sampling(8, frozenset(), **options)  # type: ignore[arg-type]
    return adjust(torch.tensor(LOGITS), torch.tensor(PROMPT), torch.tensor(COUNTS), sampling).tolist()


def test_nothing_asked_changes_nothing() -> None:
    assert adjusted() == LOGITS


def test_frequency_is_subtracted_per_generated_token_whatever_the_sign() -> None:
    assert adjusted(frequency_penalty=0.5) == [0.5, -2.0, 0.5, -3.0]
    assert adjusted(frequency_penalty=-0.5) == [3.5, 0.0, 0.5, -3.0]


def test_presence_is_subtracted_once_for_generated_tokens() -> None:
    assert adjusted(presence_penalty=1.5) == [0.5, -2.5, 0.5, -3.0]


def test_repetition_scales_what_prompt_or_answer_hold() -> None:
    assert adjusted(repetition_penalty=2.0) == [1.0, -2.0, 0.25, -6.0]


def test_repetition_is_transformers() -> None:
    processor = RepetitionPenaltyLogitsProcessor(1.7)
    expected = processor(torch.tensor([[2, 3, 0, 0, 0, 1, 1]]), torch.tensor([LOGITS]))[0]
    assert adjusted(repetition_penalty=1.7) == pytest.approx(expected.tolist())


def test_bias_is_added_after_the_penalties() -> None:
    assert adjusted(logit_bias=((0, -100.0), (3, 4.0)), repetition_penalty=2.0) == [-99.0, -2.0, 0.25, -2.0]


def test_min_p_keeps_what_reaches_its_share_of_the_most_probable() -> None:
    # Probabilities relative to the first: e^0, e^-3, e^-1.5, e^-5; at temperature 2 their roots.
    share = math.exp(-1.5) - 0.01
    assert adjusted(min_p=share) == [2.0, -math.inf, 0.5, -math.inf]
    assert adjusted(min_p=share, temperature=2.0) == [2.0, -1.0, 0.5, -math.inf]
    assert adjusted(min_p=share, temperature=0.0) == LOGITS
    assert adjusted(min_p=1.0) == [2.0, -math.inf, -math.inf, -math.inf]


def write(backend: Backend, sampling: Sampling) -> list[int]:
    backend.add(1, IDS, sampling)
    tokens: list[int] = []
    while len(tokens) < sampling.max_tokens:
        for _, event in backend.step():
            tokens += event.tokens
    return tokens


@pytest.fixture(scope="module")
def backends(release: Release, tmp_path_factory: pytest.TempPathFactory) -> tuple[OpenVinoBackend, TorchBackend]:
    """Both over one model of small logits: after a while tokens with negative ones are written, again or not."""
    folder = tmp_path_factory.mktemp("small")
    model = load_model(release.folder / "hf")
    assert model.head is not None
    with torch.no_grad():
        model.head.weight.mul_(0.1)
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.copy_(weight.half().float())
    save_model(model, folder / "hf")
    write_gguf(folder / "model.gguf", model, release.tokenizer, "f16")
    return OpenVinoBackend(folder / "model.gguf", 1024, exact=True), TorchBackend(folder / "hf")


def test_openvino_means_the_same_by_repetition(backends: tuple[OpenVinoBackend, TorchBackend]) -> None:
    sampling = Sampling(300, frozenset(), temperature=0.0, repetition_penalty=1.5)
    openvino, torch_ = (write(backend, sampling) for backend in backends)
    assert openvino == torch_
    assert torch_ != write(backends[1], replace(sampling, repetition_penalty=1.0)), "the penalty was felt"


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
def test_openvino_means_another_thing_by_openais_penalties(
    backends: tuple[OpenVinoBackend, TorchBackend], name: str
) -> None:
    """When this fails OpenVINO has been mended: take the name out of OpenVinoBackend.unsupported."""
    pipeline = backends[0]._pipeline
    config = genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = 40, True, False
    setattr(config, name, 2.0)
    handle = pipeline.add_request(2, openvino.Tensor(np.array([IDS])), config)
    while pipeline.has_non_finished_requests():
        pipeline.step()
    expected = write(backends[1], replace(Sampling(40, frozenset(), temperature=0.0), **{name: 2.0}))  # type: ignore[arg-type]
    assert list(handle.read_all()[0].generated_ids) != expected
    assert name in OpenVinoBackend.unsupported
