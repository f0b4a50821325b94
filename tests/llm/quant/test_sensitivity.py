"""Sensitivity of matrices and the original's own text, on a tiny model."""

import math

import pytest
import torch

from llm.infer.score import score
from llm.model.config import ModelConfig
from llm.model.folder import from_hf_state, to_hf_state
from llm.model.transformer import Transformer, init_weights
from llm.quant.blocks import Packed, pack_q4_0, pack_q8_0, round_q4_0, unpack
from llm.quant.own_text import join_draws, write_own_text
from llm.quant.sensitivity import measure_sensitivity

CONFIG = ModelConfig(
    vocab_size=300, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_size=16, mlp_size=64, context=48
)
WINDOWS = torch.randint(0, 300, (5, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model() -> Transformer:
    model = Transformer(CONFIG).eval()
    init_weights(model, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # a fresh model's distributions are too flat to lose anything
    return model


def round_matrices(model: Transformer) -> dict[str, Packed]:
    matrices = {name: tensor.numpy() for name, tensor in to_hf_state(model).items() if tensor.ndim == 2}
    return {name: pack_q4_0(*round_q4_0(weight)) for name, weight in matrices.items()}


def test_each_matrix_alone_against_torch(model: Transformer):
    packed = round_matrices(model)
    name = "model.layers.1.self_attn.k_proj.weight"
    losses = measure_sensitivity(model, WINDOWS, num_bytes=100, packed=packed)
    assert list(losses) == list(packed)
    assert all(loss > 0 for loss in losses.values())
    other = Transformer(CONFIG).eval()
    state = {**to_hf_state(model), name: torch.from_numpy(unpack(packed[name]))}
    other.load_state_dict(from_hf_state(state, CONFIG))
    with torch.no_grad():
        p, q = ((m.unembed(m(WINDOWS[:, :-1]))).log_softmax(-1).flatten(0, 1) for m in (model, other))
    nats = torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True)
    assert losses[name] == pytest.approx(float(nats) / math.log(2) / 100, rel=1e-3)


def test_what_is_hardly_rounded_loses_hardly_anything(model: Transformer):
    weight = to_hf_state(model)["model.layers.0.mlp.down_proj.weight"].numpy()
    kinds = {"q8_0": pack_q8_0(weight), "q4_0": pack_q4_0(*round_q4_0(weight))}
    name = "model.layers.0.mlp.down_proj.weight"
    losses = {kind: measure_sensitivity(model, WINDOWS, 100, {name: one})[name] for kind, one in kinds.items()}
    assert losses["q8_0"] < 0.05 * losses["q4_0"]


def test_own_text_is_scored_as_it_was_drawn(model: Transformer):
    windows = WINDOWS.tolist()
    own = write_own_text(model, windows, prompt_tokens=4, new_tokens=10, draws=2, stop_ids=(0,), seed=5)
    assert own.starts == [4] * 10
    assert [sequence[:4] for sequence in own.sequences] == [window[:4] for window in windows] * 2
    assert own.sequences[:5] != own.sequences[5:]
    for given, again in zip(own.logprobs, score(model, own.sequences, own.starts), strict=True):
        assert given == pytest.approx(again, abs=1e-4)


def test_own_text_shows_a_loss_that_given_text_can_hide(model: Transformer):
    """Rounding towards a text makes that text cheaper; the original's own text still gets dearer."""
    windows = [WINDOWS[0].tolist()] * 40
    other = Transformer(CONFIG).eval()
    other.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(other.parameters(), lr=0.02)
    before = sum(map(sum, score(other, windows[:1], [1])))
    for _ in range(3):
        logits = other.unembed(other(WINDOWS[:1, :-1]))
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), WINDOWS[0, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    own = write_own_text(model, windows, prompt_tokens=2, new_tokens=40, draws=1, stop_ids=(), seed=5)
    after = sum(map(sum, score(other, windows[:1], [1])))
    assert after > before
    assert sum(map(sum, score(other, own.sequences, own.starts))) < sum(map(sum, own.logprobs))


def test_draws_of_a_window_are_joined():
    assert join_draws([[1.0], [2.0, 3.0], [4.0], [5.0]], draws=2) == [[1.0, 4.0], [2.0, 3.0, 5.0]]
