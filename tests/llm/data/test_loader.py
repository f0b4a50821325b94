"""Packed rows: every conversation once, none sees another, and the loss is that of each by itself."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.config import ConfigError
from llm.data.loader import IGNORE, Batch, ConversationLoader, PackedLoader, Row, join_rows, pack_lengths, pad_batch
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights
from llm.train.local import model_loss

SHAPE = ModelConfig(
    vocab_size=300, hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, head_size=32, mlp_size=96, context=64
)


def make_rows(count: int, longest: int = 40, weight: float = 1.0) -> list[Row]:
    """Return conversations of other lengths and words, of which the second half is learned."""
    draw = random.Random(count)
    rows = []
    for _ in range(count):
        n = draw.randrange(4, longest + 1)
        rows.append(([draw.randrange(1, 300) for _ in range(n)], [0.0] * (n // 2) + [weight] * (n - n // 2)))
    return rows


def make_model(dtype: torch.dtype = torch.float32) -> Transformer:
    torch.set_num_threads(1)
    model = Transformer(SHAPE)
    init_weights(model, 5)
    return model.to(dtype)


def test_best_fit_by_hand() -> None:
    # The longest first: 7; 6; 3 joins 7 (room 3) rather than a new one; 3 joins 6 (room 4); 2 and 2 share a new row.
    packs = pack_lengths([3, 7, 2, 6, 3, 2], 10, seed=0)
    assert sorted(sorted([3, 7, 2, 6, 3, 2][i] for i in pack) for pack in packs) == [[2, 2], [3, 6], [3, 7]]


@given(lengths=st.lists(st.integers(1, 32), max_size=60), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_each_is_packed_once_and_no_row_overflows(lengths: list[int], seed: int) -> None:
    packs = pack_lengths(lengths, 32, seed)
    assert sorted(i for pack in packs for i in pack) == list(range(len(lengths)))
    rooms = sorted(32 - sum(lengths[i] for i in pack) for pack in packs)
    assert all(room >= 0 for room in rooms)
    assert sum(room >= 16 for room in rooms) <= 1, "two rows that are half empty are one row"


def test_batches_are_a_function_of_the_step_and_an_epoch_holds_each_conversation_once() -> None:
    rows = make_rows(60)
    first, again = (PackedLoader(rows, 48, 1, 7, 0) for _ in range(2))
    epoch = [i for step in range(first.batches_per_epoch) for i in first.chosen(step)]
    assert sorted(epoch) == list(range(60))
    assert [first.chosen(step) for step in range(20)] == [again.chosen(step) for step in reversed(range(20))][::-1]
    other = PackedLoader(rows, 48, 1, 8, 0)
    assert {frozenset(pack) for pack in other.packs} != {frozenset(pack) for pack in first.packs}
    tokens = sum(int((first.batch(step).tokens != 0).sum()) for step in range(first.batches_per_epoch))
    assert tokens == sum(len(ids) - 1 for ids, _ in rows) == round(first.tokens_per_step * first.batches_per_epoch)


def test_a_packed_row_by_hand() -> None:
    loader = PackedLoader([([5, 6, 7], [0.0, 1.0, 1.0]), ([8, 9, 4, 3], [0.0, 0.0, 1.0, 1.0])], 7, 1, 0, 0)
    batch = loader.batch(0)
    assert batch.tokens.tolist() == [[8, 9, 4, 5, 6, 0, 0]]
    assert batch.targets.tolist() == [[IGNORE, 4, 3, 6, 7, IGNORE, IGNORE]]
    assert batch.segments is not None
    assert batch.segments.tolist() == [[0, 0, 0, 1, 1, 2, 2]]
    assert batch.weights is None


def losses(model: Transformer, packed: Batch, rows: list[Row]) -> tuple[float, float, float]:
    """Return the loss packed, of the conversations one by one, and packed without confinement."""
    with torch.no_grad():
        apart = [pad_batch([row], 0) for row in rows]
        counts = [float((one.targets != IGNORE).sum()) for one in apart]
        alone = sum(float(model_loss(model, one)) * n for one, n in zip(apart, counts, strict=True)) / sum(counts)
        return float(model_loss(model, packed)), alone, float(model_loss(model, packed._replace(segments=None)))


def test_the_loss_packed_is_that_of_each_conversation_by_itself() -> None:
    """RoPE turns by differences of positions, so confinement suffices; without it the loss is another."""
    rows = make_rows(24)
    loader = PackedLoader(rows, 48, 4, 7, 0)
    batch = loader.batch(0)
    together, alone, unconfined = losses(make_model(), batch, [rows[i] for i in loader.chosen(0)])
    assert together == pytest.approx(alone, abs=2e-6)  # fp32 sums in another order; measured 5e-7
    assert abs(unconfined - alone) > 1e-3


def test_gradients_packed_are_those_of_the_padded_batch() -> None:
    rows = make_rows(24)
    loader = PackedLoader(rows, 48, 4, 7, 0)
    grads = []
    for batch in (loader.batch(0), pad_batch([rows[i] for i in loader.chosen(0)], 0)):
        model = make_model()
        model_loss(model, batch).backward()  # type: ignore[no-untyped-call]
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*grads, atol=1e-6)
    assert grads[0].abs().max() > 1e-3


def test_bf16_takes_the_short_way_to_the_same_loss() -> None:
    rows = make_rows(24)
    loader = PackedLoader(rows, 48, 4, 7, 0)
    together, alone, unconfined = losses(
        make_model(torch.bfloat16), loader.batch(0), [rows[i] for i in loader.chosen(0)]
    )
    assert together == pytest.approx(alone, abs=2e-3)  # bf16 has 8 bits
    assert abs(unconfined - alone) > 5e-3


def test_weights_reach_the_batch_and_equal_ones_do_not() -> None:
    plain, heavy = make_rows(3), make_rows(3, weight=2.5)
    assert pad_batch(plain, 0).weights is None
    mixed = pad_batch([plain[0], heavy[1]], 0)
    assert mixed.weights is not None
    assert set(mixed.weights[0].tolist()) == {0.0, 1.0}
    assert set(mixed.weights[1].tolist()) == {0.0, 2.5}
    assert torch.equal(mixed.weights > 0, mixed.targets != IGNORE)
    parts = list(mixed.split(1))
    assert [part.weights.tolist() for part in parts if part.weights is not None] == [
        row.unsqueeze(0).tolist() for row in mixed.weights
    ]


def test_too_few_rows_are_explained() -> None:
    with pytest.raises(ConfigError, match="3 conversations fill 1 rows, fewer than sft.batch_size=2"):
        PackedLoader(make_rows(3, longest=8), 48, 2, 7, 0)


def test_padding_is_what_packing_saves() -> None:
    rows = make_rows(200)
    padded, packed = ConversationLoader(rows, 8, 7, 0), PackedLoader(rows, 48, 4, 7, 0)
    shares = []
    for loader in (padded, packed):
        batches = [loader.batch(step).tokens for step in range(loader.batches_per_epoch)]
        shares.append(float((torch.cat([one.flatten() for one in batches]) != 0).float().mean()))
    assert shares[1] > 0.97 > shares[0]
    assert join_rows([[rows[0]]], 48, 0).tokens.shape == (1, 48)
