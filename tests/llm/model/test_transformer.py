"""The core equals transformers' Qwen3, with and without a cache, and its folder round-trips to the bit."""

import pytest
import torch

from llm.config import ConfigError
from llm.model.config import ModelConfig
from llm.model.folder import load_model, save_model
from llm.model.transformer import Transformer, attend, attend_short, init_weights, rope_tables, rotate


def make_model(tie: bool = True, kv_heads: int = 2) -> Transformer:
    config = ModelConfig(
        vocab_size=300, hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=kv_heads, head_size=16,
        mlp_size=96, context=64, tie_embeddings=tie,
    )  # fmt: skip
    model = Transformer(config)
    init_weights(model, 7)
    with torch.no_grad():  # norms away from one, or a forgotten norm weight would not show
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.2)
    return model


@pytest.mark.parametrize("tie", [True, False])
def test_logits_and_gradients_equal_transformers(tmp_path, tie):
    from transformers import AutoModelForCausalLM

    ours = make_model(tie)
    save_model(ours, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1))
    logits, reference = ours.unembed(ours(tokens)), theirs(tokens).logits
    # fp32 rounding of two orders of summation; measured 1e-6
    assert torch.allclose(logits, reference, atol=1e-4)
    logits.square().mean().backward()
    reference.square().mean().backward()
    got = ours.blocks[0].mlp.down.weight.grad
    want = theirs.model.layers[0].mlp.down_proj.weight.grad
    assert torch.allclose(got, want, atol=1e-4)


def test_cached_equals_uncached():
    model = make_model()
    tokens = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(2))
    whole = model(tokens)
    cache = model.new_cache(2, 20)
    pieces = [model(tokens[:, a:b], cache) for a, b in [(0, 7), (7, 8), (8, 9), (9, 20)]]
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5)


def test_left_padding_changes_nothing():
    model = make_model()
    tokens = torch.randint(0, 300, (1, 12), generator=torch.Generator().manual_seed(2))
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), tokens], 1)
    mask = torch.arange(17)[None] >= 5
    positions = (torch.arange(17)[None] - 5).clamp(min=0)
    out = model(padded, positions_BT=positions, attention_mask=mask)
    assert torch.allclose(out[:, 5:], model(tokens), atol=1e-5)
    assert torch.isfinite(out).all()


def test_future_does_not_leak():
    model = make_model()
    tokens = torch.randint(0, 300, (1, 16), generator=torch.Generator().manual_seed(2))
    changed = tokens.clone()
    changed[0, 10] = (changed[0, 10] + 1) % 300
    same = torch.isclose(model(tokens), model(changed), atol=1e-6).all(-1)[0]
    assert same[:10].all()
    assert not same[10:].any()


def test_attention_on_the_cpu_is_the_plain_formula_to_the_bit():
    """Kernels for GPUs may differ by rounding; weights trained on a CPU must not change with them."""
    generator = torch.Generator().manual_seed(4)
    query = torch.randn(2, 4, 9, 16, generator=generator)
    key, value = torch.randn(2, 2, 2, 9, 16, generator=generator)
    wide_key, wide_value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    want = torch.nn.functional.scaled_dot_product_attention(query, wide_key, wide_value, is_causal=True)
    assert torch.equal(attend(query, key, value, None), want)
    # the flag that replaces the copies on a GPU means the same grouping; measured 0
    native = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    assert torch.allclose(native, want, atol=1e-5)
    wrong = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat(1, 2, 1, 1), value.repeat(1, 2, 1, 1), is_causal=True
    )
    assert not torch.allclose(wrong, want, atol=1e-2)


def test_short_attention_and_its_gradients_equal_flash():
    generator = torch.Generator().manual_seed(5)
    parts = torch.randn(3, 2, 4, 9, 16, generator=generator)
    ours, theirs = parts.clone().requires_grad_(), parts.clone().requires_grad_()
    got = attend_short(*ours)
    want = torch.nn.functional.scaled_dot_product_attention(*theirs, is_causal=True)
    assert torch.allclose(got, want, atol=1e-6)
    weight = torch.randn(got.shape, generator=generator)
    (got * weight).sum().backward()
    (want * weight).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)
    # in bf16, which `attend` gives to it on a CPU, scores are rounded too: 2 ** -8 of values of order one
    low = parts.bfloat16()
    assert torch.equal(attend(*low, None), attend_short(*low))
    assert torch.allclose(attend(*low, None).float(), want, atol=0.03)


def test_rotation_is_a_rotation_and_its_gradient_turns_back():
    config = make_model().config
    cos, sin = (table.double()[None, None, :5] for table in rope_tables(config, torch.float32, torch.device("cpu")))
    x = torch.randn(2, 3, 5, config.head_size, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(rotate(x, cos, sin).norm(dim=-1), x.norm(dim=-1), rtol=1e-6)
    half = config.head_size // 2
    assert torch.allclose(
        rotate(x, cos, sin)[0, 0, 1, 0], x[0, 0, 1, 0] * cos[0, 0, 1, 0] - x[0, 0, 1, half] * sin[0, 0, 1, 0]
    )
    assert torch.autograd.gradcheck(lambda y: rotate(y, cos, sin), (x,))


@pytest.mark.parametrize("tie", [True, False])
def test_folder_round_trip_is_exact(tmp_path, tie):
    model = make_model(tie)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_folder_without_weights_names_the_file(tmp_path):
    save_model(make_model(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="model.safetensors: no such file"):
        load_model(tmp_path)
