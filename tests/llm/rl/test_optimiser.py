"""The optimiser of preference learning, and its compute type."""

import pytest
import torch
from torch import nn

from llm.config import ConfigError
from llm.rl.optimiser import Optimiser
from llm.rl.precision import compute_in


def make_layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 8)


def test_first_step_moves_every_weight_by_the_rate():
    # AdamW's first step is lr * g / (|g| + eps): the rate in the gradient's direction, whatever its size.
    layer = make_layer()
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 8)).sum().backward()
    Optimiser(layer, lr=0.01).step(lr_scale=0.5)
    torch.testing.assert_close(before - layer.weight, torch.full((8, 8), 0.005), atol=1e-6, rtol=0)


def test_norm_is_that_before_clipping():
    layer = make_layer()
    (1000 * layer(torch.ones(1, 8))[0, 0]).backward()  # gradient 1000 in eight weights and one bias
    assert Optimiser(layer, lr=0.01).step(1.0) == pytest.approx(1000 * 9**0.5)
    assert layer.weight.grad is None


def test_non_finite_gradient_stops_before_the_step():
    layer = make_layer()
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    (layer(torch.ones(1, 8)).sum() * float("inf")).backward()
    with pytest.raises(ConfigError, match="lower lr"):
        Optimiser(layer, lr=0.01).step(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))


def test_fp32_is_off_to_the_bit_and_bf16_is_near():
    layer, x = make_layer(), torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    exact = layer(x)
    with compute_in(torch.float32, x.device):
        assert torch.equal(layer(x), exact)
    with compute_in(torch.bfloat16, x.device):
        rounded = layer(x)
    assert rounded.dtype == torch.bfloat16
    assert not torch.equal(rounded.float(), exact)
    # Eight terms of order one, each rounded to eight bits.
    torch.testing.assert_close(rounded.float(), exact, atol=0.03, rtol=0.02)
