"""The dial: through the measured point, against published laws, and never dependent on the steps that are run."""

import pytest

from llm.model.presets import PRESETS
from llm.train.dial import count_block_parameters, scale_rates, turn_dial


def step_law_rate(parameters: int, tokens: int) -> float:
    """arXiv:2503.04715, fitted on AdamW from 60M to 1B non-embedding parameters."""
    return 1.79 * parameters**-0.713 * tokens**0.307


def step_law_batch(tokens: int) -> float:
    return 0.58 * tokens**0.571


def test_the_dial_passes_through_the_measured_point():
    settings = turn_dial(PRESETS["mini"], 256, "muon", tokens=700 * 16 * 256)
    assert settings[:5] == (0.015, 0.0075, 16, 700, 14)


def test_parameters_of_the_blocks_by_hand():
    # 4 layers: qkv 256 x 768, out 256 x 256, gate and up 256 x 1408, down 704 x 256
    assert count_block_parameters(PRESETS["mini"]) == 4 * (256 * 768 + 256 * 256 + 256 * 1408 + 704 * 256)


@pytest.mark.parametrize("name", ["small", "1b", "7b", "30b"])
def test_adamw_rates_and_batches_meet_the_step_law(name):
    shape = PRESETS[name]
    settings = turn_dial(shape, shape.context, "adamw")
    assert settings.lr == pytest.approx(step_law_rate(count_block_parameters(shape), settings.tokens), rel=0.2)
    batch = settings.batch_size * shape.context  # a power of two may be off by sqrt(2), our anchor lies 1.44 above
    assert 0.7 < batch / step_law_batch(settings.tokens) < 2.1
    # negative control: the small model's rate is far off for a large one
    assert turn_dial(PRESETS["mini"], 256, "adamw").lr > 3 * settings.lr


def test_rates_by_hand():
    # four times as wide: Muon halves, AdamW quarters, the embedding halves; four times the batch doubles them
    assert scale_rates(1024, 16 * 256, 700 * 4096, "muon") == (0.0075, 0.00375)
    assert scale_rates(1024, 16 * 256, 700 * 4096, "adamw") == (0.0025, 0.00375)
    assert scale_rates(256, 64 * 256, 700 * 4096, "muon") == (0.03, 0.015)


def test_a_given_batch_changes_rates_and_steps_alone():
    free, given = (turn_dial(PRESETS["small"], 1024, "muon", batch) for batch in (None, 32))
    assert (free.batch_size, given.batch_size) == (128, 32)
    assert given.lr == pytest.approx(free.lr / 2, rel=0.01)
    assert given.steps == pytest.approx(4 * free.steps, rel=0.001)
    assert given.tokens == free.tokens == 20 * count_block_parameters(PRESETS["small"])
