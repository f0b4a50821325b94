"""Penalties, biases and min-p, worked by hand; and OpenVINO's two penalties are the same."""

import math
from dataclasses import replace

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


def write(backend: Backend, ids: list[int], sampling: Sampling) -> list[int]:
    backend.add(1, ids, sampling)
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


@pytest.mark.parametrize(
    "frequency, presence",
    [(0.5, 0.0), (-0.2, 0.0), (0.0, 1.5), (0.0, -0.3), (0.6, 2.0), (2.0, 0.5), (1.0, -1.5), (-0.1, 1.5)],
)
def test_openvino_means_the_same_by_both(
    backends: tuple[OpenVinoBackend, TorchBackend], frequency: float, presence: float
) -> None:
    """More tokens than there are entries, so that some are written again. What stands in the prompt does not count."""
    plain = Sampling(400, frozenset(), temperature=0.0)
    sampling = replace(plain, frequency_penalty=frequency, presence_penalty=presence)
    prompt = IDS + write(backends[1], IDS, plain)[:20]
    openvino, torch_ = (write(backend, prompt, sampling) for backend in backends)
    assert openvino == torch_
    assert torch_ != write(backends[1], prompt, plain), "the penalty was felt"


def test_logits_of_written_tokens_are_of_both_signs(backends: tuple[OpenVinoBackend, TorchBackend]) -> None:
    """OpenVINO adds a penalty to a negative logit: there must be some, or the test above shows nothing."""
    model = backends[1]._model
    tokens = write(backends[1], IDS, Sampling(40, frozenset(), temperature=0.0, frequency_penalty=0.5))
    with torch.no_grad():
        logits = model.unembed(model(torch.tensor([IDS + tokens])))[0, -1, tokens]
    assert (logits > 0).any()
    assert (logits < 0).any()
