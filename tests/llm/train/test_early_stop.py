"""Early stopping: when it stops and what it keeps, and that a kill changes neither, to the bit."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from llm.config import Base
from llm.data.loader import Batch, ConversationLoader, Row, pad_batch
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights
from llm.train.checkpoint import list_checkpoints
from llm.train.early_stop import EarlyStop, EarlyStopConfig, count_stale
from llm.train.local import LocalEngine, TrainConfig, evaluate_loss
from llm.train.loop import train

SHAPE = ModelConfig(
    vocab_size=300, hidden_size=64, num_layers=1, num_heads=2, num_kv_heads=2, head_size=32, mlp_size=96, context=64
)
BASE = Base(dtype="bf16", threads=1)
CONFIG = TrainConfig(
    steps=40, batch_size=4, checkpoint_every=3, log_every=5, optimiser="adamw", lr=0.003, embedding_lr=0.003
)
STOP = EarlyStopConfig(eval_every=2, patience=3)


def make_rows(count: int, seed: int) -> list[Row]:
    """Return rows of ten words: which they are is soon learned, and then each row by heart, which helps no other."""
    numbers = np.random.default_rng(seed).integers(0, 10, (count, 12))
    return [(row.tolist(), [0.0] * 4 + [1.0] * 8) for row in numbers]


class Killed(Exception):
    pass


class Run(NamedTuple):
    engine: LocalEngine
    watch: EarlyStop
    trace: list[dict[str, float]]
    weights: list[bytes]  # when each held-out loss was measured


def run(scratch: Path | None = None, config: EarlyStopConfig = STOP, kill_at: int | None = None) -> Run:
    """Train on eight conversations."""
    torch.set_num_threads(1)
    model = Transformer(SHAPE)
    init_weights(model, 5)
    model = model.to(torch.bfloat16)
    loader = ConversationLoader(make_rows(8, 1), 4, 1, 0)
    held_out = [pad_batch(make_rows(16, 2), 0)]
    engine = LocalEngine(model, CONFIG)
    weights: list[bytes] = []

    def evaluate() -> float | None:
        weights.append(masters(engine))
        return evaluate_loss(model, held_out)

    watch = EarlyStop(config, CONFIG.steps, evaluate, engine.keep_weights)

    def batch_of(step: int) -> Batch:
        if step == kill_at:
            raise Killed
        return loader.batch(step)

    trained = train(engine, batch_of, CONFIG, BASE, scratch, held_out=watch)
    last = evaluate_loss(model, held_out)
    engine.return_to_kept()
    if config.patience:
        assert evaluate_loss(model, held_out) == min(point["loss"] for point in watch.curve)
        assert last == watch.curve[-1]["loss"]
    return Run(engine, watch, trained.trace, weights)


def masters(engine: LocalEngine) -> bytes:
    return b"".join(master.detach().numpy().tobytes() for master in engine.optimiser.masters)


def test_stale_losses_by_hand() -> None:
    assert count_stale([], 0.0) == 0
    assert count_stale([3.0, 2.0, 2.5, 2.0], 0.0) == 2  # equal is no improvement
    assert count_stale([3.0, 2.0, 2.5, 1.9], 0.0) == 0
    # Each falls by 0.1, which is too little; but two together are an improvement on the one that counted.
    assert count_stale([3.0, 2.9], 0.15) == 1
    assert count_stale([3.0, 2.9, 2.8], 0.15) == 0


def test_a_patience_without_evaluations_is_refused() -> None:
    with pytest.raises(ValidationError, match="eval_every must be at least 1"):
        EarlyStopConfig(patience=2)


def test_it_stops_and_returns_to_the_best_weights() -> None:
    done = run()
    losses = [point["loss"] for point in done.watch.curve]
    best = losses.index(min(losses))
    assert 0 < best == len(losses) - 1 - STOP.patience
    assert done.watch.kept_step == done.watch.curve[best]["step"] == 2 * (best + 1)
    assert done.trace[-1]["step"] == done.watch.curve[-1]["step"] < CONFIG.steps
    assert masters(done.engine) == done.weights[best] != done.weights[-1]


@pytest.mark.parametrize("after_best", [-1, 1, 3, 5])
def test_a_kill_changes_nothing_to_the_bit(tmp_path: Path, after_best: int) -> None:
    """Killed before the best step, just after it, when one held-out loss is stale, and when two are."""
    whole = run()
    with pytest.raises(Killed):
        run(tmp_path, kill_at=whole.watch.kept_step + after_best)
    resumed = run(tmp_path)
    assert resumed.watch.curve == whole.watch.curve
    assert resumed.trace == whole.trace
    assert masters(resumed.engine) == masters(whole.engine)
    assert len(resumed.weights) < len(whole.weights), "it went on from a checkpoint"


def test_a_run_that_has_stopped_takes_no_step_more(tmp_path: Path) -> None:
    whole = run(tmp_path)
    kept = list_checkpoints(tmp_path)
    resumed = run(tmp_path, kill_at=int(whole.watch.curve[-1]["step"]))  # would raise
    assert list_checkpoints(tmp_path) == kept
    assert (resumed.watch.curve, resumed.trace, resumed.weights) == (whole.watch.curve, whole.trace, [])
    assert masters(resumed.engine) == masters(whole.engine)


def test_without_patience_it_only_watches(tmp_path: Path) -> None:
    watched = run(tmp_path, EarlyStopConfig(eval_every=15))
    assert [point["step"] for point in watched.watch.curve] == [15, 30, 40]  # the last step too
    assert watched.watch.kept_step == CONFIG.steps
    blind = run(None, EarlyStopConfig())
    assert blind.watch.curve == []
    assert watched.trace == blind.trace
    assert masters(watched.engine) == masters(blind.engine)
