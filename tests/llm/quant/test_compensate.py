"""Error compensation keeps outputs close: against plain rounding, by hand in two columns, with white inputs."""

import numpy as np
import pytest
import torch

from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights
from llm.quant.blocks import Packed, join_q8_0, pack_q4_0, pack_q8_0, round_q4_0, unpack
from llm.quant.calibration import collect_moments
from llm.quant.compensate import _inverse_factor, _round_columns, compensate_q4_0, compensate_q8_0
from llm.quant.search import search_q4_0


def output_error(weight: np.ndarray, packed, x_NI: np.ndarray) -> float:
    return float((((unpack(packed) - weight) @ x_NI.T) ** 2).mean())


def test_correlated_inputs_gain_most():
    random = np.random.default_rng(1)
    weight = random.standard_normal((48, 96)).astype(np.float32)
    x_NI = (random.standard_normal((400, 12)) @ random.standard_normal((12, 96))).astype(np.float32)
    moment = torch.from_numpy(x_NI.T @ x_NI / len(x_NI)).double()
    plain = output_error(weight, pack_q4_0(*round_q4_0(weight)), x_NI)
    compensated = output_error(weight, pack_q4_0(*compensate_q4_0(weight, moment)), x_NI)
    assert compensated < 0.3 * plain


def test_white_inputs_leave_nothing_to_compensate():
    weight = np.random.default_rng(2).standard_normal((8, 64)).astype(np.float32)
    found = compensate_q4_0(weight, torch.eye(64, dtype=torch.float64))
    searched = search_q4_0(weight, np.ones(64, dtype=np.float32))
    np.testing.assert_array_equal(found[0], searched[0].astype(np.float16))  # scales as the file holds them
    np.testing.assert_array_equal(found[1], searched[1])


@pytest.mark.parametrize("seed", range(3))
def test_the_objective_falls_and_a_wrong_hessian_does_not_do(seed: int):
    random = np.random.default_rng(seed)
    weight = random.standard_normal((24, 64)).astype(np.float32)
    mixing = random.standard_normal((64, 10))
    moment, other = (
        torch.from_numpy(m @ m.T / 10 + 0.05 * np.eye(64)) for m in (mixing, random.permutation(mixing, axis=0))
    )

    def lose(packed: Packed) -> float:
        gap = (weight - unpack(packed)).astype(np.float64)
        return float(np.trace(gap @ moment.numpy() @ gap.T))  # tr((W - W') H (W - W')^T)

    plain = lose(pack_q4_0(*round_q4_0(weight)))
    assert lose(pack_q4_0(*compensate_q4_0(weight, moment))) < 0.5 * plain
    assert lose(pack_q4_0(*compensate_q4_0(weight, other))) > 0.9 * plain


def test_second_column_takes_up_the_error_of_the_first():
    # Inputs 0 and 1 are equal, so only the sum of their weights matters: 0.4 + 0.4 rounds to 0 + 1.
    moment = torch.eye(32, dtype=torch.float64)
    moment[0, 1] = moment[1, 0] = 1.0
    block = np.zeros((1, 32))
    block[0, :2] = 0.4
    factor = _inverse_factor(moment, damping=1e-6).numpy()
    steps, _ = _round_columns(block, factor, np.ones(1, dtype=np.float32), -8, 7)
    assert steps[0, :3].tolist() == [0, 1, 0]


def test_eight_bits_keep_outputs_closer_than_plain_rounding():
    generator = np.random.default_rng(3)
    x_NI = (generator.standard_normal((512, 8)) @ generator.standard_normal((8, 64))).astype(np.float32)
    weight = generator.standard_normal((16, 64)).astype(np.float32)
    moment = torch.from_numpy((x_NI.T @ x_NI / len(x_NI)).astype(np.float64))
    plain = output_error(weight, pack_q8_0(weight), x_NI)
    assert output_error(weight, join_q8_0(*compensate_q8_0(weight, moment)), x_NI) < 0.5 * plain


def test_moments_of_another_size_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        compensate_q4_0(np.zeros((2, 64), dtype=np.float32), torch.eye(32, dtype=torch.float64))


@pytest.mark.parametrize("tied", [True, False])
def test_moments_are_those_of_the_inputs(tied: bool):
    config = ModelConfig(
        vocab_size=300, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_size=16, mlp_size=64,
        context=32, tie_embeddings=tied,
    )  # fmt: skip
    model = Transformer(config).eval()
    init_weights(model, 5)
    windows = torch.randint(0, 300, (11, 6), generator=torch.Generator().manual_seed(0))
    moments = collect_moments(model, windows)
    matrices = 7 * config.num_layers + 1 + (not tied)
    assert len(moments) == matrices
    with torch.no_grad():
        first = model.blocks[0].attention_norm(model.embedding(windows)).flatten(0, 1)
        final = model(windows).flatten(0, 1)
    expected = (first.T @ first / 66).double()
    torch.testing.assert_close(moments["model.layers.0.self_attn.k_proj.weight"], expected, rtol=1e-5, atol=1e-6)
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    torch.testing.assert_close(moments[head], (final.T @ final / 66).double(), rtol=1e-5, atol=1e-6)
    # No hook stays behind.
    assert not any(module._forward_pre_hooks for module in model.modules())
