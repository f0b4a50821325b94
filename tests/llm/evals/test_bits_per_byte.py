"""Bits per byte: every token once, with enough context, equal to the plain computation."""

import math

import numpy as np
import pytest
import torch

from llm.evals.bits_per_byte import count_bytes, decode_stream, measure_bits_per_byte, slide
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights

VOCAB = 300
EOS = 0
TOKEN_BYTES = [b""] + [b"x" * (1 + i % 3) for i in range(1, VOCAB)]


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = ModelConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_size=16,
        mlp_size=64,
        context=16,
    )
    model = Transformer(config)
    init_weights(model, 0)
    with torch.no_grad():
        model.embedding.weight.mul_(20.0)  # far from uniform, so that an error in the alignment shows
    return model.eval()


def make_tokens(count: int, seed: int = 0) -> np.ndarray:
    tokens = np.random.default_rng(seed).integers(1, VOCAB, count).astype(np.uint16)
    tokens[6::7] = EOS
    return tokens


@pytest.mark.parametrize("length", [1, 7, 15, 16, 17, 23, 24, 25, 100])
@pytest.mark.parametrize("stride", [1, 5, 8, 16])
def test_every_prediction_is_scored_once_with_enough_before_it(length: int, stride: int) -> None:
    spans = [span for batch in slide(length, 16, stride, 3) for span in batch]
    scored = [place for _, first, stop in spans for place in range(first, stop)]
    assert scored == list(range(length))
    assert all(stop - start == min(16, length) for start, _, stop in spans)
    assert all(first - start >= 16 - stride for start, first, _ in spans if start)


def test_equals_one_window_at_a_time(model: Transformer) -> None:
    tokens = make_tokens(61)
    stream = [EOS, *tokens.tolist()]
    nats = 0.0
    with torch.inference_mode():
        for target in range(1, len(stream)):
            # stride 1: each token sees exactly the window before it
            before = torch.tensor([stream[max(0, target - 16) : target]])
            logits = model.unembed(model(before)[0, -1])
            nats -= float(torch.log_softmax(logits.double(), -1)[stream[target]])
    found = measure_bits_per_byte(model, tokens, TOKEN_BYTES, EOS, 16, stride_share=1 / 16, batch_size=5)
    assert found.num_bytes == sum(len(TOKEN_BYTES[t]) for t in tokens)
    assert found.num_tokens == 61
    assert found.bits == pytest.approx(nats / math.log(2), rel=1e-5)
    assert found.value == found.bits / found.num_bytes


def test_does_not_depend_on_the_batch(model: Transformer) -> None:
    tokens = make_tokens(200)
    one = measure_bits_per_byte(model, tokens, TOKEN_BYTES, EOS, 16, batch_size=1)
    many = measure_bits_per_byte(model, tokens, TOKEN_BYTES, EOS, 16, batch_size=64)
    assert one.bits == pytest.approx(many.bits, rel=1e-5)


def test_a_uniform_model_costs_log2_of_the_vocabulary_per_token(model: Transformer) -> None:
    flat = Transformer(model.config)
    init_weights(flat, 0)
    with torch.no_grad():
        flat.embedding.weight.zero_()
    tokens = make_tokens(50)
    found = measure_bits_per_byte(flat, tokens, TOKEN_BYTES, EOS, 16)
    # Ends of documents are paid for and add no bytes.
    assert found.bits == pytest.approx(50 * math.log2(VOCAB), rel=1e-6)
    assert (tokens == EOS).sum() == 7


def test_decodes_the_bytes_with_terminators() -> None:
    tokens = np.array([1, 2, 0, 3, 0], dtype=np.uint16)
    assert decode_stream(tokens, TOKEN_BYTES) == b"xx" + b"xxx" + b"\0" + b"x" + b"\0"
    assert count_bytes(tokens, TOKEN_BYTES) == 6


def test_refuses_a_stream_without_text(model: Transformer) -> None:
    with pytest.raises(ValueError, match="0 bytes"):
        measure_bits_per_byte(model, np.array([EOS, EOS], dtype=np.uint16), TOKEN_BYTES, EOS, 16)
