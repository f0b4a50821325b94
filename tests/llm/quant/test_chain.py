"""Rounding in order: a refit by hand, the walk against the block, and a chain that beats matrices rounded alone."""

import numpy as np
import pytest
import torch

from llm.model.config import ModelConfig
from llm.model.folder import from_hf_state, to_hf_state
from llm.model.transformer import Transformer, init_weights, rope_tables
from llm.quant.blocks import Kind, Packed, pack_q4_0, pack_q8_0, round_q4_0, unpack
from llm.quant.calibration import collect_moments
from llm.quant.chain import refit, round_in_order, walk_block
from llm.quant.compensate import compensate

CONFIG = ModelConfig(
    vocab_size=300, hidden_size=64, num_layers=3, num_heads=2, num_kv_heads=1, head_size=32, mlp_size=96, context=48
)
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def model() -> Transformer:
    model = Transformer(CONFIG).eval()
    init_weights(model, 4)
    return model


def draw(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 300, (count, 24), generator=torch.Generator().manual_seed(seed))


def test_an_input_that_doubled_halves_its_weight():
    # y = (2 x0, x1): the outputs 3 x0 + 5 x1 are kept by the weights 1.5 and 5.
    cross = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    moment = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64))
    found = refit(torch.tensor([[3.0, 5.0]]), cross, moment, damping=1e-9)
    torch.testing.assert_close(found, torch.tensor([[1.5, 5.0]]))
    # A ridge of 4 (damping 1.6 of the mean moment 2.5) pulls the first towards 3: 3 * (2 + 4) / (4 + 4).
    pulled = refit(torch.tensor([[3.0, 5.0]]), cross, moment, damping=1.6)
    torch.testing.assert_close(pulled, torch.tensor([[2.25, 5.0]]))


def test_refit_is_the_least_squares_solution_and_leaves_equal_inputs_alone():
    random = np.random.default_rng(0)
    x_NI, weight = random.standard_normal((200, 6)), random.standard_normal((4, 6))
    y_NI = x_NI + 0.3 * random.standard_normal(x_NI.shape)
    cross, moment = (torch.from_numpy(one.T @ y_NI / len(y_NI)) for one in (x_NI, y_NI))
    expected = np.linalg.lstsq(y_NI, x_NI @ weight.T, rcond=None)[0].T
    ours = torch.from_numpy(weight)
    np.testing.assert_allclose(refit(ours, cross, moment, damping=1e-12).numpy(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(refit(ours, moment, moment, damping=0.1), ours.float())


def test_the_walk_ends_where_the_block_does_and_uses_what_was_put_in(model: Transformer):
    x_BTD = torch.randn(2, 24, 64, generator=torch.Generator().manual_seed(1))
    cos_TK, sin_TK = rope_tables(CONFIG, torch.float32, torch.device("cpu"))
    rope = cos_TK[:24], sin_TK[:24]
    seen: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        block = model.blocks[1]
        handles = [
            block.get_submodule(name).register_forward_pre_hook(
                lambda _m, args, name=name: seen.update({name: args[0]})
            )
            for name in ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down")
        ]
        *inputs, out = walk_block(block, x_BTD, rope)
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(out, block(x_BTD, rope, None, None, 1), rtol=0, atol=0)
        for ours, theirs in zip(inputs, seen.values(), strict=True):
            assert ours is theirs


def lose(model: Transformer, packed: dict[str, Packed], windows: torch.Tensor) -> float:
    """Return the mean squared change of the final hidden states."""
    state = to_hf_state(model) | {name: torch.from_numpy(unpack(one)) for name, one in packed.items()}
    other = Transformer(CONFIG).eval()
    other.load_state_dict(from_hf_state(state, CONFIG))
    with torch.no_grad():
        return float(((other(windows) - model(windows)) ** 2).mean())


def test_a_chain_loses_less_than_matrices_rounded_alone(model: Transformer):
    matrices = {name: tensor.numpy() for name, tensor in to_hf_state(model).items() if tensor.ndim == 2}
    rows = pack_q8_0(matrices.pop(EMBEDDING))
    seen, unseen = draw(96, 2), draw(48, 3)
    kinds: dict[str, Kind] = dict.fromkeys(matrices, "q4_0")
    moments = collect_moments(model, seen)
    alone = {name: compensate("q4_0", weight, moments[name]) for name, weight in matrices.items()}
    plain = {name: pack_q4_0(*round_q4_0(weight)) for name, weight in matrices.items()}
    chain = round_in_order(model, seen, rows, kinds, 0.01)
    assert chain.keys() == matrices.keys()
    lost = {name: lose(model, {**one, EMBEDDING: rows}, unseen) for name, one in
            (("plain", plain), ("alone", alone), ("chain", chain))}  # fmt: skip
    assert lost["chain"] < lost["alone"] < lost["plain"]
    # The model itself stays as it was, and eight bits go where they are asked for.
    np.testing.assert_array_equal(to_hf_state(model)["model.layers.0.mlp.down_proj.weight"].numpy(),
                                  matrices["model.layers.0.mlp.down_proj.weight"])  # fmt: skip
    last = "model.layers.2.mlp.down_proj.weight"
    mixed = round_in_order(model, seen, rows, kinds | {last: "q8_0"}, 0.01)
    assert {name for name, one in mixed.items() if one.kind == "q8_0"} == {last}
    assert lose(model, {**mixed, EMBEDDING: rows}, unseen) < lost["chain"]
