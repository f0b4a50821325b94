"""Modelled energy by hand."""

import pytest

from llm.config import ConfigError
from llm.evals.energy import AssumedDevice, model_energy
from llm.model.config import ModelConfig

SHAPE = ModelConfig(
    vocab_size=300, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, head_size=16, mlp_size=32, context=64
)
# Weights by hand: queries and outputs 2 x 32 x 32, key and value 2 x 16 x 32, MLP 3 x 32 x 32, unembedding 300 x 32.
WEIGHTS = 2048 + 1024 + 3072 + 9600
FLOPS = 6 * WEIGHTS + 6 * 32 * 64  # of training a token: 6 per weight, and attention's 6 L H K T


def test_both_figures_by_hand() -> None:
    device = AssumedDevice(flops_per_joule=10, joules_per_byte=3, bytes_per_weight=2, training_bytes_per_weight=5)
    found = model_energy(SHAPE, 7, 4, 1000, 20, device)
    assert found["modelled_joules_per_answer"] == pytest.approx(11 * FLOPS / 3 / 10 + 5 * WEIGHTS * 2 * 3)
    assert found["modelled_joules_training"] == pytest.approx(1000 * FLOPS / 10 + 20 * WEIGHTS * 5 * 3)


def test_the_result_says_what_was_assumed() -> None:
    assumptions = model_energy(SHAPE, 7, 4, 1000, 20)["assumptions"]
    assert assumptions == {
        **AssumedDevice().model_dump(),
        **{"prompt_tokens": 7, "answer_tokens": 4, "training_tokens": 1000, "training_steps": 20},
    }
    assert {"name", "flops_per_joule", "joules_per_byte"} <= set(assumptions)


def test_nothing_costs_nothing_and_less_than_nothing_is_refused() -> None:
    assert model_energy(SHAPE, 0, 0, 0, 0)["modelled_joules_training"] == 0.0
    with pytest.raises(ConfigError, match="at least 0"):
        model_energy(SHAPE, 7, -1, 0, 0)
