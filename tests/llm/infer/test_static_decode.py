"""Decoding with fixed shapes gives what the ordinary cache gives, eager and compiled, whatever was decoded before."""

import pytest
import torch
from torch import Tensor

from llm.infer.static_decode import StaticDecoder, decode_layer
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights

LENGTH = 40


def make_model(kv_heads: int = 2, tie: bool = True) -> Transformer:
    config = ModelConfig(
        vocab_size=300, hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=kv_heads, head_size=16,
        mlp_size=96, context=64, tie_embeddings=tie,
    )  # fmt: skip
    model = Transformer(config)
    init_weights(model, 7)
    with torch.no_grad():
        model.embedding.weight.mul_(25)  # confident enough that greedy choices are no ties
    return model


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@torch.no_grad()
def decode_ordinarily(model: Transformer, prompt_BT: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Greedy tokens [B, n] and the logits [B, n, V] that chose them, with the growing cache."""
    cache = model.new_cache(len(prompt_BT), LENGTH)
    logits = [model.unembed(model(prompt_BT, cache)[:, -1])]
    while len(logits) < num_tokens:
        logits.append(model.unembed(model(logits[-1].argmax(-1, keepdim=True), cache)[:, -1]))
    logits_BNV = torch.stack(logits, 1)
    return logits_BNV.argmax(-1), logits_BNV


def decode_statically(decoder: StaticDecoder, prompt_BT: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    decoder.prefill(prompt_BT)
    tokens, logits = [decoder.tokens_B1.clone()], [decoder.logits_BV.clone()]
    while len(tokens) < num_tokens:
        decoder.step()
        tokens.append(decoder.tokens_B1.clone())
        logits.append(decoder.logits_BV.clone())
    return torch.cat(tokens, 1), torch.stack(logits, 1)


def draw_prompts(rows: int, length: int, seed: int = 2) -> Tensor:
    return torch.randint(0, 300, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kv_heads", "tie", "rows"), [(4, True, 1), (2, True, 3), (1, False, 2)])
def test_static_equals_ordinary_decoding(kv_heads, tie, rows):
    model = make_model(kv_heads, tie)
    prompt = draw_prompts(rows, 9)
    want_tokens, want = decode_ordinarily(model, prompt, 20)
    tokens, logits = decode_statically(StaticDecoder(model, rows, LENGTH), prompt, 20)
    assert torch.equal(tokens, want_tokens)
    # fp32; logits up to 24, measured 6e-6
    assert torch.allclose(logits, want, atol=1e-5, rtol=1e-5)


def test_a_second_prompt_does_not_see_the_first():
    model = make_model()
    decoder = StaticDecoder(model, 2, LENGTH)
    decode_statically(decoder, draw_prompts(2, 20, seed=5), 15)
    prompt = draw_prompts(2, 4)
    assert torch.equal(decode_statically(decoder, prompt, 20)[0], decode_ordinarily(model, prompt, 20)[0])


def test_rewound_steps_repeat_to_the_bit():
    decoder = StaticDecoder(make_model(), 1, LENGTH)
    decoder.prefill(draw_prompts(1, 9))
    first = decoder.tokens_B1.clone()
    runs = []
    for _ in range(2):
        decoder.rewind(9)
        decoder.tokens_B1.copy_(first)
        for _ in range(5):
            decoder.step()
        runs.append(decoder.logits_BV.clone())
    assert torch.equal(*runs)


def test_a_wrong_position_shows():
    """The comparison above can fail: with keys one place off, logits are others."""
    model = make_model()
    prompt = draw_prompts(1, 9)
    _, want = decode_ordinarily(model, prompt, 3)
    decoder = StaticDecoder(model, 1, LENGTH)
    decoder.prefill(prompt)
    decoder._position.add_(1)
    decoder.step()
    assert not torch.allclose(decoder.logits_BV, want[:, 1], atol=1e-3)


def test_a_full_cache_and_a_length_beyond_the_context_are_refused():
    decoder = StaticDecoder(make_model(), 1, 10)
    decoder.prefill(draw_prompts(1, 10))
    with pytest.raises(AssertionError, match="full"):
        decoder.step()
    with pytest.raises(AssertionError, match="context"):
        StaticDecoder(make_model(), 1, 65)


@pytest.mark.slow
def test_all_layers_share_one_traced_function():
    """Else a model of 52 layers would be compiled 52 times."""
    from torch._dynamo.testing import CompileCounter

    model = make_model()
    torch._dynamo.reset()
    counter = CompileCounter()
    traced = torch.compile(decode_layer, backend=counter, fullgraph=True, dynamic=False)
    cache = model.new_cache(1, 64)
    rope = torch.ones(1, 1, 1, 16), torch.zeros(1, 1, 1, 16)
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            x = torch.ones(1, 1, 64)
            position, bias = torch.tensor([3]), torch.zeros(64)
            traced(block, x, rope, bias, position, cache.keys[layer], cache.values[layer])
    assert counter.frame_count == 1


@pytest.mark.slow
def test_compiled_equals_ordinary_decoding():
    model = make_model()
    prompt = draw_prompts(1, 9)
    want_tokens, want = decode_ordinarily(model, prompt, 20)
    tokens, logits = decode_statically(StaticDecoder(model, 1, LENGTH, compile=True), prompt, 20)
    assert torch.equal(tokens, want_tokens)
    # fused products sum in another order; measured 8e-6
    assert torch.allclose(logits, want, atol=1e-4, rtol=1e-4)
